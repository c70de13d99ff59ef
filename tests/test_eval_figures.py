"""The figures of README and docs are those of the results and weights that are committed."""

import io
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from eval import figures
from eval.codecs import peer
from submission.ladder import Ladder
from tests.conftest import ROOT, noise_picture

IMAGES = ROOT / "docs" / "images"

SVG = "{http://www.w3.org/2000/svg}"

#: More than this and a page is slow on a phone.
MOST_BYTES = 400_000


@pytest.mark.parametrize("name", figures.SETS)
def test_curves_are_of_the_newest_results(name: str) -> None:
    stamp = figures.stamp_of_results(figures.newest(), name)
    for kind in ("", "-psnr"):
        figure = (IMAGES / f"{name}{kind}.svg").read_bytes()
        assert stamp.encode() in figure, "made from other results: python -m eval.figures -o docs/images"


def test_photos_are_by_the_weights_that_ship() -> None:
    stamp = figures.stamp_of_ladder(Ladder.load()).encode()
    for name in ("photo.jpg", "limits.jpg"):
        assert stamp in (IMAGES / name).read_bytes(), "made with other weights: python -m eval.figures"


def test_other_results_have_another_stamp(tmp_path: Path) -> None:
    results = Path(shutil.copytree(figures.newest(), tmp_path / "results"))
    before = figures.stamp_of_results(results, "kodak")
    path = results / "kodak-curves.tsv"
    path.write_text(path.read_text().replace("0.9", "0.8", 1))
    assert figures.stamp_of_results(results, "kodak") != before
    assert figures.stamp_of_results(results, "valid") == figures.stamp_of_results(figures.newest(), "valid")


def test_the_newest_release(tmp_path: Path) -> None:
    for name in ("0.9.0", "0.10.0", "notes"):
        (tmp_path / name).mkdir()
    assert figures.newest(tmp_path).name == "0.10.0"


@pytest.mark.parametrize("name", figures.SETS)
def test_a_chart_has_every_codec_of_the_results(name: str) -> None:
    """It is the committed one, again, a whole file for itself, with a point for each row."""
    results = figures.newest()
    chart = figures.curves(results, name, "msssim_db")
    assert chart == (IMAGES / f"{name}.svg").read_text()
    root = ElementTree.fromstring(chart)
    groups = [
        g for g in root.iter("{http://www.w3.org/2000/svg}g") if (g.get("class") or "").startswith("curve measured")
    ]
    drawn = {g.get("class", "").split()[-1]: len(g.findall("{http://www.w3.org/2000/svg}circle")) for g in groups}
    table = pd.read_csv(results / f"{name}-curves.tsv", sep="\t")
    expected = table.groupby("codec").size().to_dict()
    assert {codec: drawn[str(codec)] for codec in expected} == expected
    assert ("curve published" in chart) == (name == "kodak")
    assert not re.search(r"(href|src|url)\s*=\s*[\"']http", chart)


@pytest.mark.parametrize(
    ("row", "file", "column"),
    [
        ("Kodak, MS-SSIM", "kodak", "at_msssim"),
        ("Kodak, MS-SSIM, refined", "kodak-refined", "at_msssim"),
        ("valid, MS-SSIM", "valid", "at_msssim"),
        ("Kodak, PSNR", "kodak", "at_psnr"),
        ("valid, PSNR", "valid", "at_psnr"),
    ],
)
def test_the_table_of_the_readme(row: str, file: str, column: str) -> None:
    """Its BD-rates are those of the newest results."""
    lines = [line.strip("| ").split(" | ") for line in (ROOT / "README.md").read_text().splitlines()]
    peers = next(cells[1:] for cells in lines if cells[0] == "against")
    said = next(cells[1:] for cells in lines if cells[0] == row)
    found = pd.read_csv(figures.newest() / f"{file}-bd-rates.tsv", sep="\t", index_col="anchor")[column]
    assert said == [f"{100 * found[peer]:+.1f} %".replace("-", "−") for peer in peers]


def test_they_are_light_and_the_pages_show_them() -> None:
    shown = {path.name for path in IMAGES.iterdir()}
    assert sum(path.stat().st_size for path in IMAGES.iterdir()) < MOST_BYTES
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert shown == {found for page in pages for found in re.findall(r"images/([\w.-]+)", page.read_text())}


def test_a_peer_gets_at_least_our_bytes() -> None:
    jpeg = next(codec for codec in peer.PEERS if codec.name == "jpeg")
    picture = noise_picture(64, 64)
    found = figures.least_from(jpeg, picture, 1000)
    assert found is not None and found[0] >= 1000 and found[1].shape == picture.shape
    assert figures.least_from(jpeg, picture, 10**6) is None


def test_the_stamp_of_a_photo(ladder_folder: Path) -> None:
    ladder = Ladder.load(ladder_folder)
    sheet = figures.grid([("one", noise_picture(30, 40)), ("two", noise_picture(30, 40))], 2)
    data = figures.jpeg(sheet, figures.stamp_of_ladder(ladder))
    assert f"ladder {ladder.id}".encode() in data
    assert Image.open(io.BytesIO(data)).size == sheet.size
