"""kvarn.Client against the real daemon."""
import numpy as np
import pytest
from attention import HEADS, K_DIM, Q_HEADS, V_DIM, attend, rows, small_shape

import kvarn
from kvarn import codec


@pytest.fixture(params=["unix", "tcp"])
def client(request, daemon):
    with kvarn.Client(getattr(daemon, request.param), deadline=20) as one:
        yield one


def test_server_says_who_it_is(client):
    assert client.server.version and client.server.payload_bytes_max >= 1 << 20
    assert client.server.credit_requests > 1 and client.ping() >= 0


def test_checksums_both_ways(daemon):
    if kvarn._frame.xxh3() is None:
        pytest.skip("neither package xxhash nor libxxhash is installed")
    with kvarn.Client(daemon.unix, checksum="on") as client:
        assert "payload_xxh3" in client.server.features
        k, v, q = rows(5)
        session = client.open(shape=small_shape())
        session.append(k, v)
        assert session.attend(q).length == 5


def test_append_attend_read(client):
    k, v, q = rows(40)
    with client.open(shape=small_shape()) as session:
        assert session.created and session.lengths == (0, 0)
        first = session.append(k[:, :30], v[:, :30], layer=1)
        assert (first.length, first.repeated) == (30, False) and session.lengths == (0, 30)
        result = session.append_attend(k[:, 30:], v[:, 30:], q[:, 30:], layer=1)
        assert result.appended and result.length == 40 and session.lengths == (0, 40)
        out, lse = attend(q[:, 30:], k, v, 30)
        assert result.out.shape == (Q_HEADS, 10, V_DIM) and result.out.dtype == np.float32
        assert np.abs(result.out - out).max() < 2e-2 and np.abs(result.lse - lse).max() < 2e-2
        again = session.attend(q[:, 30:], layer=1)
        assert (again.out == result.out).all() and (again.lse == result.lse).all()
        k2, v2 = session.read(1)
        assert k2.shape == k.shape and np.abs(k2 - k).max() < 5e-3 and np.abs(v2 - v).max() < 5e-3
        k3, v3 = session.read(1, 3, 9, what="v", layout="token", dtype="f32")
        assert k3.shape == (0, HEADS, K_DIM) and v3.shape == (6, HEADS, V_DIM)
        assert (v3 == v2[:, 3:9].swapaxes(0, 1)).all() or np.abs(
            v3 - v2[:, 3:9].swapaxes(0, 1).astype(np.float32)).max() < 5e-3
        rotated, _ = session.read(1, rotated=True)
        assert np.abs(codec.rotate(k.astype(np.float32)) - rotated).max() < 5e-3


def test_options_of_attention(client):
    k, v, q = rows(20)
    with client.open(shape=small_shape()) as session:
        session.append(k, v)
        options = kvarn.AttendOptions(scale=0.5, out_dtype="f16")
        result = session.attend(q[:, :1], options=options, position=7)
        assert result.out.dtype == np.float16
        assert np.abs(result.out - attend(q[:, :1], k, v, 7, 0.5)[0]).max() < 2e-2
        part = session.attend(q[:, :1], token_first=5, token_last=9)
        assert np.abs(part.out - attend(q[:, :1], k[:, 5:9], v[:, 5:9], 3)[0]).max() < 2e-2
        all_rows = session.attend(q, options=kvarn.AttendOptions(causal=False))
        assert np.abs(all_rows.out - attend(q, k, v, 99)[0]).max() < 2e-2


def test_layouts_and_types(client):
    k, v, _ = rows(6, dtype=np.float32)
    with client.open(shape=small_shape()) as session:
        session.append(k.swapaxes(0, 1), v.swapaxes(0, 1), layout="token")
        session.append_layers([(k, v)], 1)
        one, two = session.read(0), session.read(1)
        assert all((a == b).all() for a, b in zip(one, two)) and session.length == 6
        both = session.append_layers([(k, v), (k, v)])
        assert both.length == 12 and session.lengths == (12, 12)
        assert len(session.read_layers()) == 2


