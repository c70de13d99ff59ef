"""A plug-in for Pillow: after `import submission.pillow`, *.clic files open and save like any other format.

    Image.open("photo.clic").size                   # from the header; nothing is decoded yet
    image.save("photo.clic", quality=3)             # a model of the ladder; without it the middle one

The streams have no magic number. So a file is taken for one if its first bits say so and its checksum is right;
anything else, a damaged stream too, is left to Pillow's other formats, and if none of them knows it,
`Image.open` raises UnidentifiedImageError. What goes wrong later raises OSError.
"""

import contextlib
import functools
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageFile

from submission import bitstream
from submission.decode import SUFFIX
from submission.errors import BitstreamError, UserError, guarded
from submission.files import MOST_STREAM, as_rgb
from submission.ladder import DEFAULT_WEIGHTS, Ladder

FORMAT = "CLIC"
MIME = "image/x-clic"

#: The folder of the ladder that streams are made and decoded with, for all pictures. (Pillow has no options for open.)
WEIGHTS: Path = DEFAULT_WEIGHTS


@functools.cache
def ladder(weights: Path) -> Ladder:
    """A ladder, read once; each of its models is loaded when it is first used, and kept."""
    return Ladder.load(weights)


@contextlib.contextmanager
def _as_pillow(doing: str = "decoded") -> Iterator[None]:
    """Raise our errors as Pillow's formats raise theirs."""
    try:
        with guarded(doing):
            yield
    except UserError as error:
        raise OSError(str(error)) from None


def _accept(prefix: bytes) -> bool:
    return len(prefix) > 0 and prefix[0] >> 5 == bitstream.VERSION


class ClicImageFile(ImageFile.ImageFile):
    """A stream whose header has been read, and whose picture is decoded when it is first asked for."""

    format = FORMAT
    format_description = "CLIC submission stream"

    def _open(self) -> None:
        assert self.fp is not None
        self._stream = self.fp.read(MOST_STREAM + 1)
        if len(self._stream) > MOST_STREAM:
            raise SyntaxError("too large to be a stream")
        try:
            header = bitstream.read_header(self._stream)
        except BitstreamError as error:
            raise SyntaxError(str(error)) from None  # what tells Pillow to try its other formats
        self._size = (header.width, header.height)
        self._mode = "RGB"
        self.info["quality"] = header.quality
        self.tile = [ImageFile._Tile("raw", (0, 0, *self.size), 0, self.mode)]

    def verify(self) -> None:
        """Raise OSError unless the weights at hand made this stream. That it is whole was seen when it was opened."""
        with _as_pillow():
            header = bitstream.read_header(self._stream)
            ladder(WEIGHTS).codec_of(header).check(header)
        super().verify()

    def load(self) -> Any:
        if self.tile:
            with _as_pillow():
                picture = ladder(WEIGHTS).decompress(self._stream)
            if self.fp and self._exclusive_fp:
                self.fp.close()
            self.fp = io.BytesIO(picture.tobytes())
        return super().load()

    def load_seek(self, pos: int) -> None:
        """Here, so that Pillow reads the decoded pixels, and does not map the file into memory."""


def _save(image: Image.Image, file: IO[bytes], name: str | bytes) -> None:
    """Compress, as `submission.encode` does: as 8-bit sRGB, without real transparency."""
    options = getattr(image, "encoderinfo", {})
    with _as_pillow("encoded"):
        models = ladder(WEIGHTS)
        quality = options.get("quality")
        if quality is None:
            quality = len(models.qualities) // 2
        elif quality not in models.qualities:
            raise ValueError(f"quality {quality}: there are models 0 to {models.qualities[-1]}")
        file.write(models.codec(int(quality)).compress(as_rgb("picture", image)))


Image.register_open(FORMAT, ClicImageFile, _accept)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, SUFFIX)
Image.register_mime(FORMAT, MIME)
# First in line: our checksum rarely takes another's file for a stream, but formats that have no magic number themselves
# (TGA) take one stream in some hundreds for theirs.
Image.ID.remove(FORMAT)
Image.ID.insert(0, FORMAT)
