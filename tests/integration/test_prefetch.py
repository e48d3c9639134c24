"""Prefetch and ListJobs through the socket: what is cold comes back before it is read, and jobs end
as they say."""
import numpy as np
import pytest

from support.frame import CODES, pb
from support.session import Session, Shape, register
from support.wire import Refused

# Small blocks, so that there can be many: 2 layers of one KV head of 16.
SMALL = Shape(layers=2, kv_heads=1, k_dim=16, group=64, sink=64)
TINY = Shape(kv_heads=1, k_dim=8, group=64, sink=64, model="tiny")
# A block of one layer: 512 KiB of rows, some 80 KB once sealed.
BIG = Shape(kv_heads=8, k_dim=128, group=128, model="big", sink=128)
STATES = {pb.JOB_RUNNING: "running", pb.JOB_DONE: "done", pb.JOB_FAILED: "failed",
          pb.JOB_CANCELLED: "cancelled"}


def rows(shape, seed, tokens):
    rng = np.random.default_rng(seed)
    layer = shape.layers[0]
    return tuple(rng.standard_normal((layer.kv_heads, tokens, d)).astype(np.float16)
                 for d in (layer.k_dim, layer.v_dim))


def fill(conn, shape, name, blocks, tail=0, seed=1):
    """A session of so many whole blocks, and some tokens more."""
    session = Session(conn, shape, name)
    kv, step = rows(shape, seed, blocks * shape.group + tail), 64 << 20
    step //= 4 * shape.layers[0].kv_heads * shape.layers[0].k_dim * len(shape.layers) * 16
    for start in range(0, kv[0].shape[1], step):  # a few MiB at once
        part = tuple(x[:, start:start + step] for x in kv)
        session.append([part] * len(shape.layers), start)
    return session


def spilled(conn, blocks):
    """Wait until so many blocks in all are on disk."""
    while conn.counter("cold_blocks_written") < blocks:
        conn.ping()


def evict(conn, session, blocks):
    reply = conn.call(pb.Evict(handle=session.handle, blocks=blocks)).message
    assert reply.blocks == blocks, reply
    return reply


def jobs(conn):
    return {job.job_id: job for job in conn.call(pb.ListJobs()).message.jobs}


def ended(conn, job_id):
    """Poll a job to its end; its counts only grow."""
    blocks = 0
    while True:
        job = jobs(conn)[job_id]
        assert blocks <= job.blocks_done <= job.blocks and job.bytes_done <= job.bytes, job
        blocks = job.blocks_done
        if job.state != pb.JOB_RUNNING:
            return job
        assert not job.HasField("run_ms") and not job.HasField("error")


