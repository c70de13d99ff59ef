"""The drawings of a report, as SVG: rate-distortion curves, and the bytes that each codec used under each cap."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from eval.rate_distortion.points import OURS, Point

WIDTH, HEIGHT = 600, 400
LEFT, RIGHT, TOP, BOTTOM = 46, 92, 16, 44
LABEL_STEP, LABEL_WIDTH = 13.5, 62  #: of a label, in the drawing's units


@dataclass(frozen=True)
class Line:
    """One curve: its name, the class that colours it, its points (bits per pixel, quality), and a longer text."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]
    text: str


@dataclass(frozen=True)
class Axes:
    """Where values fall in the drawing: rates on a logarithmic axis, qualities on a linear one."""

    rates: tuple[float, float]
    levels: tuple[int, int]

    def x(self, rate: float) -> float:
        low, high = map(math.log, self.rates)
        return LEFT + (math.log(rate) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, level: float) -> float:
        low, high = self.levels
        return HEIGHT - BOTTOM - (level - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def rate_distortion(title: str, marks: Sequence[str], lines: Sequence[Line], grey: Sequence[Line] = ()) -> str:
    """Curves over the rate; `grey` ones lie behind. Grid lines stand at the rates `marks`. Empty if nothing is finite.

    The rates are those of `lines`; what of `grey` lies beyond them is cut off.
    """
    lines, grey = ([line for line in map(_finite, kind) if line.points] for kind in (lines, grey))
    lines = sorted(lines, key=lambda line: line.style == OURS)  # ours on top
    if not lines:
        return ""
    rates = [rate for line in lines for rate, _ in line.points]
    levels = [level for line in (*lines, *grey) for _, level in line.points]
    floor = math.floor(min(levels))
    axes = Axes((min(rates) / 1.06, max(rates) * 1.06), (floor, max(math.ceil(max(levels)), floor + 1)))
    plot = f'x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}"'
    clip = "clip-" + "".join(filter(str.isalnum, title))
    parts = [f'<clipPath id="{clip}"><rect {plot}/></clipPath>', *_grid(axes, title, marks)]
    parts.append(f'<g clip-path="url(#{clip})">')
    parts += [_curve(axes, line, "published") for line in grey]
    parts += [_curve(axes, line, "measured") for line in lines]
    parts.append("</g>")
    parts += _labels(axes, lines)
    label = html.escape(f"{title} against bits per pixel")
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _finite(line: Line) -> Line:
    points = [(rate, level) for rate, level in line.points if rate > 0 and math.isfinite(level)]
    return Line(line.name, line.style, sorted(points), line.text)


def _grid(axes: Axes, title: str, marks: Sequence[str]) -> list[str]:
    parts = []
    low, high = axes.levels
    for level in range(low, high + 1, max(1, math.ceil((high - low) / 8))):
        y = axes.y(level)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{level}</text>')
    for mark in marks:
        if axes.rates[0] <= float(mark) <= axes.rates[1]:
            x = axes.x(float(mark))
            parts.append(f'<line class="grid mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
            parts.append(
                f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{html.escape(mark)}</text>'
            )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">bits per pixel</text>')
    parts.append(f'<text class="title" x="{LEFT + 10}" y="{TOP + 16}">{html.escape(title)}</text>')
    return parts


def _curve(axes: Axes, line: Line, kind: str) -> str:
    places = [(axes.x(rate), axes.y(level)) for rate, level in line.points]
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{2.6 if kind == "measured" else 2}"/>' for x, y in places)
    title = f"<title>{html.escape(line.text)}</title>"
    return f'<g class="curve {kind} {line.style}">{title}<polyline points="{corners}"/>{dots}</g>'


def _labels(axes: Axes, lines: Sequence[Line]) -> list[str]:
    """The names at the ends of their curves, from the top, each pushed down below those that it would touch."""
    ends = sorted(
        [(axes.y(line.points[-1][1]), axes.x(line.points[-1][0]), line) for line in lines], key=lambda e: e[0]
    )
    placed: list[tuple[float, float]] = []
    parts = []
    for y, x, line in ends:
        near = [other for left, other in placed if abs(left - x) < LABEL_WIDTH]
        y = max([y, *(other + LABEL_STEP for other in near)])
        placed.append((x, y))
        label = f'x="{x + 8:.1f}" y="{y + 4:.1f}"'
        parts.append(f'<text class="label {line.style}" {label}>{html.escape(line.name)}</text>')
    return parts


def bytes_used(points: Sequence[Point]) -> str:
    """For each rate a bar a codec: its bytes against the cap, or how far its smallest files are beyond it."""
    parts = []
    for rate in dict.fromkeys(point.bpp for point in points):
        at_rate = [point for point in points if point.bpp == rate]
        scale = max(1.1, *(min(_share(point), 1.6) for point in at_rate))
        cap = f'<i class="cap" style="left:{100 / scale:.3f}%"></i>'
        rows = []
        for point in at_rate:
            share, name = _share(point), html.escape(point.codec)
            kind, said = ("used", f"{share:.2%}") if point.pictures else ("over", f"{share:.0%} at its smallest")
            bar = f'<i class="fill {kind} {name}" style="width:{100 * min(share / scale, 1):.3f}%"></i>'
            title = f"{name}: {round(share * point.cap):,} bytes of {point.cap:,}"
            rows.append(f'<span>{name}</span><span class="bar-track" title="{title}">{bar}{cap}</span><b>{said}</b>')
        parts.append(
            f'<div class="bytes"><h3>{html.escape(rate)} bpp <small>cap {at_rate[0].cap:,} bytes</small></h3>'
            f'<div class="bars">{"".join(rows)}</div></div>'
        )
    return "".join(parts)


def _share(point: Point) -> float:
    """The part of the cap that is used, or that the smallest files would need."""
    return (point.bytes if point.pictures else point.smallest) / point.cap
