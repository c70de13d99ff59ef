"""Which package may import which, and what stands in front of each.

    submission                         the codec: what the decoder's image contains
    metrics      -> submission         what a decoded picture is worth
    training     -> submission, metrics
    ratecontrol  -> submission, metrics
    eval         -> submission, metrics, ratecontrol

`training` hands `submission` files, weights and their manifest. A package's folder holds its commands; what they are
made of lies in packages below.
"""

import ast
import importlib
import pkgutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

MAY_IMPORT = {
    "submission": set[str](),
    "metrics": {"submission"},
    "training": {"submission", "metrics"},
    "ratecontrol": {"submission", "metrics"},
    "eval": {"submission", "metrics", "ratecontrol"},
}

#: What stands beside the commands: the values that a person who trains reads and changes.
BESIDE = {"training.recipe"}


def imports(path: Path) -> set[str]:
    """All modules that a file names in an import, those inside functions too."""
    named = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            named |= {f"{node.module}.{alias.name}" for alias in node.names}
    return named


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_one_way(package: str) -> None:
    foreign = {*MAY_IMPORT, "tests", "benchmarks"} - MAY_IMPORT[package] - {package}
    for path in sorted((ROOT / package).rglob("*.py")):
        wrong = {name for name in imports(path) if name.split(".")[0] in foreign}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize("package", ["training", "ratecontrol", "eval"])
def test_packages_below_import_one_way(package: str) -> None:
    """Among the packages below one, no two import each other, not even by way of a third: else CycleError."""
    arrows: dict[str, set[str]] = {}
    for path in sorted((ROOT / package).glob("*/*.py")):
        to = {".".join(name.split(".")[:2]) for name in imports(path) if name.startswith(f"{package}.")}
        arrows.setdefault(f"{package}.{path.parent.name}", set()).update(to)
    assert len(arrows) > 2
    for below, to in arrows.items():
        to.discard(below)
    list(TopologicalSorter(arrows).static_order())


@pytest.mark.parametrize("package", ["training", "ratecontrol", "eval"])
def test_commands_stand_in_front(package: str) -> None:
    module = importlib.import_module(package)
    for found in pkgutil.walk_packages(module.__path__, f"{package}."):
        if found.ispkg or found.name in BESIDE:
            continue
        path = ROOT / Path(*found.name.split(".")).with_suffix(".py")
        command = '\nif __name__ == "__main__":\n' in path.read_text()
        assert command == (found.name.count(".") == 1), found.name


def loaded(code: str) -> set[str]:
    """Top-level names of all modules that a fresh interpreter has loaded after `code`."""
    code += "\nimport sys; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_submission_loads_nothing_that_the_decoder_lacks() -> None:
    found = loaded(
        "import pkgutil, importlib, submission\n"
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(submission.__path__, 'submission.')]"
    )
    assert not found & {*MAY_IMPORT} - {"submission"}
    assert not found & {"scipy", "pandas", "safetensors", "pytorch_msssim"}


def test_the_demo_needs_its_extra_alone() -> None:
    """`make demo` and `make submission` install the extra `demo`: what others bring is imported where it is used."""
    found = loaded("import eval.demo, ratecontrol.measure, ratecontrol.allocate, ratecontrol.package")
    assert not found & {"safetensors", "tensorboard", "matplotlib", "distributed", "pytorch_msssim", "imageio_ffmpeg"}