@pytest.mark.deadline(60)
def test_what_is_prefetched_is_read_without_the_disk(start, connect, tmp_path):
    daemon = start("--cold-dir", tmp_path / "cold")
    conn = connect(daemon)
    sessions = [fill(conn, SMALL, f"s{i}", 40, 10, seed=i) for i in range(3)]
    before = [session.read_stored(0, 40 * 64, layers=2) for session in sessions]
    spilled(conn, 3 * 40)
    for session in sessions:
        evict(conn, session, 40)
    reply = conn.call(pb.Prefetch(name="s0")).message
    job = ended(conn, reply.job_id)
    assert (reply.blocks, job.blocks, job.blocks_done) == (40, 40, 40)
    assert reply.bytes == job.bytes == job.bytes_done > 0
    assert (STATES[job.state], job.session) == ("done", "s0") and job.age_ms >= job.run_ms
    # Only the end of the next one: the open block counts, and is there.
    reply = conn.call(pb.Prefetch(handle=sessions[1].handle, last_blocks=11)).message
    assert reply.blocks == 10 and STATES[ended(conn, reply.job_id).state] == "done"
    counters = conn.stats()[1]
    assert counters["cold_blocks_loaded"] == counters["prefetch_blocks"] == 50
    assert counters["prefetch_jobs"] == 2 and counters["prefetch_jobs_running"] == 0
    # What came back is what was there, and nobody reads the disk for it.
    q = rows(SMALL, 9, 1)[0]
    sessions[0].attend(q, layer=1)
    for session, first, want in zip(sessions, (0, 30 * 64), before):
        got = session.read_stored(first, 40 * 64, layers=2)
        cut = [run for run in want if run.form == pb.RECORDS]
        mine = [run for run in got if run.form == pb.RECORDS]
        assert [m.data == w.data[-len(m.data):] for m, w in zip(mine, cut)] == [True, True]
    after = conn.stats()[1]
    assert after["cold_blocks_loaded"] == 50 and after["misses_evicted"] == 0
    assert after["cold_read_bytes"] == counters["cold_read_bytes"]
    # Whole again: there is nothing to load, and no job is made.
    reply = conn.call(pb.Prefetch(name="s0")).message
    assert (reply.blocks, reply.bytes, reply.HasField("job_id")) == (0, 0, False)
    # The rest of the second one, and all of the third, come when they are read.
    assert sessions[1].read_stored(0, 64 * 40, layers=2)[0].data == before[1][0].data
    sessions[2].attend(q)
    assert conn.counter("cold_blocks_loaded") == 120 and len(jobs(conn)) == 2


@pytest.mark.deadline(60)
def test_a_job_ends_with_its_session(start, connect, tmp_path):
    daemon = start("--cold-dir", tmp_path / "cold")
    conn = connect(daemon)
    count = 600
    for name in ("dropped", "evicted", "left"):
        fill(conn, TINY, name, count)
    spilled(conn, 3 * count)
    for name in ("dropped", "evicted", "left"):
        conn.call(pb.Evict(name=name, blocks=count))
    ids = conn.send_all([(pb.Prefetch(name="dropped"), b""), (pb.DropSession(name="dropped"), b"")])
    replies = [conn.recv(i) for i in ids]
    assert [reply.code for reply in replies] == ["OK"] * 2
    # Jobs are no session's: only now is it sure that the list has this one.
    listed = conn.call(pb.ListJobs()).message.jobs
    job = {j.job_id: j for j in listed}[replies[0].message.job_id]
    assert (STATES[job.state], job.session) == ("cancelled", "dropped")
    assert job.blocks_done < job.blocks == count
    ids = conn.send_all([(pb.Prefetch(name="evicted"), b""), (pb.Evict(name="evicted"), b"")])
    job_id = conn.recv(ids[0]).message.job_id
    assert conn.recv(ids[1]).code == "OK"
    assert STATES[ended(conn, job_id).state] == "cancelled"
    # The connection that asked does not matter.
    other = connect(daemon)
    job_id = other.call(pb.Prefetch(name="left")).message.job_id
    other.close()
    assert STATES[ended(conn, job_id).state] == "done"
    listed = list(conn.call(pb.ListJobs()).message.jobs)
    assert [job.session for job in listed] == ["left", "evicted", "dropped"]  # the newest first


@pytest.mark.deadline(60)
def test_a_stop_does_not_wait_for_jobs(start, connect, tmp_path):
    daemon = start("--cold-dir", tmp_path / "cold")
    conn = connect(daemon)
    fill(conn, TINY, "s", 600)
    spilled(conn, 600)
    conn.call(pb.Evict(name="s", blocks=600))
    conn.call(pb.Prefetch(name="s"))
    daemon.stop()  # in time, and cleanly
    again = start("--cold-dir", tmp_path / "cold")
    session = Session(connect(again), None, "s", mode="existing")
    session.shape = TINY
    assert session.lengths == [38400]
    assert sum(run.count for run in session.read_stored(0, 38400)) == 38400


