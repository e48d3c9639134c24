"""The same script of requests gives the same bits, whoever computes and when (SEMANTICS.md 3)."""
import time

import numpy as np
import pytest

from support.frame import pb
from support.session import (Layer, Session, Shape, append_attend_request, attend_request)

GROUP = 128
SHAPE = Shape([Layer(2, 64), Layer(2, 64, window=200), Layer(1, 128, 64)], group=GROUP)
JITTER_US = 2000


class Script:
    """Requests on several sessions; send() pipelines them on one connection, so that they arrive
    in one order. Remembers every reply's code, message and payload."""

    def __init__(self, conn, seed):
        self.conn, self.rng = conn, np.random.default_rng(seed)
        self.sessions = [Session(conn, SHAPE, f"s{i}", encoder=encoder, seal_lag=lag)
                         for i, (encoder, lag) in enumerate([("default", 0), ("reference", 0),
                                                             ("aware", 40), ("aware", 0)])]
        self.lengths = [[0] * len(SHAPE.layers) for _ in self.sessions]
        self.pending, self.log = [], []

    def rows(self, layer, tokens):
        ls = SHAPE.layers[layer]
        return tuple(self.rng.standard_normal((ls.kv_heads, tokens, dim)).astype(np.float16)
                     for dim in (ls.k_dim, ls.v_dim))

    def q(self, layer, tokens):
        ls = SHAPE.layers[layer]
        return self.rng.standard_normal((2 * ls.kv_heads, tokens, ls.k_dim)).astype(np.float32)

    def pick(self):
        idx = int(self.rng.integers(len(self.sessions)))
        return idx, self.sessions[idx], int(self.rng.integers(len(SHAPE.layers)))

    def append(self):
        idx, session, layer = self.pick()
        tokens = int(self.rng.choice([1, 3, 40, 130, 300]))
        start = self.lengths[idx][layer]
        self.pending.append(session.append_request([self.rows(layer, tokens)], start, layer))
        self.lengths[idx][layer] += tokens

    def append_attend(self):
        layer = int(self.rng.integers(len(SHAPE.layers)))
        items = []
        for idx, session in enumerate(self.sessions):
            items.append((session, self.lengths[idx][layer], self.rows(layer, 2),
                          self.q(layer, 2)))
            self.lengths[idx][layer] += 2
        self.pending.append(append_attend_request(items, layer, q_dtype="f32",
                                                  accuracy=int(self.rng.integers(3))))

    def attend(self):
        _, session, layer = self.pick()
        tokens = int(self.rng.choice([1, 5, 33]))
        self.pending.append(attend_request([(session, self.q(layer, tokens))], layer,
                                           q_dtype="f32", position=int(self.rng.integers(600)),
                                           accuracy=int(self.rng.integers(3))))

    def teach(self):
        """Enough queries of one layer that pages of it are sealed by what they look like."""
        for _ in range(10):
            session = self.sessions[int(self.rng.integers(len(self.sessions)))]
            self.pending.append(attend_request([(session, self.q(0, 512))], 0, q_dtype="f32",
                                               position=0))
            self.append()

    def read(self):
        idx, session, layer = self.pick()
        last = self.lengths[idx][layer]
        window = SHAPE.layers[layer].window
        first = max(0, last - window) if window else int(self.rng.integers(last + 1))
        stored = bool(self.rng.integers(2))
        if stored:
            first = first // GROUP * GROUP
        self.pending.append(session.read_request(first, last, layer, stored=stored))

    def send(self):
        """Send what is pending and note the answers."""
        ids = self.conn.send_all(self.pending)
        self.pending = []
        for request_id in ids:
            reply = self.conn.recv(request_id)
            self.log.append((reply.code, neutral(reply.message), reply.payload))

    def truncate(self):
        """Not pipelined: what follows needs the new epoch."""
        self.send()
        idx, session, _ = self.pick()
        length = max(self.lengths[idx]) - int(self.rng.integers(1, 200))
        reply = self.conn.ask(*session.truncate_request(max(0, length)))
        self.log.append((reply.code, neutral(reply.message), reply.payload))
        if reply.code == "OK":
            session.epoch = reply.message.epoch
            self.lengths[idx] = list(reply.message.layer_lengths)

    def run(self, steps):
        acts = [self.append] * 4 + [self.append_attend] * 2 + [self.attend] * 3 + [self.read] * 2
        for step in range(steps):
            acts[int(self.rng.integers(len(acts)))]()
            if step % 60 == 59:
                self.truncate()
            if step == 130:
                self.teach()
        self.send()
        return self.log

    def pages(self):
        """How many pages each encoder sealed, by session; reads wait for the seals."""
        for idx, session in enumerate(self.sessions):
            for layer, length in enumerate(self.lengths[idx]):
                session.read(length - 1, length, layer)
        return [(seen.pages_reference, seen.pages_refined, seen.pages_aware)
                for seen in (session.inspect() for session in self.sessions)]


