"""Run a command's `main` in this process: what a user sees, without the seconds that importing torch takes."""

import contextlib
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import pytest

from submission import console


@dataclass(frozen=True)
class Result:
    """What a command leaves behind."""

    code: int
    stdout: str
    stderr: str


def call(main: Callable[[], int], *arguments: object) -> Result:
    """Run `main` with these command-line arguments."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["command", *map(str, arguments)]),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        pytest.raises(SystemExit) as end,
    ):
        console.run(main)
    return Result(int(end.value.code or 0), stdout.getvalue(), stderr.getvalue())


def assert_refused(result: Result, *words: str) -> None:
    """Exit code 2 and one line on stderr that says each of `words`."""
    assert result.code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr
