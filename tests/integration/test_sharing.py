"""Sessions that share what they hold: copies, beams, prefixes (SEMANTICS.md 11, 14 to 16)."""
import hashlib

import numpy as np
import pytest

from support.frame import pb
from support.session import Layer, Session, Shape, attend_request, open_message, register
from support.wire import Refused

GROUP = 64
SHAPE = Shape([Layer(2, 64), Layer(2, 64, window=300), Layer(1, 128, 64)], group=GROUP)
LAYERS = len(SHAPE.layers)


def rows(rng, tokens):
    """K and V of all layers."""
    return [tuple(rng.standard_normal((ls.kv_heads, tokens, dim)).astype(np.float16)
                  for dim in (ls.k_dim, ls.v_dim)) for ls in SHAPE.layers]


def held(conn, handle, epoch):
    """A session object for a handle that another call gave."""
    session = Session.__new__(Session)
    session.conn, session.shape, session.name = conn, SHAPE, None
    session.handle, session.epoch = handle, epoch
    return session


def fork(parent, *lengths):
    items = [pb.ForkItem(handle=parent.handle, epoch=parent.epoch) for _ in lengths]
    for item, length in zip(items, lengths):
        if length is not None:
            item.length = length
    reply = parent.conn.call(pb.Fork(items=items)).message
    assert all(item.status.code == 0 for item in reply.items), reply
    return [held(parent.conn, item.handle, item.epoch) for item in reply.items]


def bits(session, first, last, layer=0):
    return [(run.form, run.first, run.data) for run in session.read_stored(first, last, layer)]


def test_s11_copies_go_their_own_way(conn):
    rng = np.random.default_rng(1)
    parent = Session(conn, SHAPE, "parent")
    parent.append(rows(rng, 300), 0)
    before = [bits(parent, 0, 300, layer) for layer in (0, 2)]
    pages = conn.counter("pages_tiles")
    copies = fork(parent, *[None] * 20)
    assert conn.counter("pages_tiles") == pages  # not one page more
    for i, copy in enumerate(copies):
        copy.append(rows(np.random.default_rng(100 + i), 40), 300)
    parent.append(rows(rng, 40), 300)
    for copy in copies:
        assert bits(copy, 0, 256) == bits(parent, 0, 256) == before[0][:-1]
    tails = {bits(s, 256, 320)[0][2] for s in [parent, *copies]}
    assert len(tails) == 21  # each its own rows
    fresh = Session(conn, SHAPE)  # and each as if it had stored all by itself
    fresh.append(rows(np.random.default_rng(1), 300), 0)
    fresh.append(rows(np.random.default_rng(103), 40), 300)
    for layer in (0, 2):
        assert bits(fresh, 0, 340, layer) == bits(copies[3], 0, 340, layer)
    parent.drop()
    assert bits(copies[5], 0, 256) == before[0][:-1]


def test_s11_shorter_copies_and_what_they_miss(conn):
    rng = np.random.default_rng(2)
    parent = Session(conn, SHAPE)
    parent.append(rows(rng, 600), 0)
    cut, = fork(parent, 590)
    assert list(cut.inspect().layer_lengths) == [590] * 3
    reply = conn.call(pb.Fork(items=[
        pb.ForkItem(handle=parent.handle, length=length) for length in (601, 100, 560)])).message
    codes = [(item.status.code, item.status.reason, item.lossy_tail) for item in reply.items]
    assert codes == [(8, pb.MISS_NEVER_STORED, False), (8, pb.MISS_WINDOW, False), (0, 0, True)]


def test_reorder_is_what_a_beam_search_needs(conn):
    """Four beams, ten steps; each beam holds what the chosen history says, bit by bit."""
    rng = np.random.default_rng(3)
    first = Session(conn, SHAPE)
    first.append(rows(rng, 200), 0)
    beams = [first, *fork(first, None, None, None)]
    histories = [[]] * 4
    for step in range(10):
        for i, beam in enumerate(beams):
            seed = 1000 + 10 * step + i
            beam.append(rows(np.random.default_rng(seed), 9), 200 + 9 * step)
            histories[i] = histories[i] + [seed]
        sources = [int(n) for n in rng.integers(4, size=4)]
        reply = conn.call(pb.Reorder(items=[pb.ReorderItem(
            handles=[b.handle for b in beams], epochs=[b.epoch for b in beams],
            sources=sources)])).message.items[0]
        assert reply.status.code == 0 and list(reply.lengths) == [209 + 9 * step] * 4
        for beam, epoch in zip(beams, reply.epochs):
            beam.epoch = epoch
        histories = [histories[s] for s in sources]
    for beam, history in zip(beams, histories):
        alone = Session(conn, SHAPE)
        alone.append(rows(np.random.default_rng(3), 200), 0)
        for step, seed in enumerate(history):
            alone.append(rows(np.random.default_rng(seed), 9), 200 + 9 * step)
        for layer in range(LAYERS):
            assert bits(alone, 0, 290, layer) == bits(beam, 0, 290, layer)


