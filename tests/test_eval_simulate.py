"""eval.simulate: the decoder runs as at the judge's, and nothing that goes wrong there passes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval import simulate
from eval.simulate import TooSlow, decoded, isolation
from metrics.clic import ms_ssim
from submission.errors import UserError
from tests.commands import Result, assert_refused, call
from tests.conftest import ROOT, noise_picture, run_module
from tests.faults import assert_gone, wait_for

#: A stand-in for our decoder: its streams are BMPs.
DECODE = """#!/usr/bin/env python3
from pathlib import Path
from PIL import Image
for path in Path().glob("*.clic"):
    Image.open(path).save(path.with_suffix(".png"))
"""

Make = Callable[[str], Path]


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    folder = tmp_path / "originals"
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(noise_picture(40, 50)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def make(tmp_path: Path, originals: Path) -> Make:
    """A function that makes a submission whose decoder is the given script."""

    def build(script: str) -> Path:
        folder = tmp_path / "submission"
        folder.mkdir()
        for path in originals.iterdir():
            Image.fromarray(noise_picture(40, 50) & np.uint8(0xF0)).save(folder / f"{path.stem}.clic", format="BMP")
        (folder / "decode").write_text(script)
        (folder / "decode").chmod(0o755)
        return folder

    return build


def test_command_scores_what_the_decoder_writes(make: Make, originals: Path) -> None:
    submission = make(DECODE)
    before = sorted(submission.rglob("*"))
    done = run_module("eval.simulate", submission, "--originals", originals)
    assert done.returncode == 0, done.stderr
    assert f"{ms_ssim(noise_picture(40, 50), noise_picture(40, 50) & np.uint8(0xF0)):.5f}" in done.stdout
    assert "largest process" in done.stdout
    assert sorted(submission.rglob("*")) == before, "the decoder ran in a copy"


def test_over_the_cap_leaves_with_one(make: Make, originals: Path) -> None:
    done = call(simulate.main, make(DECODE), "--originals", originals, "--bpp", "0.15")
    assert done.code == 1
    assert "over the cap" in done.stdout


def test_too_large_a_decoder_leaves_with_one(
    make: Make, originals: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submission = make(DECODE)
    monkeypatch.setattr(simulate, "MAX_DECODER_BYTES", 50)
    monkeypatch.setattr("sys.argv", ["simulate", str(submission), "--originals", str(originals)])
    assert simulate.main() == 1
    assert f"the decoder has {len(DECODE)} bytes" in capsys.readouterr().out


def test_memory_is_that_of_the_decoder_alone(make: Make, originals: Path) -> None:
    """The system counts what the process that starts it holds, too."""
    held = np.ones(300 * 2**20, np.uint8)
    hold = "import time; held = b'1' * 100_000_000; time.sleep(0.5)"
    with decoded(make(f'#!/bin/sh\n{sys.executable} -S -c "{hold}"'), originals) as run:
        assert 100e6 < run.peak_bytes < held.nbytes


def test_streams_are_those_beside_the_decoder(make: Make) -> None:
    submission = make(DECODE)
    (submission / "weights").mkdir()
    (submission / "weights" / "a.clic").write_bytes(b"1234567")
    assert simulate.decoder_size(submission) == len(DECODE) + 7


def test_environment_is_bare(make: Make, originals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    submission = make(
        "#!/bin/sh\nenv > environment; ls > files; ulimit -v > memory; nproc > cores; echo $# > arguments"
    )
    with decoded(submission, originals) as run:
        environment = dict(line.split("=", 1) for line in (run.folder / "environment").read_text().splitlines())
        assert environment.keys() - {"PWD", "SHLVL", "_", "OLDPWD"} == {"PATH"}
        assert set((run.folder / "files").read_text().split()) == {"a.clic", "b.clic", "decode", "environment", "files"}
        assert int((run.folder / "memory").read_text()) == 12 * 1000**3 // 1024
        assert int((run.folder / "cores").read_text()) <= 2
        assert (run.folder / "arguments").read_text() == "0\n"
    assert not run.folder.exists()


def test_no_network_and_no_originals(make: Make, originals: Path) -> None:
    if not isolation():
        pytest.skip("this machine does not let a process into namespaces of its own")
    script = f"#!/bin/sh\ncat /proc/net/dev > network; cat '{originals}'/*.png > seen; exit 0"
    with decoded(make(script), originals) as run:
        assert run.isolated
        interfaces = [line.split(":")[0].strip() for line in (run.folder / "network").read_text().splitlines()[2:]]
        assert interfaces in (["lo"], [])
        assert (run.folder / "seen").read_bytes() == b""
    assert all(path.stat().st_size > 0 for path in originals.iterdir()), "they are hidden from the decoder alone"


def test_still_runs_where_isolation_is_not_allowed(
    make: Make, originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate, "isolation", list)
    with decoded(make(DECODE), originals) as run:
        assert not run.isolated
        assert (run.folder / "a.png").is_file()
    (tmp_path / "submission" / "decode").write_text("#!/no/such/interpreter")
    with pytest.raises(UserError, match="the decoder failed"), decoded(tmp_path / "submission", originals):
        pass


@pytest.mark.parametrize(
    "script, named",
    [
        ("#!/bin/sh\necho the reason >&2; exit 3", "failed with exit code 3: the reason"),
        ("#!/bin/sh\nkill -9 $$", "killed by SIGKILL"),
        ("#!/no/such/interpreter", "decoder"),
        ("#!/usr/bin/env python3\nb = bytearray(13 * 1000**3)", "MemoryError"),
        ("#!/bin/sh\nexit 0", "a.png: missing"),
        (DECODE.replace("open(path)", "open(path).resize((50, 41))"), "50x41, but the original is 50x40"),
    ],
)
def test_a_failed_decode_fails(make: Make, originals: Path, script: str, named: str) -> None:
    assert_refused(call(simulate.main, make(script), "--originals", originals), named)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_too_slow_is_stopped_with_all_it_started(
    make: Make, originals: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pids = originals.parent / "pid"
    submission = make(f"#!/bin/sh\nsleep 600 &\necho $! > '{pids}'; wait")
    with pytest.raises(TooSlow, match="limit of 4 s"), decoded(submission, originals, 4):
        pass
    pid = int(pids.read_text())
    deadline = time.monotonic() + 30  # a process that was killed may have to wait for a core to end
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)
    monkeypatch.setattr("sys.argv", ["simulate", str(submission), "--originals", str(originals), "--seconds", "0.2"])
    assert simulate.main() == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_without_a_decoder(make: Make, originals: Path) -> None:
    submission = make(DECODE)
    (submission / "decode").chmod(0o644)
    with pytest.raises(UserError, match="no executable named decode"), decoded(submission, originals):
        pass


@pytest.fixture
def decoding(make: Make, originals: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A command whose decoder takes long, and that decoder's process id."""
    make(f"#!/bin/sh\necho $$ > {tmp_path}/pid.part; mv {tmp_path}/pid.part {tmp_path}/pid; exec sleep 600")
    script = "from eval import simulate; from submission import console, processes; processes.PATIENCE = 3;"
    command = [sys.executable, "-c", f"{script} console.run(simulate.main)", str(tmp_path / "submission")]
    command += ["--originals", str(originals)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: process.poll() is not None or (tmp_path / "pid").exists())
        yield process, int((tmp_path / "pid").read_text())
    finally:
        process.kill()


def test_a_decoder_that_is_stopped(decoding: tuple[subprocess.Popen[str], int]) -> None:
    process, decoder = decoding
    os.kill(decoder, signal.SIGSTOP)
    _, errors = process.communicate(timeout=120)
    assert_refused(Result(process.returncode, "", errors), "the decoder was stopped and not continued for 3 s")
    assert_gone(decoder)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_decoder_ends_with_the_command(decoding: tuple[subprocess.Popen[str], int], number: signal.Signals) -> None:
    process, decoder = decoding
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert errors == ("" if number == signal.SIGKILL else "error: interrupted\n")
    assert_gone(decoder)
