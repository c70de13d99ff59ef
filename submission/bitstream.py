"""The stream of one picture: a header of ten bytes, then the entropy-coded latents (`docs/bitstream.md`)."""

import binascii
from dataclasses import dataclass

from submission.errors import BitstreamError
from submission.latent_coding import Latents

#: Any change of the bytes made from the same picture and weights is a new version.
VERSION = 1

#: Header fields in order, most significant bit first: name and width in bits. Both directions use this table.
FIELDS = (
    ("version", 3),
    ("quality", 5),
    ("height", 16),
    ("width", 16),
    ("model", 8),
    ("latents_check", 16),
    ("stream_check", 16),
)
HEADER_BYTES = sum(bits for _, bits in FIELDS) // 8

#: Qualities that the field can hold.
MAX_QUALITIES = 32


@dataclass(frozen=True)
class Header:
    """What a decoder needs to know before it starts."""

    quality: int
    #: True size in pixels, 1..65535.
    height: int
    width: int
    #: First byte of the model file's SHA-256.
    model: int
    #: CRC-16 of the decoded latents: catches a decoder that found other symbols than the encoder coded.
    latents_check: int


def latents_check(y_hat: Latents, z_hat: Latents, unit: int = 1) -> int:
    """CRC-16/XMODEM of z_hat and y_hat in memory order [h, w, channels]: signed bytes, or for a y_hat in steps of 1/64
    (`unit`) signed 16-bit integers, the low byte first."""
    y_bytes = y_hat.astype("i1" if unit == 1 else "<i2").tobytes()
    return binascii.crc_hqx(y_bytes, binascii.crc_hqx(z_hat.astype("i1").tobytes(), 0))


def _stream_check(head: bytes, payload: bytes) -> int:
    return binascii.crc_hqx(payload, binascii.crc_hqx(head, 0xFFFF))


def write(header: Header, payload: bytes) -> bytes:
    """Header and payload as one stream."""
    values = {**vars(header), "version": VERSION, "stream_check": 0}
    bits = 0
    for name, width in FIELDS:
        if not 0 <= values[name] < 1 << width:
            raise BitstreamError(f"{name} {values[name]} does not fit {width} bits")
        bits = bits << width | values[name]
    head = bits.to_bytes(HEADER_BYTES, "big")[:-2]
    return head + _stream_check(head, payload).to_bytes(2, "big") + payload


def read(data: bytes) -> tuple[Header, bytes]:
    """The inverse of `write`; BitstreamError for anything that `write` of this version did not make."""
    if len(data) < HEADER_BYTES:
        raise BitstreamError(f"{len(data)} bytes are too few for a stream (damaged or another kind of file)")
    bits = int.from_bytes(data[:HEADER_BYTES], "big")
    values = {}
    for name, width in reversed(FIELDS):
        values[name] = bits & ((1 << width) - 1)
        bits >>= width
    payload = data[HEADER_BYTES:]
    if values.pop("version") != VERSION:
        raise BitstreamError(f"not a stream of version {VERSION} (another program's file, or damaged)")
    if values.pop("stream_check") != _stream_check(data[: HEADER_BYTES - 2], payload):
        raise BitstreamError("checksum is wrong: the stream is damaged or truncated")
    if values["height"] == 0 or values["width"] == 0:
        raise BitstreamError("picture size is zero")
    return Header(**values), payload


def read_header(data: bytes) -> Header:
    """The header of a whole stream, which is checked first."""
    return read(data)[0]
