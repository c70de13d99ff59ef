"""The 4th paper's comparison at a small scale: networks, what stands for rounding, lambdas, before and after hard.

For every network and lambda one model is trained first, with additive noise; each setting continues from it with equal
steps and seeds, then goes through the hard stage (the paper's post-training). Rate and PSNR are those of held-out crops
with real rounding, and BD-rates are against noise with sigma >= 1e-6 before the hard stage, as are the paper's beside
them.

Everything is kept in the folder as it comes, and a call with the same options goes on: after --time-budget, Ctrl-C or a
kill. Several calls with other --networks may share a folder at the same time.
"""

import argparse
import contextlib
import csv
import dataclasses
import io
import itertools
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.arguments import count, positive
from benchmarks.kept import same_settings
from benchmarks.quality import COUNT, CROP
from eval.rate_distortion.bdrate import RatePoint, bd_rate
from submission.config import NETWORKS, ModelConfig
from submission.console import run
from submission.errors import UserError
from submission.files import make_folder
from submission.lock import locked
from submission.network import Network
from training.data.crops import gather, random_places, to_float
from training.data.pictures import Pictures, load_pictures
from training.loop.checkpoint import load_checkpoint
from training.loop.options import seconds
from training.loop.stage import run_stage
from training.loop.train import Session
from training.network.device import Device
from training.objective.forward import forward
from training.objective.loss import Padded, squared_error
from training.recipe import RECIPES, Stage, StageName


@dataclass(frozen=True)
class Setting:
    """What stands for rounding, and the bound of sigma, in the main stage."""

    name: str
    quantizer: str
    bound: float = 0.11
    learned_step: bool = False
    moves_means: bool = False  #: by the distortion, in the hard stage


#: The first is what BD-rates are against.
SETTINGS = (
    Setting("aun, sigma >= 1e-6", "aun", 1e-6),
    Setting("aun", "aun"),
    Setting("mix", "mix"),
    Setting("uq-s", "uq-s"),
    Setting("sua+ep/sua+ste", "sua+ep/sua+ste"),
    Setting("sua+ep/sua+pge", "sua+ep/sua+pge"),
    Setting("aun, learned step", "aun", learned_step=True),
    Setting("sua+ste, means moved", "sua+ep/sua+ste", moves_means=True),
)

#: Its models stay in the folder, for `benchmarks.networks --trained`.
KEPT = SETTINGS[1]

_NONE = math.nan

#: BD-rates against BPG in per cent, joint and post-training, mean of Kodak and Tecnick: Tables VIII to XI, and for
#: MS-hyper V and VI (Kodak). In the order of `SETTINGS`; none where training diverged or was not tried.
PAPER = {
    "ms-hyper": (
        (11.96, 1.15, -8.03, _NONE, _NONE, _NONE),
        (8.05, -6.13, -9.2, _NONE, _NONE, _NONE),
    ),
    "ms-hyper-zero": (
        (11.27, -0.53, -8.39, _NONE, -9.14, -8.5),
        (7.42, -5.78, -8.93, _NONE, -9.89, -9.69),
    ),
    "ms-context": (
        (-4.69, -6.6, -12.66, -11.7, -16.25, -16.26),
        (-8.51, -12.98, -13.89, -14.0, -17.14, -17.16),
    ),
    "cheng-anchor": (
        (-14.63, -17.59, -27.12, -27.32, _NONE, -30.45),
        (-25.79, -30.23, -28.52, -29.17, _NONE, -31.89),
    ),
    "cheng-attn": (
        (-24.59, -28.87, -19.59, -29.27, _NONE, -31.89),
        (-27.9, -32.17, -26.36, -31.09, _NONE, -33.01),
    ),
    "charm": (
        (-1.14, 0.51, -13.2, -9.02, -17.69, -17.34),
        (-11.13, -14.35, -15.01, -13.69, -19.2, -19.12),
    ),
    "charm-zero": (
        (-4.79, -3.51, -18.77, -11.99, -18.63, -17.58),
        (-13.42, -17.96, -19.22, -15.87, -20.5, -19.52),
    ),
    "elic-sm-zero": (
        (_NONE, -10.38, -27.23, _NONE, -20.27, -20.92),
        (_NONE, -27.7, -27.82, _NONE, -26.72, -28.31),
    ),
    "elic-zero": (
        (_NONE, -12.14, -31.23, _NONE, -27.06, -25.18),
        (_NONE, -30.1, -31.74, _NONE, -32.14, -32.5),
    ),
}

