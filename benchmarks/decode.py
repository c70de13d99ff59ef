"""Where the time of a decoder goes, stage by stage, that of an encoder, and what wavefronts bring.

Without --weights it takes a model of random weights, of preset base (N = M = 192) by default, whose scales are spread
so that a picture takes about 0.3 bits per pixel, the highest of the three caps. Latents are sampled from the model.
"""

import argparse
import itertools
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar
from unittest import mock

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from benchmarks.arguments import size
from ratecontrol.allocation.table import write_table
from submission import entropy_coding, integer
from submission.codec import Codec, latent_size
from submission.coder import Decoder
from submission.config import PRESETS, ModelConfig
from submission.console import run
from submission.entropy_coding import EntropyCoder
from submission.entropy_model import Context, EntropyModel, FactorizedPrior
from submission.errors import UserError
from submission.grdn import GRDN
from submission.integer import Int32
from submission.ladder import Ladder
from submission.latent_coding import LatentCoder
from submission.mixture import Positions, Rows
from submission.network import Network
from submission.parts import entropy_model
from submission.sliced_model import ChannelSlice, SlicedModel, SpaceChannelSlice
from submission.symbols import SymbolDecoder
from submission.tiles import post_filter
from training.export import export_tensors

SIZES = ((768, 512), (2048, 1365))

P = ParamSpec("P")
R = TypeVar("R")


class Clock:
    """Seconds spent in some functions."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def wrap(self, name: str, function: Callable[P, R]) -> Callable[P, R]:
        def timed(*arguments: P.args, **named: P.kwargs) -> R:
            with self.of(name):
                return function(*arguments, **named)

        return timed


def random_network(preset: str) -> tuple[Network, NDArray[np.uint8]]:
    """An untrained model of this size, and crops [2, 192, 192, 3] to calibrate it with."""
    torch.manual_seed(0)
    config = PRESETS[preset]
    network = Network(config)
    network.entropy_model.prior = FactorizedPrior(config.N, init_scale=0.2)
    with torch.no_grad():
        downs = [m for m in network.g_a.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
        downs[-1].weight.mul_(3)
        spread_scales(network.entropy_model)
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 256, (2, 24, 24, 3)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    return network, crops


def random_codec(preset: str) -> Codec:
    network, crops = random_network(preset)
    return Codec(network.config, export_tensors(network, crops), 0, 0)


def convolution(modules: nn.Module, index: int) -> nn.Conv2d:
    assert isinstance(modules, nn.Sequential)
    found = modules[index]
    assert isinstance(found, nn.Conv2d)
    return found


def spread_scales(model: EntropyModel | SlicedModel) -> None:
    """Give the Gaussians small means, and log2 scales from -5 to -0.6 over the channels of a group, or of y."""
    config = model.config
    scales = torch.linspace(-5, -0.6, config.M // config.groups)
    zeros = torch.zeros_like(scales)
    if isinstance(model, EntropyModel):
        for estimator in model.estimators:
            last = convolution(estimator.get_submodule("head"), -1)
            last.weight.mul_(0.1)
            assert last.bias is not None
            per_gaussian = last.bias.view(config.mixtures, -1, len(scales))  # weight (if a mixture), mean, scale
            per_gaussian[:, -2:] = torch.stack([zeros, scales])
        return
    for span, part in zip(model.spans, model.slices, strict=True):
        if isinstance(part, ChannelSlice):
            layers, biases = [convolution(part.mean, -1), convolution(part.scale, -1)], [zeros[span], scales[span]]
        else:
            layers = [convolution(part.aggregate if isinstance(part, SpaceChannelSlice) else model.h_s, -1)]
            biases = [torch.cat([zeros[span], scales[span]])]
        for layer, bias in zip(layers, biases, strict=True):
            layer.weight.mul_(0.1)
            assert layer.bias is not None
            layer.bias.copy_(bias)


class Sampler:
    """A source that draws symbols from the probabilities it is given."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(1)

    def decode(self, rows: Rows) -> Int32:
        cumulative = np.cumsum(rows + 1, axis=1)
        drawn = self.rng.integers(0, 2**24, len(rows))
        return np.asarray((cumulative <= drawn[:, None]).sum(1), np.int32)

    def decode_alike(self, row: Rows, count: int) -> Int32:
        return self.decode(np.repeat(row[None], count, 0))


def sampled_stream(entropy: LatentCoder, size: tuple[int, int]) -> bytes:
    """Entropy-coded latents that the model itself considers likely."""
    return entropy.encode(*entropy._code(SymbolDecoder(entropy.tables, Sampler()), size, None, None))[0]


def raster(height: int, width: int) -> Iterator[tuple[Positions, Positions]]:
    """Single positions, row by row: what wavefronts replace."""
    for position in np.ndindex(height, width):
        yield np.array(position[:1]), np.array(position[1:])


