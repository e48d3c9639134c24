"""What a client does, once for both flavours: coroutines over a Link (kvarn._link).

Rules of repetition are libkvarn_client's. A connection that breaks before a request has left costs
nothing: connect and send. After that only what is safe is sent again: calls that change nothing;
Append and AppendAttend on named sessions, of which the daemon recognises the identical retry
(PROTOCOL.md section 3). None of them is, while another call that changes one of its sessions was
in flight beside it, since their order would be lost.
"""
from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from kvarn import _arrays, _frame, _parse
from kvarn._address import Address, parse
from kvarn._link import GRACE_SECONDS, Link, Request
from kvarn._messages import TYPES, message
from kvarn.errors import (Conflict, ConnectionLost, NotFound, RetryLater, StaleEpoch,
                          WireError, from_status)
from kvarn.types import (AppendAttendItem, AppendResult, Array, AttendItem, AttendOptions,
                         AttendResult, Evicted, Job, LayerMetric, Lifetime, NDArray, Options,
                         Pinned, Prefetched, PrefixMatch, ServerInfo, ServerStats, SessionDetails,
                         SessionSummary, Shape, StoredRuns, TruncateResult)

ATTEMPTS_MAX = 3
RETRY_PAUSE_SECONDS = 0.02
FOREVER = float("inf")


class Flight:
    """A request that is on its way: the sessions that it concerns, and whether it changes them.

    generation: number of the connection that it was last sent on, 0 before.
    """

    def __init__(self, sessions: Sequence[SessionCore], changes: bool, may_repeat: bool) -> None:
        self.sessions, self.changes, self.may_repeat = sessions, changes, may_repeat
        self.generation = 0

    def __enter__(self) -> Flight:
        self.was_alone = not self._others()
        if self.changes:
            for session in self.sessions:
                session._changing.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self.changes:
            for session in self.sessions:
                session._changing.remove(self)

    def _others(self) -> list[Flight]:
        """Calls in flight that change one of the sessions."""
        return [f for s in self.sessions for f in s._changing if f is not self]

    def send_on(self, generation: int) -> None:
        """Before it is sent: calls that were sent earlier on another connection have lost their
        place, and what was to come after them must not come first."""
        if any(f.generation not in (0, generation) for f in self._others()):
            raise ConnectionLost("the connection broke under an earlier call that changes the "
                                 "session: ask for its result first")
        self.generation = generation

    def is_late(self) -> bool:
        """Whether calls before it were sent on a connection that is no more."""
        return any(f.generation for f in self._others())

    def is_repeatable(self) -> bool:
        return self.may_repeat and self.was_alone and not self._others()


