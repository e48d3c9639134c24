#!/usr/bin/env python3
"""Make the golden frames: good and malformed frames of kvarnd's protocol, from this text alone.

    make_frames.py          write frames.json, good/*.bin, good/*.txt and bad/*.bin beside this file
    make_frames.py --check  exit 1 unless they are there, byte for byte, and nothing else is

An implementation of its own: no protobuf library, no code of the daemon. Python's stdlib only.
"""
import hashlib
import json
import pathlib
import struct
import sys
import zlib

HERE = pathlib.Path(__file__).resolve().parent
REPLY, XXH3 = 1, 2
TYPES = {
    "error": 0, "hello": 1, "ping": 2, "register_shape": 3, "open_session": 4, "append": 5,
    "append_tiles": 6, "read_blocks": 7, "attend": 8, "append_attend": 9, "truncate": 10,
    "close_session": 11, "drop_session": 12, "list_sessions": 13, "inspect_session": 14,
    "stats": 15, "cancel": 16, "fork": 17, "reorder": 18, "match_prefix": 19,
    "touch": 20, "pin": 21, "evict": 22, "prefetch": 23, "list_jobs": 24, "verify": 25,
    "read_metric": 26,
}
M64 = (1 << 64) - 1


# ---- protobuf ----

def varint(value):
    out = bytearray()
    while True:
        out.append(value & 0x7f | (0x80 if value > 0x7f else 0))
        value >>= 7
        if value == 0:
            return bytes(out)


def tag(number, wire_type):
    return varint(number << 3 | wire_type)


def block(number, data):
    return tag(number, 2) + varint(len(data)) + data


class Field:
    """One field: its bytes on the wire and its lines of text."""

    def __init__(self, data, lines):
        self.data, self.lines = data, lines


def number(n, name, value):
    return Field(tag(n, 0) + varint(value), [f"{name}: {value}"])


def enum(n, name, value, word):
    return Field(tag(n, 0) + varint(value), [f"{name}: {word}"])


def flag(n, name, value):
    return Field(tag(n, 0) + varint(int(value)), [f"{name}: {'true' if value else 'false'}"])


def fixed64(n, name, value):
    return Field(tag(n, 1) + struct.pack("<Q", value), [f"{name}: {value}"])


def real(n, name, value):
    return Field(tag(n, 5) + struct.pack("<f", value), [f"{name}: {value:.9g}"])


def text(n, name, value):
    data = value.encode()
    shown = "".join(
        chr(c) if 0x20 <= c < 0x7f and chr(c) not in '"\\' else f"\\x{c:02x}" for c in data)
    return Field(block(n, data), [f'{name}: "{shown}"'])


def raw(n, name, value):
    return Field(block(n, value), [f"{name}: {value.hex()}"])


def packed(n, name, values):
    return Field(block(n, b"".join(varint(v) for v in values)), [f"{name}: {v}" for v in values])


def unknown(n, data):
    return Field(data, [f"#{n}"])


def message(n, name, *fields):
    lines = [f"{name}:"] + ["  " + line for f in fields for line in f.lines]
    return Field(block(n, b"".join(f.data for f in fields)), lines)


def status(code=0, *fields):
    return message(1, "status", number(1, "code", code), *fields)


# ---- XXH3-64 of 17 to 64 bytes with seed 0: all that these payloads need ----

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c")
PRIME64_1 = 0x9E3779B185EBCA87


def le64(data, at):
    return struct.unpack_from("<Q", data, at)[0]


def mix16(data, at, secret_at):
    product = (le64(data, at) ^ le64(SECRET, secret_at)) * (
        le64(data, at + 8) ^ le64(SECRET, secret_at + 8))
    return (product & M64) ^ (product >> 64)


def xxh3(data):
    count = len(data)
    assert 17 <= count <= 64
    acc = count * PRIME64_1
    if count > 32:
        acc += mix16(data, 16, 32) + mix16(data, count - 32, 48)
    acc += mix16(data, 0, 0) + mix16(data, count - 16, 16)
    acc &= M64
    acc ^= acc >> 37
    acc = acc * 0x165667919E3779F9 & M64
    return acc ^ acc >> 32


# ---- frames ----

