"""Measuring: real files, resumed after a kill, nothing encoded twice, and no table that mixes measurements."""

import csv
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from distributed import LocalCluster
from PIL import Image

from metrics.clic import ms_ssim, squared_error
from ratecontrol import allocate, measure
from ratecontrol.allocation.table import MEASURED_COLUMNS, picture_hash
from ratecontrol.candidates.choices import Choice
from ratecontrol.parallel import cluster
from ratecontrol.parallel import compute as parallel
from ratecontrol.parallel.compute import Workers
from submission.errors import UserError
from submission.files import read_image
from submission.ladder import MANIFEST, Ladder
from submission.lock import locked
from tests.commands import Result, assert_refused, call
from tests.conftest import noise_picture


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, pictures: Path, ladder_folder: Path) -> Path:
    """A folder with table.csv of all pictures and models, and table.streams."""
    folder = tmp_path_factory.mktemp("measured")
    assert run(folder / "table.csv", pictures, ladder_folder).code == 0
    return folder


@pytest.fixture
def table(tmp_path: Path, measured: Path) -> Path:
    """A copy of that table, to be spoilt."""
    return Path(shutil.copytree(measured, tmp_path / "measured")) / "table.csv"


@pytest.fixture
def encoded() -> Iterator[list[tuple[str, int]]]:
    """The pictures and qualities that are really encoded from here on."""
    done: list[tuple[str, int]] = []
    original = measure.measure

    def count(task: measure.Task) -> tuple[measure.Row, bytes]:
        done.append((task.picture.name, task.choice.quality))
        return original(task)

    with mock.patch.object(measure, "measure", count):
        yield done


def run(table: Path, inputs: Path, weights: Path, *more: object) -> Result:
    return call(measure.main, inputs, "-o", table, "--weights", weights, *more)


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_say_what_the_files_are(measured: Path, pictures: Path, ladder_folder: Path) -> None:
    ladder = Ladder.load(ladder_folder)
    found = rows(measured / "table.csv")
    assert [(row["image"], row["candidate"]) for row in found] == [
        (f"{name}.png", f"q{quality}") for name in "abc" for quality in range(3)
    ]
    for row in found[::4]:
        assert list(row) == MEASURED_COLUMNS
        picture = read_image(pictures / row["image"])
        stream = (measured / row["stream"]).read_bytes()
        assert row["stream"] == f"table.streams/{row['image'][0]}.{row['candidate']}.clic"
        assert int(row["bytes"]) == len(stream)
        assert row["stream_sha256"] == hashlib.sha256(stream).hexdigest()
        assert row["model_sha256"] == ladder.model_hash(int(row["quality"]))
        assert picture.shape == (int(row["height"]), int(row["width"]), 3)
        decoded = ladder.decompress(stream)
        score = ms_ssim(picture, decoded)
        assert float(row["msssim"]) == pytest.approx(0 if np.isnan(score) else score, abs=1e-9)
        assert float(row["sse"]) == squared_error(picture, decoded)


def test_second_run_encodes_nothing(
    table: Path, pictures: Path, ladder_folder: Path, encoded: list[tuple[str, int]]
) -> None:
    before = table.read_bytes()
    assert run(table, pictures, ladder_folder).code == 0
    assert table.read_bytes() == before
    assert encoded == []


def test_cut_off_line_is_measured_again(
    table: Path, pictures: Path, ladder_folder: Path, encoded: list[tuple[str, int]]
) -> None:
    before = rows(table)
    os.truncate(table, table.stat().st_size - 30)
    assert run(table, pictures, ladder_folder).code == 0
    after = rows(table)
    assert encoded == [("c.png", 2)]
    assert after[:-1] == before[:-1]
    assert after[-1] | {"encode_seconds": ""} == before[-1] | {"encode_seconds": ""}


@pytest.mark.parametrize("left", [0, 10])
def test_cut_off_header_is_an_empty_table(table: Path, pictures: Path, ladder_folder: Path, left: int) -> None:
    os.truncate(table, left)
    assert run(table, pictures / "a.png", ladder_folder, "--qualities", "1").code == 0
    assert [(row["image"], row["candidate"]) for row in rows(table)] == [("a.png", "q1")]


@pytest.mark.parametrize(
    ("column", "cell"), [("width", "wide"), ("bytes", "0"), ("msssim", "2"), ("encode_seconds", "")]
)
def test_a_damaged_cell_is_named(table: Path, pictures: Path, ladder_folder: Path, column: str, cell: str) -> None:
    lines = pd.read_csv(table, dtype=str)
    lines.loc[4, column] = cell
    lines.to_csv(table, index=False)
    assert_refused(run(table, pictures, ladder_folder), "line 6", column)


