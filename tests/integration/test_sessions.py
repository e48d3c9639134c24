"""Sessions: who may hold them, how long they live, epochs, lengths, lists."""
import numpy as np
import pytest

from support.frame import pb
from support.session import Session, Shape, open_message, register
from support.wire import Refused

SHAPE = Shape(layers=3, kv_heads=2, k_dim=64, group=64)


def rows(tokens, seed=1, layers=1):
    rng = np.random.default_rng(seed)
    return [tuple(rng.standard_normal((2, tokens, 64)).astype(np.float16) for _ in "kv")
            for _ in range(layers)]


def refusal(function, *args, **options):
    with pytest.raises(Refused) as refused:
        function(*args, **options)
    return refused.value


def test_s12_named_sessions_survive_their_client(daemon, connect):
    first = connect(daemon)
    mine = Session(first, SHAPE, "kept")
    mine.append(rows(100, layers=3), 0)
    Session(first, SHAPE).append(rows(10), 0)
    looker = connect(daemon)
    assert looker.counter("sessions_open") == 2
    first.close()
    while looker.counter("sessions_open") > 1:
        pass
    again = Session(connect(daemon), SHAPE, "kept", mode="existing")
    assert not again.opened.created and again.lengths == [100] * 3 and again.epoch == mine.epoch
    # The handle of the dead connection means nothing here.
    other = connect(daemon)
    assert refusal(other.call, pb.CloseSession(handle=mine.handle)).code == "NOT_FOUND"


def test_s12_unnamed_sessions_end_with_their_handle(conn):
    session = Session(conn, SHAPE)
    session.append(rows(100, layers=3), 0)
    assert conn.counter("sessions_open") == 1
    session.close()
    assert conn.counter("sessions_open") == 0
    while conn.counter("pages_sink"):
        pass
    assert refusal(session.append, rows(1), 100).code == "NOT_FOUND"


def test_named_session_outlives_close_and_ends_with_drop(conn):
    session = Session(conn, SHAPE, "s")
    session.append(rows(10), 0)
    session.close()
    again = Session(conn, SHAPE, "s")
    assert again.lengths[0] == 10 and again.handle != session.handle
    twice = Session(conn, SHAPE, "s")
    assert twice.handle != again.handle
    again.drop()
    for call in (lambda: twice.append(rows(1), 10), lambda: twice.read(0, 1),
                 lambda: twice.truncate(0), twice.inspect):
        assert refusal(call).code == "NOT_FOUND"
    fresh = Session(conn, SHAPE, "s")
    assert fresh.opened.created and fresh.lengths == [0] * 3


def test_dropped_session_gives_its_memory_back_though_it_is_held(start, connect):
    """An idle client with a handle must not keep what another has dropped; not even while an
    append is on its way, which then stores nothing."""
    daemon = start("--workers", "1", env={"KVARND_TEST_JITTER_US": "100000",
                                          "KVARND_TEST_JITTER_SEED": "2"})
    holder, other = connect(daemon), connect(daemon)
    held = [Session(holder, SHAPE, f"s{i}") for i in range(3)]
    for session in held:
        session.append(rows(300, layers=3), 0)
    request_id = holder.send(*held[0].append_request(rows(1000), 300))
    waiting = holder.send(*held[0].append_request(rows(1), 1300))
    holder.ping()
    for session in held:
        other.call(pb.DropSession(name=session.name))
    assert other.counter("sessions_open") == 0
    assert holder.recv(request_id).code == holder.recv(waiting).code == "NOT_FOUND"
    while any(other.counter(f"pages_{c}") for c in ("tiles", "sink", "tail")):
        pass
    for session in held:
        assert refusal(session.inspect).code == "NOT_FOUND"
        session.close()


def test_drop_by_name_and_create_again_gives_new_epochs(conn):
    """SEMANTICS 7: an epoch is never used again for a name."""
    seen = set()
    for _ in range(50):
        session = Session(conn, SHAPE, "s", mode="create")
        assert session.epoch not in seen
        seen.add(session.epoch)
        conn.call(pb.DropSession(name="s"))


def test_open_modes(conn):
    assert refusal(Session, conn, SHAPE, "s", mode="existing").code == "NOT_FOUND"
    assert Session(conn, SHAPE, "s", mode="create").opened.created
    assert refusal(Session, conn, SHAPE, "s", mode="create").code == "CONFLICT"
    assert not Session(conn, SHAPE, "s", mode="existing").opened.created
    assert not Session(conn, SHAPE, "s").opened.created
    opened = conn.call(open_message(conn, None, "s", mode="existing")).message
    assert opened.shape_id == register(conn, SHAPE)


def test_open_with_another_shape_is_a_conflict(conn):
    Session(conn, SHAPE, "s")
    other = Shape(layers=3, kv_heads=2, k_dim=64, group=64, k_bits=4)
    assert refusal(Session, conn, other, "s").code == "CONFLICT"


