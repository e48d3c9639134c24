"""Frames of the wire (PROTOCOL.md section 1): bytes only, no sockets."""
from __future__ import annotations

import ctypes
import ctypes.util
import functools
import struct
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from kvarn._messages import CALLS, reply_class
from kvarn.errors import WireError

HEADER = struct.Struct("<4sBBHIQQ")  # and the CRC-32 of these 28 bytes
HEADER_BYTES = 32
TRAILER_BYTES = 8
MAGIC, VERSION = b"KVN1", 1
FLAG_REPLY, FLAG_XXH3 = 1, 2
MESSAGE_BYTES_MAX = 65536
PAYLOAD_BYTES_MAX = 256 << 20


class Head(NamedTuple):
    """A reply's header, checked."""
    kind: int
    has_checksum: bool
    message_bytes: int
    request_id: int
    payload_bytes: int

    @property
    def body_bytes(self) -> int:
        """What follows the header."""
        return self.message_bytes + self.payload_bytes + TRAILER_BYTES * self.has_checksum


class Reply(NamedTuple):
    """A whole reply. payload is writable memory of its own."""
    kind: int
    request_id: int
    message: Any
    payload: memoryview


@functools.cache
def xxh3() -> Callable[[Any], int] | None:
    """XXH3-64 of bytes: from package xxhash or libxxhash where there is one, else None."""
    try:
        import xxhash
        return lambda data: xxhash.xxh3_64_intdigest(data)
    except ImportError:
        pass
    try:
        library = ctypes.CDLL(ctypes.util.find_library("xxhash") or "libxxhash.so.0")
        function = library.XXH3_64bits
    except (OSError, AttributeError):
        return None
    function.restype, function.argtypes = ctypes.c_uint64, [ctypes.c_char_p, ctypes.c_size_t]
    return lambda data: int(function(bytes(data), len(data)))


def encode(kind: int, request_id: int, message: bytes, parts: list[memoryview],
           with_checksum: bool) -> list[memoryview]:
    """A request as pieces to send one after the other; payload is not copied."""
    payload_bytes = sum(p.nbytes for p in parts)
    with_checksum = with_checksum and payload_bytes > 0
    flags = FLAG_XXH3 if with_checksum else 0
    head = HEADER.pack(MAGIC, VERSION, kind, flags, len(message), request_id, payload_bytes)
    pieces = [memoryview(head + struct.pack("<I", zlib.crc32(head)) + message), *parts]
    if with_checksum:
        digest = xxh3()
        assert digest is not None
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        pieces.append(memoryview(struct.pack("<Q", digest(data))))
    return [p for p in pieces if p.nbytes]


def decode_head(data: bytes | bytearray | memoryview) -> Head:
    """Check the 32 bytes of a reply's header; raises WireError."""
    magic, version, kind, flags, message_bytes, request_id, payload_bytes = \
        HEADER.unpack_from(data)
    crc, = struct.unpack_from("<I", data, HEADER_BYTES - 4)
    if magic != MAGIC or crc != zlib.crc32(bytes(data[:HEADER_BYTES - 4])):
        raise WireError("what came is not a frame of kvarnd's protocol")
    if version != VERSION:
        raise WireError(f"expected version {VERSION} of the protocol, got {version}")
    if flags & ~FLAG_XXH3 != FLAG_REPLY or (kind and kind not in CALLS):
        raise WireError(f"expected a reply, got type {kind} with flags {flags}")
    if message_bytes > MESSAGE_BYTES_MAX or payload_bytes > PAYLOAD_BYTES_MAX:
        raise WireError(f"a reply of {message_bytes} + {payload_bytes} bytes is beyond the limits")
    return Head(kind, bool(flags & FLAG_XXH3), message_bytes, request_id, payload_bytes)


def decode_body(head: Head, body: bytearray) -> Reply:
    """The reply of a header and the bytes behind it; raises WireError."""
    view = memoryview(body)
    try:
        message = reply_class(head.kind).FromString(bytes(view[:head.message_bytes]))
    except Exception as error:  # protobuf's DecodeError, whose module moved between versions
        raise WireError(f"a reply's message is not valid: {error}") from error
    payload = view[head.message_bytes:head.message_bytes + head.payload_bytes]
    digest = xxh3() if head.has_checksum else None
    if digest is not None:
        expected, = struct.unpack_from("<Q", view, len(view) - TRAILER_BYTES)
        if digest(payload) != expected:
            raise WireError("a reply's payload does not match its checksum")
    return Reply(head.kind, head.request_id, message, payload)