# Prefixes.

def open_sharing(conn, salt=b"", lease=None):
    message = open_message(conn, SHAPE)
    message.share_prefix, message.salt = True, salt
    if lease is not None:
        message.lease = lease
    reply = conn.call(message).message
    session = held(conn, reply.handle, reply.epoch)
    session.lengths = list(reply.layer_lengths)
    return session


def append_ids(session, ids, kv, start, layer=0, layers=LAYERS):
    message, payload = session.append_request(kv[layer:layer + layers], start, layer)
    message.token_ids = True
    session.conn.call(message, np.asarray(ids, "<u4").tobytes() + payload)


def match(conn, ids, salt=b"", **options):
    message = pb.MatchPrefix(shape_id=register(conn, SHAPE), salt=salt, token_count=len(ids),
                             **options)
    return conn.call(message, np.asarray(ids, "<u4").tobytes()).message


def test_s15_a_prefix_of_another_connection_is_used(daemon, connect):
    rng = np.random.default_rng(4)
    ids, kv = rng.integers(1 << 32, size=1000, dtype=np.uint32), rows(rng, 250)
    writer, reader = connect(daemon), connect(daemon)
    first = open_sharing(writer, b"lora 1")
    for layer in range(LAYERS):  # layer by layer, as a prefill does; ids with the first
        if layer == 0:
            append_ids(first, ids[:250], kv, 0, 0, 1)
        else:
            first.append([kv[layer]], 0, layer=layer)
    first.read(0, 250, 0, LAYERS)  # waits for the seals
    found = match(reader, ids, b"lora 1")
    assert found.tokens == 192 and found.lease
    assert match(reader, ids, b"lora 2").tokens == match(reader, ids[1:], b"lora 1").tokens == 0
    second = open_sharing(reader, b"lora 1", found.lease)
    assert second.lengths == [192] * LAYERS
    q = rng.standard_normal((4, 3, 64)).astype(np.float16)
    asked = dict(position=180, token_last=192)
    mine, yours = (conn.call(*attend_request([(s, q)], 0, **asked)) for conn, s in (
        (writer, first), (reader, second)))
    assert mine.payload == yours.payload
    # They end the next block alike: one copy of it is left.
    more = rows(rng, 100)
    append_ids(first, ids[250:350], more, 250)
    append_ids(second, ids[192:350], [tuple(np.concatenate([a[:, 192:], b], 1) for a, b in zip(
        old, new)) for old, new in zip(kv, more)], 192)
    for layer in (0, 2):
        assert bits(first, 0, 320, layer) == bits(second, 0, 320, layer)
    seen = second.inspect()
    assert seen.share_prefix and seen.prefix_tokens == 192 and seen.adopted_blocks == 2
    assert seen.shared_pages == 5 * LAYERS
    writer.close()
    reader.close()
    third = connect(daemon)  # what was published outlives the sessions
    assert match(third, ids, b"lora 1").tokens == 320


def test_s15_a_lease_ends(daemon, connect):
    rng = np.random.default_rng(5)
    conn, other = connect(daemon), connect(daemon)
    session = open_sharing(conn)
    append_ids(session, range(70), rows(rng, 70), 0)
    session.read(0, 70, 0, LAYERS)
    lease = match(conn, range(70), lease_ms=60000).lease
    short = match(conn, range(70), lease_ms=1).lease
    with pytest.raises(Refused) as refused:
        open_sharing(other, lease=lease)
    assert refused.value.code == "NOT_FOUND"
    assert open_sharing(conn, lease=lease).lengths == [64] * LAYERS
    for _ in range(1000):  # bounded: each asks the daemon, whose clock goes on
        try:
            open_sharing(conn, lease=short)
        except Refused as refusal:
            assert refusal.code == "NOT_FOUND"
            break
    else:
        pytest.fail("the lease did not end")


