"""Reading what is stored and appending it again clones a session to the byte (SEMANTICS.md 21)."""
import numpy as np
import pytest

from support.frame import pb
from support.session import Layer, Run, Session, Shape
from support.wire import Refused

GROUP = 64
SHAPE = Shape([Layer(2, 64), Layer(1, 96, 80)], group=GROUP, sink=GROUP)
RECORDS_FROM = GROUP


def rows(layer, tokens, seed=1):
    rng, ls = np.random.default_rng(seed), SHAPE.layers[layer]
    return tuple(rng.standard_normal((ls.kv_heads, tokens, dim)).astype(np.float16)
                 for dim in (ls.k_dim, ls.v_dim))


def filled(conn, tokens=300, name=None, **options):
    session = Session(conn, SHAPE, name, **options)
    session.append([rows(layer, tokens, layer) for layer in range(2)], 0)
    return session


def contents(session, tokens):
    return [(r.layer, r.first, r.count, r.form, r.data)
            for r in session.read_stored(0, tokens, 0, 2)]


def assert_same_session(conn, a, b, tokens):
    """Bytes, answers, and what they become when both grow."""
    assert contents(a, tokens) == contents(b, tokens)
    q = np.random.default_rng(9).standard_normal((4, 3, 64)).astype(np.float16)
    x, y = a.attend(q), b.attend(q)
    assert np.array_equal(x.out, y.out) and np.array_equal(x.lse, y.lse)
    for session in (a, b):
        session.append([rows(layer, 100, 7 + layer) for layer in range(2)], tokens)
    assert contents(a, tokens + 100) == contents(b, tokens + 100)
    assert a.inspect().layer_sealed == b.inspect().layer_sealed


@pytest.mark.parametrize("encoder", ["reference", "default"])
@pytest.mark.parametrize("tokens", [1, 64, 65, 128, 300, 320])
def test_s21_read_and_append_clones_a_session(conn, encoder, tokens):
    source = filled(conn, tokens, encoder=encoder)
    clone = Session(conn, SHAPE, encoder=encoder)
    reply = clone.append_tiles(source.read_stored(0, tokens, 0, 2))
    assert list(reply.lengths) == [tokens, tokens] and reply.epoch == clone.epoch
    assert_same_session(conn, source, clone, tokens)


def test_s21_clone_in_pieces_and_over_another_connection(daemon, connect, transport):
    """Any cut at block boundaries will do, layer by layer or together."""
    source = filled(connect(daemon), 300)
    clone = Session(connect(daemon.addresses[transport]), SHAPE)
    for layer, cuts in ((1, (0, 64, 192, 300)), (0, (0, 128, 256, 300))):
        for first, last in zip(cuts, cuts[1:]):
            clone.append_tiles(source.read_stored(first, last, layer))
    assert_same_session(clone.conn, source, clone, 300)


def test_runs_say_what_is_stored(conn):
    source = filled(conn, 300)
    runs = source.read_stored(0, 300, 0, 2)
    assert [(r.layer, r.first, r.count, r.form) for r in runs] == [
        (layer, *run) for layer in range(2) for run in (
            (0, 64, pb.ROWS_STORED), (64, 192, pb.RECORDS), (256, 44, pb.ROWS_STORED))]


def test_stored_read_must_meet_whole_records(conn):
    """A range that cuts a sealed block cannot be given as records."""
    source = filled(conn, 300)
    for first, last in ((64, 100), (100, 256), (0, 65)):
        reply = conn.ask(*source.read_request(first, last, stored=True))
        assert reply.code == "INVALID" and reply.status.text
    assert source.read_stored(10, 60)[0].form == pb.ROWS_STORED
    assert source.read_stored(260, 270)[0].form == pb.ROWS_STORED


def test_s09_identical_tiles_again_are_ok(conn):
    source, clone = filled(conn, 256), Session(conn, SHAPE)
    request = clone.append_tiles_request(source.read_stored(0, 256, 0, 2))
    assert list(conn.call(*request).message.lengths) == [256, 256]
    assert list(conn.call(*request).message.lengths) == [256, 256]
    other = clone.append_tiles_request(source.read_stored(0, 192, 0, 2))
    assert conn.ask(*other).code == "CONFLICT"
    assert list(clone.inspect().layer_lengths) == [256, 256]


def test_tiles_need_a_length_that_is_a_multiple_of_group(conn):
    source, clone = filled(conn, 300), Session(conn, SHAPE)
    clone.append([rows(0, 70)], 0)
    reply = conn.ask(*clone.append_tiles_request(source.read_stored(64, 256)))
    assert reply.code == "CONFLICT" and list(reply.status.layer_lengths) == [70]
    clone.append([rows(0, 58, 2)], 70)
    clone.append_tiles(source.read_stored(128, 256))
    assert clone.inspect().layer_lengths[0] == 256


def broken(run, change):
    data = bytearray(run.data)
    change(data)
    copy = Run(run.message(), bytes(data))
    return copy


RECORD = SHAPE.record_bytes(0)
K_SCALE_AT = 64 * GROUP * 2 // 8


def set_half(at, bits):
    def change(data):
        data[at], data[at + 1] = bits & 0xFF, bits >> 8
    return change


@pytest.mark.parametrize("change", [
    set_half(K_SCALE_AT, 0x7C00), set_half(K_SCALE_AT + 2, 0x7E01),
    set_half(RECORD + K_SCALE_AT, 0xFC00), set_half(2 * RECORD - 8, 0x7C00)],
    ids=["inf", "nan", "second head", "last scale"])
