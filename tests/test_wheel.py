"""The wheel: built without a network, installed where nothing else of ours is, it encodes and decodes."""

import json
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

from PIL import Image

from submission import __version__
from submission.files import read_image
from submission.ladder import DEFAULT_WEIGHTS, MANIFEST, Ladder
from tests.conftest import ROOT, noise_picture

OFFLINE = ("--no-deps", "--no-index", "--disable-pip-version-check", "--quiet")
PACKAGES = ("submission", "metrics", "training", "ratecontrol", "eval")


def run(*command: object, cwd: Path) -> str:
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(place: Path) -> Path:
    """From a copy: setuptools leaves a folder `build` behind, and takes along what it finds there."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for path in (ROOT / "pyproject.toml", ROOT / "README.md", *ROOT.glob("LICENSE*")):
        shutil.copy(path, place)
    run(sys.executable, "-m", "pip", "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", "dist", ".", cwd=place)
    (built,) = (place / "dist").iterdir()
    return built


def install(wheel: Path, place: Path) -> Path:
    """`bin` of an environment with the wheel alone, which finds the libraries in ours."""
    run(sys.executable, "-m", "venv", "--without-pip", ".", cwd=place)
    run(sys.executable, "-m", "pip", "--python", place / "bin" / "python", "install", *OFFLINE, wheel, cwd=place)
    (site,) = place.glob("lib/python3*/site-packages")
    # a folder named in a .pth file counts without the .pth files in it, such as that of an editable install
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "bin"


def test_a_wheel_has_all_and_works_from_anywhere(tmp_path: Path) -> None:
    """Every module, what lies beside them, the commands; the streams and pictures of this checkout."""
    folders = source, environment, work = tmp_path / "source", tmp_path / "environment", tmp_path / "elsewhere"
    for folder in folders:
        folder.mkdir()
    wheel = build(source)
    assert wheel.name.startswith(f"clic_pipeline-{__version__}-")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {str(p.relative_to(ROOT)) for name in PACKAGES for p in (ROOT / name).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    weights = {entry["file"] for entry in json.loads((DEFAULT_WEIGHTS / MANIFEST).read_text())["models"]}
    beside = {f"submission/weights/{name}" for name in (*weights, MANIFEST)}
    assert (
        beside | {f"eval/report/{name}" for name in ("page.html", "script.js", "style.css", "published.tsv")} <= names
    )

    place = install(wheel, environment)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("scripts", {})
    assert {path.name for path in place.iterdir()} >= {"python", *scripts}
    Image.fromarray(noise_picture(75, 90)).save(work / "a.png")
    code = "import submission; print(submission.__file__)"
    assert Path(run(place / "python", "-c", code, cwd=work).strip()).is_relative_to(environment)
    run(place / "python", "-m", "submission.encode", "a.png", "-o", "streams", "--quality", 0, cwd=work)
    decode = [place / "clic-decode"] if "clic-decode" in scripts else [place / "python", "-m", "submission.decode"]
    run(*decode, "streams", "-o", "pictures", cwd=work)
    encoded = Ladder.load().codec(0).encode(noise_picture(75, 90))
    assert (work / "streams" / "a.clic").read_bytes() == encoded.stream
    assert (read_image(work / "pictures" / "a.png") == encoded.reconstruction).all()
