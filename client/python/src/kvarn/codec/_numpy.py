"""The codec in NumPy, written for reading: FORMAT.md sections 2, 5, 7 and 8.

A plane is what is quantised: K as [k_dim, group], V as [group, v_dim], both rotated; rows share a
scale and a zero point, columns a factor.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from kvarn.codec._record import DECODED_MAX, VALUE_MAX, Planes, TileSpec, join, split

NDArray = np.ndarray[Any, Any]
F = np.float32
STD_MIN, STD_MAX = 1e-3, 1e3  # of a row or column
LOG_SCALE_MIN, LOG_SCALE_MAX = -0.3, 10.0
ITERATIONS = 16
STEP_MIN = F(1e-10)
FACTOR_MAX = 32  # no factor of a metric has a larger value
METRIC_REFUSED = "metric: not the mean of outer products of finite queries"
ENCODERS = ("default", "reference", "refined", "aware")  # by their wire values


def _std(x: NDArray, axis: int) -> NDArray:
    return np.asarray(x.std(axis=axis, ddof=1, keepdims=True, dtype=F))


def _imbalance(x: NDArray) -> float:
    return float(sum(s.max() / max(s.min(), F(1e-8)) for s in (_std(x, 0), _std(x, 1))))


def _balance(plane: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """FORMAT.md 7.1: (balanced, col factors [1, C], row factors [R, 1]); ties to the later."""
    log_col, log_row = np.zeros((1, plane.shape[1]), F), np.zeros((plane.shape[0], 1), F)
    now, best = plane, _imbalance(plane)
    col, row = np.exp(log_col), np.exp(log_row)
    for _ in range(ITERATIONS):
        log_col = _add_log_std(log_col, now, 0)
        now = plane / np.exp(log_col) / np.exp(log_row)
        log_row = _add_log_std(log_row, now, 1)
        now = plane / np.exp(log_col) / np.exp(log_row)
        imbalance = _imbalance(now)
        if imbalance <= best:
            best, col, row = imbalance, np.exp(log_col), np.exp(log_row)
    return plane / col / row, col, row


def _add_log_std(logs: NDArray, x: NDArray, axis: int) -> NDArray:
    std = np.clip(_std(x, axis), STD_MIN, STD_MAX)
    return np.asarray(np.clip(logs + np.log(std), LOG_SCALE_MIN, LOG_SCALE_MAX).astype(F))


def _round(x: NDArray, step: NDArray, low: NDArray, top: int = 3) -> NDArray:
    return np.asarray(np.clip(np.rint((x - low) / step), 0, top))


def _reference(plane: NDArray, bits: int, is_balanced: bool = True) -> tuple[NDArray, ...]:
    """FORMAT.md 7.2; without balancing, its fallback (section 8)."""
    top = (1 << bits) - 1
    if is_balanced:
        x, col, row = _balance(plane)
    else:
        x = np.clip(plane, -VALUE_MAX, VALUE_MAX)
        col, row = np.ones((1, x.shape[1]), F), np.ones((x.shape[0], 1), F)
    low = x.min(axis=1, keepdims=True)
    step = np.maximum((x.max(axis=1, keepdims=True) - low) / F(top), STEP_MIN)
    return _round(x, step, low, top), row * step, row * low, col


def _fit(
    x: NDArray, weights: NDArray, step: NDArray, low: NDArray
) -> tuple[NDArray, NDArray, NDArray]:
    """Quantise on the old levels, then the weighted fit x ~ codes * step + low of each row."""
    codes, total = _round(x, step, low), weights.sum(1, keepdims=True)
    mean_c = (weights * codes).sum(1, keepdims=True) / total
    mean_x = (weights * x).sum(1, keepdims=True) / total
    var = (weights * (codes - mean_c) ** 2).sum(1, keepdims=True)
    cov = (weights * (codes - mean_c) * (x - mean_x)).sum(1, keepdims=True)
    good = (var > 1e-9) & (cov > 0)
    step = np.maximum(np.where(good, cov / np.maximum(var, F(1e-9)), STEP_MIN), STEP_MIN)
    return codes, step, mean_x - step * mean_c


def _refined(plane: NDArray) -> tuple[NDArray, ...]:
    """FORMAT.md 7.3."""
    zero = np.zeros((1, 1), F)
    col = np.exp(_add_log_std(zero, plane, 0))
    row = np.exp(_add_log_std(zero, plane / col, 1))
    x = plane / col / row
    mean = x.mean(1, keepdims=True)
    step = np.maximum(F(0.996) * _std(x, 1), STEP_MIN)
    low = mean - F(1.5) * step
    weights = np.maximum(np.abs(x - mean), F(0.1))
    for _ in range(2):
        codes, step, low = _fit(x, weights, step, low)
    step, low = step * row, low * row
    for again in range(3):
        if again:
            codes, step, low = _fit(plane / col, weights, step, low)
        y = codes * step + low
        num = (weights * plane * y).sum(0, keepdims=True)
        den = (weights * y * y).sum(0, keepdims=True)
        col = np.where((den > 1e-12) & (num > 0), num / np.maximum(den, F(1e-12)), col).astype(F)
    return _round(plane / col, step, low), step, low, col


def factor(metric: NDArray) -> NDArray:
    """FORMAT.md 7.4: R of A' = R E R^T for a metric [k_dim, k_dim]."""
    a = metric.astype(np.float64)
    a = a + np.diag(a).mean() * np.eye(len(a))
    try:
        root = np.linalg.cholesky(a[::-1, ::-1])[::-1, ::-1]  # upper, from the last row up
    except np.linalg.LinAlgError:
        raise ValueError(METRIC_REFUSED) from None
    r = root / np.diag(root)
    if not (np.abs(r) <= FACTOR_MAX).all():
        raise ValueError(METRIC_REFUSED)
    return np.asarray(r.astype(F))