def test_bf16_where_ml_dtypes_is(client):
    k, v, q = rows(4, dtype=np.float32)
    with client.open(shape=small_shape()) as session:
        try:
            import ml_dtypes
        except ImportError:
            with pytest.raises(ValueError, match="ml_dtypes"):
                session.read(0, 0, 0, dtype="bf16")
            return
        bf16 = ml_dtypes.bfloat16
        session.append(k.astype(bf16), v.astype(bf16))
        k2, _ = session.read(dtype="bf16")
        assert k2.dtype == bf16 and np.abs(k2.astype(np.float32) - k).max() < 0.05
        options = kvarn.AttendOptions(out_dtype="bf16")
        assert session.attend(q.astype(bf16), options=options).out.dtype == bf16


def test_records_are_the_codecs(client):
    """Sealed blocks as read `stored` decode with kvarn.codec to what `read` gives."""
    shape = small_shape(group=64, sink_tokens=64)
    k, v, _ = rows(200)
    with client.open(shape=shape) as session, client.open(shape=shape) as copy:
        session.append_layers([(k, v), (k, v)])
        stored = session.read_stored()
        assert [r.form for r in stored.runs if r.layer == 1] == ["rows_stored", "records",
                                                                 "rows_stored"]
        records = next(r.records for r in stored.runs if r.form == "records")
        spec = codec.TileSpec(K_DIM, V_DIM, 64)
        assert records.shape == (2, HEADS, spec.record_bytes)
        k2, v2 = codec.decode(spec, records)
        k3, v3 = session.read(0, 64, 192, dtype="f32", rotated=True)
        assert (k2.swapaxes(0, 1).reshape(k3.shape) == k3).all()
        assert (v2.swapaxes(0, 1).reshape(v3.shape) == v3).all()
        assert copy.append_tiles(stored) == (200, 200)
        assert bytes(copy.read_stored().payload) == bytes(stored.payload)
        copy.append(k[:, :1], v[:, :1])
        assert copy.lengths == (201, 200)


def test_fork(client):
    """A copy, bit by bit, that goes on by itself."""
    k, v, q = rows(200)
    with client.open(shape=small_shape(group=64), seal_lag=5, encoder="reference") as session:
        session.append_layers([(k, v), (k, v)])
        session.append(k[:, :3], v[:, :3], 1)
        name = f"python-fork-{client._core.address.is_tcp}"
        with session.fork(name) as copy:
            assert copy.lengths == (200, 200) and copy.created and copy.name == name
            found = copy.inspect()
            assert (found.seal_lag, found.encoder) == (5, "reference")
            assert found.fingerprint == session.shape.fingerprint()
            stored = [s.read_stored(0, 2, 0, 200) for s in (session, copy)]
            assert bytes(stored[0].payload) == bytes(stored[1].payload)
            copy.append_layers([(-k, -v), (k, v)])
            assert (copy.lengths, session.lengths) == ((400, 400), (200, 203))
            both = np.concatenate([k, -k], axis=1), np.concatenate([v, -v], axis=1)
            assert np.abs(copy.attend(q).out - attend(q, *both, 200)[0]).max() < 1
            assert np.abs(session.attend(q).out - attend(q, k, v, 0)[0]).max() < 1
        with pytest.raises(kvarn.Conflict):
            session.fork(name)
        with session.fork(length=100) as short:
            assert short.lengths == (100, 100)
            both = [s.read(token_last=100, dtype="f32")[0] for s in (short, session)]
            assert np.abs(both[0] - both[1]).max() < 0.01
        with pytest.raises(kvarn.Miss):
            session.fork(length=201)
        client.drop(name)


