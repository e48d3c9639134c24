"""Where evaluated blocks are kept: quantised by a competitor here, or in a running kvarnd."""
from __future__ import annotations

import secrets
from typing import Any

import numpy as np

from kvarn.client import Client, Pending, Session
from kvarn.fidelity.quantisers import Fp16, Quantiser
from kvarn.types import AppendAttendItem, AttendOptions, Shape
from kvarn.worker.model import Config

NDArray = np.ndarray[Any, Any]
TEACH_TOKENS = 8192  # query tokens that the daemon is shown: it looks at one in 16
QUERIES_KEPT = 1024


class LocalStore:
    """Blocks of a competitor's quantiser."""

    def __init__(self, config: Config, quantiser: Quantiser) -> None:
        self._quantiser = quantiser
        self._open: list[list[tuple[NDArray, NDArray]]] = [[] for _ in range(config.layers)]

    def put(self, layer: int, q: NDArray, k: NDArray, v: NDArray) -> None:
        self._open[layer].append((k, v))

    def take(self, layer: int, first: int, last: int) -> tuple[NDArray, NDArray]:
        count = last - first
        k, v = (np.concatenate(x, axis=1)[:, -count:] for x in zip(*self._open[layer]))
        self._open[layer] = []
        return self._quantiser.decoded(k, v)

    def close(self) -> None:
        """Nothing is held."""


class ExactStore(LocalStore):
    """fp16, and queries of `tokens` tokens, evenly chosen, for encoders that learn from them."""

    def __init__(self, config: Config, tokens: int) -> None:
        super().__init__(config, Fp16())
        self._every = max(1, tokens // QUERIES_KEPT)
        self._queries: list[list[NDArray]] = [[] for _ in range(config.layers)]

    def put(self, layer: int, q: NDArray, k: NDArray, v: NDArray) -> None:
        super().put(layer, q, k, v)
        self._queries[layer].append(q[:, ::self._every].astype(np.float16))

    def queries(self) -> NDArray:
        """fp16 [layers, Hq, T, D]"""
        return np.stack([np.concatenate(x, axis=1) for x in self._queries])


class DaemonStore:
    """A session of kvarnd without a name: appended to, and read back once sealed.

    `queries`, float32 [layers, Hq, T, D], are those of another text: encoder `aware` learns what
    queries look like from what it is asked, and a daemon at work has been asked before. The tokens'
    own go with them then (AppendAttend), as those of a worker do that has the daemon attend. What
    it answers is not used here, so that configurations differ in their blocks alone.
    """

    def __init__(self, client: Client, config: Config, group: int, preset: str, encoder: str,
                 queries: NDArray | None = None) -> None:
        # A shape of its own: what the daemon has learnt of other runs stays away.
        revision = f"{config.digest}-{secrets.token_hex(8)}"
        shape = Shape.uniform(config.name, config.layers, config.kv_heads, config.head_dim,
                              preset=preset, revision=revision, group=group)
        self._client, self._is_attending = client, queries is not None
        self._session = client.open("", shape, encoder=encoder)
        self._pending: list[Pending[Any]] = []
        self._taken = 0  # tokens below were read back: queries need not attend to them
        if queries is not None:
            self._teach(client.open("", shape, encoder=encoder), queries)

    def _teach(self, session: Session, queries: NDArray) -> None:
        """Have a session of the same shape attend with queries, over one token of zeros; more than
        once where they are few."""
        kind = session.shape.layer(0)
        zeros = np.zeros((kind.kv_heads, 1, kind.k_dim), np.float32)
        options, chunk = AttendOptions(causal=False), session.shape.group
        for layer, q in enumerate(queries):
            session.append(zeros, zeros, layer)
            times = -(-TEACH_TOKENS // q.shape[1])
            pending = [self._client.submit(session.attend, q[:, i:i + chunk], layer, options,
                                           position=0)
                       for i in [*range(0, q.shape[1], chunk)] * times]
            for one in pending:
                one.result()
        session.drop()

    def put(self, layer: int, q: NDArray, k: NDArray, v: NDArray) -> None:
        session = self._session
        if self._is_attending:
            item = AppendAttendItem(session, k, v, q, token_first=self._taken)
            pending: Any = self._client.submit(self._client.append_attend, [item], layer)
        else:
            pending = self._client.submit(session.append, k, v, layer)
        self._pending.append(pending)

    def take(self, layer: int, first: int, last: int) -> tuple[NDArray, NDArray]:
        waiting, self._pending = self._pending, []
        for one in waiting:
            found = one.result()
            if isinstance(found, list) and found[0].error is not None:
                raise found[0].error
        self._taken = last
        return self._session.read(layer, first, last, dtype="f32")

    def bits(self) -> float:
        """Bits a value of the sealed blocks, as the daemon counts its bytes.

        Raises ValueError where `aware` was asked for, and a block was sealed without it.
        """
        found = self._session.inspect()
        if self._is_attending and found.pages_aware < found.tile_pages:
            raise ValueError(f"kvarnd sealed {found.pages_aware} of {found.tile_pages} pages as "
                             f"{found.encoder}: it has seen too few queries before")
        kinds = [found.shape.layer(n) for n in range(found.shape.layers)]
        values = sum(kind.kv_heads * sum(kind.dims) * (sealed - found.shape.sinks)
                     for kind, sealed in zip(kinds, found.sealed))
        return 8 * found.tile_bytes / values

    def close(self) -> None:
        """End the session."""
        self._session.drop()
