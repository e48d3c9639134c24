"""Races and retries, ten thousand times each, against the model: nothing is stored twice or lost.

Rows travel rotated in fp16, so that the tail and the sink must hold exactly the bytes that were
sent; sealed blocks must be a right encoding of them.
"""
import numpy as np
import pytest

from support.frame import frame, pb
from support.model import Model
from support.session import Session, Shape, register
from support.wire import Conn

TRIES_MIN = 10000
SMALL = Shape(kv_heads=1, k_dim=8, group=64, sink=64, model="small")
# 80 KB an append: by the workers. All sink: what is slow and not the subject is sealing.
LARGE = Shape(kv_heads=8, k_dim=64, group=64, sink=1024, model="large")


class Rows:
    """Random rotated rows, cheap: windows into one pool."""

    POOL = 5000

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.pools = {}

    def take(self, shape, tokens):
        ls = shape.layers[0]
        key = ls.kv_heads, ls.k_dim
        if key not in self.pools:
            values = self.rng.standard_normal((ls.kv_heads, self.POOL, 2 * ls.k_dim))
            self.pools[key] = values.astype(np.float16)
        at = int(self.rng.integers(self.POOL - tokens))
        pool = self.pools[key][:, at:at + tokens]
        return pool[..., :ls.k_dim], pool[..., ls.k_dim:]


class Subject:
    """One session under test: its name, its model, and a handle to look with."""

    def __init__(self, conn, name, shape, check=True):
        self.name, self.shape = name, shape
        self.session = Session(conn, shape, name, encoder="reference")
        self.model = Model(shape, encoder="reference", check=check)

    @property
    def length(self):
        return self.model.lengths[0]

    def stored(self, kv):
        self.model.append(0, *kv)

    def learn(self):
        self.model.learn(self.session, 0)

    def is_right(self):
        """All that the daemon holds is what the model holds."""
        if self.session.inspect().layer_lengths[0] != self.length:
            return False
        if self.length == 0:
            return True
        self.learn()
        k, v = self.model.rows(0, 0, self.length)
        mine_k, mine_v = self.session.read(0, self.length, dtype="f32", rotated=True)[0]
        return np.array_equal(mine_k, k) and np.array_equal(mine_v, v)


def make_subjects(conn, count):
    """Some large, and some whose sealed blocks are compared with NumPy's encoding."""
    return [Subject(conn, f"s{i}", LARGE if i % 20 == 0 else SMALL, check=i % 10 == 5)
            for i in range(count)]


def tokens_of(rng, shape):
    return 40 if shape is LARGE else int(rng.integers(1, 5))


def is_fresh(reply, length):
    """Stored now, for the first time, up to `length`."""
    return reply.code == "OK" and not reply.message.repeated_request \
        and reply.message.length == length


@pytest.mark.deadline(150)
def test_s09_two_writers_same_start(start, connect, transport, tries):
    """Of two appends with one start exactly one is stored; the other is told the lengths."""
    daemon = start("--memory-limit", "512MiB", "--workers", "2", transports=(transport,))
    rows, wrong, tried = Rows(1), 0, 0
    looker, conns = connect(daemon), [connect(daemon), connect(daemon)]
    subjects = make_subjects(looker, 50)
    writers = [[Session(conn, s.shape, s.name) for s in subjects] for conn in conns]
    while tried < TRIES_MIN:
        wrong += race_round(rows, conns, subjects, writers)
        tried += len(subjects)
        if tried % 1000 == 0:
            wrong += sum(not s.is_right() for s in subjects)
            for s in subjects:
                s.session.truncate(0)
                s.model.truncate(0)
                for writer in writers:
                    writer[subjects.index(s)].epoch = s.session.epoch
    tries(wrong, tried)


def race_round(rows, conns, subjects, writers):
    """Both writers append to every session at its length, in slices that cross each other."""
    plans = []
    for side in range(2):
        kvs = [rows.take(s.shape, tokens_of(rows.rng, s.shape)) for s in subjects]
        if side == 1:  # equal bytes would be one request, sent twice
            kvs = [(-k, -v) for k, v in kvs]
        requests = [w.append_request([kv], s.length, rotated=True)
                    for w, s, kv in zip(writers[side], subjects, kvs)]
        plans.append((kvs, requests, []))
    at = [0, 0]
    while min(at) < len(subjects):
        side = int(rows.rng.integers(2))
        slice_end = at[side] + int(rows.rng.integers(1, 10))
        _, requests, ids = plans[side]
        ids += conns[side].send_all(requests[at[side]:slice_end])
        at[side] = min(slice_end, len(subjects))
    replies = [[conn.recv(i) for i in plan[2]] for conn, plan in zip(conns, plans)]
    return sum(not judge_race(s, [plan[0][i] for plan in plans], [r[i] for r in replies])
               for i, s in enumerate(subjects))