def neutral(message):
    """A reply's bytes without what differs from run to run: epochs start at the clock."""
    copy = type(message).FromString(message.SerializeToString())
    copy.status.ClearField("epoch")
    copy.ClearField("epoch") if "epoch" in copy.DESCRIPTOR.fields_by_name else None
    for item in getattr(copy, "items", []):
        item.ClearField("epoch")
        item.status.ClearField("epoch")
    if copy.status.code:
        copy.status.ClearField("text")  # it may name an epoch
    return copy.SerializeToString(deterministic=True)


def run_script(start, connect, workers, jitter_seed, seed=1, steps=400):
    env = {}
    if jitter_seed is not None:
        env = {"KVARND_TEST_JITTER_US": str(JITTER_US), "KVARND_TEST_JITTER_SEED": str(jitter_seed)}
    daemon = start("--memory-limit", "512MiB", "--workers", workers, env=env)
    script = Script(connect(daemon), seed)
    return script.run(steps), script.pages()


@pytest.fixture(scope="module")
def expected():
    """Answers of the first configuration, which the others must repeat."""
    return {}


@pytest.mark.deadline(120)
@pytest.mark.parametrize("workers, jitter_seed", [
    (0, None), (1, None), (4, None), (0, 1), (0, 2), (1, 3), (4, 4), (4, 5)])
def test_s03_same_script_same_bits(start, connect, expected, workers, jitter_seed):
    log, pages = run_script(start, connect, workers, jitter_seed)
    codes = {entry[0] for entry in log}
    assert len(log) > 380 and "OK" in codes and codes <= {"OK", "MISS"}, codes
    first = expected.setdefault("log", log)
    for i, (mine, theirs) in enumerate(zip(log, first)):
        assert mine[0] == theirs[0], f"request {i}: {mine[0]} {theirs[0]}"
        assert mine[1] == theirs[1], f"request {i}: the replies differ"
        assert mine[2] == theirs[2], f"request {i}: the payloads differ"
    assert len(log) == len(first)
    assert pages == expected.setdefault("pages", pages)
    assert all(aware > 2 and refined > 2 for _, refined, aware in pages[2:]), pages
    assert all(aware == 0 for _, _, aware in pages[:2]), pages


def test_jitter_is_at_work(start, connect):
    """The delays that the test above relies on exist: forty jobs, half of 30 ms each."""
    daemon = start("--workers", "1", env={"KVARND_TEST_JITTER_US": "30000",
                                          "KVARND_TEST_JITTER_SEED": "7"})
    conn = connect(daemon)
    session = Session(conn, Shape(kv_heads=1, k_dim=8, group=64, sink=0))
    rows = tuple(np.ones((1, 64 * 40, 8), np.float16) for _ in "kv")
    began = time.monotonic()
    session.append([rows], 0)
    session.read(0, 64 * 40)  # waits for the seals
    assert time.monotonic() - began > 0.2


def test_s16_attend_sees_appends_sent_before_it(start, connect):
    """In one connection an Attend sees every append before it, however long that one takes."""
    daemon = start("--workers", "4", env={"KVARND_TEST_JITTER_US": "3000",
                                          "KVARND_TEST_JITTER_SEED": "1"})
    conn = connect(daemon)
    shape = Shape(kv_heads=2, k_dim=64, group=64)
    session = Session(conn, shape)
    rng = np.random.default_rng(3)
    q = rng.standard_normal((2, 1, 64)).astype(np.float16)
    length, requests, expected = 0, [], []
    for tokens in [200, 1, 1, 300, 64, 1, 63, 500, 2]:
        rows = tuple(rng.standard_normal((2, tokens, 64)).astype(np.float16) for _ in "kv")
        requests += [session.append_request([rows], length), attend_request([(session, q)])]
        length += tokens
        expected.append(length)
    replies = [conn.recv(i) for i in conn.send_all(requests)]
    assert {reply.code for reply in replies} == {"OK"}
    assert [reply.message.length for reply in replies[::2]] == expected
    assert [reply.message.items[0].length for reply in replies[1::2]] == expected
    # Another connection sees an append no later than its reply.
    other = Session(connect(daemon), shape, "named")
    mine = Session(conn, shape, "named")
    rows = tuple(rng.standard_normal((2, 400, 64)).astype(np.float16) for _ in "kv")
    mine.append([rows], 0)
    assert other.inspect().layer_lengths[0] == 400
    assert other.attend(q).item.length == 400


def test_s03_rows_of_one_request_are_never_tiles_to_it(conn):
    """A reply does not wait for the seal that its own rows make due; sealed_tokens says so."""
    shape = Shape(kv_heads=1, k_dim=64, group=64, sink=0)
    session = Session(conn, shape)
    rng = np.random.default_rng(4)
    rows = tuple(rng.standard_normal((1, 130, 64)).astype(np.float16) for _ in "kv")
    q = rng.standard_normal((1, 1, 64)).astype(np.float16)
    message, payload = append_attend_request([(session, 0, rows, q)])
    reply = conn.call(message, payload).message
    assert reply.items[0].appended and reply.items[0].sealed_tokens == 0
    assert session.attend(q).item.sealed_tokens == 128
    runs = session.read_stored(0, 130)
    assert [(run.first, run.count, run.form) for run in runs] == [
        (0, 128, pb.RECORDS), (128, 2, pb.ROWS_STORED)]
