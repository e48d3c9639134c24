"""Stats count everything that was done, and done to no good."""
import numpy as np
import pytest

from support.frame import CALLS, HEADER_BYTES, LABELS, frame, pb
from support.session import (Session, Shape, append_attend, append_attend_request, attend_request,
                             register)

SHAPE = Shape(layers=2, kv_heads=2, k_dim=64, group=64, model="stats")
GAUGES = {"connections_open", "requests_in_flight", "sessions_open", "shapes"}


def rows(tokens, seed=1):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((2, tokens, 64)).astype(np.float16) for _ in "kv")


class Ledger:
    """Sends requests and keeps the books that Stats must agree with."""

    def __init__(self, conn):
        self.conn = conn
        self.before = conn.stats()
        self.count, self.errors = dict.fromkeys(LABELS, 0), dict.fromkeys(LABELS, 0)
        self.bytes_in, self.bytes_out = dict.fromkeys(LABELS, 0), dict.fromkeys(LABELS, 0)
        self.count["stats"] += 1  # the one that gave `before` was counted after it was made

    def ask(self, message, payload=b""):
        label = LABELS[CALLS.index(type(message).__name__)]
        reply = self.conn.ask(message, payload)
        self.count[label] += 1
        self.errors[label] += reply.code != "OK"
        self.bytes_in[label] += HEADER_BYTES + message.ByteSize() + len(payload)
        self.bytes_out[label] += HEADER_BYTES + reply.message.ByteSize() + len(reply.payload)
        return reply

    def check(self):
        ops, _ = self.conn.stats()
        for label in LABELS:
            now, before = ops[label], self.before[0][label]
            assert now.count - before.count == self.count[label], label
            assert now.errors - before.errors == self.errors[label], label
            if label != "stats":
                assert now.bytes_in - before.bytes_in == self.bytes_in[label], label
                assert now.bytes_out - before.bytes_out == self.bytes_out[label], label
            if now.count:
                assert now.latency_us_p50 <= now.latency_us_p99, label
                assert now.latency_us_p50 <= max(1, 2 * now.latency_us_max), label


def test_every_call_is_counted(conn):
    """Number, errors, bytes in and out of each call."""
    sessions = [Session(conn, SHAPE, f"s{i}") for i in range(2)]
    ledger = Ledger(conn)
    q = np.ones((2, 1, 64), np.float16)
    ledger.ask(pb.Ping())
    ledger.ask(pb.RegisterShape(shape=SHAPE.message))
    ledger.ask(*sessions[0].append_request([rows(200)], 0))
    ledger.ask(*sessions[0].append_request([rows(200)], 5))
    reply = ledger.ask(*sessions[0].read_request(0, 128, stored=True))
    ledger.ask(*sessions[1].append_tiles_request(sessions[0].parse_stored(reply)))
    ledger.ask(*sessions[0].read_request(0, 200, dtype="f32"))
    ledger.ask(*sessions[0].read_request(0, 201))
    ledger.ask(*attend_request([(s, q) for s in sessions]))
    ledger.ask(*append_attend_request([(sessions[0], 200, rows(1), q)]))
    ledger.ask(*sessions[0].truncate_request(10))
    ledger.ask(pb.ListSessions())
    ledger.ask(pb.InspectSession(name="s0"))
    ledger.ask(pb.Cancel(request_id=1))
    ledger.ask(pb.OpenSession(name="s0"))
    ledger.ask(pb.CloseSession(handle=sessions[1].handle))
    ledger.ask(pb.DropSession(name="s1"))
    ledger.ask(pb.Hello())
    ledger.check()