def test_fork_of_many_is_all_or_none(client):
    k, v, _ = rows(5)
    names = [f"python-forks-{client._core.address.is_tcp}-{i}" for i in range(2)]
    sessions = [client.open(shape=small_shape()) for _ in range(3)]
    for i, session in enumerate(sessions, 1):
        session.append_layers([(k[:, :i], v[:, :i])] * 2)
    assert [s.lengths for s in client.fork(sessions)] == [(1, 1), (2, 2), (3, 3)]
    with client.open(names[1], small_shape()):
        with pytest.raises(kvarn.Conflict):
            client.fork(sessions[:2], names)
        assert [s.name for s in client.sessions(names[0][:-1])] == names[1:]
    with pytest.raises(ValueError, match="names: expected 3, got 2"):
        client.fork(sessions, names)
    assert client.fork([]) == []
    client.drop(names[1])


def test_reorder(client):
    """Sessions take each other's tokens and keep names; those that change have new epochs."""
    name = f"python-reorder-{client._core.address.is_tcp}"
    sessions = [client.open(name if i == 0 else "", small_shape()) for i in range(5)]
    data = [rows(70 + i, seed=i) for i in range(5)]
    for session, (k, v, _) in zip(sessions, data):
        session.append_layers([(k, v), (k, v)])
    epochs = [s.epoch for s in sessions]
    client.reorder([(sessions[:3], [2, 1, 2]), (sessions[3:], [1, 0])])
    sources = [2, 1, 2, 4, 3]
    assert [s.lengths for s in sessions] == [(70 + i,) * 2 for i in sources]
    assert [s.epoch == e for s, e in zip(sessions, epochs)] == [False, True, True, False, False]
    for session, i in zip(sessions, sources):
        k, v, q = data[i]
        assert np.abs(session.attend(q).out - attend(q, k, v, 0)[0]).max() < 0.01
        session.append(k, v)
    assert client.inspect(name).lengths == (144, 72)
    for sources in ([0, 1], [0, 1, 3], [-1, 1, 2]):
        with pytest.raises(ValueError, match="reorder: expected 3 indices"):
            client.reorder([(sessions[:3], sources)])
    with pytest.raises(kvarn.Invalid):
        client.reorder([([sessions[0]] * 2, [0, 1])])
    client.reorder([])
    client.drop(name)


def test_batch_over_sessions(client):
    shape = small_shape()
    sessions = [client.open(shape=shape) for _ in range(5)]
    data = [rows(3 + i, seed=i) for i in range(5)]
    results = client.append_attend(
        [kvarn.AppendAttendItem(s, k, v, q) for s, (k, v, q) in zip(sessions, data)], 0)
    for result, session, (k, v, q) in zip(results, sessions, data):
        assert result.error is None and result.appended and session.lengths[0] == k.shape[1]
        assert np.abs(result.out - attend(q, k, v, 0)[0]).max() < 2e-2
    again = client.attend([kvarn.AttendItem(s, d[2]) for s, d in zip(sessions, data)], 0)
    assert all((a.out == b.out).all() for a, b in zip(again, results))


def test_batch_items_fail_one_by_one(client):
    shape, (k, v, q) = small_shape(), rows(4)
    good, bad = client.open(shape=shape), client.open(shape=shape)
    one, two = client.append_attend([kvarn.AppendAttendItem(good, k, v, q),
                                     kvarn.AppendAttendItem(bad, k, v, q, start=9)], 0)
    assert one.error is None and isinstance(two.error, kvarn.Conflict) and not two.appended
    assert two.error.lengths == (0,) and np.isneginf(two.lse).all() and not two.out.any()
    assert good.lengths == (4, 0) and bad.lengths == (0, 0)
    assert bad.append_attend(k, v, q).appended


