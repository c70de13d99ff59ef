"""What this machine makes of the golden photos: `python tests/everywhere.py DIR` writes their PNGs there and prints
facts as JSON. Not a test, but run by tests, on other machines too: it needs torch, numpy and pillow alone.
"""

import hashlib
import json
import platform
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from submission import bitstream, latent_coding
from submission.codec import latent_size
from submission.coder import Decoder
from submission.files import read_image, write_png
from submission.integer import Int32
from submission.ladder import Ladder
from submission.mixture import Rows

GOLDEN = Path(__file__).parent / "golden"


def facts(output: Path) -> dict[str, object]:
    """Decode every golden photo into `output`: how many rows of probabilities its symbols were decoded with, one hash
    of all these rows and symbols, and whose latents do not give the stream's bytes again."""
    record, rows_seen, other_bytes = hashlib.sha256(), 0, []

    in_use: Any = vars(latent_coding)["Decoder"]  # a test may have exchanged it

    class Watched(in_use):  # type: ignore[misc]
        def decode(self, rows: Rows) -> Int32:
            return self.watch(rows, super().decode(rows))

        def decode_alike(self, row: Rows, count: int) -> Int32:
            return self.watch(row, super().decode_alike(row, count))

        def watch(self, rows: Rows, found: Int32) -> Int32:
            nonlocal rows_seen
            rows_seen += len(found)
            record.update(rows.astype("<f8").tobytes() + found.astype("<i4").tobytes())
            return found

    ladder = Ladder.load()
    with mock.patch.object(latent_coding, "Decoder", Watched):
        for path in sorted(GOLDEN.glob("photo_*.clic")):
            header, payload = bitstream.read(path.read_bytes())
            codec = ladder.codec(header.quality)
            y, z = codec.entropy.decode(payload, latent_size(header.height, header.width))
            if codec.entropy.encode(y, z)[0] != payload:
                other_bytes.append(path.name)
            picture = codec._reconstruct(codec.entropy.dequantize(y, z), header.height, header.width)
            write_png(output / f"{path.stem}.png", picture)
    return {"rows": rows_seen, "sha256": record.hexdigest(), "other bytes": other_bytes}


def assert_as_golden(found: object, output: Path) -> None:
    """The facts, and pictures in `output`, are those that were stored: pictures within one level."""
    assert found == json.loads((GOLDEN / "photos.json").read_text())
    pictures = sorted(GOLDEN.glob("photo_*.png"))
    assert [path.name for path in pictures] == sorted(path.name for path in output.glob("*.png"))
    for path in pictures:
        difference = read_image(path).astype(int) - read_image(output / path.name)
        assert np.abs(difference).max() <= 1, path.name


if __name__ == "__main__":
    about = {"machine": platform.machine(), "torch": torch.__version__, "coder": Decoder.__module__}
    print(json.dumps({"facts": facts(Path(sys.argv[1])), **about}))
