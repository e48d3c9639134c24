"""The asyncio client: kvarn.AsyncClient and its sessions.

The same calls as kvarn.client's, whose docstrings say what they take, give and raise. Any number
of tasks may use one client; requests take effect in the order in which their coroutines first ran,
so that gather() over a session's calls pipelines them.
"""
from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, cast

from kvarn._address import Address
from kvarn._core import ClientCore, SessionCore
from kvarn._link import AsyncLink, Link
from kvarn._parse import creation as creation_fields
from kvarn._verify import Progress
from kvarn._verify import verify as _verify
from kvarn.client import _copies, _first, _one, _pairs
from kvarn.types import (AppendAttendItem, AppendResult, Array, AttendItem, AttendOptions,
                         AttendResult, Evicted, Job, LayerMetric, Lifetime, NDArray, Options,
                         Pinned, Prefetched, PrefixMatch, ServerInfo, ServerStats, SessionDetails,
                         SessionSummary, Shape, StoredRuns, TruncateResult, Verification)


async def _connect(address: Address, timeout: float) -> Link:
    return cast(Link, await AsyncLink.connect(address, timeout))


async def _pause(seconds: float) -> None:
    await asyncio.sleep(seconds)


class AsyncClient:
    """A connection to kvarnd on the running event loop.

    Arguments are kvarn.Client's. It connects when first used, or in `async with`.
    """

    def __init__(self, address: str | None = None, *, options: Options | None = None,
                 **fields: Any) -> None:
        self._core = ClientCore(address, options or Options(**fields), _connect, _pause,
                                asyncio.Lock())

    async def __aenter__(self) -> AsyncClient:
        await self._core.link()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Sessions without a name end; named ones stay in the daemon."""
        await self._core.aclose()

    @property
    def server(self) -> ServerInfo:
        """What the daemon said of itself; connect first."""
        assert self._core.server is not None
        return self._core.server

    @property
    def reconnects(self) -> int:
        """Times the client had to connect again."""
        return self._core.reconnects

    async def ping(self, *, deadline: float | None = None) -> float:
        """As Client.ping: seconds since the daemon started."""
        return await self._core.ping(deadline)

    async def open(self, name: str = "", shape: Shape | None = None, *, mode: str = "either",
                   encoder: str = "default", seal_lag: int = 0, takeover: bool = False,
                   ttl: float = 0, priority: int = 0, share_prefix: bool = False,
                   salt: bytes = b"", lease: PrefixMatch | None = None,
                   deadline: float | None = None) -> AsyncSession:
        """As Client.open: open a session, or make it."""
        session = AsyncSession(self, name, shape)
        creation = creation_fields(ttl, priority, share_prefix, salt, lease)
        await self._core.open(session, mode, encoder, seal_lag, takeover, creation, deadline)
        return session

    async def match_prefix(self, shape: Shape, token_ids: Array | None = None, *,
                           block_hashes: Sequence[bytes] | None = None, salt: bytes = b"",
                           lease: float = 10, deadline: float | None = None) -> PrefixMatch:
        """As Client.match_prefix: how many of the first tokens are stored already."""
        return await self._core.match_prefix(shape, token_ids, block_hashes, salt, lease, deadline)

    async def fork(self, sessions: Iterable[AsyncSession], names: Iterable[str] | None = None, *,
                   length: int | None = None,
                   deadline: float | None = None) -> list[AsyncSession]:
        """As Client.fork: a copy of each session, all of them or none."""
        pairs = _pairs(lambda name, shape: AsyncSession(self, name, shape), sessions, names)
        return await _copies(self._core, pairs, length, deadline)

    async def reorder(self, items: Iterable[tuple[Sequence[AsyncSession], Sequence[int]]], *,
                      deadline: float | None = None) -> None:
        """As Client.reorder: make sessions copies of each other."""
        await self._core.reorder(items, deadline)

    async def attend(self, items: Iterable[AttendItem], layer: int,
                     options: AttendOptions = AttendOptions(), *,
                     deadline: float | None = None) -> list[AttendResult]:
        """As Client.attend: attention of one layer for up to 1,024 items."""
        return await self._core.attend(items, layer, options, deadline)

    async def append_attend(self, items: Iterable[AppendAttendItem], layer: int,
                            options: AttendOptions = AttendOptions(), *, kv_rotated: bool = False,
                            deadline: float | None = None) -> list[AttendResult]:
        """As Client.append_attend: the decode step of many sessions in one call."""
        return await self._core.append_attend(items, layer, options, kv_rotated, deadline)

    async def read_metric(self, shape: Shape, layer_first: int = 0,
                          layer_count: int | None = None, *,
                          deadline: float | None = None) -> list[LayerMetric]:
        """As Client.read_metric: what the daemon knows of the shape's queries."""
        return await self._core.read_metric(shape, layer_first, layer_count, deadline)

    async def register_metric(self, shape: Shape, layers: Iterable[LayerMetric], *,
                              deadline: float | None = None) -> int:
        """As Client.register_metric: give the daemon the metrics of layers."""
        return await self._core.register_metric(shape, layers, deadline)

    async def sessions(self, prefix: str = "", *,
                       deadline: float | None = None) -> list[SessionSummary]:
        """As Client.sessions: all named sessions whose names begin with prefix, ascending."""
        return await self._core.sessions(prefix, deadline)

    async def inspect(self, name: str, *, deadline: float | None = None) -> SessionDetails:
        """As Client.inspect: all about a named session."""
        return await self._core.inspect(name, deadline)

    async def drop(self, name: str, *, deadline: float | None = None) -> None:
        """As Client.drop: end a named session for all that hold it."""
        await self._core.drop(name, deadline)

    async def touch(self, name: str, *, ttl: float | None = None, priority: int | None = None,
                    deadline: float | None = None) -> Lifetime:
        """As Client.touch: a named session is used; its TTL and priority."""
        return await self._core.touch(name, ttl, priority, deadline)

    async def pin(self, name: str, seconds: float = 60, *,
                  deadline: float | None = None) -> Pinned:
        """As Client.pin: keep what a named session holds from eviction."""
        return await self._core.pin(name, seconds, deadline)

    async def unpin(self, name: str, *, deadline: float | None = None) -> None:
        """As Client.unpin: end a pin."""
        await self._core.unpin(name, deadline)

    async def evict(self, name: str, blocks: int | None = None, *,
                    deadline: float | None = None) -> Evicted:
        """As Client.evict: take blocks of a named session out of memory."""
        return await self._core.evict(name, blocks, deadline)

    async def prefetch(self, name: str, last_blocks: int | None = None, *,
                       deadline: float | None = None) -> Prefetched:
        """As Client.prefetch: bring a named session back from the cold tier before it is read."""
        return await self._core.prefetch(name, last_blocks, deadline)

    async def prefetch_prefix(self, shape: Shape, token_ids: Array | None = None, *,
                              block_hashes: Sequence[bytes] | None = None, salt: bytes = b"",
                              deadline: float | None = None) -> Prefetched:
        """As Client.prefetch_prefix: bring what is stored of a prefix back from the cold tier."""
        return await self._core.prefetch_prefix(shape, token_ids, block_hashes, salt, deadline)

    async def jobs(self, *, deadline: float | None = None) -> list[Job]:
        """As Client.jobs: prefetches that run, then those that ended lately, the newest first."""
        return await self._core.jobs(deadline)

    async def verify(self, name: str | None = None, *, progress: Progress | None = None,
                     deadline: float | None = None) -> Verification:
        """As Client.verify: compare what the daemon holds with its checksums."""
        return await _verify(self._core, name, progress, deadline)

    async def stats(self, *, deadline: float | None = None) -> ServerStats:
        """As Client.stats: the daemon's counters and latencies."""
        return await self._core.stats(deadline)


