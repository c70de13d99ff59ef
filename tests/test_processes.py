"""Programs that we start: their output as a whole, and an end when they are stopped, killed or left alone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from submission import processes
from submission.errors import UserError
from submission.processes import finish, watched
from tests.faults import ROOT, assert_gone, children, wait_for

PIPE = subprocess.PIPE
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def test_output_is_whole() -> None:
    """More than pipes hold, and late."""
    script = "import sys, time; time.sleep(0.8); sys.stdout.write('a' * 10**6); sys.stderr.write('b' * 10**6)"
    with watched(subprocess.Popen([sys.executable, "-c", script], stdout=PIPE, stderr=PIPE)) as process:
        assert finish(process, "it") == (b"a" * 10**6, b"b" * 10**6)
    assert process.returncode == 0


def test_stopped_and_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 10.0)
    with (
        watched(subprocess.Popen(["sh", "-c", "kill -STOP $$; echo continued"], stdout=PIPE)) as process,
        subprocess.Popen(["sh", "-c", f"sleep 1.2; kill -CONT {process.pid}"]),
    ):
        assert finish(process, "it") == (b"continued\n", b"")


def test_stopped_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 1.0)
    with (
        watched(subprocess.Popen(["sh", "-c", "kill -STOP $$"])) as process,
        pytest.raises(UserError, match="the encoder was stopped and not continued for 1 s"),
    ):
        finish(process, "the encoder")
    assert_gone(process.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="the system sends no signal to those whose parent dies")
def test_a_program_ends_with_a_killed_parent() -> None:
    """Also one that is stopped."""
    script = (
        "import subprocess; from submission.processes import tied;"
        "subprocess.Popen(['sh', '-c', 'kill -STOP $$'], preexec_fn=tied()).wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], env=ENVIRONMENT)
    try:
        wait_for(lambda: children(parent.pid))
        child = children(parent.pid)[0]
    finally:
        parent.kill()
        parent.wait()
    assert_gone(child)


@pytest.mark.parametrize("command", ["submission.decode", "training.ladder", "ratecontrol.measure", "eval.compare"])
def test_interrupted_while_libraries_are_imported(tmp_path: Path, command: str) -> None:
    """No traceback, whatever is under way then: here a torch that takes its time, and minds no exception."""
    lines = ["print('importing', flush=True)", "import time", "while True:", " try: time.sleep(60)"]
    (tmp_path / "torch.py").write_text("\n".join([*lines, " except BaseException: pass"]))
    found = os.pathsep.join([str(tmp_path), str(ROOT)])
    with subprocess.Popen(
        [sys.executable, "-m", command], env={**os.environ, "PYTHONPATH": found}, stdout=PIPE, stderr=PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[1] == "error: interrupted\n"
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("command", "library"),
    [
        ("submission.decode", "PIL"),
        ("training.export", "safetensors"),
        ("ratecontrol.allocate", "pandas"),
        ("eval.compare", "scipy.interpolate"),
    ],
)
def test_a_library_that_is_missing(tmp_path: Path, command: str, library: str) -> None:
    package = library.partition(".")[0]
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('No module named {library}', name='{library}')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-m", command], env=environment, capture_output=True, text=True, timeout=60)
    wanted = "pillow" if package == "PIL" else package
    assert (done.returncode, done.stderr) == (2, f"error: {package} is not installed: pip install {wanted}\n")


def test_a_module_of_ours_that_is_missing_is_a_fault(tmp_path: Path) -> None:
    lines = ["import sys", "sys.argv[0] = '-m'", "import submission", "import submission.nothing"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == 1 and "Traceback" in done.stderr
