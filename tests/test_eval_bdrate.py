"""BD-rate against published numbers and by its laws; curves of whole sets against the allocator's choices."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.rate_distortion.bdrate import RatePoint, bd_rate
from eval.rate_distortion.curves import CurvePoint, bd_rates, curve

#: Rate and PSNR of anchor and test, and the BD-rate: two worked examples of the JCT-VC workbook (JCTVC-E137, later
#: L1100), as Netflix published them with their own implementation (vmaf, python/test/bd_rate_calculator_test.py).
PUBLISHED = [
    (
        [(108048.8736, 43.6471), (61279.976, 40.3953), (33905.6656, 37.247), (18883.6928, 34.2911)],
        [(108061.2784, 43.6768), (61299.9936, 40.4232), (33928.7472, 37.2761), (18910.912, 34.3147)],
        -0.00465215420752807,
    ),
    (
        [(40433.8848, 37.5761), (7622.7456, 35.3756), (2394.488, 33.8977), (1017.6184, 32.0603)],
        [(40370.12, 37.5982), (7587.0024, 35.4025), (2390.0944, 33.9194), (1017.0984, 32.0822)],
        -0.018779823450567612,
    ),
]


@pytest.mark.parametrize("anchor, test, expected", PUBLISHED)
def test_published_worked_examples(anchor: list[RatePoint], test: list[RatePoint], expected: float) -> None:
    assert bd_rate(anchor, test) == pytest.approx(expected, abs=1e-6)


steps = st.lists(st.tuples(st.floats(0.05, 2), st.floats(0.05, 3)), min_size=2, max_size=8)


def rising(found: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A curve whose rate and quality increase from step to step."""
    rate, quality = np.cumsum(found, axis=0).T
    return list(zip(np.exp(rate).tolist(), quality.tolist(), strict=True))


@given(steps=steps, factor=st.floats(0.2, 5))
def test_a_codec_that_always_needs_so_much_more(steps: list[RatePoint], factor: float) -> None:
    anchor = rising(steps)
    assert bd_rate(anchor, anchor) == pytest.approx(0, abs=1e-12)
    assert bd_rate(anchor, [(rate * factor, quality) for rate, quality in anchor]) == pytest.approx(factor - 1)


@given(a=steps, b=steps)
def test_the_other_way_round_is_the_inverse(a: list[RatePoint], b: list[RatePoint]) -> None:
    there, back = bd_rate(rising(a), rising(b)), bd_rate(rising(b), rising(a))
    assert math.isnan(there) == math.isnan(back)
    if not math.isnan(there):
        assert (1 + there) * (1 + back) == pytest.approx(1, rel=1e-6)


def test_where_there_is_no_answer() -> None:
    curve = [(1.0, 30.0), (2.0, 33.0)]
    for other in (
        [],
        [(1.0, 30.0)],
        [(1.0, 40.0), (2.0, 43.0)],
        [(1.0, 33.0), (2.0, 30.0)],
        [(1.0, 30.0), (2.0, math.inf)],
    ):
        assert math.isnan(bd_rate(curve, other))
        assert math.isnan(bd_rate(other, curve))


def test_curves_are_the_allocations_under_each_cap(tmp_path: Path) -> None:
    """Two pictures of 100 x 80 whose candidates just fit, so that the best choice at each rate is known."""
    rows = [
        {
            "image": image,
            "width": 100,
            "height": 80,
            "candidate": f"q{i}",
            "quality": i,
            "bytes": size,
            "msssim": msssim,
            "sse": 24_000 * error,
        }
        for image in ("a.png", "b.png")
        for i, (size, msssim, error) in enumerate([(100, 0.90, 100), (300, 0.96, 30), (500, 0.98, 10)])
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    found = curve(tmp_path / "table.csv")
    expected = {200: (0.90, 100), 400: (0.93, 65), 600: (0.96, 30), 800: (0.97, 20), 1000: (0.98, 10)}
    assert found
    for point in found:
        size = round(point.bpp * 16_000 / 8)
        msssim, error = expected[size]
        assert point.msssim == pytest.approx(msssim)
        assert point.psnr == pytest.approx(10 * math.log10(255**2 / error))
    assert [round(p.bpp * 2000) for p in found] == [200, 200, 200, 400, 400, 600, 800, 1000]  # 0.1 to 0.5 bpp


def test_bd_rates_name_each_anchor() -> None:
    ours = [CurvePoint(0.1, 0.9, 25), CurvePoint(0.2, 0.95, 28)]
    peer = [CurvePoint(0.2, 0.9, 25), CurvePoint(0.4, 0.95, 28)]
    (found,) = bd_rates({"ours": ours, "peer": peer}, "ours")
    assert found.anchor == "peer"
    assert (found.at_msssim, found.at_psnr) == pytest.approx((-0.5, -0.5))
    assert bd_rates({"peer": peer}, "ours") == []