def header(type_, flags, message_bytes, request_id, payload_bytes, version=1, magic=b"KVN1",
           crc=None):
    data = magic + struct.pack(
        "<BBHIQQ", version, type_, flags, message_bytes, request_id, payload_bytes)
    return data + struct.pack("<I", zlib.crc32(data) if crc is None else crc)


def frame(type_, flags, request_id, fields, payload=b""):
    data = b"".join(f.data for f in fields)
    out = header(TYPES[type_], flags, len(data), request_id, len(payload)) + data + payload
    return out + (struct.pack("<Q", xxh3(payload)) if flags & XXH3 else b"")


def shown(type_, flags, request_id, fields, payload):
    words = [w for bit, w in ((REPLY, "reply"), (XXH3, "payload_xxh3")) if flags & bit]
    lines = [f"type: {type_}", f"flags: {' '.join(words)}".rstrip(), f"request_id: {request_id}",
             f"message_bytes: {sum(len(f.data) for f in fields)}", f"payload: {payload.hex()}"]
    return "\n".join(lines + [line for f in fields for line in f.lines]) + "\n"


def halves(*values):
    return struct.pack(f"<{len(values)}e", *values)


K = halves(0.5, -1, 2, 0.25, -0.125, 3, -4, 1.5)
V = halves(1, 2, 3, 4, -5, -6, -7, -8)
Q = halves(0.75, 0, -0.5, 1, 1, 0, 0, -2)
OUT = struct.pack("<9f", 1, 2, 3, 4, -5, -6, -7, -8, -0.265625)  # out of one row, then its lse
CANONICAL = (b"kvarn-shape 1\nmodel 8:tiny-moe\nrevision 2:r1\ngroup 128\nbits 2 2\nsink 128\n"
             b"layers 3 2 64 64 0\nlayers 1 2 192 128 4096\n")
FINGERPRINT = hashlib.sha256(CANONICAL).digest()[:16]
SHAPE = (
    text(1, "model", "tiny-moe"), text(2, "revision", "r1"),
    message(3, "layer_groups", number(1, "layers", 3), number(2, "kv_heads", 2),
            number(3, "k_dim", 64)),
    message(3, "layer_groups", number(1, "layers", 1), number(2, "kv_heads", 2),
            number(3, "k_dim", 192), number(4, "v_dim", 128), number(5, "window", 4096)),
    number(4, "group", 128), number(5, "k_bits", 2), number(6, "v_bits", 2),
    number(7, "sink_tokens", 128))
# A metric of the second of two layers with one KV head of 8: the sum of 40 queries' squares.
METRIC_SHAPE = (
    text(1, "model", "tiny"),
    message(3, "layer_groups", number(1, "layers", 2), number(2, "kv_heads", 1),
            number(3, "k_dim", 8)),
    number(4, "group", 64))
METRIC_FINGERPRINT = hashlib.sha256(
    b"kvarn-shape 1\nmodel 4:tiny\nrevision 0:\ngroup 64\nbits 2 2\nsink 64\nlayers 2 1 8 8 0\n"
).digest()[:16]
METRIC_COUNTS = [0, 40]
METRIC = b"".join(struct.pack("<f", 0 if j < i else 40 if i == j else 0.5 * i - j)
                  for i in range(8) for j in range(8))
SUMMARY = (
    text(1, "name", "chat/ä"), text(2, "model", "tiny-moe"), number(3, "length", 300),
    number(4, "epoch", 7), number(5, "bytes", 1 << 21), number(6, "handles", 2),
    number(7, "idle_ms", 1500), number(10, "ttl_left_ms", 60000), number(11, "priority", 3),
    number(12, "pin_left_ms", 0), number(13, "missing_tokens", 128), number(15, "away_blocks", 2),
    number(16, "restart_tokens", 256), flag(17, "tail_cold", True))
PARAMS = message(1, "params", number(1, "layer", 2), number(2, "q_heads", 1))


