"""The decoder image, built by `make image` and run for real: the same symbols and pictures as outside, whatever the
machine lends it.

Needs Docker, or `../shared/tools/container`, which builds and runs the same Dockerfile without an engine. Both run
without network; Docker also with a read-only root.
"""

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eval.score import find_streams, pool, score_pictures
from submission import __version__
from submission.files import read_image
from submission.ladder import Ladder
from tests.conftest import ROOT, noise_picture

TAG = "clic-decoder-test"
TOOL = ROOT.parent / "shared" / "tools" / "container"

#: Prints the hash of the latents of each stream in a folder.
SYMBOLS = """
import hashlib, pathlib, sys
from submission import bitstream
from submission.codec import latent_size
from submission.ladder import Ladder
ladder = Ladder.load()
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.clic")):
    header, payload = bitstream.read(path.read_bytes())
    y, z = ladder.codec(header.quality).entropy.decode(payload, latent_size(header.height, header.width))
    print(path.name, hashlib.sha256(y.tobytes() + z.tobytes()).hexdigest())
"""


@dataclass(frozen=True)
class Engine:
    """What builds and runs images here."""

    docker: bool

    def build(self) -> None:
        if self.docker:
            build = f"docker build -t {TAG} ."
        else:
            subprocess.run([TOOL, "base"], check=True)
            build = f"{TOOL} build {TAG} . --build-arg TORCH_INDEX="
        command = ["make", "image", f"BUILD={build}", f"PYTHON={sys.executable}"]
        environment = {**os.environ, "BUILDAH_LAYERS": "true"}  # reuse what an earlier build made
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    def run(self, shell: str, *mounts: str) -> subprocess.CompletedProcess[str]:
        """Run a line of shell in a fresh container, with `HOST:INSIDE[:ro]` mounted."""
        volumes = [word for mount in mounts for word in ("-v", mount)]
        if self.docker:
            command = ["docker", "run", "--rm", "--network", "none", "--read-only", *volumes, TAG, "sh", "-c", shell]
        else:
            command = [str(TOOL), "run", TAG, *volumes, "--", "sh", "-c", shell]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    def labels(self) -> dict[str, str]:
        command = ["docker", "image", "inspect", TAG] if self.docker else ["buildah", "inspect", "--type", "image", TAG]
        found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        labels: dict[str, str] = found[0]["Config"]["Labels"] if self.docker else found["OCIv1"]["config"]["Labels"]
        return labels


@pytest.fixture(scope="module")
def image() -> Engine:
    """The engine, once it has built the image."""
    docker = shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True).returncode == 0
    if not docker and not TOOL.exists():
        pytest.skip("nothing to build images with: neither a Docker engine nor ../shared/tools/container")
    engine = Engine(bool(docker))
    engine.build()
    return engine


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Streams of three of the shipped models, of odd sizes, to run in a moment even on a busy machine."""
    folder = tmp_path_factory.mktemp("streams")
    ladder = Ladder.load()
    for number, quality in enumerate((0, len(ladder.models) // 2, -1)):
        picture = noise_picture(181 + 32 * number, 200 + number)
        (folder / f"photo {number}.v2.clic").write_bytes(ladder.codec(ladder.qualities[quality]).compress(picture))
    folder.chmod(0o755)  # for the image's user
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder that the image's user may write to."""
    folder = tmp_path / "out"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def pictures(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: read_image(path).astype(int) for path in folder.glob("*.png")}


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Our lines on stderr, without those of the engine."""
    assert "Traceback" not in done.stderr, done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("error: ") and "exit status" not in line]


def test_says_what_it_is(image: Engine) -> None:
    labels = image.labels()
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["clic.ladder"] == Ladder.load().id
    done = image.run("decode --version")
    assert done.stdout == f"version {__version__}, ladder {Ladder.load().id}\n", done.stderr


def test_holds_a_decoder_and_nothing_else(image: Engine) -> None:
    uid, *names = image.run("id -u; ls /opt/decoder /opt/decoder/packages").stdout.split()
    assert int(uid) > 0
    assert {"submission", "torch", "numpy", "PIL"} <= set(names)
    assert ("constriction" in names) == (platform.machine() == "x86_64")  # elsewhere our own coder does its work
    assert not {"training", "ratecontrol", "eval", "scipy", "sympy", "pip", "setuptools"} & set(names)
    interfaces = [line.split(":")[0].strip() for line in image.run("cat /proc/net/dev").stdout.splitlines()[2:]]
    assert interfaces in (["lo"], [])
    assert image.run("find /opt /usr /etc ! -type l -writable").stdout == ""
    assert image.run("command -v gcc cc c++ ld").returncode != 0


@dataclass(frozen=True)
class Outside:
    """What this machine's own Python makes of the streams, with one thread."""

    symbols: list[str]
    pictures: dict[str, np.ndarray]
    png_bytes: int