def seconds_by_position(config: ModelConfig, size: tuple[int, int]) -> float:
    """Seconds of the loop that wavefronts replace, as published code writes it: position by position through the
    floating-point network, K Gaussians at 33 values for every latent, one call of the coder a position."""
    import constriction  # our own coder takes integer weights alone

    model = entropy_model(config).eval()
    assert isinstance(model, EntropyModel)
    m, k, group = config.M, config.mixtures, config.M // config.groups
    contexts = [c for c in model.contexts if isinstance(c, Context)]
    masked = [(c.conv.weight * c.get_buffer("mask"), c.conv.bias) for c in contexts]
    hyper = torch.zeros(1, 2 * m, *size)
    y_hat = torch.zeros(1, m, size[0] + 4, size[1] + 4)
    edges = torch.arange(-16, 18).view(-1, 1) - 0.5
    coder = constriction.stream.queue.RangeEncoder()
    family = constriction.stream.model.Categorical(perfect=False)
    symbols = np.full(group, 16, np.int32)
    start = time.perf_counter()
    for i, j in np.ndindex(size):
        for (weight, bias), estimate in zip(masked, model.estimators, strict=True):
            context = F.conv2d(y_hat[:, :, i : i + 5, j : j + 5], weight, bias)
            p = estimate(torch.cat([context, hyper[:, :, i : i + 1, j : j + 1]], 1)).view(k, 3, group)
            cdf = torch.special.ndtr((edges - p[:, 1:2]) * torch.exp2(-p[:, 2:3]))
            mixed = (torch.softmax(p[:, 0], 0)[:, None] * cdf).sum(0)
            coder.encode(symbols, family, (mixed.diff(dim=0) + 1e-6).T.double().contiguous().numpy())
    return time.perf_counter() - start


def gemm_rate() -> float:
    """GFLOP/s of a plain float32 matrix product."""
    a = torch.rand(2048, 2048)
    best = min(_timed(lambda: a @ a) for _ in range(5))
    return 2 * 2048**3 / best / 1e9


def integer_rate() -> float:
    """10^9 operations a second of a plain product of 8-bit integers, as a wide convolution has it."""
    a, w = (np.random.default_rng(1).integers(-64, 64, size, np.int8) for size in ((4096, 4000), (4000, 256)))
    weight = integer.operand(w)
    best = min(_timed(lambda: integer.product(a, weight)) for _ in range(5))
    return 2 * 4096 * 4000 * 256 / best / 1e9


def _timed(function) -> float:  # type: ignore[no-untyped-def]
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def operations(module: nn.Module, x: torch.Tensor) -> float:
    """Floating-point operations of the convolutions of `module` on x."""
    total = 0.0

    def count(conv: nn.Conv2d, _: object, out: torch.Tensor) -> None:
        nonlocal total
        taps = conv.kernel_size[0] * conv.kernel_size[1] * conv.in_channels // conv.groups
        positions = out.numel() if isinstance(conv, nn.Conv2d) else out.numel() / 4
        total += 2 * taps * positions

    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    module(x)
    for hook in hooks:
        hook.remove()
    return total


