"""Verify through the socket: a bit that flipped on disk is found where it is, and nowhere else."""
import json
import os
import subprocess

import numpy as np
import pytest

from support.frame import pb
from support.session import Session, Shape
from support.settings import BIN, patience
from support.wire import Refused

SHAPE = Shape(layers=2, kv_heads=2, k_dim=64, group=64, model="verify")
BLOCKS = 6  # of which the first is the sink
TOKENS = BLOCKS * 64 + 10


def rows(seed, tokens=TOKENS):
    rng = np.random.default_rng(seed)
    return [tuple(rng.standard_normal((2, tokens, 64)).astype(np.float16) for _ in range(2))
            for _ in range(2)]


def stored(session, last=BLOCKS * 64):
    return b"".join(run.data for run in session.read_stored(0, last, layers=2))


def record_of(session, block, layer=1):
    """The record of KV head 0 of a sealed block, as it lies in a page and in a segment."""
    (run,) = session.read_stored(block * 64, (block + 1) * 64, layer=layer)
    return run.data[:SHAPE.record_bytes(layer)]


def durable(conn, blocks):
    """Wait until so many blocks are on disk."""
    while conn.counter("cold_blocks_written") < blocks:
        conn.ping()


def flip(folder, data, mask=4):
    """Flip a bit of what begins with these bytes, wherever a segment has it; once."""
    places = []
    for path in sorted(folder.glob("*.kvs")):
        content, at = path.read_bytes(), -1
        while (at := content.find(data[:32], at + 1)) >= 0:
            places.append((path, at + 5))
    assert len(places) == 1, places
    path, at = places[0]
    fd = os.open(path, os.O_RDWR)
    byte = os.pread(fd, 1, at)
    os.pwrite(fd, bytes([byte[0] ^ mask]), at)
    os.close(fd)


def verify(conn, **fields):
    """All parts of a verification: findings, and sums by name."""
    findings, sums, parts = [], {}, 0
    message = pb.Verify(**fields)
    while True:
        reply = conn.call(message).message
        parts += 1
        findings += reply.findings
        for name in ("sessions", "blocks", "pages", "page_bytes", "rows_pages", "records",
                     "record_bytes", "wrong_pages", "wrong_records", "unread_records"):
            sums[name] = sums.get(name, 0) + getattr(reply, name)
        if not reply.more:
            return findings, sums, parts
        message.block_first = reply.next_block
        if reply.HasField("next_name"):
            message.name_first = reply.next_name


def cold(start, tmp_path, *flags):
    return start("--cold-dir", tmp_path / "cold", "--cold-segment", "1MiB", *flags)


@pytest.mark.deadline(60)
def test_s14_flipped_bit_on_disk(start, connect, tmp_path):
    """A session on disk alone: exactly the block whose record changed is found, and is a MISS from
    then on; the rest is read as it was."""
    conn = connect(cold(start, tmp_path))
    sessions, first = [], {}
    for i in range(3):
        session = Session(conn, SHAPE, f"s{i}")
        session.append(rows(i), 0)
        first[i] = stored(session)
        sessions.append(session)
    wrong = record_of(sessions[1], 4)
    durable(conn, 3 * BLOCKS)
    findings, sums, _ = verify(conn)
    assert not findings and sums["sessions"] == 3
    assert sums["pages"] == 3 * 2 * (BLOCKS - 1) and sums["rows_pages"] == 3 * 2 * 2
    assert sums["records"] >= 3 * BLOCKS and sums["wrong_pages"] == sums["wrong_records"] == 0

    for session in sessions:
        conn.call(pb.Evict(handle=session.handle))
    flip(tmp_path / "cold", wrong)
    findings, sums, _ = verify(conn)
    assert [(f.session, f.part, f.block, f.wrong_pages) for f in findings] == [
        ("s1", pb.VERIFY_BLOCK, 4, 0)]
    assert findings[0].record_error == 20  # CORRUPT
    assert findings[0].outcome == pb.VERIFY_LOST
    assert sums["wrong_records"] == 1 and sums["wrong_pages"] == sums["unread_records"] == 0
    assert conn.counter("verify_wrong_records") == 1

    with pytest.raises(Refused) as refused:
        sessions[1].read_stored(4 * 64, 5 * 64, layers=2)
    assert refused.value.code == "MISS"
    assert refused.value.reply.status.reason == pb.MISS_CHECKSUM
    part = b"".join(run.data for run in sessions[1].read_stored(0, 4 * 64, layers=2))
    assert part and stored(sessions[0]) == first[0] and stored(sessions[2]) == first[2]
    # It is missing now: nothing is left to be found.
    assert not verify(conn)[0]


@pytest.mark.deadline(60)
def test_wrong_record_of_what_memory_has(start, connect, tmp_path):
    """It is written once more, and what is there then is right."""
    daemon = cold(start, tmp_path)
    conn = connect(daemon)
    session = Session(conn, SHAPE, "s")
    session.append(rows(1), 0)
    first = stored(session)
    durable(conn, BLOCKS)
    flip(tmp_path / "cold", record_of(session, 3))
    findings, sums, _ = verify(conn, name="s")
    assert [(f.block, f.outcome) for f in findings] == [(3, pb.VERIFY_REWRITE)]
    assert sums["sessions"] == 1 and sums["wrong_records"] == 1
    durable(conn, BLOCKS + 1)
    assert not verify(conn, name="s")[0]
    conn.call(pb.Evict(handle=session.handle))
    assert stored(session) == first


