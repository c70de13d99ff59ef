"""Training recipes against each other: a network from random weights for equal steps, scored on pictures kept apart.

Each variant is NAME:FIELD=VALUE,..., fields of `training.recipe.Stage` (lr, optimizer, clip, batch, crop, schedule,
...) or, as soap.FIELD, arguments of `training.loop.soap.SOAP`. All see the same crops, as far as batch and crop are the
same. `J` is bpp + lambda * (1 - MS-SSIM) with real rounding on random crops of 256 x 256, at full and at half size;
`z` the bits per pixel of the hyper-latent; `ms` the milliseconds of a step, those of the optimizer among them in
`opt`. Rows are kept as they come: a second call makes only what is missing.
"""

import argparse
import csv
import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from benchmarks import quality
from benchmarks.arguments import count, positive
from benchmarks.kept import same_settings
from eval.codecs.kept import read_or_empty
from submission.console import Progress, run
from submission.errors import UserError
from submission.network import Network
from training.data.crops import Crops
from training.data.pictures import Pictures, load_pictures
from training.loop.schedule import Moment
from training.loop.soap import SOAP
from training.loop.train import Learner
from training.network.device import Device
from training.recipe import RECIPES, Stage

#: Arguments of SOAP that a variant may have.
SOAP_OPTIONS = {
    **dict.fromkeys(("soap.beta1", "soap.beta2", "soap.shampoo_beta", "soap.eps"), float),
    **dict.fromkeys(("soap.interval", "soap.gather"), int),
}

FIELDS = ("variant", "lmbda", "steps", "step", *quality.FIELDS, "ms", "opt")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.optimizer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.optimizer adam:optimizer=adam soap:optimizer=soap,lr=1e-3 --data photos "
        "--validate dev --steps 1000 -o optimizer.csv",
    )
    parser.add_argument("variants", nargs="+", metavar="NAME:FIELD=VALUE,...")
    parser.add_argument("--preset", choices=RECIPES, default="small", help="network and recipe (default small)")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of training pictures")
    parser.add_argument("--validate", type=Path, nargs="+", required=True, help="folders of pictures to score on")
    parser.add_argument("--cache", type=Path, default=Path(), help="folder for the decoded pictures")
    parser.add_argument("--half", type=float, default=0.3, help="share of crops at half size (default 0.3)")
    parser.add_argument("--lmbda", type=positive, default=18.0)
    parser.add_argument("--steps", type=count, default=1000)
    parser.add_argument("--looks", type=count, default=2, help="times that each variant is scored (default 2)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="CSV", help="rows are added there")
    options = parser.parse_args()
    done = _read(options.output)
    fixed = ("preset", "half", "data", "validate")
    same_settings(options.output, {f"--{name}": getattr(options, name) for name in fixed})
    pictures = load_pictures(options.data, 256, options.cache, None, options.validate)
    for text in options.variants:
        if (text, f"{options.lmbda:g}", str(options.steps)) not in done:
            _train(text, options, pictures)
    return 0


def _read(path: Path) -> set[tuple[str, str, str]]:
    if not path.exists():
        return set()
    table = read_or_empty(path, ",").astype(str)
    if not set(FIELDS) <= set(table.columns):
        raise UserError(f"{path}: not a table of this command; move it away")
    ended = table[table["step"] == table["steps"]]
    return set(zip(ended["variant"], ended["lmbda"], ended["steps"], strict=True))


def parse_variant(text: str, half: float, base: Stage) -> tuple[Stage, dict[str, Any]]:
    """The variant's stage and its arguments for SOAP; UserError for a field or value that is none."""
    types = {f.name: type(getattr(base, f.name)) for f in dataclasses.fields(Stage)}
    allowed = {name: get_args(hint) for name, hint in get_type_hints(Stage).items() if get_origin(hint) is Literal}
    changes: dict[str, Any] = {"half": half}
    soap: dict[str, Any] = {}
    for part in filter(None, text.partition(":")[2].split(",")):
        name, _, value = part.partition("=")
        take = {**types, **SOAP_OPTIONS}.get(name)
        if take is None:
            raise UserError(f"variant {text!r}: {name!r} is no field of a stage")
        try:
            (soap if name in SOAP_OPTIONS else changes)[name.removeprefix("soap.")] = take(value)
            if name in allowed and value not in allowed[name]:
                raise ValueError
        except (ValueError, TypeError):
            raise UserError(f"variant {text!r}: {value!r} is no value of {name}") from None
    if "beta1" in soap or "beta2" in soap:
        soap["betas"] = soap.pop("beta1", 0.95), soap.pop("beta2", 0.95)
    return dataclasses.replace(base, **changes), soap


def _train(text: str, options: argparse.Namespace, pictures: Pictures) -> None:
    recipe, device = RECIPES[options.preset], Device.choose("auto", "off")
    base = dataclasses.replace(recipe.stage("main"), steps=options.steps, warmup=min(150, options.steps // 8))
    stage, soap = parse_variant(text, options.half, base)
    torch.manual_seed(stage.seed)
    network = Network(recipe.model)
    learner, crops = Learner(network, stage, options.lmbda, device), Crops(pictures, stage, device)
    if soap:
        learner.optimizer = SOAP(learner.parameters, stage.lr, bf16=device.bf16, **soap)
    inner, spent, took = learner.optimizer.step, [], []

    def timed() -> None:
        begun = time.perf_counter()
        inner()
        spent.append(time.perf_counter() - begun)

    learner.optimizer.step = timed  # type: ignore[method-assign]
    bar = Progress(text.partition(":")[0], stage.steps)
    for step in range(stage.steps):
        begun = time.perf_counter()
        learner.step(crops.at(step), Moment(step, step / stage.steps))
        took.append(time.perf_counter() - begun)
        bar.advance()
        if (step + 1) % -(-stage.steps // options.looks) == 0 or step + 1 == stage.steps:
            row = quality.score(network, stage, options.lmbda, pictures, device)
            times = {"ms": 1000 * statistics.median(took), "opt": 1000 * statistics.mean(spent)}
            known = {"variant": text, "lmbda": f"{options.lmbda:g}", "steps": stage.steps, "step": step + 1}
            _add(options.output, {**known, **row, **times})
    bar.close()


def _add(path: Path, row: dict[str, Any]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})
    print(" ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{v}" for k, v in row.items()), flush=True)


if __name__ == "__main__":
    run(main)
