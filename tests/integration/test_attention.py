"""Attention in the daemon against float64 over what it holds (SEMANTICS.md 3, 9, 16, 19, 20)."""
import numpy as np
import pytest

from support import codec, values
from support.frame import CODES, pb
from support.model import Model, assert_attention_close
from support.session import (Layer, Session, Shape, append_attend, append_attend_request, attend,
                             attend_request, parse_attended)
from support.settings import DATA

GROUP, TOKENS, DIM = 64, 500, 64
SHAPE = Shape([Layer(2, DIM), Layer(3, 96, 80)], group=GROUP)


class Filled:
    """A session with its model, layer by layer filled with random rows."""

    def __init__(self, conn, shape=SHAPE, tokens=TOKENS, seed=1, **options):
        self.rng = np.random.default_rng(seed)
        self.session = Session(conn, shape, **options)
        self.model = Model(shape, options.get("encoder", "default"), options.get("seal_lag", 0),
                           check=False)  # test_numbers.py looks at the encoding
        for layer in range(len(shape.layers)):
            self.grow(layer, tokens)

    def rows(self, layer, tokens):
        ls = self.session.shape.layers[layer]
        return tuple(self.rng.standard_normal((ls.kv_heads, tokens, dim)).astype(np.float16)
                     for dim in (ls.k_dim, ls.v_dim))

    def grow(self, layer, tokens):
        kv = self.rows(layer, tokens)
        self.session.append([kv], self.model.lengths[layer], layer=layer, rotated=True)
        self.model.append(layer, *kv)
        self.model.learn(self.session, layer)

    def q(self, layer, gqa=1, tokens=1, scale=1.0):
        ls = self.session.shape.layers[layer]
        q = self.rng.standard_normal((ls.kv_heads * gqa, tokens, ls.k_dim)) * scale
        return q.astype(np.float32)


@pytest.fixture
def filled(conn):
    return Filled(conn)


def check(filled, q, layer=0, position=None, options=None, **model_options):
    """Ask and compare; model_options name the same things as the model does."""
    options = dict(options or {})
    if position is not None:
        options["position"] = position
    else:
        position = filled.model.lengths[layer] - q.shape[1]
    got = filled.session.attend(q, layer, q_dtype="f32", **options)
    assert got.item.status.code == 0, got.item
    out, lse = filled.model.attend(layer, q, position, **model_options)
    assert_attention_close(got.out, got.lse, out, lse, out_bound=2e-4)
    return got


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("gqa", [1, 2, 7])
@pytest.mark.parametrize("tokens", [1, 2, 33])
def test_s19_causal(filled, layer, gqa, tokens):
    """Row t at position p + t sees tokens up to it; the default is the end of the layer."""
    check(filled, filled.q(layer, gqa, tokens), layer)
    for position in (0, 5, 63, 64, 200):
        check(filled, filled.q(layer, gqa, tokens), layer, position)


def test_s19_position_beyond_the_end_sees_all(filled):
    check(filled, filled.q(0, 2, 3), position=TOKENS + 1000)


def test_s19_not_causal(filled):
    check(filled, filled.q(0, 2, 5), position=3, options={"non_causal": True}, causal=False)


@pytest.mark.parametrize("window", [1, 2, 63, 64, 100, 10000])
def test_s19_window(filled, window):
    """Itself included: window 1 sees one token."""
    for position in (0, 63, 64, 130, TOKENS - 4):
        check(filled, filled.q(0, 2, 4), position=position, options={"window": window},
              window=window)


@pytest.mark.parametrize("first, last", [(0, 1), (0, 64), (64, 128), (10, 11), (1, TOKENS),
                                         (100, 300), (499, 500), (448, 500)])
def test_s19_token_range(filled, first, last):
    for options in ({}, {"window": 50}, {"non_causal": True}):
        position = min(last + 5, TOKENS)
        check(filled, filled.q(0, 2, 3), position=position, first=first, last=last,
              options={"token_first": first, "token_last": last, **options},
              window=options.get("window", 0), causal="non_causal" not in options)