@pytest.mark.deadline(60)
def test_parts_and_refusals(start, connect, tmp_path):
    """However small the parts, together they are the whole; what is asked wrongly is refused."""
    conn = connect(cold(start, tmp_path))
    for i in range(4):
        Session(conn, SHAPE, f"p{i}").append(rows(i), 0)
    durable(conn, 4 * BLOCKS)
    _, whole, _ = verify(conn)
    _, small, parts = verify(conn, blocks=1)
    assert parts >= 4 * (BLOCKS + 1)
    assert small.pop("records") >= whole.pop("records")
    assert small.pop("record_bytes") >= whole.pop("record_bytes")
    assert small == whole
    # From a name on; one that is gone means the next.
    _, some, _ = verify(conn, name_first="p2", block_first=3)
    assert some["sessions"] == 2 and some["blocks"] == 2 * (BLOCKS + 1) - 3
    _, some, _ = verify(conn, name_first="p2-gone", block_first=3)
    assert some["sessions"] == 1 and some["blocks"] == BLOCKS + 1
    unnamed = Session(conn, SHAPE)
    unnamed.append(rows(9), 0)
    stored(unnamed)  # its seals are done
    _, some, _ = verify(conn, handle=unnamed.handle)
    assert some["pages"] == 2 * (BLOCKS - 1) and some["records"] == 0
    for fields, code in ((dict(blocks=0), "INVALID"), (dict(blocks=65537), "INVALID"),
                         (dict(block_first=1), "INVALID"), (dict(name="nobody"), "NOT_FOUND"),
                         (dict(name="p1", name_first="p1"), "INVALID"),
                         (dict(name="p1", handle=unnamed.handle), "INVALID")):
        with pytest.raises(Refused) as refused:
            conn.call(pb.Verify(**fields))
        assert refused.value.code == code, fields


def inspect(conn, name):
    return conn.call(pb.InspectSession(name=name)).message


@pytest.mark.deadline(60)
def test_what_is_cold_and_what_a_crash_leaves(start, connect, tmp_path):
    """Inspect and the list say what is where; a crash brings back what they said."""
    daemon = cold(start, tmp_path)
    conn = connect(daemon)
    session = Session(conn, SHAPE, "s")
    session.append(rows(1), 0)
    first = stored(session)
    assert inspect(conn, "s").cold_blocks == 0
    durable(conn, BLOCKS)
    while (seen := inspect(conn, "s")).summary.restart_tokens == 0:
        conn.ping()
    assert seen.stored_blocks == BLOCKS and seen.stored_bytes > seen.tile_bytes
    assert seen.summary.restart_tokens == BLOCKS * 64 and seen.summary.away_blocks == 0
    page = seen.tile_bytes // (2 * (BLOCKS - 1))
    conn.call(pb.Evict(name="s", blocks=2))
    seen = inspect(conn, "s")
    assert (seen.cold_blocks, seen.cold_bytes) == (2, 2 * 2 * page)
    assert seen.loading_blocks == seen.missing_blocks == 0 and not seen.summary.tail_cold
    (line,) = conn.call(pb.ListSessions()).message.sessions
    assert (line.away_blocks, line.restart_tokens) == (2, BLOCKS * 64)
    text = ctl(daemon, "inspect", "s").stdout
    assert f"a restart after a crash now finds {BLOCKS * 64} tokens" in text
    got = json.loads(ctl(daemon, "inspect", "s", "--json").stdout)
    assert got["cold_blocks"] == got["away_blocks"] == 2
    assert got["stored_bytes"] == seen.stored_bytes
    conn.close()
    daemon.kill()

    again = cold(start, tmp_path)
    conn = connect(again)
    session = Session(conn, SHAPE, "s", mode="existing")
    assert session.lengths == [BLOCKS * 64] * 2
    seen = inspect(conn, "s")
    assert seen.cold_blocks == seen.summary.away_blocks == BLOCKS
    assert seen.summary.restart_tokens == BLOCKS * 64
    assert stored(session) == first and inspect(conn, "s").cold_blocks == 0


def ctl(daemon, *args, code=0):
    done = subprocess.run([str(BIN / "kvarnctl"), "--server", daemon.address, *map(str, args)],
                          timeout=patience(30), stdin=subprocess.DEVNULL, capture_output=True,
                          text=True)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


@pytest.mark.deadline(60)
def test_kvarnctl_verify(start, connect, tmp_path):
    daemon = cold(start, tmp_path)
    conn = connect(daemon)
    sessions = [Session(conn, SHAPE, f"s{i}") for i in range(2)]
    for i, session in enumerate(sessions):
        session.append(rows(i), 0)
    durable(conn, 2 * BLOCKS)
    assert ctl(daemon, "verify").stdout.startswith(f"2 sessions, {2 * (BLOCKS + 1)} blocks")
    wrong = record_of(sessions[1], 5)
    conn.call(pb.Evict(name="s1"))
    flip(tmp_path / "cold", wrong)
    assert json.loads(ctl(daemon, "verify", "--session", "s0", "--json").stdout)["findings"] == []
    got = json.loads(ctl(daemon, "verify", "--json", code=1).stdout)
    assert got["findings"] == [{
        "session": "s1", "part": "block", "block": 5, "wrong_pages": 0, "layer": 0,
        "record_error": "corrupt", "outcome": "lost"}]
    assert got["sessions"] == 2 and got["wrong_records"] == 1
    assert ctl(daemon, "verify", "--session", "s1").returncode == 0
    assert "NOT_FOUND" in ctl(daemon, "verify", "--session", "nobody", code=1).stderr