def judge_race(subject, kvs, replies):
    ends = [subject.length + kv[0].shape[1] for kv in kvs]
    winners = [i for i in range(2) if is_fresh(replies[i], ends[i])]
    if len(winners) != 1:
        return False
    winner, loser = winners[0], replies[1 - winners[0]]
    subject.stored(kvs[winner])
    return loser.code == "CONFLICT" and list(loser.status.layer_lengths) == [subject.length] \
        and loser.status.epoch == subject.session.epoch


class HalfSent:
    """An append of which the second half waits in our hands."""

    def __init__(self, conn, session, start, kv, rng):
        message, payload = session.append_request([kv], start, rotated=True)
        self.conn, self.kv, self.start = conn, kv, start
        self.request_id = conn.next_id()
        data = frame(message, self.request_id, payload)
        cut = int(rng.integers(len(data) - len(payload), len(data)))
        conn.send_bytes(data[:cut])
        self._rest = data[cut:]

    def finish(self):
        self.conn.send_bytes(self._rest)


@pytest.mark.deadline(150)
def test_s08_truncate_during_payload(start, connect, transport, tries):
    """A truncate that comes while an append's payload is on its way makes the append stale."""
    daemon = start("--memory-limit", "512MiB", "--workers", "2", transports=(transport,))
    rows, wrong, tried, stale, count = Rows(2), 0, 0, 0, 40
    cutter = connect(daemon)
    subjects = make_subjects(cutter, count)
    writers = [Session(connect(daemon), s.shape, s.name) for s in subjects]
    while tried < TRIES_MIN:
        round_wrong, round_stale = cut_round(rows, cutter, subjects, writers)
        wrong, stale, tried = wrong + round_wrong, stale + round_stale, tried + count
        if tried % 1000 == 0:
            wrong += sum(not s.is_right() for s in subjects)
    assert 1000 < stale < tried - 1000  # both happened: rows were cut off, and none were
    tries(wrong, tried)


def cut_round(rows, cutter, subjects, writers):
    """(how many were wrong, how many appends became stale)"""
    rng, wrong, stale = rows.rng, 0, 0
    halves = [HalfSent(w.conn, w, s.length, rows.take(s.shape, tokens_of(rng, s.shape)), rng)
              for s, w in zip(subjects, writers)]
    is_deep = rng.random() < 0.02
    targets = [int(rng.integers(0, s.length + 1)) if is_deep or s.length > 900
               else max(0, s.length - int(rng.integers(-1, 6))) for s in subjects]
    for s in subjects:
        s.learn()
    ids = cutter.send_all([s.session.truncate_request(n) for s, n in zip(subjects, targets)])
    for s, target, request_id in zip(subjects, targets, ids):
        wrong += not judge_cut(s, target, cutter.recv(request_id))
    for half in halves:
        half.finish()
    for s, writer, half in zip(subjects, writers, halves):
        reply = half.conn.recv(half.request_id)
        if half.start == s.length:
            wrong += not is_fresh(reply, s.length + half.kv[0].shape[1])
            s.stored(half.kv)
        else:
            wrong += not judge_stale(s, writer, half, reply)
            stale += 1
    return wrong, stale


def judge_cut(subject, target, reply):
    is_shorter = target < subject.length
    is_lossy = subject.model.truncate(target)
    right = reply.code == "OK" and reply.message.lossy_tail == is_lossy \
        and list(reply.message.layer_lengths) == [subject.length] \
        and (reply.message.epoch != subject.session.epoch) == is_shorter
    subject.session.epoch = reply.message.epoch
    return right


def judge_stale(subject, writer, half, reply):
    """The append was refused with what holds now; with that it is taken."""
    right = reply.code == "STALE_EPOCH" and reply.status.epoch == subject.session.epoch \
        and list(reply.status.layer_lengths) == [subject.length]
    writer.epoch = reply.status.epoch
    again = writer.conn.ask(*writer.append_request([half.kv], subject.length, rotated=True))
    right = right and is_fresh(again, subject.length + half.kv[0].shape[1])
    subject.stored(half.kv)
    return right


@pytest.mark.deadline(150)
def test_s09_retry_lost_reply(start, connect, transport, tries):
    """A writer that loses its connection before the reply sends again on another: stored once."""
    daemon = start("--memory-limit", "512MiB", "--workers", "2", transports=(transport,))
    rows, wrong, tried, repeated = Rows(3), 0, 0, 0
    looker = connect(daemon)
    subjects = make_subjects(looker, 40)
    while tried < TRIES_MIN:
        chosen = [s for s in subjects if rows.rng.random() < 0.7]
        replies = lost_round(rows, daemon, chosen)
        wrong += sum(reply.code != "OK" or reply.message.length != s.length
                     for s, reply in zip(chosen, replies))
        repeated += sum(reply.message.repeated_request for reply in replies)
        tried += len(chosen)
        for s in subjects:
            if s.length > 600:
                wrong += not s.is_right()
                s.session.truncate(0)
                s.model.truncate(0)
    wrong += sum(not s.is_right() for s in subjects)
    assert 1000 < repeated < tried - 1000  # both happened: stored before, and not
    tries(wrong, tried)


