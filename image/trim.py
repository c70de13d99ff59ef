"""Delete from a folder of installed packages whatever decoding does not need: python trim.py PACKAGES

A made-up picture is encoded with every model; its streams, and a damaged one, are decoded here. What this process has
opened or mapped by then stays, with the licences of the packages it comes from. Runs while the image is built, on a
copy that nothing else uses.
"""

import importlib.metadata
import os
import sys
import tempfile
from pathlib import Path

#: Files that are not opened, but whose absence is an error.
LOOKED_FOR = ("torch/bin/torch_shm_manager",)


def watch() -> set[Path]:
    """A set to which the files that Python opens from now on are added."""
    opened: set[Path] = set()

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes):
            opened.add(Path(os.fsdecode(arguments[0])))

    sys.addaudithook(hook)
    return opened


def decode_everything() -> None:
    """Decode a stream of every model and a damaged one; stops the program unless just that one fails."""
    import numpy as np  # here, so that what it opens is seen

    from submission.decode import main
    from submission.ladder import Ladder

    row, column, channel = np.indices((200, 300, 3))  # some structure, without loading a random generator
    picture = ((row * column // 50 + 31 * row * row % 47 + 40 * channel) % 256).astype(np.uint8)
    ladder = Ladder.load()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for quality in ladder.qualities:
            (folder / f"{quality}.clic").write_bytes(ladder.codec(quality).compress(picture))
        (folder / "damaged.clic").write_bytes(b"\x20" + bytes(40))
        sys.argv = ["decode", temporary, "-o", temporary]
        if main() != 2 or len(list(folder.glob("*.png"))) != len(ladder.models):
            sys.exit("error: decoding failed, so nothing is deleted")


def mapped() -> set[Path]:
    """Shared libraries of this process."""
    return {Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}


def main() -> None:
    packages = Path(sys.argv[1]).resolve()
    opened = watch()
    decode_everything()
    keep = {path.resolve() for path in opened | mapped()} | {packages / name for name in LOOKED_FOR}
    for distribution in importlib.metadata.distributions(path=[str(packages)]):
        files = {Path(str(file.locate())).resolve() for file in distribution.files or []}
        if any(file in keep and file.parent.suffix != ".dist-info" for file in files):
            keep |= {file for file in files if any(parent.suffix == ".dist-info" for parent in file.parents)}
        else:
            keep -= files
    files = {path for path in packages.rglob("*") if not path.is_dir() or path.is_symlink()}
    for path in files - keep:
        path.unlink()
    for path in sorted((path for path in packages.rglob("*") if path.is_dir()), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()
    kept = files & keep
    print(
        f"{packages}: kept {len(kept)} of {len(files)} files, {sum(path.stat().st_size for path in kept) / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