@pytest.mark.deadline(60)
def test_without_memory_nothing_is_lost(start, connect, tmp_path):
    daemon = start("--cold-dir", tmp_path / "cold", "--memory-limit", "24MiB", "--evict-policy",
                   "none")
    conn = connect(daemon)
    session = fill(conn, BIG, "s", 8)
    want = session.read_stored(0, 8 * 128)
    spilled(conn, 8)
    evict(conn, session, 8)
    hog, kv = Session(conn, BIG), rows(BIG, 2, 128)  # without a name: it never goes to disk
    for i in range(1000):
        reply = conn.ask(*hog.append_request([kv], i * 128))
        if reply.code in ("NO_SPACE", "RETRY_LATER"):
            break
    assert reply.code in ("NO_SPACE", "RETRY_LATER")
    job = ended(conn, conn.call(pb.Prefetch(name="s")).message.job_id)
    assert (STATES[job.state], CODES[job.error]) == ("failed", "NO_SPACE")
    assert job.blocks_done < job.blocks == 8
    hog.drop()
    assert [run.data for run in session.read_stored(0, 8 * 128)] == [run.data for run in want]
    assert conn.counter("misses_evicted") == 0


@pytest.mark.deadline(60)
def test_so_many_jobs_and_no_more(start, connect, tmp_path):
    daemon = start("--cold-dir", tmp_path / "cold")
    conn = connect(daemon)
    names = [f"s{i}" for i in range(70)]
    for i, name in enumerate(names):
        fill(conn, TINY, name, 40, seed=i)
    spilled(conn, 70 * 40)
    refused = []
    for _ in range(20):  # the first of them could be through before the last one comes
        for name in names:
            conn.call(pb.Evict(name=name, blocks=40))
        ids = conn.send_all([(pb.Prefetch(name=name), b"") for name in names])
        replies = [conn.recv(i) for i in ids]
        refused = [reply for reply in replies if reply.code != "OK"]
        begun = [reply.message.job_id for reply in replies if reply.code == "OK"]
        assert len(begun) == len(set(begun)) >= 64
        for job_id in begun[-64:]:
            assert STATES[ended(conn, job_id).state] == "done"
        if refused:
            break
    assert refused and {reply.code for reply in refused} == {"RETRY_LATER"}
    assert "64 prefetches" in refused[0].status.text
    assert len(jobs(conn)) == 64  # that ended; older ones are told of no more


