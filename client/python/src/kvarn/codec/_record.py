"""Records as bytes: sizes, packing, the arrays inside (FORMAT.md sections 3 and 4)."""
from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

NDArray = np.ndarray[Any, Any]
VALUE_MAX = 32768.0  # of a rotated number that is encoded
DECODED_MAX = 40960.0  # of one that a record decodes to


@dataclasses.dataclass(frozen=True)
class TileSpec:
    """k_dim, v_dim: head_dim of K and V, multiples of 8 up to 512. group: 64 or 128 tokens.
    k_bits, v_bits: 2 or 4."""
    k_dim: int
    v_dim: int
    group: int = 128
    k_bits: int = 2
    v_bits: int = 2

    def __post_init__(self) -> None:
        dims = all(8 <= d <= 512 and d % 8 == 0 for d in (self.k_dim, self.v_dim))
        if not dims or self.group not in (64, 128) or not {self.k_bits, self.v_bits} <= {2, 4}:
            raise ValueError(f"the format does not allow {self}")

    @property
    def record_bytes(self) -> int:
        """Bytes of a record, a multiple of 8."""
        codes = self.group * (self.k_dim * self.k_bits + self.v_dim * self.v_bits) // 8
        scales = 2 * (2 * self.k_dim + self.group) + 2 * (self.v_dim + 2 * self.group)
        return (codes + scales + 7) // 8 * 8


class Planes(NamedTuple):
    """What a record holds. Codes are one a byte; scales are fp16.

    K[d, g] = (k_codes[d, g] * k_scale[d] + k_zero[d]) * k_token[g]
    V[g, d] = (v_codes[g, d] * v_scale[g] + v_zero[g]) * v_channel[d]
    """
    k_codes: NDArray
    k_scale: NDArray
    k_zero: NDArray
    k_token: NDArray
    v_codes: NDArray
    v_channel: NDArray
    v_scale: NDArray
    v_zero: NDArray


def pack(codes: NDArray, bits: int) -> NDArray:
    """uint8 codes [..., n] -> uint8 [..., n * bits / 8]; value i is in byte i // (8 / bits)."""
    each = 8 // bits
    parts = [codes[..., i::each].astype(np.uint8) << (i * bits) for i in range(each)]
    return np.asarray(np.bitwise_or.reduce(parts))


def unpack(packed: NDArray, bits: int) -> NDArray:
    """The inverse of pack."""
    each, mask = 8 // bits, (1 << bits) - 1
    out = np.empty((*packed.shape[:-1], packed.shape[-1] * each), np.uint8)
    for i in range(each):
        out[..., i::each] = (packed >> (i * bits)) & mask
    return out


def _fields(spec: TileSpec) -> list[tuple[tuple[int, ...], int]]:
    """(shape, bits) of a record's arrays in their order."""
    k, v, g = spec.k_dim, spec.v_dim, spec.group
    return [((k, g), spec.k_bits), ((k,), 16), ((k,), 16), ((g,), 16),
            ((g, v), spec.v_bits), ((v,), 16), ((g,), 16), ((g,), 16)]


def join(spec: TileSpec, planes: Planes) -> NDArray:
    """The record of its arrays: uint8 [record_bytes]."""
    parts = []
    for array, (shape, bits) in zip(planes, _fields(spec)):
        if array.shape != shape:
            raise ValueError(f"expected an array of shape {shape}, got {array.shape}")
        parts.append(array.astype("<f2").tobytes() if bits == 16 else pack(array, bits).tobytes())
    raw = b"".join(parts).ljust(spec.record_bytes, b"\0")
    return np.frombuffer(bytearray(raw), np.uint8)


def split(spec: TileSpec, record: NDArray | bytes) -> Planes:
    """The arrays of one record; raises ValueError where it is not one (FORMAT.md section 6)."""
    data = np.frombuffer(record, np.uint8)
    if data.size != spec.record_bytes:
        raise ValueError(f"expected a record of {spec.record_bytes} bytes, got {data.size}")
    at, arrays = 0, []
    for shape, bits in _fields(spec):
        count = int(np.prod(shape)) * bits // 8
        raw, at = data[at:at + count], at + count
        if bits == 16:
            arrays.append(raw.view("<f2"))
        else:
            arrays.append(unpack(raw.reshape(shape[0], -1), bits))
    planes = Planes(*arrays)
    if data[at:].any():
        raise ValueError("a record's padding is not zero")
    if not all(np.isfinite(a).all() for a, (_, bits) in zip(planes, _fields(spec)) if bits == 16):
        raise ValueError("a record's scale is not finite")
    return planes
