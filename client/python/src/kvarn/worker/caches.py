"""Where K and V of the worker's model are: here, in kvarnd, or in kvarnd with the attention too."""
from __future__ import annotations

from typing import Any

import numpy as np

from kvarn.client import Client, Pending, Session
from kvarn.types import AppendResult, AttendOptions, Shape
from kvarn.worker.model import Config

NDArray = np.ndarray[Any, Any]
F = np.float32
MODES = ("local", "offload", "attend")


def model_shape(config: Config, preset: str, sink_tokens: int | None) -> Shape:
    """The shape under which kvarnd keeps this model's sessions."""
    return Shape.uniform(config.name, config.layers, config.kv_heads, config.head_dim,
                         preset=preset, revision=config.digest, sink_tokens=sink_tokens)


def attention(q: NDArray, k: NDArray, v: NDArray, position: int) -> NDArray:
    """Causal attention in float32: q [Hq, T, D] from `position` on, k and v [H, N, D]."""
    heads, tokens, dim = q.shape
    k, v = k.astype(F), v.astype(F)
    grouped = q.reshape(len(k), -1, dim)  # the query heads of a KV head, one after the other
    logits = grouped @ k.swapaxes(1, 2) * F(1 / np.sqrt(dim))
    logits = logits.reshape(heads, tokens, -1)
    if tokens > 1:
        hidden = np.arange(k.shape[1])[None, :] > position + np.arange(tokens)[:, None]
        logits[:, hidden] = -np.inf
    weights = np.exp(logits - logits.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    return np.asarray((weights.reshape(len(k), -1, k.shape[1]) @ v).reshape(heads, tokens, dim))


class LocalCache:
    """fp16 K and V of all tokens in this process."""

    def __init__(self, config: Config) -> None:
        self.length = 0
        self._rows = [np.empty((2, config.kv_heads, 64, config.head_dim), np.float16)
                      for _ in range(config.layers)]

    def attend(self, layer: int, q: NDArray, k: NDArray, v: NDArray) -> NDArray:
        end, rows = self.length + k.shape[1], self._rows[layer]
        if end > rows.shape[2]:
            grown = np.empty((*rows.shape[:2], max(end, 2 * rows.shape[2]), rows.shape[3]),
                             np.float16)
            grown[:, :, :self.length] = rows[:, :, :self.length]
            rows = self._rows[layer] = grown
        rows[0, :, self.length:end], rows[1, :, self.length:end] = k, v
        return attention(q, rows[0, :, :end], rows[1, :, :end], self.length)

    def local_bytes(self) -> int:
        """Of the tokens that are held here."""
        return sum(r[:, :, :self.length].nbytes for r in self._rows)

    def remote_bytes(self) -> int:
        """Of the tokens that the daemon holds."""
        return 0

    def finish_step(self) -> None:
        """After each forward pass."""


class AttendCache:
    """AppendAttend: this process holds no K and V at all."""

    def __init__(self, session: Session) -> None:
        self.session, self.length = session, session.length

    def attend(self, layer: int, q: NDArray, k: NDArray, v: NDArray) -> NDArray:
        result = self.session.append_attend(k, v, q, layer, AttendOptions(), start=self.length)
        return result.out

    def local_bytes(self) -> int:
        """Of the tokens that are held here."""
        return 0

    def remote_bytes(self) -> int:
        """Of the tokens that the daemon holds."""
        found = self.session.inspect()
        return found.tile_bytes + found.sink_bytes + found.tail_bytes

    def finish_step(self) -> None:
        """After each forward pass."""


class OffloadCache(AttendCache):
    """K and V in kvarnd, fetched and attended to here, one layer at a time.

    The next layers' rows are asked for before they are needed, and appends are not waited for
    until the step ends, so that the wire and the daemon work while the model computes.
    """

    AHEAD = 2

    def __init__(self, client: Client, session: Session) -> None:
        super().__init__(session)
        self._client = client
        self._reads: dict[int, Pending[tuple[NDArray, NDArray]]] = {}
        self._appends: list[Pending[AppendResult]] = []
        self._bytes_max = 0

    def _ask(self, layer: int) -> None:
        if layer < self.session.shape.layers and layer not in self._reads:
            self._reads[layer] = self._client.submit(self.session.read, layer, 0, self.length)

    def attend(self, layer: int, q: NDArray, k: NDArray, v: NDArray) -> NDArray:
        for ahead in range(self.AHEAD + 1):
            self._ask(layer + ahead)
        stored_k, stored_v = self._reads.pop(layer).result()
        self._appends.append(self._client.submit(self.session.append, k, v, layer,
                                                 start=self.length))
        held = (1 + self.AHEAD) * (stored_k.nbytes + stored_v.nbytes)
        self._bytes_max = max(self._bytes_max, held)
        return attention(q, np.concatenate([stored_k, k], axis=1),
                         np.concatenate([stored_v, v], axis=1), self.length)

    def local_bytes(self) -> int:
        """Of rows that were here at once, on their way to the attention."""
        return self._bytes_max

    def finish_step(self) -> None:
        appends, self._appends = self._appends, []
        for append in appends:
            append.result()


Cache = LocalCache | AttendCache
