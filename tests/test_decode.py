"""The decoder's command: one bad stream never costs the others, and whatever goes wrong is one line."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from submission import __version__, console, decode, ladder
from submission.cores import given_cores
from submission.files import read_image
from submission.ladder import Ladder
from submission.latent_coding import Tensors
from tests.commands import Result, assert_refused, call
from tests.conftest import ROOT, noise_picture


@pytest.fixture(scope="module")
def streams(ladder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.clic, b.clic, c.clic of two models."""
    folder = tmp_path_factory.mktemp("streams")
    models = Ladder.load(ladder_folder)
    for name, quality in {"a": 0, "b": 1, "c": 1}.items():
        (folder / f"{name}.clic").write_bytes(models.codec(quality).compress(noise_picture(70, 90)))
    return folder


def run(streams: Path, output: Path, weights: Path) -> Result:
    return call(decode.main, streams, "-o", output, "--weights", weights)


def test_each_model_is_loaded_once(
    streams: Path, ladder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    read = ladder.read_safetensors

    def watched(path: Path, data: bytes) -> Tensors:
        loaded.append(path.name)
        return read(path, data)

    monkeypatch.setattr(ladder, "read_safetensors", watched)
    done = run(streams, tmp_path / "out", ladder_folder)
    assert (done.code, done.stdout, done.stderr) == (0, "decoded 3 of 3 streams\n", "")
    assert loaded == ["model_0.safetensors", "model_1.safetensors"]
    for path in streams.iterdir():
        assert read_image(tmp_path / "out" / f"{path.stem}.png").shape == (70, 90, 3)


def lost_model(streams: Path, weights: Path, out: Path) -> None:
    (weights / "model_0.safetensors").unlink()


def damaged_model(streams: Path, weights: Path, out: Path) -> None:
    (weights / "model_0.safetensors").write_bytes(b"x")


def cut_stream(streams: Path, weights: Path, out: Path) -> None:
    (streams / "a.clic").write_bytes((streams / "a.clic").read_bytes()[:-1])


def longer_stream(streams: Path, weights: Path, out: Path) -> None:
    (streams / "a.clic").write_bytes((streams / "a.clic").read_bytes() + b"x")


def occupied_name(streams: Path, weights: Path, out: Path) -> None:
    (out / "a.png" / "folder").mkdir(parents=True)


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lost_model, "model_0.safetensors"),
        (damaged_model, "SHA-256"),
        (cut_stream, "checksum"),
        (longer_stream, "checksum"),
        (occupied_name, "cannot write"),
    ],
)
def test_what_spoils_one_stream_spares_the_others(
    streams: Path, ladder_folder: Path, tmp_path: Path, spoil: Callable[[Path, Path, Path], None], word: str
) -> None:
    places = {"streams": streams, "weights": ladder_folder}
    for name, source in places.items():
        places[name] = tmp_path / name
        places[name].mkdir()
        for path in source.iterdir():
            (places[name] / path.name).write_bytes(path.read_bytes())
    spoil(places["streams"], places["weights"], tmp_path / "out")
    done = run(places["streams"], tmp_path / "out", places["weights"])
    assert_refused(done, "a.clic", word)
    assert done.stdout == "decoded 2 of 3 streams\n"
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_file()) == ["b.png", "c.png"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), ["not enough memory"]),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory\nmore"),
            ["cannot be decoded here", "can't allocate"],
        ),
        (RuntimeError(), ["cannot be decoded here: RuntimeError"]),
        (PermissionError(13, "Permission denied"), ["Permission denied"]),
    ],
)
def test_lack_of_memory_and_rights_spare_the_others(
    streams: Path,
    ladder_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    words: list[str],
) -> None:
    first = (streams / "a.clic").read_bytes()
    decompress = Ladder.decompress

    def fail(self: Ladder, stream: bytes) -> object:
        if stream == first:
            raise error
        return decompress(self, stream)

    monkeypatch.setattr(Ladder, "decompress", fail)
    done = run(streams, tmp_path / "out", ladder_folder)
    assert_refused(done, "a.clic", *words)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.png", "c.png"]


def test_a_huge_file_is_refused_unread(streams: Path, ladder_folder: Path, tmp_path: Path) -> None:
    with (tmp_path / "a.clic").open("wb") as file:
        file.truncate(2**40)  # sparse
    assert_refused(run(tmp_path, tmp_path / "out", ladder_folder), "a.clic", "more than any stream has")


def test_version(ladder_folder: Path) -> None:
    done = call(decode.main, "--version", "--weights", ladder_folder)
    assert done == Result(0, f"version {__version__}, ladder {Ladder.load(ladder_folder).id}\n", "")


def test_a_folder_that_may_not_be_written_to(
    streams: Path, ladder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root, who runs tests in containers, may everything
    assert_refused(run(streams, tmp_path, ladder_folder), str(tmp_path), "may not write")


def test_termination_leaves_whole_pictures_only(streams: Path, ladder_folder: Path, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(500):
        (many / f"{number:03}.clic").symlink_to(streams / "b.clic")
    command = [sys.executable, "-m", "submission.decode", many, "-o", tmp_path / "out", "--weights", ladder_folder]
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        while not list((tmp_path / "out").glob("*.png")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=300)[1] == "error: interrupted\n"
        assert process.returncode == 130
    finally:
        process.kill()
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert len(names) < 500 and all(name.endswith(".png") for name in names)
    assert len({read_image(tmp_path / "out" / name).tobytes() for name in names}) == 1, "whole ones, all alike"


def test_an_error_takes_the_place_of_the_progress_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(console, "QUIET_SECONDS", 0)
        for number in console.progress(range(3), "decoding"):
            if number == 2:
                console.fail("b.clic: damaged")
    shown = ""
    with os.fdopen(ours, "rb", buffering=0) as screen, contextlib.suppress(OSError):  # the other end is closed
        while part := screen.read(4096):
            shown += part.decode().replace("\r\n", "\n")
    lines = [part for part in shown.split(console.ERASE_LINE) if part]
    assert lines[0].startswith("[########") and "decoding 1/3" in lines[0]
    assert "error: b.clic: damaged\n" in lines
    assert shown.endswith(console.ERASE_LINE), "nothing of the line stays"


def test_progress_promises_nothing_that_it_cannot_know(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "QUIET_SECONDS", 0)
    bar = console.Progress("training", 4)
    for done, left, expected in ((0, None, ""), (1, None, ", 3:00 left"), (1, 7.0, ", 0:07 left")):
        bar.start, bar.drawn_at, bar.left = time.monotonic() - 60 * (bar.done + done), 0.0, left
        bar.advance(done)
        assert f"elapsed{expected}  " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "1600000 100000\n"}, 8),
        ({"cpu.max": "damaged"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
    ],
)
def test_cores_are_those_of_mask_and_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert given_cores(tmp_path) == cores
