"""The published figures: whole, sourced, and drawn for their own set alone."""

import hashlib

import numpy as np
import pandas as pd
import pytest

from eval.report import published
from metrics.clic import ms_ssim_db
from ratecontrol.allocation.table import picture_hash
from submission.files import list_images, read_image
from tests.conftest import ROOT, noise_picture

KODAK = ROOT.parent / "shared" / "data" / "kodak"


def test_every_figure_has_a_source_and_is_possible() -> None:
    table = pd.read_csv(published.TABLE, sep="\t")
    assert list(table.columns) == ["set", "codec", "bpp", "msssim", "psnr", "bytes", "source"]
    assert table[["set", "codec", "bpp", "msssim", "source"]].notna().all(axis=None)
    assert not table.duplicated(["set", "codec", "bpp"]).any()
    assert table["msssim"].between(0.8, 1, inclusive="neither").all()
    assert set(table["bpp"]) == {0.075, 0.15, 0.3}
    assert set(published.SETS.values()) <= set(table["set"])


def test_more_bytes_are_better_on_every_curve() -> None:
    for name in pd.read_csv(published.TABLE, sep="\t")["set"].unique():
        for curve in published.curves(name):
            rates, values = zip(*curve.points, strict=True)
            assert list(rates) == sorted(set(rates))
            assert list(values) == sorted(set(values))


def test_figures_as_read_in_their_sources() -> None:
    """Three that also stand in dB in the source's own table: the 2021 winner, VTM, and cheng2020 on 250 photos."""
    at = {
        (c.codec, rate): value
        for s in ("clic2021-test", "clic2020-professional-test")
        for c in published.curves(s)
        for rate, value in c.points
    }
    assert round(ms_ssim_db(at["IMCL_IMG_MSSSIM", 0.15]), 1) == 17.1
    assert round(ms_ssim_db(at["VTM_VVC", 0.3]), 2) == 16.98
    assert round(ms_ssim_db(at["cheng2020-anchor (MS-SSIM)", 0.15]), 1) == 17.1


def test_a_set_is_known_by_its_pixels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [noise_picture(8, 9), noise_picture(7, 5)]
    assert published.set_name(pictures) is None
    hashes = sorted(picture_hash(picture) for picture in pictures)
    monkeypatch.setattr(published, "SETS", {hashlib.sha256("\n".join(hashes).encode()).hexdigest(): "ours"})
    assert published.set_name(pictures) == published.set_name(pictures[::-1]) == "ours"
    assert published.set_name(pictures[:1]) is None
    assert published.curves("some other set") == []


@pytest.mark.skipif(not KODAK.is_dir(), reason="the Kodak photos are not beside this repository")
def test_kodak_is_recognised_only_whole_and_untouched() -> None:
    pictures = [read_image(path) for path in list_images([KODAK])]
    assert published.set_name(pictures[::-1]) == "kodak"
    assert published.set_name(pictures[1:]) is None
    changed = np.array(pictures[0])
    changed[0, 0, 0] ^= 1
    assert published.set_name([changed, *pictures[1:]]) is None