def test_errors_say_what_holds(client):
    k, v, q = rows(4)
    session = client.open(shape=small_shape())
    session.append(k, v)
    with pytest.raises(kvarn.Conflict) as conflict:
        session.append(k, v, start=7)
    assert conflict.value.lengths == (4,) and conflict.value.epoch == session.epoch
    with pytest.raises(kvarn.Domain):
        session.append(np.full_like(k, np.nan), v)
    with pytest.raises(kvarn.Miss) as miss:
        session.read(0, 0, 99)
    assert miss.value.reason == "never_stored" and isinstance(miss.value, kvarn.Error)
    with pytest.raises(kvarn.Miss):
        session.attend(q, options=kvarn.AttendOptions(causal=False), token_last=50)
    with pytest.raises(kvarn.NotFound):
        client.inspect("no-such-session")
    with pytest.raises(kvarn.NotFound):
        client.open("no-such-session", mode="existing")
    with pytest.raises(kvarn.Invalid):
        client.open("x" * 300, small_shape())
    with pytest.raises(kvarn.DeadlineExceeded):
        session.attend(q, deadline=0)
    with pytest.raises(ValueError, match="k: expected shape"):
        session.append(k[:, :, :8], v)
    with pytest.raises(ValueError, match="q: expected"):
        session.attend(q[:, :, :8])
    assert session.append(k, v).length == 8


def test_truncate_and_epoch(client):
    k, v, _ = rows(10)
    session = client.open(shape=small_shape())
    session.append_layers([(k, v), (k, v)])
    epoch = session.epoch
    result = session.truncate(6)
    assert result.lengths == session.lengths == (6, 6) and not result.lossy_tail
    assert session.epoch != epoch and session.append(k, v).length == 16


def test_takeover_makes_others_stale(daemon):
    k, v, _ = rows(3)
    with kvarn.Client(daemon.unix) as one, kvarn.Client(daemon.tcp) as two:
        mine = one.open("python-takeover", small_shape())
        mine.append(k, v)
        theirs = two.open("python-takeover", takeover=True)
        assert theirs.lengths == (3, 0) and theirs.shape == mine.inspect().shape
        with pytest.raises(kvarn.StaleEpoch) as stale:
            mine.append(k, v)
        assert stale.value.epoch == theirs.epoch and stale.value.lengths == (3, 0)
        mine.refresh()
        assert mine.append(k, v).length == 6
        theirs.drop()
        with pytest.raises(kvarn.NotFound):
            mine.append(k, v)


def test_pipelining(client):
    """Many calls in flight, more than the daemon's credit; effects in the order of sending."""
    k, v, q = rows(1)
    session = client.open(shape=small_shape())
    pending = []
    for _ in range(300):
        pending.append(client.submit(session.append, k, v))
        pending.append(client.submit(session.attend, q))
    results = [p.result() for p in pending]
    assert [r.length for r in results[::2]] == list(range(1, 301))
    assert [r.length for r in results[1::2]] == list(range(1, 301))
    assert session.lengths == (300, 0) and pending[0].result() == results[0]


def test_pipelining_of_large_payloads(client):
    """Requests and replies of many megabytes cross on one connection without a deadlock."""
    k, v, _ = rows(2000, dtype=np.float32)
    session = client.open(shape=small_shape())
    pending = []
    for _ in range(8):
        pending.append(client.submit(session.append, k, v))
        pending.append(client.submit(session.read, dtype="f32", token_last=2000))
    results = [p.result() for p in pending]
    assert session.lengths == (16000, 0) and results[1][0].shape == (HEADS, 2000, K_DIM)


def test_refused_append_in_a_pipeline(client):
    """What follows a refused append is refused too, and the session goes on from what holds."""
    k, v, _ = rows(2)
    session = client.open(shape=small_shape())
    first = client.submit(session.append, np.full_like(k, np.inf), v)
    second = client.submit(session.append, k, v)
    with pytest.raises(kvarn.Domain):
        first.result()
    with pytest.raises(kvarn.Conflict):
        second.result()
    assert session.append(k, v).length == 2


def test_pending_that_nobody_asks_for(client):
    k, v, _ = rows(1)
    session = client.open(shape=small_shape())
    for _ in range(600):
        client.submit(session.append, k, v)
    assert client.ping() >= 0 and client.submit(session.attend, rows(1)[2]).result().length == 600


