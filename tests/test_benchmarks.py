"""What the measurements in `benchmarks` make for themselves, and bad input to them."""

import argparse
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import against, coder, decode, decoder, encoder, optimizer, parts, search
from benchmarks.arguments import count, positive, size
from benchmarks.kept import same_settings
from submission.config import NETWORKS
from submission.errors import UserError
from submission.ladder import Ladder
from tests.commands import assert_refused, call
from tests.conftest import noise_picture
from training.recipe import RECIPES


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
    """Of ours alone; a table with gaps or refined candidates is refused."""
    lines = ["codec,image,width,height,quality,bytes,msssim", "vvc,0.png,400,300,0,5,0.9"]
    for image in range(6):
        for quality in range(3):
            size, score = 60 * 2**quality * (8 + image), 1 - 0.1 * 0.6**quality
            lines.append(f"ours,{image}.png,400,300,{quality},{size},{score}")

    def table(*lines: str) -> Path:
        path = tmp_path / "a-candidates.tsv"
        path.write_text("\n".join(lines).replace(",", "\t") + "\n")
        return path

    result = call(search.main, table(*lines), "--lmbda", 1, 2, 4)
    assert result.code == 0, result.stderr
    rows = result.stdout.splitlines()[1:]
    assert len(rows) == 4 * len(search.VARIANTS) and all(" of 18 " in row for row in rows)
    measured = tmp_path / "a.csv"  # as ratecontrol.measure has it
    cells = [line.split(",")[1:] for line in lines if not line.startswith("vvc")]
    named = [[*row, "candidate" if k == 0 else f"q{row[3]}"] for k, row in enumerate(cells)]
    measured.write_text("\n".join(map(",".join, named)) + "\n")
    again = call(search.main, measured, "--lmbda", 1, 2, 4)
    assert [row.split()[1:] for row in again.stdout.splitlines()] == [
        row.split()[1:] for row in result.stdout.splitlines()
    ]
    refused = call(search.main, table(*lines), "--lmbda", 1, 2)
    assert_refused(refused, "a-candidates.tsv: has model 2; give the --lmbda of all models")
    large = [line.replace(",300,0,", ",300,0,1") for line in lines]
    assert_refused(call(search.main, table(*large), "--lmbda", 1, 2, 4), "a-candidates.tsv: nothing fits 0.075 bpp")
    for other in (lines[:-1], [*lines, lines[-1]], [*lines[:-1], lines[-2]], lines[:2]):
        refused = call(search.main, table(*other), "--lmbda", 1, 2, 4)
        assert_refused(refused, "a-candidates.tsv: needs one candidate of ours a picture and model")


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"codec\timage\n", b"x\ty\n1\t2\t3\n", b"%b\n"])
def test_what_no_comparison_kept(tmp_path: Path, text: bytes) -> None:
    columns = b"codec\timage\twidth\theight\tquality\tbytes\tmsssim\nours\ta\t1\t1\t0\tmany\t0.9"
    path = tmp_path / "a.tsv"
    path.write_bytes(text % columns if b"%b" in text else text)
    for module, peer in ((against, ["vvc"]), (search, [])):
        assert_refused(call(module.main, *peer, path), "a.tsv: not the candidates that eval.compare --keep leaves")


@pytest.mark.parametrize("text", [b"", b"a,b\n1,2\n", b"\xff\xfe,\n"])
def test_what_is_no_table_of_parts(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "parts.csv").write_bytes(text)
    with pytest.raises(UserError, match="not a table of this command"):
        parts.read_kept_rows(tmp_path / "parts.csv")


@pytest.mark.parametrize(
    "field", ["lr=fast", "speed=1", "soap.speed=1", "soap.interval=often", "seconds=1", "optimizer=sgd"]
)
def test_a_variant_that_is_none(field: str) -> None:
    stage = RECIPES["small"].stage("main")
    with pytest.raises(UserError, match=f"variant 'a:{field}'"):
        optimizer.parse_variant(f"a:{field}", 0.0, stage)


def test_a_variant_of_stage_and_optimizer() -> None:
    text = "a:lr=1e-3,batch=8,soap.beta1=0.9,soap.interval=7"
    stage, soap = optimizer.parse_variant(text, 0.5, RECIPES["small"].stage("main"))
    assert (stage.lr, stage.batch, stage.half) == (1e-3, 8, 0.5)
    assert soap == {"betas": (0.9, 0.95), "interval": 7}


def test_rows_of_other_settings_never_mix(tmp_path: Path) -> None:
    table = tmp_path / "new" / "rows.csv"
    same_settings(table, {"--steps": 10, "--data": [Path("typo")]})  # and the call failed
    same_settings(table, {"--steps": 10, "--data": [Path("a"), Path("b")]})
    table.write_text("a row")
    same_settings(table, {"--steps": 10, "--data": [Path("a"), Path("b")]})
    with pytest.raises(UserError, match=r"rows\.csv: was made with --data a b; use the same"):
        same_settings(table, {"--steps": 10, "--data": [Path("a")]})
    (tmp_path / "new" / "rows.csv.json").write_text("[]")
    with pytest.raises(UserError, match="not the settings of"):
        same_settings(table, {"--steps": 10})


@pytest.mark.parametrize(
    ("kind", "text"), [(count, "0"), (count, "-1"), (count, "1.5"), (positive, "0"), (positive, "nan")]
)
def test_numbers_that_are_none(kind: Callable[[str], float], text: str) -> None:
    assert (count("12"), positive("0.5")) == (12, 0.5)
    with pytest.raises(argparse.ArgumentTypeError, match=text):
        kind(text)


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
