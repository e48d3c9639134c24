"""The oracle: what a session must hold after what was done to it (SEMANTICS.md 1-4, 9-11, 19)."""
import numpy as np

from support import codec
from support.frame import pb

# A rotation in another order of additions may round a half the other way; rows that arrive rotated
# are held to the bit.
HALF_ULP_RELATIVE = 2.0 ** -10


def attention(q, k, v, position, first=0, last=None, scale=None, causal=True, window=0, softcap=0.0,
              base=0):
    """Exact attention in float64: out [Hq, T, Dv], lse [Hq, T].

    q [Hq, T, Dk]; k [Hkv, N, Dk] and v [Hkv, N, Dv] hold tokens from `base` on.
    """
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    last = base + k.shape[1] if last is None else last
    scale = 1 / np.sqrt(q.shape[2]) if scale is None else scale
    k, v = (np.repeat(x, q.shape[0] // k.shape[0], axis=0) for x in (k, v))
    logits = scale * (q @ np.swapaxes(k, 1, 2))
    if softcap:
        logits = softcap * np.tanh(logits / softcap)
    j = base + np.arange(k.shape[1])[None, :]
    p = position + np.arange(q.shape[1])[:, None]
    seen = (j >= first) & (j < last)
    if causal:
        seen = seen & (j <= p)
    if window:
        seen = seen & (j >= p - window + 1)
    logits = np.where(seen, logits, -np.inf)
    top = logits.max(axis=2, keepdims=True, initial=-np.inf)
    safe = np.where(np.isinf(top), 0, top)
    weights = np.exp(logits - safe)
    total = weights.sum(axis=2, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (safe + np.log(total))[..., 0]
    return weights @ v / np.where(total == 0, 1, total), lse


class LayerModel:
    """One layer: rotated halves as stored, and what each sealed block decodes to."""

    def __init__(self, shape, idx):
        ls = shape.layers[idx]
        self.shape, self.idx, self.window = shape, idx, ls.window
        self.k = np.zeros((ls.kv_heads, 0, ls.k_dim), np.float16)
        self.v = np.zeros((ls.kv_heads, 0, ls.v_dim), np.float16)
        self.decoded = {}  # block -> (k, v) float32 [heads, G, D], once its records were seen
        self.sealed = 0    # leading blocks sealed or due, sinks counted
        self.dropped = 0   # leading blocks that left the window

    @property
    def length(self):
        return self.k.shape[1]


class Model:
    """A session. The lossy parts are learnt from the daemon's records and checked against NumPy."""

    def __init__(self, shape, encoder="default", seal_lag=0, check=True):
        """check: compare every record with NumPy's encoding, which takes milliseconds a tile."""
        self.shape, self.encoder, self.seal_lag, self.check = shape, encoder, seal_lag, check
        self.layers = [LayerModel(shape, i) for i in range(len(shape.layers))]

    @property
    def lengths(self):
        return [layer.length for layer in self.layers]

    @property
    def sink_blocks(self):
        return self.shape.sink // self.shape.group

    def append(self, layer, k, v):
        """Rotated halves, as they must be stored."""
        lm, group = self.layers[layer], self.shape.group
        lm.k = np.concatenate([lm.k, k.astype(np.float16)], axis=1)
        lm.v = np.concatenate([lm.v, v.astype(np.float16)], axis=1)
        lm.sealed = max(lm.sealed, max(lm.length - self.seal_lag, 0) // group)
        if lm.window:
            kept = lm.window + group + self.seal_lag
            lm.dropped = max(lm.dropped, max(lm.length - kept, 0) // group)

    def append_unrotated(self, layer, k, v):
        """What a worker appends: rotated in float, then rounded to halves."""
        self.append(layer, codec.rotate(k), codec.rotate(v))

    def append_records(self, layer, blocks):
        """Whole blocks from records: [[Record a head] a block]."""
        lm = self.layers[layer]
        for heads in blocks:
            block = lm.length // self.shape.group
            k, v = (np.stack(x) for x in zip(*(record.decode() for record in heads)))
            lm.decoded[block] = k, v
            self.append(layer, k, v)
            lm.sealed = max(lm.sealed, block + 1)

    def misses_truncate(self, length):
        """What the next query would see is gone already (SEMANTICS.md 4)."""
        for lm in self.layers:
            cut = min(lm.length, length)
            needed = max(cut - lm.window + 1, 0)
            if 0 < cut < lm.length and needed < lm.dropped * self.shape.group:
                return True
        return False

    def truncate(self, length):
        """Returns whether a sealed block is re-opened: its rows are what it decoded to."""
        group, is_lossy = self.shape.group, False
        for lm in self.layers:
            cut = min(lm.length, length)
            block = cut // group
            if cut % group and self.sink_blocks <= block < lm.sealed:
                is_lossy = True
                k, v = lm.decoded[block]
                span = slice(block * group, (block + 1) * group)
                size = lm.k[:, span].shape[1]
                lm.k[:, span], lm.v[:, span] = k[:, :size], v[:, :size]
            lm.k, lm.v = lm.k[:, :cut], lm.v[:, :cut]
            lm.sealed, lm.dropped = min(lm.sealed, block), min(lm.dropped, block)
            lm.decoded = {b: pair for b, pair in lm.decoded.items() if b < lm.sealed}
        return is_lossy

    def encoder_of(self, block):
        """SEMANTICS and FORMAT 7.5: the first block without a sink is `reference`."""
        if block == 0 and self.shape.sink == 0:
            return "reference"
        return "refined" if self.encoder == "default" else self.encoder

    def learn(self, session, layer):
        """Read what is sealed and not yet known: records must be a right encoding of the rows."""
        lm = self.layers[layer]
        first = max(self.sink_blocks, lm.dropped)
        todo = [b for b in range(first, lm.sealed) if b not in lm.decoded]
        if not todo:
            return
        group = self.shape.group
        runs = session.read_stored(todo[0] * group, (todo[-1] + 1) * group, layer)
        assert all(run.form == pb.RECORDS for run in runs), "sealed blocks must come as records"
        for run in runs:
            for block, records in session.stored_records(run).items():
                if block not in lm.decoded:
                    pairs = [record.decode() for record in records]
                    lm.decoded[block] = tuple(np.stack(x) for x in zip(*pairs))
                    if self.check:
                        self._check_encoding(lm, block, records)

    def _check_encoding(self, lm, block, records):
        span = slice(block * self.shape.group, (block + 1) * self.shape.group)
        encoder = self.encoder_of(block)
        for head, record in enumerate(records):
            k, v = (x[head, span].astype(np.float32) for x in (lm.k, lm.v))
            decoded = record.decode()
            check_plane(k.T, record.k_codes, decoded[0].T, self.shape.k_bits, encoder)
            check_plane(v, record.v_codes, decoded[1], self.shape.v_bits, encoder)

    def rows(self, layer, first, last, sealed=None):
        """Rotated float32 (k, v) as a reader sees them that reads `sealed` blocks as tiles."""
        lm = self.layers[layer]
        sealed = lm.sealed if sealed is None else sealed
        k, v = lm.k[:, :last].astype(np.float32), lm.v[:, :last].astype(np.float32)
        for block in range(max(self.sink_blocks, first // self.shape.group), sealed):
            span = slice(block * self.shape.group, (block + 1) * self.shape.group)
            size = k[:, span].shape[1]
            if size:
                k[:, span], v[:, span] = (x[:, :size] for x in lm.decoded[block])
        return k[:, first:], v[:, first:]

    def attend(self, layer, q, position, sealed=None, **options):
        """Float64 attention of q (not rotated) over what is stored: out (not rotated), lse."""
        lm = self.layers[layer]
        base = lm.dropped * self.shape.group
        k, v = self.rows(layer, base, lm.length, sealed)
        out, lse = attention(codec.rotate(q), k, v, position, base=base, **options)
        return codec.rotate(out), lse


def check_plane(rows, codes, decoded, bits, encoder):
    """A plane that the daemon encoded, against NumPy's encoding of the same rows."""
    want_codes, *scales = codec.encode_plane(rows, bits, encoder)
    want = codec.decode_plane(want_codes, *scales)
    if encoder == "reference" or bits != 2:  # rule 4 of tests/golden/README.md
        flips = np.abs(codes.astype(int) - want_codes)
        few = flips.max() <= 1 and flips.sum() <= max(4, 1e-5 * codes.size)
        assert few or codec.is_golden_equal(decoded, want), (flips.sum(), flips.max())
        same = flips == 0
        assert codec.is_golden_equal(decoded * same, want * same)
    elif (rows != 0).any():  # held to its error: SEMANTICS.md 22
        error, theirs = (codec.relative_error(x, rows) for x in (decoded, want))
        assert error <= theirs * 1.01 + 1e-6, (error, theirs)


def assert_rows_close(mine, want, what=""):
    """Halves that were rotated in float: equal to one unit in the last place."""
    mine, want = np.asarray(mine, np.float32), np.asarray(want, np.float32)
    bound = np.abs(want) * HALF_ULP_RELATIVE + 2.0 ** -24
    assert (np.abs(mine - want) <= bound).all(), f"{what}: {np.abs(mine - want).max()}"


def assert_attention_close(mine_out, mine_lse, out, lse, out_bound=1e-4, lse_bound=1e-4):
    """Rule 3 of tests/golden/README.md, widened only where the caller says."""
    empty = np.isinf(lse)
    assert (np.isneginf(mine_lse) == empty).all()
    assert (mine_out[empty] == 0).all()
    scale = np.abs(out).max(initial=0)
    assert np.abs(mine_out - out).max(initial=0) <= out_bound * scale + 1e-7, \
        (np.abs(mine_out - out).max(), scale)
    diff = np.abs(mine_lse[~empty] - lse[~empty])
    assert (diff <= lse_bound + 1e-6 * np.abs(lse[~empty])).all(), diff.max()