def test_admin(client):
    """stats, sessions, inspect, ping, drop."""
    k, v, _ = rows(300)
    names = [f"python-admin-{client._core.address.is_tcp}-{i:03}" for i in range(3)]
    for name in names:
        with client.open(name, small_shape(group=64), encoder="reference", seal_lag=3) as session:
            session.append_layers([(k, v), (k, v)])
    listed = client.sessions("python-admin-" + str(client._core.address.is_tcp))
    assert [s.name for s in listed] == names
    assert all(s.length == 300 and s.model == "python-tests" and s.bytes > 0 for s in listed)
    found = client.inspect(names[0])
    assert found.summary.name == names[0] and found.lengths == (300, 300)
    assert found.encoder == "reference" and found.seal_lag == 3 and found.sealed == (256, 256)
    assert found.fingerprint == found.shape.fingerprint() and found.pages_reference == 6
    assert found.tile_bytes > 0 and found.sink_bytes > 0 and found.tail_bytes > 0
    stats = client.stats()
    assert stats.ops["append"].count >= 3 and stats.ops["append"].bytes_in > 0
    assert stats.counters
    for name in names:
        client.drop(name)
    assert client.sessions("python-admin-" + str(client._core.address.is_tcp)) == []


def test_lives(client):
    """TTL, priority, pin and evict, of a session and by name."""
    name = f"python-lives-{client._core.address.is_tcp}"
    k, v, q = rows(300)
    shape = small_shape(group=64, sink_tokens=0)
    with client.open(name, shape, ttl=1000, priority=7) as session:
        session.append_layers([(k, v), (k, v)])
        summary = client.inspect(name).summary
        assert 990 < summary.ttl_left <= 1000 and summary.priority == 7
        assert summary.pin_left is None and summary.missing_tokens == 0
        assert client.touch(name, ttl=0, priority=3) == kvarn.Lifetime(None, 3)
        assert session.touch() == kvarn.Lifetime(None, 3) and session.inspect().ttl is None
        pinned = session.pin(50)
        assert pinned.pinned_bytes > 0 and pinned.budget_left_bytes > 0
        details = session.inspect()
        assert details.pinned_bytes == pinned.pinned_bytes and 40 < details.summary.pin_left <= 50
        assert session.evict() == kvarn.Evicted(0, 0, (0, 0))
        client.unpin(name)
        assert client.inspect(name).pinned_bytes == 0
        gone = client.evict(name, 2)
        assert (gone.blocks, gone.missing) == (2, (128, 256)) and gone.freed_bytes > 0
        assert session.inspect().missing == (128, 256)
        assert client.inspect(name).summary.missing_tokens == 128
        with pytest.raises(kvarn.Miss) as caught:
            session.attend(q[:, -1:])
        assert caught.value.reason == "evicted"
        assert session.evict().missing == (0, 300)
        session.truncate(0)
        assert session.append_layers([(k, v), (k, v)]).length == 300
    for bad in (-1, float("nan")):
        with pytest.raises(ValueError, match="ttl: expected seconds"):
            client.touch(name, ttl=bad)
    with pytest.raises(kvarn.Invalid):
        client.touch(name, priority=101)
    client.drop(name)
    for call in (client.touch, client.pin, client.unpin, client.evict):
        with pytest.raises(kvarn.NotFound):
            call(name)


def cold(client, session, data):
    """Store rows in both layers, wait until their blocks are on disk, and take them from memory."""
    k, v, _ = data
    session.append_layers([(k, v), (k, v)])
    blocks = session.length // session.shape.group
    while client.stats().counters["cold_blocks_written"] < blocks:
        client.ping()
    assert session.evict(blocks).blocks == blocks


