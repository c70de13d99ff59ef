"""Pictures in, files out: reading any picture as 8-bit RGB, and writing files that are whole or absent."""

import contextlib
import ctypes
import io
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from submission.errors import ImageError, UserError

Picture = NDArray[np.uint8]  #: H x W x 3, sRGB

#: File names that count as pictures when a folder is given.
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif", ".jp2"}

#: The header stores height and width in 16 bits each.
MAX_SIDE = 65535

#: The largest picture taken: 8192 x 8192, more than four times the largest of any CLIC set.
MAX_PIXELS = 8192 * 8192

#: The largest compressed file taken: a byte for each sample of the largest picture.
MOST_STREAM = 3 * MAX_PIXELS


def read_image(path: Path, as_stored: bool = False) -> Picture:
    """The picture that a person sees in `path`, as uint8 H x W x 3 in sRGB.

    EXIF rotation is applied, an embedded ICC profile is converted to sRGB, grey, palette and CMYK become RGB. Of 16
    bits a sample 8 are left: grey is rounded, colours are cut off by Pillow. `as_stored` leaves rotation and profile
    alone: the samples of the file, which are what the challenge compares (`docs/evaluation.md`). Raises ImageError for
    anything unreadable, for real transparency (flatten it first: a decoded picture has no alpha) and for sides over
    65535 or more than 67 million pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                _check_size(path, *opened.size)
                opened.load()
                picture = opened if as_stored else ImageOps.exif_transpose(opened)
                if opened.format == "PPM" and opened.mode == "I":  # of more than 8 bits: 65535 is white
                    picture = Image.fromarray(np.asarray(picture).astype(np.uint16))
                return as_rgb(path, picture, as_stored)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: is a folder, not a picture") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"{path}: more than {MAX_PIXELS:,} pixels; split the picture first") from None
    except MemoryError:
        raise ImageError(f"{path}: not enough memory for this picture") from None
    except Exception as error:  # a damaged file can make Pillow raise nearly anything
        raise ImageError(f"{path}: not a readable picture ({error})") from None


def _check_size(path: Path, width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise ImageError(
            f"{path}: {width}x{height} is too large (at most {MAX_SIDE} a side, {MAX_PIXELS:,} pixels); split it first"
        )


def as_rgb(path: Path | str, picture: Image.Image, as_stored: bool = False) -> Picture:
    """The pixels of `picture`, which errors call `path`, as `read_image` gives them, not rotated."""
    if picture.mode in ("I", "F"):
        raise ImageError(f"{path}: {picture.mode} samples have no defined white; convert to 8 or 16 bits first")
    profile = None if as_stored else picture.info.get("icc_profile")
    if picture.has_transparency_data and _is_transparent(picture):
        raise ImageError(f"{path}: has transparent pixels, which a decoded PNG cannot show; flatten it first")
    if picture.mode.startswith("I;16"):
        # 16-bit grey: 65535 is white, so 257 steps a level; Pillow's own convert() would clip instead
        picture = Image.fromarray(((np.asarray(picture).astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif picture.mode not in SPACES:
        picture = picture.convert("L" if picture.mode in ("1", "LA", "La") else "RGB")
    if profile:
        try:
            picture = _to_srgb(picture, ImageCms.ImageCmsProfile(io.BytesIO(profile)))
        except (OSError, ImageCms.PyCMSError) as error:
            raise ImageError(f"{path}: its colour profile cannot be used ({error}); remove it") from None
    return np.array(picture.convert("RGB"), dtype=np.uint8)


#: The colour space of a profile that fits each mode.
SPACES = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}


def _is_transparent(picture: Image.Image) -> bool:
    """Whether any pixel is not opaque."""
    if picture.mode.startswith("I;16"):  # the one shade that is
        return bool((np.asarray(picture) == picture.info["transparency"]).any())
    return picture.convert("RGBA").getchannel("A").getextrema() != (255, 255)


def _to_srgb(picture: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    """A picture of one of SPACES; a profile for another space is not about its samples and says nothing."""
    if profile.profile.xcolor_space != SPACES[picture.mode] or "sRGB" in ImageCms.getProfileDescription(profile):
        return picture
    converted = ImageCms.profileToProfile(picture, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None
    return converted


def list_files(inputs: list[Path], suffixes: set[str], what: str) -> list[Path]:
    """Files named in `inputs`, folders expanded (not recursively) to their files with `suffixes`, in a stable order.

    Raises UserError if nothing is found, a path does not exist, or two files share a stem, since the stem names the
    output.
    """
    found: list[Path] = []
    for path in inputs:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes and p.is_file())
            if not inside:
                raise UserError(f"{path}: no {what} in this folder")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{path}: no such file or folder")
    stems: dict[str, Path] = {}
    for path in found:
        if (other := stems.setdefault(path.stem, path)) is not path:
            raise UserError(f"{path} and {other} would both be written as {path.stem!r}; rename one")
    return found


def list_images(inputs: list[Path]) -> list[Path]:
    """`list_files` for pictures."""
    return list_files(inputs, SUFFIXES, "pictures")


def read_stream(path: Path) -> bytes:
    """The bytes of a compressed file. UserError for one that is larger than any picture as it is: no memory for it."""
    if (size := path.stat().st_size) > MOST_STREAM:
        raise UserError(f"{size:,} bytes are more than any stream has")
    return path.read_bytes()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that is whole or absent: a temporary neighbour, then a rename."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:20]}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


def write_png(path: Path, picture: Picture) -> None:
    """Write `picture` (uint8 H x W x 3) as a PNG, whole or absent."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=1)
    write_bytes(path, buffer.getvalue())


def make_folder(path: Path) -> Path:
    """Create `path` if need be; UserError when something else stands there."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: exists and is not a folder")
    path.mkdir(parents=True, exist_ok=True)
    return path


def output_folder(path: Path) -> Path:
    """`make_folder`, and UserError unless files can be written there: found before the work."""
    if not os.access(make_folder(path), os.W_OK | os.X_OK):
        raise UserError(f"{path}: user {os.getuid()} may not write here; give another folder, or run as its owner")
    return path


#: renameat2(2): relative paths start at the current folder; swap the two.
AT_FDCWD, RENAME_EXCHANGE = -100, 2


def exchange(one: Path, other: Path) -> None:
    """Swap two folders of one file system in a single step, so that a kill leaves the old one or the new one.

    Where the system cannot, the other is moved aside first, to a visible neighbour: then a kill in between leaves
    both, and no folder in place.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    paths = os.fsencode(one), os.fsencode(other)
    if rename and rename(AT_FDCWD, paths[0], AT_FDCWD, paths[1], RENAME_EXCHANGE) == 0:
        return
    aside = other.with_name(f"{other.name}.old")
    if aside.exists():
        raise UserError(f"{aside}: left by an interrupted run; move it to {other.name} or delete it")
    other.rename(aside)
    one.rename(other)
    aside.rename(one)
