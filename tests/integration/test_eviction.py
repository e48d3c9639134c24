"""Eviction and lifetimes through the socket: what is gone is a MISS, what is there is right."""
import datetime
import struct

import numpy as np
import pytest

from support import settings
from support.frame import pb
from support.session import Session, Shape, register
from support.wire import Refused

# A block of one layer: 512 KiB of rows, some 80 KB once sealed.
BIG = Shape(kv_heads=8, k_dim=128, group=128, model="big", sink=128)
TOKENS = 1024


BASE = np.random.default_rng(1).standard_normal((2, 8, TOKENS, 128)).astype(np.float16)


def rows(seed, tokens=TOKENS):
    """Other rows for each seed, without drawing all of them anew."""
    return tuple(np.roll(x, 3 * seed + 1, axis=1)[:, :tokens] for x in BASE)


def append(session, kv, start, retries):
    """Append, as often as the daemon asks for it; nothing but RETRY_LATER is a reason."""
    while True:
        reply = session.conn.ask(*session.append_request([kv], start))
        if reply.code == "OK":
            return
        assert reply.code == "RETRY_LATER", reply.code
        assert 0 < reply.status.retry_after_ms <= 1000
        retries.append(reply.status.retry_after_ms)
        assert len(retries) < 1000


def fill(conn, count, retries):
    """Sessions s0, s1, ...; what each one read back when it was new."""
    first = {}
    for i in range(count):
        session = Session(conn, BIG, f"s{i}")
        append(session, rows(i), 0, retries)
        first[f"s{i}"] = stored(session)
    return first


def stored(session):
    return b"".join(run.data for run in session.read_stored(0, TOKENS))


def fate(conn, name, first):
    """"right", "missing" or "wrong"."""
    session = Session(conn, None, name, mode="existing")
    session.shape = BIG
    try:
        return "right" if stored(session) == first[name] else "wrong"
    except Refused as refused:
        assert refused.code == "MISS"
        assert refused.reply.status.reason == pb.MISS_EVICTED
        return "missing"


@pytest.mark.deadline(150)
@pytest.mark.parametrize("policy", ["cost", "lru", "s3fifo"])
def test_p07_writers_go_on_beyond_the_limit(start, connect, policy):
    """Half as much again as there is memory: nobody is refused but for RETRY_LATER, the oldest are
    evicted, what is pinned stays, and nothing is wrong."""
    limit, count = 96 << 20, 130
    daemon = start("--memory-limit", limit, "--evict-policy", policy)
    conn, retries = connect(daemon), []
    first = fill(conn, 3, retries)
    conn.call(pb.Pin(name="s1", pin_ms=600000))
    for i in range(3, count):
        session = Session(conn, BIG, f"s{i}")
        append(session, rows(i), 0, retries)
        first[f"s{i}"] = stored(session)
    fates = {name: fate(conn, name, first) for name in first}
    wrong = sum(1 for got in fates.values() if got == "wrong")
    missing = sum(1 for got in fates.values() if got == "missing")
    print(f"{policy}: {count} sessions, {missing} evicted, {len(retries)} retries, wrong = {wrong}")
    assert wrong == 0 and missing >= 40
    assert fates["s0"] == fates["s2"] == "missing"
    assert fates["s1"] == fates[f"s{count - 1}"] == "right"
    counters = conn.stats()[1]
    assert counters["evicted_blocks_watermark"] + counters["evicted_blocks_reservation"] > 0
    assert counters["misses_evicted"] == missing
    assert counters["memory_used_bytes"] <= limit
    while not daemon.is_sanitized() and daemon.rss_bytes() > limit * 1.1:
        conn.ping()  # freed chunks go back to the system within about a second


