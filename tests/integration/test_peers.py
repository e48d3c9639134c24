"""Peers that are slow, silent or many cost bounded memory and are closed in time."""
import select
import time

import numpy as np
import pytest

from support.frame import frame, pb
from support.session import Session, Shape
from support.settings import patience
from support.wire import dial

SHAPE = Shape(kv_heads=8, k_dim=128, group=128, model="big")


def hung_up(sock, seconds=20):
    """Wait, without reading a byte, until the other side has closed; False past the deadline."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(patience(seconds) * 1000))


def filled(conn, name, tokens=1024):
    session = Session(conn, SHAPE, name)
    rng = np.random.default_rng(1)
    kv = tuple(rng.standard_normal((8, tokens, 128)).astype(np.float16) for _ in "kv")
    session.append([kv], 0)
    return session


def until(conn, condition, seconds=20):
    """Ask for Stats until the counters satisfy; each ask is an event of the daemon."""
    end = time.monotonic() + patience(seconds)
    while not condition(counters := conn.stats()[1]):
        assert time.monotonic() < end, counters
    return counters


@pytest.mark.deadline(90)
def test_slow_reader_is_bounded_and_closed(start, connect, transport):
    """Replies that are not taken stop at output_max; others go on; a deadline ends it."""
    output_max = 16 << 20
    daemon = start("--memory-limit", "512MiB", "--output-max", output_max,
                   "--write-timeout", "1500", "--credit-requests", "256", transports=(transport,))
    other = connect(daemon)
    session = filled(other, "s")
    slow = connect(daemon)
    lazy = Session(slow, SHAPE, "s")
    size = len(other.call(*session.read_request(0, 1024, dtype="f32")).payload)
    assert size == 8 << 20
    slow.send_all([lazy.read_request(0, 1024, dtype="f32") for _ in range(100)])
    peak = 0
    while not (counters := other.stats()[1])["connections_timed_out"]:
        peak = max(peak, counters["memory_reply_bytes"])
    # What is queued, one reply over, and one being made.
    assert output_max < peak <= output_max + 2 * size + (1 << 20)
    until(other, lambda c: c["memory_reply_bytes"] < 1 << 20)
    session.read(0, 1024)


def test_small_replies_that_are_not_read_are_within_the_limit(start, connect):
    """Pings cost nothing, their answers do: what is queued counts, and has an end."""
    daemon = start("--memory-limit", "16MiB", "--write-timeout", "60000")
    other = connect(daemon)
    slow = connect(daemon)
    slow.sock.setblocking(False)
    batch = b"".join(frame(pb.Ping(), i) for i in range(2000))
    at, end = 0, time.monotonic() + patience(20)
    while not hung_up(slow.sock, 0.01):
        assert time.monotonic() < end
        try:
            while True:
                at = (at + slow.sock.send(batch[at:])) % len(batch)
        except BlockingIOError:
            continue
        except (BrokenPipeError, ConnectionResetError):
            break
    while other.ask(pb.Ping()).code == "NO_SPACE":  # within the turn that closes it
        assert time.monotonic() < end
    until(other, lambda c: c["connections_open"] == 1 and c["memory_reply_bytes"] == 0)


@pytest.mark.deadline(90)
def test_slow_reader_that_does_read_is_kept(start, connect):
    """The deadline is for a peer that takes nothing, not for one that is slow."""
    daemon = start("--memory-limit", "512MiB", "--write-timeout", "500")
    other = connect(daemon)
    filled(other, "s")
    slow = connect(daemon)
    lazy = Session(slow, SHAPE, "s")
    ids = slow.send_all([lazy.read_request(0, 1024, dtype="f32") for _ in range(3)])
    taken, began = 0, other.ping().uptime_ms
    while (elapsed := other.ping().uptime_ms - began) < 1500:  # three times the deadline
        if taken < elapsed << 14:  # 16 KB a millisecond: all in the end
            taken += slow.take(1 << 16)
    assert [slow.recv(i).code for i in ids] == ["OK"] * 3


def half_header():
    return frame(pb.Hello(), 1)[:16]


def half_message():
    return frame(pb.Hello(client="x" * 100), 1)[:80]


@pytest.mark.parametrize("part", [half_header, half_message])
@pytest.mark.parametrize("after_hello", [True, False])
def test_half_open_peer_is_closed(start, connect, part, after_hello):
    """A request that has begun must arrive within header_timeout."""
    daemon = start("--header-timeout", "300")
    other = connect(daemon)
    bad = connect(daemon, hello=after_hello)
    began = other.ping().uptime_ms
    bad.send_bytes(part())
    assert hung_up(bad.sock)
    assert other.ping().uptime_ms - began >= 250
    assert other.counter("connections_timed_out") == 1


def test_half_payload_is_closed_and_its_staging_freed(start, connect):
    daemon = start("--header-timeout", "300")
    other, bad = connect(daemon), connect(daemon)
    session = Session(bad, SHAPE, "s")
    kv = tuple(np.zeros((8, 100, 128), np.float16) for _ in "kv")
    message, payload = session.append_request([kv], 0)
    bad.send_bytes(frame(message, 1, payload)[:-1000])
    until(other, lambda c: c["memory_staging_bytes"] >= len(payload))
    assert hung_up(bad.sock)
    until(other, lambda c: c["memory_staging_bytes"] == 0)
    assert Session(other, SHAPE, "s").opened.layer_lengths[0] == 0


def test_payload_that_keeps_coming_is_not_cut_off(start, connect):
    """A large payload has time for its size: what takes five times header_timeout, but comes on
    at a fair pace, is a request like any other."""
    daemon = start("--memory-limit", "256MiB", "--header-timeout", "300")
    other, slow = connect(daemon), connect(daemon)
    session = Session(slow, SHAPE, "s")
    kv = tuple(np.zeros((8, 2048, 128), np.float16) for _ in "kv")
    message, payload = session.append_request([kv], 0)
    data = memoryview(frame(message, slow.next_id(), payload))
    began, slices = other.ping().uptime_ms, 1 + len(data) // (1 << 16)
    for i in range(slices):
        slow.send_bytes(data[i << 16:(i + 1) << 16])
        while other.ping().uptime_ms < began + 1500 * i // slices:
            pass
    assert slow.recv_any().code == "OK"


def test_idle_peer_is_kept_without_timeout_and_closed_with(start, connect):
    daemon = start("--header-timeout", "200")
    other, idle = connect(daemon), connect(daemon)
    began = other.ping().uptime_ms
    while other.ping().uptime_ms < began + 800:
        pass
    idle.ping()
    daemon = start("--idle-timeout", "300")
    idle = connect(daemon)
    assert hung_up(idle.sock)
    silent = connect(daemon, hello=False)  # never says a word
    assert hung_up(silent.sock)
    assert connect(daemon).counter("connections_timed_out") == 2


def test_peer_that_never_says_hello_is_closed(start, connect):
    """Even without idle_timeout: before Hello a connection is on the header's clock."""
    daemon = start("--header-timeout", "300")
    silent = connect(daemon, hello=False)
    assert hung_up(silent.sock)


