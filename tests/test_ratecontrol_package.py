"""Packaging: a folder that decodes by itself, the same bytes each time, and only what was measured goes in."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ratecontrol import allocate, measure, package
from submission.files import read_image
from submission.ladder import Ladder
from tests.commands import Result, assert_refused, call

BPP = "1.2"


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory, pictures: Path, ladder_folder: Path) -> Path:
    """A folder with the pictures, their table, its streams and a choice."""
    folder = tmp_path_factory.mktemp("chosen")
    shutil.copytree(pictures, folder / "pictures")
    for main, arguments in [
        (measure.main, [folder / "pictures", "-o", folder / "table.csv", "--weights", ladder_folder]),
        (allocate.main, [folder / "table.csv", "--bpp", BPP, "-o", folder / "choice.csv"]),
    ]:
        result = call(main, *arguments)
        assert result.code == 0, result.stderr
    return folder


@pytest.fixture
def place(tmp_path: Path, chosen: Path) -> Path:
    """A copy of that folder, to be spoilt."""
    return Path(shutil.copytree(chosen, tmp_path / "place"))


def run(place: Path, weights: Path, *more: object, output: str = "submission") -> Result:
    arguments = [place / "pictures", place / "choice.csv", "-o", place / output, "--weights", weights]
    return call(package.main, *arguments, *more)


def contents(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """Mode and bytes of everything under `folder`."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mode, path.read_bytes() if path.is_file() else None)
        for path in [folder, *folder.rglob("*")]
    }


def test_folder_decodes_by_itself(place: Path, ladder_folder: Path, tmp_path: Path) -> None:
    assert run(place, ladder_folder, "--bpp", BPP).code == 0
    elsewhere = tmp_path / "elsewhere"
    shutil.move(place / "submission", elsewhere)
    before = contents(elsewhere)
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["./decode"], cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    ladder, manifest = Ladder.load(ladder_folder), json.loads((elsewhere / "manifest.json").read_text())
    for entry in manifest["files"]:
        decoded = read_image(elsewhere / entry["image"])
        assert decoded.shape == read_image(place / "pictures" / entry["image"]).shape
        expected = ladder.decompress((elsewhere / entry["name"]).read_bytes())
        assert np.abs(decoded.astype(int) - expected).max() <= 1
        (elsewhere / entry["image"]).unlink()
    assert contents(elsewhere) == before  # the decoder leaves pictures behind and nothing else


def test_manifest_says_what_is_there(place: Path, ladder_folder: Path) -> None:
    assert run(place, ladder_folder, "--bpp", BPP).code == 0
    folder = place / "submission"
    manifest = json.loads((folder / "manifest.json").read_text())
    files = [(entry["name"], entry["bytes"]) for entry in manifest["files"]]
    assert files == [(path.name, path.stat().st_size) for path in sorted(folder.glob("*.clic"))]
    assert [name for name, _ in files] == ["a.clic", "b.clic", "c.clic"]
    assert manifest["pixels"] == sum(read_image(path)[:, :, 0].size for path in (place / "pictures").iterdir())
    assert manifest["bytes"] == sum(size for _, size in files) <= manifest["cap"]
    assert manifest["bpp"] == float(BPP)
    assert manifest["ladder"] == Ladder.load(ladder_folder).id
    used = {entry["quality"] for entry in manifest["files"]}
    assert len(list(folder.glob("decoder/submission/weights/*.safetensors"))) == len(used)
    assert os.access(folder / "decode", os.X_OK)


def test_same_input_gives_the_same_bytes(place: Path, ladder_folder: Path) -> None:
    assert run(place, ladder_folder, output="one").code == 0
    umask = os.umask(0o077)
    try:
        assert run(place, ladder_folder, output="two").code == 0
    finally:
        os.umask(umask)
    assert contents(place / "one") == contents(place / "two")