def test_lost_and_damaged_streams_are_made_again(
    table: Path, pictures: Path, ladder_folder: Path, encoded: list[tuple[str, int]]
) -> None:
    (table.parent / "table.streams" / "a.q1.clic").unlink()
    (table.parent / "table.streams" / "b.q2.clic").write_bytes(b"damaged")
    assert run(table, pictures, ladder_folder).code == 0
    assert encoded == [("a.png", 1), ("b.png", 2)]


def test_rows_of_others_are_not_lost_with_their_streams(table: Path, pictures: Path, ladder_folder: Path) -> None:
    """As where a folder of streams is not mounted."""
    before = table.read_bytes()
    (table.parent / "table.streams").rename(table.parent / "away")
    assert_refused(run(table, pictures / "a.png", ladder_folder), "streams of b.png", "--replace")
    assert table.read_bytes() == before
    assert run(table, pictures / "a.png", ladder_folder, "--replace").code == 0
    assert {row["image"] for row in rows(table)} == {"a.png"}


def test_a_worker_that_is_older_than_the_weights(
    table: Path, pictures: Path, ladder_folder: Path, tmp_path: Path
) -> None:
    """It reads them again instead of refusing their pictures for ever."""
    weights = Path(shutil.copytree(ladder_folder, tmp_path / "weights"))
    old = measure.load_ladder(weights)
    manifest = json.loads((weights / MANIFEST).read_text())
    manifest["models"] = manifest["models"][::-1]
    (weights / MANIFEST).write_text(json.dumps(manifest))
    new = Ladder.load(weights).model_hash(0)
    assert new != old.model_hash(0)
    path, choice = pictures / "a.png", Choice(0)
    image_hash = picture_hash(read_image(path))
    row, _ = measure.measure(measure.Task(path, image_hash, 1, weights, new, choice, table, "a.clic"))
    assert row["model_sha256"] == new
    with pytest.raises(UserError, match="changed while it was being measured"):
        measure.measure(measure.Task(path, image_hash, 1, weights, old.model_hash(0), choice, table, "a.clic"))
    assert len(rows(table)) == 9


def test_same_pixels_are_measured_once(
    table: Path, tmp_path: Path, pictures: Path, ladder_folder: Path, encoded: list[tuple[str, int]]
) -> None:
    """A renamed picture, two new ones that are equal, and another file format."""
    folder = tmp_path / "more"
    folder.mkdir()
    shutil.copy(pictures / "a.png", folder / "renamed.png")
    new = Image.fromarray(noise_picture(170, 170, 7))
    new.save(folder / "new.png")
    new.save(folder / "twin.bmp")
    assert run(table, folder, ladder_folder, "--qualities", "0,2").code == 0
    assert encoded == [("new.png", 0), ("new.png", 2)]
    by_name = {(row["image"], row["candidate"]): row for row in rows(table)}
    for name, source in {"renamed.png": "a.png", "twin.bmp": "new.png"}.items():
        row, original = by_name[name, "q2"], by_name[source, "q2"]
        assert row["bytes"] == original["bytes"]
        assert (table.parent / row["stream"]).read_bytes() == (table.parent / original["stream"]).read_bytes()
        assert row["stream"] == f"table.streams/{Path(name).stem}.q2.clic"


def timeless(path: Path) -> list[list[str]]:
    return sorted([value for key, value in row.items() if key != "encode_seconds"] for row in rows(path))


def test_processes_measure_the_same(tmp_path: Path, measured: Path, pictures: Path, ladder_folder: Path) -> None:
    table = tmp_path / "table.csv"
    result = run(table, pictures, ladder_folder, "--jobs", 2)
    assert result.code == 0, result.stderr
    assert timeless(table) == timeless(measured / "table.csv")


def test_a_pool_is_started_only_for_much_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "given_cores", lambda: 4)
    assert Workers().enough_for(parallel.WORTH_A_POOL - 1).alone
    assert Workers().enough_for(parallel.WORTH_A_POOL) == Workers(jobs=4)
    assert Workers(jobs=2).enough_for(1) == Workers(jobs=2)
    assert Workers(jobs=1).enough_for(10**12).alone
    remote = Workers(scheduler="tcp://host:8786")
    assert remote.enough_for(1) == remote


def test_a_scheduler_measures_the_same(tmp_path: Path, measured: Path, pictures: Path, ladder_folder: Path) -> None:
    table = tmp_path / "table.csv"
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as local:
        result = run(table, pictures, ladder_folder, "--scheduler", local.scheduler_address)
    assert result.code == 0, result.stderr
    assert timeless(table) == timeless(measured / "table.csv")