def good_session():
    """Connections and sessions."""
    yield "hello", "hello", 0, 1, [
        text(1, "client", "golden 1.0"), text(2, "features", "payload_xxh3"),
        number(15, "deadline_ms", 1000)], b""
    yield "hello_reply", "hello", REPLY, 1, [
        status(), text(2, "server_version", "0.1.0"),
        fixed64(3, "server_id", 0x0123456789ABCDEF), text(4, "features", "payload_xxh3"),
        text(5, "tenant", "default"), number(6, "message_bytes_max", 65536),
        number(7, "payload_bytes_max", 1 << 26), number(8, "credit_requests", 256),
        number(9, "credit_bytes", 1 << 28)], b""
    yield "ping_empty", "ping", 0, 2, [], b""
    yield "ping_deadline", "ping", 0, M64, [number(15, "deadline_ms", (1 << 32) - 1)], b""
    yield "ping_newer_client", "ping", 0, 3, [
        number(15, "deadline_ms", 5), unknown(127, tag(127, 0) + varint(42)),
        unknown(200, block(200, b"from the future"))], b""
    yield "ping_reply", "ping", REPLY, 2, [status(), number(2, "uptime_ms", 86400000)], b""
    yield "register_shape", "register_shape", 0, 4, [message(1, "shape", *SHAPE)], b""
    yield "register_shape_reply", "register_shape", REPLY, 4, [
        status(), number(2, "shape_id", 1), raw(3, "fingerprint", FINGERPRINT)], b""
    yield "register_shape_metric", "register_shape", 0, 30, [
        message(1, "shape", *METRIC_SHAPE), number(2, "metric_layer_first", 0),
        number(3, "metric_layer_count", 2), packed(4, "metric_counts", METRIC_COUNTS)], METRIC
    yield "register_shape_reply_metric", "register_shape", REPLY, 30, [
        status(), number(2, "shape_id", 1), raw(3, "fingerprint", METRIC_FINGERPRINT),
        number(4, "metric_version", 7)], b""
    yield "read_metric", "read_metric", 0, 31, [
        raw(2, "fingerprint", METRIC_FINGERPRINT), number(3, "layer_first", 0),
        number(4, "layer_count", 2)], b""
    yield "read_metric_by_id", "read_metric", 0, 32, [
        number(1, "shape_id", 1), number(15, "deadline_ms", 5000)], b""
    yield "read_metric_reply", "read_metric", REPLY, 31, [
        status(), message(2, "shape", *METRIC_SHAPE), raw(3, "fingerprint", METRIC_FINGERPRINT),
        number(4, "metric_version", 7), number(5, "layer_first", 0),
        packed(6, "counts", METRIC_COUNTS), packed(7, "versions", [0, 7])], METRIC
    yield "open_session", "open_session", 0, 5, [
        text(1, "name", "chat/ä"), number(2, "shape_id", 1), enum(3, "mode", 1, "CREATE"),
        enum(4, "encoder", 2, "REFINED"), number(5, "seal_lag", 16), flag(6, "takeover", True)], b""
    yield "open_session_unnamed", "open_session", 0, 6, [number(2, "shape_id", 1)], b""
    yield "open_session_reply", "open_session", REPLY, 5, [
        status(), number(2, "handle", 1), number(3, "epoch", 7),
        packed(4, "layer_lengths", [300, 300, 300, 299]), flag(5, "created", False),
        number(6, "shape_id", 1)], b""
    yield "truncate", "truncate", 0, 7, [
        number(1, "handle", 1), number(2, "epoch", 7), number(3, "length", 200)], b""
    yield "truncate_reply_lossy", "truncate", REPLY, 7, [
        status(), number(2, "epoch", 8), packed(3, "layer_lengths", [200] * 4),
        flag(4, "lossy_tail", True)], b""
    yield "fork", "fork", 0, 33, [
        message(1, "items", number(1, "handle", 1)),
        message(1, "items", number(1, "handle", 1), number(2, "epoch", 8),
                text(3, "name", "chat/b"), number(4, "length", 200), enum(5, "mode", 0, "EITHER"))
    ], b""
    yield "fork_reply", "fork", REPLY, 33, [
        status(), message(2, "items", status(), number(2, "handle", 65537), number(3, "epoch", 9),
                          number(4, "length", 299), flag(5, "created", True),
                          flag(6, "lossy_tail", False)),
        message(2, "items", status(8, text(2, "text", "the committed length is 199, got 200"),
                                   enum(3, "reason", 1, "MISS_NEVER_STORED")))], b""
    yield "reorder", "reorder", 0, 34, [
        message(1, "items", packed(1, "handles", [1, 65537, 131074]),
                packed(2, "epochs", [7, 8, 9]), packed(3, "sources", [0, 0, 1]))], b""
    yield "reorder_reply", "reorder", REPLY, 34, [
        status(), message(2, "items", status(), packed(2, "epochs", [7, 10, 11]),
                          packed(3, "lengths", [300, 300, 301]))], b""
    yield "open_session_prefix", "open_session", 0, 35, [
        number(2, "shape_id", 1), flag(9, "share_prefix", True), raw(10, "salt", b"lora-7"),
        number(11, "lease", 3)], b""
    yield "match_prefix", "match_prefix", 0, 36, [
        number(1, "shape_id", 1), raw(2, "salt", b"lora-7"), number(3, "token_count", 8),
        number(5, "lease_ms", 10000)], struct.pack("<8I", *range(100, 108))
    yield "match_prefix_hashes", "match_prefix", XXH3, 37, [
        number(1, "shape_id", 1), number(4, "hash_count", 1)], bytes(range(32))
    yield "match_prefix_reply", "match_prefix", REPLY, 36, [
        status(), number(2, "tokens", 256), number(3, "lease", 3), number(4, "lease_ms", 10000)], b""
    yield "close_session", "close_session", 0, 8, [number(1, "handle", 1)], b""
    yield "close_session_reply", "close_session", REPLY, 8, [status()], b""
    yield "open_session_mortal", "open_session", 0, 40, [
        text(1, "name", "chat/c"), number(2, "shape_id", 1), number(7, "ttl_ms", 3600000),
        number(8, "priority", 50)], b""
    yield "touch", "touch", 0, 41, [
        text(2, "name", "chat/c"), number(3, "ttl_ms", 0), number(4, "priority", 100)], b""
    yield "touch_reply", "touch", REPLY, 41, [
        status(), number(2, "ttl_left_ms", 0), number(3, "priority", 100)], b""
    yield "pin", "pin", 0, 42, [number(1, "handle", 1), number(3, "pin_ms", 5000)], b""
    yield "pin_reply", "pin", REPLY, 42, [
        status(), number(2, "pinned_bytes", 60000), number(3, "budget_left_bytes", 268375456)], b""
    yield "unpin", "pin", 0, 43, [number(1, "handle", 1), flag(4, "unpin", True)], b""
    yield "evict", "evict", 0, 44, [text(2, "name", "chat/c"), number(3, "blocks", 2)], b""
    yield "evict_reply", "evict", REPLY, 44, [
        status(), number(2, "blocks", 2), number(3, "freed_bytes", 40000),
        number(4, "missing_first", 128), number(5, "missing_last", 256)], b""
    yield "prefetch", "prefetch", 0, 48, [
        text(2, "name", "chat/c"), number(3, "last_blocks", 2)], b""
    yield "prefetch_prefix", "prefetch", 0, 51, [
        number(4, "shape_id", 1), raw(5, "salt", b"lora-7"), number(6, "token_count", 8)], (
            struct.pack("<8I", *range(100, 108)))
    yield "prefetch_prefix_reply", "prefetch", REPLY, 51, [
        status(), number(3, "blocks", 0), number(4, "bytes", 0), number(5, "tokens", 256)], b""
    yield "prefetch_reply", "prefetch", REPLY, 48, [
        status(), number(2, "job_id", 5), number(3, "blocks", 2), number(4, "bytes", 40000)], b""
    yield "prefetch_reply_nothing", "prefetch", REPLY, 49, [
        status(), number(3, "blocks", 0), number(4, "bytes", 0)], b""
    yield "list_jobs", "list_jobs", 0, 50, [], b""
    yield "list_jobs_reply", "list_jobs", REPLY, 50, [
        status(),
        message(2, "jobs", number(1, "job_id", 5), text(2, "session", "chat/c"),
                enum(3, "state", 0, "JOB_RUNNING"), number(4, "blocks_done", 1),
                number(5, "blocks", 2), number(6, "bytes_done", 20000), number(7, "bytes", 40000),
                number(8, "age_ms", 3)),
        message(2, "jobs", number(1, "job_id", 4), text(2, "session", ""),
                enum(3, "state", 2, "JOB_FAILED"), number(4, "blocks_done", 7),
                number(5, "blocks", 9), number(6, "bytes_done", 70000), number(7, "bytes", 90000),
                number(8, "age_ms", 60000), number(9, "run_ms", 250),
                number(10, "error", 12))], b""
    yield "verify", "verify", 0, 45, [
        text(3, "name_first", "chat/ä"), number(4, "block_first", 7), number(5, "blocks", 512)], b""
    yield "verify_one", "verify", 0, 46, [
        number(1, "handle", 1), number(15, "deadline_ms", 10000)], b""
    yield "verify_reply", "verify", REPLY, 45, [
        status(),
        message(2, "findings", text(1, "session", "chat/ä"), enum(2, "part", 0, "VERIFY_BLOCK"),
                number(3, "block", 9), number(4, "wrong_pages", 2), number(5, "layer", 1),
                number(6, "record_error", 0), enum(7, "outcome", 1, "VERIFY_DROPPED")),
        message(2, "findings", text(1, "session", "chat/b"), enum(2, "part", 3, "VERIFY_TAIL"),
                number(6, "record_error", 20), enum(7, "outcome", 2, "VERIFY_LOST")),
        flag(3, "more", True), text(4, "next_name", "chat/c"), number(5, "next_block", 130),
        number(6, "session_blocks", 1000), number(7, "sessions", 2), number(8, "blocks", 512),
        number(9, "pages", 2044), number(10, "page_bytes", 1 << 28), number(11, "rows_pages", 8),
        number(12, "records", 500), number(13, "record_bytes", 1 << 27),
        number(14, "wrong_pages", 2), number(16, "wrong_records", 1),
        number(17, "unread_records", 0)], b""
    yield "drop_session_by_name", "drop_session", 0, 9, [text(2, "name", "chat/ä")], b""
    yield "drop_session_reply_not_found", "drop_session", REPLY, 9, [
        status(5, text(2, "text", 'no session "chat/ä"'))], b""
    yield "list_sessions", "list_sessions", 0, 10, [
        text(1, "prefix", "chat/"), text(2, "after", "chat/a"), number(3, "limit", 2)], b""
    yield "list_sessions_reply", "list_sessions", REPLY, 10, [
        status(), message(2, "sessions", *SUMMARY), flag(3, "more", True)], b""
    yield "inspect_session", "inspect_session", 0, 11, [number(1, "handle", M64)], b""
    yield "inspect_session_reply", "inspect_session", REPLY, 11, [
        status(), message(2, "summary", *SUMMARY), message(3, "shape", *SHAPE),
        raw(4, "fingerprint", FINGERPRINT), packed(5, "layer_lengths", [300, 300, 300, 299]),
        packed(6, "layer_sealed", [256] * 4), number(7, "tile_pages", 4),
        number(8, "tile_bytes", 60000), number(9, "sink_pages", 4), number(10, "sink_bytes", 1),
        number(11, "tail_pages", 4), number(12, "tail_bytes", 2), number(13, "reserved_bytes", 3),
        number(14, "pages_reference", 0), number(15, "pages_refined", 4),
        enum(16, "encoder", 3, "AWARE"), number(17, "seal_lag", 16),
        number(18, "pages_aware", 2), number(19, "metric_version", 5),
        number(25, "ttl_ms", 3600000), number(26, "pinned_bytes", 0),
        number(27, "missing_first", 128), number(28, "missing_last", 256),
        number(30, "cold_blocks", 1), number(31, "cold_bytes", 30000),
        number(32, "loading_blocks", 0), number(33, "loading_bytes", 0),
        number(34, "missing_blocks", 1), number(35, "missing_bytes", 30000),
        number(36, "stored_blocks", 2), number(37, "stored_bytes", 73728)], b""


