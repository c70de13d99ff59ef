"""Write tests/golden anew: after a deliberate change of the format, or for a new ladder. Not a test.

`tiny.safetensors` is a model that never changes with the ladder: its streams show any change of the format. So are
those named after networks of the 4th paper, one for each entropy model, without transforms and tables.
"""

import json
import shutil

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from submission.codec import Codec
from submission.config import PRESETS, ModelConfig, tiny
from submission.files import write_bytes
from submission.ladder import DEFAULT_WEIGHTS, Ladder, read_safetensors
from submission.latent_coding import LatentCoder
from submission.parts import entropy_coder
from tests.conftest import make_ladder, noise_picture, untrained_network
from tests.everywhere import GOLDEN, facts
from training.export import export_tensors

#: Golden models besides `tiny`.
NETWORK_MODELS = ("ms-hyper", "ms-hyper-zero", "ms-context", "cheng-attn", "charm-zero", "elic-zero")


def fixed_latents(config: ModelConfig, rows: int, columns: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """y [4 rows, 4 columns, M] and z [rows, columns, N] from a multiplicative generator, the same on every machine."""
    count = rows * columns * (16 * config.M + config.N)
    state, values = 12345, np.empty(count, np.int32)
    for k in range(count):
        state = state * 16807 % 2147483647
        # mostly zero, sometimes a few steps, rarely far out
        kind, size = state % 100, state // 100
        values[k] = 0 if kind < 80 else size % 7 - 3 if kind < 99 else size % 255 - 127
    split = rows * columns * 16 * config.M
    return values[:split].reshape(4 * rows, 4 * columns, -1), values[split:].reshape(rows, columns, -1)


def tiny_codec() -> Codec:
    path = GOLDEN / "tiny.safetensors"
    return Codec(PRESETS["tiny"], read_safetensors(path, path.read_bytes()), 0, 0)


def network_entropy(name: str) -> LatentCoder:
    path = GOLDEN / f"{name}.safetensors"
    tables = {f"tables.{k}": v for k, v in vars(tiny_codec().entropy.tables).items()}
    return entropy_coder(tiny(PRESETS[name]), tables | read_safetensors(path, path.read_bytes()))


def network_latents(entropy: LatentCoder) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Fixed latents in the steps of this model: 1/64 where they are rounded around means."""
    y, z = fixed_latents(entropy.config, 2, 3)
    return entropy.unit * y + np.arange(y.shape[-1], dtype=np.int32) * 7 % entropy.unit, z


def payloads() -> dict[str, bytes]:
    """Entropy-coded fixed latents: by the golden model, and by each model of the shipped ladder."""
    codec = tiny_codec()
    made = {"tiny": codec.entropy.encode(*fixed_latents(codec.config, 2, 3))[0]}
    for name in NETWORK_MODELS:
        entropy = network_entropy(name)
        made[name] = entropy.encode(*network_latents(entropy))[0]
    ladder = Ladder.load(DEFAULT_WEIGHTS)
    for quality in ladder.qualities:
        entropy = ladder.codec(quality).entropy
        made[f"shipped_{quality}"] = entropy.encode(*fixed_latents(entropy.config, 1, 1))[0]
    return made


def write_photos() -> None:
    """Streams of pictures by three models of the shipped ladder, and what this machine makes of them."""
    ladder = Ladder.load(DEFAULT_WEIGHTS)
    for quality in sorted({ladder.qualities[at] for at in (0, len(ladder.models) // 2, -1)}):
        stream = ladder.codec(quality).compress(noise_picture(183, 253))
        (GOLDEN / f"photo_{quality}.clic").write_bytes(stream)
    (GOLDEN / "photos.json").write_text(json.dumps(facts(GOLDEN)) + "\n")


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    if not (GOLDEN / "tiny.safetensors").exists():
        ladder = make_ladder(GOLDEN / "weights")
        shutil.copy(ladder / "model_0.safetensors", GOLDEN / "tiny.safetensors")
        shutil.rmtree(ladder)
    for k, name in enumerate(NETWORK_MODELS):
        if not (GOLDEN / f"{name}.safetensors").exists():
            crops = np.stack([noise_picture(192, 192, seed) for seed in range(2)])
            tensors = export_tensors(untrained_network(tiny(PRESETS[name]), k), crops)
            entropy = {k.removeprefix("entropy."): v for k, v in tensors.items() if k.startswith("entropy.")}
            own = {k: v for k, v in entropy.items() if not k.startswith("tables.")}
            write_bytes(GOLDEN / f"{name}.safetensors", save(own))
    for old in [*GOLDEN.glob("*.bin"), *GOLDEN.glob("photo*")]:
        old.unlink()
    for name, payload in payloads().items():
        (GOLDEN / f"{name}.bin").write_bytes(payload)
    write_photos()


if __name__ == "__main__":
    main()
