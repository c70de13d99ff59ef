"""eval.report.page on made-up results: what is shown, how large, and which published curves."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval.rate_distortion import points
from eval.rate_distortion.curves import CurvePoint
from eval.report import page as report
from eval.report import published
from eval.score import PictureScore
from tests.conftest import noise_picture


def page_data(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def made_up(folder: Path) -> tuple[list[points.Point], dict[str, list[CurvePoint]]]:
    """Five pictures of noise in `folder`, the worse the later, with points and curves of ours and JPEG."""
    folder.mkdir()
    pictures = {f"<{i}>": noise_picture(60, 90, i) for i in range(5)}
    for stem, picture in pictures.items():
        Image.fromarray(picture).save(folder / f"{stem}.png")
    found, curves = [], {}
    for codec, less in (("ours", 0.0), ("jpeg", 0.1)):
        for bpp in ("0.15", "0.30"):
            scores = [
                PictureScore(stem, 90, 60, 1000 + i, 0.95 - i / 100 - less, 1e5) for i, stem in enumerate(pictures)
            ]
            point = points.Point(
                bpp, codec, 9000, 10, 5 * 5400, scores, lambda stem: pictures[stem] & np.uint8(0xF8), 1.0, 2.0
            )
            found.append(point)
        curves[codec] = [CurvePoint(rate, 0.9 + rate / 10 - less, 20 + rate) for rate in (0.1, 0.2, 0.3)]
    return found, curves


def test_report_shows_the_worst_and_shrinks_to_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many large pictures: the worst are shown, a part of each, and lossily when lossless would be too large."""
    found, curves = made_up(tmp_path / "photos")
    monkeypatch.setattr(report, "SHOWN_SIDE", 64)
    monkeypatch.setattr(report, "SHOWN_PICTURES", 2)
    report.write(tmp_path / "whole.html", tmp_path / "photos", found, curves)
    lossless = (tmp_path / "whole.html").read_text()
    embedded = sum(map(len, re.findall(r"data:image/webp[^\"]*", lossless)))
    monkeypatch.setattr(report, "BUDGET", embedded // 2)
    report.write(tmp_path / "small.html", tmp_path / "photos", found, curves)
    lossy = (tmp_path / "small.html").read_text()
    assert len(lossy) < len(lossless)
    assert "The 2 worst of 5 pictures" in lossless
    assert "embedded losslessly" in lossless
    assert "WebP of quality" in lossy
    data = page_data(lossless)
    assert list(data["shown"]) == ["<4>", "<3>"]
    assert data["shown"]["<4>"]["part"] == "64 × 60 of 90 × 60, where ours errs most"
    assert len(data["pictures"]) == 5
    assert "<4>" not in lossless.replace(json.dumps(data), "").split('id="data"')[0]


def test_the_worst_come_first_also_where_a_score_is_undefined() -> None:
    scores = zip("abcd", (0.9, np.nan, 0.5, 0.7), strict=True)
    ours = [PictureScore(name, 9, 9, 10, value, 1.0) for name, value in scores]
    assert report.worst_first([points.Point("0.15", "ours", 100, 10, 4 * 81, ours)]) == ["b", "c", "d", "a"]


def test_worst_part_is_where_the_error_is() -> None:
    original = np.zeros((200, 300, 3), np.uint8)
    decoded = original.copy()
    decoded[150:170, 40:60] = 9
    top, left = report.worst_part(original, decoded, 64)
    assert top <= 150 and top + 64 >= 170
    assert left <= 40 and left + 64 >= 60
    assert report.worst_part(original, original, 400) == (0, 0)


def test_published_curves_are_drawn_for_their_own_set_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, curves = made_up(tmp_path / "photos")
    report.write(tmp_path / "other.html", tmp_path / "photos", found, curves)
    assert "cheng2020" not in (tmp_path / "other.html").read_text()
    monkeypatch.setattr(published, "set_name", lambda pictures: list(pictures) and "kodak")
    report.write(tmp_path / "kodak.html", tmp_path / "photos", found, curves)
    page = (tmp_path / "kodak.html").read_text()
    assert page.count('class="curve published') == len(published.curves("kodak"))
    assert "CompressAI" in page
    assert "IMCL" not in page, "of another set"