@pytest.mark.deadline(60)
def test_whole_again_after_a_cut(start, connect):
    daemon = start()
    conn, retries = connect(daemon), []
    first = fill(conn, 1, retries)
    session = Session(conn, BIG, "s0")
    reply = conn.call(pb.Evict(handle=session.handle, blocks=3)).message
    assert (reply.blocks, reply.missing_first, reply.missing_last) == (3, 640, 1024)
    assert reply.freed_bytes > 0
    assert fate(conn, "s0", first) == "missing"
    part = b"".join(run.data for run in session.read_stored(0, 640))
    assert part == first["s0"][:len(part)]
    session.append([rows(7, 10)], 1024)  # the tail is there
    with pytest.raises(Refused) as refused:
        session.truncate(700)
    assert refused.value.code == "MISS"
    session.truncate(640)
    summary = conn.call(pb.InspectSession(handle=session.handle)).message
    assert summary.summary.missing_tokens == summary.missing_last == 0
    kv = rows(0)
    session.append([tuple(x[:, 640:] for x in kv)], 640)
    assert fate(conn, "s0", first) == "right"
    assert conn.counter("evicted_blocks_call") == 3


@pytest.mark.deadline(60)
def test_s23_evict_writes_the_tail(start, connect, tmp_path):
    """With a cold tier all of a session leaves memory, and none of it is lost: not when it is read
    again, not when the daemon is killed."""
    flags = ("--cold-dir", str(tmp_path / "cold"))
    daemon = start(*flags)
    conn = connect(daemon)
    session = Session(conn, BIG, "s")
    session.append([rows(1, 300)], 0)
    first = b"".join(run.data for run in session.read_stored(0, 300))
    reply = conn.call(pb.Evict(handle=session.handle)).message
    assert (reply.blocks, reply.missing_first, reply.missing_last) == (3, 0, 300)
    assert reply.freed_bytes >= 1 << 20  # the rows of sink and tail
    usage = conn.call(pb.InspectSession(handle=session.handle)).message
    assert usage.tail_pages == usage.sink_pages == usage.tile_pages == 0
    assert conn.counter("cold_tails_written") == 1
    assert b"".join(run.data for run in session.read_stored(0, 300)) == first
    assert conn.counter("cold_tails_loaded") == 1
    # What has not changed need not be written again.
    assert conn.call(pb.Evict(handle=session.handle)).message.blocks == 3
    assert conn.counter("cold_tails_written") == 1
    daemon.kill()
    conn = connect(start(*flags))
    session = Session(conn, None, "s", mode="existing")
    session.shape = BIG
    assert conn.counter("cold_blocks_written") == 0
    assert b"".join(run.data for run in session.read_stored(0, 300)) == first
    session.append([rows(2, 10)], 300)


@pytest.mark.deadline(60)
def test_ttl_by_the_daemons_own_clock(start, connect):
    daemon = start()
    conn = connect(daemon)
    shape_id = register(conn, BIG)
    conn.call(pb.OpenSession(name="brief", shape_id=shape_id, ttl_ms=300))
    conn.call(pb.OpenSession(name="long", shape_id=shape_id, ttl_ms=3600000, priority=7))
    listed = {s.name: s for s in conn.call(pb.ListSessions()).message.sessions}
    assert listed["long"].ttl_left_ms > 3500000 and listed["long"].priority == 7
    while conn.counter("sessions_expired") == 0:
        pass
    assert [s.name for s in conn.call(pb.ListSessions()).message.sessions] == ["long"]
    with pytest.raises(Refused) as refused:
        conn.call(pb.Touch(name="brief"))
    assert refused.value.code == "NOT_FOUND"
    reply = conn.call(pb.Touch(name="long", ttl_ms=0)).message
    assert reply.ttl_left_ms == 0 and reply.priority == 7