def good_tokens():
    """Tokens in and out."""
    append = [number(1, "handle", 1), number(2, "epoch", 7), number(3, "layer_first", 2),
              number(5, "start", 300), number(6, "token_count", 1)]
    yield "append", "append", 0, 20, append, K + V
    yield "append_xxh3", "append", XXH3, 21, append[:3] + [number(4, "layer_count", 1)] + append[
        3:] + [enum(7, "dtype", 0, "F16"), enum(8, "layout", 1, "TOKEN_MAJOR"),
               flag(9, "rotated", True), number(15, "deadline_ms", 30000)], K + V
    yield "append_reply", "append", REPLY, 20, [
        status(), number(2, "epoch", 7), number(3, "length", 301),
        number(4, "sealed_tokens", 256)], b""
    yield "append_reply_repeated", "append", REPLY, 21, [
        status(), number(2, "epoch", 7), number(3, "length", 301),
        number(4, "sealed_tokens", 256), flag(5, "repeated_request", True)], b""
    yield "append_reply_conflict", "append", REPLY, 22, [
        status(6, text(2, "text", "start must be the length 301, got 300"), number(5, "epoch", 7),
               packed(6, "layer_lengths", [301]))], b""
    yield "append_reply_stale_epoch", "append", REPLY, 23, [
        status(7, number(5, "epoch", 9), packed(6, "layer_lengths", [0]))], b""
    yield "append_reply_retry_later", "append", REPLY, 24, [
        status(9, number(4, "retry_after_ms", 20))], b""
    yield "append_tiles", "append_tiles", XXH3, 25, [
        number(1, "handle", 1), number(2, "epoch", 7),
        message(3, "runs", number(1, "layer", 0), number(2, "first_token", 384),
                number(3, "token_count", 1), enum(4, "form", 1, "ROWS_STORED"))], K + V
    yield "append_tiles_reply", "append_tiles", REPLY, 25, [
        status(), number(2, "epoch", 7), packed(3, "lengths", [385])], b""
    yield "read_blocks", "read_blocks", 0, 26, [
        number(1, "handle", 1), number(2, "layer_first", 0), number(3, "layer_count", 4),
        number(4, "token_first", 299), number(5, "token_last", 300), flag(6, "stored", False),
        enum(7, "dtype", 2, "F32"), flag(8, "rotated", True), enum(9, "what", 1, "K_ONLY"),
        enum(10, "layout", 1, "TOKEN_MAJOR")], b""
    yield "read_blocks_reply", "read_blocks", REPLY | XXH3, 26, [
        status(), message(2, "runs", number(1, "layer", 0), number(2, "first_token", 299),
                          number(3, "token_count", 1), enum(4, "form", 2, "ROWS")),
        number(3, "epoch", 7)], K + V
    yield "read_blocks_reply_miss", "read_blocks", REPLY, 27, [
        status(8, text(2, "text", "tokens below 128 left the window"),
               enum(3, "reason", 2, "MISS_WINDOW"))], b""
    yield "attend", "attend", 0, 28, [
        message(1, "params", number(1, "layer", 2), number(2, "q_heads", 1),
                real(3, "scale", 0.125), flag(4, "non_causal", True), number(5, "window", 64),
                real(6, "softcap", 30.0), enum(7, "q_dtype", 0, "F16"), flag(8, "q_rotated", False),
                enum(9, "out_dtype", 2, "F32"), flag(10, "out_rotated", False),
                enum(11, "accuracy", 1, "EXACT")),
        message(2, "items", number(1, "handle", 1), number(2, "query_tokens", 1),
                number(3, "position", 299), number(4, "token_first", 10),
                number(5, "token_last", 300)), number(15, "deadline_ms", 100)], Q
    yield "attend_reply", "attend", REPLY | XXH3, 28, [
        status(), message(2, "items", status(), number(2, "length", 300),
                          number(3, "sealed_tokens", 256))], OUT
    yield "append_attend", "append_attend", XXH3, 29, [
        PARAMS, message(2, "items", number(1, "handle", 1), number(2, "epoch", 7),
                        number(3, "start", 300)),
        enum(3, "kv_dtype", 1, "BF16"), enum(4, "kv_layout", 0, "HEAD_MAJOR"),
        flag(5, "kv_rotated", False)], K + V + Q
    yield "append_attend_reply_deadline", "append_attend", REPLY, 29, [
        status(), message(2, "items", status(10), number(2, "length", 301),
                          number(3, "sealed_tokens", 256), flag(4, "appended", True),
                          number(5, "epoch", 7))], OUT
    yield "stats", "stats", 0, 30, [], b""
    yield "stats_reply", "stats", REPLY, 30, [
        status(), message(2, "ops", text(1, "op", "append"), number(2, "count", 3),
                          number(3, "errors", 1), number(4, "bytes_in", 4096),
                          number(5, "bytes_out", 99), number(6, "latency_us_p50", 64),
                          number(7, "latency_us_p99", 128), number(8, "latency_us_max", 100)),
        message(3, "counters", text(1, "name", "bytes_in"), number(2, "value", M64))], b""
    yield "cancel", "cancel", 0, 31, [number(1, "request_id", 29)], b""
    yield "cancel_reply", "cancel", REPLY, 31, [status(), flag(2, "found", False)], b""
    yield "error_reply", "error", REPLY, 32, [status(2, text(2, "text", "no call 17"))], b""


