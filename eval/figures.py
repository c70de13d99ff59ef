"""The pictures of README and docs: curves from the kept results, and photos at equal bytes.

Curves come from the newest folder of eval/results, the photos from the ladder and the peers that are installed; those
that are not are named and left out. Each file carries a stamp of what it was made from, which a test compares with what
is there now.
"""

import argparse
import hashlib
import importlib.util
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from eval.codecs.peer import PEERS, Peer
from eval.compare import RELEASES
from eval.rate_distortion.points import OURS
from eval.report import charts, published
from metrics.clic import ms_ssim, ms_ssim_db
from ratecontrol.allocation.budget import RATES
from submission import console
from submission.errors import UserError
from submission.files import Picture, make_folder, read_image, write_bytes
from submission.ladder import DEFAULT_WEIGHTS, Ladder
from submission.target import Target, compress_under

STYLE = Path(charts.__file__).parent / "style.css"

#: The sets with their names, and the results of ours beside the plain ones.
SETS = {"kodak": "Kodak", "valid": "CLIC 2025 validation, 23 photos"}
REFINED = "refined"

#: Photos in the scikit-image wheel: a cat, CC0 by Stefan van der Walt; and Eileen Collins, public domain, by NASA.
CAT, FACE = "chelsea.png", "astronaut.png"

#: Peers beside ours in the picture, and its rate.
BESIDE, PHOTO_RATE = ("avif", "vvc"), "0.15"

#: Left, top, right and bottom of the face, and the rate at which it is shown.
FACE_BOX, FACE_RATE = (130, 10, 350, 230), "0.075"

#: JPEG of the figures themselves: what it adds is far below what the codecs lose.
JPEG = {"quality": 90, "subsampling": "4:4:4", "optimize": True, "progressive": True}


def newest(results: Path = RELEASES) -> Path:
    """The results of the latest release."""
    found = [folder for folder in results.iterdir() if re.fullmatch(r"\d+(\.\d+)*", folder.name)]
    return max(found, key=lambda folder: tuple(map(int, folder.name.split("."))))


def stamp_of_results(results: Path, name: str) -> str:
    """A hash over the curves of a set and all that is published."""
    files = [*sorted(results.glob(f"{name}*-curves.tsv")), published.TABLE]
    return f"results {hashlib.sha256(b''.join(file.read_bytes() for file in files)).hexdigest()}"


def stamp_of_ladder(ladder: Ladder) -> str:
    return f"ladder {ladder.id}"


def colours() -> dict[str, str]:
    """The report's colours on a light page, by name."""
    return dict(re.findall(r"--(\w+): light-dark\((#[0-9a-f]+),", STYLE.read_text("utf-8")))


def curves(results: Path, name: str, quality: str) -> str:
    """One chart as a file of its own: `quality` ("msssim_db" or "psnr") over the rate, of every codec on a set."""
    lines = []
    for file in sorted(results.glob(f"{name}*-curves.tsv")):
        table = pd.read_csv(file, sep="\t")
        refined = file.name == f"{name}-{REFINED}-curves.tsv"
        for codec, rows in table.groupby("codec", sort=False):
            if not refined or codec == OURS:
                called = REFINED if refined else str(codec)
                points = list(zip(rows["bpp"].astype(float), rows[quality].astype(float), strict=True))
                lines.append(charts.Line(called, called, points, called))
    grey = [
        charts.Line(curve.codec, "", [(rate, ms_ssim_db(m)) for rate, m in curve.points], curve.codec)
        for curve in (published.curves(name) if quality == "msssim_db" else [])
    ]
    title = f"{SETS[name]}: {'MS-SSIM' if quality == 'msssim_db' else 'PSNR'}, dB"
    return standalone(charts.rate_distortion(title, RATES, lines, grey), stamp_of_results(results, name))


def standalone(chart: str, stamp: str) -> str:
    """A chart of the report, whose page would style it, as a whole SVG file."""
    hues = colours()
    own = {OURS: hues[OURS], REFINED: hues[OURS], **{p.name: hues[p.name] for p in PEERS}}
    rules = [
        "text{font:12px system-ui,sans-serif;fill:#646a74}.title{font-weight:600;font-size:13px;fill:#1a1c20}",
        ".grid{stroke:#e4e4e1}.mark{stroke-dasharray:3 4}polyline{fill:none;stroke-width:1.8;stroke-linejoin:round}",
        ".label{font-weight:600}.label.ours{font-size:14px}.ours polyline{stroke-width:3}",
        f".{REFINED} polyline{{stroke-dasharray:6 3}}.published polyline{{stroke:{hues['faint']};stroke-width:1.2}}",
        f".published circle{{fill:{hues['faint']}}}",
    ]
    rules += [f".{n} polyline{{stroke:{h}}}.{n} circle,.label.{n}{{fill:{h}}}" for n, h in own.items()]
    head, rest = chart.split(">", 1)
    head = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    return f"{head}><metadata>{stamp}</metadata><style>{''.join(rules)}</style>{background}{rest}\n"


