"""The blocking client: kvarn.Client and its sessions. Belongs to one thread at a time."""
from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Generic, ParamSpec, TypeVar, cast

from kvarn._address import Address
from kvarn._core import ClientCore, SessionCore
from kvarn._link import BlockingLink, Link, drive
from kvarn._parse import creation as creation_fields
from kvarn._verify import Progress
from kvarn._verify import verify as _verify
from kvarn.types import (AppendAttendItem, AppendResult, Array, AttendItem, AttendOptions,
                         AttendResult, Evicted, Job, LayerMetric, Lifetime, NDArray, Options,
                         Pinned, Prefetched, PrefixMatch, ServerInfo, ServerStats, SessionDetails,
                         SessionSummary, Shape, StoredRuns, TruncateResult, Verification)

P = ParamSpec("P")
T = TypeVar("T")


class _NoLock:
    """One thread and no event loop: nothing to keep out."""

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *_: object) -> None:
        return None


async def _connect(address: Address, timeout: float) -> Link:
    return cast(Link, BlockingLink(address, timeout))


async def _pause(seconds: float) -> None:
    time.sleep(seconds)


class Pending(Generic[T]):
    """A call that has been sent and whose reply has not been asked for."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine: Coroutine[Any, Any, T] | None = coroutine
        self._value: T
        self._error: BaseException | None = None
        try:
            coroutine.send(None)
        except StopIteration as stop:
            self._value, self._coroutine = stop.value, None
        except Exception as error:
            self._error, self._coroutine = error, None

    def result(self) -> T:
        """Wait for the reply and return what the call returns, or raise what it raises."""
        if self._coroutine is not None:
            coroutine, self._coroutine = self._coroutine, None
            try:
                self._value = drive(coroutine)
            except Exception as error:
                self._error = error
        if self._error is not None:
            raise self._error
        return self._value


class Client:
    """A connection to kvarnd that blocks, and connects again by itself.

    address: "unix:PATH" or "tcp:HOST:PORT"; None is the environment's KVARN_SERVER, else
    unix:/run/kvarnd/kvarnd.sock. options: kvarn.Options, or its fields as keywords. Connects at
    once. All calls take `deadline`, seconds; None is the client's own. They raise
    kvarn.ServerError's subclasses for what the daemon refuses, kvarn.ConnectionLost when the
    connection broke and the call could not be repeated safely, ValueError for arrays that do not
    fit, before anything is sent.
    """

    def __init__(self, address: str | None = None, *, options: Options | None = None,
                 **fields: Any) -> None:
        self._core = ClientCore(address, options or Options(**fields), _connect, _pause,
                                _NoLock())
        self._is_submitting = False
        drive(self._core.link())

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Sessions without a name end; named ones stay in the daemon."""
        drive(self._core.aclose())

    @property
    def server(self) -> ServerInfo:
        """What the daemon said of itself."""
        assert self._core.server is not None
        return self._core.server

    @property
    def reconnects(self) -> int:
        """Times the client had to connect again."""
        return self._core.reconnects

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._is_submitting:
            self._is_submitting = False
            return cast(T, Pending(coroutine))
        return drive(coroutine)

    def submit(self, method: Callable[P, T], *args: P.args, **keywords: P.kwargs) -> Pending[T]:
        """Send a call without waiting for its reply: pipelining.

        method: one of this client or of its sessions. Requests take effect in the order in which
        they were sent. Ask for the results in that order too; a Pending whose result nobody asks
        for keeps its place in the daemon's credit.

            pending = [client.submit(s.append, k, v, layer=i) for i, (k, v) in enumerate(layers)]
            results = [p.result() for p in pending]
        """
        self._is_submitting = True
        try:
            return cast("Pending[T]", method(*args, **keywords))
        finally:
            self._is_submitting = False

    def ping(self, *, deadline: float | None = None) -> float:
        """Seconds since the daemon started."""
        return self._run(self._core.ping(deadline))

    def open(self, name: str = "", shape: Shape | None = None, *, mode: str = "either",
             encoder: str = "default", seal_lag: int = 0, takeover: bool = False,
             ttl: float = 0, priority: int = 0, share_prefix: bool = False, salt: bytes = b"",
             lease: PrefixMatch | None = None, deadline: float | None = None) -> Session:
        """Open a session, or make it.

        name: lives until it is dropped or the daemon stops; "": ends with the connection. shape:
        needed to make one, else what it was made with. mode: "either", "create" (Conflict if it
        exists) or "existing" (NotFound if not). encoder "default", "reference", "refined" or
        "aware", and seal_lag, the newest tokens that stay 16 bits wide (0 to group), count at
        creation only. takeover: a new epoch, so that other clients' writes are refused from now on.
        ttl: seconds without use after which a new session is dropped, 0 is never; priority, 0 to
        100, keeps it longer from eviction, and halves every ten minutes. share_prefix: a new
        session shares equal blocks with others of that option and salt, which holds what K and V
        depend on besides tokens; appends give token_ids or block_hashes. lease: of match_prefix.
        """
        session = Session(self, name, shape)
        creation = creation_fields(ttl, priority, share_prefix, salt, lease)
        drive(self._core.open(session, mode, encoder, seal_lag, takeover, creation, deadline))
        return session

    def match_prefix(self, shape: Shape, token_ids: Array | None = None, *,
                     block_hashes: Sequence[bytes] | None = None, salt: bytes = b"",
                     lease: float = 10, deadline: float | None = None) -> PrefixMatch:
        """How many of the first tokens are stored by sessions that share their prefixes.

        token_ids: [T] whole numbers of 32 bits; or block_hashes, 32 bytes for each block. lease:
        seconds for which `open(lease=...)` of this connection may begin with that prefix, 0 only
        looks.
        """
        return self._run(self._core.match_prefix(shape, token_ids, block_hashes, salt, lease,
                                                 deadline))

    def fork(self, sessions: Iterable[Session], names: Iterable[str] | None = None, *,
             length: int | None = None, deadline: float | None = None) -> list[Session]:
        """A copy of each session, in one call: all of them or none.

        Copies share what is stored, whatever the length, and go on by themselves. names: as in
        open, Conflict where one exists; None gives none. length: of all layers of the copies, None
        is the committed length; Miss beyond it.
        """
        pairs = _pairs(lambda name, shape: Session(self, name, shape), sessions, names)
        return self._run(_copies(self._core, pairs, length, deadline))

    def reorder(self, items: Iterable[tuple[Sequence[Session], Sequence[int]]], *,
                deadline: float | None = None) -> None:
        """Make sessions copies of each other, in one step for each item: what beams need.

        An item (sessions, sources): session i holds what session sources[i] of the item held. Up
        to 128 sessions of one shape in an item. Names stay. Raises the first item's error; the
        other items are done.
        """
        self._run(self._core.reorder(items, deadline))

    def attend(self, items: Iterable[AttendItem], layer: int,
               options: AttendOptions = AttendOptions(), *,
               deadline: float | None = None) -> list[AttendResult]:
        """Attention of one layer for up to 1,024 items; each has its own `error`."""
        return self._run(self._core.attend(items, layer, options, deadline))

    def append_attend(self, items: Iterable[AppendAttendItem], layer: int,
                      options: AttendOptions = AttendOptions(), *, kv_rotated: bool = False,
                      deadline: float | None = None) -> list[AttendResult]:
        """The decode step of many sessions in one call; each item has its own `error`."""
        return self._run(self._core.append_attend(items, layer, options, kv_rotated, deadline))

    def read_metric(self, shape: Shape, layer_first: int = 0, layer_count: int | None = None, *,
                    deadline: float | None = None) -> list[LayerMetric]:
        """What the daemon knows of the shape's queries, of each layer that it knows something of.

        layer_count: None is all from layer_first on; TooLarge where they do not fit a reply.
        """
        return self._run(self._core.read_metric(shape, layer_first, layer_count, deadline))

    def register_metric(self, shape: Shape, layers: Iterable[LayerMetric], *,
                        deadline: float | None = None) -> int:
        """Give the daemon the metrics of layers, in place of what it has; returns their version.

        Raises Domain for sums that are not finite, NoSpace at the daemon's bound for metrics.
        """
        return self._run(self._core.register_metric(shape, layers, deadline))

    def sessions(self, prefix: str = "", *,
                 deadline: float | None = None) -> list[SessionSummary]:
        """All named sessions whose names begin with prefix, ascending."""
        return self._run(self._core.sessions(prefix, deadline))

    def inspect(self, name: str, *, deadline: float | None = None) -> SessionDetails:
        """All about a named session; NotFound where there is none."""
        return self._run(self._core.inspect(name, deadline))

    def drop(self, name: str, *, deadline: float | None = None) -> None:
        """End a named session for all that hold it."""
        self._run(self._core.drop(name, deadline))

    def touch(self, name: str, *, ttl: float | None = None, priority: int | None = None,
              deadline: float | None = None) -> Lifetime:
        """Say that a named session is used; ttl and priority as in open, None leaves them."""
        return self._run(self._core.touch(name, ttl, priority, deadline))

    def pin(self, name: str, seconds: float = 60, *, deadline: float | None = None) -> Pinned:
        """Keep what a named session holds now from eviction, and the session from its TTL.

        Another pin replaces it. Raises NoSpace beyond what the daemon lets pins keep.
        """
        return self._run(self._core.pin(name, seconds, deadline))

    def unpin(self, name: str, *, deadline: float | None = None) -> None:
        """End a pin."""
        self._run(self._core.unpin(name, deadline))

    def evict(self, name: str, blocks: int | None = None, *,
              deadline: float | None = None) -> Evicted:
        """Take up to `blocks` blocks of a named session out of memory, the last ones first; None is
        all. What is pinned stays. Reads of what is missing raise Miss, reason "evicted"; truncate
        to where it begins makes the session whole."""
        return self._run(self._core.evict(name, blocks, deadline))

    def prefetch(self, name: str, last_blocks: int | None = None, *,
                 deadline: float | None = None) -> Prefetched:
        """Bring a named session back from the cold tier before it is read; last_blocks: only so
        many blocks at its end, None is all.

        Returns when the job has begun; jobs() tells how it goes. Calls that need a block on its way
        wait for it. Raises Unsupported where the daemon has no cold tier, RetryLater while as many
        jobs run as there may be.
        """
        return self._run(self._core.prefetch(name, last_blocks, deadline))

    def prefetch_prefix(self, shape: Shape, token_ids: Array | None = None, *,
                        block_hashes: Sequence[bytes] | None = None, salt: bytes = b"",
                        deadline: float | None = None) -> Prefetched:
        """Bring what is stored of a prefix back from the cold tier, so that match_prefix finds it.

        token_ids, block_hashes, salt: as in match_prefix.
        """
        return self._run(self._core.prefetch_prefix(shape, token_ids, block_hashes, salt, deadline))

    def jobs(self, *, deadline: float | None = None) -> list[Job]:
        """Prefetches that run, then those that ended lately, the newest first."""
        return self._run(self._core.jobs(deadline))

    def verify(self, name: str | None = None, *, progress: Progress | None = None,
               deadline: float | None = None) -> Verification:
        """Compare what the daemon holds, in memory and on disk, with its checksums.

        name: of one session; None is all that have a name. It goes in parts of half a second, each
        with the deadline; progress is called with what the parts so far come to. What is wrong is
        put right where that can be, else it is a Miss, reason "checksum", from then on.
        """
        return self._run(_verify(self._core, name, progress, deadline))

    def stats(self, *, deadline: float | None = None) -> ServerStats:
        """The daemon's counters and latencies."""
        return self._run(self._core.stats(deadline))


