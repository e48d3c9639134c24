"""One connection, blocking or on asyncio: sends requests, hands replies to who waits for them.

Both keep the credit that the daemon gives: a request beyond it waits for replies first. Both have
one coroutine interface, so that kvarn._core is written once. In the blocking flavour those
coroutines suspend at one place only, after a request has been sent: that is what pipelining
(Client.submit) is made of. Everything else in them blocks.
"""
from __future__ import annotations

import asyncio
import select
import socket
import time
import types
from collections.abc import Coroutine, Generator
from typing import Any, Protocol, TypeVar

from kvarn import _frame
from kvarn._address import Address
from kvarn.errors import ConnectionLost, WireError

T = TypeVar("T")
READ_CHUNK = 1 << 18
# What a daemon may be late with its answer DEADLINE before it is given up.
GRACE_SECONDS = 1.0


class Credit:
    """Requests and bytes of payload that are unanswered, and how many may be."""

    def __init__(self) -> None:
        self.requests_max, self.bytes_max = 1, 1 << 62
        self._waiting: dict[int, int] = {}
        self._bytes = 0

    def has_room(self, nbytes: int) -> bool:
        return not self._waiting or (len(self._waiting) < self.requests_max
                                     and self._bytes + nbytes <= self.bytes_max)

    def take(self, request_id: int, nbytes: int) -> None:
        self._waiting[request_id] = nbytes
        self._bytes += nbytes

    def give(self, request_id: int) -> None:
        self._bytes -= self._waiting.pop(request_id, 0)


class Request:
    """A request on its way: request_id is set when it is sent."""

    def __init__(self, kind: int, message: bytes, parts: list[memoryview],
                 with_checksum: bool) -> None:
        self.kind, self.message, self.parts = kind, message, parts
        self.with_checksum, self.request_id = with_checksum, 0
        self.nbytes = sum(p.nbytes for p in parts)

    def pieces(self) -> list[memoryview]:
        return _frame.encode(self.kind, self.request_id, self.message, self.parts,
                             self.with_checksum)


class Link(Protocol):
    """What kvarn._core needs of a connection."""
    credit: Credit
    is_open: bool

    async def exchange(self, request: Request, end: float, may_suspend: bool) -> _frame.Reply:
        """Send and wait for the reply until `end` (time.monotonic()); raises ConnectionLost."""

    async def aclose(self) -> None:
        """Close; whatever waits gets ConnectionLost."""


# ---- blocking ----


