"""One HTML file that shows a comparison: curves, bytes, numbers of every picture, and the worst under a slider.

The file needs nothing beside it and no network: pictures, styles and script are inside. Its parts lie beside this one.
"""

import base64
import functools
import html
import io
import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from eval.codecs.peer import PEERS
from eval.rate_distortion.curves import Curves, bd_rates
from eval.rate_distortion.points import OURS, Point
from eval.report import charts, environment, published
from eval.score import PictureScore
from metrics.clic import ms_ssim_db
from submission import console
from submission.cores import given_cores
from submission.files import Picture, list_images, read_image, write_bytes

PAGE = Path(__file__).parent

#: Bytes of embedded pictures, as base64 text. Larger pages open slowly.
BUDGET = 24_000_000

#: At most so many pictures are shown, the worst of ours, and of each at most a square of this side.
SHOWN_PICTURES = 12
SHOWN_SIDE = 512

#: How pictures are embedded, in words and for Pillow: the first that fits the budget, else the last.
EMBEDDINGS: tuple[tuple[str, dict[str, int | bool]], ...] = (
    ("losslessly", {"lossless": True, "quality": 50, "method": 3}),
    ("as WebP of quality 95 (lossless would make the page too large)", {"quality": 95, "method": 3}),
    ("as WebP of quality 80 (more would make the page too large)", {"quality": 80, "method": 3}),
)

Views = dict[str, Image.Image]  #: what is shown of one picture: "original", and "rate/codec" for each point


def write(path: Path, originals: Path, points: Sequence[Point], curves: Curves, commands: Sequence[str] = ()) -> None:
    """Write the report of `points` and `curves`, measured on the folder `originals` with `commands`, to `path`."""
    pictures = {picture.stem: picture for picture in list_images([originals])}
    shown = worst_first(points)[:SHOWN_PICTURES] or list(pictures)[:SHOWN_PICTURES]
    views = {stem: _views(pictures[stem], points) for stem in console.progress(shown, "decoding the worst")}
    how, sources = _embed({stem: view for stem, (view, _) in views.items()})
    data = {
        "rates": list(dict.fromkeys(point.bpp for point in points)),
        "codecs": list(dict.fromkeys(point.codec for point in points)),
        "pictures": [_numbers(stem, path.name, points) for stem, path in pictures.items()],
        "shown": {stem: {"sources": sources[stem], "part": views[stem][1]} for stem in shown},
    }
    stored = (read_image(path, as_stored=True) for path in console.progress(pictures.values(), "recognising the set"))
    set_name = published.set_name(stored)
    parts = {
        "LEAD": f"{_count(len(pictures), 'picture')} · {points[0].pixels:,} pixels · one byte cap for the whole set",
        "TILES": _tiles(points),
        "CHARTS": _charts(points, curves, set_name),
        "BYTES": charts.bytes_used(points),
        "SCORES": "\n".join(_score_rows(points)),
        "BD_RATES": _bd_rates(curves),
        "PUBLISHED": _published(set_name),
        "NOTE": _note(len(shown), len(pictures), how),
        "ENVIRONMENT": _environment(points, commands),
        "STYLE": (PAGE / "style.css").read_text("utf-8"),
        "SCRIPT": (PAGE / "script.js").read_text("utf-8"),
        "DATA": json.dumps(data).replace("</", "<\\/"),
    }
    page = (PAGE / "page.html").read_text("utf-8")
    for name, text in parts.items():
        page = page.replace(f"@@{name}@@", text)
    write_bytes(path, page.encode())


