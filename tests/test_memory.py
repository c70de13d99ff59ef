"""What does not fit into memory is refused before the work, in one line; what fits is not."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from submission import decode, encode, memory
from submission.config import PRESETS
from submission.errors import ImageError
from submission.ladder import Ladder
from tests.commands import assert_refused, call
from tests.conftest import ROOT, noise_picture


def estimates(preset: str, side: int, fast: bool) -> list[int]:
    config = PRESETS[preset]
    return [memory.encoding_bytes(config, side, side), memory.decoding_bytes(config, side, side, fast)]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_largest_picture_fits_the_rules(preset: str) -> None:
    """12 GB, of which libraries, picture and files take one."""
    for fast in (False, True):
        assert max(estimates(preset, 8192, fast)) < 11e9


def test_estimates_grow_with_the_picture() -> None:
    for sizes in zip(*(estimates("base", side, True) for side in (1, 64, 512, 4096, 8192)), strict=True):
        assert list(sizes) == sorted(sizes) and sizes[0] < 0.5e9


def test_free_memory_is_the_least_of_all_limits(tmp_path: Path) -> None:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    assert memory._of_machine(proc) == memory._of_group(cgroup) == math.inf
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:  9 kB\nMemAvailable:  7000 kB\nSwapFree: 1000 kB\nHugePages_Free: 0\n")
    assert memory._of_machine(proc) == 8000 * 1024
    cgroup.mkdir()
    for name, text in {"max": "max", "current": "300", "stat": "anon 5\ninactive_file 40\nactive_file 2\n"}.items():
        (cgroup / f"memory.{name}").write_text(text)
    assert memory._of_group(cgroup) == math.inf
    (cgroup / "memory.max").write_text("1000\n")
    assert memory._of_group(cgroup) == 742
    older = tmp_path / "older" / "memory"
    older.mkdir(parents=True)
    for name, text in {"limit_in_bytes": "500", "usage_in_bytes": "100", "stat": "cache 1\n"}.items():
        (older / f"memory.{name}").write_text(text)
    assert memory._of_group(older.parent) == 400
    assert memory.free_bytes(cgroup, proc) == 742


def test_refused_in_one_line(
    pictures: Path, ladder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = ("--weights", ladder_folder)
    assert call(encode.main, pictures, "-o", tmp_path, *weights).code == 0
    monkeypatch.setattr(memory, "free_bytes", lambda: 1e6)
    done = call(encode.main, pictures / "a.png", "-o", tmp_path / "more", *weights)
    assert_refused(done, "a.png", "encoding 240x192 takes about 0.", "0.0 GB are free", "split")
    assert not list((tmp_path / "more").iterdir())
    done = call(decode.main, tmp_path / "b.clic", "-o", tmp_path, *weights)
    assert_refused(done, "b.clic", "decoding 200x181 takes about 0.", "GB are free")
    assert not list(tmp_path.glob("*.png"))
    with pytest.raises(ImageError, match="takes about"):
        Ladder.load(ladder_folder).codec(0).encode(noise_picture(64, 64))


#: Encodes what the arguments say, with 200 MB left of the address space once everything is imported.
LIMITED = """
import pathlib, resource, torch
from submission import console, encode
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000,) * 2)
console.run(encode.main)
"""


def test_a_limit_of_the_process_counts(pictures: Path, ladder_folder: Path, tmp_path: Path) -> None:
    """`ulimit -v`, as judges set it: refused at once and not by an allocation that fails."""
    arguments = [pictures / "a.png", "-o", tmp_path, "--weights", ladder_folder]
    command = [sys.executable, "-c", LIMITED, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env={"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "a.png: encoding 240x192 takes about 0.4 GB" in done.stderr and not list(tmp_path.glob("*.clic"))
