"""Exact attention, and random rows: what the daemon's answers are held to."""
import numpy as np

import kvarn

HEADS, Q_HEADS, K_DIM, V_DIM = 2, 4, 64, 32


def small_shape(**fields):
    """Two full layers; K and V of different head_dim, so that mixing them up shows."""
    fields.setdefault("model", "python-tests")
    return kvarn.Shape(layer_groups=(kvarn.LayerGroup(2, HEADS, K_DIM, V_DIM),), **fields)


def rows(tokens, seed=0, dtype=np.float16):
    """(k [H, T, Dk], v [H, T, Dv], q [Hq, T, Dk])"""
    random = np.random.default_rng(seed)
    return tuple(random.standard_normal(s).astype(dtype) for s in (
        (HEADS, tokens, K_DIM), (HEADS, tokens, V_DIM), (Q_HEADS, tokens, K_DIM)))


def attend(q, k, v, position, scale=None):
    """Causal attention in float64: out [Hq, T, Dv], lse [Hq, T]."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, len(q) // len(k), axis=0) for x in (k, v))
    logits = q @ k.swapaxes(1, 2) * (scale or 1 / np.sqrt(q.shape[2]))
    seen = np.arange(k.shape[1])[None, :] <= position + np.arange(q.shape[1])[:, None]
    logits = np.where(seen, logits, -np.inf)
    top = logits.max(axis=2, keepdims=True)
    weights = np.exp(logits - top)
    total = weights.sum(axis=2, keepdims=True)
    return weights @ v / total, (top + np.log(total))[..., 0]
