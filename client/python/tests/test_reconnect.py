"""Connections that break: what is sent again, what is not (PROTOCOL.md section 3, Retry)."""
import asyncio

import numpy as np
import pytest
from attention import rows, small_shape
from proxy import Proxy

import kvarn
from kvarn._messages import TYPES


@pytest.fixture
def proxy(daemon, tmp_path):
    one = Proxy(tmp_path, daemon.unix)
    yield one
    one.close()


def named(request):
    return f"python-{request.node.name}"


@pytest.mark.parametrize("call", ["Append", "AppendAttend"])
def test_s09_append_whose_reply_is_lost_is_stored_once(proxy, request, call):
    k, v, q = rows(4)
    with kvarn.Client(proxy.address) as client:
        session = client.open(named(request), small_shape())
        session.append(k, v)
        proxy.lose_reply_of = TYPES[call]
        if call == "Append":
            assert session.append(k, v).repeated
        else:
            assert session.append_attend(k, v, q).length == 8
        assert proxy.lost == 1 and client.reconnects == 1
        assert session.lengths == session.inspect().lengths == (8, 0)
        session.drop()


def test_append_without_a_name_is_not_sent_again(proxy):
    k, v, _ = rows(4)
    with kvarn.Client(proxy.address) as client:
        session = client.open(shape=small_shape())
        proxy.lose_reply_of = TYPES["Append"]
        with pytest.raises(kvarn.ConnectionLost) as lost:
            session.append(k, v)
        assert lost.value.was_sent
        with pytest.raises(kvarn.NotFound, match="had no name"):
            session.append(k, v)
        assert client.ping() >= 0


def test_truncate_is_not_sent_again(proxy, request):
    k, v, _ = rows(4)
    with kvarn.Client(proxy.address) as client:
        session = client.open(named(request), small_shape())
        session.append_layers([(k, v), (k, v)])
        proxy.lose_reply_of = TYPES["Truncate"]
        with pytest.raises(kvarn.ConnectionLost):
            session.truncate(2)
        with pytest.raises(kvarn.StaleEpoch) as stale:
            session.append(k, v)
        assert stale.value.lengths == (2, 2)
        session.refresh()
        assert session.append(k, v).length == 6
        session.drop()


@pytest.mark.parametrize("call", ["Ping", "Attend", "ReadBlocks", "Stats", "InspectSession"])
def test_calls_that_change_nothing_are_sent_again(proxy, request, call):
    k, v, q = rows(4)
    with kvarn.Client(proxy.address) as client:
        session = client.open(named(request), small_shape())
        session.append(k, v)
        proxy.lose_reply_of = TYPES[call]
        method = {"Ping": client.ping, "Attend": lambda: session.attend(q),
                  "ReadBlocks": session.read, "Stats": client.stats,
                  "InspectSession": session.inspect}[call]
        assert method() is not None
        assert proxy.lost == 1 and client.reconnects == 1
        session.drop()


def test_reading_behind_an_append_in_flight_is_not_sent_again(proxy, request):
    """Sent again by itself it could be answered before the append is there."""
    k, v, q = rows(4)
    with kvarn.Client(proxy.address) as client:
        session = client.open(named(request), small_shape())
        proxy.lose_reply_of = TYPES["Append"]
        append, attend = client.submit(session.append, k, v), client.submit(session.attend, q)
        with pytest.raises(kvarn.ConnectionLost):
            attend.result()
        assert append.result().length == 4 and session.attend(q).length == 4
        session.drop()


def test_reconnect_may_be_off(proxy):
    with kvarn.Client(proxy.address, reconnect=False) as client:
        proxy.lose_reply_of = TYPES["Ping"]
        for _ in range(2):
            with pytest.raises(kvarn.ConnectionLost):
                client.ping()
        assert client.reconnects == 0


def test_asyncio_append_is_stored_once(proxy, request):
    async def body():
        k, v, _ = rows(4)
        async with kvarn.AsyncClient(proxy.address) as client:
            session = await client.open(named(request), small_shape())
            proxy.lose_reply_of = TYPES["Append"]
            result = await session.append(k, v)
            assert result.repeated and client.reconnects == 1
            assert session.lengths == (await session.inspect()).lengths == (4, 0)
            await session.drop()

    asyncio.run(asyncio.wait_for(body(), 30))


def test_daemon_that_starts_again(start):
    daemon = start()
    k, v, _ = rows(3)
    with kvarn.Client(daemon.unix) as client:
        before = client.server.server_id
        session = client.open("named", small_shape())
        session.append(k, v)
        daemon.kill()
        with pytest.raises(kvarn.ConnectionLost):
            client.ping()
        daemon.start()
        assert client.ping() >= 0 and client.server.server_id != before
        with pytest.raises(kvarn.NotFound):
            session.append(k, v)
        again = client.open("named", small_shape())
        assert again.created and again.append(k, v).length == 3


def test_memory_that_is_full(start):
    daemon = start("--memory-limit", "64MiB")
    k, v, _ = rows(2000)
    with kvarn.Client(daemon.unix, deadline=20) as client:
        session = client.open(shape=small_shape(sink_tokens=1 << 20))
        with pytest.raises((kvarn.NoSpace, kvarn.RetryLater)):
            for _ in range(1000):
                session.append_layers([(k, v), (k, v)], deadline=2)
        length = session.length
        assert length > 0 and session.inspect().lengths == session.lengths
        session.truncate(0)
        assert session.append(k, v).length == 2000
        assert np.isfinite(session.read(0, 0, 10)[0]).all()


def test_silent_peer_is_given_up(tmp_path):
    """A peer that takes the connection and never answers Hello."""
    import socket
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "silent.sock"))
        listener.listen()
        with pytest.raises(kvarn.ConnectionLost, match="deadline"):
            kvarn.Client(f"unix:{tmp_path / 'silent.sock'}", connect_timeout=0.2)