def test_shapes_are_the_same_whoever_registers_them(daemon, connect):
    """The fingerprint is the description's, however layers are grouped."""
    grouped = pb.Shape(model="m", group=64, k_bits=2, v_bits=2)
    grouped.layer_groups.add(layers=3, kv_heads=2, k_dim=64)
    a = connect(daemon).call(pb.RegisterShape(shape=grouped)).message
    b = connect(daemon).call(pb.RegisterShape(shape=SHAPE.message)).message
    assert a.fingerprint == b.fingerprint and len(a.fingerprint) == 16
    assert a.shape_id == b.shape_id
    grouped.model = "n"
    c = connect(daemon).call(pb.RegisterShape(shape=grouped)).message
    assert c.fingerprint != a.fingerprint


def test_s07_stale_epoch_names_the_current_one(daemon, connect):
    """Every changing call with an old epoch is refused with the epoch and the lengths that hold."""
    a = Session(connect(daemon), SHAPE, "s")
    b = Session(connect(daemon), SHAPE, "s")
    a.append(rows(100, layers=3), 0)
    a.truncate(70)
    assert a.epoch != b.epoch
    for request in (b.append_request(rows(1), 100), b.truncate_request(10),
                    b.append_request(rows(1), 70)):
        reply = b.conn.ask(*request)
        assert reply.code == "STALE_EPOCH" and reply.status.epoch == a.epoch
        assert set(reply.status.layer_lengths) == {70}
    b.epoch = a.epoch
    b.append(rows(1), 70)
    assert b.conn.counter("refused_stale_epoch") == 3


def test_s07_truncate_that_removes_nothing_keeps_the_epoch(conn):
    session = Session(conn, SHAPE, "s")
    session.append(rows(10, layers=3), 0)
    before = session.epoch
    session.truncate(10)
    session.truncate(1000)
    assert session.epoch == before
    assert list(session.truncate(9).layer_lengths) == [9] * 3
    assert session.epoch != before


def test_s07_takeover_makes_other_holders_stale(daemon, connect):
    a = Session(connect(daemon), SHAPE, "s")
    a.append(rows(10), 0)
    b = Session(connect(daemon), SHAPE, "s", takeover=True)
    assert b.epoch != a.epoch and b.lengths[0] == 10
    assert refusal(a.append, rows(1), 10).code == "STALE_EPOCH"
    assert b.append(rows(1), 10).length == 11
    assert a.read(0, 11)[0][0].shape == (2, 11, 64)  # reading needs no epoch


def test_s09_conflict_names_the_lengths_of_the_layers_asked_for(conn):
    session = Session(conn, SHAPE)
    session.append(rows(10), 0, layer=0)
    session.append(rows(20), 0, layer=1)
    reply = conn.ask(*session.append_request(rows(1, layers=2), 10, layer=0))
    assert reply.code == "CONFLICT" and list(reply.status.layer_lengths) == [10, 20]
    assert reply.status.epoch == session.epoch
    assert list(session.inspect().layer_lengths) == [10, 20, 0]


def test_s08_append_to_several_layers_is_one_step(conn):
    """With one layer at another length none of them is stored."""
    session = Session(conn, SHAPE)
    session.append(rows(5), 0, layer=1)
    assert refusal(session.append, rows(7, layers=3), 0).code == "CONFLICT"
    assert list(session.inspect().layer_lengths) == [0, 5, 0]
    assert refusal(session.append, rows(7, layers=3), 0, layer=1).code == "INVALID"


def test_two_clients_append_in_turn(daemon, connect, transport):
    """Each sees at once what the other has stored."""
    address = daemon.addresses[transport]
    sides = [Session(connect(address), SHAPE, "shared") for _ in range(2)]
    stored, length = [], 0
    for turn in range(40):
        kv = rows(1 + turn % 7, seed=turn)
        length = sides[turn % 2].append(kv, length, rotated=True).length
        stored.append(kv[0][0])
        k, _ = sides[1 - turn % 2].read(length - 1, length, rotated=True)[0]
        assert np.array_equal(k[:, 0], kv[0][0][:, -1])
    assert length == sum(k.shape[1] for k in stored)


def test_s11_truncate_cuts_every_layer_to_at_most_n(conn):
    session = Session(conn, SHAPE)
    for layer, tokens in enumerate((10, 200, 50)):
        session.append(rows(tokens, seed=layer), 0, layer=layer)
    reply = session.truncate(64)
    assert list(reply.layer_lengths) == [10, 64, 50] and not reply.lossy_tail
    inspected = session.inspect()
    assert inspected.summary.length == 10 and list(inspected.layer_lengths) == [10, 64, 50]