def photo(name: str) -> Picture:
    """A photo that comes with scikit-image; UserError if it does not."""
    package = importlib.util.find_spec("skimage")
    path = Path(package.origin).parent / "data" / name if package and package.origin else Path(name)
    if not path.is_file():
        raise UserError(f"{name}: comes with scikit-image, which is not installed: pip install scikit-image")
    return read_image(path)


def least_from(peer: Peer, picture: Picture, size: int) -> tuple[int, Picture] | None:
    """The smallest file of a peer of at least `size` bytes, and what it shows; every whole quality is tried."""
    for quality in range(min(peer.qualities), max(peer.qualities) + 1):
        data = peer.compress(picture, quality)
        if len(data) >= size:
            return len(data), peer.decompress(data)
    return None


def side_by_side(ladder: Ladder) -> Image.Image:
    """The cat, and what codecs make of it in equal bytes: a peer has as many as ours, or the next more it can have."""
    original = photo(CAT)
    height, width, _ = original.shape
    _, stream = compress_under(ladder, original, Target(bpp=PHOTO_RATE))
    panels = [(f"original, {3 * height * width:,} bytes of pixels", original)]
    decoded = ladder.decompress(stream)
    panels.append((said(OURS, len(stream), original, decoded), decoded))
    for peer in PEERS:
        if peer.name in BESIDE and peer.version() is None:
            print(f"{peer.name} is left out; it needs {peer.needs}", file=sys.stderr)
        elif peer.name in BESIDE and (found := least_from(peer, original, len(stream))):
            panels.append((said(peer.name, found[0], original, found[1]), found[1]))
    return grid(panels, 2)


def limits(ladder: Ladder) -> Image.Image:
    """What the weights are not for: a face at the lowest rate, and small text."""
    panels = []
    left, top, right, bottom = FACE_BOX
    for name, picture in (("a face", photo(FACE)), ("small text", text_page())):
        _, stream = compress_under(ladder, picture, Target(bpp=FACE_RATE if name == "a face" else "0.30"))
        decoded = ladder.decompress(stream)
        rate = 8 * len(stream) / picture[:, :, 0].size
        panels += [(name, picture[top:bottom, left:right]), (f"ours, {rate:.3f} bpp", decoded[top:bottom, left:right])]
    return grid(panels, 2)


def text_page() -> Picture:
    """A page of 512 x 512 with lines of small text, drawn here."""
    page = Image.new("RGB", (512, 512), (250, 250, 246))
    pen = ImageDraw.Draw(page)
    line = "Rates are bits for each true pixel of a picture, and every byte of the file counts: header, checks, all."
    for k in range(40):
        pen.text((12 - 37 * (k % 3), 8 + 12.5 * k), line, (20, 20, 30), ImageFont.load_default(9 + k % 4))
    return np.array(page)


def said(name: str, size: int, original: Picture, decoded: Picture) -> str:
    return f"{name}, {size:,} bytes, MS-SSIM {ms_ssim_db(ms_ssim(original, decoded)):.2f} dB"


def grid(panels: Sequence[tuple[str, Picture]], columns: int) -> Image.Image:
    """Panels of one size, each above its text."""
    height, width, _ = panels[0][1].shape
    room, gap = 22, 6
    rows = -(-len(panels) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + room)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for k, (text, picture) in enumerate(panels):
        x, y = k % columns * (width + gap), k // columns * (height + room)
        sheet.paste(Image.fromarray(picture), (x, y))
        pen.text((x + 2, y + height + 3), text, (40, 42, 48), font)
    return sheet


def jpeg(sheet: Image.Image, stamp: str) -> bytes:
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", comment=stamp, **JPEG)
    return buffer.getvalue()


def figures(results: Path, weights: Path) -> dict[str, bytes]:
    """Every figure, by the name of its file."""
    ladder = Ladder.load(weights)
    made = {f"{name}.svg": curves(results, name, "msssim_db").encode() for name in SETS}
    made |= {f"{name}-psnr.svg": curves(results, name, "psnr").encode() for name in SETS}
    for name, draw in console.progress({"photo.jpg": side_by_side, "limits.jpg": limits}.items(), "drawing", 2):
        made[name] = jpeg(draw(ladder), stamp_of_ladder(ladder))
    return made


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.figures",
        description=__doc__,
        epilog="example: python -m eval.figures -o images",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="docs/images is where they live"
    )
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, metavar="DIR", help="ladder (default: ours)")
    options = parser.parse_args()
    made = figures(newest(), options.weights)
    folder = make_folder(options.output)
    for name, data in made.items():
        write_bytes(folder / name, data)
        print(f"{folder / name}: {len(data):,} bytes")
    return 0


if __name__ == "__main__":
    console.run(main)