def test_s21_records_with_non_finite_scales_are_domain(conn, change):
    """Named by layer, head and block; nothing of the request is stored, in no layer."""
    source, clone = filled(conn, 256), Session(conn, SHAPE)
    runs = source.read_stored(0, 256, 0, 2)
    runs[1] = broken(runs[1], change)
    with pytest.raises(Refused) as refused:
        clone.append_tiles(runs)
    assert refused.value.code == "DOMAIN" and "layer 0" in refused.value.text
    assert list(clone.inspect().layer_lengths) == [0, 0]
    assert clone.inspect().summary.bytes == 0


def test_records_out_of_range_are_domain(conn):
    """Legal halves that decode to more than 40,960 in magnitude."""
    source, clone = filled(conn, 256), Session(conn, SHAPE)
    runs = source.read_stored(0, 256)
    runs[1] = broken(runs[1], set_half(K_SCALE_AT, 0x7BFF))
    with pytest.raises(Refused) as refused:
        clone.append_tiles(runs)
    assert refused.value.code == "DOMAIN"


def test_records_of_noise_never_break_attention(conn):
    """Whatever is accepted can be read and attended to without a NaN."""
    rng = np.random.default_rng(1)
    shape = Shape(kv_heads=1, k_dim=64, group=GROUP, sink=0)
    accepted = 0
    for _ in range(300):
        session = Session(conn, shape)
        data = bytearray(rng.bytes(shape.record_bytes(0)))
        halves = np.frombuffer(data, "<u2").copy()
        if rng.random() < 0.8:  # exponents that are mostly harmless
            halves = (halves & 0x83FF) | (rng.integers(1, 16, halves.shape) << 10)
        message = pb.AppendTiles(handle=session.handle, epoch=session.epoch)
        message.runs.add(layer=0, first_token=0, token_count=GROUP, form=pb.RECORDS)
        reply = conn.ask(message, halves.astype("<u2").tobytes())
        assert reply.code in ("OK", "DOMAIN", "INVALID")
        if reply.code == "OK":
            accepted += 1
            k, v = session.read(0, GROUP, rotated=True, dtype="f32")[0]
            assert np.abs(k).max() <= 40960 and np.abs(v).max() <= 40960
            got = session.attend(np.full((1, 1, 64), 100, np.float16))
            assert np.isfinite(got.out).all() and np.isfinite(got.lse).all()
        session.close()
    assert 0 < accepted < 300


def runs_message(session, runs):
    message = pb.AppendTiles(handle=session.handle, epoch=session.epoch)
    for layer, first, count, form in runs:
        message.runs.add(layer=layer, first_token=first, token_count=count, form=form)
    return message


def run_bytes(runs):
    size = 0
    for layer, _, count, form in runs:
        ls = SHAPE.layers[min(layer, 1)]
        per_token = ls.kv_heads * (ls.k_dim + ls.v_dim) * 2
        size += count // GROUP * ls.kv_heads * SHAPE.record_bytes(min(layer, 1)) \
            if form == pb.RECORDS else count * per_token
    return size


@pytest.mark.parametrize("runs", [
    [],
    [(0, 0, 64, pb.RECORDS)],                                 # the sink is rows
    [(0, 64, 63, pb.RECORDS)],                                # not whole blocks
    [(0, 10, 64, pb.RECORDS)],                                # not on a boundary
    [(0, 0, 64, pb.ROWS)],                                    # not a stored form
    [(0, 0, 64, pb.ROWS_STORED), (0, 128, 64, pb.RECORDS)],   # a gap
    [(0, 0, 64, pb.ROWS_STORED), (0, 0, 64, pb.ROWS_STORED)],  # an overlap
    [(1, 0, 64, pb.ROWS_STORED), (0, 0, 64, pb.ROWS_STORED)],  # layers descend
    [(0, 0, 128, pb.ROWS_STORED), (0, 128, 64, pb.RECORDS)],  # records after tail rows
    [(0, 64, 0, pb.RECORDS)],
    [(2, 0, 64, pb.ROWS_STORED)],                             # no such layer
], ids=lambda runs: "-".join(f"{r[0]}.{r[1]}.{r[2]}.{r[3]}" for r in runs) or "none")
def test_runs_that_are_not_allowed(conn, runs):
    session = Session(conn, SHAPE)
    reply = conn.ask(runs_message(session, runs), b"\0" * run_bytes(runs))
    assert reply.code == "INVALID" and reply.status.text, reply
    assert list(session.inspect().layer_lengths) == [0, 0]


def test_huge_runs_cost_nothing(conn):
    """Token counts near 2^64 neither overflow a size nor take memory."""
    session = Session(conn, SHAPE)
    for first, count in ((0, 2**63), (2**64 - 64, 64), (2**63, 2**63), (0, 2**64 - 64)):
        for form in (pb.RECORDS, pb.ROWS_STORED):
            reply = conn.ask(runs_message(session, [(0, first, count, form)]), b"\0" * 64)
            assert reply.code in ("INVALID", "TOO_LARGE"), reply
    for first, last in ((0, 2**64 - 1), (2**64 - 1, 2**64 - 1), (5, 3)):
        reply = conn.ask(*session.read_request(first, last))
        assert reply.code in ("MISS", "INVALID", "TOO_LARGE", "OK")
        assert reply.code != "OK" or not reply.payload
