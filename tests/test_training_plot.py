"""What `training.plot` reads from a run, and the slope that it draws on."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from submission.errors import UserError
from training.loop.log import FIELDS
from training.plot import power, read_curves


def write_stage(folder: Path, stage: str, lmbda: float, metric: str, lines: list[dict[str, float]]) -> None:
    folder.mkdir(exist_ok=True)
    rows = [",".join(str(line.get(name, "")) for name in FIELDS) for line in lines]
    (folder / f"{stage}.csv").write_text("\n".join([",".join(FIELDS), *rows]) + "\n")
    (folder / f"{stage}.json").write_text(json.dumps({"lmbda": lmbda, "stage": {"metric": metric}}))


def test_costs_count_the_hours_of_all_stages(tmp_path: Path) -> None:
    line = {"step": 10, "seconds": 3600, "val_bpp": 0.2, "val_msssim": 0.95, "val_psnr": 30.0}
    write_stage(tmp_path / "lambda_4", "main", 4.0, "ms-ssim", [{"step": 5, "seconds": 1800}, line])
    write_stage(tmp_path / "lambda_4", "hard", 4.0, "ms-ssim", [{**line, "val_bpp": 0.1}])
    (curve,) = read_curves(tmp_path)
    assert curve.name == "4" and curve.stages == {"main": 0, "hard": 10}
    assert np.allclose(curve.costs(), [(1.0, 0.4), (2.0, 0.3)])
    assert [row["step"] for row in curve.rows] == [5, 10, 20]


def test_costs_of_the_squared_error_and_of_a_trunk(tmp_path: Path) -> None:
    line = {"step": 10, "seconds": 7200, "val_bpp": 0.2, "val_msssim": 0.9, "val_psnr": 20 * math.log10(255)}
    write_stage(tmp_path / "a", "main", 0.01, "mse", [line])
    write_stage(tmp_path / "b", "trunk", 8.0, "ms-ssim", [line])
    squared, trunk = read_curves(tmp_path)
    assert np.allclose(squared.costs(), [(2.0, 0.21)])
    assert trunk.name == "trunk" and np.allclose(trunk.costs(), [(2.0, 1.0)])


def test_power_finds_the_exponent() -> None:
    assert power([(x, 3 * x**-0.2) for x in (1.0, 2.0, 5.0, 7.0)]) == pytest.approx(-0.2)
    assert power([(1.0, 2.0), (2.0, 1.0)]) == 0


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    write_stage(tmp_path, "main", 4.0, "ms-ssim", [{"step": 5, "seconds": 1800}])
    (tmp_path / "main.json").write_text("[1]")
    with pytest.raises(UserError, match="not the record of a stage"):
        read_curves(tmp_path)


def test_a_damaged_log_is_named(tmp_path: Path) -> None:
    write_stage(tmp_path, "main", 4.0, "ms-ssim", [{"step": 5, "seconds": 1800}])
    for text in ("step,seconds\n5,7\n", ",".join(FIELDS) + "\nmany\n"):
        (tmp_path / "main.csv").write_text(text)
        with pytest.raises(UserError, match=r"main\.csv: not the log of a stage"):
            read_curves(tmp_path)
