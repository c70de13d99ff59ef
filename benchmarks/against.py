"""How far each model is from a peer, picture by picture: dB of MS-SSIM in as many bytes, from kept candidates.

Between a peer's candidates the dB are interpolated over the logarithm of the bytes; where a file of ours is smaller
than its smallest or larger than its largest, the picture does not count. Also those pictures that a model codes in the
fewest bits a pixel, and those in the most.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from eval.codecs.kept import read_kept
from eval.rate_distortion.points import OURS
from eval.score import aligned
from metrics.clic import ms_ssim_db
from submission.console import run
from submission.errors import UserError

#: Pictures of fewest and of most bits that are shown.
SHOWN = 6


def gains(path: Path, peer: str) -> pd.DataFrame:
    """One row a picture and model of ours: image, quality, bpp, gain (dB; NaN where there is nothing to compare)."""
    table = read_kept(path)
    table["db"] = [ms_ssim_db(value) for value in table["msssim"]]
    curves = {image: rows.sort_values("bytes") for image, rows in table[table["codec"] == peer].groupby("image")}
    if not curves:
        raise UserError(f"{path}: has no codec {peer}")
    ours = table[table["codec"] == OURS]
    found = []
    for row in ours.to_dict("records"):
        if (curve := curves.get(row["image"])) is None:
            raise UserError(f"{path}: has no {row['image']} of {peer}")
        there = np.interp(np.log(row["bytes"]), np.log(curve["bytes"]), curve["db"], left=np.nan, right=np.nan)
        bpp = 8 * row["bytes"] / (row["width"] * row["height"])
        found.append({"image": row["image"], "quality": row["quality"], "bpp": bpp, "gain": row["db"] - there})
    return pd.DataFrame(found)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.against",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.against vvc eval/results/0.2.0/kodak-candidates.tsv",
    )
    parser.add_argument("peer", metavar="PEER", help="a codec of the tables, such as vvc")
    parser.add_argument("tables", type=Path, nargs="+", metavar="TABLE", help="candidates that eval.compare kept")
    options = parser.parse_args()
    lines = [["table", "model", "mean dB", "pictures", f"dB of the {SHOWN} with fewest bits", "and with most"]]
    for path in options.tables:
        for quality, rows in gains(path, options.peer).groupby("quality"):
            shown = [f"{gain:+.2f}" for gain in rows.sort_values("bpp")["gain"]]
            count = f"{rows['gain'].notna().sum()} of {len(rows)}"
            ends = [" ".join(shown[:SHOWN]), " ".join(shown[-SHOWN:])]
            lines.append([path.name, f"q{quality}", f"{rows['gain'].mean():+.2f}", count, *ends])
    print(aligned(lines))
    return 0


if __name__ == "__main__":
    run(main)