def test_connections_and_bytes(daemon, connect):
    conn = connect(daemon)
    before = conn.stats()[1]
    conns = [connect(daemon) for _ in range(5)]
    now = conn.stats()[1]
    assert now["connections_open"] == before["connections_open"] + 5
    assert now["connections_accepted"] == before["connections_accepted"] + 5
    request = frame(pb.Ping(), 1)
    for _ in range(100):
        conns[0].ping()
    after = conn.stats()[1]
    stats_request = frame(pb.Stats(), 1)
    assert after["bytes_in"] - now["bytes_in"] == 100 * len(request) + len(stats_request)
    assert after["bytes_out"] > now["bytes_out"]
    for c in conns:
        c.close()
    while conn.counter("connections_open") > before["connections_open"]:
        pass


def test_tokens_are_counted(conn):
    session = Session(conn, SHAPE)
    session.append([rows(200), rows(200)], 0)
    q = np.ones((4, 1, 64), np.float16)
    session.read(50, 150, 0, 2)
    session.attend(q)
    session.attend(q, token_first=100, position=199)
    counters = conn.stats()[1]
    assert counters["tokens_appended"] == 400
    assert counters["tokens_read"] == 200
    assert counters["tokens_attended"] == (200 + 100) * 2  # tokens x KV heads


