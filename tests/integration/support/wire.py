"""A small client: one connection, synchronous or pipelined, and raw bytes for the bad frames."""
import socket

from support.frame import CODES, FLAG_XXH3, TYPES, Parser, frame, pb
from support.settings import patience

RECV_BYTES = 1 << 20


class Refused(Exception):
    """The daemon said no: code by name, text and the whole status."""

    def __init__(self, reply):
        super().__init__(f"{reply.code}: {reply.status.text}")
        self.reply, self.code, self.status = reply, reply.code, reply.status
        self.text = reply.status.text


class Closed(Exception):
    """The daemon closed the connection (or reset it) before the reply came."""


def dial(address, timeout=None):
    """A connected socket for "unix:PATH" or "tcp:HOST:PORT"."""
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        target = address[5:]
    else:
        sock = socket.socket(socket.AF_INET)
        host, port = address[4:].rsplit(":", 1)
        target = (host, int(port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(timeout or patience(20))
    try:
        sock.connect(target)
    except BaseException:
        sock.close()
        raise
    return sock


class Conn:
    """One connection. send() pipelines; recv() takes replies by id, in any order."""

    def __init__(self, address, hello=True, xxh3=False, timeout=None):
        self.sock = dial(address, timeout)
        self._parser, self._waiting, self._last_id = Parser(), {}, 0
        self._flags = FLAG_XXH3 if xxh3 else 0
        self.hello = None
        if hello:
            features = ["payload_xxh3"] if xxh3 else []
            self.hello = self.call(pb.Hello(client="integration", features=features)).message

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def send_bytes(self, data):
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed(str(error)) from error

    def next_id(self):
        self._last_id += 1
        return self._last_id

    def frame(self, message, payload=b""):
        """(request id, bytes) of a request, not sent."""
        request_id = self.next_id()
        return request_id, frame(message, request_id, payload, self._flags if payload else 0)

    def send(self, message, payload=b""):
        """Send without waiting; returns the request id."""
        request_id, data = self.frame(message, payload)
        self.send_bytes(data)
        return request_id

    def send_all(self, requests):
        """Send [(message, payload)] in one write; returns their request ids."""
        framed = [self.frame(*request) for request in requests]
        self.send_bytes(b"".join(data for _, data in framed))
        return [request_id for request_id, _ in framed]

    def recv_any(self):
        """The next reply that arrives."""
        while True:
            reply = self._parser.next()
            if reply is not None:
                return reply
            try:
                data = self.sock.recv(RECV_BYTES)
            except ConnectionResetError as error:
                raise Closed(str(error)) from error
            if not data:
                raise Closed(f"end of stream, {self._parser.rest} bytes of a reply")
            self._parser.feed(data)

    def take(self, count):
        """Read up to `count` bytes and keep them for recv(); returns how many."""
        data = self.sock.recv(count)
        self._parser.feed(data)
        return len(data)

    def recv(self, request_id):
        """The reply to one request."""
        while request_id not in self._waiting:
            reply = self.recv_any()
            assert reply.request_id not in self._waiting, "answered twice"
            self._waiting[reply.request_id] = reply
        return self._waiting.pop(request_id)

    def ask(self, message, payload=b""):
        """Send and wait; a refusal comes back as a reply."""
        reply = self.recv(self.send(message, payload))
        assert reply.kind == TYPES[type(message).__name__], reply
        return reply

    def call(self, message, payload=b""):
        """Send and wait; a refusal is raised."""
        reply = self.ask(message, payload)
        if reply.code != "OK":
            raise Refused(reply)
        return reply

    def ping(self):
        return self.call(pb.Ping()).message

    def stats(self):
        """(ops by label, counters by name)."""
        reply = self.call(pb.Stats()).message
        return {op.op: op for op in reply.ops}, {c.name: c.value for c in reply.counters}

    def counter(self, name):
        return self.stats()[1][name]

    def expect_closed(self):
        """The daemon closes, after at most an error reply, which is returned (or None)."""
        last = None
        while True:
            try:
                last = self.recv_any()
            except Closed:
                return last


def code_of(status):
    return CODES[status.code]