def test_prefetch(start, tmp_path):
    """A session comes back from disk, waited for by polling; what else prefetch answers."""
    with kvarn.Client(start("--cold-dir", tmp_path / "cold").unix) as client:
        assert client.jobs() == []
        data = rows(64 * 8 + 3)
        session = client.open("python-cold", small_shape(group=64))
        cold(client, session, data)
        begun = session.prefetch(last_blocks=3)  # the open block is one of them
        assert begun.job is not None and begun.blocks == 2 and begun.bytes > 0
        all_of_it = client.prefetch("python-cold")
        assert all_of_it.blocks in (6, 8) and all_of_it.job == begun.job + 1
        while any(job.running for job in client.jobs()):
            pass
        last, first = client.jobs()
        assert (first.id, first.session, first.state) == (begun.job, "python-cold", "done")
        assert (last.blocks_done, last.bytes_done, last.error) == (last.blocks, last.bytes, None)
        assert last.age >= last.ran >= 0
        loaded = client.stats().counters["cold_blocks_loaded"]
        session.attend(data[2][:, -1:])
        assert client.stats().counters["cold_blocks_loaded"] == loaded == 8
        assert client.prefetch("python-cold") == kvarn.Prefetched(None, 0, 0)
        with pytest.raises(kvarn.Invalid):
            session.prefetch(last_blocks=0)
        with pytest.raises(kvarn.NotFound):
            client.prefetch("nobody")


def test_prefetch_of_a_prefix(start, tmp_path):
    """What is in memory needs no job; the tokens that are stored are told."""
    with kvarn.Client(start("--cold-dir", tmp_path / "cold").unix) as client:
        shape, ids = small_shape(group=64), np.arange(64 * 4 + 3)
        with client.open("python-prefix", shape, share_prefix=True, salt=b"a") as session:
            publish(session, rows(64 * 4 + 3), ids)
            found = client.prefetch_prefix(shape, ids, salt=b"a")
            assert found == kvarn.Prefetched(None, 0, 0, 256)
            assert client.prefetch_prefix(shape, ids[:100], salt=b"a").tokens == 64
            assert client.prefetch_prefix(shape, ids).tokens == 0
            assert client.prefetch_prefix(shape, block_hashes=[bytes(32)]).tokens == 0
            with pytest.raises(ValueError, match="token_ids or block_hashes"):
                client.prefetch_prefix(shape)


def test_prefetch_without_a_cold_tier(client):
    with client.open(shape=small_shape()) as session:
        with pytest.raises(kvarn.Unsupported, match="cold-dir"):
            session.prefetch()
    with pytest.raises(kvarn.Unsupported, match="cold-dir"):
        client.prefetch_prefix(small_shape(), [1, 2, 3])
    assert client.jobs() == []


def test_verify(client):
    """What memory holds is compared; a session without a name by itself."""
    name = f"python-verify-{client._core.address.is_tcp}"
    k, v, _ = rows(300)
    shape = small_shape(group=64)
    with client.open(name, shape) as session, client.open(shape=shape) as unnamed:
        for one in (session, unnamed):
            one.append_layers([(k, v), (k, v)])
            one.read_layers()  # its seals are done
        for found in (client.verify(name), session.verify(), unnamed.verify()):
            assert (found.findings, found.next, found.sessions, found.blocks) == ((), None, 1, 5)
            assert (found.pages, found.rows_pages, found.records) == (6, 4, 0)
            assert found.page_bytes > 0 and found.wrong_pages == found.unread_records == 0
        seen = []
        everything = client.verify(progress=seen.append)
        assert everything.sessions >= 1 and everything.blocks >= 5 and seen[-1] == everything
        assert all(part.next is not None for part in seen[:-1])
        session.drop()
    with pytest.raises(kvarn.NotFound):
        client.verify(name)


