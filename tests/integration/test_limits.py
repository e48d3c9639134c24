"""Limits: credit, deadlines, cancel, memory. Refused means that nothing was stored."""
import numpy as np
import pytest

from support.frame import frame, pb
from support.session import Session, Shape, append_attend_request
from support.wire import Conn, Refused

# 80 KB an append of 40 tokens: rotated by a worker, whose answer the jitter delays.
SHAPE = Shape(kv_heads=8, k_dim=64, group=64, sink=64, model="wide")
TOKENS = 40
SLOW_WORKER = {"KVARND_TEST_JITTER_US": "200000", "KVARND_TEST_JITTER_SEED": "1"}


def rows(tokens=TOKENS, seed=1):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((8, tokens, 64)).astype(np.float16) for _ in "kv")


def uptime_passes(conn, ms):
    """Wait until the daemon's own clock has moved on."""
    began = conn.ping().uptime_ms
    while conn.ping().uptime_ms < began + ms:
        pass


def test_credit_of_requests(start, connect):
    """Beyond its credit a connection is told to come back, and when; nothing else is lost."""
    daemon = start("--credit-requests", "4", env=SLOW_WORKER)
    conn = connect(daemon)
    assert conn.hello.credit_requests == 4
    sessions = [Session(conn, SHAPE) for _ in range(12)]
    requests = [s.append_request([rows()], 0) for s in sessions]
    replies = [conn.recv(i) for i in conn.send_all(requests)]
    refused = [r for r in replies if r.code != "OK"]
    assert [r.code for r in replies[:4]] == ["OK"] * 4
    assert refused and {r.code for r in refused} == {"RETRY_LATER"}
    assert all(r.status.retry_after_ms > 0 for r in refused)
    counters = conn.stats()[1]
    assert counters["refused_credit"] == len(refused) == counters["refused_retry_later"]
    for session, request, reply in zip(sessions, requests, replies):
        assert session.inspect().layer_lengths[0] == (TOKENS if reply.code == "OK" else 0)
        again = conn.call(*request).message
        assert again.repeated_request == (reply.code == "OK")


def test_credit_of_bytes(start, connect):
    daemon = start("--credit-bytes", "100KiB", env=SLOW_WORKER)
    conn, other = connect(daemon), connect(daemon)
    sessions = [Session(conn, SHAPE) for _ in range(3)]
    ids = conn.send_all([s.append_request([rows()], 0) for s in sessions])
    codes = [conn.recv(i).code for i in ids]
    assert codes[0] == "OK" and codes[1:] == ["RETRY_LATER"] * 2
    # Another connection has its own credit; calls without payload need none.
    Session(other, SHAPE).append([rows()], 0)
    conn.ping()


def test_payload_above_the_limit_is_refused_and_skipped(start, connect):
    daemon = start("--payload-max", "64KiB")
    conn = connect(daemon)
    assert conn.hello.payload_bytes_max == 64 << 10
    session = Session(conn, SHAPE)
    with pytest.raises(Refused) as refused:
        session.append([rows()], 0)
    assert refused.value.code == "TOO_LARGE"
    session.append([rows(20)], 0)
    session.append([rows(20)], 20)
    with pytest.raises(Refused) as refused:
        session.read(0, 40, dtype="f32")
    assert refused.value.code == "TOO_LARGE"
    assert session.inspect().layer_lengths[0] == 40


def test_s17_deadline_counts_from_the_header(daemon, connect):
    """A payload that comes too late is not stored; the answer says DEADLINE."""
    conn, other = connect(daemon), connect(daemon)
    session = Session(conn, SHAPE, "s")
    message, payload = session.append_request([rows()], 0, deadline_ms=30)
    request_id = conn.next_id()
    data = frame(message, request_id, payload)
    conn.send_bytes(data[:-1])
    uptime_passes(other, 60)
    conn.send_bytes(data[-1:])
    assert conn.recv(request_id).code == "DEADLINE"
    assert session.inspect().layer_lengths[0] == 0
    assert conn.counter("refused_deadline") == 1
    session.append([rows()], 0)