@pytest.mark.deadline(60)
def test_pins_have_a_budget_and_an_end(start, connect):
    daemon = start("--pin-memory", "3MiB")
    conn, retries = connect(daemon), []
    fill(conn, 3, retries)
    reply = conn.call(pb.Pin(name="s0", pin_ms=600000)).message
    assert reply.pinned_bytes + reply.budget_left_bytes == 3 << 20
    codes = [conn.ask(pb.Pin(name=f"s{i}", pin_ms=200)).code for i in (1, 2)]
    assert codes == ["OK", "NO_SPACE"]
    assert conn.ask(pb.Pin(name="s0", pin_ms=0)).code == "INVALID"
    while conn.counter("sessions_pinned") > 1:  # s1's ends by itself
        pass
    assert conn.call(pb.Pin(name="s2")).message.pinned_bytes > 0
    assert conn.call(pb.Evict(name="s2")).message.blocks == 0
    conn.call(pb.Pin(name="s2", unpin=True))
    assert conn.call(pb.Evict(name="s2")).message.blocks == 8
    conn.call(pb.DropSession(name="s0"))
    assert conn.counter("sessions_pinned") == conn.counter("pinned_bytes") == 0


def test_bad_lifetimes_are_refused(daemon, connect):
    conn = connect(daemon)
    shape_id = register(conn, BIG)
    too_long = 367 * 24 * 3600 * 1000
    session = Session(conn, BIG, "s")
    for message in (pb.OpenSession(name="t", shape_id=shape_id, ttl_ms=too_long),
                    pb.OpenSession(name="t", shape_id=shape_id, priority=101),
                    pb.Touch(handle=session.handle, ttl_ms=too_long),
                    pb.Touch(handle=session.handle, priority=101), pb.Touch(),
                    pb.Pin(handle=session.handle, pin_ms=too_long),
                    pb.Evict(handle=session.handle, name="s")):
        assert conn.ask(message).code == "INVALID"
    assert conn.ask(pb.Evict(name="t")).code == "NOT_FOUND"
    session.drop()


class Wall:
    """The wall clock of a daemon, to be moved."""

    def __init__(self, path):
        self.path = path
        self.jump(0)

    def env(self):
        return {"LD_PRELOAD": str(settings.BIN / "libkvt_clock_jump.so"),
                "KVT_CLOCK_JUMP": str(self.path)}

    def jump(self, days):
        with open(self.path, "r+b" if self.path.exists() else "wb") as file:
            file.write(struct.pack("<q", days * 86400))


def log_day(daemon):
    """The date of the last line that the daemon logged."""
    return datetime.date.fromisoformat(daemon.log().splitlines()[-1][:10])


@pytest.mark.deadline(60)
def test_p12_jumps_of_the_clock_do_not_matter(start, connect, tmp_path):
    """The wall clock goes 10 days ahead and then 20 back: TTLs and pins count on as they did."""
    if start().is_sanitized():
        pytest.skip("a sanitizer wants to be the first library")
    wall = Wall(tmp_path / "wall")
    daemon = start("--log-level", "debug", env=wall.env())
    conn, retries, today = connect(daemon), [], log_day(daemon)
    fill(conn, 1, retries)
    conn.call(pb.Touch(name="s0", ttl_ms=3600000))
    conn.call(pb.OpenSession(name="brief", shape_id=register(conn, BIG), ttl_ms=1500))
    conn.call(pb.Pin(name="s0", pin_ms=1800000))
    for days in (10, -10):
        wall.jump(days)
        connect(daemon).sock.close()  # which it logs, by its clock
        began = conn.ping().uptime_ms
        while conn.ping().uptime_ms < began + 300:
            pass
        summary = conn.call(pb.InspectSession(name="s0")).message.summary
        assert 1790000 < summary.pin_left_ms <= 1800000
        assert 3590000 < summary.ttl_left_ms <= 3600000
        assert log_day(daemon) == today + datetime.timedelta(days=days)  # it did jump
    assert conn.counter("sessions_expired") == 0
    while conn.counter("sessions_expired") == 0:
        pass
    assert [s.name for s in conn.call(pb.ListSessions()).message.sessions] == ["s0"]
