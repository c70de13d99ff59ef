"""Every example in the help of every command runs as it is printed, in a folder that has what it names.

Networks, ladders, photos and peers are small stand-ins, and training takes a few steps, so that it is seconds; what the
user types is not changed.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval import compare, demo, figures, peers
from eval.codecs import peer as codecs
from eval.rate_distortion import points
from ratecontrol.candidates import choices
from ratecontrol.refinement import refine
from submission.files import Picture
from submission.ladder import DEFAULT_WEIGHTS, MANIFEST
from tests.conftest import ROOT, noise_picture
from training import ladder, table2
from training.loop import options
from training.recipe import RECIPES, Recipe

COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("submission", "training", "ratecontrol", "eval")
    for path in (ROOT / package).rglob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)

_STAGES = [
    f"python -m training.{name} --preset small --data photos --lmbda 6 --run runs/lambda_6"
    for name in ("main_net", "post_filter", "joint", "hard")
]
_LADDER = "python -m training.ladder --preset small --data photos --run runs/small"

#: What makes the files that an example names, but for photos and photo.png.
BEFORE = {
    "submission.decode": ["python -m submission.encode photos -o streams"],
    "submission.inspect": ["python -m submission.encode photo.png -o ."],
    "ratecontrol.package": [
        "python -m ratecontrol.measure photos -o table.csv",
        "python -m ratecontrol.allocate table.csv --bpp 0.15 -o choice.csv",
    ],
    "training.post_filter": _STAGES[:1],
    "training.joint": _STAGES[:2],
    "training.hard": _STAGES[:3],
    "training.entropy": _STAGES[:4],
    "training.plot": [_LADDER],
    "training.export": [_LADDER],
}


def smooth_picture(height: int, width: int, seed: int) -> Picture:
    """Made for low rates: broad shapes with a little texture."""
    coarse = Image.fromarray(noise_picture(6, 8, seed)).resize((width, height), Image.Resampling.BICUBIC)
    mixed = np.asarray(coarse, np.float32) + noise_picture(height, width, seed).astype(np.float32) / 32
    return np.clip(mixed, 0, 255).astype(np.uint8)


def three_models(folder: Path) -> Path:
    """The first three models that ship, as a ladder."""
    if not folder.exists():
        folder.mkdir()
        manifest = json.loads((DEFAULT_WEIGHTS / MANIFEST).read_text())
        manifest["models"] = manifest["models"][:3]
        (folder / MANIFEST).write_text(json.dumps(manifest))
        for model in manifest["models"]:
            (folder / model["file"]).symlink_to(DEFAULT_WEIGHTS / model["file"])
    return folder


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with photos, photo.png and wheels, and everything slow made small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "wheels").mkdir()
    (tmp_path / "photos").mkdir()
    Image.fromarray(smooth_picture(200, 208, 0)).save(tmp_path / "photo.png")
    for k in range(2):
        Image.fromarray(smooth_picture(200, 208, k)).save(tmp_path / "photos" / f"{k}.png")

    for name in COMMANDS:
        module = importlib.import_module(name)
        if hasattr(module, "DEFAULT_WEIGHTS"):
            monkeypatch.setattr(module, "DEFAULT_WEIGHTS", three_models(tmp_path / "three models"))
    monkeypatch.setitem(RECIPES, "small", dataclasses.replace(RECIPES["tiny"].changed(steps=1), lambdas=(3.0,)))
    stage = Recipe.stage  # the trunk's has many times the steps of the recipe's main stage
    monkeypatch.setattr(Recipe, "stage", lambda recipe, name: dataclasses.replace(stage(recipe, name), steps=1))
    take = options.seconds
    monkeypatch.setattr(ladder, "seconds", lambda text: take(text) and None)  # else it would use what it is given
    monkeypatch.setattr(table2, "ROWS", table2.ROWS[:1])

    monkeypatch.setattr(
        choices, "refine", lambda codec, picture, lmbda, _, device: refine.refine(codec, picture, lmbda, 1, device)
    )
    for module in (compare, points):
        monkeypatch.setattr(module, "run_module", run_here)
    few = tuple(dataclasses.replace(p, qualities=p.qualities[::12]) for p in codecs.PEERS if p.name != "vvc")
    for module in (peers, figures):
        monkeypatch.setattr(module, "PEERS", few)
    for module in (compare, demo):
        monkeypatch.setattr(module, "RATES", ("0.15",))
    monkeypatch.setattr(demo, "CODECS", ("jpeg",))
    monkeypatch.setattr(demo, "PHOTOS", ("chelsea.png",))
    monkeypatch.setattr(figures, "photo", lambda name: smooth_picture(240, 360, 3))
    return tmp_path


def run(line: str) -> tuple[int, str, str]:
    """Run `python -m MODULE ARGUMENTS` in this process: exit code, stdout and stderr."""
    python, option, name, *arguments = shlex.split(line)
    assert (python, option) == ("python", "-m") and name in COMMANDS, line
    module = importlib.import_module(name)
    stdout, stderr = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        patch.setattr(sys, "argv", [str(module.__file__), *arguments])
        with pytest.raises(SystemExit) as end:
            if getattr(getattr(module, "main", None), "__module__", None) == name:
                importlib.import_module("submission.console").run(module.main)
            else:  # a stage is one line of its own
                patch.delitem(sys.modules, name)
                runpy.run_module(name, run_name="__main__")
    return int(end.value.code or 0), stdout.getvalue(), stderr.getvalue()


def run_here(name: str, *arguments: object) -> None:
    """What `eval` starts, without another three seconds for a process."""
    assert run(shlex.join(["python", "-m", name, *map(str, arguments)]))[0] == 0


def examples(name: str) -> list[str]:
    """The lines of the examples in a command's help."""
    code, text, _ = run(f"python -m {name} --help")
    assert code == 0
    assert text.startswith(f"usage: python -m {name} ")
    shown = text[text.index("\nexample") :]
    return [match[1].strip() for match in re.finditer(r"^(?:examples?: |  )(python -m .+)$", shown, re.MULTILINE)]


def test_there_are_commands() -> None:
    assert {"submission.encode", "training.hard", "ratecontrol.submission", "eval.score"} <= set(COMMANDS)
    assert set(COMMANDS) >= BEFORE.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_its_examples_run(name: str, workplace: Path) -> None:
    lines = examples(name)
    assert any(line.startswith(f"python -m {name} ") or line == f"python -m {name}" for line in lines)
    for line in [*BEFORE.get(name, []), *lines]:
        code, _, stderr = run(line)
        assert code == 0, f"{line}\n{stderr}"
        assert "error" not in stderr