class AsyncSession(SessionCore):
    """A sequence's cache in the daemon, as kvarn.Session."""

    def __init__(self, client: AsyncClient, name: str, shape: Shape | None) -> None:
        super().__init__(client._core, name, shape)
        self._client = client

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def append(self, k: Array, v: Array, layer: int = 0, *, start: int | None = None,
                     layout: str = "head", rotated: bool = False,
                     token_ids: Array | None = None, block_hashes: Sequence[bytes] | None = None,
                     deadline: float | None = None) -> AppendResult:
        """As Session.append: store tokens of one layer."""
        return await self._append([(k, v)], layer, start, layout, rotated, token_ids, block_hashes,
                                  deadline)

    async def append_layers(self, layers: Iterable[tuple[Array, Array]], layer_first: int = 0, *,
                            start: int | None = None, layout: str = "head", rotated: bool = False,
                            token_ids: Array | None = None,
                            block_hashes: Sequence[bytes] | None = None,
                            deadline: float | None = None) -> AppendResult:
        """As Session.append_layers: store the same tokens in consecutive layers."""
        return await self._append(list(layers), layer_first, start, layout, rotated, token_ids,
                                  block_hashes, deadline)

    async def attend(self, q: Array, layer: int = 0, options: AttendOptions = AttendOptions(), *,
                     position: int | None = None, token_first: int = 0,
                     token_last: int | None = None, deadline: float | None = None) -> AttendResult:
        """As Session.attend: attention of q [Hq, T, Dk] over the layer's tokens."""
        item = AttendItem(self, q, position, token_first, token_last)
        return await _one(self._core.attend([item], layer, options, deadline))

    async def append_attend(self, k: Array, v: Array, q: Array, layer: int = 0,
                            options: AttendOptions = AttendOptions(), *, start: int | None = None,
                            kv_rotated: bool = False,
                            deadline: float | None = None) -> AttendResult:
        """As Session.append_attend: one layer of a decode step."""
        item = AppendAttendItem(self, k, v, q, start)
        return await _one(self._core.append_attend([item], layer, options, kv_rotated, deadline))

    async def read(self, layer: int = 0, token_first: int = 0, token_last: int | None = None, *,
                   dtype: str = "f16", rotated: bool = False, what: str = "kv",
                   layout: str = "head", deadline: float | None = None) -> tuple[NDArray, NDArray]:
        """As Session.read: tokens [token_first, token_last), decoded."""
        return await _first(self._read(
            layer, 1, token_first, token_last, dtype, rotated, what, layout, deadline))

    async def read_layers(self, layer_first: int = 0, layer_count: int | None = None,
                          token_first: int = 0, token_last: int | None = None, *,
                          dtype: str = "f16", rotated: bool = False,
                          deadline: float | None = None) -> list[tuple[NDArray, NDArray]]:
        """As Session.read_layers: (k, v) of each of the layers, in one call."""
        count = self.shape.layers - layer_first if layer_count is None else layer_count
        return await self._read(
            layer_first, count, token_first, token_last, dtype, rotated, "kv", "head", deadline)

    async def read_stored(self, layer_first: int = 0, layer_count: int | None = None,
                          token_first: int = 0, token_last: int | None = None, *,
                          deadline: float | None = None) -> StoredRuns:
        """As Session.read_stored: what is kept, bit by bit."""
        count = self.shape.layers - layer_first if layer_count is None else layer_count
        return await self._read_stored(layer_first, count, token_first, token_last, deadline)

    async def append_tiles(self, stored: StoredRuns, *,
                           deadline: float | None = None) -> tuple[int, ...]:
        """As Session.append_tiles: store what read_stored gave."""
        return await self._append_tiles(stored, deadline)

    async def fork(self, name: str = "", *, length: int | None = None,
                   deadline: float | None = None) -> AsyncSession:
        """As Session.fork: a copy of the session that goes on by itself."""
        return (await self._client.fork([self], [name], length=length, deadline=deadline))[0]

    async def truncate(self, length: int, *, deadline: float | None = None) -> TruncateResult:
        """As Session.truncate: every layer becomes min(its length, length)."""
        return await self._truncate(length, deadline)

    async def touch(self, *, ttl: float | None = None, priority: int | None = None,
                    deadline: float | None = None) -> Lifetime:
        """As Client.touch, of this session."""
        return await self._core.touch(self, ttl, priority, deadline)

    async def pin(self, seconds: float = 60, *, deadline: float | None = None) -> Pinned:
        """As Client.pin, of this session."""
        return await self._core.pin(self, seconds, deadline)

    async def unpin(self, *, deadline: float | None = None) -> None:
        """As Client.unpin, of this session."""
        await self._core.unpin(self, deadline)

    async def verify(self, *, deadline: float | None = None) -> Verification:
        """As Client.verify, of this session, which needs no name."""
        return await _verify(self._core, self, None, deadline)

    async def evict(self, blocks: int | None = None, *,
                    deadline: float | None = None) -> Evicted:
        """As Client.evict, of this session."""
        return await self._core.evict(self, blocks, deadline)

    async def prefetch(self, last_blocks: int | None = None, *,
                       deadline: float | None = None) -> Prefetched:
        """As Client.prefetch, of this session."""
        return await self._core.prefetch(self, last_blocks, deadline)

    async def inspect(self, *, deadline: float | None = None) -> SessionDetails:
        """As Session.inspect: shape, lengths, pages and bytes."""
        return await self._inspect(deadline)

    async def refresh(self, *, takeover: bool = False, deadline: float | None = None) -> None:
        """As Session.refresh: take the session as it now is."""
        await self._refresh(takeover, deadline)

    async def close(self, *, deadline: float | None = None) -> None:
        """As Session.close: give the handle back."""
        await self._close(deadline)

    async def drop(self, *, deadline: float | None = None) -> None:
        """As Session.drop: end the session for all that hold it."""
        await self._drop(deadline)
