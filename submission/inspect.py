"""Look into a stream: its header and model, what its bytes were spent on, and where in the picture."""

import argparse
import dataclasses
import io
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from submission import bitstream
from submission.codec import latent_size
from submission.console import program, run
from submission.errors import UserError, guarded, naming
from submission.files import Picture, read_stream, write_bytes
from submission.integer import Int32
from submission.ladder import DEFAULT_WEIGHTS, Ladder
from submission.mixture import CODER_BITS, Positions, Tables
from submission.symbols import CERTAIN, settle

Bits = NDArray[np.float64]

#: How symbols of y are coded (`docs/bitstream.md`), in the order of WINDOWS; `certain` ones are not.
KINDS = ("narrow", "wide", "any")

#: Colours of a map from no bits to the most.
HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float64)

#: The share of the heat in a map; the rest is the picture in grey.
HEAT_SHARE = 0.6

EXAMPLES = """examples:
  python -m submission.inspect photo.clic
  python -m submission.inspect photo.clic --json --map rate.png
"""


class Spending:
    """What the symbols of y take, told step by step (`submission.latent_coding.Watch`)."""

    def __init__(self, tables: Tables, size: tuple[int, int]) -> None:
        self.tables = tables
        self.map = np.zeros(size)  #: bits at each position of y
        self.symbols: Counter[str] = Counter()
        self.bits: Counter[str] = Counter()

    def __call__(self, rows: Positions, columns: Positions, parts: Int32, symbols: Int32) -> None:
        settled = settle(self.tables, parts, symbols)
        spent = settled.bits()
        for kind, name in enumerate(KINDS):
            which = settled.kinds == kind
            self.symbols[name] += int(which.sum())
            self.bits[name] += spent[which].sum()
        self.symbols["certain"] += int((settled.kinds == CERTAIN).sum())
        self.symbols["escaped"] += int(settled.escaped.sum())
        np.add.at(self.map, (rows, columns), spent.reshape(len(rows), -1).sum(1))