def test_s15_published_blocks_go_when_memory_is_short(start, connect):
    """Prompt after prompt is stored and dropped, far more than fits; none is refused for good."""
    shape = Shape(layers=4, kv_heads=8, k_dim=128, group=128, model="big", sink=128)
    conn = connect(start("--memory-limit", "64MiB"))
    rng, kept = np.random.default_rng(6), 0
    kv = [tuple(rng.standard_normal((8, 512, 128)).astype(np.float16) for _ in "kv")] * 4
    for prompt in range(40):
        message = open_message(conn, shape)
        message.share_prefix = True
        opened = conn.call(message).message
        session = held(conn, opened.handle, opened.epoch)
        session.shape = shape
        ids = np.arange(prompt * 1000, prompt * 1000 + 512)
        append, payload = session.append_request(kv, 0)
        append.token_ids = True
        for _ in range(200):
            reply = conn.ask(append, ids.astype("<u4").tobytes() + payload)
            if reply.code != "RETRY_LATER":
                break
        assert reply.code == "OK", (prompt, reply.message)
        session.read(0, 512)
        session.drop()
        kept = max(kept, conn.counter("prefix_blocks"))
    assert 10 < kept < 160


# Determinism.

class Script:
    """Appends, attentions, copies and beams, pipelined as far as handles and epochs allow."""

    def __init__(self, conn, seed):
        self.conn, self.rng, self.log, self.pending = conn, np.random.default_rng(seed), [], []
        self.sessions = [Session(conn, SHAPE, seal_lag=lag) for lag in (0, 20, 0, 64)]
        self.lengths = [0] * 4

    def send(self):
        ids = self.conn.send_all(self.pending)
        self.pending = []
        replies = [self.conn.recv(i) for i in ids]
        self.log += [(r.code, hashlib.sha256(r.payload).hexdigest()) for r in replies]
        return replies

    def step(self):
        act, idx = int(self.rng.integers(10)), int(self.rng.integers(4))
        session = self.sessions[idx]
        if act < 5:
            tokens = int(self.rng.choice([1, 2, 70, 200]))
            kv = rows(self.rng, tokens)
            for layer in range(LAYERS):
                self.pending.append(session.append_request([kv[layer]], self.lengths[idx], layer))
            self.lengths[idx] += tokens
        elif act < 8:
            q = self.rng.standard_normal((4, 2, 64)).astype(np.float16)
            self.pending.append(attend_request([(session, q)], int(self.rng.integers(2)),
                                               position=self.lengths[idx]))
        elif act == 8:
            length = max(0, self.lengths[idx] - int(self.rng.integers(40)))
            self.pending.append((pb.Fork(items=[pb.ForkItem(
                handle=session.handle, length=length)]), b""))
            item = self.send()[-1].message.items[0]
            self.log.append((item.status.code, item.length, item.lossy_tail))
            if item.status.code == 0:
                to = int(self.rng.integers(4))
                self.pending.append((pb.DropSession(handle=self.sessions[to].handle), b""))
                self.sessions[to] = held(self.conn, item.handle, item.epoch)
                self.lengths[to] = item.length
        else:
            sources = [int(n) for n in self.rng.integers(4, size=4)]
            self.pending.append((pb.Reorder(items=[pb.ReorderItem(
                handles=[s.handle for s in self.sessions],
                epochs=[s.epoch for s in self.sessions], sources=sources)]), b""))
            item = self.send()[-1].message.items[0]
            assert item.status.code == 0, item
            self.lengths = [self.lengths[s] for s in sources]
            assert list(item.lengths) == self.lengths
            for s, epoch in zip(self.sessions, item.epochs):
                s.epoch = epoch

    def run(self, steps):
        for _ in range(steps):
            self.step()
        self.send()
        return self.log


@pytest.fixture(scope="module")
def expected():
    return {}


@pytest.mark.deadline(120)
@pytest.mark.parametrize("workers, jitter", [(0, None), (1, 1), (4, 2), (4, 3)])
def test_s03_same_script_same_bits(start, connect, expected, workers, jitter):
    env = {} if jitter is None else {"KVARND_TEST_JITTER_US": "2000",
                                     "KVARND_TEST_JITTER_SEED": str(jitter)}
    daemon = start("--memory-limit", "512MiB", "--workers", workers, env=env)
    log = Script(connect(daemon), 7).run(150)
    assert log == expected.setdefault("log", log)
    assert {"OK"} <= {entry[0] for entry in log}
