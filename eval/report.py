"""One HTML file that shows a comparison: the numbers of the set, a chart, and every picture under a slider.

The file needs nothing beside it: pictures, styles and script are inside.
"""

import base64
import functools
import html
import io
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from eval.compare import OURS, Point
from eval.metrics import ms_ssim_db
from eval.score import PictureScore
from submission.files import list_images, read_image, write_bytes

#: Bytes of embedded pictures, as base64 text. Larger pages open slowly.
BUDGET = 24_000_000

#: At most so many pictures are shown, spread over the set, and of each at most a central square of this side.
SHOWN_PICTURES = 12
SHOWN_SIDE = 768

#: How pictures are embedded, in words and for Pillow: the first that fits the budget, else the last.
EMBEDDINGS: tuple[tuple[str, dict[str, int | bool]], ...] = (
    ("losslessly", {"lossless": True, "quality": 50, "method": 3}),
    ("as WebP of quality 95 (lossless would make the page too large)", {"quality": 95, "method": 3}),
    ("as WebP of quality 80 (more would make the page too large)", {"quality": 80, "method": 3}),
)

Views = dict[str, Image.Image]  #: what is shown of one picture: "original", and "rate/codec" for each point


def write(path: Path, originals: Path, points: Sequence[Point]) -> None:
    """Write the report of `points`, whose decoded PNGs are still in their folders, to `path`."""
    everything = list_images([originals])
    shown = everything[:: math.ceil(len(everything) / SHOWN_PICTURES)]
    views = {picture.stem: _views(picture, points) for picture in shown}
    how, sources = _embed(views)
    by_stem = {(p.bpp, p.codec, s.image): s for p in points for s in p.pictures}
    sizes = {s.image: f"{s.width} × {s.height}" for p in points for s in p.pictures}
    pictures = [
        {
            "name": picture.name,
            "size": sizes.get(picture.stem, ""),
            "width": views[picture.stem]["original"].width,
            "height": views[picture.stem]["original"].height,
            "sources": sources[picture.stem],
            "numbers": {f"{b}/{c}": _numbers(score) for (b, c, stem), score in by_stem.items() if stem == picture.stem},
        }
        for picture in shown
    ]
    rates = list(dict.fromkeys(point.bpp for point in points))
    codecs = list(dict.fromkeys(point.codec for point in points))
    data = json.dumps({"rates": rates, "codecs": codecs, "pictures": pictures}).replace("</", "<\\/")
    count = f"{len(everything)} picture" + ("s" if len(everything) > 1 else "")
    parts = {
        "LEAD": f"{count}, {points[0].pixels:,} pixels, under one byte cap for the set at each rate",
        "TABLE": _table(points),
        "CHART": _chart(points),
        "NOTE": _note(len(shown), len(everything), how),
        "DATA": data,
    }
    page = PAGE
    for name, text in parts.items():
        page = page.replace(f"@@{name}@@", text)
    write_bytes(path, page.encode())


