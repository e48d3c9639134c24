"""The codec of lib/FORMAT.md in plain NumPy, written for reading: what the daemon is held to.

One tile is one KV head over `group` tokens: K as [head_dim, group] (rows are channels), V as
[group, head_dim] (rows are tokens), both rotated. Encoders `reference`, `refined` and `aware`; the
decoder is bit-equal to libkvarn's scalar code: the same float operations in the same order.
"""
import numpy as np

F = np.float32
STD_MIN, STD_MAX = 1e-3, 1e3
LOG_SCALE_MIN, LOG_SCALE_MAX = -0.3, 10.0
ITERATIONS = 16


def rotate(x):
    """Orthonormal Walsh-Hadamard transform along the last axis, in blocks of its power of two.

    Its own inverse. Float32, pass by pass as FORMAT.md 2 and 9 say.
    """
    dim = x.shape[-1]
    block = dim & -dim
    y = np.array(x, F).reshape(-1, block)
    half = 1
    while half < block:
        pairs = y.reshape(-1, block // (2 * half), 2, half)
        low, high = pairs[:, :, 0].copy(), pairs[:, :, 1].copy()
        pairs[:, :, 0], pairs[:, :, 1] = low + high, low - high
        half *= 2
    return (y * (F(1) / np.sqrt(F(block)))).reshape(x.shape)


def _std(x, axis):
    return x.std(axis=axis, ddof=1, keepdims=True, dtype=F)


def _imbalance(x):
    col, row = _std(x, 0), _std(x, 1)
    return col.max() / max(col.min(), F(1e-8)) + row.max() / max(row.min(), F(1e-8))


def balance(tile):
    """FORMAT.md 7.1: (balanced, col factors [C], row factors [R]); ties go to the later state."""
    tile = tile.astype(F)
    log_col, log_row = np.zeros((1, tile.shape[1]), F), np.zeros((tile.shape[0], 1), F)
    now, best = tile, _imbalance(tile)
    col, row = np.exp(log_col), np.exp(log_row)

    def step(logs, axis):
        std = np.clip(_std(now, axis), STD_MIN, STD_MAX)
        return np.clip(logs + np.log(std), LOG_SCALE_MIN, LOG_SCALE_MAX)

    for _ in range(ITERATIONS):
        log_col = step(log_col, 0)
        now = tile / np.exp(log_col) / np.exp(log_row)
        log_row = step(log_row, 1)
        now = tile / np.exp(log_col) / np.exp(log_row)
        if (imbalance := _imbalance(now)) <= best:
            best, col, row = imbalance, np.exp(log_col), np.exp(log_row)
    return tile / col / row, col[0], row[:, 0]


def _round(x, step, low, top=3):
    return np.clip(np.rint((x - low) / step), 0, top)


def _encode_reference(tile, bits):
    top = (1 << bits) - 1
    x, col, row = balance(tile)
    low = x.min(axis=1, keepdims=True)
    step = np.maximum((x.max(axis=1, keepdims=True) - low) / F(top), F(1e-10))
    codes = _round(x, step, low, top).astype(np.uint8)
    return codes, row * step[:, 0], row * low[:, 0], col


def _least_squares(x, codes, weights):
    """Weighted fit of each row of x ~ codes * step + low."""
    total = weights.sum(1, keepdims=True)
    mean_c = (weights * codes).sum(1, keepdims=True) / total
    mean_x = (weights * x).sum(1, keepdims=True) / total
    var = (weights * (codes - mean_c) ** 2).sum(1, keepdims=True)
    cov = (weights * (codes - mean_c) * (x - mean_x)).sum(1, keepdims=True)
    good = (var > 1e-9) & (cov > 0)
    step = np.maximum(np.where(good, cov / np.maximum(var, F(1e-9)), F(1e-10)), F(1e-10))
    return step, mean_x - step * mean_c


def _factors(tile, axis):
    """One step of 7.1 from factors of 1: a factor for each column (axis 0) or row (axis 1)."""
    logs = np.log(np.clip(_std(tile, axis), STD_MIN, STD_MAX))
    return np.exp(np.clip(logs, LOG_SCALE_MIN, LOG_SCALE_MAX))


def _encode_refined(tile):
    """FORMAT.md 7.3."""
    tile = tile.astype(F)
    col = _factors(tile, 0)
    row = _factors(tile / col, 1)
    x = tile / col / row
    mean = x.mean(1, keepdims=True)
    step = np.maximum(F(0.996) * x.std(1, ddof=1, keepdims=True), F(1e-10))
    low = mean - F(1.5) * step
    weights = np.maximum(np.abs(x - mean), F(0.1))
    for _ in range(2):
        codes = _round(x, step, low)
        step, low = _least_squares(x, codes, weights)
    step, low = step * row, low * row
    for i in range(3):
        if i > 0:
            x = tile / col
            codes = _round(x, step, low)
            step, low = _least_squares(x, codes, weights)
        y = codes * step + low
        num, den = (weights * tile * y).sum(0), (weights * y * y).sum(0)
        col = np.where((den > 1e-12) & (num > 0), num / np.maximum(den, F(1e-12)), col).astype(F)
    return _round(tile / col, step, low).astype(np.uint8), step[:, 0], low[:, 0], col[0]


def metric_factor(metric):
    """FORMAT.md 7.4: R of A' = R E R^T, float32; metric [D, D] is the mean of q' q'^T."""
    a = metric.astype(np.float64)
    a = a + np.diag(a).mean() * np.eye(len(a))
    root = np.linalg.cholesky(a[::-1, ::-1])[::-1, ::-1]  # upper, from the last row up
    return (root / np.diag(root)).astype(F)


def round_aware(tile, scale, zero, other, factor):
    """FORMAT.md 7.4: codes [D, G] of a rotated K plane by scales that are halves."""
    scale, zero, other = (a.astype(F) for a in (scale, zero, other))
    tile, codes = tile.astype(F), np.empty(tile.shape, np.uint8)
    error = np.zeros_like(tile)
    for d, row in enumerate(tile):
        want = row + factor[:d, d] @ error[:d]
        codes[d] = _round(want / other, scale[d], zero[d])
        error[d] = row - (codes[d] * scale[d] + zero[d]) * other
    return codes


def encode_plane(tile, bits, encoder, metric=None):
    """(codes [R, C] u8, scale [R], zero [R], other [C] as fp16) of a rotated plane [R, C].

    `aware` takes the metric [R, R] of K's queries; without one it is `refined`.
    """
    if encoder == "reference" or bits != 2:
        codes, scale, zero, col = _encode_reference(tile, bits)
    else:
        codes, scale, zero, col = _encode_refined(tile)
    scale, zero, col = (np.float16(a) for a in (scale, zero, col))
    if encoder == "aware" and bits == 2 and metric is not None:
        codes = round_aware(tile, scale, zero, col, metric_factor(metric))
    return codes, scale, zero, col


def decode_plane(codes, scale, zero, other):
    """Back to the rotated frame, float32 [R, C]."""
    return (codes.astype(F) * scale.astype(F)[:, None] + zero.astype(F)[:, None]) \
        * other.astype(F)[None, :]


def roundtrip(k, v, k_bits, v_bits, encoder, metric=None):
    """What rotated K [G, Dk] and V [G, Dv] decode to: float32 (K, V), rotated."""
    return (decode_plane(*encode_plane(k.T, k_bits, encoder, metric)).T,
            decode_plane(*encode_plane(v, v_bits, encoder)))


def pack(codes, bits):
    n = 8 // bits
    shifts = (np.arange(n) * bits).astype(np.uint8)
    return (codes.reshape(*codes.shape[:-1], -1, n) << shifts).sum(-1).astype(np.uint8)


def encode_record(k, v, k_bits, v_bits, encoder, metric=None):
    """A record (FORMAT.md 4) of rotated K [G, Dk] and V [G, Dv]."""
    k_codes, *k_halves = encode_plane(k.T, k_bits, encoder, metric)
    v_codes, v_scale, v_zero, v_channel = encode_plane(v, v_bits, encoder)
    parts = [pack(k_codes, k_bits), *k_halves, pack(v_codes, v_bits), v_channel, v_scale, v_zero]
    data = b"".join(part.tobytes() for part in parts)
    return data.ljust(record_bytes(k.shape[1], v.shape[1], len(k), k_bits, v_bits), b"\0")


def unpack(packed, bits):
    n, mask = 8 // bits, (1 << bits) - 1
    out = np.empty((*packed.shape[:-1], packed.shape[-1] * n), np.uint8)
    for i in range(n):
        out[..., i::n] = (packed >> (i * bits)) & mask
    return out


def record_bytes(k_dim, v_dim, group, k_bits, v_bits):
    raw = group * (k_dim * k_bits + v_dim * v_bits) // 8 + 2 * (2 * k_dim + group) \
        + 2 * (v_dim + 2 * group)
    return (raw + 7) // 8 * 8


class Record:
    """A record taken apart: codes and halves of K and of V (FORMAT.md 4)."""

    def __init__(self, data, k_dim, v_dim, group, k_bits, v_bits):
        assert len(data) == record_bytes(k_dim, v_dim, group, k_bits, v_bits)
        self._data, self._at = data, 0
        codes = self._take(k_dim * group * k_bits // 8, np.uint8).reshape(k_dim, -1)
        self.k_codes = unpack(codes, k_bits)
        self.k_scale, self.k_zero = self._half(k_dim), self._half(k_dim)
        self.k_token = self._half(group)
        codes = self._take(group * v_dim * v_bits // 8, np.uint8).reshape(group, -1)
        self.v_codes = unpack(codes, v_bits)
        self.v_channel = self._half(v_dim)
        self.v_scale, self.v_zero = self._half(group), self._half(group)
        assert not any(data[self._at:]), "padding must be zero"

    def _take(self, count, dtype):
        a = np.frombuffer(self._data, dtype, count, self._at)
        self._at += a.nbytes
        return a

    def _half(self, count):
        return self._take(count, "<f2")

    def decode(self):
        """Rotated float32 (K [group, k_dim], V [group, v_dim])."""
        return (decode_plane(self.k_codes, self.k_scale, self.k_zero, self.k_token).T,
                decode_plane(self.v_codes, self.v_scale, self.v_zero, self.v_channel))


def is_golden_equal(mine, golden, bound=1e-5):
    """Rule 4 of tests/golden/README.md on values: squared error against the golden decoding."""
    mine, golden = mine.astype(np.float64), golden.astype(np.float64)
    total = (golden ** 2).sum()
    return (mine == 0).all() if total == 0 else ((mine - golden) ** 2).sum() <= bound * total


def relative_error(x, y):
    """sum (x - y)^2 / sum y^2, y being the exact one."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    return ((x - y) ** 2).sum() / (y ** 2).sum()
