"""SIGTERM: what is in flight finishes, what is new is refused, the exit status is 0."""
import os
import signal
import time

import numpy as np
import pytest

from support.frame import frame, pb
from support.session import Session, Shape
from support.settings import patience
from support.wire import Closed, dial

SHAPE = Shape(kv_heads=8, k_dim=64, group=64, sink=64, model="wide")
ROWS = tuple(np.ones((8, 40, 64), np.float16) for _ in "kv")


def slow_worker(us):
    return {"KVARND_TEST_JITTER_US": str(us), "KVARND_TEST_JITTER_SEED": "3"}


def in_flight(conn, count):
    """Appends to `count` sessions, sent and received by the daemon, but not answered."""
    sessions = [Session(conn, SHAPE, f"s{i}") for i in range(count)]
    ids = conn.send_all([s.append_request([ROWS], 0) for s in sessions])
    conn.ping()  # its answer overtakes those that workers make
    return ids


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_drain_finishes_what_is_in_flight(start, connect, transport, number):
    daemon = start("--workers", "1", env=slow_worker(60000), transports=(transport,))
    conn, idle = connect(daemon), connect(daemon)
    ids = in_flight(conn, 12)
    daemon.signal(number)
    late, codes = 0, []
    try:
        while True:
            reply = conn.ask(pb.Ping())
            if reply.code == "SHUTTING_DOWN":
                late += 1
                break
    except Closed:
        pass
    codes = [conn.recv(i).code for i in ids]
    assert codes == ["OK"] * 12 and late == 1
    assert conn.expect_closed() is None and idle.expect_closed() is None
    assert daemon.wait() == 0
    assert "draining" in daemon.log() and "stopped" in daemon.log()
    if transport == "unix":
        assert not os.path.exists(daemon.folder / "kvarnd.sock")
    with pytest.raises(OSError):
        dial(daemon.address)


@pytest.mark.deadline(60)
def test_p17_flush_has_an_end(start, connect, tmp_path):
    """A disk that takes too long does not hold the stop; what was durable by then comes back."""
    flags = ("--cold-dir", str(tmp_path / "cold"))
    daemon = start(*flags, "--drain-timeout", "0", "--flush-timeout", "0")
    conn = connect(daemon)
    session = Session(conn, SHAPE, "s")
    for at in range(0, 200, 40):
        session.append([ROWS], at)
    first = b"".join(run.data for run in session.read_stored(0, 192))
    while conn.call(pb.InspectSession(name="s")).message.summary.restart_tokens < 192:
        conn.ping()
    daemon.stop(code=1)
    assert "level=error event=flush_timeout" in daemon.log()
    conn = connect(start(*flags))
    session = Session(conn, None, "s", mode="existing")
    session.shape = SHAPE
    assert session.lengths == [192]  # the tail of 8 tokens was not written
    assert b"".join(run.data for run in session.read_stored(0, 192)) == first


def test_drain_does_not_wait_for_what_has_not_come(start, connect):
    """A request of which the payload is still missing is not in flight."""
    daemon = start("--drain-timeout", "60000")
    conn = connect(daemon)
    session = Session(conn, SHAPE)
    message, payload = session.append_request([ROWS], 0)
    conn.send_bytes(frame(message, 5, payload)[:-1])
    began = time.monotonic()
    daemon.stop()
    assert time.monotonic() - began < patience(10)


def test_drain_timeout_ends_it(start, connect):
    """Work that takes longer than drain_timeout is not waited for beyond its job."""
    daemon = start("--workers", "1", "--drain-timeout", "200", env=slow_worker(100000))
    conn = connect(daemon)
    ids = in_flight(conn, 60)  # some 3 s
    began = time.monotonic()
    daemon.signal(signal.SIGTERM)
    codes = []
    try:
        for i in ids:
            codes.append(conn.recv(i).code)
    except Closed:
        pass
    assert len(codes) < 60 and set(codes) <= {"OK"}
    assert time.monotonic() - began < patience(2.5)
    assert daemon.wait() == 0


def test_replies_of_slow_readers_are_flushed(start, connect):
    daemon = start("--memory-limit", "256MiB")
    conn = connect(daemon)
    session = Session(conn, SHAPE)
    kv = tuple(np.ones((8, 2048, 64), np.float16) for _ in "kv")
    session.append([kv], 0)
    ids = conn.send_all([session.read_request(0, 2048, dtype="f32") for _ in range(4)])
    conn.recv_any()
    daemon.signal(signal.SIGTERM)
    assert all(conn.recv(i).code in ("OK", "SHUTTING_DOWN") for i in ids[1:])
    assert conn.expect_closed() is None
    assert daemon.wait() == 0


def test_drain_timeout_ends_the_wait_for_those_that_do_not_read(start, connect):
    """The service manager waits a little longer than drain_timeout, whatever write_timeout is."""
    daemon = start("--memory-limit", "256MiB", "--drain-timeout", "500", "--write-timeout", "60000")
    conn = connect(daemon)
    session = Session(conn, SHAPE)
    kv = tuple(np.ones((8, 2048, 64), np.float16) for _ in "kv")
    session.append([kv], 0)
    conn.send_all([session.read_request(0, 2048, dtype="f32") for _ in range(4)])
    conn.recv_any()
    began = time.monotonic()
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    assert time.monotonic() - began < patience(5)


def test_second_signal_is_immediate(start, connect):
    daemon = start("--workers", "1", env=slow_worker(60_000_000))
    conn = connect(daemon)
    in_flight(conn, 3)
    daemon.signal(signal.SIGTERM)
    while conn.ask(pb.Ping()).code != "SHUTTING_DOWN":
        pass
    began = time.monotonic()
    daemon.signal(signal.SIGTERM)
    assert daemon.wait(10) == 0
    assert time.monotonic() - began < patience(2)


def test_stop_with_sessions_and_idle_connections(start, connect):
    daemon = start("--memory-limit", "256MiB", "--workers", "4")
    conns = [connect(daemon) for _ in range(20)]
    for i, conn in enumerate(conns):
        Session(conn, SHAPE, f"s{i}").append([ROWS], 0)
        Session(conn, SHAPE).append([ROWS], 0)
    began = time.monotonic()
    daemon.stop()
    assert time.monotonic() - began < patience(5)


def test_kill_and_start_again_is_empty(start, connect):
    """Nothing is kept without a cold tier; a client is told so, not shown stale state."""
    daemon = start()
    conn = connect(daemon)
    first = conn.hello.server_id
    old = Session(conn, SHAPE, "s")
    old.append([ROWS], 0)
    path = str(daemon.folder / "kvarnd.sock")
    daemon.kill()
    again = start("--listen-unix", path)
    conn = connect(again)
    assert conn.hello.server_id != first
    assert conn.ask(pb.OpenSession(name="s", mode=pb.EXISTING)).code == "NOT_FOUND"
    new = Session(conn, SHAPE, "s")
    assert new.opened.created and new.epoch != old.epoch
