"""What each part of the papers, and each choice of size and recipe, brings at the scale of a trained model, for equal
CPU seconds.

Every experiment starts from a finished run of `training.ladder`; its variants start alike and see the same crops. The
first variant is what the project does.

entropy      the entropy model anew from random weights, on y as the run's encoder makes it, rounded; and the run's own
attention    the attention blocks of g_a, h_a and g_s anew, everything trained (main stage)
post-filter  half of the time GRDN alone, half everything; or no GRDN and all of the time for the rest; or that of base
padding      joint stage with and without Algorithm 1, scored on crops of odd size, zero-padded as the encoder does
soft-hard    the last stage with real rounding, or the joint stage for as long
further      more of the last stage; or its time for the entropy model alone, on y as it is
recipe       the main stage further: crop, batch, learning rate
width        the main stage from random weights: channels, and how they taper towards full resolution

J = bpp + lambda * (1 - MS-SSIM) of held-out pictures with real rounding. `rate` is the difference of J to the first
variant in per cent of that one's bpp: bytes at equal quality.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.arguments import positive
from benchmarks.kept import same_settings
from eval.codecs.kept import read_or_empty
from ratecontrol.allocation.table import write_table
from submission.config import PAD, GRDNConfig, ModelConfig
from submission.console import Progress, run
from submission.entropy_model import EntropyModel
from submission.errors import UserError
from submission.layers import AttentionBlock
from submission.network import Network
from submission.sliced_model import SlicedModel
from training.data.crops import Crops, centre_crops, to_float
from training.data.pictures import load_pictures
from training.loop.checkpoint import load_checkpoint
from training.loop.schedule import Moment, learning_rate
from training.loop.train import Learner
from training.network.device import Device
from training.objective.forward import forward
from training.objective.loss import Padded, distortion
from training.recipe import RECIPES, Recipe, StageName

#: Held-out pictures that are scored, and their odd size where padding counts.
SCORED = 64
ODD = 181, 167

#: The entropy model learns from this many crops, this many at a time.
LATENT_CROPS, LATENT_BATCH = 8192, 16

#: Sigma's bound where rounding is real.
HARD_BOUND = 1e-6


@dataclass(frozen=True)
class Result:
    steps: int
    bpp: float
    msssim: float


class Bench:
    """A trained run to start from, and what the experiments share."""

    def __init__(self, folder: Path, data: list[Path], cache: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        self.device = Device.choose("auto", "off")
        record = load_checkpoint(folder / "hard.pt", None, None, None)
        self.lmbda = float(record["lmbda"])
        self.config = ModelConfig.from_json(record["config"])
        self.recipe: Recipe = RECIPES[self.config.name]
        self.pictures = load_pictures(data, self.recipe.stage("main").crop, cache)
        self._latents: tuple[Tensor, ...] | None = None

    def network(self, stage: StageName, **changes: object) -> Network:
        """The run's network after `stage`, with `changes` to its configuration; what has no weights is random."""
        torch.manual_seed(1)
        network = Network(dataclasses.replace(self.config, **changes))  # type: ignore[arg-type]
        trained = load_checkpoint(self.folder / f"{stage}.pt", self.config, None, None)["network"]
        own = network.state_dict()
        fitting = {k: v for k, v in trained.items() if k in own and own[k].shape == v.shape}
        network.load_state_dict(own | fitting)
        return network

    def train(self, network: Network, name: StageName, share: float = 1.0, **changes: object) -> int:
        """Train `network` as in stage `name` for a share of the seconds; returns the steps."""
        settings = {"warmup": 0, "seed": 77} | changes
        stage = dataclasses.replace(self.recipe.stage(name), **settings)  # type: ignore[arg-type]
        learner, crops = Learner(network, stage, self.lmbda, self.device), Crops(self.pictures, stage, self.device)
        steps = 0
        for steps, progress in _clock(share * self.seconds, name):
            learner.step(crops.at(steps), Moment(steps, progress))
        return steps + 1

    def score(self, network: Network, name: StageName, odd: bool = False) -> tuple[float, float]:
        """Bits per pixel and MS-SSIM of held-out crops with real rounding."""
        stage = dataclasses.replace(self.recipe.stage(name), scale_bound=HARD_BOUND)
        network.eval()
        x = to_float(centre_crops(self.pictures, stage.crop, SCORED))
        height, width = ODD if odd else x.shape[2:]
        x = x[:, :, :height, :width]
        bits, loss = 0.0, 0.0
        with torch.no_grad():
            for part in x.split(4):
                padded = F.pad(part, (0, -width % PAD, 0, -height % PAD))
                batch = Padded(padded.contiguous(memory_format=torch.channels_last), height, width)
                made, y_bpp, z_bpp = forward(network, stage, batch, self.device, None)
                bits += float(y_bpp + z_bpp) * len(part)
                loss += float(distortion(part, batch.valid(made).clamp(0, 1))) * len(part)
        return bits / len(x), 1 - loss / len(x)

    def latents(self) -> tuple[Tensor, ...]:
        """Rounded y and z of training crops, then of held-out ones."""
        if self._latents is None:
            network = self.network("hard").eval()
            stage = dataclasses.replace(self.recipe.stage("main"), seed=78)
            crops = Crops(self.pictures, stage, self.device)
            held_out = to_float(centre_crops(self.pictures, stage.crop, SCORED)).split(16)
            training = (crops.at(step) for step in range(LATENT_CROPS // stage.batch))
            made: list[Tensor] = []
            with torch.no_grad():
                for batches in (training, held_out):
                    parts = [self._analyse(network, x) for x in batches]
                    made += [torch.cat(latents) for latents in zip(*parts, strict=True)]
            self._latents = tuple(made)
        return self._latents

    def _analyse(self, network: Network, x: Tensor) -> tuple[Tensor, Tensor]:
        with self.device.autocast():
            y = network.g_a(x.contiguous(memory_format=torch.channels_last))
            z = network.h_a(y)
        return y.float().round(), z.float().round()


def _clock(seconds: float, name: str) -> Iterator[tuple[int, float]]:
    """Steps and how far they are, 0 to 1, by the CPU seconds of this process."""
    bar = Progress(name, int(seconds))
    start, step, spent = time.process_time(), 0, 0.0
    while spent < seconds:
        yield step, spent / seconds
        step += 1
        spent = time.process_time() - start
        bar.advance(min(int(spent), int(seconds)) - bar.done)
    bar.close()


def entropy(bench: Bench, **changes: object) -> Result:
    torch.manual_seed(1)
    model = Network(dataclasses.replace(bench.config, **changes)).entropy_model  # type: ignore[arg-type]
    return entropy_alone(bench, model)


def entropy_alone(bench: Bench, model: EntropyModel | SlicedModel) -> Result:
    """Train `model` on the latents of the finished run."""
    y, z, y_held_out, z_held_out = bench.latents()
    stage = dataclasses.replace(bench.recipe.stage("main"), lr=1e-3)
    optimizer = torch.optim.Adam(model.parameters(), stage.lr, fused=True)
    pixels = stage.crop**2
    order = torch.Generator().manual_seed(1)

    def bpp(y: Tensor, z: Tensor) -> Tensor:
        y_likelihood, z_likelihood = model(y, z, HARD_BOUND)
        return -(torch.log2(y_likelihood).sum() + torch.log2(z_likelihood).sum()) / (len(y) * pixels)

    steps = 0
    for steps, progress in _clock(bench.seconds, "entropy"):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(stage, Moment(steps, progress))
        chosen = torch.randint(len(y), (LATENT_BATCH,), generator=order)
        optimizer.zero_grad(set_to_none=True)
        bpp(y[chosen], z[chosen]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), stage.clip)
        optimizer.step()
    with torch.no_grad():
        rates = [bpp(*parts) * len(parts[0]) for parts in zip(y_held_out.split(16), z_held_out.split(16), strict=True)]
    _, msssim = bench.score(bench.network("hard"), "hard")
    return Result(steps + 1, float(sum(rates)) / len(y_held_out), msssim)


def attention(bench: Bench, kind: str) -> Result:
    network = bench.network("main", attention=kind)
    fresh = Network(network.config)
    for module, other in zip(network.modules(), fresh.modules(), strict=True):
        if isinstance(module, AttentionBlock):
            module.load_state_dict(other.state_dict())
    steps = bench.train(network, "main")
    return Result(steps, *bench.score(network, "main"))


def post_filter(bench: Bench, size: GRDNConfig | None) -> Result:
    network = bench.network("main", grdn=size)
    if size:
        steps = bench.train(network, "post_filter", 0.5) + bench.train(network, "joint", 0.5, padding=0)
    else:
        steps = bench.train(network, "joint", padding=0)
    return Result(steps, *bench.score(network, "joint"))


def padding(bench: Bench, largest: int) -> Result:
    network = bench.network("post_filter")
    steps = bench.train(network, "joint", padding=largest)
    return Result(steps, *bench.score(network, "joint", odd=True))


def continued(bench: Bench, start: StageName, name: StageName, **changes: object) -> Result:
    """Stage `name` from the end of stage `start`."""
    network = bench.network(start)
    steps = bench.train(network, name, 1.0, **changes)
    return Result(steps, *bench.score(network, name))


def recipe(bench: Bench, **changes: object) -> Result:
    return continued(bench, "main", "main", **changes)


def as_it_is(bench: Bench) -> Result:
    return Result(0, *bench.score(bench.network("hard"), "hard"))


def width(bench: Bench, **changes: object) -> Result:
    torch.manual_seed(1)
    network = Network(dataclasses.replace(bench.config, **changes))  # type: ignore[arg-type]
    steps = bench.train(network, "main", warmup=bench.recipe.stage("main").warmup)
    return Result(steps, *bench.score(network, "main"))


EXPERIMENTS: dict[str, dict[str, Callable[[Bench], Result]]] = {
    "entropy": {
        "all": entropy,
        "2-D context": lambda b: entropy(b, groups=1),
        "no RPE": lambda b: entropy(b, rpe=False),
        "K = 1": lambda b: entropy(b, mixtures=1),
        "2-D, no RPE, K = 1": lambda b: entropy(b, groups=1, rpe=False, mixtures=1),
        "of the run": as_it_is,
    },
    "attention": {
        "group-separate": lambda b: attention(b, "group"),
        "plain": lambda b: attention(b, "plain"),
    },
    "post-filter": {
        "GRDN": lambda b: post_filter(b, b.config.grdn),
        "none": lambda b: post_filter(b, None),
        "larger GRDN": lambda b: post_filter(b, RECIPES["base"].model.grdn),
    },
    "padding": {
        "Algorithm 1": lambda b: padding(b, 20),
        "none": lambda b: padding(b, 0),
    },
    "soft-hard": {
        "hard": lambda b: continued(b, "joint", "hard"),
        "joint further": lambda b: continued(b, "joint", "joint"),
    },
    "further": {
        "as it is": as_it_is,
        "hard": lambda b: continued(b, "hard", "hard"),
        "entropy model": lambda b: entropy_alone(b, b.network("hard").entropy_model),
    },
    "recipe": {
        "as it is": recipe,
        "rate halved": lambda b: recipe(b, lr=0.5 * b.recipe.stage("main").lr),
        "rate doubled": lambda b: recipe(b, lr=2 * b.recipe.stage("main").lr),
        "batch doubled": lambda b: recipe(b, batch=2 * b.recipe.stage("main").batch),
        "crop 256, batch 2": lambda b: recipe(b, crop=256, batch=2),
    },
    "width": {
        "as it is": width,
        "two thirds": lambda b: width(b, M=64, N=44, analysis=(20, 32, 64), synthesis=(64, 32, 20), estimator=128),
        "four thirds": lambda b: width(b, M=128, N=84, analysis=(44, 64, 128), synthesis=(128, 64, 44), estimator=256),
        "no taper": lambda b: width(b, analysis=(96, 96, 96), synthesis=(96, 96, 96)),
    },
}


def read_kept_rows(path: Path) -> pd.DataFrame:
    """What an earlier call left in the table; UserError if it is no such table."""
    if not path.exists():
        return pd.DataFrame(columns=["part", "variant"])
    table = read_or_empty(path, ",")
    if not {"part", "variant"} <= set(table.columns):
        raise UserError(f"{path}: not a table of this command; move it away")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.parts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.parts runs/small/lambda_6 --data photos --seconds 300 -o parts.csv",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of one finished model of a ladder")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of training pictures")
    parser.add_argument("--cache", type=Path, default=Path(), help="folder for the decoded pictures")
    parser.add_argument("--seconds", type=positive, default=300.0, help="CPU seconds of each variant (default 300)")
    parser.add_argument("--parts", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), help="(default: all)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="CSV", help="table; what it has is kept")
    options = parser.parse_args()
    bench = Bench(options.run, options.data, options.cache, options.seconds)
    table = read_kept_rows(options.output)
    same_settings(options.output, {"RUN": options.run, "--seconds": options.seconds, "--data": options.data})
    for part in options.parts:
        for variant, experiment in EXPERIMENTS[part].items():
            if not ((table["part"] == part) & (table["variant"] == variant)).any():
                found = experiment(bench)
                j = found.bpp + bench.lmbda * (1 - found.msssim)
                row = {
                    "part": part,
                    "variant": variant,
                    "seconds": options.seconds,
                    **dataclasses.asdict(found),
                    "j": j,
                }
                table = pd.concat([table, pd.DataFrame([row])]) if len(table) else pd.DataFrame([row])
                write_table(options.output, table)
        _print(table[table["part"] == part])
    return 0


def _print(rows: pd.DataFrame) -> None:
    first = rows.iloc[0]
    print(f"{first['part']:20}  steps     bpp  MS-SSIM       J    rate")
    for _, row in rows.iterrows():
        more = 100 * (row["j"] - first["j"]) / first["bpp"]
        scores = f"{row['bpp']:.4f}  {row['msssim']:.5f}  {row['j']:.4f}  {more:+5.1f}%"
        print(f"  {row['variant']:18}  {row['steps']:5}  {scores}", flush=True)


if __name__ == "__main__":
    run(main)
