"""One session against the model, by whatever sequence of calls hypothesis comes up with."""
import collections
import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import (RuleBasedStateMachine, initialize, precondition, rule,
                                 run_state_machine_as_test)

from support import codec
from support.frame import CODES, pb
from support.model import Model, assert_attention_close
from support.session import Layer, Session, Shape, append_attend

GROUP = 64
LAYERS = [Layer(2, 16), Layer(1, 24, 8), Layer(1, 8, window=70)]
FREE = [0, 1]      # layers without a window
EXAMPLES, STEPS = 60, 50

token_counts = st.one_of(st.integers(1, 5), st.sampled_from([64, 65, 130, 200]))
layer_spans = st.sampled_from([(0, 1), (1, 1), (2, 1), (0, 2), (0, 3), (1, 2)])
seeds = st.integers(0, 2**32 - 1)
names = itertools.count()


class SessionMachine(RuleBasedStateMachine):
    """Values are eighths, so that a rotation's sums are exact and the model's halves are the
    daemon's."""

    connect = None  # set by the test
    seen = collections.Counter()  # what happened, so that the test can tell that enough did

    @initialize(encoder=st.sampled_from(["default", "reference"]),
                lag=st.sampled_from([0, 1, 30, 64]), sink=st.sampled_from([0, 64, 128]),
                bits=st.sampled_from([(2, 2), (4, 2), (4, 4)]),
                tokens=st.sampled_from([0, 300, 500]))
    def begin(self, encoder, lag, sink, bits, tokens):
        self.shape = Shape(LAYERS, group=GROUP, k_bits=bits[0], v_bits=bits[1], sink=sink)
        self.options = {"encoder": encoder, "seal_lag": lag}
        self.model = Model(self.shape, encoder, lag)
        self.name = f"s{next(names)}"
        self.conn = self.connect()
        self.session = Session(self.conn, self.shape, self.name, mode="create", **self.options)
        self.last = None  # the last append's request
        if tokens:
            self.do_append((0, 3), tokens, 1, False, "f32", "head")

    def rows(self, rng, layer, tokens):
        ls = LAYERS[layer]
        return tuple((rng.integers(-32, 33, (ls.kv_heads, tokens, dim)) / 8).astype(np.float32)
                     for dim in (ls.k_dim, ls.v_dim))

    def store(self, layer, kv, rotated):
        (self.model.append if rotated else self.model.append_unrotated)(layer, *kv)

    def learn(self):
        for layer in range(len(LAYERS)):
            self.model.learn(self.session, layer)

    @rule(span=layer_spans, tokens=token_counts, seed=seeds, rotated=st.booleans(),
          dtype=st.sampled_from(["f16", "f32", "bf16"]), layout=st.sampled_from(["head", "token"]))
    def append(self, **how):
        self.do_append(**how)

    def do_append(self, span, tokens, seed, rotated, dtype, layout):
        rng = np.random.default_rng(seed)
        layers = range(span[0], sum(span))
        kv = [self.rows(rng, layer, tokens) for layer in layers]
        lengths = self.model.lengths[span[0]:sum(span)]
        request = self.session.append_request(kv, lengths[0], span[0], dtype, layout, rotated)
        reply = self.conn.ask(*request)
        if len(set(lengths)) > 1:
            assert reply.code == "CONFLICT" and list(reply.status.layer_lengths) == lengths
            return
        assert reply.code == "OK" and reply.message.length == lengths[0] + tokens, reply
        assert not reply.message.repeated_request
        self.seen["append"] += 1
        for layer, pair in zip(layers, kv):
            self.store(layer, pair, rotated)
        sealed = min(self.model.layers[layer].sealed for layer in layers)
        assert reply.message.sealed_tokens == sealed * GROUP
        self.last = request

    @precondition(lambda self: self.last is not None)
    @rule()
    def repeat(self):
        """The same bytes again: OK if they were the last of each of their layers."""
        message = self.last[0]
        layers = range(message.layer_first, message.layer_first + message.layer_count)
        end = message.start + message.token_count
        reply = self.conn.ask(*self.last)
        if message.epoch != self.session.epoch:
            assert reply.code == "STALE_EPOCH" and reply.status.epoch == self.session.epoch
        elif all(self.model.lengths[layer] == end for layer in layers):
            assert reply.code == "OK" and reply.message.repeated_request
            self.seen["repeat"] += 1
        else:
            assert reply.code == "CONFLICT"

    @rule(layer=st.integers(0, 2), tokens=st.integers(1, 70), queries=st.integers(1, 4),
          seed=seeds)
    def append_attend(self, layer, tokens, queries, seed):
        rng = np.random.default_rng(seed)
        queries = min(queries, tokens)
        kv, q = self.rows(rng, layer, tokens), self.query(rng, layer, queries)
        start, sealed = self.model.lengths[layer], self.model.layers[layer].sealed
        self.learn()
        got, = append_attend(self.conn, [(self.session, start, kv, q)], layer, q_dtype="f32",
                             kv_dtype="f32")
        dropped = self.model.layers[layer].dropped
        self.store(layer, kv, rotated=False)
        self.last = None  # an append of another call: not repeated here
        assert got.item.appended and got.item.sealed_tokens == sealed * GROUP
        self.seen["append_attend"] += 1
        # Blocks that this append pushed out of the window were still there for it.
        out, lse = self.attend_model(layer, q, start + tokens - queries, sealed, dropped)
        assert_attention_close(got.out, got.lse, out, lse, out_bound=1e-3, lse_bound=1e-3)

    def query(self, rng, layer, tokens):
        ls = LAYERS[layer]
        return rng.standard_normal((2 * ls.kv_heads, tokens, ls.k_dim)).astype(np.float32)

    def attend_model(self, layer, q, position, sealed=None, dropped=None, **options):
        lm = self.model.layers[layer]
        now, lm.dropped = lm.dropped, lm.dropped if dropped is None else dropped
        try:
            return self.model.attend(layer, q, position, sealed, window=lm.window, **options)
        finally:
            lm.dropped = now

    @rule(layer=st.integers(0, 2), queries=st.integers(1, 3), seed=seeds, data=st.data())
    def attend(self, layer, queries, seed, data):
        lm = self.model.layers[layer]
        low = lm.dropped * GROUP + (lm.window if lm.dropped else 0)
        position = data.draw(st.integers(low, max(low, lm.length + 3)))
        q = self.query(np.random.default_rng(seed), layer, queries)
        self.learn()
        got = self.session.attend(q, layer, q_dtype="f32", position=position)
        assert got.item.status.code == 0, CODES[got.item.status.code]
        assert got.item.length == lm.length and got.item.sealed_tokens == lm.sealed * GROUP
        self.seen["attend"] += 1
        out, lse = self.attend_model(layer, q, position)
        assert_attention_close(got.out, got.lse, out, lse, out_bound=1e-3, lse_bound=1e-3)

    @rule(layer=st.integers(0, 2), data=st.data())
    def read(self, layer, data):
        lm = self.model.layers[layer]
        first = data.draw(st.integers(lm.dropped * GROUP, lm.length))
        last = data.draw(st.integers(first, lm.length))
        if first == last:
            return
        self.learn()
        mine = self.session.read(first, last, layer, rotated=True, dtype="f32")[0]
        self.seen["read"] += 1
        for x, want in zip(mine, self.model.rows(layer, first, last)):
            assert np.array_equal(x, want)
        plain = self.session.read(first, last, layer, dtype="f32")[0]
        for x, y in zip(plain, mine):
            assert np.allclose(x, codec.rotate(y), rtol=1e-5, atol=1e-5)

    @rule(back=st.one_of(st.integers(0, 5), st.integers(0, 150)))
    def truncate(self, back):
        self.learn()
        lengths = self.model.lengths
        length = max(0, max(lengths) - back)
        reply = self.conn.ask(*self.session.truncate_request(length))
        if self.model.misses_truncate(length):
            assert (reply.code, reply.status.reason) == ("MISS", pb.MISS_WINDOW)
            self.seen["truncate miss"] += 1
            return
        assert reply.code == "OK", reply
        is_lossy = self.model.truncate(length)
        assert reply.message.lossy_tail == is_lossy
        self.seen["truncate lossy" if is_lossy else "truncate"] += 1
        assert list(reply.message.layer_lengths) == self.model.lengths
        assert (reply.message.epoch != self.session.epoch) == (self.model.lengths != lengths)
        self.session.epoch = reply.message.epoch

    @rule(start=st.integers(0, 500), layer=st.integers(0, 2))
    def wrong_start(self, start, layer):
        if start == self.model.lengths[layer]:
            return
        kv = tuple(np.full((LAYERS[layer].kv_heads, 1, d), 77.0)
                   for d in (LAYERS[layer].k_dim, LAYERS[layer].v_dim))
        reply = self.conn.ask(*self.session.append_request([kv], start, layer))
        assert reply.code == "CONFLICT"
        assert list(reply.status.layer_lengths) == [self.model.lengths[layer]]

    @rule(takeover=st.booleans())
    def reconnect(self, takeover):
        """The client goes away and comes back; with takeover in a new epoch."""
        before = self.session.epoch
        self.conn.close()
        self.conn = self.connect()
        self.session = Session(self.conn, self.shape, self.name, mode="existing",
                               takeover=takeover)
        assert self.session.lengths == self.model.lengths
        assert (self.session.epoch != before) == takeover
        self.last = None

    @precondition(lambda self: not self.model.layers[2].dropped)
    @rule()
    def clone(self):
        """Go on with a copy that was read and appended as it lies there (SEMANTICS.md 21)."""
        self.learn()
        runs = []
        for layer, length in enumerate(self.model.lengths):
            runs += self.session.read_stored(0, length, layer) if length else []
        if not runs:
            return
        self.name = f"s{next(names)}"
        copy = Session(self.conn, self.shape, self.name, mode="create", **self.options)
        copy.append_tiles(runs)
        self.seen["clone"] += 1
        self.conn.call(pb.DropSession(handle=self.session.handle))
        self.session, self.last = copy, None
        for lm in self.model.layers:  # sinks that a truncate left below the lag count as open again
            sealable = max(lm.length - self.options["seal_lag"], 0) // GROUP
            lm.sealed = max([sealable] + [block + 1 for block in lm.decoded])

    def teardown(self):
        """All that is there, to the bit; of a copy where the window lets one be made."""
        if not hasattr(self, "session"):
            return
        if not self.model.layers[2].dropped:
            self.clone()
        assert list(self.session.inspect().layer_lengths) == self.model.lengths
        self.learn()
        for layer, lm in enumerate(self.model.layers):
            first = lm.dropped * GROUP
            if lm.length > first:
                mine = self.session.read(first, lm.length, layer, rotated=True, dtype="f32")[0]
                for x, want in zip(mine, self.model.rows(layer, first, lm.length)):
                    assert np.array_equal(x, want)
        self.conn.call(pb.DropSession(handle=self.session.handle))
        self.conn.close()


@pytest.mark.deadline(240)
@pytest.mark.parametrize("workers", [0, 2])
def test_session_is_what_the_model_says(start, connect, workers):
    daemon = start("--memory-limit", "256MiB", "--workers", workers,
                   env={"KVARND_TEST_JITTER_US": "300", "KVARND_TEST_JITTER_SEED": "5"})
    SessionMachine.connect = staticmethod(lambda: connect(daemon))
    SessionMachine.seen.clear()
    run_state_machine_as_test(SessionMachine, settings=settings(
        max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, database=None,
        derandomize=True, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink)))
    print(SessionMachine.seen)
    assert len(SessionMachine.seen) == 9 and min(SessionMachine.seen.values()) >= 5
    conn = connect(daemon)
    while conn.counter("pages_tail"):
        pass
    assert conn.counter("sessions_open") == 0
