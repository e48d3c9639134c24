"""Frames and messages that are wrong, cut, or out of turn: an error or a close, never more."""
import socket

import numpy as np
import pytest

from support.frame import (FLAG_REPLY, FLAG_XXH3, HELLO_MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX,
                           PAYLOAD_BYTES_MAX, TYPES, frame, header, pb)
from support.session import Session, Shape
from support.wire import Conn, Refused

SHAPE = Shape(kv_heads=1, k_dim=8, group=64, sink=64)
PING = TYPES["Ping"]


def rows(tokens, value=1.0):
    return tuple(np.full((1, tokens, 8), value, np.float16) for _ in "kv")


@pytest.fixture
def healthy(conn):
    """A connection that must not notice anything; checked at the end."""
    before = conn.counter("protocol_errors")
    conn.protocol_errors = lambda: conn.counter("protocol_errors") - before
    yield conn
    conn.ping()


def bad_crc():
    data = bytearray(header(PING, 0, 1, 0))
    data[31] ^= 1
    return bytes(data)


BAD_HEADERS = {
    "magic": (header(PING, 0, 1, 0, magic=b"KVN2"), "PROTOCOL"),
    "crc": (bad_crc(), "PROTOCOL"),
    "http": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "PROTOCOL"),
    "version": (header(PING, 0, 1, 0, version=2), "UNSUPPORTED"),
    "flags": (header(PING, 0, 1, 0, flags=1 << 15), "PROTOCOL"),
    "reply": (header(PING, 0, 1, 0, flags=FLAG_REPLY), "PROTOCOL"),
    "message_too_large": (header(PING, MESSAGE_BYTES_MAX + 1, 1, 0), "TOO_LARGE"),
    "message_largest": (header(PING, 2**32 - 1, 1, 0), "TOO_LARGE"),
    "payload_too_large": (header(TYPES["Append"], 0, 1, PAYLOAD_BYTES_MAX + 1), "TOO_LARGE"),
    "payload_2_63": (header(TYPES["Append"], 0, 1, 2**63), "TOO_LARGE"),
    "payload_largest": (header(TYPES["Append"], 0, 1, 2**64 - 1), "TOO_LARGE"),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
@pytest.mark.parametrize("after_hello", [False, True])
def test_frame_that_cannot_be_trusted_closes(daemon, healthy, name, after_hello):
    """An error reply that says why, then the end; others go on."""
    data, code = BAD_HEADERS[name]
    with Conn(daemon.address, hello=after_hello) as bad:
        bad.send_bytes(data)
        last = bad.expect_closed()
        assert last is not None and last.code == code and last.status.text
    assert healthy.protocol_errors() == 1


@pytest.mark.parametrize("payload_bytes, message_bytes", [
    (1, 0), (2**40, 0), (0, HELLO_MESSAGE_BYTES_MAX + 1)])
def test_before_hello_little_is_taken(daemon, healthy, payload_bytes, message_bytes):
    """No payload and no message above 4 KiB before a Hello has succeeded."""
    with Conn(daemon.address, hello=False) as bad:
        bad.send_bytes(header(TYPES["Hello"], message_bytes, 1, payload_bytes))
        last = bad.expect_closed()
        assert last is not None and last.code in ("TOO_LARGE", "PROTOCOL", "UNAUTHENTICATED")


@pytest.mark.parametrize("message", [pb.Ping(), pb.Stats(), pb.OpenSession(name="x"),
                                     pb.DropSession(name="x"), pb.ListSessions()],
                         ids=lambda m: type(m).__name__)
def test_calls_before_hello_are_refused(daemon, healthy, message):
    with Conn(daemon.address, hello=False) as early:
        early.send(message)
        reply = early.recv_any()
        assert reply.code == "UNAUTHENTICATED"


def test_hello_says_limits(conn):
    hello = conn.hello
    assert hello.server_version and hello.tenant == "default" and hello.server_id
    assert hello.message_bytes_max == MESSAGE_BYTES_MAX
    assert 0 < hello.payload_bytes_max <= PAYLOAD_BYTES_MAX
    assert hello.credit_requests == 256 and hello.credit_bytes == 256 << 20
    assert "payload_xxh3" in hello.features


