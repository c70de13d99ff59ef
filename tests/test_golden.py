"""Golden bitstreams: the same latents give the same bytes, byte for byte, and these bytes give the latents back.

When this fails the format has changed: raise `bitstream.VERSION`, say so in CHANGELOG, then run
`python -m tests.make_golden`. For a new ladder only the `shipped_*` and `photo*` files change. Each range
coder is held to them, and every machine: `test_arm.py` has what an ARM machine makes of the photos.
"""

import importlib
from pathlib import Path

import numpy as np
import pytest

from submission import bitstream, latent_coding
from submission.ladder import Ladder
from tests.everywhere import GOLDEN, assert_as_golden, facts
from tests.make_golden import (
    NETWORK_MODELS,
    fixed_latents,
    network_entropy,
    network_latents,
    payloads,
    tiny_codec,
)


@pytest.fixture(params=["coder_python", "coder_constriction"], autouse=True)
def coder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code with this range coder."""
    try:
        module = importlib.import_module(f"submission.{request.param}")
    except ImportError:
        pytest.skip("constriction is not published for this machine")
    monkeypatch.setattr(latent_coding, "Encoder", module.Encoder)
    monkeypatch.setattr(latent_coding, "Decoder", module.Decoder)


def test_encoder_output_byte_by_byte() -> None:
    made = payloads()
    assert sorted(made) == sorted(path.stem for path in GOLDEN.glob("*.bin"))
    for name, payload in made.items():
        assert payload == (GOLDEN / f"{name}.bin").read_bytes(), name


def test_golden_bytes_decode() -> None:
    entropy = tiny_codec().entropy
    y, z = fixed_latents(entropy.config, 2, 3)
    y_hat, z_hat = entropy.decode((GOLDEN / "tiny.bin").read_bytes(), (8, 12))
    assert np.mean(y_hat != y) < 0.01
    assert np.array_equal(z_hat, np.clip(z, -entropy.z_peak, entropy.z_peak))


@pytest.mark.parametrize("name", NETWORK_MODELS)
def test_golden_bytes_of_the_networks_decode(name: str) -> None:
    entropy = network_entropy(name)
    _, y_hat, z_hat = entropy.encode(*network_latents(entropy))
    found = entropy.decode((GOLDEN / f"{name}.bin").read_bytes(), (8, 12))
    assert np.array_equal(found[0], y_hat) and np.array_equal(found[1], z_hat)


def test_header_bytes() -> None:
    header = bitstream.Header(quality=3, height=768, width=512, model=0xAB, latents_check=0x1234)
    assert bitstream.write(header, b"payload").hex() == "2303000200ab1234" + "df8e" + b"payload".hex()


@pytest.mark.parametrize("quality", Ladder.load().qualities)
def test_shipped_streams_decode(quality: int) -> None:
    entropy = Ladder.load().codec(quality).entropy
    _, y_hat, z_hat = entropy.encode(*fixed_latents(entropy.config, 1, 1))
    found = entropy.decode((GOLDEN / f"shipped_{quality}.bin").read_bytes(), (4, 4))
    assert np.array_equal(found[0], y_hat) and np.array_equal(found[1], z_hat)


def test_photos_decode_on_this_machine(tmp_path: Path) -> None:
    assert_as_golden(facts(tmp_path), tmp_path)