FIELDS = ("network", "setting", "lmbda", "stage", "start_steps", "steps", "bpp", "z_bpp", "psnr", "seconds")
STAGE_NAMES: tuple[StageName, StageName] = ("main", "hard")

Row = dict[str, str]
Key = tuple[str, str, str, str]


class Results:
    """The rows of a folder, one for each model and stage."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[Key, Row] = {}
        if path.exists():
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    if None not in row and None not in row.values():  # a kill may have cut a line
                        self.rows[_key(row)] = row

    def add(self, row: dict[str, object]) -> None:
        text = {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in row.items()}
        before = self.path.read_bytes() if self.path.exists() else b""
        start = ",".join(FIELDS) + "\n" if not before else "" if before.endswith(b"\n") else "\n"
        line = io.StringIO()
        csv.DictWriter(line, FIELDS, lineterminator="\n").writerow(text)
        with self.path.open("a") as file:
            file.write(start + line.getvalue())
        self.rows[_key(text)] = text
        print("  ".join(text[name] for name in FIELDS), flush=True)

    def curve(self, network: str, setting: str, stage: str) -> list[RatePoint]:
        """(bits per pixel, PSNR) of all lambdas."""
        rows = [row for key, row in self.rows.items() if (key[0], key[1], key[3]) == (network, setting, stage)]
        return [(float(row["bpp"]), float(row["psnr"])) for row in rows]


def _key(row: Row) -> Key:
    return row["network"], row["setting"], row["lmbda"], row["stage"]


@dataclass(frozen=True)
class Bench:
    """What all runs share."""

    root: Path
    session: Session
    results: Results
    start_steps: int
    steps: tuple[int, int]  #: of main and hard
    batch: int | None
    sharpness: float
    deadline: float

    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def network(self, name: str, lambdas: tuple[float, ...], settings: tuple[Setting, ...]) -> bool:
        """Train and score one network with all settings; False when the time is used up first."""
        model = RECIPES[f"{name}-small"].model
        middle = lambdas[len(lambdas) // 2]
        with locked(make_folder(self.root / name) / ".lock", "trains this network"):
            for lmbda in sorted(lambdas, key=lambda v: v != middle):
                if self._missing(name, lmbda, settings):
                    if self.late():
                        return False
                    self._start(name, model, lmbda, middle)
            for lmbda, setting in itertools.product(lambdas, settings):
                if self._missing(name, lmbda, (setting,)) and not self._setting(name, model, lmbda, setting):
                    return False
        return True

    def _missing(self, name: str, lmbda: float, settings: tuple[Setting, ...]) -> bool:
        keys = [(name, s.name, f"{lmbda:g}", stage) for s, stage in itertools.product(settings, STAGE_NAMES)]
        return any(key not in self.results.rows for key in keys)

    def _stage(self, name: str, stage: StageName, **changes: object) -> Stage:
        usual = RECIPES[f"{name}-small"].stage(stage)
        batch = self.batch or usual.batch
        return dataclasses.replace(usual, batch=batch, sharpness=self.sharpness, **changes)  # type: ignore[arg-type]

    def _folder(self, name: str, lmbda: float, setting: str) -> Path:
        path = model_folder(self.root, name, lmbda, setting)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _start(self, name: str, model: ModelConfig, lmbda: float, middle: float) -> None:
        """What all settings of a lambda continue; the middle lambda's is trained from scratch, the others from that."""
        init = self._folder(name, middle, "start") if lmbda != middle else None
        steps = max(1, self.start_steps // 3) if init else self.start_steps
        stage = self._stage(name, "main", steps=steps, lr=3e-4 if init else 6e-4)
        self._run(model, stage, lmbda, self._folder(name, lmbda, "start"), init)

    def _run(self, model: ModelConfig, stage: Stage, lmbda: float, folder: Path, init: Path | None) -> None:
        """Train a stage; what it prints goes to a file beside it."""
        with (folder / "log.txt").open("a") as log, contextlib.redirect_stdout(log):
            run_stage(model, stage, lmbda, folder, init, self.session)

    def _setting(self, name: str, model: ModelConfig, lmbda: float, setting: Setting) -> bool:
        folder, start = self._folder(name, lmbda, setting.name), self._folder(name, lmbda, "start")
        if setting.learned_step:
            model = dataclasses.replace(model, learned_step=True)
            start = _with_learned_step(start, model, self._folder(name, lmbda, "start, learned step"))
        changes: dict[StageName, dict[str, object]] = {
            "main": {"quantizer": setting.quantizer, "scale_bound": setting.bound, "lr": 3e-4, "seed": 2},
            "hard": {"seed": 3, "distortion_moves_means": setting.moves_means},
        }
        for stage_name, steps in zip(STAGE_NAMES, self.steps, strict=True):
            if self.late():
                return False
            begun = time.monotonic()
            stage = self._stage(name, stage_name, steps=steps, **changes[stage_name])
            self._run(model, stage, lmbda, folder, start if stage_name == "main" else None)
            if (name, setting.name, f"{lmbda:g}", stage_name) in self.results.rows:
                continue
            network = Network(model)
            network.load_state_dict(load_checkpoint(folder / f"{stage_name}.pt", model, None, lmbda)["network"])
            bpp, z_bpp, psnr = score(network, stage, self.session.pictures, self.session.device)
            values = (name, setting.name, f"{lmbda:g}", stage_name, self.start_steps, steps, bpp, z_bpp, psnr)
            self.results.add(dict(zip(FIELDS, (*values, time.monotonic() - begun), strict=True)))
        if setting != KEPT:
            for stage_name in STAGE_NAMES:
                (folder / f"{stage_name}.pt").unlink()
        return True


def model_folder(root: Path, network: str, lmbda: float, setting: str = KEPT.name) -> Path:
    """Where the models of a setting are in the folder of results `root`."""
    return root / network / f"lambda_{lmbda:g}" / setting.translate({ord(c): "_" for c in " ,/>="})


def _with_learned_step(start: Path, model: ModelConfig, folder: Path) -> Path:
    """The start with a branch for quantisation steps, which are all 1 at first."""
    state = load_checkpoint(start / "main.pt", None, None, None)
    torch.manual_seed(0)
    network = Network(model)
    state["network"] = network.state_dict() | state["network"]
    state["config"] = model.to_json()
    part = folder / "main.pt.part"
    torch.save(state, part)
    part.replace(folder / "main.pt")
    return folder


@torch.no_grad()
def score(network: Network, stage: Stage, pictures: Pictures, device: Device) -> tuple[float, float, float]:
    """Bits per pixel, those of z among them, and PSNR of held-out crops with real rounding."""
    network.eval()
    hard = dataclasses.replace(stage, scale_bound=1e-6)
    places = random_places(pictures.validation, COUNT, CROP, 0, 0)
    bits = z_bits = error = 0.0
    for part in to_float(gather(pictures.pixels, places, CROP)).split(4):
        part = part.contiguous(memory_format=torch.channels_last)
        x_hat, y_bpp, z_bpp = forward(network, hard, Padded(part, *part.shape[2:]), device, None)
        bits += float(y_bpp + z_bpp) * len(part) / COUNT
        z_bits += float(z_bpp) * len(part) / COUNT
        error += float(squared_error(part, x_hat.clamp(0, 1))) * len(part) / COUNT
    return bits, z_bits, 10 * math.log10(255**2 / error)


def existing(path: Path) -> Path:
    """`path`, or UserError if it is no table of this benchmark."""
    try:
        with path.open(newline="") as file:
            fields = csv.DictReader(file).fieldnames
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if fields is None or tuple(fields) != FIELDS:
        raise UserError(f"{path}: not the results of this benchmark")
    return path


def against_first(results: Results, network: str) -> dict[str, tuple[float, float]]:
    """Our BD-rates in per cent (before, after the hard stage) by setting; none where lambdas are still missing, the
    anchor's among them: two are no curve."""
    anchor = results.curve(network, SETTINGS[0].name, "main")
    found = {}
    for setting in SETTINGS:
        curves = [results.curve(network, setting.name, stage) for stage in STAGE_NAMES]
        pair = [100 * bd_rate(anchor, curve) if len(curve) == len(anchor) > 2 else math.nan for curve in curves]
        if curves[0]:
            found[setting.name] = (pair[0], pair[1])
    return found


def paper_against_first(network: str) -> dict[str, tuple[float, float]]:
    """The paper's BD-rates, against the same."""
    joint, post = PAPER[network]
    base = 100 + joint[0]
    pairs = zip(SETTINGS, zip(joint, post, strict=True), strict=False)
    return {s.name: (100 * (100 + j) / base - 100, 100 * (100 + p) / base - 100) for s, (j, p) in pairs}


def table(results: Results) -> str:
    """The comparison as it stands, and which orderings after the hard stage are the paper's."""
    lines = [f"{'':20}ours: main     hard   paper: joint     post"]
    for network in PAPER:
        ours, paper = against_first(results, network), paper_against_first(network)
        figures = {s.name: post for s, post in zip(SETTINGS, PAPER[network][1], strict=False)}
        if not ours:
            continue
        lines.append(network)
        for setting in SETTINGS:
            if setting.name in ours:
                numbers = (*ours[setting.name], *paper.get(setting.name, (math.nan, math.nan)))
                cells = ["      -" if math.isnan(v) else f"{v:+6.1f}%" for v in numbers]
                lines.append(f"  {setting.name:20} {cells[0]}  {cells[1]}        {cells[2]}  {cells[3]}")
        same: list[str] = []
        other: list[str] = []
        for a, b in itertools.combinations([n for n in ours if n in figures], 2):
            left, right, x, y = ours[a][1], ours[b][1], figures[a], figures[b]
            if not math.isnan(left - right + x - y):  # both of them have both
                (same if (left < right) == (x < y) else other).append(f"{a} < {b}" if x < y else f"{b} < {a}")
        if same or other:
            lines.append(
                f"  after the hard stage {len(same)} of {len(same) + len(other)} pairs are ordered as in the paper"
            )
            lines += [f"    not: {pair}" for pair in other]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.surrogates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python -m benchmarks.surrogates --data photos -o runs/surrogates --time-budget 3h\n"
        "  python -m benchmarks.surrogates --show runs/surrogates/results.csv",
    )
    names = tuple(config.name for config in NETWORKS)
    usual = ("ms-hyper", "ms-hyper-zero", "ms-context", "cheng-attn", "charm-zero")
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=names,
        default=usual,
        metavar="NAME",
        help=f"{', '.join(names)} (default: {' '.join(usual)})",
    )
    parser.add_argument(
        "--lmbda", type=positive, nargs="+", default=(0.0035, 0.0067, 0.013), help="default: %(default)s"
    )
    parser.add_argument("--data", type=Path, nargs="+", help="folders of training pictures")
    parser.add_argument(
        "--validate", type=Path, nargs="+", help="folders of pictures to score (default: 1 in 20 of them)"
    )
    parser.add_argument("--cache", type=Path, help="folder for the decoded pictures (default: that of the results)")
    parser.add_argument("--start-steps", type=count, default=1500, help="of the common start (default: %(default)s)")
    parser.add_argument("--steps", type=count, default=600, help="of the main stage from there (default: %(default)s)")
    parser.add_argument("--hard-steps", type=count, default=200, help="of the hard stage (default: %(default)s)")
    parser.add_argument("--batch", type=count, help="crops a step, instead of the recipe's")
    parser.add_argument("--sharpness", type=float, default=12.0, help="where quantizers that anneal end (default 12)")
    parser.add_argument("--learned-step", action="store_true", help="also train each with a learned step (aun)")
    parser.add_argument(
        "--moved-means",
        action="store_true",
        help="also train networks that round around means with sua+ep/sua+ste and the option --distortion-moves-means",
    )
    parser.add_argument("--time-budget", metavar="TIME", help="begin nothing new after this time, e.g. 3h")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder for results and models")
    parser.add_argument("--show", type=Path, metavar="CSV", help="print the comparison of rows that were kept, no more")
    options = parser.parse_args()
    if options.show:
        print(table(Results(existing(options.show))))
        return 0
    if not options.data or not options.output:
        raise UserError("give --data FOLDER and -o DIR, or --show CSV")
    steps = (options.steps, options.hard_steps)
    results = Results(make_folder(options.output) / "results.csv")
    fixed = ("--start-steps", "--steps", "--hard-steps", "--batch", "--sharpness", "--data", "--validate")
    same_settings(results.path, {name: getattr(options, name[2:].replace("-", "_")) for name in fixed})
    deadline = time.monotonic() + (math.inf if options.time_budget is None else seconds(options.time_budget))
    pictures = load_pictures(options.data, CROP, options.cache or options.output, None, options.validate)
    session = Session(pictures, Device.choose())
    bench = Bench(
        options.output, session, results, options.start_steps, steps, options.batch, options.sharpness, deadline
    )
    done = True
    for name in options.networks:
        zero = any(config.name == name and config.zero_centre for config in NETWORKS)
        wanted = tuple(
            s
            for s in SETTINGS
            if (not s.learned_step or (options.learned_step and not zero))
            and (not s.moves_means or (options.moved_means and zero))
        )
        done = done and bench.network(name, tuple(options.lmbda), wanted)
    print(table(Results(results.path)))
    if not done:
        print("the time is used up; the same command goes on")
    return 0


if __name__ == "__main__":
    run(main)
