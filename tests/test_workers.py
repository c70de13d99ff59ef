"""Workers that are killed, stopped or slow to start: every job is answered once, or the command says why not."""

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from submission import processes, workers
from submission.errors import UserError
from submission.processes import Silence
from submission.workers import Job, Pool
from tests.faults import ROOT, assert_gone, call_in, fail_oddly, fail_with, is_stopped, large, square, wait_for, who

#: Seconds of silence in these tests: several signs of life, also on a busy machine.
PATIENCE = 4.0


@contextlib.contextmanager
def pool(jobs: int = 1, fresh: bool = False) -> Iterator[Pool]:
    with contextlib.closing(Pool(jobs, 1, fresh)) as started:
        yield started


def answers(running: Pool, *jobs: Job) -> list[Any]:
    """What all of `jobs` return, as they are done."""
    waiting, found = list(jobs), []
    while waiting or running.busy:
        while waiting and running.free:
            running.start(waiting.pop(0))
        found += [value for _, value in running.poll()]
    return found


def job(function: object, *arguments: object) -> Job:
    return Job("the job", lambda: (function, arguments))  # type: ignore[arg-type,return-value]


def pids(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir()]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", PATIENCE)


def test_workers_take_job_after_job_or_are_fresh() -> None:
    with pool(2) as running:
        assert sorted(answers(running, *(job(square, k) for k in range(9)))) == [k * k for k in range(9)]
        assert len(set(answers(running, *(job(who) for _ in range(4))))) <= 2
    with pool(1, fresh=True) as running:
        assert len(set(answers(running, job(who), job(who)))) == 2


def test_calls_and_answers_are_of_any_size() -> None:
    """More than a pipe holds, both ways, also before the worker has started to read."""
    data = os.urandom(10**6)
    with pool(2) as running:
        assert answers(running, *(job(bytes, data) for _ in range(4))) == [data] * 4


def test_errors_come_back() -> None:
    with pool() as running:
        with pytest.raises(UserError, match="the disk is full"):
            answers(running, job(fail_with, UserError("the disk is full")))
        with pytest.raises(RuntimeError, match="Odd: not to be pickled"):
            answers(running, job(fail_oddly))
        with pytest.raises(ModuleNotFoundError):
            answers(running, job(__import__, "no_such_module"))
        assert answers(running, job(square, 3)) == [9]


def test_an_error_costs_no_answer_that_came_with_it() -> None:
    with pool(2) as running:
        running.start(job(fail_with, UserError("the disk is full")))
        running.start(job(square, 3))
        wait_for(lambda: all(select.select([w.process.stdout], [], [], 0)[0] for w in running.busy))
        time.sleep(1)  # both have answered
        found = []
        with pytest.raises(UserError, match="the disk is full"):
            while True:
                found += [value for _, value in running.poll()]
        assert found == [9] and not running.busy
        assert answers(running, job(square, 4), job(square, 5)) in ([16, 25], [25, 16])


