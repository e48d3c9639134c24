"""Arrays of any kind to the wire's bytes and back (PROTOCOL.md section 6: C order, no padding)."""
from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

DTYPES = {"f16": 0, "bf16": 1, "f32": 2}
NAMES = {number: name for name, number in DTYPES.items()}
BYTES = {0: 2, 1: 2, 2: 4}


class Tensor(NamedTuple):
    """An array ready to be sent: its shape, wire dtype and bytes in C order."""
    shape: tuple[int, ...]
    dtype: int
    data: memoryview


def _bfloat16() -> Any:
    try:
        import ml_dtypes
    except ImportError:
        raise ValueError("bf16 arrays need the package ml_dtypes") from None
    return ml_dtypes.bfloat16


def _as_numpy(x: Any) -> tuple[np.ndarray[Any, Any], bool]:
    """(array, whether its 16-bit integers are the bits of bf16)."""
    if isinstance(x, np.ndarray):
        return x, False
    if str(getattr(x, "dtype", "")) == "torch.bfloat16":
        # NumPy knows no bf16, so that neither __array__ nor DLPack gives it away: take the bits.
        return np.asarray(x.detach().contiguous().view(sys.modules["torch"].int16)), True
    if hasattr(x, "__array__") or not hasattr(x, "__dlpack__"):
        return np.asarray(x), False
    return np.from_dlpack(x), False


def to_wire(x: Any, what: str, dims: int) -> Tensor:
    """x as bytes of f16, bf16 or f32; float64 and integers become f32.

    x: NumPy array, anything with __array__ or DLPack, or nested lists; `dims` dimensions.
    Raises ValueError naming `what`.
    """
    array, is_bf16 = _as_numpy(x)
    if array.ndim != dims:
        raise ValueError(f"{what}: expected {dims} dimensions, got shape {array.shape}")
    if is_bf16 or array.dtype.name == "bfloat16":
        dtype = DTYPES["bf16"]
        array = array.view(np.uint16)
    elif array.dtype == np.float16:
        dtype = DTYPES["f16"]
    elif array.dtype.kind in "fiu":
        dtype, array = DTYPES["f32"], array.astype(np.float32, copy=False)
    else:
        raise ValueError(f"{what}: expected numbers, got {array.dtype}")
    if sys.byteorder == "big":
        array = array.astype(array.dtype.newbyteorder("<"))
    array = np.ascontiguousarray(array)
    # A writable flat byte view; memoryview refuses to cast arrays of no elements.
    data = array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")
    return Tensor(tuple(array.shape), dtype, data)


def token_ids(ids: Any, count: int | None = None) -> memoryview:
    """Ids of `count` tokens as the wire's u32. Raises ValueError for other numbers."""
    array = np.asarray(ids)
    if array.ndim != 1 or array.size and array.dtype.kind not in "iu":
        raise ValueError(f"token_ids: expected whole numbers in one dimension, got {array.dtype} "
                         f"{array.shape}")
    if count is not None and array.size != count:
        raise ValueError(f"token_ids: expected {count}, got {array.size}")
    if array.size and not (array.min() >= 0 and array.max() < 1 << 32):
        raise ValueError("token_ids: expected numbers of 32 bits, not negative")
    return memoryview(array.astype("<u4").tobytes())


def block_hashes(hashes: Sequence[bytes], count: int | None = None) -> memoryview:
    """`count` hashes of 32 bytes, one after the other."""
    if count is not None and len(hashes) != count:
        raise ValueError(f"block_hashes: expected {count}, one for each block that the tokens end, "
                         f"got {len(hashes)}")
    if any(len(h) != 32 for h in hashes):
        raise ValueError("block_hashes: expected 32 bytes each")
    return memoryview(b"".join(bytes(h) for h in hashes))


def same_dtype(tensors: list[Tensor], what: str) -> int:
    """The wire dtype that all share; ValueError where they do not."""
    found = {t.dtype for t in tensors}
    if len(found) != 1:
        raise ValueError(f"{what}: expected one type of numbers, got "
                         + " and ".join(sorted(NAMES[d] for d in found)))
    return found.pop()


def dtype_number(name: str) -> int:
    """The wire's number of "f16", "bf16" or "f32"."""
    if name not in DTYPES:
        raise ValueError(f"dtype: expected f16, bf16 or f32, got {name!r}")
    if name == "bf16":
        _bfloat16()  # say so before a reply comes that nobody can read
    return DTYPES[name]


class Reader:
    """Takes arrays off the front of a payload, without copying."""

    def __init__(self, payload: memoryview) -> None:
        self._payload, self._at = payload, 0

    def take(self, shape: tuple[int, ...], dtype: int) -> np.ndarray[Any, Any]:
        count = math.prod(shape)
        kind: Any = {0: np.dtype("<f2"), 2: np.dtype("<f4")}.get(dtype) or _bfloat16()
        end = self._at + count * BYTES[dtype]
        array = np.frombuffer(self._payload[self._at:end], kind, count) if count \
            else np.zeros(0, kind)
        self._at = end
        return array.reshape(shape)
