"""A full disk: one line, and nothing half-written. The kernel's limit of a file's size stands in for it."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval import peers, score
from ratecontrol import allocate, decoder, measure, package
from submission import decode, encode, inspect
from tests.commands import assert_refused, call

#: Bytes that a file may have; what the commands write has more.
FULL = 40


@pytest.fixture
def place(pictures: Path, ladder_folder: Path, tmp_path: Path) -> Path:
    """A folder with streams, a table and a choice."""
    weights = ("--weights", ladder_folder)
    assert call(encode.main, pictures, "-o", tmp_path / "streams", *weights).code == 0
    assert call(measure.main, pictures, "-o", tmp_path / "table.csv", *weights).code == 0
    assert call(allocate.main, tmp_path / "table.csv", "--bpp", "1.2", "-o", tmp_path / "choice.csv").code == 0
    return tmp_path


@pytest.fixture
def full_disk(place: Path) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("full_disk")
def test_commands_leave_nothing_behind(place: Path, pictures: Path, ladder_folder: Path) -> None:
    weights = ("--weights", ladder_folder)
    new = place / "new"
    new.mkdir()
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
    for main, *arguments in (
        (encode.main, pictures, "-o", new / "streams", *weights),
        (decode.main, place / "streams", "-o", new / "pictures", *weights),
        (inspect.main, place / "streams" / "a.clic", "--map", new / "map.png", *weights),
        (measure.main, pictures, "-o", new / "table.csv", *weights),
        (allocate.main, place / "table.csv", "--bpp", "1.2", "-o", new / "choice.csv"),
        (package.main, pictures, place / "choice.csv", "-o", new / "submission", *weights),
        (decoder.main, "-o", new / "decoder.zip", *weights),
        (peers.main, pictures, "-o", new / "peers", "--codecs", "jpeg"),
        (score.main, pictures, pictures, "--csv", new / "score.csv"),
    ):
        result = call(main, *arguments)
        assert (result.code, result.stderr[:7]) == (2, "error: "), (main.__module__, result)
        assert result.stderr.count("\n") == 1, result.stderr
        assert "free some space" in result.stderr, result.stderr
        assert not [path for path in new.rglob("*") if path.is_file() and path.stat().st_size], main.__module__
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_table_that_fills_the_disk_goes_on(pictures: Path, ladder_folder: Path, tmp_path: Path) -> None:
    """What was measured before it was full is kept, and the same command measures the rest."""
    arguments = (pictures, "-o", tmp_path / "table.csv", "--weights", ladder_folder)
    assert call(measure.main, *arguments).code == 0
    whole = (tmp_path / "table.csv").read_bytes()
    (tmp_path / "table.csv").unlink()
    largest = max(path.stat().st_size for path in (tmp_path / "table.streams").iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, hard))
    try:
        assert_refused(call(measure.main, *arguments), "free some space")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 2 < (tmp_path / "table.csv").read_text().count("\n") < whole.count(b"\n")
    assert call(measure.main, *arguments).code == 0
    lines = [line.split(b",")[:7] for line in (tmp_path / "table.csv").read_bytes().splitlines()]
    assert lines == [line.split(b",")[:7] for line in whole.splitlines()]
