"""Bytes of the wire: known frames, damage, messages under any protobuf."""
import pathlib
import shutil
import sys

import numpy as np
import pytest
from conftest import HERE, ROOT

import kvarn
from kvarn import _address, _arrays, _descriptor, _frame, _messages

FRAMES = ROOT / "tests" / "golden" / "frames" / "good"


def test_descriptor_is_of_the_proto():
    """Run make_descriptor.py where this fails."""
    if shutil.which("protoc") is None:
        pytest.skip("protoc is not installed")
    sys.path.insert(0, str(HERE.parent))
    import make_descriptor
    from google.protobuf import descriptor_pb2
    read = descriptor_pb2.FileDescriptorProto.FromString
    fresh = make_descriptor.file_of_set(make_descriptor.compile_proto())
    assert read(fresh) == read(_descriptor.SERIALIZED)


def test_truncate_of_the_protocol_text():
    """PROTOCOL.md section 1 shows these bytes."""
    message = _messages.message["Truncate"](handle=1, epoch=7, length=200)
    pieces = _frame.encode(_messages.TYPES["Truncate"], 7, message.SerializeToString(), [], False)
    assert b"".join(pieces).hex(" ") == (
        "4b 56 4e 31 01 0a 00 00 07 00 00 00 07 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 "
        "7d 47 d8 31 08 01 10 07 18 c8 01")


def test_golden_append_with_checksum():
    if _frame.xxh3() is None:
        pytest.skip("neither package xxhash nor libxxhash is installed")
    golden = (FRAMES / "append_xxh3.bin").read_bytes()
    kind, message_bytes = golden[5], int.from_bytes(golden[8:12], "little")
    message = _messages.message["Append"].FromString(golden[32:32 + message_bytes])
    payload = memoryview(golden[32 + message_bytes:-8])
    again = _frame.encode(kind, int.from_bytes(golden[12:20], "little"),
                          message.SerializeToString(), [payload[:10], payload[10:]], True)
    assert b"".join(again) == golden
    assert message.token_count == 1 and message.layer_first == 2


def reply_bytes(payload=b"12345678"):
    message = _messages.message["PingReply"](status={"code": 0}, uptime_ms=5)
    data = bytearray(b"".join(_frame.encode(2, 9, message.SerializeToString(),
                                            [memoryview(payload)], False)))
    data[6] |= _frame.FLAG_REPLY
    data[28:32] = __import__("zlib").crc32(data[:28]).to_bytes(4, "little")
    return data


def test_reply_is_read():
    data = reply_bytes()
    head = _frame.decode_head(data[:32])
    reply = _frame.decode_body(head, data[32:])
    assert (reply.request_id, reply.message.uptime_ms, bytes(reply.payload)) == (9, 5, b"12345678")


def test_each_flipped_bit_of_a_header_is_found():
    data = reply_bytes()
    for bit in range(32 * 8):
        damaged = bytearray(data[:32])
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(kvarn.WireError):
            _frame.decode_head(damaged)


def test_addresses(monkeypatch):
    monkeypatch.delenv("KVARN_SERVER", raising=False)
    assert _address.parse(None).path == "/run/kvarnd/kvarnd.sock"
    monkeypatch.setenv("KVARN_SERVER", "tcp:[::1]:7700")
    assert _address.parse(None)[2:] == ("::1", 7700)
    for bad in ("", "unix", "unix:", "tcp:host", "tcp::7", "tcp:h:0", "tcp:h:65536", "tcp:::1:7",
                "http:x:1"):
        if bad:
            with pytest.raises(kvarn.AddressError):
                _address.parse(bad)


def test_arrays_of_all_kinds():
    x = np.arange(6, dtype=np.float16).reshape(1, 2, 3)

    class Wrapped:
        def __array__(self, dtype=None, copy=None):
            return x

    class OnlyDLPack:
        dtype = "float16"

        def __dlpack__(self, **keywords):
            return x.__dlpack__(**keywords)

        def __dlpack_device__(self):
            return x.__dlpack_device__()

    for source in (x, Wrapped(), OnlyDLPack(), x.transpose(2, 0, 1).transpose(1, 2, 0)):
        tensor = _arrays.to_wire(source, "x", 3)
        assert tensor.shape == (1, 2, 3) and tensor.dtype == 0 and bytes(tensor.data) == x.tobytes()
    assert _arrays.to_wire([[[1.0]]], "x", 3).dtype == _arrays.DTYPES["f32"]
    assert _arrays.to_wire(np.zeros((0, 2, 3)), "x", 3).data.nbytes == 0
    for bad in (np.zeros(3), np.zeros((1, 1, 1), complex), [[["a"]]]):
        with pytest.raises(ValueError, match="x: expected"):
            _arrays.to_wire(bad, "x", 3)


def test_fingerprint_of_the_protocol_text():
    """PROTOCOL.md section 4's example."""
    shape = kvarn.Shape("tiny-moe", (kvarn.LayerGroup(1, 2, 64), kvarn.LayerGroup(2, 2, 64),
                                     kvarn.LayerGroup(1, 2, 192, 128, 4096)), "r1")
    assert shape.fingerprint().hex() == "dbeb98c8d542f9bfe9b1e5c1ea98f4b7"
    assert shape.layers == 4 and shape.layer(3).dims == (192, 128)


def test_each_code_has_its_class():
    """proto/PROTOCOL.md section 3 is the list."""
    text = pathlib.Path(ROOT / "proto" / "PROTOCOL.md").read_text()
    for number in range(1, 21):
        name = kvarn.errors.CODES[number].name
        assert f"| {number} | {name} |" in text