def bad():
    """Name, bytes, where it is refused and with what, why."""
    ping = frame("ping", 0, 2, [])
    close = frame("close_session", 0, 8, [number(1, "handle", 1)])
    append = frame("append", XXH3, 21, [
        number(1, "handle", 1), number(2, "epoch", 7), number(3, "layer_first", 2),
        number(5, "start", 300), number(6, "token_count", 1)], K + V)

    def changed(data, at, value):
        return data[:at] + bytes([value]) + data[at + 1:]

    def body(type_, data):
        return header(TYPES[type_], 0, len(data), 40, 0) + data

    yield "nothing", b"", "incomplete", "no bytes at all"
    yield "cut_header", ping[:31], "incomplete", "31 of the header's 32 bytes"
    yield "cut_message", close[:-1], "incomplete", "the last byte of the message is missing"
    yield "cut_payload", append[:-9], "incomplete", "the last byte of the payload is missing"
    yield "cut_trailer", append[:-1], "incomplete", "the last byte of the trailer is missing"
    yield "magic_next", header(2, 0, 0, 2, 0, magic=b"KVN2"), "header PROTOCOL", "another magic"
    yield "magic_swapped", header(2, 0, 0, 2, 0, magic=b"1NVK"), (
        "header PROTOCOL"), "big-endian magic"
    yield "http", b"GET / HTTP/1.1\r\nHost: kvarnd\r\n\r\n..", "header PROTOCOL", "another protocol"
    yield "tls", bytes.fromhex("16030100c8010000c40303") + bytes(32), (
        "header PROTOCOL"), "a TLS hello"
    yield "zeros", bytes(64), "header PROTOCOL", "nothing but zero bytes"
    yield "crc_zero", header(2, 0, 0, 2, 0, crc=0), "header PROTOCOL", "no CRC"
    yield "crc_swapped", ping[:28] + ping[:27:-1], "header PROTOCOL", "big-endian CRC"
    yield "bit_type", changed(ping, 5, 3), "header PROTOCOL", "a flipped bit in the type"
    yield "bit_message_bytes", changed(close, 8, 3), "header PROTOCOL", "a flipped bit in a size"
    yield "bit_version", changed(ping, 4, 3), "header PROTOCOL", (
        "a flipped bit in the version is damage, not another version")
    yield "version_0", header(2, 0, 0, 2, 0, version=0), "header UNSUPPORTED", "version 0"
    yield "version_2", header(2, 0, 0, 2, 0, version=2), "header UNSUPPORTED", "the next version"
    yield "flag_4", header(2, 4, 0, 2, 0), "header PROTOCOL", "the first flag that is not known"
    yield "flag_high", header(2, 0x8000, 0, 2, 0), "header PROTOCOL", "the last flag"
    yield "message_too_large", header(2, 0, 65537, 2, 0), "header TOO_LARGE", "64 KiB and one byte"
    yield "payload_too_large", header(5, 0, 10, 2, (1 << 28) + 1), "header TOO_LARGE", (
        "256 MiB and one byte")
    yield "payload_huge", header(5, 0, 10, 2, M64), "header TOO_LARGE", "2^64 - 1 bytes"
    yield "type_0_request", header(0, 0, 0, 2, 0), "type UNSUPPORTED", "type 0 is for replies"
    yield "type_200", header(200, 0, 0, 2, 0), "type UNSUPPORTED", "a type that is not known"
    yield "type_255_reply", header(255, REPLY, 0, 2, 0), "type UNSUPPORTED", "the last type"
    yield "required_missing", body("close_session", b""), "message PROTOCOL", "no handle"
    yield "required_missing_nested", body("attend", block(1, tag(1, 0) + b"\0")), (
        "message PROTOCOL"), "params without q_heads"
    yield "wrong_wire_type", body("close_session", tag(1, 5) + bytes(4)), "message PROTOCOL", (
        "the handle as four fixed bytes")
    yield "varint_cut", body("close_session", b"\x08\x80"), (
        "message PROTOCOL"), "a varint without end"
    yield "varint_long", body("close_session", b"\x08" + b"\xff" * 10 + b"\x01"), (
        "message PROTOCOL"), "a varint of eleven bytes"
    yield "length_past_end", body("hello", b"\x0a\x7fA"), (
        "message PROTOCOL"), "127 bytes of which 1 came"
    yield "length_huge", body("hello", b"\x0a" + varint((1 << 32) - 1)), "message PROTOCOL", (
        "a string of 4 GiB in a message of a few bytes")
    yield "group_wire_type", body("ping", tag(3, 3) + tag(3, 4)), "message PROTOCOL", (
        "a group, which protobuf gave up")
    yield "job_without_state", frame("list_jobs", REPLY, 47, [
        status(), message(2, "jobs", number(1, "job_id", 5), text(2, "session", "chat/c"))]), (
        "message PROTOCOL"), "a job that does not say its state"
    yield "prefetch_name_cut", body("prefetch", b"\x12\x09chat"), "message PROTOCOL", (
        "a name of nine bytes of which four came")
    yield "packed_odd", frame(
        "append_tiles", REPLY, 25, [status(), Field(block(3, b"\x80"), [])]), (
        "message PROTOCOL"), "a packed list that ends inside a number"
    yield "bomb", body("hello", (tag(2, 2) + b"\0") * 32768), "message PROTOCOL", (
        "32,768 strings in 64 KiB: more memory than a message may take")
    yield "verify_block_negative", body("verify", tag(4, 0) + b"\xff" * 10 + b"\x01"), (
        "message PROTOCOL"), "a block of eleven bytes"
    yield "finding_cut", frame("verify", REPLY, 45, [status(), Field(tag(2, 2) + b"\x09a", [])]), (
        "message PROTOCOL"), "a finding of 9 bytes of which 1 came"
    yield "trailer_wrong", append[:-1] + bytes([append[-1] ^ 1]), "payload CORRUPT", "a wrong XXH3"
    yield "payload_wrong", changed(append, len(append) - 40, 0xee), "payload CORRUPT", (
        "a payload that is not its XXH3's")