def _aware(plane: NDArray, r: NDArray, halves: list[NDArray]) -> NDArray:
    """FORMAT.md 7.4: codes by scale, zero and other as they are stored."""
    scale, zero, other = (x.astype(F) for x in halves)
    codes, error = np.empty_like(plane), np.zeros_like(plane)
    for d, row in enumerate(plane):
        want = row + r[:d, d] @ error[:d]
        codes[d] = _round(want / other, scale[d], zero[d])
        error[d] = row - (codes[d] * scale[d] + zero[d]) * other
    return codes


def _decode_plane(codes: NDArray, scale: NDArray, zero: NDArray, other: NDArray) -> NDArray:
    return np.asarray((codes.astype(F) * scale.astype(F)[:, None] + zero.astype(F)[:, None])
                      * other.astype(F)[None, :])


def _encode_plane(plane: NDArray, bits: int, encoder: str,
                  r: NDArray | None = None) -> tuple[NDArray, ...]:
    """(codes [R, C] u8, scale [R], zero [R], other [C]) of the first way whose values are in
    range: aware (with the factor r), refined, reference, reference without balancing."""
    ways: list[Callable[[], tuple[NDArray, ...]]] = [
        lambda: _reference(plane, bits), lambda: _reference(plane, bits, False)]
    if encoder != "reference" and bits == 2:
        ways[:0] = [lambda: _refined(plane)] * (1 if r is None else 2)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for i, way in enumerate(ways):
            codes, scale, zero, col = way()
            halves = [x.astype(np.float16) for x in (scale[:, 0], zero[:, 0], col[0])]
            if i == 0 and r is not None and bits == 2 and all(np.isfinite(a).all() for a in halves):
                codes = np.nan_to_num(_aware(plane, r, halves))
            found = (codes.astype(np.uint8), *halves)
            if all(np.isfinite(a).all() for a in halves) \
                    and (np.abs(_decode_plane(*found)) <= DECODED_MAX).all():
                break
    return found