@dataclass(frozen=True)
class Inspection:
    """What a stream is made of. Bytes of z and y are what their probabilities say; the coder's end is the rest."""

    bytes: int
    bpp: float
    version: int
    quality: int
    height: int
    width: int
    model: int
    latents_check: int
    stream_check: int
    preset: str
    lmbda: float
    model_sha256: str
    header_bytes: int
    z_bytes: float
    y_bytes: float
    end_bytes: float
    #: Number and bits of the symbols of y of each kind; `escaped` ones are among the narrow and wide.
    symbols: dict[str, int]
    symbol_bits: dict[str, float]
    #: Bits at each place of y, 16 x 16 pixels; z's are spread over its places.
    map: Bits = dataclasses.field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Everything but the map."""
        return {name: value for name, value in vars(self).items() if name != "map"}

    def __str__(self) -> str:
        def share(spent: float) -> str:
            return f"{spent:10,.1f} bytes  {100 * spent / self.bytes:5.1f} %"

        coded = sum(count for kind, count in self.symbols.items() if kind != "escaped")
        lines = [
            f"picture     {self.width} x {self.height}, {self.bytes:,} bytes, {self.bpp:.4f} bpp",
            f"format      version {self.version}, stream check {self.stream_check:04x},"
            f" latents check {self.latents_check:04x}",
            f"model       quality {self.quality}: {self.preset}, lambda {self.lmbda:g},"
            f" SHA-256 {self.model_sha256[:16]} (tag {self.model:02x})",
            f"header  {share(self.header_bytes)}",
            f"z       {share(self.z_bytes)}",
            f"y       {share(self.y_bytes)}",
            f"end     {share(self.end_bytes)}",
        ]
        lines.append(f"symbols of y, {coded:,}")
        for kind in ("certain", *KINDS, "escaped"):
            count, bits = self.symbols[kind], self.symbol_bits.get(kind)
            spent = "" if bits is None else f"{bits / 8:14,.1f} bytes  {bits / max(count, 1):6.3f} bits each"
            lines.append(f"  {kind:8}{count:12,}  {100 * count / coded:5.1f} %{spent}")
        return "\n".join(lines)


def inspect(ladder: Ladder, stream: bytes) -> Inspection:
    """Decode `stream` up to its latents, and count. BitstreamError as `Ladder.decompress` raises it."""
    header = bitstream.read_header(stream)
    codec = ladder.codec_of(header)
    spending = Spending(codec.entropy.tables, latent_size(header.height, header.width))
    codec.entropy.watch = spending
    try:
        _, _, z_hat = codec.read(stream)
    finally:
        codec.entropy.watch = None
    channels = np.arange(z_hat.shape[2])
    z_bits = CODER_BITS - np.log2(codec.entropy.prior[channels, z_hat + codec.entropy.z_peak] + 1)
    z_bytes, y_bytes = z_bits.sum() / 8, spending.map.sum() / 8
    entry = ladder.models[header.quality]
    head = bitstream.HEADER_BYTES
    return Inspection(
        bytes=len(stream),
        bpp=8 * len(stream) / (header.height * header.width),
        version=bitstream.VERSION,
        **vars(header),
        stream_check=int.from_bytes(stream[head - 2 : head], "big"),
        preset=codec.config.name,
        lmbda=float(entry["lmbda"]),
        model_sha256=str(entry["sha256"]),
        header_bytes=head,
        z_bytes=float(z_bytes),
        y_bytes=float(y_bytes),
        end_bytes=float(len(stream) - head - z_bytes - y_bytes),
        symbols={kind: int(spending.symbols[kind]) for kind in ("certain", *KINDS, "escaped")},
        symbol_bits={kind: float(spending.bits[kind]) for kind in KINDS},
        map=spending.map + z_bits.sum(2).repeat(4, 0).repeat(4, 1) / 16,
    )


def heat(levels: Bits) -> Bits:
    """Levels from 0 to 1 -> colours [..., 3]."""
    at = np.clip(levels, 0, 1) * (len(HEAT) - 1)
    return np.stack([np.interp(at, np.arange(len(HEAT)), HEAT[:, channel]) for channel in range(3)], -1)


def draw(bits: Bits, picture: Picture) -> Image.Image:
    """Bits at each place of y as heat over the grey picture [H, W, 3], with a scale below."""
    height, width, _ = picture.shape
    most = max(float(np.percentile(bits, 99)), 1e-9)  # a few places may take far more than all others
    colours = heat(bits / most).astype(np.float32).repeat(16, 0).repeat(16, 1)[:height, :width]
    grey = np.asarray(Image.fromarray(picture).convert("L"), np.float32)[:, :, None]
    blended = np.clip(HEAT_SHARE * colours + (1 - HEAT_SHARE) * grey + 0.5, 0, 255).astype(np.uint8)

    text = 14
    sheet = Image.new("RGB", (max(width, 360), height + 3 * text), "white")
    sheet.paste(Image.fromarray(blended), (0, 0))
    ramp = HEAT_SHARE * heat(np.linspace(0, 1, 120)) + (1 - HEAT_SHARE) * 128
    bar = np.broadcast_to(np.clip(ramp, 0, 255).astype(np.uint8), (text, 120, 3))
    draw_on, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    top = height + text
    draw_on.text((text, top), "0", "black", font)
    sheet.paste(Image.fromarray(np.ascontiguousarray(bar)), (2 * text, top))
    draw_on.text((2 * text + 126, top), f"{most:.1f} bits or more for 16 x 16 pixels", "black", font)
    return sheet


def main() -> int:
    parser = argparse.ArgumentParser(
        prog=program("inspect"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    parser.add_argument("stream", type=Path, metavar="STREAM")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--map", type=Path, metavar="PNG", help="write a picture of where the bits went")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, metavar="DIR", help="ladder (default: ours)")
    options = parser.parse_args()
    if options.map and options.map.suffix.lower() != ".png":
        raise UserError(f"{options.map}: the map is a PNG; give a name that ends in .png")
    ladder = Ladder.load(options.weights)
    with naming(options.stream), guarded("decoded"):
        stream = read_stream(options.stream)
        found = inspect(ladder, stream)
        picture = ladder.decompress(stream) if options.map else None
    if picture is not None:
        buffer = io.BytesIO()
        draw(found.map, picture).save(buffer, "PNG")
        write_bytes(options.map, buffer.getvalue())
    print(json.dumps(found.to_json(), indent=2) if options.json else found)
    return 0


def command() -> None:
    """`clic-inspect`."""
    run(main)


if __name__ == "__main__":
    command()
