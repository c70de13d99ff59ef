"""The decoder as a zip: complete for a Python that has torch, numpy and pillow alone, and clear to any other.

On a machine that constriction is not published for, it is built and runs without.
"""

import hashlib
import io
import os
import runpy
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
import pytest

from ratecontrol import decoder
from ratecontrol.decoder import installed_version
from submission.files import read_image
from submission.ladder import Ladder
from tests.commands import Result, assert_refused, call
from tests.conftest import noise_picture

#: What the binaries of constriction for this Python are called.
SUFFIX = EXTENSION_SUFFIXES[0]
VENDORED = Path("decoder") / "vendor" / "constriction"


def build(output: Path, weights: Path, *more: object) -> Result:
    return call(decoder.main, "-o", output, "--weights", weights, *more)


@pytest.fixture
def folder(ladder_folder: Path, tmp_path: Path) -> Path:
    """The decoder, unpacked with the system's modes, beside a stream of the last model."""
    done = build(tmp_path / "decoder.zip", ladder_folder)
    assert done.code == 0, done.stderr
    folder = tmp_path / "judge"
    with zipfile.ZipFile(tmp_path / "decoder.zip") as archive:
        for entry in archive.infolist():
            (folder / archive.extract(entry, folder)).chmod(entry.external_attr >> 16)
    models = Ladder.load(ladder_folder)
    (folder / "photo.clic").write_bytes(models.codec(models.qualities[-1]).compress(noise_picture(70, 90)))
    return folder


def judge(folder: Path, site: Path, *left_out: str) -> subprocess.CompletedProcess[str]:
    """Run `./decode` with a bare Python that sees this one's packages but for those `left_out`."""
    site.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.suffix != ".pth" and not path.name.startswith(left_out):
            (site / path.name).symlink_to(path)
    base: str = sys._base_executable  # type: ignore[attr-defined]  # private, and nothing else tells
    bare = site.parent / "bin"
    bare.mkdir()
    (bare / "python3").write_text(f'#!/bin/sh\nPYTHONPATH="{site}" exec "{base}" -S "$@"\n')
    (bare / "python3").chmod(0o755)
    environment = {"PATH": f"{bare}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.run(["./decode"], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_decodes_with_torch_numpy_and_pillow_alone(folder: Path, tmp_path: Path) -> None:
    before = sorted(folder.rglob("*"))
    done = judge(folder, tmp_path / "site", "constriction", "scipy", "pandas", "clic")
    assert (done.returncode, done.stdout, done.stderr) == (0, "decoded 1 of 1 streams\n", "")
    assert read_image(folder / "photo.png").shape == (70, 90, 3)
    assert sorted(folder.rglob("*")) == sorted([*before, folder / "photo.png"])


def other_python(vendored: Path) -> None:
    """Its binary is one for another Python."""
    binary = vendored / f"constriction{SUFFIX}"
    binary.rename(binary.with_name("constriction.cpython-399-x86_64-linux-gnu.so"))


def broken_binary(vendored: Path) -> None:
    """A binary that this system's loader refuses, as one that was built for a newer C library."""
    (vendored / f"constriction{SUFFIX}").write_bytes(b"\x7fELF")


@pytest.mark.parametrize("fault", [other_python, broken_binary])
def test_decodes_without_constriction(fault: Callable[[Path], None], folder: Path, tmp_path: Path) -> None:
    models = Ladder.load(folder / "decoder" / "submission" / "weights")
    expected = models.decompress((folder / "photo.clic").read_bytes())
    if installed_version() is not None:
        fault(folder / VENDORED)
    done = judge(folder, tmp_path / "site", "constriction")
    assert (done.returncode, done.stdout, done.stderr) == (0, "decoded 1 of 1 streams\n", "")
    assert np.abs(read_image(folder / "photo.png").astype(int) - expected).max() <= 1


@pytest.mark.parametrize("missing", ["numpy", "PIL", "torch"])
def test_says_what_the_judges_python_lacks(folder: Path, tmp_path: Path, missing: str) -> None:
    done = judge(folder, tmp_path / "site", "constriction", missing)
    assert_refused(Result(done.returncode, done.stdout, done.stderr), missing, "needs torch, numpy and pillow")


def test_an_old_python_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "decode").write_text(decoder.DECODE)
    monkeypatch.setattr(sys, "version_info", (3, 10, 12))
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(tmp_path / "decode"))
    assert isinstance(end.value.code, int)
    assert_refused(Result(end.value.code, *capsys.readouterr()), "needs Python 3.11 or later, but python3 is")