def matched(conn, shape_id, payload, lease_ms=0):
    message = pb.MatchPrefix(shape_id=shape_id, token_count=len(payload) // 4, lease_ms=lease_ms)
    return conn.call(message, payload).message


@pytest.mark.deadline(60)
def test_a_prefix_comes_back_for_those_who_share_it(start, connect, tmp_path):
    daemon = start("--cold-dir", tmp_path / "cold", "--memory-limit", "24MiB")
    conn = connect(daemon)
    shape_id = register(conn, BIG)
    opened = conn.call(pb.OpenSession(name="s", shape_id=shape_id, share_prefix=True)).message
    kv, ids = rows(BIG, 4, 8 * 128), np.arange(8 * 128, dtype="<u4").tobytes()
    conn.call(pb.Append(handle=opened.handle, epoch=opened.epoch, layer_first=0, layer_count=1,
                        start=0, token_count=8 * 128, token_ids=True),
              ids + b"".join(x.tobytes() for x in kv))
    first = Session(conn, None, "s", mode="existing")
    first.shape = BIG
    want = [run.data for run in first.read_stored(0, 8 * 128)]
    spilled(conn, 8)
    assert matched(conn, shape_id, ids).tokens == 8 * 128
    conn.call(pb.Evict(name="s"))
    hog, more = Session(conn, BIG, None), rows(BIG, 5, 128)  # until the index has let go of it
    for i in range(2000):
        if matched(conn, shape_id, ids).tokens == 0:
            break
        conn.ask(*hog.append_request([more], i * 128))
    assert matched(conn, shape_id, ids).tokens == 0
    hog.drop()
    ask = pb.Prefetch(shape_id=shape_id, token_count=len(ids) // 4)
    reply = conn.call(ask, ids).message
    assert (reply.tokens, reply.blocks) == (8 * 128, 8) and reply.bytes > 0
    job = ended(conn, reply.job_id)
    assert (STATES[job.state], job.session, job.blocks_done) == ("done", "", 8)
    # The first session stays where it is; another one begins with what came back, and reads it.
    assert conn.call(pb.InspectSession(name="s")).message.summary.missing_tokens == 8 * 128
    found = matched(conn, shape_id, ids, lease_ms=10000)
    assert found.tokens == 8 * 128
    other = conn.call(pb.OpenSession(shape_id=shape_id, share_prefix=True,
                                     lease=found.lease)).message
    loaded = conn.counter("cold_blocks_loaded")
    second = Session.__new__(Session)
    second.conn, second.shape, second.handle, second.epoch = conn, BIG, other.handle, other.epoch
    assert [run.data for run in second.read_stored(0, 8 * 128)] == want
    assert conn.counter("cold_blocks_loaded") == loaded == 8
    reply = conn.call(ask, ids).message
    assert (reply.tokens, reply.blocks, reply.HasField("job_id")) == (8 * 128, 0, False)
    # Part of it, and what nobody stored.
    half = pb.Prefetch(shape_id=shape_id, token_count=1000)
    assert conn.call(half, ids[:4000]).message.tokens == 7 * 128
    assert conn.call(half, bytes(4000)).message.tokens == 0
    for message, payload, code in (
            (pb.Prefetch(shape_id=99, token_count=1), ids[:4], "NOT_FOUND"),
            (pb.Prefetch(shape_id=shape_id), b"", "INVALID"),
            (pb.Prefetch(shape_id=shape_id, token_count=1, hash_count=1), ids[:36], "INVALID"),
            (pb.Prefetch(shape_id=shape_id, token_count=2), ids[:4], "INVALID"),
            (pb.Prefetch(shape_id=shape_id, token_count=1, name="s"), ids[:4], "INVALID"),
            (pb.Prefetch(shape_id=shape_id, token_count=1, salt=bytes(300)), ids[:4],
             "TOO_LARGE")):
        assert conn.ask(message, payload).code == code, message


@pytest.mark.deadline(60)
def test_what_cannot_be_prefetched(start, connect, tmp_path):
    conn = connect(start())
    fill(conn, SMALL, "s", 3)
    with pytest.raises(Refused, match="cold-dir") as refused:
        conn.call(pb.Prefetch(name="s"))
    assert refused.value.code == "UNSUPPORTED"
    conn.call(pb.Evict(name="s"))
    assert conn.ask(pb.Prefetch(name="s")).code == "UNSUPPORTED"
    assert not jobs(conn)

    conn = connect(start("--cold-dir", tmp_path / "cold"))
    session = fill(conn, SMALL, "s", 3)
    asked = [(pb.Prefetch(name="nobody"), "NOT_FOUND"), (pb.Prefetch(), "INVALID"),
             (pb.Prefetch(name="s", handle=session.handle), "INVALID"),
             (pb.Prefetch(name="s", last_blocks=0), "INVALID"),
             (pb.Prefetch(handle=999), "NOT_FOUND"), (pb.Prefetch(name="s"), "OK")]
    assert [conn.ask(message).code for message, _ in asked] == [code for _, code in asked]
    assert conn.ask(pb.Prefetch(name="s"), b"payload").code == "INVALID"
    # What was dropped for good is not cold: there is nothing to load.
    nameless = fill(conn, SMALL, None, 3)
    evict(conn, nameless, 3)
    reply = conn.call(pb.Prefetch(handle=nameless.handle)).message
    assert (reply.blocks, reply.HasField("job_id")) == (0, False)
    with pytest.raises(Refused) as refused:
        nameless.read_stored(0, 64)
    assert refused.value.code == "MISS"