@types.coroutine
def _suspend() -> Generator[None, None, None]:
    yield


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine over a BlockingLink to its end."""
    while True:
        try:
            coroutine.send(None)
        except StopIteration as stop:
            result: T = stop.value
            return result


class BlockingLink:
    """A socket of one thread."""

    def __init__(self, address: Address, timeout: float) -> None:
        self.credit, self.is_open = Credit(), False
        self._replies: dict[int, _frame.Reply] = {}
        self._abandoned: set[int] = set()
        self._head: _frame.Head | None = None
        self._buffer, self._filled = bytearray(_frame.HEADER_BYTES), 0
        self._next_id = 1
        try:
            if address.is_tcp:
                self._socket = socket.create_connection((address.host, address.port), timeout)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            else:
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.settimeout(timeout)
                self._socket.connect(address.path)
        except OSError as error:
            raise ConnectionLost(f"{address.text}: {error}") from error
        self._socket.setblocking(False)
        self.is_open = True

    async def exchange(self, request: Request, end: float, may_suspend: bool) -> _frame.Reply:
        self._send(request, end)
        if may_suspend:
            try:
                await _suspend()
            except GeneratorExit:
                self._abandon(request.request_id)
                raise
        return self._wait(request.request_id, end)

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._socket.close()

    def _abandon(self, request_id: int) -> None:
        """Nobody will ask for this reply."""
        if self._replies.pop(request_id, None) is None:
            self._abandoned.add(request_id)

    def _lost(self, why: object, was_sent: bool = True) -> ConnectionLost:
        self.close()
        return ConnectionLost(f"the connection broke: {why}", was_sent)

    def _send(self, request: Request, end: float) -> None:
        while self.is_open and not self.credit.has_room(request.nbytes):
            self._read(end)
        if not self.is_open:
            raise ConnectionLost("the connection is closed")
        request.request_id, self._next_id = self._next_id, self._next_id + 1
        self.credit.take(request.request_id, request.nbytes)
        pieces, sent = request.pieces(), False
        while pieces:
            try:
                count = self._socket.sendmsg(pieces[:64])
                sent = True
            except BlockingIOError:
                # The daemon may be waiting for us to take its replies.
                self._poll(end, select.POLLOUT | select.POLLIN)
                continue
            except OSError as error:
                raise self._lost(error, sent) from error
            while pieces and count >= pieces[0].nbytes:
                count -= pieces.pop(0).nbytes
            if pieces:
                pieces[0] = pieces[0].cast("B")[count:]

    def _poll(self, end: float, events: int) -> None:
        """Wait for the socket; reads what there is, when asked to."""
        poller = select.poll()
        poller.register(self._socket, events)
        left = end - time.monotonic()
        ready = poller.poll(None if end == float("inf") else max(0, int(left * 1000) + 1))
        if not ready:
            raise self._lost("no answer within the deadline")
        if events & select.POLLIN and ready[0][1] & ~select.POLLOUT:
            self._take()

    def _read(self, end: float) -> None:
        self._poll(end, select.POLLIN)

    def _take(self) -> None:
        """Receive once, and file a reply that is whole."""
        view = memoryview(self._buffer)
        try:
            count = self._socket.recv_into(view[self._filled:])
        except BlockingIOError:
            return
        except OSError as error:
            raise self._lost(error) from error
        if count == 0:
            raise self._lost("the daemon closed it")
        self._filled += count
        if self._filled < len(self._buffer):
            return
        view.release()
        try:
            if self._head is None:
                self._head = _frame.decode_head(self._buffer)
                self._buffer, self._filled = bytearray(self._head.body_bytes), 0
            if self._filled == len(self._buffer):
                self._file(_frame.decode_body(self._head, self._buffer))
                self._head = None
                self._buffer, self._filled = bytearray(_frame.HEADER_BYTES), 0
        except WireError:
            self.close()
            raise

    def _file(self, reply: _frame.Reply) -> None:
        self.credit.give(reply.request_id)
        if reply.request_id == 0:
            raise self._lost(reply.message.status.text)
        if reply.request_id in self._abandoned:
            self._abandoned.discard(reply.request_id)
        else:
            self._replies[reply.request_id] = reply

    def _wait(self, request_id: int, end: float) -> _frame.Reply:
        while request_id not in self._replies:
            if not self.is_open:
                raise ConnectionLost("the connection broke", True)
            self._read(end)
        return self._replies.pop(request_id)


# ---- asyncio ----


class AsyncLink:
    """A connection on the running event loop; one task reads, any number of tasks send."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.credit, self.is_open = Credit(), True
        self._reader, self._writer = reader, writer
        self._waiting: dict[int, asyncio.Future[_frame.Reply]] = {}
        self._next_id = 1
        self._turn = asyncio.Lock()
        self._room = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._read_all())

    @classmethod
    async def connect(cls, address: Address, timeout: float) -> AsyncLink:
        """Connect; raises ConnectionLost."""
        if address.is_tcp:
            opening = asyncio.open_connection(address.host, address.port, limit=READ_CHUNK)
        else:
            opening = asyncio.open_unix_connection(address.path, limit=READ_CHUNK)
        try:
            reader, writer = await asyncio.wait_for(opening, timeout)
        except (OSError, asyncio.TimeoutError) as error:
            raise ConnectionLost(f"{address.text}: {error or 'no answer'}") from error
        if address.is_tcp:
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(reader, writer)

    async def exchange(self, request: Request, end: float, may_suspend: bool) -> _frame.Reply:
        future: asyncio.Future[_frame.Reply] = asyncio.get_running_loop().create_future()
        # The lock is fair, so that requests leave in the order in which they were made.
        async with self._turn:
            while self.is_open and not self.credit.has_room(request.nbytes):
                self._room.clear()
                await self._within(self._room.wait(), end, False)
            if not self.is_open:
                raise ConnectionLost("the connection is closed")
            request.request_id, self._next_id = self._next_id, self._next_id + 1
            self.credit.take(request.request_id, request.nbytes)
            self._waiting[request.request_id] = future
            for piece in request.pieces():
                self._writer.write(piece)
            try:
                await self._within(self._writer.drain(), end, True)
            except OSError as error:
                self._fail(ConnectionLost(f"the connection broke: {error}", True))
        reply: _frame.Reply = await self._within(future, end, True)
        return reply

    async def _within(self, awaitable: Any, end: float, was_sent: bool) -> Any:
        timeout = None if end == float("inf") else max(0.0, end - time.monotonic())
        try:
            return await asyncio.wait_for(awaitable, timeout)
        except asyncio.TimeoutError:
            self._fail(ConnectionLost("no answer within the deadline", True))
            raise ConnectionLost("no answer within the deadline", was_sent) from None

    async def _read_all(self) -> None:
        try:
            while True:
                head = _frame.decode_head(await self._reader.readexactly(_frame.HEADER_BYTES))
                body = bytearray(await self._reader.readexactly(head.body_bytes))
                reply = _frame.decode_body(head, body)
                self.credit.give(reply.request_id)
                self._room.set()
                if reply.request_id == 0:
                    raise ConnectionLost(reply.message.status.text, True)
                future = self._waiting.pop(reply.request_id, None)
                if future is not None and not future.done():
                    future.set_result(reply)
        except (asyncio.IncompleteReadError, OSError) as error:
            self._fail(error if isinstance(error, ConnectionLost) else
                       ConnectionLost(f"the connection broke: {error}", True))
        except WireError as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Close, and hand the error to all that wait."""
        self.is_open = False
        self._writer.close()
        self._room.set()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(error)
                future.exception()  # seen: its task may have been cancelled meanwhile

    async def aclose(self) -> None:
        self._fail(ConnectionLost("the connection was closed", True))
        self._task.cancel()
        try:
            await self._task
        except asyncio.CancelledError:
            pass
        try:
            await self._writer.wait_closed()
        except OSError:
            pass