def worst_first(points: Sequence[Point]) -> list[str]:
    """The stems of all pictures, those of lowest MS-SSIM in ours first, at the middle of the rates that it reaches."""
    ours = [point for point in points if point.codec == OURS and point.pictures]
    if not ours:
        ours = [point for point in points if point.pictures]
    if not ours:
        return []
    middle = ours[len(ours) // 2].pictures
    return [score.image for score in sorted(middle, key=lambda score: (np.nan_to_num(score.msssim), score.image))]


def _views(path: Path, points: Sequence[Point]) -> tuple[Views, str]:
    """The same part of the original and of what each codec made of it at each rate, and which part that is."""
    original = read_image(path, as_stored=True)
    decoded = {f"{p.bpp}/{p.codec}": p.read(path.stem) for p in points if p.read is not None}
    ours = next((picture for name, picture in decoded.items() if name.endswith(f"/{OURS}")), original)
    top, left = worst_part(original, ours, SHOWN_SIDE)
    part = np.s_[top : top + SHOWN_SIDE, left : left + SHOWN_SIDE]
    views = {name: Image.fromarray(picture[part]) for name, picture in {"original": original, **decoded}.items()}
    height, width, _ = original[part].shape
    whole = f"{original.shape[1]} × {original.shape[0]}"
    if (height, width) == original.shape[:2]:
        return views, whole
    return views, f"{width} × {height} of {whole}, where ours errs most"


def worst_part(original: Picture, decoded: Picture, side: int) -> tuple[int, int]:
    """Top and left of the square of `side` with the largest squared error, in steps of 16; all of it if it fits."""
    error = np.square(original.astype(np.float64) - decoded).sum(axis=2)
    sums = np.pad(error.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    height, width = error.shape
    best = (-1.0, 0, 0)
    for top in range(0, max(height - side, 0) + 1, 16):
        for left in range(0, max(width - side, 0) + 1, 16):
            bottom, right = min(top + side, height), min(left + side, width)
            inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
            best = max(best, (float(inside), top, left))
    return best[1:]


def _embed(views: dict[str, Views]) -> tuple[str, dict[str, dict[str, str]]]:
    """All views as data URLs in the best of EMBEDDINGS that fits the budget, and that embedding in words."""
    flat = [(stem, name, view) for stem, named in views.items() for name, view in named.items()]
    with ThreadPoolExecutor(given_cores()) as pool:  # Pillow encodes outside Python's lock
        for embedding in EMBEDDINGS:
            encode = functools.partial(_data_url, options=embedding[1])
            encoded = list(pool.map(encode, (view for _, _, view in flat)))
            if sum(map(len, encoded)) <= BUDGET:
                break
    sources: dict[str, dict[str, str]] = {stem: {} for stem in views}
    for (stem, name, _), url in zip(flat, encoded, strict=True):
        sources[stem][name] = url
    return embedding[0], sources


def _data_url(view: Image.Image, options: dict[str, int | bool]) -> str:
    buffer = io.BytesIO()
    view.save(buffer, format="webp", **options)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _numbers(stem: str, name: str, points: Sequence[Point]) -> dict[str, object]:
    """One picture's numbers at every point, for the table that can be sorted."""
    scores = {f"{p.bpp}/{p.codec}": s for p in points for s in p.pictures if s.image == stem}
    first = next(iter(scores.values()), None)
    return {
        "stem": stem,
        "name": name,
        "size": f"{first.width} × {first.height}" if first else "",
        "numbers": {key: _score(score) for key, score in scores.items()},
    }


def _score(score: PictureScore) -> dict[str, float | None]:
    """Numbers that JSON can hold: None where one is infinite or undefined."""
    size = score.bytes or 0
    numbers = {"msssim": score.msssim, "db": ms_ssim_db(score.msssim), "psnr": score.psnr}
    numbers |= {"bytes": size, "bpp": 8 * size / score.pixels}
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def _tiles(points: Sequence[Point]) -> str:
    """What stands first: at each rate the dB of ours, and how far the best peer is."""
    tiles = []
    for rate in dict.fromkeys(point.bpp for point in points):
        reached = {p.codec: ms_ssim_db(p.total.msssim) for p in points if p.bpp == rate and p.pictures}
        peers = {codec: decibels for codec, decibels in reached.items() if codec != OURS}
        best = max(peers, key=lambda codec: peers[codec], default=None)
        if OURS not in reached:
            value, said, ahead = "–", "ours does not reach this rate", False
        elif best is None:
            value, said, ahead = f"{reached[OURS]:.2f} dB", "no peer reaches this rate", True
        else:
            difference = reached[OURS] - peers[best]
            ahead = difference >= 0
            said = f"{abs(difference):.2f} dB {'ahead of' if ahead else 'behind'} {best}, the best peer"
            value = f"{reached[OURS]:.2f} dB"
        small = f"<small>{html.escape(said)}</small>"
        style = "tile" if ahead else "tile behind"
        tiles.append(f'<div class="{style}"><span>{html.escape(rate)} bpp</span><b>{value}</b>{small}</div>')
    return "".join(tiles)


def _charts(points: Sequence[Point], curves: Curves, set_name: str | None) -> str:
    """Both charts; the published curves stand in the one of their quality, and only where the set is theirs."""
    marks = list(dict.fromkeys(point.bpp for point in points))

    def lines(quality: str) -> list[charts.Line]:
        found = []
        for codec, curve in curves.items():
            text = "\n".join([codec, *(f"{p.bpp:.3f} bpp: {getattr(p, quality):.2f} dB" for p in curve)])
            found.append(charts.Line(codec, codec, [(p.bpp, getattr(p, quality)) for p in curve], text))
        return found

    grey = [
        charts.Line(c.codec, "", [(rate, ms_ssim_db(m)) for rate, m in c.points], f"{c.codec}, published: {c.source}")
        for c in (published.curves(set_name) if set_name else [])
    ]
    return charts.rate_distortion("MS-SSIM, dB", marks, lines("msssim_db"), grey) + charts.rate_distortion(
        "PSNR, dB", marks, lines("psnr")
    )


def _score_rows(points: Sequence[Point]) -> list[str]:
    """The numbers of the set as rows of an HTML table; the best MS-SSIM of each rate is marked."""
    rows = []
    for rate in dict.fromkeys(point.bpp for point in points):
        at_rate = [point for point in points if point.bpp == rate]
        best = max((point.total.msssim for point in at_rate if point.pictures), default=math.nan)
        for point in at_rate:
            head = f'<th rowspan="{len(at_rate)}" scope="rowgroup">{html.escape(rate)}</th>'
            first = point is at_rate[0]
            rows.append(f'<tr class="{"first" if first else ""}">{head if first else ""}{_cells(point, best)}</tr>')
    return rows


def _cells(point: Point, best: float) -> str:
    name = f'<td class="text"><i class="dot {point.codec}"></i>{html.escape(point.codec)}</td>'
    if not point.pictures:
        least = 8 * point.smallest / point.pixels
        return f'{name}<td colspan="7" class="none">does not reach this rate; its smallest is {least:.3f} bpp</td>'
    total = point.total
    mark = ' class="best"' if total.msssim == best else ""
    return (
        f"{name}<td>{point.bytes:,} / {point.cap:,}</td><td>{point.bytes / point.cap:.2%}</td>"
        f"<td{mark}>{total.msssim:.5f}</td><td{mark}>{ms_ssim_db(total.msssim):.2f}</td>"
        f"<td>{total.psnr:.2f}</td><td>{point.encode_seconds:.2f}</td><td>{point.decode_seconds:.2f}</td>"
    )


def _bd_rates(curves: Curves) -> str:
    def cell(value: float) -> str:
        if math.isnan(value):
            return '<td class="none">no common quality</td>'
        return f'<td class="{"good" if value < 0 else "bad"}">{value:+.1%}</td>'.replace("-", "−")

    return "\n".join(
        f'<tr><td class="text"><i class="dot {found.anchor}"></i>{html.escape(found.anchor)}</td>'
        f"{cell(found.at_msssim)}{cell(found.at_psnr)}</tr>"
        for found in bd_rates(curves, OURS)
    )


def _published(set_name: str | None) -> str:
    """The figures behind the grey lines, with their sources; empty where none are of this set."""
    if set_name is None:
        return ""
    found = published.curves(set_name)
    rates = sorted({rate for curve in found for rate, _ in curve.points})
    head = "".join(f"<th>{rate:g} bpp</th>" for rate in rates)
    rows = []
    for curve in found:
        at = dict(curve.points)
        cells = "".join(f"<td>{at[r]:.4f} ({ms_ssim_db(at[r]):.2f})</td>" if r in at else "<td>–</td>" for r in rates)
        source = f'<td class="text soft">{html.escape(curve.source)}</td>'
        rows.append(f'<tr><td class="text">{html.escape(curve.codec)}</td>{cells}{source}</tr>')
    return (
        f"<details><summary>Grey lines: published for this set, {html.escape(set_name)}</summary><p>MS-SSIM (dB), means"
        " over pictures at one model for all, interpolated to these rates from the sources named.</p>"
        f'<div class="scroll"><table><thead><tr><th class="text">codec</th>{head}<th class="text">source</th></tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _note(shown: int, everything: int, how: str) -> str:
    """What was done to the pictures on their way into the page."""
    which = f"All {everything}" if shown == everything else f"The {shown} worst of {everything}"
    return f"{which} pictures, by the MS-SSIM of ours, embedded {how}. All numbers are of whole pictures."


def _environment(points: Sequence[Point], commands: Sequence[str]) -> str:
    used = {point.codec for point in points}
    facts = environment.describe() | {p.name: p.settings for p in PEERS if p.name in used and p.version()}
    rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(fact)}</dd>" for name, fact in facts.items())
    said = "".join(f"<pre>{html.escape(command)}</pre>" for command in commands)
    return f"<dl>{rows}</dl>{said}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