def test_hello_and_more_in_one_write(daemon):
    """A client need not wait for HelloReply."""
    with Conn(daemon.address, hello=False) as conn:
        ids = conn.send_all([(pb.Hello(), b""), (pb.Ping(), b""), (pb.Ping(), b"")])
        assert [conn.recv(i).code for i in ids] == ["OK"] * 3


def test_unknown_type_is_answered_unsupported(conn):
    """And the connection goes on: a newer client can try and fall back."""
    for kind in (0, max(TYPES.values()) + 1, 200, 255):
        message = b"\x08\x01" * 50
        conn.send_bytes(header(kind, len(message), 77, 0) + message)
        reply = conn.recv_any()
        assert (reply.kind, reply.request_id, reply.code) == (0, 77, "UNSUPPORTED")
        conn.ping()


@pytest.mark.parametrize("data", [b"\xff" * 10, b"\x0a\xff\xff\xff\xff\x0f", b"\x08"])
def test_message_that_is_not_protobuf(conn, data):
    """A message that does not parse is refused by its request id; nothing else is hurt."""
    conn.send_bytes(header(TYPES["OpenSession"], len(data), 5, 0) + data)
    reply = conn.recv_any()
    assert reply.request_id == 5 and reply.code == "PROTOCOL"


def test_missing_required_field(conn):
    message = pb.CloseSession()
    data = message.SerializePartialToString()
    conn.send_bytes(header(TYPES["CloseSession"], len(data), 5, 0) + data)
    assert conn.recv_any().code == "PROTOCOL"


def test_unknown_fields_are_ignored(conn):
    data = pb.Ping().SerializeToString() + b"\xa2\x06\x03abc\x98\x06\x07"
    conn.send_bytes(header(PING, len(data), 9, 0) + data)
    assert conn.recv(9).code == "OK"


def test_wrong_payload_size_names_expected_and_got(daemon, healthy):
    """Append of 3 tokens takes 96 bytes; whatever else comes is refused with both numbers."""
    with Conn(daemon.address) as conn:
        session = Session(conn, SHAPE)
        message, payload = session.append_request([rows(3)], 0)
        assert len(payload) == 96
        for wrong in (b"", payload[:-1], payload + b"\0", payload * 1000):
            with Conn(daemon.address) as bad:
                own = Session(bad, SHAPE)
                message, _ = own.append_request([rows(3)], 0)
                bad.send(message, wrong)
                reply = bad.recv_any()
                assert reply.code == "INVALID", reply
                assert "96" in reply.status.text and str(len(wrong)) in reply.status.text


def test_payload_on_a_call_without(conn):
    conn.send_bytes(header(PING, 0, 1, 5) + b"hello")
    reply = conn.recv_any()
    assert reply.code == "INVALID" and "5" in reply.status.text


@pytest.mark.deadline(120)
def test_request_cut_at_every_byte(daemon, healthy, transport):
    """A peer that leaves in the middle of anything leaves nothing behind."""
    address = daemon.addresses[transport]
    session = Session(healthy, SHAPE, "s")
    length = 0
    with Conn(address) as probe:
        whole = cut_request(probe, length)
    for cut in range(len(whole)):
        with Conn(address) as conn:
            conn.send_bytes(cut_request(conn, length)[:cut])
            if cut % 2:
                conn.sock.shutdown(socket.SHUT_WR)
                assert conn.expect_closed() is None
    assert session.inspect().layer_lengths[0] == 0
    with Conn(address) as conn:
        conn.send_bytes(cut_request(conn, length))
        assert conn.recv_any().code == "OK"
    assert session.inspect().layer_lengths[0] == 3
    assert healthy.counter("requests_in_flight") == 1  # Stats itself


def cut_request(conn, start):
    session = Session(conn, SHAPE, "s")
    message, payload = session.append_request([rows(3)], start)
    return frame(message, 99, payload)


def test_bytes_one_by_one(conn):
    """Framing does not depend on how the bytes arrive."""
    session = Session(conn, SHAPE, "s")
    message, payload = session.append_request([rows(3)], 0)
    for byte in frame(message, 1234, payload) + frame(pb.Ping(), 1235):
        conn.send_bytes(bytes([byte]))
    assert conn.recv(1234).code == "OK" and conn.recv(1235).code == "OK"


