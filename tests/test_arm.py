"""An ARM machine decodes the golden photos: every row of probabilities and every symbol as on x86-64, pictures within
one level, and the latents coded again give the same bytes.

Runs on this machine if it is one, else where `../shared/tools/aarch64` emulates one: that takes root, network once, and
minutes, as emulation is some 30 times slower. `make test-arm`.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.everywhere import assert_as_golden

TOOL = ROOT.parent / "shared" / "tools" / "aarch64"

#: An ordinary server's processor; the emulator's own has extensions that torch trusts and it does not run.
PROCESSOR = "neoverse-n1"


@pytest.fixture
def python(pytestconfig: pytest.Config) -> list[str]:
    """A Python on an ARM machine."""
    if platform.machine() in {"aarch64", "arm64"}:
        return [sys.executable]
    if not TOOL.exists():
        pytest.skip("this is no ARM machine, and there is none to emulate: no ../shared/tools/aarch64")
    machine = pytestconfig.cache.mkdir("aarch64")
    if not (machine / "ready").exists():
        done = subprocess.run([TOOL, "prepare", machine], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"{TOOL} prepare failed: {done.stderr.strip().splitlines()[-1:]}")
        (machine / "ready").touch()
    return [str(TOOL), "run", str(machine)]


def test_an_arm_machine_decodes_the_same(python: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "QEMU_CPU": PROCESSOR}
    command = [*python, str(ROOT / "tests" / "everywhere.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    print(f"\n{found['machine']}, torch {found['torch']}, {found['coder']}")
    assert found["machine"] in {"aarch64", "arm64"}
    assert_as_golden(found["facts"], tmp_path)