class Session(SessionCore):
    """A sequence's cache in the daemon. `with` closes it; a named one stays in the daemon.

    name, epoch, shape, lengths (tokens of each layer) and length (the smallest) are what the last
    reply said.
    """

    def __init__(self, client: Client, name: str, shape: Shape | None) -> None:
        super().__init__(client._core, name, shape)
        self._client = client

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, k: Array, v: Array, layer: int = 0, *, start: int | None = None,
               layout: str = "head", rotated: bool = False, token_ids: Array | None = None,
               block_hashes: Sequence[bytes] | None = None,
               deadline: float | None = None) -> AppendResult:
        """Store tokens of one layer.

        k [H, T, Dk] and v [H, T, Dv] with layout "head", [T, H, D] with "token"; f16, bf16 or f32.
        start: where they begin; None is the layer's length. Raises Conflict where that is not its
        length, Domain for numbers that are not finite or too large; nothing is stored then.
        token_ids [T], or block_hashes, 32 bytes for each block that the tokens end: what they are,
        for sessions that share prefixes; once for each token, with whichever layer.
        """
        return self._client._run(self._append([(k, v)], layer, start, layout, rotated, token_ids,
                                              block_hashes, deadline))

    def append_layers(self, layers: Iterable[tuple[Array, Array]], layer_first: int = 0, *,
                      start: int | None = None, layout: str = "head", rotated: bool = False,
                      token_ids: Array | None = None, block_hashes: Sequence[bytes] | None = None,
                      deadline: float | None = None) -> AppendResult:
        """Store the same tokens in consecutive layers, a (k, v) each, in one step or not at all."""
        return self._client._run(self._append(list(layers), layer_first, start, layout, rotated,
                                              token_ids, block_hashes, deadline))

    def attend(self, q: Array, layer: int = 0, options: AttendOptions = AttendOptions(), *,
               position: int | None = None, token_first: int = 0, token_last: int | None = None,
               deadline: float | None = None) -> AttendResult:
        """Attention of q [Hq, T, Dk] over the layer's tokens; raises what its item says."""
        item = AttendItem(self, q, position, token_first, token_last)
        return self._client._run(_one(self._core.attend([item], layer, options, deadline)))

    def append_attend(self, k: Array, v: Array, q: Array, layer: int = 0,
                      options: AttendOptions = AttendOptions(), *, start: int | None = None,
                      kv_rotated: bool = False, deadline: float | None = None) -> AttendResult:
        """Store k, v [H, T, D], then attention of q [Hq, Tq, Dk]: one layer of a decode step."""
        item = AppendAttendItem(self, k, v, q, start)
        return self._client._run(_one(self._core.append_attend([item], layer, options, kv_rotated,
                                                               deadline)))

    def read(self, layer: int = 0, token_first: int = 0, token_last: int | None = None, *,
             dtype: str = "f16", rotated: bool = False, what: str = "kv", layout: str = "head",
             deadline: float | None = None) -> tuple[NDArray, NDArray]:
        """(k [H, T, Dk], v [H, T, Dv]) of tokens [token_first, token_last), decoded.

        what: "kv", "k" or "v"; the one not asked for comes without tokens. Raises Miss where they
        are not stored.
        """
        return self._client._run(_first(self._read(layer, 1, token_first, token_last, dtype,
                                                   rotated, what, layout, deadline)))

    def read_layers(self, layer_first: int = 0, layer_count: int | None = None,
                    token_first: int = 0, token_last: int | None = None, *, dtype: str = "f16",
                    rotated: bool = False,
                    deadline: float | None = None) -> list[tuple[NDArray, NDArray]]:
        """(k, v) of each of the layers, in one call; the payload has a limit (server)."""
        count = self.shape.layers - layer_first if layer_count is None else layer_count
        return self._client._run(self._read(layer_first, count, token_first, token_last, dtype,
                                            rotated, "kv", "head", deadline))

    def read_stored(self, layer_first: int = 0, layer_count: int | None = None,
                    token_first: int = 0, token_last: int | None = None, *,
                    deadline: float | None = None) -> StoredRuns:
        """What is kept, bit by bit: records of sealed blocks, rotated halves of the others."""
        count = self.shape.layers - layer_first if layer_count is None else layer_count
        return self._client._run(self._read_stored(layer_first, count, token_first, token_last,
                                                   deadline))

    def append_tiles(self, stored: StoredRuns, *,
                     deadline: float | None = None) -> tuple[int, ...]:
        """Store what read_stored gave; returns the lengths of all layers."""
        return self._client._run(self._append_tiles(stored, deadline))

    def fork(self, name: str = "", *, length: int | None = None,
             deadline: float | None = None) -> Session:
        """A copy of the session that goes on by itself; as Client.fork."""
        pairs = _pairs(lambda name, shape: Session(self._client, name, shape), [self], [name])
        return self._client._run(_first(_copies(self._core, pairs, length, deadline)))

    def truncate(self, length: int, *, deadline: float | None = None) -> TruncateResult:
        """Every layer becomes min(its length, length)."""
        return self._client._run(self._truncate(length, deadline))

    def touch(self, *, ttl: float | None = None, priority: int | None = None,
              deadline: float | None = None) -> Lifetime:
        """As Client.touch, of this session."""
        return self._client._run(self._core.touch(self, ttl, priority, deadline))

    def pin(self, seconds: float = 60, *, deadline: float | None = None) -> Pinned:
        """As Client.pin, of this session."""
        return self._client._run(self._core.pin(self, seconds, deadline))

    def unpin(self, *, deadline: float | None = None) -> None:
        """As Client.unpin, of this session."""
        self._client._run(self._core.unpin(self, deadline))

    def verify(self, *, deadline: float | None = None) -> Verification:
        """As Client.verify, of this session, which needs no name."""
        return self._client._run(_verify(self._core, self, None, deadline))

    def evict(self, blocks: int | None = None, *, deadline: float | None = None) -> Evicted:
        """As Client.evict, of this session."""
        return self._client._run(self._core.evict(self, blocks, deadline))

    def prefetch(self, last_blocks: int | None = None, *,
                 deadline: float | None = None) -> Prefetched:
        """As Client.prefetch, of this session."""
        return self._client._run(self._core.prefetch(self, last_blocks, deadline))

    def inspect(self, *, deadline: float | None = None) -> SessionDetails:
        """Shape, lengths, pages and bytes."""
        return self._client._run(self._inspect(deadline))

    def refresh(self, *, takeover: bool = False, deadline: float | None = None) -> None:
        """Take the session as it now is, after StaleEpoch or a call of unknown outcome."""
        self._client._run(self._refresh(takeover, deadline))

    def close(self, *, deadline: float | None = None) -> None:
        """Give the handle back. The object is of no use afterwards."""
        drive(self._close(deadline))

    def drop(self, *, deadline: float | None = None) -> None:
        """End the session for all that hold it; its memory is freed."""
        drive(self._drop(deadline))


S = TypeVar("S", bound=SessionCore)


def _pairs(make: Callable[[str, Shape], S], sessions: Iterable[S],
           names: Iterable[str] | None) -> list[tuple[S, S]]:
    """(session, what its copy will be) of each session."""
    originals = list(sessions)
    wanted = [""] * len(originals) if names is None else list(names)
    if len(wanted) != len(originals):
        raise ValueError(f"names: expected {len(originals)}, got {len(wanted)}")
    return [(s, make(name, s.shape)) for s, name in zip(originals, wanted)]


async def _copies(core: ClientCore, pairs: list[tuple[S, S]], length: int | None,
                  deadline: float | None) -> list[S]:
    """The second of each pair, filled in."""
    await core.fork(pairs, length, deadline)
    return [copy for _, copy in pairs]


async def _first(pairs: Coroutine[Any, Any, list[T]]) -> T:
    return (await pairs)[0]


async def _one(results: Coroutine[Any, Any, list[AttendResult]]) -> AttendResult:
    """The result of a batch of one; raises its error."""
    result = (await results)[0]
    if result.error is not None:
        raise result.error
    return result