def _views(picture: Path, points: Sequence[Point]) -> Views:
    """The central part of the original and of what each codec made of it at each rate."""
    original = Image.fromarray(read_image(picture))
    left, top = (max(0, (side - SHOWN_SIDE) // 2) for side in original.size)
    box = (left, top, min(original.width, left + SHOWN_SIDE), min(original.height, top + SHOWN_SIDE))
    views = {"original": original.crop(box)}
    for point in points:
        if point.pictures:
            with Image.open(point.decoded / f"{picture.stem}.png") as decoded:
                views[f"{point.bpp}/{point.codec}"] = decoded.crop(box)
    return views


def _embed(views: dict[str, Views]) -> tuple[str, dict[str, dict[str, str]]]:
    """All views as data URLs in the best of EMBEDDINGS that fits the budget, and that embedding in words."""
    flat = [(stem, name, view) for stem, named in views.items() for name, view in named.items()]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # Pillow encodes outside Python's lock
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


def _numbers(score: PictureScore) -> dict[str, str]:
    """One picture's numbers, as the page shows them."""
    size = score.bytes or 0
    return {
        "bytes": f"{size:,}",
        "bpp": f"{8 * size / score.pixels:.3f}",
        "msssim": f"{score.msssim:.4f}",
        "db": f"{ms_ssim_db(score.msssim):.2f}",
        "psnr": f"{score.psnr:.2f}",
    }


def _note(shown: int, everything: int, how: str) -> str:
    """What was done to the pictures on their way into the page."""
    which = "All pictures are" if shown == everything else f"{shown} of {everything} pictures, spread over the set, are"
    return (
        f"{which} embedded {how}; of those with a side over {SHOWN_SIDE} pixels, the central part. All numbers are of"
        " whole pictures, decoded from the files that were counted. MS-SSIM and PSNR of a set, and the cap"
        " ceil(bpp × pixels / 8), are as in the Challenge on Learned Image Compression; dB is −10 log₁₀(1 − MS-SSIM)."
    )


def _table(points: Sequence[Point]) -> str:
    """The numbers of the set as rows of an HTML table; the best MS-SSIM of each rate is marked."""
    rows = []
    for rate in dict.fromkeys(point.bpp for point in points):
        at_rate = [point for point in points if point.bpp == rate]
        best = max((point.total.msssim for point in at_rate if point.pictures), default=math.nan)
        for point in at_rate:
            first = (
                f'<th rowspan="{len(at_rate)}" scope="rowgroup">{html.escape(rate)}</th>' if point is at_rate[0] else ""
            )
            cells = _cells(point, best)
            rows.append(f'<tr class="{"first" if first else ""}">{first}{cells}</tr>')
    return "\n".join(rows)


def _cells(point: Point, best: float) -> str:
    name = f'<td class="codec"><i class="dot {point.codec}"></i>{html.escape(point.codec)}</td>'
    if not point.pictures:
        least = 8 * point.smallest / point.pixels
        return f'{name}<td colspan="7" class="none">does not reach this rate; its smallest is {least:.3f} bpp</td>'
    total = point.total
    best_class = ' class="best"' if total.msssim == best else ""
    return (
        f"{name}<td>{point.bytes:,} / {point.cap:,}</td><td>{point.bytes / point.cap:.2%}</td>"
        f"<td{best_class}>{total.msssim:.5f}</td><td{best_class}>{ms_ssim_db(total.msssim):.2f}</td>"
        f"<td>{total.psnr:.2f}</td><td>{point.encode_seconds:.2f}</td><td>{point.decode_seconds:.2f}</td>"
    )


def _chart(points: Sequence[Point]) -> str:
    """MS-SSIM in dB against the rate that was used, a line for each codec, as SVG. Empty if nothing is finite."""
    used: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        if point.pictures and math.isfinite(decibels := ms_ssim_db(point.total.msssim)):
            used.setdefault(point.codec, []).append((8 * point.bytes / point.pixels, decibels))
    if not used:
        return ""
    width, height, left, right, top, bottom = 560, 300, 44, 56, 14, 40
    rates, levels = zip(*(xy for line in used.values() for xy in line), strict=True)
    low, high = math.log(min(rates) / 1.1), math.log(max(rates) * 1.1)
    floor, ceiling = math.floor(min(levels)), math.ceil(max(levels))
    ceiling = max(ceiling, floor + 1)

    def at(rate: float, level: float) -> tuple[float, float]:
        across = (math.log(rate) - low) / (high - low)
        up = (level - floor) / (ceiling - floor)
        return left + across * (width - left - right), height - bottom - up * (height - top - bottom)

    parts = []
    step = max(1, (ceiling - floor) // 6)
    for level in range(floor, ceiling + 1, step):
        _, y = at(min(rates), level)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{level}</text>')
    for rate in dict.fromkeys(point.bpp for point in points):
        if low <= math.log(float(rate)) <= high:
            x, _ = at(float(rate), floor)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - bottom}"/>')
            parts.append(
                f'<text x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">{html.escape(rate)}</text>'
            )
    parts.append(f'<text x="{(left + width - right) / 2}" y="{height - 4}" text-anchor="middle">bits per pixel</text>')
    parts.append(f'<text x="{left + 8}" y="{top + 4}">MS-SSIM, dB</text>')
    for codec, line in sorted(used.items(), key=lambda item: item[0] == OURS):  # ours on top
        places = [at(*xy) for xy in sorted(line)]
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="{codec}" points="{corners}"/>')
        parts += [f'<circle class="{codec}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in places]
        parts.append(
            f'<text class="label {codec}" x="{places[-1][0] + 8:.1f}" y="{places[-1][1] + 4:.1f}">{codec}</text>'
        )
    title = "MS-SSIM of the set in dB against bits per pixel"
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}">{"".join(parts)}</svg>'


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Learned image compression at the same bytes</title>
<style>
:root {
  color-scheme: light dark;
  --page: light-dark(#f7f7f8, #131417); --card: light-dark(#fff, #1c1e22); --line: light-dark(#e2e3e7, #30333a);
  --text: light-dark(#1b1d21, #eceef2); --soft: light-dark(#646a75, #9aa1ad);
  --ours: light-dark(#3157d5, #8ba7ff); --jpeg: light-dark(#a1631a, #e0a458); --webp: light-dark(#2a7f62, #5cc49d);
  --avif: light-dark(#a33a78, #e685bd);
}
:root[data-theme=light] { color-scheme: light }
:root[data-theme=dark] { color-scheme: dark }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
main, header > div, .bar > div { max-width: 1120px; margin: 0 auto; padding: 0 20px }
header > div { display: flex; align-items: flex-start; justify-content: space-between; gap: 16px; padding-top: 32px }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em }
h2 { font-size: 15px; margin: 0; overflow-wrap: anywhere }
p { margin: 0; color: var(--soft) }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 18px; margin: 20px 0 }
.set { display: grid; grid-template-columns: minmax(0, 1fr); gap: 20px }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; white-space: nowrap }
th { text-align: right; font-weight: 600; font-size: 13px; color: var(--soft) }
td { text-align: right }
th, td { padding: 5px 10px }
th:first-child, .codec, .none { text-align: left !important }
tbody th { vertical-align: top; color: var(--text); font-size: 15px }
tr.first > * { border-top: 1px solid var(--line) }
.none { color: var(--soft) }
.best { font-weight: 700 }
.dot { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 8px; background: currentColor }
.ours { --hue: var(--ours) } .jpeg { --hue: var(--jpeg) } .webp { --hue: var(--webp) } .avif { --hue: var(--avif) }
.dot { background: var(--hue, var(--soft)) }
svg { display: block; width: 100%; max-width: 640px; margin: 0 auto }
svg text { font-size: 12px; fill: var(--soft) }
svg .grid { stroke: var(--line) }
svg polyline { fill: none; stroke: var(--hue); stroke-width: 2 }
svg circle { fill: var(--hue) } svg .label { fill: var(--hue); font-weight: 600 }
.bar { position: sticky; top: 0; z-index: 5; border-block: 1px solid var(--line); margin-top: 28px;
  background: color-mix(in srgb, var(--page) 88%, transparent); backdrop-filter: blur(10px) }
.bar > div { display: flex; flex-wrap: wrap; gap: 10px 24px; padding-block: 10px }
.choice { display: flex; align-items: center; gap: 8px; border: 0; margin: 0; padding: 0 }
.choice > span { color: var(--soft); font-size: 13px }
.options { display: flex; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; background: var(--card) }
button { font: inherit; font-size: 14px; padding: 4px 11px; border: 0; background: none; color: inherit;
  cursor: pointer }
.options button + button { border-left: 1px solid var(--line) }
button[aria-pressed=true] { background: var(--text); color: var(--card) }
button:disabled { color: var(--soft); opacity: .5; cursor: default }
button:focus-visible, .view:focus-visible { outline: 2px solid var(--ours); outline-offset: 2px }
.theme { border: 1px solid var(--line); border-radius: 8px; background: var(--card); white-space: nowrap }
.view { position: relative; margin: 14px auto; max-width: 100%; overflow: hidden; border-radius: 6px; --x: 50%;
  cursor: ew-resize; touch-action: pan-y; user-select: none; background: var(--line) }
.view img { position: absolute; inset: 0; width: 100%; height: 100%; display: block; pointer-events: none }
.view .right { clip-path: inset(0 0 0 var(--x)) }
.view::after { content: ""; position: absolute; inset-block: 0; left: calc(var(--x) - 1px); width: 2px;
  background: #fff; box-shadow: 0 0 3px #000a; pointer-events: none }
.tag { position: absolute; top: 8px; padding: 2px 8px; border-radius: 6px; background: #000b; color: #fff;
  font-size: 13px; z-index: 1; pointer-events: none }
.tag.l { left: 8px } .tag.r { right: 8px }
.big img { image-rendering: pixelated }
@media (max-width: 640px) { .bar { position: static } th, td { padding: 5px 7px } .card { padding: 14px } }
footer { padding: 8px 0 40px; font-size: 13px }
</style>
</head>
<body>
<header><div>
<div><h1>Learned image compression at the same bytes</h1><p>@@LEAD@@</p></div>
<button class="theme" id="theme">Light / dark</button>
</div></header>
<main>
<section class="card set" aria-label="The set">
<div class="scroll"><table>
<thead><tr><th scope="col">bpp</th><th scope="col" class="codec">codec</th><th scope="col">bytes used / cap</th>
<th scope="col">of cap</th><th scope="col">MS-SSIM</th><th scope="col">dB</th><th scope="col">PSNR</th>
<th scope="col">encode s</th><th scope="col">decode s</th></tr></thead>
<tbody>
@@TABLE@@
</tbody></table></div>
@@CHART@@
</section>
</main>
<div class="bar"><div>
<div class="choice"><span>Rate</span><div class="options" id="rates"></div></div>
<div class="choice"><span>Left</span><div class="options" id="left"></div></div>
<div class="choice"><span>Right</span><div class="options" id="right"></div></div>
<div class="choice"><span>Zoom</span><div class="options" id="zoom"></div></div>
</div></div>
<main id="pictures"></main>
<main><footer><p>@@NOTE@@</p></footer></main>
<script type="application/json" id="data">@@DATA@@</script>
<script>
const data = JSON.parse(document.getElementById("data").textContent);
const reached = rate => data.codecs.filter(codec => data.pictures[0].sources[`${rate}/${codec}`]);
const first = data.rates.find(rate => reached(rate).includes("ours")) ?? data.rates.at(-1);
const state = { rates: first, left: "original", right: reached(first)[0] ?? "original", zoom: "1×" };

function element(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

function chooser(name, values) {
  document.getElementById(name).append(...values.map(value => {
    const button = element("button", { textContent: value, type: "button" });
    button.dataset.value = value;
    button.onclick = () => { state[name] = value; draw(); };
    return button;
  }));
}

const key = side => state[side] === "original" ? "original" : `${state.rates}/${state[side]}`;

const cards = data.pictures.map(picture => {
  const [left, right] = [element("img", { alt: "" }), element("img", { alt: "", className: "right" })];
  const [leftTag, rightTag] = [element("span", { className: "tag l" }), element("span", { className: "tag r" })];
  const view = element("div", { className: "view", tabIndex: 0, role: "slider" }, left, right, leftTag, rightTag);
  view.setAttribute("aria-label", `Divider between left and right, ${picture.name}`);
  view.style.aspectRatio = `${picture.width} / ${picture.height}`;
  let at = 50;
  const move = to => {
    at = Math.min(100, Math.max(0, to));
    view.style.setProperty("--x", `${at}%`);
    view.setAttribute("aria-valuenow", Math.round(at));
  };
  view.onpointermove = view.onpointerdown = event => {
    const box = view.getBoundingClientRect();
    move(100 * (event.clientX - box.left) / box.width);
  };
  view.onkeydown = event => {
    const step = { ArrowLeft: -2, ArrowRight: 2, Home: -100, End: 100 }[event.key];
    if (step) { move(at + step); event.preventDefault(); }
  };
  move(50);
  const rows = element("tbody");
  const head = element("tr");
  head.innerHTML = '<th class="codec">codec</th><th>bytes</th><th>bpp</th><th>MS-SSIM</th><th>dB</th><th>PSNR</th>';
  const numbers = element("div", { className: "scroll" }, element("table", {}, element("thead", {}, head), rows));
  const shown = `${picture.width} × ${picture.height}`;
  const part = shown === picture.size || !picture.size ? shown : `the central ${shown} of ${picture.size}`;
  const size = element("p", { textContent: part });
  const name = element("h2", { textContent: picture.name });
  const card = element("section", { className: "card" }, name, size, view, numbers);
  const draw = () => {
    for (const [image, tag, side] of [[left, leftTag, "left"], [right, rightTag, "right"]]) {
      image.src = picture.sources[key(side)];
      const n = picture.numbers[key(side)];
      tag.textContent = n ? `${state[side]} · ${n.bytes} B · ${n.db} dB` : state[side];
    }
    view.style.width = `${picture.width * parseInt(state.zoom)}px`;
    view.classList.toggle("big", state.zoom !== "1×");
    const best = Math.max(...reached(state.rates).map(codec => picture.numbers[`${state.rates}/${codec}`].msssim));
    rows.replaceChildren(...reached(state.rates).map(codec => {
      const n = picture.numbers[`${state.rates}/${codec}`];
      const name = element("td", { className: "codec" }, element("i", { className: `dot ${codec}` }), codec);
      const cell = (text, mark) => element("td", { textContent: text, className: mark ? "best" : "" });
      const top = Number(n.msssim) === best;
      return element("tr", {}, name, cell(n.bytes), cell(n.bpp), cell(n.msssim, top), cell(n.db, top), cell(n.psnr));
    }));
  };
  return { card, draw };
});

function draw() {
  const sides = ["original", ...reached(state.rates)];
  for (const side of ["left", "right"]) if (!sides.includes(state[side])) state[side] = "original";
  for (const name of ["rates", "left", "right", "zoom"])
    for (const button of document.getElementById(name).children) {
      button.setAttribute("aria-pressed", button.dataset.value === state[name]);
      if (name === "left" || name === "right") button.disabled = !sides.includes(button.dataset.value);
    }
  for (const card of cards) card.draw();
}

document.getElementById("theme").onclick = () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
};
chooser("rates", data.rates);
chooser("left", ["original", ...data.codecs]);
chooser("right", ["original", ...data.codecs]);
chooser("zoom", ["1×", "2×"]);
document.getElementById("pictures").append(...cards.map(made => made.card));
draw();
</script>
</body>
</html>
"""
