"""Measuring while its processes, or its scheduler, are killed and stopped: it goes on, or says in one line why not."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ratecontrol import measure
from ratecontrol.parallel.cluster import compute_there
from submission import processes
from submission.errors import UserError
from tests.commands import call
from tests.faults import ROOT, children, said, stop_one_and_end, wait_for

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def rows(table: Path) -> dict[tuple[str, str], dict[str, str]]:
    """The rows by picture and candidate, without what differs from run to run."""
    if not table.exists():
        return {}
    with table.open(newline="") as file:
        whole = [row for row in csv.DictReader(file) if row["stream"]]
    return {(row["image"], row["candidate"]): {**row, "encode_seconds": "", "stream": ""} for row in whole}


def test_a_table_survives_everything(tmp_path: Path, pictures: Path, ladder_folder: Path) -> None:
    """Workers killed and stopped, then the command terminated, then killed; the rows are those of one quiet process."""
    arguments = [pictures, "--weights", ladder_folder]
    table, whole = tmp_path / "table.csv", tmp_path / "whole.csv"
    script = (
        "from ratecontrol import measure; from submission import console, processes; from tests import faults;"
        "processes.PATIENCE = 6; measure.measure = faults.measure_slowly; console.run(measure.main)"
    )

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, *map(str, arguments), "-o", str(table), "--jobs", "2"]
        return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def disturb(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, list[str]]:
        """Stop a worker and then send `number` to the command; its exit code and what it said."""
        before = len(rows(table))
        wait_for(lambda: process.poll() is not None or (len(rows(table)) > before and children(process.pid)))
        assert process.poll() is None, process.communicate()
        errors = stop_one_and_end(process, number)
        return process.returncode, said(errors)

    first = start()
    wait_for(lambda: len(children(first.pid)) == 2)
    os.kill(children(first.pid)[0], signal.SIGKILL)
    code, (note, *_, end) = disturb(first, signal.SIGTERM)  # on a starved machine others may give no sign of life
    assert (code, end) == (130, "error: interrupted")
    assert "its worker was killed (SIGKILL); another one takes over" in note
    kept = rows(table)
    assert disturb(start(), signal.SIGKILL)[0] == -signal.SIGKILL
    last = start()
    wait_for(lambda: len(children(last.pid)) == 2)
    os.kill(children(last.pid)[1], signal.SIGSTOP)
    _, errors = last.communicate(timeout=120)
    assert last.returncode == 0, errors
    assert errors.count("gave no sign of life") >= 1
    assert call(measure.main, *arguments, "-o", whole).code == 0
    after = rows(table)
    assert kept.items() <= after.items()
    assert after == rows(whole)


CLUSTER = """
from distributed import LocalCluster
cluster = LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, protocol="tcp://")
print(cluster.scheduler_address, flush=True)
input()
cluster.scale(0)
input()
"""


@pytest.fixture
def scheduler() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that is a Dask scheduler with one worker, and its address."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", CLUSTER]
    with subprocess.Popen(command, env=ENVIRONMENT, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("fault", "words"),
    [("killed", "it went away"), ("stopped", "no sign of life"), ("without its worker", "no sign of life")],
)
def test_a_scheduler_that_goes_away_in_the_middle(
    scheduler: tuple[subprocess.Popen[str], str], monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 4.0)
    process, address = scheduler
    results = compute_there(time.sleep, [0.1, 300.0, 300.0], address)
    assert next(results) is None
    if fault == "killed":
        process.kill()
    elif fault == "stopped":
        process.send_signal(signal.SIGSTOP)
    else:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    with pytest.raises(UserError, match=rf"--scheduler {address}: {words}.*run the command again"):
        next(results)


def test_ctrl_c_leaves_a_scheduler(
    scheduler: tuple[subprocess.Popen[str], str], tmp_path: Path, pictures: Path, ladder_folder: Path
) -> None:
    """Also one that has stopped: whoever it is, the command takes no long leave of it."""
    process, address = scheduler
    table = tmp_path / "table.csv"
    arguments = [pictures, "-o", table, "--weights", ladder_folder, "--refine", "999", "--scheduler", address]
    command = [sys.executable, "-m", "ratecontrol.measure", *map(str, arguments)]
    with subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, stderr=subprocess.PIPE, text=True) as measuring:
        try:
            wait_for(lambda: rows(table))
            process.send_signal(signal.SIGSTOP)
            measuring.send_signal(signal.SIGINT)
            _, errors = measuring.communicate(timeout=120)
        finally:
            measuring.kill()
    assert (measuring.returncode, errors) == (130, "error: interrupted\n")
