"""The cache of an evaluated model: blocks as a configuration keeps them, and attention over them.

Letters of shapes: T tokens, Hq query heads, H KV heads, G tokens of a block, D head_dim.
"""
from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from kvarn.worker.model import Config

NDArray = np.ndarray[Any, Any]
F = np.float32


class Store(Protocol):
    """What keeps the blocks behind the first one: quantised here, or in kvarnd."""

    def put(self, layer: int, q: NDArray, k: NDArray, v: NDArray) -> None:
        """A layer's next tokens: q float32 [Hq, T, D], k and v fp16 [H, T, D]; T <= G, and they
        do not reach over a block's end."""

    def take(self, layer: int, first: int, last: int) -> tuple[NDArray, NDArray]:
        """(k, v) [H, G, D] float32 of a block [first, last) as decoded; all its tokens were put."""


def attention(q: NDArray, k: NDArray, v: NDArray) -> NDArray:
    """Causal attention in float32: q [Hq, T, D] of the last T tokens of k and v [H, N, D].

    Returns [Hq, T, D].
    """
    heads, tokens, dim = q.shape
    grouped = (q * F(dim ** -0.5)).reshape(len(k), -1, dim)
    out = np.empty((len(k), grouped.shape[1], dim), F)
    future = np.triu(np.full((tokens, tokens), -np.inf, F), 1)
    for head in range(len(k)):
        logits = grouped[head] @ k[head].T
        newest = logits.reshape(-1, tokens, logits.shape[1])[:, :, -tokens:]
        newest += future
        logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=logits)
        total = logits.sum(axis=1, keepdims=True)
        out[head] = (logits @ v[head]) / total
    return out.reshape(heads, tokens, dim)


class BlockCache:
    """kvarn.worker's Attention over a Store; the first block is a sink and stays exact.

    Feed it tokens that do not reach over a block's end, and call finish_block() at each end. A
    token sees its own block, and the sink, as they were computed, and the others as decoded.
    """

    def __init__(self, config: Config, store: Store, tokens_max: int, group: int) -> None:
        self.length, self.group = 0, group
        self._store = store
        self._rows = np.zeros((config.layers, 2, config.kv_heads, tokens_max, config.head_dim), F)
        self._is_storing = True

    def attend(self, layer: int, q: NDArray, k: NDArray, v: NDArray) -> NDArray:
        end, (rows_k, rows_v) = self.length + k.shape[1], self._rows[layer]
        if end > rows_k.shape[1] or self.length // self.group != (end - 1) // self.group:
            raise ValueError(f"tokens {self.length} to {end} do not fit into one block")
        rows_k[:, self.length:end], rows_v[:, self.length:end] = k, v
        if self._is_storing:
            self._store.put(layer, q, k, v)
        return attention(q, rows_k[:, :end], rows_v[:, :end])

    def finish_block(self) -> None:
        """From now on the block that has just become full is what the store makes of it."""
        first = self.length - self.group
        if first % self.group:
            raise ValueError(f"{self.length} tokens do not end a block")
        for layer in range(len(self._rows) if first else 0):
            k, v = self._store.take(layer, first, self.length)
            self._rows[layer, 0, :, first:self.length] = k
            self._rows[layer, 1, :, first:self.length] = v

    def ask(self, model: Any, tokens: list[int]) -> NDArray:
        """Final states [T, E] behind `tokens`, after which the cache is as it was."""
        length, self._is_storing = self.length, False
        try:
            return np.asarray(model.hidden(tokens, self))
        finally:
            self.length, self._is_storing = length, True
