"""Build the decoder folder, as one zip: for judges who bring a Python with torch, numpy and pillow.

Unpacked beside streams, `decode` without arguments writes their PNGs there. What makes it faster, constriction, comes
along: as installed here, and from the wheels in --wheels for other versions of Python (`make wheels`).
"""

import argparse
import hashlib
import importlib.metadata
import io
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import submission
from submission.console import run
from submission.errors import UserError, WeightsError
from submission.files import make_folder, write_bytes
from submission.ladder import DEFAULT_WEIGHTS, Ladder
from submission.ladder import MANIFEST as WEIGHTS_MANIFEST

#: The organisers' limit on the decoder, weights included.
MAX_DECODER_BYTES = 250_000_000

#: What judges are not expected to have; the decoder does without where there is none for their Python.
VENDORED = "constriction"

DECODE = '''\
#!/usr/bin/env python3
"""Decode the *.clic files of the current folder into PNGs beside them. Code and weights stand in decoder/."""

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

if sys.version_info < (3, 11):
    print("error: the decoder needs Python 3.11 or later, but python3 is " + sys.version.split()[0], file=sys.stderr)
    sys.exit(2)

decoder = Path(__file__).resolve().parent / "decoder"
sys.path.insert(0, str(decoder))
if (decoder / "vendor" / "constriction" / ("constriction" + EXTENSION_SUFFIXES[0])).is_file():
    sys.path.insert(0, str(decoder / "vendor"))
sys.dont_write_bytecode = True

try:
    import numpy  # before torch, which without it warns at length

    from submission.console import run
    from submission.decode import main
except ImportError as error:
    print(f"error: {error}; the decoder needs torch, numpy and pillow", file=sys.stderr)
    sys.exit(2)

run(main)
'''


def write_decoder(folder: Path, ladder: Ladder, qualities: Iterable[int], wheels: Path | None = None) -> None:
    """Write `decode` and `decoder/` into `folder`: the code of `submission`, what `qualities` need of its weights, and
    constriction, as installed here, if it is, and from the wheels in `wheels`.

    Raises WeightsError for damaged weights, UserError for wheels of different versions.
    """
    write(folder / "decode", DECODE.encode(), executable=True)
    code = folder / "decoder" / "submission"
    assert submission.__file__ is not None
    for source in sorted(Path(submission.__file__).parent.glob("*.py")):
        write(code / source.name, source.read_bytes())
    write(code / "weights" / WEIGHTS_MANIFEST, (ladder.folder / WEIGHTS_MANIFEST).read_bytes())
    for quality in sorted(qualities):
        name = str(ladder.models[quality]["file"])
        model = (ladder.folder / name).read_bytes()
        if hashlib.sha256(model).hexdigest() != ladder.model_hash(quality):
            raise WeightsError(f"{ladder.folder / name}: SHA-256 differs from the manifest: damaged or replaced")
        write(code / "weights" / name, model)
    for path, data in [*installed(), *unpacked(wheels)]:
        write(folder / "decoder" / "vendor" / path, data)


def write(path: Path, data: bytes, executable: bool = False) -> None:
    """Write a file with fixed permissions, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o755 if executable else 0o644)


def installed() -> Iterator[tuple[PurePosixPath, bytes]]:
    """Files of constriction as installed here; none where it is not."""
    try:
        files = importlib.metadata.files(VENDORED) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if wanted(file):
            yield PurePosixPath(file), Path(str(file.locate())).read_bytes()


def installed_version() -> str | None:
    """The version of constriction that encodes here; None where our own coder does."""
    try:
        return importlib.metadata.version(VENDORED)
    except importlib.metadata.PackageNotFoundError:
        return None


def unpacked(wheels: Path | None) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Files of constriction in the wheels of a folder; they differ in their binaries alone, whose names say for which
    Python and machine they are, so all of them fit into one folder. UserError for another version than installed, or
    than the first wheel's."""
    version = installed_version()
    for wheel in sorted(wheels.glob(f"{VENDORED}-*.whl")) if wheels else []:
        found = wheel.name.split("-")[1]
        version = version or found
        if found != version:
            raise UserError(f"{wheel}: not version {version}, which comes along already")
        try:
            with zipfile.ZipFile(wheel) as archive:
                paths = map(PurePosixPath, archive.namelist())
                yield from ((path, archive.read(str(path))) for path in paths if wanted(path))
        except zipfile.BadZipFile:
            raise UserError(f"{wheel}: not a wheel; fetch it again") from None


def add_wheels(parser: argparse.ArgumentParser) -> None:
    """The option --wheels, of each command that writes a decoder; UserError, before any work, for a missing folder."""

    def folder(name: str) -> Path:
        if not Path(name).is_dir():
            raise UserError(f"{name}: no such folder; make wheels fills one")
        return Path(name)

    parser.add_argument(
        "--wheels", type=folder, metavar="DIR", help=f"wheels of {VENDORED} for other Pythons' decoders"
    )


def wanted(path: PurePosixPath) -> bool:
    """Whether a file of a distribution is needed to run it, or to hand it on: code, binaries, licences."""
    return (path.parts[0] == VENDORED and path.suffix in {".py", ".so"}) or "licenses" in path.parts


def machines(folder: Path) -> list[str]:
    """Pythons and machines that the decoder in `folder` has constriction for: `cpython-311-x86_64-linux-gnu`."""
    return sorted(path.name.split(".")[1] for path in (folder / "decoder" / "vendor" / VENDORED).glob("*.so"))


def zipped(folder: Path) -> bytes:
    """`folder` as a zip that keeps its modes; the same bytes for the same content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix())
            entry.compress_type, entry.create_system = zipfile.ZIP_DEFLATED, 3  # Unix, which has modes
            entry.external_attr = path.stat().st_mode << 16
            archive.writestr(entry, path.read_bytes())
    return buffer.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ratecontrol.decoder",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m ratecontrol.decoder -o decoder.zip --wheels wheels",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="ZIP")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, metavar="DIR", help="ladder (default: ours)")
    add_wheels(parser)
    options = parser.parse_args()
    ladder = Ladder.load(options.weights)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_decoder(folder, ladder, ladder.qualities, options.wheels)
        data, pythons = zipped(folder), machines(folder)
    make_folder(options.output.parent)
    write_bytes(options.output, data)
    print(
        f"{options.output}: {len(data) / 1e6:.1f} MB of {MAX_DECODER_BYTES / 1e6:.0f}, all {len(ladder.models)} models"
    )
    print(f"needs torch, numpy and pillow; has {VENDORED}, which is faster, for {', '.join(pythons) or 'no Python'}")
    return check_size(len(data))


def check_size(decoder_bytes: int) -> int:
    """The exit code for a decoder of this size, with a word on stderr if the rules forbid it."""
    if decoder_bytes <= MAX_DECODER_BYTES:
        return 0
    print("warning: the decoder is larger than the rules allow; choose fewer or smaller models", file=sys.stderr)
    return 1


if __name__ == "__main__":
    run(main)
