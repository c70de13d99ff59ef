"""What exactness costs: bytes of real streams, header and checksums included, against the estimate of the
floating-point network that was trained, picture by picture.

Twice: for latents as the network rounds them, and for those that a decoder finds. They differ where the coder takes the
likeliest value instead of one that the model holds all but impossible (`docs/bitstream.md`), which saves bytes and
costs quality.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from ratecontrol.allocation.table import write_table
from submission.bitstream import HEADER_BYTES
from submission.codec import Codec
from submission.config import ModelConfig
from submission.console import progress, run
from submission.files import Picture, list_images, read_image
from submission.network import Network
from training.export import export_tensors, newest_stage, read_calibration
from training.loop.checkpoint import load_checkpoint
from training.objective.loss import rate
from training.objective.zero_centre import rounded


@torch.inference_mode()
def estimated_bytes(network: Network, codec: Codec, picture: Picture) -> float:
    """What the floating-point network thinks that `picture` takes, for latents as its own `codec` quantises them."""
    return bytes_of(network, *floating_latents(network, codec, picture))


def floating_latents(network: Network, codec: Codec, picture: Picture) -> tuple[Tensor, Tensor]:
    """y_hat [1, M, h, w] and z_hat [1, N, h/4, w/4] as `network` rounds them, from the `codec`'s analysis."""
    y, z = codec.continuous_latents(picture)
    z_hat = torch.from_numpy(z).permute(2, 0, 1)[None].float()
    return rounded(network, y / codec.entropy.unit, z_hat), z_hat


@torch.inference_mode()
def bytes_of(network: Network, y_hat: Tensor, z_hat: Tensor) -> float:
    """What the floating-point network thinks that these latents take."""
    return sum(float(rate(part, 8)) for part in network.entropy_model(y_hat, z_hat, 1e-6))


def decoded_latents(codec: Codec, picture: Picture) -> tuple[Tensor, Tensor]:
    """y_hat, over its quantisation step, and z_hat as a decoder finds them, of the same shapes."""
    _, y, z = codec.entropy.encode(*codec.latents(picture))
    y_hat, z_hat = (torch.from_numpy(v).permute(2, 0, 1)[None].float() for v in (y, z))
    return y_hat / codec.entropy.unit, z_hat


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.exactness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.exactness runs/small/lambda_6 photos",
    )
    parser.add_argument("run", type=Path, nargs="+", help="run folders of single models")
    parser.add_argument("images", type=Path, help="folder of pictures")
    parser.add_argument("-o", "--output", type=Path, help="CSV file with a line per model")
    options = parser.parse_args()
    pictures = [read_image(path) for path in list_images([options.images])]
    print("lambda     bpp  estimated bytes  real bytes  cost %  of which header %  cost % of what is decoded")
    table = []
    for folder in options.run:
        state = load_checkpoint(newest_stage(folder), None, None, None)
        network = Network(ModelConfig.from_json(state["config"]))
        network.load_state_dict(state["network"])
        codec = Codec(network.config, export_tensors(network, read_calibration(folder)), 0, 0)
        estimated = decoded = real = 0.0
        for picture in progress(pictures, f"lambda {state['lmbda']:g}"):
            estimated += estimated_bytes(network, codec, picture)
            decoded += bytes_of(network, *decoded_latents(codec, picture))
            real += len(codec.compress(picture))
        pixels = sum(p.shape[0] * p.shape[1] for p in pictures)
        row = {
            "lambda": state["lmbda"],
            "bpp": round(8 * real / pixels, 4),
            "estimated_bytes": round(estimated, 1),
            "real_bytes": int(real),
            "cost_percent": round(100 * (real / estimated - 1), 3),
            "header_percent": round(100 * HEADER_BYTES * len(pictures) / estimated, 3),
            "decoded_cost_percent": round(100 * (real / decoded - 1), 3),
        }
        print(
            "{lambda:6g}  {bpp:6.4f}  {estimated_bytes:15,.0f}  {real_bytes:10,}  {cost_percent:6.2f}"
            "  {header_percent:17.2f}  {decoded_cost_percent:25.2f}".format(**row),
            flush=True,
        )
        table.append(row)
    if options.output:
        write_table(options.output, pd.DataFrame(table))
    return 0


if __name__ == "__main__":
    run(main)