def test_protobuf_bomb_is_refused_small(daemon, healthy):
    """64 KiB that would unpack into megabytes: refused within the budget of one message."""
    item = b"\x12\x00"  # items {} : an empty AttendItem
    params = pb.Attend(params=pb.AttendParams(layer=0, q_heads=1)).SerializePartialToString()
    data = params + item * ((MESSAGE_BYTES_MAX - len(params)) // len(item))
    with Conn(daemon.address) as bad:
        for i in range(20):
            bad.send_bytes(header(TYPES["Attend"], len(data), i, 0) + data)
            assert bad.recv(i).code in ("PROTOCOL", "TOO_LARGE")
    data = b"\x0a\x00" * (MESSAGE_BYTES_MAX // 2)  # Hello.client, again and again
    with Conn(daemon.address) as bad:
        bad.send_bytes(header(TYPES["RegisterShape"], len(data), 1, 0) + data)
        assert bad.recv(1).code in ("PROTOCOL", "TOO_LARGE", "INVALID")


def test_s24_payload_checksum_both_ways(daemon, healthy, transport):
    """With payload_xxh3 asked for, replies carry the trailer too (the client checks it)."""
    with Conn(daemon.addresses[transport], xxh3=True) as conn:
        session = Session(conn, SHAPE)
        assert session.append([rows(3)], 0).length == 3
        conn.send(*session.read_request(0, 3))
        reply = conn.recv_any()
        assert reply.code == "OK" and len(reply.payload) == 96


def test_s24_wrong_checksum_stores_nothing(daemon, healthy):
    with Conn(daemon.address) as conn:
        session = Session(conn, SHAPE, "s")
        message, payload = session.append_request([rows(3)], 0)
        data = bytearray(frame(message, 1, payload, FLAG_XXH3))
        data[-12] ^= 0x10  # in the payload
        conn.send_bytes(bytes(data))
        assert conn.recv_any().code == "CORRUPT"
    assert Session(healthy, SHAPE, "s").opened.layer_lengths[0] == 0


def test_requests_may_share_no_state_through_ids(conn):
    """Ids are the client's: any value, any order, even the same one again."""
    for request_id in (0, 7, 7, 2**64 - 1):
        conn.send_bytes(frame(pb.Ping(), request_id))
        assert conn.recv_any().request_id == request_id


@pytest.mark.parametrize("message, code", [
    (pb.RegisterShape(shape=pb.Shape(model="m")), "INVALID"),
    (pb.OpenSession(name="x", shape_id=12345), "NOT_FOUND"),
    (pb.OpenSession(name="x" * 257, shape_id=1), "INVALID"),
    (pb.OpenSession(name="missing", mode=pb.EXISTING), "NOT_FOUND"),
    (pb.CloseSession(handle=99), "NOT_FOUND"),
    (pb.DropSession(), "INVALID"),
    (pb.DropSession(name="missing"), "NOT_FOUND"),
    (pb.InspectSession(handle=99), "NOT_FOUND"),
    (pb.Truncate(handle=99, epoch=1, length=0), "NOT_FOUND"),
    (pb.ReadBlocks(handle=99, layer_first=0, token_first=0, token_last=1), "NOT_FOUND"),
    (pb.Attend(params=pb.AttendParams(layer=0, q_heads=1)), "INVALID"),
], ids=lambda m: m if isinstance(m, str) else type(m).__name__)
def test_requests_that_are_wrong_in_themselves(conn, message, code):
    reply = conn.ask(message)
    assert reply.code == code and reply.status.text


@pytest.mark.parametrize("change", [
    {"group": 100}, {"k_bits": 3}, {"v_bits": 8}, {"sink_tokens": 5}, {"layers": 513},
    {"kv_heads": 0}, {"k_dim": 12}, {"k_dim": 520}, {"kv_heads": 257}, {"layers": 0},
    {"model": "m" * 257}, {"model": ""}])
def test_shapes_that_are_not_allowed(conn, change):
    shape = pb.Shape(model="m")
    group = shape.layer_groups.add(layers=1, kv_heads=1, k_dim=64)
    for key, value in change.items():
        setattr(group if key in ("layers", "kv_heads", "k_dim") else shape, key, value)
    with pytest.raises(Refused) as refused:
        conn.call(pb.RegisterShape(shape=shape))
    assert refused.value.code in ("INVALID", "TOO_LARGE") and refused.value.text