def test_s17_deadline_while_a_worker_computes(start, connect):
    daemon = start("--workers", "1", env=SLOW_WORKER)
    conn = connect(daemon)
    sessions = [Session(conn, SHAPE) for _ in range(8)]
    ids = conn.send_all([s.append_request([rows()], 0, deadline_ms=1) for s in sessions])
    codes = [conn.recv(i).code for i in ids]
    assert "DEADLINE" in codes and set(codes) <= {"OK", "DEADLINE"}
    for session, code in zip(sessions, codes):
        assert session.inspect().layer_lengths[0] == (TOKENS if code == "OK" else 0)
        assert session.append([rows()], 0).repeated_request == (code == "OK")


def test_s17_deadline_of_what_waits_behind_others(start, connect):
    """It is answered when the deadline passes, long before its turn would come."""
    daemon = start("--workers", "1", env=SLOW_WORKER)
    conn = connect(daemon)
    session = Session(conn, SHAPE)
    requests = [session.append_request([rows()], i * TOKENS) for i in range(6)]
    requests.append(session.append_request([rows()], 6 * TOKENS, deadline_ms=1))
    requests.append((pb.Truncate(handle=session.handle, epoch=session.epoch, length=0,
                                 deadline_ms=1), b""))
    ids = conn.send_all(requests)
    assert [conn.recv(i).code for i in ids] == ["OK"] * 6 + ["DEADLINE"] * 2
    assert session.inspect().layer_lengths[0] == 6 * TOKENS


def test_s17_cancel_of_what_waits(start, connect):
    """A request that has not begun is answered CANCELLED and stores nothing."""
    daemon = start("--workers", "1", env=SLOW_WORKER)
    conn = connect(daemon)
    session = Session(conn, SHAPE)
    ids = conn.send_all([session.append_request([rows()], i * TOKENS) for i in range(4)])
    cancel = conn.call(pb.Cancel(request_id=ids[3])).message
    assert cancel.found
    codes = [conn.recv(i).code for i in ids]
    assert codes == ["OK"] * 3 + ["CANCELLED"]
    assert session.inspect().layer_lengths[0] == 3 * TOKENS
    assert not conn.call(pb.Cancel(request_id=ids[0])).message.found
    assert not conn.call(pb.Cancel(request_id=987654)).message.found


def test_s17_cancelled_append_attend_says_what_was_stored(start, connect):
    daemon = start("--workers", "1", env=SLOW_WORKER)
    conn = connect(daemon)
    session = Session(conn, SHAPE)
    q = np.ones((8, 1, 64), np.float16)
    first = conn.send(*session.append_request([rows()], 0))
    second = conn.send(*append_attend_request([(session, TOKENS, rows(3), q)]))
    assert conn.call(pb.Cancel(request_id=second)).message.found
    assert conn.recv(first).code == "OK"
    reply = conn.recv(second)
    item = reply.message.items[0]
    assert reply.code == "OK" and item.status.code == 11 and not item.appended
    assert session.inspect().layer_lengths[0] == TOKENS


def test_cancel_is_of_the_own_connection(start, connect):
    daemon = start("--workers", "1", env=SLOW_WORKER)
    conn, other = connect(daemon), connect(daemon)
    session = Session(conn, SHAPE)
    ids = conn.send_all([session.append_request([rows()], i * TOKENS) for i in range(3)])
    assert not other.call(pb.Cancel(request_id=ids[2])).message.found
    assert [conn.recv(i).code for i in ids] == ["OK"] * 3


BIG = Shape(kv_heads=8, k_dim=128, group=128, model="big", sink=128)
# Never sealed, so that filling memory does not take the time of sealing it.
SINK = Shape(kv_heads=8, k_dim=128, group=128, model="sink", sink=1024)


def big_shape(name):
    return BIG if name.endswith("0") else SINK


def big_rows(tokens=128):
    rng = np.random.default_rng(5)
    return tuple(rng.standard_normal((8, tokens, 128)).astype(np.float16) for _ in "kv")