def test_verify_finds_a_flipped_bit(start, tmp_path):
    """On disk, of a session that is not in memory: it is named, and then a Miss."""
    daemon = start("--cold-dir", str(tmp_path / "cold"), "--cold-segment", "1MiB")
    k, v, _ = rows(300)
    with kvarn.Client(daemon.unix) as client:
        session = client.open("python-cold", small_shape(group=64))
        session.append_layers([(k, v), (-k, v)])
        record = bytes(session.read_stored(1, 1, 128, 192).payload)[:32]
        while client.stats().counters["cold_blocks_written"] < 4:
            client.ping()
        while (details := client.inspect("python-cold")).summary.restart_tokens < 256:
            client.ping()
        assert details.stored_blocks == 4 and details.stored_bytes > details.tile_bytes > 0
        client.evict("python-cold")
        details = client.inspect("python-cold")
        assert details.cold_blocks >= 4 and details.cold_bytes > 0 == details.missing_blocks
        assert details.summary.away_blocks == details.cold_blocks + details.loading_blocks
        assert client.sessions("python-cold")[0].away_blocks == details.summary.away_blocks
        (segment,) = (tmp_path / "cold").glob("*.kvs")
        with open(segment, "r+b") as file:
            data = file.read()
            assert data.count(record) == 1
            file.seek(data.index(record))
            file.write(bytes([record[0] ^ 1]))
        found = client.verify()
        assert found.findings == (kvarn.VerifyFinding("python-cold", "block", 2, 0, 0, "CORRUPT",
                                                      "lost"),)
        assert found.wrong_records == 1 and found.records >= 4
        with pytest.raises(kvarn.Miss) as caught:
            session.read(1, 128, 192)
        assert caught.value.reason == "checksum"


def publish(session, data, ids):
    """Store rows in both layers of a session that shares prefixes, and wait for its seals."""
    k, v, _ = data
    session.append_layers([(k, v), (k, v)], token_ids=ids)
    session.read_layers(token_last=session.length)


def test_prefix(client):
    """Tokens that a session has stored are found, and another begins with them."""
    shape = small_shape(model=f"python-prefix-{client._core.address.is_tcp}", group=64)
    data, ids = rows(300), np.arange(300)
    k, v, q = data
    with client.open(shape=shape, share_prefix=True, salt=b"a") as first:
        publish(first, data, ids)
        found = client.match_prefix(shape, list(range(200)) + [7] * 100, salt=b"a")
        assert found.tokens == 192 and found.lease is not None and found.seconds > 9
        only_seen = client.match_prefix(shape, ids, salt=b"a", lease=0)
        assert (only_seen.tokens, only_seen.lease) == (256, None)
        for other in (client.match_prefix(shape, ids, salt=b"b"),
                      client.match_prefix(shape, ids + 1, salt=b"a")):
            assert (other.tokens, other.lease) == (0, None)
        with client.open(shape=shape, share_prefix=True, salt=b"a", lease=found) as second:
            assert second.lengths == (192, 192) and second.inspect().share_prefix
            both = [s.attend(q[:, 100:101], token_last=150, position=149).out
                    for s in (first, second)]
            assert (both[0] == both[1]).all()
            results = client.append_attend([kvarn.AppendAttendItem(
                second, k[:, 192:], v[:, 192:], q[:, 192:], token_ids=ids[192:])], 0)
            assert results[0].error is None and second.lengths == (300, 192)
            second.append(k[:, 192:], v[:, 192:], 1)
            second.read_layers(token_last=300)
            details = second.inspect()
            assert details.prefix_tokens == 192 and details.shared_pages > 0
            assert details.adopted_blocks == 1 and details.shared_bytes > 0
    with pytest.raises(kvarn.NotFound):
        client.open(shape=shape, share_prefix=True, salt=b"a",
                    lease=kvarn.PrefixMatch(64, 1 << 40, 10))


def test_prefix_by_hashes(client):
    """Block hashes instead of ids, once for each block that an append ends."""
    shape = small_shape(model=f"python-hashes-{client._core.address.is_tcp}", group=64)
    k, v, _ = rows(200)
    hashes = [bytes([i]) * 32 for i in range(3)]
    with client.open(shape=shape, share_prefix=True) as session:
        session.append_layers([(k[:, :100], v[:, :100])] * 2, block_hashes=hashes[:1])
        with pytest.raises(ValueError, match="block_hashes: expected 2, one for each block"):
            session.append_layers([(k[:, 100:], v[:, 100:])] * 2, block_hashes=hashes)
        session.append_layers([(k[:, 100:], v[:, 100:])] * 2, block_hashes=hashes[1:])
        session.read_layers()
        assert client.match_prefix(shape, block_hashes=hashes).tokens == 192
        assert client.match_prefix(shape, block_hashes=hashes[::-1]).tokens == 0