def test_s19_empty_range_gives_zero_and_minus_infinity(filled):
    """Also for single rows, when causality or a window leaves them nothing to see."""
    q = filled.q(0, 1, 4)
    got = check(filled, q, position=10, first=12, options={"token_first": 12})
    assert np.isneginf(got.lse[:, :2]).all() and (got.out[:, :2] == 0).all()
    assert np.isfinite(got.lse[:, 2:]).all()
    got = check(filled, q, position=10, first=7, last=7,
                options={"token_first": 7, "token_last": 7})
    assert np.isneginf(got.lse).all() and (got.out == 0).all()
    got = filled.session.attend(q, position=0, q_dtype="f32", token_first=400, token_last=500)
    assert np.isneginf(got.lse).all()


@pytest.mark.parametrize("scale", [0.5, 1.0, 0.0, -0.25, 30.0])
def test_s19_scale(filled, scale):
    check(filled, filled.q(0, 2, 2), options={"scale": scale}, scale=scale)


@pytest.mark.parametrize("accuracy", ["ACCURACY_DEFAULT", "FAST"])
def test_fast_is_near_exact(filled, accuracy):
    """Queries and weights of 8 bits over tiles: 3e-4 of the output's squares at most."""
    q = filled.q(0, 2, 3)
    exact = filled.session.attend(q, 0, q_dtype="f32")
    fast = filled.session.attend(q, 0, q_dtype="f32", accuracy=pb.Accuracy.Value(accuracy))
    error = np.square(fast.out - exact.out).sum() / np.square(exact.out).sum()
    assert 0 < error < 3e-4, f"relMSE {error:.2e}"
    assert np.abs(fast.lse - exact.lse).max() < 0.02


@pytest.mark.parametrize("softcap", [0.5, 5.0, 50.0])
def test_s19_softcap(filled, softcap):
    check(filled, filled.q(0, 2, 2, scale=8), options={"softcap": softcap}, softcap=softcap)