def fill(conn, kv, names):
    """Append blocks to one session after the other until there is no room; what was stored."""
    lengths = {}
    for name in names:
        session, length = Session(conn, big_shape(name), name), 0
        while True:
            reply = conn.ask(*session.append_request([kv], length))
            if reply.code == "RETRY_LATER":
                continue
            if reply.code != "OK":
                assert reply.code == "NO_SPACE" and reply.status.text
                lengths[name] = length
                break
            length += kv[0].shape[1]
            if length == 1024:
                lengths[name] = length
                break
        if reply.code == "NO_SPACE":
            return lengths
    raise AssertionError("the limit was never reached")


@pytest.mark.deadline(120)
@pytest.mark.parametrize("workers", [1, 2])
def test_s05_memory_limit(start, connect, workers):
    """At the limit appends are refused, never the daemon killed; what is there stays right, and
    dropping makes room again."""
    limit = 64 << 20
    daemon = start("--memory-limit", limit, "--workers", workers, "--evict-policy", "none")
    conn, kv = connect(daemon), big_rows()
    for generation in range(3):
        lengths = fill(conn, kv, (f"{generation}.{i}" for i in range(1000)))
        counters = conn.stats()[1]
        assert counters["memory_used_bytes"] <= limit == counters["memory_limit_bytes"]
        assert counters["refused_no_space"] == generation + 1
        assert sum(lengths.values()) > 10000
        if not daemon.is_sanitized():
            assert daemon.rss_bytes() <= limit * 1.1
        check_filled(conn, lengths, kv)
        for name in lengths:
            conn.call(pb.DropSession(name=name))
        while conn.counter("pages_tiles"):
            pass
    Session(conn, BIG, "after").append([kv], 0)
    assert conn.counter("sessions_open") == 1


def check_filled(conn, lengths, kv):
    """A full daemon still reads, attends and refuses at block boundaries only."""
    name, length = next(iter(lengths.items()))
    session = Session(conn, BIG, name)
    k, _ = session.read(0, 128)[0]
    assert np.abs(k - kv[0]).max() < 0.02
    assert session.attend(np.ones((8, 1, 128), np.float16)).item.length == length
    last = Session(conn, big_shape(list(lengths)[-1]), list(lengths)[-1])
    assert last.inspect().layer_lengths[0] == lengths[list(lengths)[-1]]


def test_s05_no_space_comes_at_block_boundaries_only(start, connect):
    """The first token of a block reserves all of it, in all layers."""
    shape = Shape(layers=4, kv_heads=8, k_dim=128, group=128, model="big4", sink=128)
    daemon = start("--memory-limit", "48MiB", "--evict-policy", "none")
    conn = connect(daemon)
    sessions, kv = [], big_rows(1)
    while True:
        session = Session(conn, shape, f"s{len(sessions)}")
        reply = conn.ask(*session.append_request([kv], 0))
        if reply.code == "NO_SPACE":
            break
        assert reply.code == "OK"
        sessions.append(session)
    assert len(sessions) >= 2
    rest = big_rows(127)
    for session in sessions:  # the rest of the first block, in every layer, was reserved
        session.append([rest], 1)
        for layer in range(1, 4):
            session.append([big_rows(128)], 0, layer=layer)
        reply = conn.ask(*session.append_request([kv], 128))
        assert reply.code == "NO_SPACE"


def test_sessions_max(start, connect):
    daemon = start("--sessions-max", "3")
    conn = connect(daemon)
    sessions = [Session(conn, SHAPE, f"s{i}") for i in range(3)]
    with pytest.raises(Refused) as refused:
        Session(conn, SHAPE, "one too many")
    assert refused.value.code in ("NO_SPACE", "TOO_LARGE", "RETRY_LATER")
    sessions[0].drop()
    Session(conn, SHAPE, "fits")


def test_message_of_a_request_may_not_grow_memory(start, connect):
    """Handles and batches are bounded: more than the wire's limit of items is refused."""
    daemon = start("--memory-limit", "64MiB")
    with Conn(daemon.address) as conn:
        session = Session(conn, SHAPE)
        message = pb.Attend(params=pb.AttendParams(layer=0, q_heads=8))
        for _ in range(1025):
            message.items.add(handle=session.handle)
        reply = conn.ask(message)
        assert reply.code in ("INVALID", "TOO_LARGE") and "1024" in reply.status.text
