"""How much `ratecontrol.measure --bpp` asks for and what the choice loses, on whole tables that were kept.

Candidates are looked up instead of encoded. Loss is in MS-SSIM of the set, against the best choice of the whole table.
Two variants show what is to be had: predictions that start from the pictures' own mean and covariance, which no search
can have, and predictions trusted half as much.
"""

import argparse
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np

from eval.codecs.kept import NUMBERS, read_kept
from eval.rate_distortion.points import OURS
from eval.score import aligned
from ratecontrol.allocation.budget import RATES, byte_cap, parse_bpp
from ratecontrol.allocation.knapsack import allocate
from ratecontrol.allocation.table import numbers, read_table
from ratecontrol.candidates import predict, search
from ratecontrol.candidates.predict import Flags, Floats, Kind, Prior
from ratecontrol.candidates.search import Rows
from submission.console import run
from submission.errors import UserError
from submission.ladder import DEFAULT_WEIGHTS, Ladder

VARIANTS = ("as it is", "own covariance known", "trusted half as much")


def rows_of(path: Path) -> tuple[Rows, list[int]]:
    """Our candidates in kept results (.tsv) or in a table that `ratecontrol.measure` wrote (.csv), and the models.

    UserError unless each picture has each model once."""
    if path.suffix == ".csv":
        table = read_table(path, ["image", *NUMBERS])
        table = table.assign(**{name: numbers(path, table, name, 0, np.inf) for name in NUMBERS})
    else:
        table = read_kept(path)
        table = table[table["codec"] == OURS]
    cells = table["image"].nunique() * table["quality"].nunique()
    if not len(table) == len(table.drop_duplicates(["image", "quality"])) == cells or not cells:
        raise UserError(f"{path}: needs one candidate of ours a picture and model: no gaps, none refined")
    size, msssim = (table.pivot(index="image", columns="quality", values=of) for of in ("bytes", "msssim"))
    first = table.drop_duplicates("image").sort_values("image")
    pixels = (first["width"] * first["height"]).to_numpy()
    return Rows(pixels, size.to_numpy(float), msssim.to_numpy(float)), [int(quality) for quality in size.columns]


def looked_up(rows: Rows, kinds: list[Kind], caps: list[int]) -> Flags:
    """What a search asks for."""
    asked = np.zeros(rows.size.shape, bool)

    def measure(marked: Flags) -> tuple[Floats, Floats]:
        asked[marked] = True
        return rows.size[marked], rows.msssim[marked]

    search.search(kinds, rows.pixels, caps, measure)
    return asked


def knowing(rows: Rows, usual: Prior) -> Prior:
    """The prior that the pictures themselves give, with a little of the usual one so that it can be inverted."""
    values = np.concatenate(search.logarithms(rows), 1)
    covariance = 0.9 * np.cov(values.T) + 0.1 * usual.covariance
    return Prior(values.mean(0), covariance / len(values), covariance)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.search eval/results/0.2.0/kodak-candidates.tsv",
    )
    parser.add_argument(
        "tables", type=Path, nargs="+", metavar="TABLE", help="what eval.compare kept, or whole .csv tables of measure"
    )
    parser.add_argument(
        "--lmbda", type=float, nargs="+", help="of the models (default: those of the ladder that ships)"
    )
    options = parser.parse_args()
    lambdas = options.lmbda or [float(model["lmbda"]) for model in Ladder.load(DEFAULT_WEIGHTS).models]
    lines = [["table", "rates", "variant", "asked for", "", "in a best choice", "loss at each rate"]]
    for path in options.tables:
        rows, models = rows_of(path)
        if models[-1] >= len(lambdas):
            raise UserError(f"{path}: has model {models[-1]}; give the --lmbda of all models")
        kinds = [Kind(quality, lambdas[quality]) for quality in models]
        every = np.ones(rows.size.shape, bool)
        caps = {rate: byte_cap(parse_bpp(rate), int(rows.pixels.sum())) for rate in RATES}
        for rate, cap in caps.items():
            if rows.size.min(1).sum() > cap:
                raise UserError(f"{path}: nothing fits {rate} bpp")
        whole = {rate: allocate(rows.of(every), cap) for rate, cap in caps.items()}
        for rates in (list(RATES), *([rate] for rate in RATES)):
            chosen = {int(index) for rate in rates for index in whole[rate].chosen}
            for variant in VARIANTS:
                with ExitStack() as stack:
                    if variant == VARIANTS[1]:
                        known = knowing(rows, Prior.of(kinds))
                        stack.enter_context(mock.patch.object(Prior, "of", lambda _, known=known: known))
                        stack.enter_context(mock.patch.object(predict, "PRIOR_PICTURES", 100))
                    elif variant == VARIANTS[2]:
                        gain = search.expected_gain
                        stack.enter_context(
                            mock.patch.object(search, "expected_gain", lambda lead, off, gain=gain: gain(lead, 2 * off))
                        )
                    asked = looked_up(rows, kinds, [caps[rate] for rate in rates])
                loss = [f"{whole[r].value - allocate(rows.of(asked), caps[r]).value:.0e}" for r in rates]
                share = [f"{asked.sum()} of {asked.size}", f"{asked.mean():.1%}", f"{len(chosen) / asked.size:.1%}"]
                lines.append([path.name, " ".join(rates), variant, *share, " ".join(loss)])
    print(aligned(lines))
    return 0


if __name__ == "__main__":
    run(main)
