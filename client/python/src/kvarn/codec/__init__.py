"""The KVarN codec: K and V of one KV head over one group of tokens <-> a record of 2 or 4 bits.

Source: KVarN (arXiv:2606.03458); lib/FORMAT.md in kvarnd's sources has the bytes and arithmetic.
Two implementations with one interface, `NumpyCodec` and `NativeCodec` (libkvarn by ctypes, where
it is found); the functions of this module use the native one where there is one.

    spec = codec.TileSpec(k_dim=64, v_dim=64)
    record = codec.encode(spec, k, v)            # k [..., 128, 64] -> uint8 [..., 5248]
    k2, v2 = codec.decode(spec, record)          # float32, in the rotated frame

All arrays may have any number of leading axes. `rotated` frames: x' = x H / sqrt(n), the
orthonormal Hadamard transform, its own inverse.
"""
from __future__ import annotations

import functools
from typing import Any

import numpy as np

from kvarn.codec._native import NativeCodec, find_library
from kvarn.codec._numpy import NumpyCodec
from kvarn.codec._record import Planes, TileSpec, join, pack, split, unpack

__all__ = ["NativeCodec", "NumpyCodec", "Planes", "TileSpec", "decode", "default", "encode",
           "find_library", "join", "pack", "query_metric", "rotate", "split", "unpack"]

NDArray = np.ndarray[Any, Any]


@functools.cache
def default() -> NativeCodec | NumpyCodec:
    """The native codec where libkvarn is found, else the one in NumPy."""
    path = find_library()
    return NumpyCodec() if path is None else NativeCodec(path)


def rotate(x: NDArray) -> NDArray:
    """Rotate the last axis: float32 of x's shape. Its own inverse."""
    return default().rotate(x)


def query_metric(q: NDArray, rotated: bool = False) -> NDArray:
    """What encoder "aware" rounds K by: float32 [..., k_dim, k_dim] of queries [..., rows, k_dim].

    The mean of q' q'^T over rotated queries of one KV head (of all query heads that read it). A few
    hundred rows of any text do. rotated: q is already. Raises ValueError for numbers that are not
    finite or beyond 32,768 once rotated.
    """
    return default().query_metric(q, rotated)


def encode(spec: TileSpec, k: NDArray, v: NDArray, encoder: str = "default",
           rotated: bool = False, metric: NDArray | None = None) -> NDArray:
    """Records of k [..., group, k_dim] and v [..., group, v_dim]: uint8 [..., record_bytes].

    encoder: "reference" (the paper's codes), "refined" (least squares; 4-bit planes as reference),
    "default" (refined for 2-bit planes, reference for 4-bit ones) or "aware" (refined, but 2-bit K
    rounded by what its queries look like). rotated: k and v are already. metric: for aware, and
    only for it, query_metric() of this KV head, [k_dim, k_dim] or with k's leading axes before.
    Raises ValueError for numbers that are not finite or beyond 32,768 once rotated, and for a
    metric that is none.
    """
    return default().encode(spec, k, v, encoder, rotated, metric)


def decode(spec: TileSpec, records: NDArray) -> tuple[NDArray, NDArray]:
    """(k [..., group, k_dim], v [..., group, v_dim]) of records, float32 in the rotated frame.

    Raises ValueError for a record of another size, with a scale that is not finite, or with
    padding that is not zero.
    """
    return default().decode(spec, records)