def test_existing_folders(place: Path, ladder_folder: Path) -> None:
    (place / "submission").mkdir()  # an empty one is as good as none
    assert run(place, ladder_folder).code == 0
    first = contents(place / "submission")
    assert run(place, ladder_folder).code == 0  # the same again
    (place / "submission" / "a.png").write_bytes(b"decoded")
    assert_refused(run(place, ladder_folder), "--overwrite")
    assert (place / "submission" / "a.png").exists()
    assert run(place, ladder_folder, "--overwrite").code == 0
    assert contents(place / "submission") == first
    for mine in ("pictures", "table.streams", "choice.csv"):
        assert_refused(run(place, ladder_folder, "--overwrite", output=mine), "not a submission")
    assert (place / "pictures" / "a.png").exists()


def in_choice(old: str, new: str) -> Callable[[Path], None]:
    def spoil(place: Path) -> None:
        text = (place / "choice.csv").read_text()
        assert old in text
        (place / "choice.csv").write_text(text.replace(old, new, 1))

    return spoil


def streams_lost(place: Path) -> None:
    shutil.rmtree(place / "table.streams")


def streams_damaged(place: Path) -> None:
    for path in (place / "table.streams").iterdir():
        path.write_bytes(path.read_bytes()[:-1])


def streams_swapped(place: Path) -> None:
    for quality in range(3):
        shutil.copy(place / "table.streams" / f"b.q{quality}.clic", place / "table.streams" / f"a.q{quality}.clic")


def last_row_lost(place: Path) -> None:
    lines = (place / "choice.csv").read_text().splitlines()
    (place / "choice.csv").write_text("\n".join(lines[:-1]) + "\n")


def picture_gone(place: Path) -> None:
    (place / "pictures" / "b.png").unlink()


def picture_changed(place: Path) -> None:
    shutil.copy(place / "pictures" / "a.png", place / "pictures" / "b.png")


def picture_unreadable(place: Path) -> None:
    (place / "pictures" / "b.png").write_bytes(b"\x89PNG")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (streams_lost, ["a.png", "missing", "ratecontrol.measure"]),
        (streams_damaged, ["checksum", "ratecontrol.measure"]),
        (streams_swapped, ["a.q", "not the stream"]),
        (last_row_lost, ["no row for c.png"]),
        (picture_gone, ["no picture b.png"]),
        (picture_changed, ["b.png", "changed"]),
        (picture_unreadable, ["b.png"]),
        (in_choice("a.png,240", "a.png,241"), ["a.png", "describe"]),
        (in_choice("a.png,240", "a.png,x"), ["line 2", "width"]),
        (in_choice("stream_sha256", "other"), ["stream_sha256"]),
        (in_choice("c.png", "b.png"), ["b.png"]),
    ],
)
def test_what_was_not_measured_is_refused(
    place: Path, ladder_folder: Path, spoil: Callable[[Path], None], words: list[str]
) -> None:
    spoil(place)
    before = sorted(place.iterdir())
    assert_refused(run(place, ladder_folder), *words)
    assert sorted(place.iterdir()) == before


def test_over_the_cap_is_refused(place: Path, ladder_folder: Path) -> None:
    assert_refused(run(place, ladder_folder, "--bpp", "0.5"), "over the cap", "allocate")
    assert not (place / "submission").exists()


def test_missing_wheels_are_refused(place: Path, ladder_folder: Path) -> None:
    assert_refused(run(place, ladder_folder, "--wheels", place / "none"), "none: no such folder; make wheels")
    assert not (place / "submission").exists()


def test_whole_numbers_however_they_are_written(place: Path, ladder_folder: Path) -> None:
    in_choice("a.png,240", "a.png,240.0")(place)
    assert run(place, ladder_folder).code == 0


def test_other_and_damaged_weights_are_refused(place: Path, ladder_folder: Path, tmp_path: Path) -> None:
    weights = Path(shutil.copytree(ladder_folder, tmp_path / "weights"))
    for model in weights.glob("*.safetensors"):
        model.write_bytes(model.read_bytes()[:-1] + b"x")
    assert_refused(run(place, weights), "damaged")
    manifest = json.loads((weights / "manifest.json").read_text())
    for entry in manifest["models"]:
        entry["sha256"] = "0" * 64
    (weights / "manifest.json").write_text(json.dumps(manifest))
    assert_refused(run(place, weights), "other weights")
    assert_refused(run(place, tmp_path / "nowhere"), "nowhere")
    assert not (place / "submission").exists()