@pytest.fixture(scope="module")
def outside(streams: Path, tmp_path_factory: pytest.TempPathFactory) -> Outside:
    found = python("-c", SYMBOLS, streams, OMP_NUM_THREADS="1")
    folder = tmp_path_factory.mktemp("outside")
    python("-m", "submission.decode", streams, "-o", folder, OMP_NUM_THREADS="1")
    return Outside(found.splitlines(), pictures(folder), sum(path.stat().st_size for path in folder.iterdir()))


def python(*arguments: object, **environment: str) -> str:
    """What Python says outside of the image."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"OMP_NUM_THREADS": "1"},
        {"OMP_NUM_THREADS": "2"},
        {"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "default"},
    ],
    ids=lambda settings: " ".join(settings.values()) or "as it comes",
)
def test_same_symbols_and_pictures_as_outside(
    image: Engine, streams: Path, outside: Outside, out: Path, tmp_path: Path, settings: dict[str, str]
) -> None:
    before = {path.name: path.read_bytes() for path in streams.iterdir()}
    export = "".join(f"export {name}={value}; " for name, value in settings.items())
    shell = f"{export} SYMBOLS='{SYMBOLS}'; python -c \"$SYMBOLS\" /in && decode /in -o /out"
    done = image.run(shell, f"{streams}:/in:ro", f"{out}:/out")
    assert done.returncode == 0, done.stderr
    *symbols, last = done.stdout.splitlines()
    assert last == f"decoded {len(before)} of {len(before)} streams"
    assert symbols == outside.symbols
    assert {path.name: path.read_bytes() for path in streams.iterdir()} == before

    inside = pictures(out)
    assert inside.keys() == outside.pictures.keys() == {name.removesuffix(".clic") + ".png" for name in before}
    for name, picture in outside.pictures.items():
        assert np.abs(inside[name] - picture).max() <= 1, name
    python("-m", "submission.decode", streams, "-o", tmp_path / "same settings", **settings)
    for name, picture in pictures(tmp_path / "same settings").items():
        assert np.array_equal(inside[name], picture), name


def test_the_judges_way(image: Engine, streams: Path, out: Path) -> None:
    for path in streams.iterdir():
        shutil.copy(path, out)
    done = image.run("cd /work && decode", f"{out}:/work")
    assert done.returncode == 0, done.stderr
    assert len(list(out.glob("*.png"))) == len(list(out.glob("*.clic"))) == len(list(out.iterdir())) / 2
    (out / "torch.py").write_text("raise SystemExit(9)")  # what lies beside the streams is no module of the decoder
    done = image.run("cd /work && decode", f"{out}:/work:ro")
    assert done.returncode == 2
    (line,) = said(done)
    assert "write" in line


def test_bad_streams_are_named_and_the_others_decoded(image: Engine, streams: Path, out: Path, tmp_path: Path) -> None:
    mixed = Path(shutil.copytree(streams, tmp_path / "mixed"))
    whole = (mixed / "photo 0.v2.clic").read_bytes()
    (mixed / "cut.clic").write_bytes(whole[:-3])
    (mixed / "empty.clic").touch()
    done = image.run("decode /in -o /out", f"{mixed}:/in:ro", f"{out}:/out")
    assert done.returncode == 2
    cut, empty = said(done)
    assert "cut.clic" in cut and "empty.clic" in empty
    assert len(list(out.iterdir())) == len(list(streams.iterdir()))


def test_a_full_disk_leaves_whole_pictures_only(image: Engine, streams: Path, outside: Outside, out: Path) -> None:
    with small_disk(out, outside.png_bytes // 2):
        done = image.run("decode /in -o /out", f"{streams}:/in:ro", f"{out}:/out")
        assert done.returncode == 2
        (line,) = said(done)
        assert "free some space" in line
        names = [path.name for path in out.iterdir()]
        assert 0 < len(names) < len(list(streams.iterdir())) and all(name.endswith(".png") for name in names)
        assert len(pictures(out)) == len(names)


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of `size` bytes in `folder`."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=777", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("this user may not mount a small file system to fill")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_submissions_of_the_demo_score_the_same(image: Engine, out: Path) -> None:
    python("-m", "eval.demo", "-o", "demo")  # as `make demo` does
    scores = pd.read_csv(ROOT / "demo" / "scores.csv").query("codec == 'ours'")
    assert len(scores) == 3
    for rate, row in zip(("0.075", "0.15", "0.30"), scores.to_dict("records"), strict=True):
        submission = ROOT / "demo" / rate / "ours" / "submission"
        target = out / rate
        target.mkdir()
        target.chmod(0o777)
        done = image.run("decode /in -o /out", f"{submission}:/in:ro", f"{target}:/out")
        assert done.returncode == 0, done.stderr
        total = pool(score_pictures(ROOT / "demo" / "photos", target, find_streams(submission)))
        assert total.msssim == pytest.approx(row["msssim"], abs=1e-5)
        assert total.psnr == pytest.approx(row["psnr"], abs=1e-3)