def test_s11_cut_inside_a_sealed_block_is_lossy_and_says_so(conn):
    """The rows that come back are what the block decoded to, as halves; then it grows again."""
    session = Session(conn, SHAPE)
    kv = rows(200)
    session.append(kv, 0)
    before = session.read(0, 150, rotated=True)[0]
    reply = session.truncate(150)
    assert reply.lossy_tail and list(reply.layer_lengths) == [150, 0, 0]
    after = session.read(0, 150, rotated=True)[0]
    for x, y in zip(before, after):
        assert np.array_equal(x, y)  # fp16 of what was decoded
    assert not session.truncate(140).lossy_tail  # open already
    session.append(rows(60, seed=9), 140)
    assert session.inspect().layer_sealed[0] == 192
    assert not session.truncate(50).lossy_tail  # in the sink: exact


def test_list_sessions_pages_in_order(daemon, connect):
    conn = connect(daemon)
    names = sorted([f"list/{i:03}" for i in range(150)] + ["a", "list", "listing", "z"])
    for name in names:
        Session(conn, SHAPE, name)
    Session(conn, SHAPE)  # unnamed: in no list
    for limit in (1, 7, 64, 256):
        for prefix in ("", "list/", "nothing"):
            assert listed(conn, prefix, limit) == [n for n in names if n.startswith(prefix)]
    reply = conn.call(pb.ListSessions()).message
    assert len(reply.sessions) == 64 and reply.more
    reply = conn.call(pb.ListSessions(after="list/148", limit=2)).message
    assert [s.name for s in reply.sessions] == ["list/149", "listing"] and reply.more


def listed(conn, prefix, limit):
    names, after = [], None
    while True:
        message = pb.ListSessions(prefix=prefix, limit=limit)
        if after is not None:
            message.after = after
        reply = conn.call(message).message
        assert len(reply.sessions) <= limit
        names += [s.name for s in reply.sessions]
        if not reply.more:
            return names
        after = names[-1]


def test_list_of_the_longest_names_fits_a_reply(conn):
    names = [f"{i:03}" + "\u00e9" * 126 + "x" for i in range(256)]  # 256 bytes each
    for name in names:
        Session(conn, Shape(model="m" * 256), name)
    assert listed(conn, "", 256) == names


def test_summary_of_a_session(daemon, connect):
    conn = connect(daemon)
    session = Session(conn, SHAPE, "s")
    session.append(rows(130, layers=2), 0)
    Session(connect(daemon), SHAPE, "s")
    summary = conn.call(pb.ListSessions(prefix="s")).message.sessions[0]
    assert (summary.name, summary.model, summary.length) == ("s", "m", 0)
    assert summary.epoch == session.epoch and summary.handles == 2
    assert summary.bytes > 0 and summary.idle_ms < 60000


def test_inspect_says_what_a_session_holds(conn):
    """Bytes by class are those of FORMAT.md: sink and tail as halves, sealed blocks as tiles."""
    session = Session(conn, SHAPE, "s", encoder="reference", seal_lag=7)
    session.append(rows(64 * 4 + 5, layers=3), 0)
    session.read(0, 261, 0, 3)  # waits for the seals
    seen = session.inspect()
    assert seen.summary.name == "s" and seen.summary.handles == 1
    assert seen.shape.model == "m" and seen.shape.group == 64 and seen.shape.sink_tokens == 64
    assert len(seen.fingerprint) == 16 and seen.encoder == pb.REFERENCE and seen.seal_lag == 7
    assert list(seen.layer_lengths) == [261] * 3
    assert list(seen.layer_sealed) == [192] * 3  # 261 - 7 < 256
    half_page = 2 * 64 * (64 + 64) * 2
    tile_page = 2 * (-(-(SHAPE.record_bytes(0)) // 64) * 64)
    assert (seen.sink_pages, seen.sink_bytes) == (3, 3 * half_page)
    assert (seen.tile_pages, seen.tile_bytes) == (6, 6 * tile_page)
    assert (seen.tail_pages, seen.tail_bytes) == (6, 6 * half_page)
    assert seen.reserved_bytes == 6 * tile_page
    assert (seen.pages_reference, seen.pages_refined) == (6, 0)
    by_name = conn.call(pb.InspectSession(name="s")).message
    assert list(by_name.layer_sealed) == list(seen.layer_sealed)


def test_names_are_utf8_without_control_bytes(conn):
    for name in ("a/b:c d", "\u00fc\u4e2d\U0001f600", "x" * 256):
        assert Session(conn, SHAPE, name).opened.created
    for name in ("", "a\nb", "\x7f", "y" * 257):
        assert refusal(Session, conn, SHAPE, name).code == "INVALID"


def test_handles_are_not_reused(conn):
    seen = set()
    for _ in range(300):
        session = Session(conn, SHAPE, "s")
        assert session.handle not in seen
        seen.add(session.handle)
        session.close()
    assert refusal(conn.call, pb.CloseSession(handle=next(iter(seen)))).code == "NOT_FOUND"


def test_seal_lag_above_group_is_refused(conn):
    assert refusal(Session, conn, SHAPE, seal_lag=65).code == "INVALID"