def test_a_killed_worker_is_replaced(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pool() as running:
        assert answers(running, job(call_in, tmp_path, 0.0, workers.RETRIES)) == [workers.RETRIES + 1]
    assert capfd.readouterr().err == "note: the job: its worker was killed (SIGKILL); another one takes over\n" * 2


def test_a_job_that_kills_every_worker_is_named(tmp_path: Path) -> None:
    with pool() as running, pytest.raises(UserError, match=r"the job: lost 3 workers.*SIGKILL.*fewer --jobs"):
        answers(running, job(call_in, tmp_path, 0.0, 99))
    assert len(pids(tmp_path)) == workers.RETRIES + 1
    for pid in pids(tmp_path):
        assert_gone(pid)


def test_a_stopped_worker_is_replaced(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pool() as running:
        running.start(job(call_in, tmp_path, 0.3))
        wait_for(lambda: pids(tmp_path))
        os.kill(pids(tmp_path)[0], signal.SIGSTOP)
        assert answers(running) == [2]
        assert len(pids(tmp_path)) == 2
    note = capfd.readouterr().err
    assert note.startswith("note: the job: its worker gave no sign of life for 4 s") and note.count("\n") == 1


def test_a_worker_that_is_stopped_and_continued_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pool() as running:
        running.start(job(call_in, tmp_path, 0.5))
        wait_for(lambda: pids(tmp_path))
        os.kill(pids(tmp_path)[0], signal.SIGSTOP)
        assert running.poll() == []
        os.kill(pids(tmp_path)[0], signal.SIGCONT)
        assert answers(running) == [1]
    assert capfd.readouterr().err == ""


def test_an_answer_that_stops_in_the_middle(tmp_path: Path) -> None:
    """It is longer than the pipe, so its worker is stopped while it writes."""
    with pool() as running:
        running.start(job(large, tmp_path))
        wait_for(lambda: pids(tmp_path))
        time.sleep(0.2)
        first = pids(tmp_path)[0]
        os.kill(first, signal.SIGSTOP)
        assert [len(answer) for answer in answers(running)] == [10**7]
        assert len(pids(tmp_path)) == 2
        assert_gone(first)


def test_a_worker_that_is_stopped_before_it_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two system calls that start a program."""

    def stop_once(*_: object) -> None:
        if not pids(tmp_path):
            (tmp_path / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGSTOP)

    monkeypatch.setattr(processes, "tie", stop_once)
    with pool() as running:
        assert answers(running, job(square, 3)) == [9]
    assert_gone(pids(tmp_path)[0])


@pytest.mark.parametrize("slow_starts", [1, 99])
def test_a_start_that_takes_longer_than_they_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_starts: int
) -> None:
    """The worker's Python needs a minute before it is there."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, time\nfolder = {str(tmp_path)!r}\nnumber = len(os.listdir(folder))\n"
        f"open(f'{{folder}}/{{number}}.start', 'w').close()\nif number <= {slow_starts}: time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(processes, "PATIENCE", 2.5 if slow_starts == 1 else 1.0)
    with pool() as running:
        if slow_starts == 1:
            assert answers(running, job(square, 3)) == [9]
        else:
            with pytest.raises(UserError, match="lost 3 workers; the last one gave no sign of life"):
                answers(running, job(square, 3))


def test_whoever_is_killed_or_stopped_every_job_is_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals at random to random workers, several hundred in all."""
    monkeypatch.setattr(workers, "RETRIES", 1000)
    monkeypatch.setattr(processes, "PATIENCE", 2.5)
    chance = random.Random(1)
    waiting = [Job(str(k), partial(lambda k: (square, (k, 0.02)), k)) for k in range(60)]
    found: list[tuple[Job, int]] = []
    sent = 0
    with pool(4) as running:
        while waiting or running.busy:
            while waiting and running.free:
                running.start(waiting.pop(0))
            if len(waiting) > 8:  # then they are left in peace, so that the test ends
                for worker in chance.sample(running.busy, k=min(2, len(running.busy))):
                    number = chance.choice(
                        [signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, signal.SIGCONT, signal.SIGINT]
                    )
                    worker.process.send_signal(number)
                    sent += 1
            found += running.poll()
    assert sorted((int(job.name), value) for job, value in found) == [(k, k * k) for k in range(60)]
    assert sent > 20


def test_silence_counts_only_while_we_are_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    silence = Silence()
    for at, seconds in ((0.5, 0.5), (0.9, 0.9), (5000.0, 1.9), (5000.5, 2.4)):
        now = at
        assert silence.look() == pytest.approx(seconds)
    silence.broken()
    assert silence.look() == 0


PARENT = """
import contextlib, sys
from pathlib import Path
from submission import console
from submission.workers import Job, Pool
from tests.faults import call_in
def main():
    with contextlib.closing(Pool(3, 1)) as pool:
        for _ in range(3):
            pool.start(Job("job", lambda: (call_in, (Path(sys.argv[1]), 600.0))))
        while True:
            pool.poll()
console.run(main)
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A command with three workers at work, the first of them stopped."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: len(pids(tmp_path)) == 3)
        os.kill(pids(tmp_path)[0], signal.SIGSTOP)
        wait_for(lambda: is_stopped(pids(tmp_path)[0]))
        yield process
    finally:
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(parent: subprocess.Popen[str], tmp_path: Path, number: signal.Signals) -> None:
    """Also those that are stopped, and also of kill -9."""
    parent.send_signal(number)
    _, errors = parent.communicate(timeout=120)
    for pid in pids(tmp_path):
        assert_gone(pid)
    if number != signal.SIGKILL:
        assert (parent.returncode, errors) == (130, "error: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("busy", ["hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)", "threads()"])
def test_nothing_holds_up_the_end(number: signal.Signals, busy: str) -> None:
    """Neither a library that returns in minutes nor threads for which Python waits."""
    script = f"""
import concurrent.futures, hashlib, time
from submission import console
def threads():
    with concurrent.futures.ThreadPoolExecutor() as pool:
        pool.submit(time.sleep, 600)
def main():
    print("ready", flush=True)
    {busy}
console.run(main)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    assert (process.returncode, errors) == (130, "error: interrupted\n")
