"""The ladder: the models that a set of pictures is coded with, in one folder, each checked before use.

The folder holds `manifest.json` and one safetensors file a model, ordered by rate: model k is quality k.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from submission import bitstream
from submission.codec import Codec
from submission.config import ModelConfig
from submission.errors import BitstreamError, WeightsError
from submission.files import Picture
from submission.latent_coding import Tensors

#: The weights that come with this package.
DEFAULT_WEIGHTS = Path(__file__).parent / "weights"

MANIFEST = "manifest.json"

#: Version of the manifest and of the model files' contents.
FORMAT = 1


class Ladder:
    """Models by quality, loaded when first used."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.models: list[dict[str, Any]] = manifest["models"]
        #: Identifies the ladder: a hash over the hashes of its models.
        self.id: str = hashlib.sha256("".join(m["sha256"] for m in self.models).encode()).hexdigest()
        self._codecs: dict[int, Codec] = {}

    @classmethod
    def load(cls, folder: Path = DEFAULT_WEIGHTS) -> "Ladder":
        """Read the manifest of `folder`; WeightsError when it is missing or not understood."""
        path = folder / MANIFEST
        try:
            manifest = json.loads(path.read_text())
            if manifest["format"] != FORMAT:
                raise WeightsError(f"{path}: format {manifest['format']}, this program reads {FORMAT}")
            if not 0 < len(manifest["models"]) <= bitstream.MAX_QUALITIES:
                raise WeightsError(f"{path}: names {len(manifest['models'])} models, not 1..{bitstream.MAX_QUALITIES}")
            for model in manifest["models"]:
                ModelConfig.from_json(model["config"])
                _ = (str(model["file"]), bytes.fromhex(model["sha256"]), float(model["lmbda"]))
            return cls(folder, manifest)
        except OSError:
            raise WeightsError(f"{path}: no weights here; give --weights, or make some with training.export") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise WeightsError(f"{path}: not a manifest of weights") from None

    @property
    def qualities(self) -> list[int]:
        """0 .. number of models - 1, in order of rate."""
        return list(range(len(self.models)))

    def model_hash(self, quality: int) -> str:
        """SHA-256 of the model's file, in hex."""
        return str(self.models[quality]["sha256"])

    def codec(self, quality: int) -> Codec:
        """The model of one quality. WeightsError if there is none, or its file is missing or damaged."""
        if quality not in range(len(self.models)):
            raise WeightsError(f"{self.folder}: no model of quality {quality}; there are 0..{len(self.models) - 1}")
        if quality not in self._codecs:
            entry = self.models[quality]
            path = self.folder / str(entry["file"])
            try:
                data = path.read_bytes()
            except OSError:
                raise WeightsError(f"{path}: missing or unreadable; restore the weights folder") from None
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise WeightsError(f"{path}: SHA-256 differs from the manifest: damaged or replaced")
            config = ModelConfig.from_json(entry["config"])
            tag = bytes.fromhex(entry["sha256"])[0]
            self._codecs[quality] = Codec(config, read_safetensors(path, data), quality, tag)
        return self._codecs[quality]

    def decompress(self, stream: bytes) -> Picture:
        """Decode a stream with the model that it names."""
        return self.codec_of(bitstream.read_header(stream)).decompress(stream)

    def codec_of(self, header: bitstream.Header) -> Codec:
        """The model that a stream names. BitstreamError if there is none."""
        if header.quality not in self.qualities:
            raise BitstreamError(f"wants model {header.quality}, but these weights end at {self.qualities[-1]}")
        return self.codec(header.quality)


_DTYPES = {"F16": np.float16, "F32": np.float32, "I8": np.int8, "I16": np.int16, "I32": np.int32}


def read_safetensors(path: Path, data: bytes) -> Tensors:
    """Tensors of a safetensors file: a length, a JSON directory, raw little-endian arrays. Needs no library, which
    keeps the decoder's image to four dependencies."""
    try:
        start = 8 + int.from_bytes(data[:8], "little")
        directory = json.loads(data[8:start])
        tensors: Tensors = {}
        for name, entry in directory.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                dtype = np.dtype(_DTYPES[entry["dtype"]]).newbyteorder("<")
                flat: NDArray[np.generic] = np.frombuffer(data[start + begin : start + end], dtype)
                tensors[name] = flat.reshape(entry["shape"])
        return tensors
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: not a model file ({error})") from None
