"""What the measurements in `benchmarks` make for themselves, and bad input to them."""

from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import against, coder, decode, decoder, encoder, search
from benchmarks.size import size
from submission.config import NETWORKS
from submission.ladder import Ladder
from tests.commands import assert_refused, call
from tests.conftest import noise_picture


@pytest.mark.parametrize("text", ["foo", "64", "64x", "0x64", "64x-1", "64x64x3", "６４x64"])
@pytest.mark.parametrize(
    ("module", "option"), [(coder, "--size"), (decoder, "--size"), (encoder, "--size"), (decode, "--sizes")]
)
def test_what_is_no_size(tmp_path: Path, module: ModuleType, option: str, text: str) -> None:
    picture = [] if module is decode else [tmp_path / "photo.png"]
    assert_refused(call(module.main, *picture, option, text), f"{text}: not a size in pixels, such as 2048x1365")


def test_a_size_is_width_and_height() -> None:
    assert size("2048x1365") == (2048, 1365)


def test_a_stream_of_repeated_latents_decodes(networks_folder: Path) -> None:
    """Also one of a model whose latents lie around means, in other steps than whole symbols."""
    ladder, names = Ladder.load(networks_folder), [config.name for config in NETWORKS]
    units = set()
    for name in ("ms-hyper", "ms-hyper-zero"):
        codec = ladder.codec(names.index(name))
        stream = decoder.repeated_stream(codec, noise_picture(130, 70), 100, 200)
        assert codec.decompress(stream).shape == (100, 200, 3)
        units.add(codec.entropy.unit)
    assert len(units) == 2


def test_search_looks_candidates_up(tmp_path: Path) -> None:
    """In a table with a refined candidate, which does not count; one with gaps is refused."""
    lines = ["image,width,height,candidate,quality,bytes,msssim"]
    for image in range(6):
        for quality in range(3):
            size, score = 60 * 2**quality * (8 + image), 1 - 0.1 * 0.6**quality
            lines.append(f"{image}.png,400,300,q{quality},{quality},{size},{score}")
    lines.append("0.png,400,300,q1-r1-s16,1,100,0.99")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(lines) + "\n")
    result = call(search.main, table, "--lmbda", 1, 2, 4)
    assert result.code == 0, result.stderr
    rows = result.stdout.splitlines()[1:]
    assert len(rows) == 4 * len(search.VARIANTS) and all(" of 18 " in row for row in rows)
    assert_refused(call(search.main, table, "--lmbda", 1, 2), "table.csv: has model 2; give the --lmbda of all models")
    table.write_text("\n".join(lines).replace(",q0,0,", ",q0,0,1"))
    assert_refused(call(search.main, table, "--lmbda", 1, 2, 4), "table.csv: nothing fits 0.075 bpp")
    table.write_text("\n".join(lines[:-3]) + "\n")
    assert_refused(call(search.main, table, "--lmbda", 1, 2, 4), "table.csv: lacks candidates; measure without --bpp")


def test_against_a_peer_at_equal_bytes(tmp_path: Path) -> None:
    """Half way between two of its files, in the logarithm of the bytes, and beyond the largest."""
    lines = ["codec,image,width,height,quality,bytes,msssim", "vvc,a,100,100,0,100,0.9", "vvc,a,100,100,1,400,0.99"]
    lines += ["ours,a,100,100,0,200,0.99", "ours,a,100,100,1,500,0.999"]
    table = tmp_path / "a-candidates.tsv"
    table.write_text("\n".join(lines).replace(",", "\t") + "\n")
    found = against.gains(table, "vvc")
    assert found["gain"].tolist() == pytest.approx([20 - 15, float("nan")], nan_ok=True)
    assert "+5.00" in call(against.main, "vvc", table).stdout
    assert_refused(call(against.main, "avif", table), "a-candidates.tsv: has no codec avif")
    table.write_text(table.read_text().replace("ours\ta", "ours\tb"))
    assert_refused(call(against.main, "vvc", table), "a-candidates.tsv: has no b of vvc")