@torch.inference_mode()
def measure(
    codec: Codec, width: int, height: int, reference: bool, threads: int, transforms: bool
) -> list[dict[str, object]]:
    """Rows of the table for one picture size."""
    size = latent_size(height, width)
    entropy = codec.entropy
    data = sampled_stream(entropy, size)
    rows: list[dict[str, object]] = []

    def row(stage: str, seconds: float, note: str = "") -> None:
        rows.append(
            {
                "preset": codec.config.name,
                "picture": f"{width}x{height}",
                "stage": stage,
                "seconds": round(seconds, 4),
                "note": note,
            }
        )

    torch.set_num_threads(threads)
    y_hat, z_hat = entropy.decode(data, size)  # warm up
    begun = time.process_time()
    entropy.decode(data, size)
    processor_seconds = time.process_time() - begun
    entropy_seconds = min(_timed(lambda: entropy.decode(data, size)) for _ in range(3))
    encode_seconds = min(_timed(lambda: entropy.encode(y_hat, z_hat)) for _ in range(3))

    clock = Clock()
    product = clock.wrap("product", integer.product)
    with ExitStack() as watched:
        for owner, name, timed in (
            (integer, "product", product),
            (entropy_coding, "product", product),
            (integer.Linear, "finish", clock.wrap("finish", integer.Linear.finish)),
            (Decoder, "decode", clock.wrap("coder", Decoder.decode)),
            (SymbolDecoder, "code", clock.wrap("symbols", SymbolDecoder.code)),
        ):
            watched.enter_context(mock.patch.object(owner, name, timed))
        with clock.of("h_s"):
            entropy.hyper_features(z_hat)
        clock.seconds = {"h_s": clock.seconds["h_s"]}
        entropy.decode(data, size)

    row(
        "  of which integer products", clock.seconds["product"], f"large ones reach {integer_rate():.0f} G operations/s"
    )
    row("  of which shift and clamp", clock.seconds["finish"])
    row("  of which mixtures", clock.seconds["symbols"] - clock.seconds["coder"])
    row("  of which range coder", clock.seconds["coder"])
    row("  of which h_s (in the two first)", clock.seconds["h_s"])
    bpp = 8 * len(data) / (width * height)
    zeros = f", {np.mean(y_hat != 0):.1%} not zero" if entropy.unit == 1 else ""
    row("entropy decoding", entropy_seconds, f"{bpp:.3f} bpp{zeros}")
    row("entropy decoding, processor time", processor_seconds)
    row("entropy encoding", encode_seconds)
    if reference and isinstance(entropy, EntropyCoder) and codec.config.entropy == "mixture":
        wavefronts = entropy_coding.wavefronts
        entropy_coding.wavefronts = raster
        single = entropy.encode(y_hat, z_hat)[0]
        seconds = _timed(lambda: entropy.decode(single, size))
        entropy_coding.wavefronts = wavefronts
        row("the same, one position at a time", seconds, f"{seconds / entropy_seconds:.1f} times slower")
        seconds = seconds_by_position(codec.config, size)
        row("the usual loop in floating point", seconds, f"{seconds / entropy_seconds:.1f} times slower")

    if not transforms:
        return rows
    gemm = gemm_rate()
    y = (
        torch.from_numpy(entropy.dequantize(y_hat, z_hat))
        .permute(2, 0, 1)[None]
        .contiguous(memory_format=torch.channels_last)
    )
    small = y[:, :, :8, :8]
    area = y.shape[2] * y.shape[3] / 64
    x_hat = codec.g_s(y)
    seconds = min(_timed(lambda: codec.g_s(y)) for _ in range(2))
    rate = operations(codec.transforms.g_s, small) * area / seconds / 1e9
    row("g_s", seconds, f"{rate:.0f} GFLOP/s of {gemm:.0f} that a plain product reaches")
    total = entropy_seconds + seconds
    if codec.config.grdn is not None:
        filter_ = codec.transforms.post_filter
        assert isinstance(filter_, GRDN)
        seconds = min(_timed(lambda: post_filter(filter_, x_hat)) for _ in range(2))
        rate = operations(filter_, x_hat[:, :, :128, :128].to(filter_.tail.weight.dtype)) * area / seconds / 1e9
        row("post-filter", seconds, f"{rate:.0f} GFLOP/s")
        total += seconds
    row("whole decoder", total)
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    codec.latents(picture)  # warm up
    seconds = min(_timed(lambda: codec.latents(picture)) for _ in range(2))
    row("g_a and h_a", seconds, "multiplied in bfloat16" if codec.fast else "in float32")
    row("whole encoder", encode_seconds + seconds)
    row("peak memory", 0.0, f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    return rows


def _worker(arguments: tuple[tuple[int, int], str | None, int, str, bool, int, bool]) -> list[dict[str, object]]:
    (width, height), weights, quality, preset, reference, threads, transforms = arguments
    codec = Ladder.load(Path(weights)).codec(quality) if weights else random_codec(preset)
    return measure(codec, width, height, reference, threads, transforms)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decode",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.decode --preset base charm-zero elic-zero -o decode.csv",
    )
    parser.add_argument(
        "--sizes", type=size, nargs="+", default=SIZES, metavar="WxH", help="default: 768x512 2048x1365"
    )
    parser.add_argument("--weights", help="a ladder, instead of random weights")
    parser.add_argument("--quality", type=int, default=2, help="model of that ladder (default: %(default)s)")
    parser.add_argument(
        "--preset",
        nargs="+",
        metavar="NAME",
        default=["base"],
        help=f"random models: {', '.join(PRESETS)} (default: base)",
    )
    parser.add_argument("--reference", action="store_true", help="also code position by position (slow)")
    parser.add_argument("--entropy-only", action="store_true", help="leave out g_s and post-filter")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, help="CSV file for the table")
    options = parser.parse_args()
    table: list[dict[str, object]] = []
    if unknown := [name for name in options.preset if name not in PRESETS]:
        raise UserError(f"--preset {unknown[0]}: there are {', '.join(PRESETS)}")
    for preset, picture in itertools.product(options.preset, options.sizes):
        if len(options.preset) > 1 and picture == options.sizes[0]:
            print(preset, flush=True)
        # a process each, so that memory is that of one picture
        model = (picture, options.weights, options.quality, preset)
        task = (*model, options.reference, options.threads, not options.entropy_only)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows = pool.apply(_worker, (task,))
        for r in rows:
            print(f"{r['picture']:10}  {r['stage']:34}  {r['seconds'] or '':>9}  {r['note']}", flush=True)
        table += rows
    if options.output:
        write_table(options.output, pd.DataFrame(table))
    return 0


if __name__ == "__main__":
    run(main)