def test_a_worker_passes_errors_on(tmp_path: Path, pictures: Path, ladder_folder: Path) -> None:
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as local,
        mock.patch.object(measure, "ms_ssim", side_effect=UserError("the disk is full")),
    ):
        result = run(tmp_path / "table.csv", pictures, ladder_folder, "--scheduler", local.scheduler_address)
    assert_refused(result, "the disk is full")


def test_a_scheduler_that_is_not_there(tmp_path: Path, pictures: Path, ladder_folder: Path) -> None:
    with mock.patch.object(cluster, "START_PATIENCE", 1):
        result = run(tmp_path / "table.csv", pictures, ladder_folder, "--scheduler", "tcp://127.0.0.1:9")
        assert_refused(result, "--scheduler tcp://127.0.0.1:9")
        assert_refused(run(tmp_path / "t.csv", pictures, ladder_folder, "--scheduler", "nonsense://x"), "--scheduler")


def test_refined_rows_stand_beside_the_others(
    table: Path, pictures: Path, ladder_folder: Path, encoded: list[tuple[str, int]]
) -> None:
    arguments = (pictures / "a.png", ladder_folder, "--qualities", "0,1", "--refine", 3)
    for factors in ("0.5,1", ".50,1.0"):  # the second time everything is there
        result = run(table, *arguments, "--factors", factors)
        assert result.code == 0, result.stderr
    assert encoded == [("a.png", 0), ("a.png", 0), ("a.png", 1), ("a.png", 1)]
    names = [row["candidate"] for row in rows(table) if row["image"] == "a.png"]
    assert names == ["q0", "q1", "q2", "q0-r0.5-s3", "q0-r1-s3", "q1-r0.5-s3", "q1-r1-s3"]
    row = rows(table)[-1]
    decoded = Ladder.load(ladder_folder).decompress((table.parent / row["stream"]).read_bytes())
    assert float(row["sse"]) == squared_error(read_image(pictures / "a.png"), decoded)


def test_other_pixels_and_weights_are_refused_or_replaced(
    table: Path, tmp_path: Path, pictures: Path, ladder_folder: Path, encoded: list[tuple[str, int]]
) -> None:
    before = table.read_bytes()
    changed = Path(shutil.copytree(pictures, tmp_path / "changed"))
    Image.fromarray(noise_picture(180, 180, 9)).save(changed / "b.png")
    (changed / "c.png").unlink()
    assert_refused(run(table, changed, ladder_folder), "b.png", "--replace")
    other = Path(shutil.copytree(ladder_folder, tmp_path / "other"))
    manifest = (other / "manifest.json").read_text()
    first, second = (Ladder.load(other).model_hash(quality) for quality in (0, 1))
    (other / "manifest.json").write_text(manifest.replace(first, "0" * 64).replace(second, first))
    assert_refused(run(table, pictures, other), "other weights", "--replace")
    assert table.read_bytes() == before
    assert run(table, changed, ladder_folder, "--replace").code == 0
    assert encoded == [("b.png", 0), ("b.png", 1), ("b.png", 2)]
    assert {row["image"] for row in rows(table)} == {"a.png", "b.png"}
    assert len(rows(table)) == 6


def test_other_pictures_stay_in_the_table(table: Path, pictures: Path, ladder_folder: Path) -> None:
    result = run(table, pictures / "a.png", ladder_folder)
    assert result.code == 0
    assert "2 other pictures" in result.stderr
    assert len(rows(table)) == 9