@pytest.mark.parametrize("q_dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("out_dtype", ["f16", "bf16", "f32"])
def test_s20_types_of_q_and_out(filled, q_dtype, out_dtype):
    q = filled.q(1, 2, 3)
    got = filled.session.attend(q, 1, q_dtype=q_dtype, out_dtype=out_dtype)
    out, lse = filled.model.attend(1, values.rounded(q, q_dtype), TOKENS - 3)
    bound = {"f16": 1e-3, "bf16": 8e-3, "f32": 2e-4}[out_dtype]
    assert_attention_close(got.out.astype(np.float32), got.lse, out, lse, out_bound=bound)


def test_s20_rotated_q_and_out(filled):
    q = filled.q(1, 2, 3)
    plain = filled.session.attend(q, 1, q_dtype="f32")
    rotated = filled.session.attend(codec.rotate(q), 1, q_dtype="f32", q_rotated=True,
                                    out_rotated=True)
    assert np.abs(codec.rotate(rotated.out) - plain.out).max() < 1e-5
    assert np.abs(rotated.lse - plain.lse).max() < 1e-5


def test_real_queries(conn):
    """The recorded queries of a model over its own cache, all at once and one by one."""
    shape = Shape(kv_heads=3, k_dim=64, group=128)
    for layer in (0, 15, 29):
        k, v, q = (np.load(DATA / f"layer{layer:02}_{x}.npy") for x in "kvq")
        session, model = Session(conn, shape), Model(shape)
        session.append([(k, v)], 0)
        model.append_unrotated(0, k, v)
        model.learn(session, 0)
        out, lse = model.attend(0, q, 896)
        got = session.attend(q, position=896)
        assert_attention_close(got.out, got.lse, out, lse, out_bound=5e-4, lse_bound=1e-3)
        for t in (0, 50, 127):
            single = session.attend(q[:, t:t + 1], position=896 + t)
            assert np.abs(single.out[:, 0] - got.out[:, t]).max() < 1e-5


@pytest.mark.deadline(90)
def test_long_sessions_are_cut_and_merged(conn):
    """Thousands of tokens go to workers in pieces; the answer is the same attention."""
    long = Filled(conn, Shape([Layer(2, 64)], group=64), tokens=6000, encoder="reference")
    for gqa, tokens in ((1, 1), (4, 1), (2, 40)):
        check(long, long.q(0, gqa, tokens))
    check(long, long.q(0, 2, 40), position=3000)


def test_split_ranges_merge_by_lse(filled):
    """LSE lets a client merge shards: two ranges give what one does."""
    q = filled.q(0, 2, 2)
    whole = filled.session.attend(q, q_dtype="f32")
    parts = [filled.session.attend(q, q_dtype="f32", position=TOKENS - 2, token_first=a,
                                   token_last=b) for a, b in ((0, 150), (150, TOKENS))]
    lse = np.logaddexp(parts[0].lse, parts[1].lse)
    out = sum(p.out * np.exp(p.lse - lse)[..., None] for p in parts)
    assert np.abs(out - whole.out).max() < 1e-4 and np.abs(lse - whole.lse).max() < 1e-5


def test_windowed_layer_binds_unless_narrowed(conn):
    """A layer's own window holds for every query; the call may narrow it, not widen it."""
    shape = Shape([Layer(2, 64, window=100)], group=64)
    windowed = Filled(conn, shape, tokens=1000)
    q = windowed.q(0, 2, 3)
    check(windowed, q, window=100)
    check(windowed, q, options={"window": 30}, window=30)
    check(windowed, q, options={"window": 5000}, window=100)
    check(windowed, q, position=960, window=100)


def test_s04_what_left_the_window_is_a_miss(conn):
    """window + G + seal_lag tokens are kept; older ones are MISS with the reason `window`."""
    shape = Shape([Layer(2, 64, window=100), Layer(2, 64)], group=64)
    windowed = Filled(conn, shape, tokens=1000, seal_lag=10)
    session = windowed.session
    first = windowed.model.layers[0].dropped * 64
    assert first == (1000 - 174) // 64 * 64
    session.read(first, 1000)
    for request in (session.read_request(first - 1, 1000), session.read_request(0, 10),
                    session.truncate_request(first + 98)):
        reply = conn.ask(*request)
        assert (reply.code, reply.status.reason) == ("MISS", pb.MISS_WINDOW), reply
    q = windowed.q(0)
    item = session.attend(q, q_dtype="f32", position=first + 98).item
    assert (CODES[item.status.code], item.status.reason) == ("MISS", pb.MISS_WINDOW)
    assert session.attend(q, q_dtype="f32", position=first + 99).item.status.code == 0
    assert conn.counter("misses_window") >= 3
    session.truncate(first + 99)
    windowed.model.truncate(first + 99)
    windowed.grow(0, 1)  # the next token sees all of its window
    check(windowed, q, window=100)
    inspected = session.inspect()
    assert inspected.tile_pages + inspected.tail_pages < 16 + 6


def test_window_layer_gives_pages_back(conn):
    """However long the session, a window layer holds no more pages."""
    session = Session(conn, Shape([Layer(2, 64, window=100)], group=64, sink=0))
    rng = np.random.default_rng(4)
    seen = []
    for i in range(30):
        kv = tuple(rng.standard_normal((2, 100, 64)).astype(np.float16) for _ in "kv")
        session.append([kv], 100 * i)
        session.read(100 * i, 100 * i + 1)  # waits for the seals
        inspected = session.inspect()
        seen.append(inspected.tile_pages + inspected.tail_pages)
    assert max(seen[5:]) <= 5 and inspected.summary.bytes <= max(seen) * 2 * 64 * 256


def test_s16_items_fail_one_by_one(conn):
    """In a batch each item has its status; one that failed has its place: out 0, lse -inf."""
    good, empty = Filled(conn), Session(conn, SHAPE)
    q = good.q(0, 2, 3)
    bad_q = q.copy()
    bad_q[1, 2, 7] = np.nan
    items = [(good.session, q), (empty, q), (good.session, bad_q), (good.session, q)]
    got = attend(conn, items, q_dtype="f32")
    codes = [CODES[a.item.status.code] for a in got]
    assert codes == ["OK", "INVALID", "DOMAIN", "OK"]  # 3 queries end at length 0
    for a in got[1:3]:
        assert (a.out == 0).all() and np.isneginf(a.lse).all()
    assert np.array_equal(got[0].out, got[3].out) and np.array_equal(got[0].lse, got[3].lse)
    out, lse = good.model.attend(0, q, TOKENS - 3)
    assert_attention_close(got[0].out, got[0].lse, out, lse, out_bound=2e-4)
    assert "head 1" in got[2].item.status.text and "token 2" in got[2].item.status.text


def test_batch_of_many_sessions(conn):
    """256 sessions of different lengths in one call."""
    shape = Shape([Layer(2, 64)], group=64)
    filled = [Filled(conn, shape, tokens=1 + 3 * i, seed=i, encoder="reference")
              for i in range(64)]
    items = [(f.session, f.q(0, 2, 1)) for f in filled] * 4
    got = attend(conn, items, q_dtype="f32")
    assert len(got) == 256
    for i, (answer, (_, q)) in enumerate(zip(got, items)):
        model = filled[i % 64].model
        assert answer.item.length == model.lengths[0]
        out, lse = model.attend(0, q, model.lengths[0] - 1)
        assert_attention_close(answer.out, answer.lse, out, lse, out_bound=2e-4)


@pytest.mark.parametrize("params, code", [
    ({"q_heads": 3}, "INVALID"), ({"q_heads": 0}, "INVALID"), ({"q_heads": 1026}, "INVALID"),
    ({"layer": 2}, "INVALID"), ({"scale": float("nan")}, "DOMAIN"),
    ({"softcap": -1.0}, "INVALID"), ({"softcap": float("inf")}, "INVALID")])
def test_parameters_that_are_not_allowed(filled, params, code):
    values_of = {"layer": 0, "q_heads": 2, **params}
    message = pb.Attend(params=pb.AttendParams(**values_of))
    message.items.add(handle=filled.session.handle)
    reply = filled.session.conn.ask(message, b"\0" * (values_of["q_heads"] * DIM * 2))
    refused = reply.code if reply.code != "OK" else CODES[reply.message.items[0].status.code]
    assert refused == code


def test_misses_name_their_reason(filled):
    q = filled.q(0)
    item = filled.session.attend(q, q_dtype="f32", position=TOKENS, token_last=TOKENS + 1).item
    assert (CODES[item.status.code], item.status.reason) == ("MISS", pb.MISS_NEVER_STORED)
    reply = filled.session.conn.ask(*filled.session.read_request(0, TOKENS + 1))
    assert (reply.code, reply.status.reason) == ("MISS", pb.MISS_NEVER_STORED)
    assert filled.session.conn.counter("misses_never_stored") == 2


# AppendAttend.


@pytest.mark.deadline(90)
def test_decode_steps_of_a_batch(conn):
    """Token by token for several sessions over block boundaries, as a worker decodes."""
    shape = Shape([Layer(2, 64)], group=64)
    batch = [Filled(conn, shape, tokens=60 + i, seed=i) for i in range(6)]
    for step in range(150):
        items, sealed = [], []
        for f in batch:
            kv, q = f.rows(0, 1), f.q(0, 2)
            items.append((f.session, f.model.lengths[0], kv, q))
            sealed.append(f.model.layers[0].sealed)
        got = append_attend(conn, items, q_dtype="f32", rotated=True)
        for f, answer, (_, start, kv, q), blocks in zip(batch, got, items, sealed):
            f.model.append(0, *kv)
            assert answer.item.appended and answer.item.length == start + 1
            assert answer.item.sealed_tokens == blocks * 64
            out, lse = f.model.attend(0, q, start, sealed=blocks)
            assert_attention_close(answer.out, answer.lse, out, lse, out_bound=2e-4)
            f.model.learn(f.session, 0)
        assert step < 150


def test_s03_own_rows_are_read_as_halves(conn):
    """An AppendAttend over several blocks sees its own rows exact, those before as tiles."""
    f = Filled(conn, Shape([Layer(2, 64)], group=64), tokens=200)
    kv, q = f.rows(0, 300), f.q(0, 2, 300)
    before = f.model.layers[0].sealed
    got, = append_attend(conn, [(f.session, 200, kv, q)], q_dtype="f32", rotated=True)
    f.model.append(0, *kv)
    out, lse = f.model.attend(0, q, 200, sealed=before)
    assert_attention_close(got.out, got.lse, out, lse, out_bound=2e-4)
    assert got.item.sealed_tokens == before * 64 == 192
    f.model.learn(f.session, 0)
    later = f.session.attend(q, q_dtype="f32")
    assert later.item.sealed_tokens == 448
    out, lse = f.model.attend(0, q, 200)
    assert_attention_close(later.out, later.lse, out, lse, out_bound=2e-4)


def test_s09_repeated_append_attend_attends(conn):
    """The identical request again stores nothing and is attended to all the same."""
    f = Filled(conn, Shape([Layer(2, 64)], group=64), tokens=100)
    kv, q = f.rows(0, 2), f.q(0, 2, 2)
    items = [(f.session, 100, kv, q)]
    first, = append_attend(conn, items, q_dtype="f32")
    again, = append_attend(conn, items, q_dtype="f32")
    assert again.item.status.code == 0 and again.item.length == 102
    assert np.array_equal(again.out, first.out) and np.array_equal(again.lse, first.lse)
    assert f.session.inspect().layer_lengths[0] == 102


def test_append_attend_items_fail_one_by_one(conn):
    """A conflict, a stale epoch, bad rows and a bad query each concern one item."""
    shape = Shape([Layer(2, 64)], group=64)
    batch = [Filled(conn, shape, tokens=50, seed=i) for i in range(5)]
    kvs, qs = [f.rows(0, 1) for f in batch], [f.q(0) for f in batch]
    kvs[3][0][0, 0, 3] = np.nan
    qs[4][0, 0, 0] = np.inf
    batch[2].session.epoch += 1
    starts = [50, 49, 50, 50, 50]
    items = [(f.session, s, kv, q) for f, s, kv, q in zip(batch, starts, kvs, qs)]
    got = append_attend(conn, items, q_dtype="f32")
    assert [CODES[a.item.status.code] for a in got] == \
        ["OK", "CONFLICT", "STALE_EPOCH", "DOMAIN", "DOMAIN"]
    assert list(got[1].item.status.layer_lengths) == [50]
    # Bad rows are not stored; a bad query comes after its rows are.
    assert [a.item.appended for a in got] == [True, False, False, False, True]
    batch[2].session.epoch -= 1
    assert [f.session.inspect().layer_lengths[0] for f in batch] == [51, 50, 50, 50, 51]
    for a in got[1:]:
        assert (a.out == 0).all() and np.isneginf(a.lse).all()


def test_append_attend_defaults(conn):
    """query_tokens: token_count; position: the queries end with the new rows; range: all."""
    f = Filled(conn, Shape([Layer(2, 64)], group=64), tokens=100)
    kv, q = f.rows(0, 5), f.q(0, 2, 5)
    message, payload = append_attend_request([(f.session, 100, kv, q)], q_dtype="f32",
                                             rotated=True)
    message.items[0].ClearField("query_tokens")
    got, = parse_attended(conn.call(message, payload), [(f.session, q)], 0)
    f.model.append(0, *kv)
    out, lse = f.model.attend(0, q, 100, sealed=1)
    assert_attention_close(got.out, got.lse, out, lse, out_bound=2e-4)
    # Fewer queries than rows: the last ones.
    kv, q = f.rows(0, 4), f.q(0, 2, 2)
    got, = append_attend(conn, [(f.session, 105, kv, q)], q_dtype="f32", rotated=True)
    f.model.append(0, *kv)
    out, lse = f.model.attend(0, q, 107, sealed=1)
    assert_attention_close(got.out, got.lse, out, lse, out_bound=2e-4)


def test_a_session_occurs_once_in_append_attend(filled):
    kv, q = filled.rows(0, 1), filled.q(0)
    request = append_attend_request([(filled.session, TOKENS, kv, q)] * 2, q_dtype="f32")
    assert filled.session.conn.ask(*request).code == "INVALID"
    assert filled.session.inspect().layer_lengths[0] == TOKENS


def test_wrong_payload_of_attend_names_expected_and_got(filled):
    message, payload = attend_request([(filled.session, filled.q(0, 2, 3))], q_dtype="f32")
    reply = filled.session.conn.ask(message, payload[:-4])
    assert reply.code == "INVALID"
    assert str(len(payload)) in reply.status.text and str(len(payload) - 4) in reply.status.text
