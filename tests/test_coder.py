"""Two range coders that are one: same bytes from the same symbols, same symbols or the same damage from any bytes.

A machine that constriction is not published for tests its own coder alone, against the golden streams too.
"""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from submission import coder_python, latent_coding
from submission.errors import BitstreamError
from submission.ladder import Ladder
from submission.mixture import CODER_BITS, Rows
from submission.symbols import UNIFORM, Sink
from tests.conftest import noise_picture

try:
    from submission import coder_constriction
except ImportError:
    coder_constriction = None  # type: ignore[assignment]

#: Rows of weights and a symbol of each, and whether all are coded with the first row.
Part = tuple[NDArray[np.float64], NDArray[np.int32], bool]

both = pytest.mark.skipif(coder_constriction is None, reason="constriction is not published for this machine")


@st.composite
def parts(draw: st.DrawFn, smallest: int = 3) -> list[Part]:
    """What an entropy model may ask for: rows from flat to all but certain, likely symbols and unlikely ones."""
    made = []
    for _ in range(draw(st.integers(0, 4))):
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        count, size = draw(st.integers(0, 20)), draw(st.sampled_from([smallest, 3, 9, 33, 255]))
        weights = rng.random((max(count, 1), size)) ** draw(st.sampled_from([0, 1, 30, 1000])) + 1e-9
        sums = np.floor(np.cumsum(weights, 1) / weights.sum(1, keepdims=True) * (2**CODER_BITS - size))
        sums[:, -1] = 2**CODER_BITS - size
        rows = np.ascontiguousarray(np.diff(sums, axis=1, prepend=0))
        likely = draw(st.booleans())
        symbols = rows.argmax(1) if likely else rng.integers(0, size, len(rows))
        made.append((rows[:count], symbols[:count].astype(np.int32), count > 0 and draw(st.booleans())))
    return made


def encode(encoder: Sink, rows: Rows, symbols: NDArray[np.int32]) -> None:
    """Each symbol with its row."""
    ends = np.cumsum(rows + 1, axis=1).astype(np.int32)[np.arange(len(rows)), symbols]
    widths = rows[np.arange(len(rows)), symbols].astype(np.int32) + 1
    encoder.encode(ends - widths, widths)


def encoded(coder: ModuleType, parts: list[Part]) -> bytes:
    encoder = coder.Encoder()
    for rows, symbols, alike in parts:
        encode(encoder, np.repeat(rows[:1], len(rows), 0) if alike else rows, symbols)
    data: bytes = encoder.bytes()
    return data


def decoded(coder: ModuleType, data: bytes, parts: list[Part]) -> list[object]:
    """The symbols of each part up to where the data is found to be damaged, and that it is."""
    decoder = coder.Decoder(data)
    found: list[object] = []
    try:
        for rows, symbols, alike in parts:
            result = decoder.decode_alike(rows[0], len(symbols)) if alike else decoder.decode(rows)
            assert result.dtype == np.int32
            found.append(result.tolist())
    except BitstreamError as error:
        found.append(str(error))
    return found


@settings(max_examples=200, deadline=None)
@given(parts())
def test_symbols_come_back(parts: list[Part]) -> None:
    data = encoded(coder_python, parts)
    assert decoded(coder_python, data, parts) == [symbols.tolist() for _, symbols, _ in parts]
    assert not data.endswith(b"\0")


@both
@settings(max_examples=200, deadline=None)
@given(parts())
def test_same_bytes_as_constriction(parts: list[Part]) -> None:
    data = encoded(coder_python, parts)
    assert data == encoded(coder_constriction, parts)
    assert decoded(coder_constriction, data, parts) == [symbols.tolist() for _, symbols, _ in parts]


@both
@settings(max_examples=200, deadline=None)
@given(parts(2), st.one_of(st.binary(max_size=40), st.integers(0, 9).map(lambda count: b"\xff" * count)))
def test_same_symbols_or_damage_from_any_bytes(parts: list[Part], data: bytes) -> None:
    assert decoded(coder_python, data, parts) == decoded(coder_constriction, data, parts)


@pytest.mark.parametrize("count", [5, 40, 1000])
def test_long_carries(count: int) -> None:
    """Symbols whose interval stays around 1/2: every word waits for whether the last symbol carries."""
    half = coder_python.Decoder(b"\0\0\0\x80").decode_alike(UNIFORM, count)
    firsts = set()
    for last in (0, 254):
        parts = [(np.tile(UNIFORM, (count + 1, 1)), np.append(half, np.int32(last)), False)]
        data = encoded(coder_python, parts)
        firsts.add(data[:4])
        assert decoded(coder_python, data, parts) == [parts[0][1].tolist()]
        if coder_constriction is not None:
            assert data == encoded(coder_constriction, parts)
    assert firsts == {b"\xff\xff\xff\x7f", b"\0\0\0\x80"}


@pytest.mark.parametrize("coder", [coder_python, pytest.param(coder_constriction, marks=both)])
def test_coded_words(coder: ModuleType) -> None:
    """Literal bytes: a coder that writes others is another format."""
    symbols = np.array([0, 254, 127, 1, 200, 3, 3, 3], np.int32)
    encoder = coder.Encoder()
    encode(encoder, np.tile(UNIFORM, (len(symbols), 1)), symbols)
    encode(encoder, np.array([[2.0**CODER_BITS - 3, 0, 0]]), np.array([2], np.int32))
    assert encoder.bytes().hex() == "7e7f0001e085734958a1c680"
    assert coder.Encoder().bytes() == b""


@both
def test_same_damage_in_a_stream(ladder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both decode a damaged payload to the same latents, or find what no encoder writes."""
    codec = Ladder.load(ladder_folder).codec(1)
    data, y_hat, _ = codec.entropy.encode(*codec.latents(noise_picture(64, 64)))
    payloads = [b"\xff" * len(data)]
    for position in range(0, len(data), len(data) // 20):
        payloads.append(data[:position] + bytes([data[position] ^ 0x5A]) + data[position + 1 :])
    found: dict[ModuleType, list[str | bytes]] = {coder_python: [], coder_constriction: []}
    for coder, results in found.items():
        monkeypatch.setattr(latent_coding, "Decoder", coder.Decoder)
        for payload in payloads:
            try:
                y, z = codec.entropy.decode(payload, y_hat.shape[:2])
                results.append(y.tobytes() + z.tobytes())
            except BitstreamError as error:
                results.append(str(error))
    assert found[coder_python] == found[coder_constriction]
    assert found[coder_python][0] == "entropy-coded data is damaged"