def lost_round(rows, daemon, subjects):
    """Send all and hang up without reading, sometimes in the middle; then send all again and
    return the replies."""
    kvs = [rows.take(s.shape, tokens_of(rows.rng, s.shape)) for s in subjects]
    with Conn(daemon.address) as first:
        data = b"".join(first.frame(*request)[1] for request in append_requests(first, subjects,
                                                                                kvs))
        cut = len(data) if rows.rng.random() < 0.5 else int(rows.rng.integers(len(data)))
        first.send_bytes(data[:cut])
    with Conn(daemon.address) as second:
        ids = second.send_all(append_requests(second, subjects, kvs))
        replies = [second.recv(request_id) for request_id in ids]
    for s, kv in zip(subjects, kvs):
        s.stored(kv)
    return replies


def append_requests(conn, subjects, kvs):
    for shape in (SMALL, LARGE):
        register(conn, shape)
    ids = conn.send_all([(pb.OpenSession(name=s.name, mode=pb.EXISTING), b"") for s in subjects])
    requests = []
    for s, kv, request_id in zip(subjects, kvs, ids):
        opened = conn.recv(request_id).message
        message, payload = s.session.append_request([kv], s.length, rotated=True)
        message.handle, message.epoch = opened.handle, opened.epoch
        requests.append((message, payload))
    return requests


def test_s09_identical_retry_answers_ok(conn):
    """The last append of a layer, sent again, is OK and says so; anything else is CONFLICT."""
    subject = Subject(conn, "s", SMALL)
    rows = Rows(4)
    for tokens in (3, 70, 1, 64):
        kv = rows.take(SMALL, tokens)
        at = subject.length
        request = subject.session.append_request([kv], at, rotated=True)
        assert not conn.call(*request).message.repeated_request
        subject.stored(kv)
        for _ in range(3):
            again = conn.call(*request).message
            assert again.repeated_request and again.length == subject.length
        for other in changed_requests(subject, rows, at, kv):
            reply = conn.ask(*other)
            assert reply.code == "CONFLICT"
            assert list(reply.status.layer_lengths) == [subject.length]
    assert subject.is_right()


def changed_requests(subject, rows, at, kv):
    """The same append but for one thing."""
    session = subject.session
    k = kv[0].copy()
    k[0, -1, -1] += np.float16(1)
    yield session.append_request([(k, kv[1])], at, rotated=True)
    yield session.append_request([kv], at, rotated=False)
    yield session.append_request([kv], at, rotated=True, dtype="bf16")
    yield session.append_request([rows.take(SMALL, kv[0].shape[1] + 1)], at, rotated=True)
    yield session.append_request([kv], subject.length + 1, rotated=True)
    if at > 0:
        yield session.append_request([kv], at - 1, rotated=True)


def test_s09_only_the_last_append_is_remembered(conn):
    subject = Subject(conn, "s", SMALL)
    kvs = [Rows(i).take(SMALL, 2) for i in range(2)]
    requests = [subject.session.append_request([kv], 2 * i, rotated=True)
                for i, kv in enumerate(kvs)]
    for request, kv in zip(requests, kvs):
        conn.call(*request)
        subject.stored(kv)
    assert conn.ask(*requests[0]).code == "CONFLICT"
    assert conn.call(*requests[1]).message.repeated_request
    # A truncate forgets it: the same bytes at the same place are a new append, in a new epoch.
    subject.session.truncate(2)
    assert conn.ask(*requests[1]).code == "STALE_EPOCH"
    again = conn.call(*subject.session.append_request([kvs[1]], 2, rotated=True)).message
    assert not again.repeated_request
    assert subject.is_right()


def test_s08_peer_that_dies_mid_payload_leaves_no_trace(daemon, connect):
    looker = connect(daemon)
    subject = Subject(looker, "s", LARGE)
    rows = Rows(5)
    for _ in range(50):
        with Conn(daemon.address) as dying:
            writer = Session(dying, LARGE, "s")
            HalfSent(dying, writer, subject.length, rows.take(LARGE, 40), rows.rng)
        kv = rows.take(LARGE, 7)
        subject.session.append([kv], subject.length, rotated=True)
        subject.stored(kv)
    assert subject.is_right()