@pytest.mark.parametrize("names, text", [
    ({"token_ids": [1, 2]}, "token_ids: expected 3, got 2"),
    ({"token_ids": [[1, 2, 3]]}, "token_ids: expected whole numbers in one dimension"),
    ({"token_ids": [0.5, 1, 2]}, "token_ids: expected whole numbers"),
    ({"token_ids": [-1, 1, 2]}, "not negative"),
    ({"token_ids": [1, 2, 3], "block_hashes": []}, "got both"),
    ({"block_hashes": [b"x"]}, "block_hashes: expected 0"),
])
def test_names_of_tokens_that_are_none(client, names, text):
    k, v, q = rows(3)
    session = client.open(shape=small_shape(), share_prefix=True)
    with pytest.raises(ValueError, match=text):
        session.append(k, v, **names)
    with pytest.raises(ValueError, match=text):
        client.append_attend([kvarn.AppendAttendItem(session, k, v, q, **names)], 0)
    with pytest.raises(ValueError, match="in all, or none"):
        client.append_attend([
            kvarn.AppendAttendItem(session, k, v, q, token_ids=[1, 2, 3]),
            kvarn.AppendAttendItem(client.open(shape=small_shape()), k, v, q)], 0)
    assert session.append(k, v).length == 3
    for both in ({}, {"token_ids": [1], "block_hashes": []}):
        with pytest.raises(ValueError, match="expected token_ids or block_hashes"):
            client.match_prefix(small_shape(), **both)
    with pytest.raises(ValueError, match="32 bytes each"):
        client.match_prefix(small_shape(), block_hashes=[b"x"])


def test_metric(client):
    """A query metric is given to the daemon, read, and seals what follows in its layer."""
    shape = small_shape(model=f"python-metric-{client._core.address.is_tcp}")
    k, v, _ = rows(300)
    with pytest.raises(kvarn.NotFound):
        client.read_metric(shape)
    x = np.random.default_rng(0).standard_normal((HEADS, 1000, K_DIM)).astype(np.float32)
    sums = x.swapaxes(1, 2) @ x
    with client.open(shape=shape, encoder="aware") as session:
        assert client.read_metric(shape) == []
        version = client.register_metric(shape, [kvarn.LayerMetric(1, (1000, 2000), sums)])
        (found,) = client.read_metric(shape)
        assert (found.layer, found.counts, found.version) == (1, (1000, 2000), version)
        assert (np.triu(found.sums) == np.triu(sums)).all() and found.sums.shape == sums.shape
        assert client.read_metric(shape, 0, 1) == []
        session.append_layers([(k, v), (k, v)])
        session.read_layers()  # waits for seals that are due
        details = session.inspect()
        assert details.metric_version == version and details.encoder == "aware"
        assert (details.pages_aware, details.pages_refined) == (1, 1)
    with pytest.raises(ValueError, match="layer 1: expected 2 counts and sums fp32"):
        client.register_metric(shape, [kvarn.LayerMetric(1, (1, 1), sums[:1])])
    with pytest.raises(kvarn.Domain):
        client.register_metric(shape, [kvarn.LayerMetric(0, (1, 1), sums * np.nan)])


def test_list_has_pages(daemon):
    with kvarn.Client(daemon.unix) as client:
        for i in range(300):
            client.open(f"python-page-{i:04}", small_shape()).close()
        names = [s.name for s in client.sessions("python-page-")]
        assert names == [f"python-page-{i:04}" for i in range(300)]
        for name in names:
            client.drop(name)


def test_nobody_answers(tmp_path):
    with pytest.raises(kvarn.ConnectionLost, match="nothing.sock"):
        kvarn.Client(f"unix:{tmp_path / 'nothing.sock'}")
