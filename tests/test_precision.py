"""bfloat16 changes no symbol that a decoder finds, and pictures by at most one level."""

from pathlib import Path

import numpy as np
import pytest
import torch

from submission import codec as codec_module
from submission.codec import Codec
from submission.ladder import Ladder
from tests.conftest import noise_picture

QUALITIES = Ladder.load().qualities


def load(quality: int, fast: bool, folder: Path | None = None) -> Codec:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec_module, "fast_bfloat16", lambda: fast)
        return (Ladder.load(folder) if folder else Ladder.load()).codec(quality)


@pytest.mark.parametrize("quality", QUALITIES)
def test_pictures_are_within_one_level(quality: int) -> None:
    exact, fast = load(quality, False), load(quality, True)
    stream = exact.compress(noise_picture(120, 200, quality))
    one, other = (codec.decompress(stream).astype(np.int16) for codec in (exact, fast))
    assert np.abs(one - other).max() <= 1 and np.mean(one != other) < 0.02
    assert {p.dtype for p in fast.transforms.post_filter.parameters()} == {torch.bfloat16}


def test_streams_of_either_are_decoded_alike_by_both() -> None:
    image = noise_picture(130, 190)
    codecs = [load(3, fast) for fast in (False, True)]
    encoded = [codec.encode(image) for codec in codecs]
    sizes = [len(e.stream) for e in encoded]
    assert encoded[0].stream != encoded[1].stream  # other roundings in g_a: the test sees both
    assert abs(sizes[0] - sizes[1]) < 0.01 * sizes[0] + 4
    for e, own in zip(encoded, codecs, strict=True):
        assert np.array_equal(own.decompress(e.stream), e.reconstruction)
        for codec in codecs:
            difference = codec.decompress(e.stream).astype(np.int16) - e.reconstruction
            assert np.abs(difference).max() <= 1


def test_without_bfloat16_nothing_is_in_it(ladder_folder: Path) -> None:
    codec = load(1, False, ladder_folder)
    codec.encode(noise_picture(64, 64))
    assert {p.dtype for p in codec.transforms.parameters()} == {torch.float32}


def test_y_keeps_all_its_digits(ladder_folder: Path) -> None:
    """bfloat16 multiplies at the larger sizes only, and what it makes is summed up in float32."""
    exact, fast = (load(1, fast, ladder_folder) for fast in (False, True))
    image = noise_picture(128, 192)
    (y, _), (y_fast, _) = (codec.continuous_latents(image) for codec in (exact, fast))
    assert y_fast.dtype == torch.float32 and not torch.equal(y_fast.bfloat16().float(), y_fast)
    assert 0 < (y - y_fast).abs().mean() < 0.01 * y.abs().mean()