class NumpyCodec:
    """kvarn.codec's functions as methods, in NumPy."""

    def rotate(self, x: NDArray) -> NDArray:
        """FORMAT.md 2: blocks of the largest power of two that divides the last axis."""
        block = x.shape[-1] & -x.shape[-1]
        y = np.array(x, F).reshape(-1, block)
        half = 1
        while half < block:
            pairs = y.reshape(-1, block // (2 * half), 2, half)
            low, high = pairs[:, :, 0].copy(), pairs[:, :, 1].copy()
            with np.errstate(invalid="ignore"):  # infinities are for the caller to refuse
                pairs[:, :, 0], pairs[:, :, 1] = low + high, low - high
            half *= 2
        return np.asarray((y * (F(1) / np.sqrt(F(block)))).reshape(x.shape))

    def query_metric(self, q: NDArray, rotated: bool = False) -> NDArray:
        """As kvarn.codec.query_metric."""
        q = check_queries(self, q, rotated).astype(np.float64)
        return np.asarray((q.swapaxes(-1, -2) @ q / q.shape[-2]).astype(F))

    def encode(self, spec: TileSpec, k: NDArray, v: NDArray, encoder: str = "default",
               rotated: bool = False, metric: NDArray | None = None) -> NDArray:
        """As kvarn.codec.encode."""
        k, v, lead = check_rows(self, spec, k, v, encoder, rotated)
        metrics, which = check_metric(spec, lead, encoder, metric)
        factors = [factor(a) for a in metrics]
        out = np.empty((len(k), spec.record_bytes), np.uint8)
        for i in range(len(k)):
            k_codes, k_scale, k_zero, k_token = _encode_plane(
                k[i].T, spec.k_bits, encoder, factors[which[i]] if factors else None)
            v_codes, v_scale, v_zero, v_channel = _encode_plane(v[i], spec.v_bits, encoder)
            out[i] = join(spec, Planes(k_codes, k_scale, k_zero, k_token, v_codes, v_channel,
                                       v_scale, v_zero))
        return out.reshape(*lead, -1)

    def decode(self, spec: TileSpec, records: NDArray) -> tuple[NDArray, NDArray]:
        """As kvarn.codec.decode."""
        records, lead = check_records(spec, records)
        k = np.empty((len(records), spec.group, spec.k_dim), F)
        v = np.empty((len(records), spec.group, spec.v_dim), F)
        for i, record in enumerate(records):
            p = split(spec, record)
            k[i] = _decode_plane(p.k_codes, p.k_scale, p.k_zero, p.k_token).T
            v[i] = _decode_plane(p.v_codes, p.v_scale, p.v_zero, p.v_channel)
        return k.reshape(*lead, *k.shape[1:]), v.reshape(*lead, *v.shape[1:])


def check_rows(codec: Any, spec: TileSpec, k: NDArray, v: NDArray, encoder: str,
               rotated: bool) -> tuple[NDArray, NDArray, tuple[int, ...]]:
    """(k [n, group, k_dim], v, leading axes), rotated float32, for both codecs."""
    if encoder not in ENCODERS:
        raise ValueError(f"encoder: expected one of {', '.join(ENCODERS)}, got {encoder!r}")
    k, v = np.asarray(k, F), np.asarray(v, F)
    lead = k.shape[:-2]
    if k.shape[-2:] != (spec.group, spec.k_dim) or v.shape != (*lead, spec.group, spec.v_dim):
        raise ValueError(f"expected k [..., {spec.group}, {spec.k_dim}] and v [..., {spec.group}, "
                         f"{spec.v_dim}], got {k.shape} and {v.shape}")
    if not rotated:
        k, v = codec.rotate(k), codec.rotate(v)
    for x, what in ((k, "k"), (v, "v")):
        if not (np.abs(x) <= VALUE_MAX).all():
            raise ValueError(f"{what}: a value is not finite, or beyond {VALUE_MAX:.0f} rotated")
    return k.reshape(-1, *k.shape[-2:]), v.reshape(-1, *v.shape[-2:]), lead


def check_queries(codec: Any, q: NDArray, rotated: bool) -> NDArray:
    """q [..., rows, k_dim], rotated float32, for both codecs."""
    q = np.asarray(q, F)
    if q.ndim < 2 or q.shape[-2] == 0:
        raise ValueError(f"expected queries [..., rows > 0, k_dim], got {q.shape}")
    TileSpec(q.shape[-1], q.shape[-1])  # says what a head_dim may be
    if not rotated:
        q = codec.rotate(q)
    if not (np.abs(q) <= VALUE_MAX).all():
        raise ValueError(f"q: a value is not finite, or beyond {VALUE_MAX:.0f} rotated")
    return q


def check_metric(spec: TileSpec, lead: tuple[int, ...], encoder: str,
                 metric: NDArray | None) -> tuple[NDArray, NDArray]:
    """(metrics [m, k_dim, k_dim], which of them each tile takes); m = 0 where none is of use."""
    if (metric is not None) != (encoder == "aware"):
        raise ValueError("a metric is for encoder 'aware', which needs one")
    if metric is None or spec.k_bits != 2:
        return np.empty((0, spec.k_dim, spec.k_dim), F), np.zeros(math.prod(lead), np.intp)
    metric = np.asarray(metric, F)
    heads, dims = metric.shape[:-2], metric.shape[-2:]
    if dims != (spec.k_dim, spec.k_dim) or heads not in ((), lead):
        raise ValueError(f"expected a metric [{spec.k_dim}, {spec.k_dim}], with k's leading axes "
                         f"or none, got {metric.shape}")
    metrics = metric.reshape(-1, *dims)
    count = math.prod(lead)
    return metrics, np.arange(count) if heads else np.zeros(count, np.intp)


def check_records(spec: TileSpec, records: NDArray) -> tuple[NDArray, tuple[int, ...]]:
    """(records [n, record_bytes], leading axes)."""
    records = np.ascontiguousarray(records, np.uint8)
    if records.ndim == 0 or records.shape[-1] != spec.record_bytes:
        raise ValueError(f"expected records of {spec.record_bytes} bytes, got {records.shape}")
    return records.reshape(-1, spec.record_bytes), records.shape[:-1]