def test_connections_max(start, connect, transport):
    daemon = start("--connections-max", "5", transports=(transport,))
    conns = [connect(daemon) for _ in range(5)]
    for _ in range(3):
        extra = dial(daemon.address)
        assert hung_up(extra)
        extra.close()
    for conn in conns:
        conn.ping()
    assert conns[0].counter("connections_refused") == 3
    conns[1].close()
    until(conns[0], lambda c: c["connections_open"] == 4)
    connect(daemon).ping()


@pytest.mark.deadline(90)
def test_400_connections_with_200_descriptors(start, connect, transport):
    """Those that are in go on, the others are closed, and the daemon does not spin."""
    daemon = start(nofile=200, transports=(transport,))
    first = connect(daemon)
    accepted, refused, socks = [], 0, []
    for _ in range(400):
        sock = dial(daemon.address)
        socks.append(sock)
        try:
            sock.sendall(frame(pb.Hello(), 1))
            reply = sock.recv(65536)
        except (BrokenPipeError, ConnectionResetError):
            reply = b""
        accepted.append(sock) if reply else None
        refused += not reply
    assert len(accepted) + refused == 400 and 100 <= len(accepted) < 200 and refused >= 200
    first.ping()
    began, cpu = time.monotonic(), daemon.cpu_seconds()
    assert not hung_up(accepted[0], 1)  # a second in which nothing happens
    elapsed = time.monotonic() - began
    assert daemon.cpu_seconds() - cpu < 0.2 * elapsed + 0.05
    for sock in accepted:
        sock.sendall(frame(pb.Ping(), 2))
        assert sock.recv(65536)
    for sock in socks:
        sock.close()
    until(first, lambda c: c["connections_open"] == 1)
    for _ in range(50):
        connect(daemon).ping()
