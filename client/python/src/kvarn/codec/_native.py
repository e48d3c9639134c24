"""The codec of libkvarn by ctypes (kvarn/codec.h)."""
from __future__ import annotations

import ctypes
import ctypes.util
import os
from typing import Any

import numpy as np

from kvarn.codec._numpy import (ENCODERS, METRIC_REFUSED, check_metric, check_queries,
                                check_records, check_rows)
from kvarn.codec._record import TileSpec

NDArray = np.ndarray[Any, Any]
ALIGNMENT = 64  # of tiles and scratch
SONAME = "libkvarn.so.0"


class _Spec(ctypes.Structure):
    """struct kvarn_tile_spec"""
    _fields_ = [("k_dim", ctypes.c_uint16), ("v_dim", ctypes.c_uint16),
                ("group", ctypes.c_uint16), ("k_bits", ctypes.c_uint8),
                ("v_bits", ctypes.c_uint8)]


def find_library() -> str | None:
    """Where libkvarn is: the environment's KVARN_LIBRARY, else as the linker finds it."""
    path = os.environ.get("KVARN_LIBRARY")
    if path:
        return path
    for name in (SONAME, ctypes.util.find_library("kvarn")):
        try:
            if name:
                ctypes.CDLL(name)
                return name
        except OSError:
            pass
    return None


def _aligned(nbytes: int) -> NDArray:
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start:start + nbytes]


def _at(array: NDArray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


class NativeCodec:
    """kvarn.codec's functions as methods, in C. Raises OSError where path is no libkvarn."""

    def __init__(self, path: str | None = None) -> None:
        path = path or find_library()
        if path is None:
            raise OSError(f"{SONAME} was not found; KVARN_LIBRARY names it")
        self._c = c = ctypes.CDLL(path)
        spec, pointer, size = ctypes.POINTER(_Spec), ctypes.c_void_p, ctypes.c_size_t
        try:
            for name, result, arguments in (
                    ("kvarn_rotate", None, [pointer, size, ctypes.c_uint32]),
                    ("kvarn_tile_bytes", size, [spec]),
                    ("kvarn_record_bytes", size, [spec]),
                    ("kvarn_encode_scratch_bytes", size, [spec]),
                    ("kvarn_tile_encode", ctypes.c_int,
                     [spec, ctypes.c_int, pointer, pointer, pointer, pointer]),
                    ("kvarn_metric_add", None, [pointer, pointer, size, ctypes.c_uint32]),
                    ("kvarn_metric_factor_scratch_bytes", size, [ctypes.c_uint32]),
                    ("kvarn_metric_factor", ctypes.c_int,
                     [pointer, ctypes.c_double, ctypes.c_uint32, pointer, pointer]),
                    ("kvarn_tile_encode_aware", ctypes.c_int,
                     [spec, pointer, pointer, pointer, pointer, pointer]),
                    ("kvarn_tile_decode", None, [spec, pointer, pointer, pointer]),
                    ("kvarn_tile_from_record", None, [spec, pointer, pointer]),
                    ("kvarn_tile_to_record", None, [spec, pointer, pointer]),
                    ("kvarn_record_validate", ctypes.c_int, [spec, pointer, size])):
                function = getattr(c, name)
                function.restype, function.argtypes = result, arguments
        except AttributeError as error:
            raise OSError(f"{path} is not libkvarn: {error}") from error

    @staticmethod
    def _spec(spec: TileSpec) -> _Spec:
        return _Spec(spec.k_dim, spec.v_dim, spec.group, spec.k_bits, spec.v_bits)

    def rotate(self, x: NDArray) -> NDArray:
        """As kvarn.codec.rotate."""
        y = np.array(x, np.float32, order="C")
        if y.size:
            self._c.kvarn_rotate(_at(y), y.size // y.shape[-1], y.shape[-1])
        return y

    def query_metric(self, q: NDArray, rotated: bool = False) -> NDArray:
        """As kvarn.codec.query_metric."""
        q = np.ascontiguousarray(check_queries(self, q, rotated))
        rows, dim = q.shape[-2:]
        sums = np.zeros((*q.shape[:-2], dim, dim), np.float32)
        for a, x in zip(sums.reshape(-1, dim, dim), q.reshape(-1, rows, dim)):
            self._c.kvarn_metric_add(_at(a), _at(x), rows, dim)
        upper = np.triu(sums)  # what is below the diagonal may be anything
        return np.asarray((upper + np.triu(sums, 1).swapaxes(-1, -2)) / np.float32(rows))

    def _factor(self, metric: NDArray) -> NDArray:
        """The factor of one metric [dim, dim]; aligned."""
        dim, a = len(metric), np.ascontiguousarray(metric)
        factor = _aligned(a.nbytes)
        scratch = _aligned(self._c.kvarn_metric_factor_scratch_bytes(dim))
        if self._c.kvarn_metric_factor(_at(a), 1, dim, _at(factor), _at(scratch)) != 0:
            raise ValueError(METRIC_REFUSED)
        return factor

    def encode(self, spec: TileSpec, k: NDArray, v: NDArray, encoder: str = "default",
               rotated: bool = False, metric: NDArray | None = None) -> NDArray:
        """As kvarn.codec.encode."""
        k, v, lead = check_rows(self, spec, k, v, encoder, rotated)
        metrics, which = check_metric(spec, lead, encoder, metric)
        factors = [self._factor(a) for a in metrics]
        k, v, c = np.ascontiguousarray(k), np.ascontiguousarray(v), self._spec(spec)
        tile = _aligned(self._c.kvarn_tile_bytes(c))
        scratch = _aligned(self._c.kvarn_encode_scratch_bytes(c))
        out = np.empty((len(k), spec.record_bytes), np.uint8)
        for i in range(len(k)):
            rest = _at(k[i]), _at(v[i]), _at(tile), _at(scratch)
            if factors:
                self._c.kvarn_tile_encode_aware(c, _at(factors[which[i]]), *rest)
            else:
                self._c.kvarn_tile_encode(c, ENCODERS.index(encoder), *rest)
            self._c.kvarn_tile_to_record(c, _at(tile), _at(out[i]))
        return out.reshape(*lead, -1)

    def decode(self, spec: TileSpec, records: NDArray) -> tuple[NDArray, NDArray]:
        """As kvarn.codec.decode."""
        records, lead = check_records(spec, records)
        c = self._spec(spec)
        tile = _aligned(self._c.kvarn_tile_bytes(c))
        k = np.empty((len(records), spec.group, spec.k_dim), np.float32)
        v = np.empty((len(records), spec.group, spec.v_dim), np.float32)
        for i, record in enumerate(records):
            if self._c.kvarn_record_validate(c, _at(record), record.size) != 0:
                raise ValueError("a record's scale or value is out of range, or its padding is "
                                 "not zero")
            self._c.kvarn_tile_from_record(c, _at(record), _at(tile))
            self._c.kvarn_tile_decode(c, _at(tile), _at(k[i]), _at(v[i]))
        return k.reshape(*lead, *k.shape[1:]), v.reshape(*lead, *v.shape[1:])