def test_pages_by_class(conn):
    """Two layers, group 64: a sink page, tiles for what is sealed, a tail page."""
    session = Session(conn, SHAPE, encoder="reference")
    session.append([rows(200), rows(200)], 0)
    session.read(0, 200, layers=2)  # waits for the seals
    counters = conn.stats()[1]
    half_page, record = 2 * 64 * 128 * 2, SHAPE.record_bytes(0)
    tile_page = 2 * (-(-record // 64) * 64)
    assert counters["pages_sink"] == 2 and counters["pages_sink_bytes"] == 2 * half_page
    assert counters["pages_tail"] == 2 and counters["pages_tail_bytes"] == 2 * half_page
    # Tile pages are reserved with their block: two sealed blocks and the open one.
    assert counters["pages_tiles"] == 6 and counters["pages_tiles_bytes"] == 6 * tile_page
    assert counters["pages_sealed_reference"] == 4 and counters["pages_sealed_refined"] == 0
    assert counters["memory_chunk_bytes"] >= 4 * half_page + 6 * tile_page
    assert counters["memory_used_bytes"] <= counters["memory_limit_bytes"] == 256 << 20
    assert counters["resident_bytes"] > 1 << 20
    assert counters["memory_session_bytes"] > 0
    other = Session(conn, SHAPE)
    other.append([rows(200), rows(200)], 0)
    other.read(0, 200)
    assert conn.counter("pages_sealed_refined") == 4
    session.close(), other.close()
    while conn.counter("pages_tiles"):
        pass
    counters = conn.stats()[1]
    assert all(counters[f"pages_{c}{b}"] == 0 for c in ("sink", "tail", "tiles")
               for b in ("", "_bytes"))


def test_refusals_by_reason(daemon, connect):
    conn = connect(daemon)
    session = Session(conn, SHAPE, "s")
    session.append([rows(100)], 0)
    bad = rows(1)
    bad[0][0, 0, 0] = np.nan
    before = conn.stats()[1]
    conn.ask(*session.append_request([rows(1)], 7))
    conn.ask(*session.append_request([bad], 100))
    conn.ask(*session.read_request(0, 101))
    epoch, session.epoch = session.epoch, session.epoch + 1
    conn.ask(*session.append_request([rows(1)], 100))
    session.epoch = epoch
    conn.ask(*session.append_request([rows(1)], 100, deadline_ms=0))
    conn.send_bytes(b"garbage, at least the 32 bytes of a header")
    conn.expect_closed()
    after = connect(daemon).stats()[1]
    grown = {name for name in after if name.startswith(("refused", "misses", "protocol"))
             and after[name] == before[name] + 1}
    assert grown == {"refused_conflict", "refused_domain", "refused_stale_epoch",
                     "refused_deadline", "misses_never_stored", "protocol_errors"}


def test_all_names_are_there(conn):
    """Every row of metrics.def and every call."""
    ops, counters = conn.stats()
    assert set(LABELS) <= ops.keys()
    assert {"bytes_in", "loop_lag_us_max", "workers_backlog", "refused_credit"} <= counters.keys()
    assert len(counters) == len(conn.call(pb.Stats()).message.counters) >= 40


@pytest.mark.parametrize("workers", [0, 1])
def test_latency_covers_the_work(start, connect, workers):
    """From the last header byte to the reply: not shorter than what the client can prove."""
    daemon = start("--workers", workers, "--memory-limit", "256MiB")
    conn = connect(daemon)
    session = Session(conn, SHAPE)
    session.append([rows(2000), rows(2000)], 0)
    op = conn.stats()[0]["append"]
    assert op.latency_us_max > 0 and op.latency_us_p99 >= op.latency_us_max


COLD = Shape(layers=1, kv_heads=1, k_dim=8, group=64, model="hits", sink=0)


def few_rows(tokens):
    return tuple(np.full((1, tokens, 8), i, np.float16) for i in (1, 2))


def hits(conn):
    """Asked, from memory, cold, missed: of reads, attention and matches."""
    counters = conn.stats()[1]
    rows = {who: tuple(counters[f"{who}_tokens_{what}"] for what in
                       ("asked", "memory", "cold", "missed")) for who in
            ("read", "attend", "match")}
    for asked, *parts in rows.values():
        assert asked == sum(parts)
    missed = sum(v for k, v in counters.items() if k.startswith("missed_tokens_"))
    assert missed == sum(row[3] for row in rows.values())
    return rows


@pytest.mark.deadline(60)
def test_hit_rates_by_tier(start, connect, tmp_path):
    """Each of the three, from memory, from disk and missed: every token is counted once."""
    conn = connect(start("--cold-dir", tmp_path / "cold", "--cold-segment", "1MiB",
                         "--cold-read-ahead", "0"))
    session = Session(conn, COLD, "s")
    q = np.ones((1, 1, 8), np.float16)
    session.append([few_rows(330)], 0)
    session.read(0, 330)
    session.attend(q)
    assert hits(conn) == {"read": (330, 330, 0, 0), "attend": (330, 330, 0, 0),
                          "match": (0, 0, 0, 0)}
    while conn.counter("cold_blocks_written") < 5:
        conn.ping()
    for of in ("read", "attend"):
        assert conn.call(pb.Evict(name="s", blocks=2)).message.blocks == 2
        session.read(200, 320) if of == "read" else session.attend(q)
    seen = hits(conn)
    assert seen["read"] == (450, 330, 120, 0)  # tokens 192 to 319 were away
    assert seen["attend"] == (660, 330 + 202, 128, 0)
    # A decode step: its attention waits for what is cold, too.
    assert conn.call(pb.Evict(name="s", blocks=2)).message.blocks == 2
    reply, = append_attend(conn, [(session, 330, few_rows(1), q)])
    assert reply.item.status.code == 0
    assert hits(conn)["attend"] == (660 + 331, 330 + 202 + 203, 128 + 128, 0)

    reply = conn.ask(*session.read_request(300, 340))
    assert reply.code == "MISS"
    assert hits(conn)["read"] == (490, 330, 120, 40)
    assert conn.counter("missed_tokens_never_stored") == 40

    shared = conn.call(pb.OpenSession(shape_id=register(conn, COLD), share_prefix=True)).message
    session.handle, session.epoch = shared.handle, shared.epoch
    message, payload = session.append_request([few_rows(200)], 0)
    message.token_ids = True
    ids = np.arange(200, dtype="<u4")
    conn.call(message, ids.tobytes() + payload)
    session.read(0, 200)  # its seals are done
    ids[150:] = 7
    matched = conn.call(pb.MatchPrefix(shape_id=register(conn, COLD), token_count=200, lease_ms=0),
                        ids.tobytes()).message
    assert matched.tokens == 128 and hits(conn)["match"] == (200, 128, 0, 72)
    assert conn.counter("missed_tokens_never_stored") == 40 + 72
