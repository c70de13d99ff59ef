"""The codecs that ours is compared with: what each is called, how it is set, how it turns a picture into a file.

All but VVC are encoders that Pillow or a plug-in of it brings along. One whose library is not installed is left out of
a comparison, not an error. Every setting is fixed but the quality; encoders run on one core, so that the same picture
gives the same bytes on any machine.
"""

import importlib.metadata
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL
from PIL import Image, features

from eval.codecs import vvc
from submission.files import Picture

Options = dict[str, Any]


@dataclass(frozen=True)
class Peer:
    """A codec: its name in tables, the suffix of its files, and the qualities to choose from, in ascending order.

    `version` says what is installed, and is None where nothing is; `needs` says what to install then.
    """

    name: str
    suffix: str
    qualities: tuple[int, ...]
    options: str  #: the settings beside the quality, in words
    version: Callable[[], str | None]
    needs: str
    compress: Callable[[Picture, int], bytes]
    decompress: Callable[[bytes], Picture]

    @property
    def settings(self) -> str:
        """Everything but the quality that decides the bytes."""
        return f"{self.version()} {self.options}"


def _pillow(
    name: str,
    suffix: str,
    qualities: tuple[int, ...],
    version: Callable[[], str | None],
    needs: str,
    format: str,
    options: Options,
    quality: Callable[[int], Options] = lambda value: {"quality": value},
) -> Peer:
    """A codec that Pillow knows as `format`; `quality` turns a quality into the options of one file."""

    def compress(picture: Picture, value: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format=format, **options, **quality(value))
        return buffer.getvalue()

    words = " ".join(f"{option}={value}" for option, value in options.items())
    return Peer(name, suffix, qualities, words, version, needs, compress, _open)


def _open(data: bytes) -> Picture:
    with Image.open(io.BytesIO(data)) as opened:
        return np.array(opened.convert("RGB"))


def _built_in(library: str) -> Callable[[], str | None]:
    """The version of a library that Pillow is or is not built with."""

    def version() -> str | None:
        if not features.check(library):
            return None
        return f"Pillow {PIL.__version__} {library} {features.version(library)}"

    return version


def _jpeg_xl() -> str | None:
    try:
        import pillow_jxl  # noqa: F401  (adds the format to Pillow)
    except ImportError:
        return None
    return f"pillow-jxl-plugin {importlib.metadata.version('pillow-jxl-plugin')}"


def _heic() -> str | None:
    try:
        import pillow_heif
    except ImportError:
        return None
    pillow_heif.register_heif_opener()
    info = pillow_heif.libheif_info()
    return f"libheif {info['libheif']} {info['HEIF']}" if info["HEIF"] else None


PEERS = (
    _pillow(
        "jpeg",
        ".jpg",
        (1, *range(3, 13), 14, 16, 18, 20, 22, 25, 28, 32, 36, 40, 46, 52, 60),
        _built_in("libjpeg_turbo"),
        "a Pillow with libjpeg-turbo",
        "JPEG",
        {"optimize": True, "progressive": True, "subsampling": "4:2:0"},
    ),
    _pillow(
        "webp",
        ".webp",
        (0, 1, 2, 3, 4, 6, 8, 10, 13, 16, 20, 25, 30, 36, 43, 51, 60, 70),
        _built_in("webp"),
        "a Pillow with libwebp",
        "WEBP",
        {"method": 6},
    ),
    # the quality is thousandths of a bit per pixel: OpenJPEG cuts the stream where it is asked to
    _pillow(
        "jpeg2000",
        ".j2k",
        (20, 28, 36, 44, 54, 65, 78, 94, 112, 135, 162, 195, 234, 280, 340, 410, 500, 650, 850),
        _built_in("jpg_2000"),
        "a Pillow with OpenJPEG",
        "JPEG2000",
        {"irreversible": True, "mct": 1, "no_jp2": True, "quality_mode": "rates"},
        lambda value: {"quality_layers": [24_000 / value]},
    ),
    _pillow(
        "heic",
        ".heic",
        (0, 3, 6, 8, 10, 12, 14, 16, 18, 20, 22, 25, 28, 31, 34, 38, 42),
        _heic,
        "pip install pillow-heif",
        "HEIF",
        # libheif's defaults for x265, the preset slow tuned for SSIM, spend the bytes best
        {
            "chroma": "420",
            "enc_params": {"preset": "slow", "tune": "ssim", "x265:pools": "1", "x265:frame-threads": "1"},
        },
    ),
    # effort 8 spends the bytes as well as 9 and better than the default 7
    _pillow(
        "jpegxl",
        ".jxl",
        (0, 2, 4, 6, 8, 10, 12, 15, 18, 21, 25, 30, 36, 43, 52, 62),
        _jpeg_xl,
        "pip install pillow-jxl-plugin",
        "JXL",
        {"effort": 8, "num_threads": 0},
    ),
    # AVIF's own defaults already tune libaom for pictures (`tune=iq`), which also scores best here; 4:2:0 likewise
    _pillow(
        "avif",
        ".avif",
        (0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 41, 46, 52, 58),
        _built_in("avif"),
        "a Pillow with libavif",
        "AVIF",
        {"speed": 5, "subsampling": "4:2:0", "max_threads": 1, "autotiling": False},
    ),
    Peer(
        "vvc",
        ".vvc",
        vvc.QUALITIES,
        vvc.OPTIONS,
        vvc.version,
        "pip install imageio-ffmpeg (0.8.1 has VVenC), or vvencapp and vvdecapp on the PATH",
        vvc.compress,
        vvc.decompress,
    ),
)