def _prefix_data(token_ids: Any,
                 block_hashes: Sequence[bytes] | None) -> tuple[Any, dict[str, int]]:
    """The payload that names a prefix, and the field that counts it."""
    if (token_ids is None) == (block_hashes is None):
        raise ValueError("expected token_ids or block_hashes")
    if block_hashes is None:
        data = _arrays.token_ids(token_ids)
        return data, {"token_count": data.nbytes // 4}
    data = _arrays.block_hashes(block_hashes)
    return data, {"hash_count": data.nbytes // 32}


class ClientCore:
    """A daemon, as one client sees it. Not for use by itself: kvarn.Client, kvarn.AsyncClient."""

    def __init__(self, address: str | None, options: Options,
                 connect: Callable[[Address, float], Awaitable[Link]],
                 pause: Callable[[float], Awaitable[None]], lock: Any) -> None:
        self.address, self.options = parse(address), options
        self.reconnects = 0
        self.server: ServerInfo | None = None
        self._connect, self._pause, self._lock = connect, pause, lock
        self._link: Link | None = None
        self._generation, self._is_closed = 0, False
        self._with_checksum = False
        self._shape_ids: dict[Shape, int] = {}

    # ---- the connection ----

    def _end(self, deadline: float | None) -> float:
        deadline = self.options.deadline if deadline is None else deadline
        return FOREVER if deadline is None else time.monotonic() + deadline

    async def link(self, end: float = FOREVER) -> tuple[Link, int]:
        """The open connection and its number, made where there is none."""
        async with self._lock:
            if self._is_closed:
                raise ConnectionLost("the client is closed")
            if self._link is not None and self._link.is_open:
                return self._link, self._generation
            if self._link is not None and not self.options.reconnect:
                raise ConnectionLost("the connection broke earlier, and reconnect is off")
            link = await self._hello(end)
            self.reconnects += self._link is not None
            self._link = link
            self._generation += 1
            return link, self._generation

    async def _hello(self, end: float) -> Link:
        timeout = min(self.options.connect_timeout, max(0.001, end - time.monotonic()))
        until = time.monotonic() + timeout
        link = await self._connect(self.address, timeout)
        wish = self.options.checksum
        with_checksum = wish == "on" or (wish == "auto" and self.address.is_tcp
                                         and _frame.xxh3() is not None)
        if wish == "on" and _frame.xxh3() is None:
            raise ValueError("checksum: needs the package xxhash or libxxhash")
        hello = message["Hello"](client=self.options.name,
                                 features=["payload_xxh3"] if with_checksum else [])
        try:
            reply = await link.exchange(
                Request(TYPES["Hello"], hello.SerializeToString(), [], False), until, False)
            error = from_status(reply.message.status)
            if error is not None:
                raise error
        except BaseException:
            await link.aclose()
            raise
        info = _parse.server_info(reply.message)
        if self.server is None or self.server.server_id != info.server_id:
            self._shape_ids.clear()
        self.server, self._with_checksum = info, with_checksum
        link.credit.requests_max = info.credit_requests or 1
        link.credit.bytes_max = info.credit_bytes or 1 << 62
        return link

    async def aclose(self) -> None:
        """Close the connection; unnamed sessions end."""
        self._is_closed = True
        if self._link is not None:
            await self._link.aclose()

    async def call(self, name: str, build: Callable[[], Any],
                   parts: Sequence[memoryview] = (), *, deadline: float | None = None,
                   flight: Flight | None = None, may_suspend: bool = True) -> _frame.Reply:
        """One call to its reply, whose status is OK; `build` makes the message for the handles of
        the connection in use. Raises ServerError, ConnectionLost or WireError."""
        end = self._end(deadline)
        flight = flight or Flight((), False, True)
        attempts = 0
        with flight:
            while True:
                was_sent = False
                try:
                    link, generation = await self.link(end)
                    for session in flight.sessions:
                        await session._bind(generation, end)
                    flight.send_on(generation)
                    was_sent = True
                    reply = await self._exchange(link, name, build(), list(parts), end,
                                                 may_suspend)
                except ConnectionLost as lost:
                    attempts += 1
                    was_sent = was_sent and lost.was_sent
                    may_repeat = flight.is_repeatable() or not was_sent and not flight.is_late()
                    if not may_repeat or not self.options.reconnect or self._is_closed \
                            or attempts >= ATTEMPTS_MAX or time.monotonic() >= end:
                        raise
                    await self._pause(RETRY_PAUSE_SECONDS * attempts)
                    continue
                error = from_status(reply.message.status)
                if error is None:
                    return reply
                after = getattr(error, "retry_after", None) or RETRY_PAUSE_SECONDS
                if not isinstance(error, RetryLater) or not self.options.retry_later \
                        or time.monotonic() + after >= end:
                    raise error
                await self._pause(after)

    async def _exchange(self, link: Link, name: str, request: Any, parts: list[memoryview],
                        end: float, may_suspend: bool) -> _frame.Reply:
        until = end
        if end != FOREVER and name != "Hello":
            left = max(0.0, end - time.monotonic())
            request.deadline_ms = min(int(left * 1000), 0xFFFFFFFE)
            until = end + GRACE_SECONDS
        return await link.exchange(
            Request(TYPES[name], request.SerializeToString(), parts, self._with_checksum), until,
            may_suspend)

    # ---- calls without a session ----

    async def ping(self, deadline: float | None) -> float:
        reply = await self.call("Ping", message["Ping"], deadline=deadline)
        return float(reply.message.uptime_ms) / 1000

    async def register_shape(self, shape: Shape, end: float | None = None) -> int:
        await self.link()
        if shape not in self._shape_ids:
            deadline = None if end is None or end == FOREVER else max(0, end - time.monotonic())
            wire = _parse.shape_message(shape)
            reply = await self.call("RegisterShape",
                                    lambda: message["RegisterShape"](shape=wire),
                                    deadline=deadline, may_suspend=False)
            if reply.message.fingerprint != shape.fingerprint():
                raise WireError("the daemon computes another fingerprint of the shape")
            self._shape_ids[shape] = reply.message.shape_id
        return self._shape_ids[shape]

    async def read_metric(self, shape: Shape, layer_first: int, layer_count: int | None,
                          deadline: float | None) -> list[LayerMetric]:
        request = message["ReadMetric"](fingerprint=shape.fingerprint(), layer_first=layer_first)
        if layer_count is not None:
            request.layer_count = layer_count
        reply = await self.call("ReadMetric", lambda: request, deadline=deadline)
        return _parse.metric(reply.message, reply.payload)

    async def register_metric(self, shape: Shape, layers: Iterable[LayerMetric],
                              deadline: float | None) -> int:
        """The version under which the metric is in force."""
        given = {m.layer: m for m in layers}
        if not given:
            raise ValueError("layers: expected at least one")
        request = message["RegisterShape"](shape=_parse.shape_message(shape))
        first, last = min(given), max(given) + 1
        request.metric_layer_first, request.metric_layer_count = first, last - first
        sums = []
        for layer in range(first, last):
            kind = shape.layer(layer)
            if layer not in given:
                request.metric_counts.extend([0] * kind.kv_heads)
                continue
            one = _arrays.to_wire(given[layer].sums, "sums", 3)
            expected = (kind.kv_heads, kind.k_dim, kind.k_dim)
            if one.shape != expected or one.dtype != _arrays.DTYPES["f32"] \
                    or len(given[layer].counts) != kind.kv_heads:
                raise ValueError(f"layer {layer}: expected {kind.kv_heads} counts and sums fp32 "
                                 f"{expected}, got {len(given[layer].counts)} and {one.shape}")
            request.metric_counts.extend(given[layer].counts)
            sums.append(one.data)
        reply = await self.call("RegisterShape", lambda: request, sums, deadline=deadline,
                                flight=Flight((), True, False))
        return int(reply.message.metric_version)

    async def stats(self, deadline: float | None) -> ServerStats:
        reply = await self.call("Stats", message["Stats"], deadline=deadline)
        return _parse.stats(reply.message)

    async def sessions(self, prefix: str, deadline: float | None) -> list[SessionSummary]:
        found: list[SessionSummary] = []
        more = True
        while more:
            request = message["ListSessions"](limit=256)
            if prefix:
                request.prefix = prefix
            if found:
                request.after = found[-1].name
            page = (await self.call("ListSessions", lambda: request, deadline=deadline,
                                    may_suspend=False)).message
            found += [_parse.summary(s) for s in page.sessions]
            more = page.more and len(page.sessions) > 0
        return found

    async def inspect(self, name: str, deadline: float | None) -> SessionDetails:
        reply = await self.call("InspectSession", lambda: message["InspectSession"](name=name),
                                deadline=deadline)
        return _parse.details(reply.message)

    async def drop(self, name: str, deadline: float | None) -> None:
        flight = Flight((), True, False)
        await self.call("DropSession", lambda: message["DropSession"](name=name),
                        deadline=deadline, flight=flight)

    async def match_prefix(self, shape: Shape, token_ids: Any,
                           block_hashes: Sequence[bytes] | None, salt: bytes, lease: float,
                           deadline: float | None) -> PrefixMatch:
        data, count = _prefix_data(token_ids, block_hashes)
        lease_ms = _parse.milliseconds(lease, "lease")
        end = self._end(deadline)
        shape_id = await self.register_shape(shape, end)
        reply = (await self.call("MatchPrefix", lambda: message["MatchPrefix"](
            shape_id=shape_id, salt=salt, lease_ms=lease_ms, **count), [data],
            deadline=deadline)).message
        return PrefixMatch(reply.tokens, reply.lease if reply.HasField("lease") else None,
                           reply.lease_ms / 1000)

    # ---- how long sessions live, by name or by handle ----

    async def _of(self, call: str, target: str | SessionCore, fields: dict[str, Any],
                  may_repeat: bool, deadline: float | None) -> Any:
        """The reply to a call that names a session."""
        def build() -> Any:
            which: dict[str, Any] = {"name": target} if isinstance(target, str) \
                else {"handle": target._handle}
            return message[call](**which, **fields)

        sessions = [] if isinstance(target, str) else [target]
        return (await self.call(call, build, deadline=deadline,
                                flight=Flight(sessions, False, may_repeat))).message

    async def touch(self, target: str | SessionCore, ttl: float | None, priority: int | None,
                    deadline: float | None) -> Lifetime:
        fields = {} if ttl is None else {"ttl_ms": _parse.milliseconds(ttl, "ttl")}
        if priority is not None:
            fields["priority"] = priority
        reply = await self._of("Touch", target, fields, True, deadline)
        return Lifetime(_parse.seconds(reply.ttl_left_ms), reply.priority)

    async def pin(self, target: str | SessionCore, seconds: float,
                  deadline: float | None) -> Pinned:
        reply = await self._of("Pin", target, {"pin_ms": _parse.milliseconds(seconds, "seconds")},
                               True, deadline)
        return Pinned(reply.pinned_bytes, reply.budget_left_bytes)

    async def unpin(self, target: str | SessionCore, deadline: float | None) -> None:
        await self._of("Pin", target, {"unpin": True}, True, deadline)

    async def evict(self, target: str | SessionCore, blocks: int | None,
                    deadline: float | None) -> Evicted:
        reply = await self._of("Evict", target, {} if blocks is None else {"blocks": blocks}, False,
                               deadline)
        return Evicted(reply.blocks, reply.freed_bytes, (reply.missing_first, reply.missing_last))

    async def prefetch(self, target: str | SessionCore, last_blocks: int | None,
                       deadline: float | None) -> Prefetched:
        fields = {} if last_blocks is None else {"last_blocks": last_blocks}
        reply = await self._of("Prefetch", target, fields, True, deadline)
        return Prefetched(reply.job_id if reply.HasField("job_id") else None, reply.blocks,
                          reply.bytes)

    async def prefetch_prefix(self, shape: Shape, token_ids: Any,
                              block_hashes: Sequence[bytes] | None, salt: bytes,
                              deadline: float | None) -> Prefetched:
        data, count = _prefix_data(token_ids, block_hashes)
        shape_id = await self.register_shape(shape, self._end(deadline))
        reply = (await self.call("Prefetch", lambda: message["Prefetch"](
            shape_id=shape_id, salt=salt, **count), [data], deadline=deadline)).message
        return Prefetched(reply.job_id if reply.HasField("job_id") else None, reply.blocks,
                          reply.bytes, reply.tokens)

    async def jobs(self, deadline: float | None) -> list[Job]:
        reply = await self.call("ListJobs", message["ListJobs"], deadline=deadline)
        return [_parse.job(j) for j in reply.message.jobs]

    # ---- batches ----

    async def attend(self, items: Iterable[AttendItem], layer: int, options: AttendOptions,
                     deadline: float | None) -> list[AttendResult]:
        items = list(items)
        queries = [_arrays.to_wire(i.q, "q", 3) for i in items]
        params, v_dim = _batch_params(items, queries, layer, options)

        def build() -> Any:
            request = message["Attend"](params=params)
            for item, q in zip(items, queries):
                _fill_range(request.items.add(handle=item.session._handle,
                                              query_tokens=q.shape[1]), item)
            return request

        reply = await self.call("Attend", build, [q.data for q in queries], deadline=deadline,
                                flight=Flight([i.session for i in items], False, True))
        return _parse.attend_results(reply.message, reply.payload,
                                     [(q.shape[0], q.shape[1]) for q in queries], v_dim,
                                     params.out_dtype)

    async def append_attend(self, items: Iterable[AppendAttendItem], layer: int,
                            options: AttendOptions, kv_rotated: bool,
                            deadline: float | None) -> list[AttendResult]:
        items = list(items)
        queries = [_arrays.to_wire(i.q, "q", 3) for i in items]
        params, v_dim = _batch_params(items, queries, layer, options)
        rows = [i.session._rows(i.k, i.v, layer, "head") for i in items]
        kv_dtype = _arrays.same_dtype([t for pair in rows for t in pair], "k and v")
        counts = [k.shape[1] for k, _ in rows]
        names = [_parse.named(i.token_ids, i.block_hashes, i.session._start(layer, i.start), n,
                              i.session.shape.group) for i, n in zip(items, counts)]
        kind_of_name = names[0][0]
        if any(kind != kind_of_name for kind, _ in names):
            raise ValueError("items: expected token_ids in all, block_hashes in all, or none")
        starts = [i.session._take(layer, 1, n, i.start) for i, n in zip(items, counts)]

        def build() -> Any:
            request = message["AppendAttend"](params=params, kv_dtype=kv_dtype,
                                              kv_rotated=kv_rotated, **kind_of_name)
            for item, q, count, start in zip(items, queries, counts, starts):
                _fill_range(request.items.add(
                    handle=item.session._handle, epoch=item.session.epoch, start=start,
                    token_count=count, query_tokens=q.shape[1]), item)
            return request

        parts = [p for pair, (_, ids) in zip(rows, names) for p in (*ids, *(t.data for t in pair))]
        parts += [q.data for q in queries]
        named = all(i.session.name for i in items)
        try:
            reply = await self.call("AppendAttend", build, parts, deadline=deadline,
                                    flight=Flight([i.session for i in items], True, named))
        except Exception:
            for item, start in zip(items, starts):
                item.session._settle(layer, 1, start, None)
            raise
        for item, count, start, told in zip(items, counts, starts, reply.message.items):
            item.session._settle(layer, 1, start, start + count if told.appended else None)
        results = _parse.attend_results(reply.message, reply.payload,
                                        [(q.shape[0], q.shape[1]) for q in queries], v_dim,
                                        params.out_dtype)
        for item, result in zip(items, results):
            if result.error is not None and not result.appended:
                item.session._note_lengths(layer, 1, result.error)
        return results

    # ---- sessions ----

    async def open(self, session: SessionCore, mode: str, encoder: str, seal_lag: int,
                   takeover: bool, creation: dict[str, Any], deadline: float | None) -> None:
        """Fill in a new session object."""
        end = self._end(deadline)
        wire_mode = _parse.enum("OpenMode", _parse.MODES, mode, "mode")
        wire_encoder = _parse.enum("Encoder", _parse.ENCODERS, encoder, "encoder")
        shape = session._shape
        shape_id = None if shape is None else await self.register_shape(shape, end)

        def build() -> Any:
            request = message["OpenSession"](
                mode=wire_mode, encoder=wire_encoder, seal_lag=seal_lag, takeover=takeover,
                **creation)
            if session.name:
                request.name = session.name
            if shape_id is not None:
                request.shape_id = shape_id
            return request

        may_repeat = not takeover and not (session.name and mode == "create")
        reply = await self.call("OpenSession", build, deadline=deadline, may_suspend=False,
                                flight=Flight((), True, may_repeat))
        session._opened(reply.message, self._generation)
        session.created = reply.message.created
        if shape is None:
            found = await self.call("InspectSession", lambda: message["InspectSession"](
                handle=session._handle), deadline=deadline, may_suspend=False)
            session._shape = _parse.details(found.message).shape
            self._shape_ids[session._shape] = reply.message.shape_id

    async def fork(self, pairs: Sequence[tuple[SessionCore, SessionCore]], length: int | None,
                   deadline: float | None) -> None:
        """Make the second of each pair a copy of the first; all or none."""
        if not pairs:
            return

        def build() -> Any:
            request = message["Fork"]()
            for source, copy in pairs:
                item = request.items.add(handle=source._handle, epoch=source.epoch)
                if copy.name:
                    item.name = copy.name
                if length is not None:
                    item.length = length
            return request

        named = any(copy.name for _, copy in pairs)
        reply = await self.call("Fork", build, deadline=deadline,
                                flight=Flight([s for s, _ in pairs], False, not named))
        errors = []
        for (_, copy), item in zip(pairs, reply.message.items):
            error = from_status(item.status)
            if error is None:
                copy._forked(item, self._generation)
            else:
                errors.append(error)
        if errors:
            for _, copy in pairs:
                if copy.created:
                    await copy._drop(deadline)
            raise errors[0]

    async def reorder(self, items: Iterable[tuple[Sequence[SessionCore], Sequence[int]]],
                      deadline: float | None) -> None:
        """Make sessions copies of each other."""
        groups = [(list(sessions), list(sources)) for sessions, sources in items]
        for sessions, sources in groups:
            if len(sessions) != len(sources) \
                    or not all(0 <= i < len(sessions) for i in sources):
                raise ValueError(f"reorder: expected {len(sessions)} indices of the "
                                 f"{len(sessions)} sessions, got {sources}")
        if not groups:
            return

        def build() -> Any:
            request = message["Reorder"]()
            for sessions, sources in groups:
                request.items.add(handles=[s._handle for s in sessions],
                                  epochs=[s.epoch for s in sessions], sources=sources)
            return request

        reply = await self.call("Reorder", build, deadline=deadline, flight=Flight(
            [s for sessions, _ in groups for s in sessions], True, False))
        errors = []
        for (sessions, sources), item in zip(groups, reply.message.items):
            error = from_status(item.status)
            if error is not None:
                errors.append(error)
                continue
            before = [s.lengths for s in sessions]
            for session, source, epoch, length in zip(sessions, sources, item.epochs,
                                                      item.lengths):
                session.epoch = epoch
                # The reply has the shortest layer's length only.
                same = min(before[source]) == length
                session._set_lengths(before[source] if same else
                                     [length] * session.shape.layers)
        if errors:
            raise errors[0]


class SessionCore:
    """What the client knows of a session: handle, epoch, lengths of its layers.

    `_next` is where the next append of each layer starts, those that are on their way included;
    `_lengths` is what the daemon has confirmed.
    """

    created = False

    def __init__(self, core: ClientCore, name: str, shape: Shape | None) -> None:
        self._core, self.name, self._shape = core, name, shape
        self.epoch = 0
        self._handle, self._generation, self._is_open = 0, 0, True
        self._changing: list[Flight] = []
        self._lengths: list[int] = []
        self._next: list[int] = []

    @property
    def shape(self) -> Shape:
        """What the session's tensors look like."""
        assert self._shape is not None
        return self._shape

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each layer, as of the last reply."""
        return tuple(self._lengths)

    @property
    def length(self) -> int:
        """The committed length: the smallest of the layers'."""
        return min(self._lengths)

    def __repr__(self) -> str:
        return f"<kvarn session {self.name or 'without a name'}, {self.length} tokens>"

    # ---- what replies say ----

    def _opened(self, reply: Any, generation: int) -> None:
        self._handle, self._generation, self.epoch = reply.handle, generation, reply.epoch
        self._set_lengths(reply.layer_lengths)

    def _forked(self, item: Any, generation: int) -> None:
        self._handle, self._generation, self.epoch = item.handle, generation, item.epoch
        self.created = item.created
        self._set_lengths([item.length] * self.shape.layers)

    def _set_lengths(self, lengths: Iterable[int]) -> None:
        self._lengths = [int(n) for n in lengths]
        self._next = list(self._lengths)

    async def _bind(self, generation: int, end: float) -> None:
        """Make the handle one of this connection: a named session is opened again."""
        if not self._is_open:
            raise NotFound("the session object is closed")
        if self._generation == generation:
            return
        if not self.name:
            raise NotFound("the session had no name and ended with its connection")
        deadline = None if end == FOREVER else max(0.0, end - time.monotonic())
        reply = (await self._core.call("OpenSession", lambda: message["OpenSession"](
            name=self.name, mode=_parse.enum("OpenMode", _parse.MODES, "existing", "mode")),
            deadline=deadline, may_suspend=False)).message
        if reply.epoch != self.epoch:
            raise StaleEpoch("the session changed while the connection was down", epoch=reply.epoch,
                             lengths=tuple(reply.layer_lengths))
        self._handle, self._generation = reply.handle, self._core._generation

    def _note_lengths(self, first: int, count: int, error: BaseException) -> None:
        """Of a Conflict: the lengths that hold."""
        lengths = getattr(error, "lengths", ())
        if isinstance(error, Conflict) and len(lengths) == count:
            for layer, length in enumerate(lengths, first):
                self._lengths[layer] = self._next[layer] = int(length)

    # ---- appends under way ----

    def _rows(self, k: Array, v: Array, layer: int,
              layout: str) -> tuple[_arrays.Tensor, _arrays.Tensor]:
        """K and V of one layer, checked against the shape."""
        kind, (k_dim, v_dim) = self.shape.layer(layer), self.shape.layer(layer).dims
        token_axis = 1 if layout == "head" else 0
        pair = (_arrays.to_wire(k, "k", 3), _arrays.to_wire(v, "v", 3))
        for tensor, dim, what in zip(pair, (k_dim, v_dim), "kv"):
            expected = _parse.row_shape(layout, kind.kv_heads, pair[0].shape[token_axis], dim)
            if tensor.shape != expected:
                raise ValueError(f"{what}: expected shape {expected} for layer {layer}, got "
                                 f"{tensor.shape}")
        return pair

    def _start(self, layer: int, start: int | None) -> int:
        """Where an append of a layer begins, as _take will have it."""
        return self._next[layer] if start is None and layer < len(self._next) else start or 0

    def _take(self, first: int, count: int, tokens: int, start: int | None) -> int:
        """Claim `tokens` for layers [first, first + count); returns where they start."""
        layers = self._next[first:first + count]
        if len(layers) != count:
            raise IndexError(f"layers: expected {first} to {first + count - 1} to be within "
                             f"{len(self._next)}")
        if start is None:
            if len(set(layers)) != 1:
                raise ValueError(f"the layers have different lengths, {layers}: append one by one")
            start = layers[0]
        self._next[first:first + count] = [start + tokens] * count
        return start

    def _settle(self, first: int, count: int, start: int, length: int | None) -> None:
        """An append has ended: `length` of its layers, or None where it was not stored."""
        for layer in range(first, first + count):
            if length is not None:
                self._lengths[layer] = length
                self._next[layer] = max(self._next[layer], length)
            else:
                self._next[layer] = min(self._next[layer], start)

    # ---- calls ----

    async def _append(self, layers: list[tuple[Array, Array]], first: int, start: int | None,
                      layout: str, rotated: bool, token_ids: Any,
                      block_hashes: Sequence[bytes] | None,
                      deadline: float | None) -> AppendResult:
        wire_layout = _parse.enum("Layout", _parse.LAYOUTS, layout, "layout")
        rows = [self._rows(k, v, first + i, layout) for i, (k, v) in enumerate(layers)]
        tensors = [t for pair in rows for t in pair]
        dtype = _arrays.same_dtype(tensors, "k and v")
        tokens = {pair[0].shape[1 if layout == "head" else 0] for pair in rows}
        if len(tokens) != 1:
            raise ValueError(f"expected as many tokens in all layers, got {sorted(tokens)}")
        count, token_count = len(rows), tokens.pop()
        kind_of_name, names = _parse.named(token_ids, block_hashes, self._start(first, start),
                                           token_count, self.shape.group)
        start = self._take(first, count, token_count, start)

        def build() -> Any:
            return message["Append"](
                handle=self._handle, epoch=self.epoch, layer_first=first, layer_count=count,
                start=start, token_count=token_count, dtype=dtype, layout=wire_layout,
                rotated=rotated, **kind_of_name)

        try:
            reply = (await self._core.call(
                "Append", build, [*names, *(t.data for t in tensors)], deadline=deadline,
                flight=Flight([self], True, bool(self.name)))).message
        except Exception as error:
            # Not of a task that was cancelled, or a Pending that was thrown away: those appends
            # have probably been stored, and if not, a Conflict says so.
            self._settle(first, count, start, None)
            self._note_lengths(first, count, error)
            raise
        self._settle(first, count, start, reply.length)
        return AppendResult(reply.length, reply.sealed_tokens, reply.repeated_request)

    async def _read(self, layer: int, count: int, first: int, last: int | None, dtype: str,
                    rotated: bool, what: str, layout: str,
                    deadline: float | None) -> list[tuple[NDArray, NDArray]]:
        """A pair for each layer; K or V that was not asked for has no tokens."""
        wire_dtype = _arrays.dtype_number(dtype)
        self.shape.layer(layer + count - 1)
        last = min(self._lengths[layer:layer + count]) if last is None else last
        reply = await self._core.call("ReadBlocks", lambda: message["ReadBlocks"](
            handle=self._handle, layer_first=layer, layer_count=count, token_first=first,
            token_last=last, dtype=wire_dtype, rotated=rotated,
            what=_parse.enum("ReadWhat", _parse.WHATS, what, "what"),
            layout=_parse.enum("Layout", _parse.LAYOUTS, layout, "layout")),
            deadline=deadline, flight=Flight([self], False, True))
        reader, tokens, pairs = _arrays.Reader(reply.payload), last - first, []
        for number in range(layer, layer + count):
            kind = self.shape.layer(number)
            pairs.append(tuple(
                reader.take(_parse.row_shape(layout, kind.kv_heads,
                                             tokens if letter in what else 0, dim), wire_dtype)
                for letter, dim in zip("kv", kind.dims)))
        return pairs  # type: ignore[return-value]

    async def _read_stored(self, layer: int, count: int, first: int, last: int | None,
                           deadline: float | None) -> StoredRuns:
        self.shape.layer(layer + count - 1)
        last = min(self._lengths[layer:layer + count]) if last is None else last
        reply = await self._core.call("ReadBlocks", lambda: message["ReadBlocks"](
            handle=self._handle, layer_first=layer, layer_count=count, token_first=first,
            token_last=last, stored=True), deadline=deadline, flight=Flight([self], False, True))
        return _parse.stored_runs(reply.message, reply.payload, self.shape)

    async def _append_tiles(self, stored: StoredRuns, deadline: float | None) -> tuple[int, ...]:
        def build() -> Any:
            request = message["AppendTiles"](handle=self._handle, epoch=self.epoch)
            for run in stored.runs:
                request.runs.add(layer=run.layer, first_token=run.first_token,
                                 token_count=run.token_count, form=_parse.FORMS.index(run.form))
            return request

        reply = (await self._core.call("AppendTiles", build, [stored.payload], deadline=deadline,
                                       flight=Flight([self], True, bool(self.name)))).message
        for layer, length in zip(sorted({r.layer for r in stored.runs}), reply.lengths):
            self._lengths[layer] = self._next[layer] = int(length)
        return self.lengths

    async def _truncate(self, length: int, deadline: float | None) -> TruncateResult:
        reply = (await self._core.call("Truncate", lambda: message["Truncate"](
            handle=self._handle, epoch=self.epoch, length=length), deadline=deadline,
            flight=Flight([self], True, False))).message
        self.epoch = reply.epoch
        self._set_lengths(reply.layer_lengths)
        return TruncateResult(self.lengths, reply.lossy_tail)

    async def _inspect(self, deadline: float | None) -> SessionDetails:
        reply = await self._core.call("InspectSession", lambda: message["InspectSession"](
            handle=self._handle), deadline=deadline, flight=Flight([self], False, True))
        return _parse.details(reply.message)

    async def _refresh(self, takeover: bool, deadline: float | None) -> None:
        """Open the session again, and hold what it now is."""
        if not self.name:
            raise NotFound("a session without a name cannot be opened again")
        reply = await self._core.call("OpenSession", lambda: message["OpenSession"](
            name=self.name, mode=_parse.enum("OpenMode", _parse.MODES, "existing", "mode"),
            takeover=takeover), deadline=deadline, may_suspend=False,
            flight=Flight((), True, not takeover))
        self._opened(reply.message, self._core._generation)

    async def _close(self, deadline: float | None) -> None:
        if not self._is_open:
            return
        link = self._core._link
        if link is None or not link.is_open or self._generation != self._core._generation:
            self._is_open = False  # the handle went with its connection
            return
        try:
            await self._core.call("CloseSession", lambda: message["CloseSession"](
                handle=self._handle), deadline=deadline, flight=Flight([self], True, False))
        except (NotFound, ConnectionLost):
            pass  # dropped by another, or gone with the connection: closed all the same
        self._is_open = False

    async def _drop(self, deadline: float | None) -> None:
        await self._core.call("DropSession", lambda: message["DropSession"](handle=self._handle),
                              deadline=deadline, flight=Flight([self], True, False))
        self._is_open = False


def _fill_range(wire: Any, item: AttendItem | AppendAttendItem) -> None:
    """The optional fields that both kinds of items have."""
    if item.position is not None:
        wire.position = item.position
    if item.token_first:
        wire.token_first = item.token_first
    if item.token_last is not None:
        wire.token_last = item.token_last


def _batch_params(items: Sequence[AttendItem | AppendAttendItem], queries: list[_arrays.Tensor],
                  layer: int, options: AttendOptions) -> tuple[Any, int]:
    """(AttendParams, Dv) of a batch; ValueError where its items do not fit together."""
    if not items:
        raise ValueError("items: expected at least one")
    kinds = {i.session.shape.layer(layer).dims for i in items}
    heads = {q.shape[0] for q in queries}
    if len(kinds) != 1 or len(heads) != 1:
        raise ValueError("items: expected one head_dim and number of query heads")
    k_dim, v_dim = kinds.pop()
    if any(q.shape[2] != k_dim for q in queries):
        raise ValueError(f"q: expected [query heads, query tokens, {k_dim}]")
    dtype = _arrays.same_dtype(queries, "q")
    return _parse.attend_params(options, layer, heads.pop(), dtype), v_dim