def wheel(folder: Path, name: str, data: bytes) -> None:
    """A wheel of constriction for another Python: that version's binary has another name."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr("constriction/__init__.py", b"from .constriction import *")
        archive.writestr("constriction/constriction.cpython-399-x86_64-linux-gnu.so", data)
        archive.writestr("constriction-0.dist-info/RECORD", b"")


def test_wheels_for_other_pythons_come_along(ladder_folder: Path, tmp_path: Path) -> None:
    version = installed_version() or "0.5.0"
    wheel(tmp_path / "wheels", f"constriction-{version}-cp399-cp399-linux_x86_64.whl", b"binary")
    done = build(tmp_path / "decoder.zip", ladder_folder, "--wheels", tmp_path / "wheels")
    assert done.code == 0, done.stderr
    assert "cpython-399-x86_64-linux-gnu" in done.stdout
    with zipfile.ZipFile(tmp_path / "decoder.zip") as archive:
        names = set(archive.namelist())
        assert archive.read(f"{VENDORED}/constriction.cpython-399-x86_64-linux-gnu.so") == b"binary"
    assert not any("RECORD" in name for name in names)
    if installed_version() is not None:
        assert SUFFIX.split(".")[1] in done.stdout and f"{VENDORED}/constriction{SUFFIX}" in names
        assert any("licenses" in name for name in names)


def test_wheels_of_another_version_are_refused(ladder_folder: Path, tmp_path: Path) -> None:
    version = installed_version() or "0.5.0"
    wheel(tmp_path / "wheels", f"constriction-{version}-cp399-cp399-linux_x86_64.whl", b"binary")
    wheel(tmp_path / "wheels", "constriction-9.1-cp399-cp399-linux_x86_64.whl", b"binary")
    refused = build(tmp_path / "decoder.zip", ladder_folder, "--wheels", tmp_path / "wheels")
    assert_refused(refused, "constriction-9.1", "not version")
    (tmp_path / "wheels" / "constriction-9.1-cp399-cp399-linux_x86_64.whl").unlink()
    (tmp_path / "wheels" / f"constriction-{version}-cp399.whl").write_bytes(b"PK")
    assert_refused(build(tmp_path / "decoder.zip", ladder_folder, "--wheels", tmp_path / "wheels"), "not a wheel")
    assert_refused(build(tmp_path / "decoder.zip", ladder_folder, "--wheels", tmp_path / "none"), "no such folder")
    assert not (tmp_path / "decoder.zip").exists()


def test_same_bytes_each_time(ladder_folder: Path, tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        assert build(tmp_path / "one.zip", ladder_folder).code == 0
    finally:
        os.umask(umask)
    assert build(tmp_path / "two.zip", ladder_folder).code == 0
    one, two = ((tmp_path / name).read_bytes() for name in ("one.zip", "two.zip"))
    assert hashlib.sha256(one).digest() == hashlib.sha256(two).digest()
    assert "decode" in zipfile.ZipFile(io.BytesIO(one)).namelist()


def test_too_large_leaves_with_one(ladder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "MAX_DECODER_BYTES", 1000)
    done = build(tmp_path / "decoder.zip", ladder_folder)
    assert done.code == 1 and "larger than the rules allow" in done.stderr