def files():
    """Path -> bytes of everything that this script makes."""
    out, manifest, seen = {}, [], set()
    for name, type_, flags, request_id, fields, payload in [*good_session(), *good_tokens()]:
        out[f"good/{name}.bin"] = frame(type_, flags, request_id, fields, payload)
        out[f"good/{name}.txt"] = shown(type_, flags, request_id, fields, payload).encode()
        manifest.append({"name": name, "file": f"good/{name}.bin", "expect": "ok"})
        seen.add((type_, flags & REPLY))
    missing = {(t, f) for t in TYPES for f in (0, REPLY)} - seen - {("error", 0)}
    assert not missing, missing
    for name, data, expect, why in bad():
        out[f"bad/{name}.bin"] = data
        manifest.append({"name": name, "file": f"bad/{name}.bin", "expect": expect, "why": why})
    assert len({row["name"] for row in manifest}) == len(manifest)
    rows = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in manifest)
    out["frames.json"] = f"[\n{rows}\n]\n".encode()
    return out


def main():
    made = files()
    there = {str(p.relative_to(HERE)) for d in ("good", "bad") for p in (HERE / d).glob("*")}
    strangers = sorted(there - set(made))
    if sys.argv[1:] == ["--check"]:
        wrong = [p for p in made if not (HERE / p).is_file() or (HERE / p).read_bytes() != made[p]]
        print(f"{len(made)} files made, {len(wrong)} differ, {len(strangers)} are strangers")
        for path in wrong + strangers:
            print(path)
        return 1 if wrong or strangers or not made else 0
    for path, data in made.items():
        (HERE / path).parent.mkdir(exist_ok=True)
        (HERE / path).write_bytes(data)
    print(f"{len(made)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