def test_bad_picture_stops_before_the_work_or_is_skipped(
    tmp_path: Path, pictures: Path, ladder_folder: Path, encoded: list[tuple[str, int]]
) -> None:
    folder, table = Path(shutil.copytree(pictures, tmp_path / "pictures")), tmp_path / "out" / "table.csv"
    (folder / "b.png").write_bytes((pictures / "b.png").read_bytes()[:2000])
    assert_refused(run(table, folder, ladder_folder), "b.png", "--skip-bad")
    assert not table.parent.exists()
    assert encoded == []
    result = run(table, folder, ladder_folder, "--skip-bad", "--qualities", "0")
    assert result.code == 0
    assert result.stderr.startswith("skipped: ")
    assert [row["image"] for row in rows(table)] == ["a.png", "c.png"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_picture_that_cannot_be_encoded_is_named(
    tmp_path: Path, pictures: Path, ladder_folder: Path, error: Exception
) -> None:
    with mock.patch.object(Choice, "encode", side_effect=error):
        assert_refused(run(tmp_path / "t.csv", pictures / "b.png", ladder_folder), "b.png", "memory")


def test_pictures_are_measured_as_they_are_stored(tmp_path: Path, pictures: Path, ladder_folder: Path) -> None:
    """As the organisers compare them: without the rotation that their EXIF block asks for."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.open(pictures / "a.png")
    picture.save(tmp_path / "a.png", exif=exif)
    assert run(tmp_path / "t.csv", tmp_path / "a.png", ladder_folder, "--qualities", 0).code == 0
    assert (int(rows(tmp_path / "t.csv")[0]["width"]), picture.height) == picture.size


def test_faulty_usage_is_refused(table: Path, tmp_path: Path, pictures: Path, ladder_folder: Path) -> None:
    notes = tmp_path / "notes.csv"
    notes.write_text("my,notes")
    assert_refused(run(notes, pictures, ladder_folder), "notes.csv", "not a table")
    assert notes.read_text() == "my,notes"
    assert not notes.with_suffix(".streams").exists()
    assert_refused(run(table, tmp_path, ladder_folder), "no pictures")
    assert_refused(run(table, pictures, tmp_path / "nowhere"), "nowhere")
    assert_refused(run(table, pictures, ladder_folder, "--qualities", "0,7"), "--qualities")
    assert_refused(run(table, pictures, ladder_folder, "--jobs", "0"), "--jobs")
    assert_refused(run(table, pictures, ladder_folder, "--refine", "-1"), "--refine")
    for factors in ("", "1,x", "1,1.0", ".5,0.50", "0", "inf", ".", "1."):
        assert_refused(run(table, pictures, ladder_folder, "--refine", "2", "--factors", factors), "--factors")
    assert_refused(run(table, pictures, ladder_folder, "--factors", "0.5"), "--factors", "--refine")
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("a.csv", "b.csv"):
            archive.writestr(name, "image\n")
    assert_refused(call(allocate.main, packed, "--bpp", "1", "-o", tmp_path / "c.csv"), "packed.zip", "not a table")
    odd = Path(shutil.copytree(pictures, tmp_path / "odd"))
    (odd / "a.png").rename(odd / "a\n.png")
    assert_refused(run(table, odd, ladder_folder), "rename")


def test_a_search_says_what_it_looked_at_and_goes_on(
    tmp_path: Path, pictures: Path, ladder_folder: Path, encoded: list[tuple[str, int]]
) -> None:
    table = tmp_path / "table.csv"
    arguments = (pictures, ladder_folder, "--bpp", "9")  # more than any candidate has
    result = run(table, *arguments)
    assert result.code == 0, result.stderr
    assert f"{len(encoded)} of 9 candidates" in result.stdout and "--bpp 9: MS-SSIM" in result.stdout
    first = rows(table)
    assert sorted(encoded) == sorted((row["image"], int(row["quality"])) for row in first)

    os.truncate(table, table.read_bytes().find(b"\n", 200) + 1)  # killed after few rows
    left = len(rows(table))
    encoded.clear()
    assert run(table, *arguments).code == 0
    assert len(encoded) == len(first) - left
    untimed = [{**row, "encode_seconds": ""} for row in first]
    assert sorted(({**row, "encode_seconds": ""} for row in rows(table)), key=str) == sorted(untimed, key=str)


def test_a_cap_that_nothing_meets(tmp_path: Path, pictures: Path, ladder_folder: Path) -> None:
    result = run(tmp_path / "table.csv", pictures, ladder_folder, "--bpp", "0.0001")
    assert result.code == 1
    assert "--bpp 0.0001: nothing that was measured fits" in result.stdout


def test_rates_are_those_of_the_pictures_given(table: Path, pictures: Path, ladder_folder: Path) -> None:
    assert_refused(run(table, pictures / "a.png", ladder_folder, "--bpp", "1"), "other pictures", "--replace")
    assert_refused(run(table, pictures, ladder_folder, "--bpp", "much"), "--bpp much")
    assert run(table, pictures / "a.png", ladder_folder, "--bpp", "9", "--replace").code == 0
    assert {row["image"] for row in rows(table)} == {"a.png"}


def test_two_runs_do_not_share_a_table(table: Path, pictures: Path, ladder_folder: Path) -> None:
    streams = table.with_suffix(".streams")
    with locked(streams / ".lock", "holds it"):
        assert_refused(run(table, pictures, ladder_folder), "another process measures into this folder")
        shared = ("--streams", streams)
        assert_refused(run(table.with_name("new.csv"), pictures, ladder_folder, *shared), "measures into this folder")
        assert run(table.with_name("other.csv"), pictures / "a.png", ladder_folder, "--qualities", "0").code == 0
    with locked(table.with_name(".table.csv.lock"), "holds it"):
        elsewhere = ("--streams", table.parent / "elsewhere")
        assert_refused(run(table, pictures, ladder_folder, *elsewhere), "another process measures into this table")
