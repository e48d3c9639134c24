"""Frames as bytes, and the messages of proto/kvarnd.proto as Python classes."""
import atexit
import ctypes
import importlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib

from support.settings import ROOT

HEADER = struct.Struct("<4sBBHIQQ")
HEADER_BYTES = 32
VERSION = 1
FLAG_REPLY, FLAG_XXH3 = 1, 2
MESSAGE_BYTES_MAX = 64 * 1024
HELLO_MESSAGE_BYTES_MAX = 4 * 1024
PAYLOAD_BYTES_MAX = 256 << 20


def _load_messages():
    folder = os.environ.get("KVARN_PB_DIR")
    if folder is None:
        folder = tempfile.mkdtemp(prefix="kvarnd-pb-")
        atexit.register(shutil.rmtree, folder)
        subprocess.run(["protoc", f"--python_out={folder}", f"--proto_path={ROOT / 'proto'}",
                        "kvarnd.proto"], check=True, timeout=60)
    sys.path.insert(0, folder)
    return importlib.import_module("kvarnd_pb2")


pb = _load_messages()

# Wire numbers of calls: proto/frame.h.
CALLS = ["Hello", "Ping", "RegisterShape", "OpenSession", "Append", "AppendTiles", "ReadBlocks",
         "Attend", "AppendAttend", "Truncate", "CloseSession", "DropSession", "ListSessions",
         "InspectSession", "Stats", "Cancel", "Fork", "Reorder", "MatchPrefix",
         "Touch", "Pin", "Evict", "Prefetch", "ListJobs", "Verify", "ReadMetric"]
TYPES = {name: number for number, name in enumerate(CALLS, 1)} | {
    "Touch": 20, "Pin": 21, "Evict": 22, "Prefetch": 23, "ListJobs": 24, "Verify": 25,
    "ReadMetric": 26}
LABELS = ["hello", "ping", "register_shape", "open_session", "append", "append_tiles",
          "read_blocks", "attend", "append_attend", "truncate", "close_session", "drop_session",
          "list_sessions", "inspect_session", "stats", "cancel", "fork", "reorder", "match_prefix",
          "touch", "pin", "evict", "prefetch", "list_jobs", "verify", "read_metric"]
TYPE_ERROR = 0

# Wire status codes: lib/base/err.def.
CODES = ["OK", "INVALID", "UNSUPPORTED", "UNAUTHENTICATED", "FORBIDDEN", "NOT_FOUND", "CONFLICT",
         "STALE_EPOCH", "MISS", "RETRY_LATER", "DEADLINE", "CANCELLED", "NO_SPACE", "DOMAIN",
         "TOO_LARGE", "INTERNAL", "SHUTTING_DOWN", "PROTOCOL", "IO", "NO_MEMORY", "CORRUPT"]

DTYPES = {"f16": pb.F16, "bf16": pb.BF16, "f32": pb.F32}
LAYOUTS = {"head": pb.HEAD_MAJOR, "token": pb.TOKEN_MAJOR}
ENCODERS = {"default": pb.ENCODER_DEFAULT, "reference": pb.REFERENCE, "refined": pb.REFINED,
            "aware": pb.AWARE}


def xxh3(data):
    """XXH3-64, from the library that the daemon uses."""
    return _XXH3(bytes(data), len(data))


def _load_xxh3():
    function = ctypes.CDLL("libxxhash.so.0").XXH3_64bits
    function.restype, function.argtypes = ctypes.c_uint64, [ctypes.c_char_p, ctypes.c_size_t]
    return function


_XXH3 = _load_xxh3()


def header(kind, message_bytes, request_id, payload_bytes, flags=0, version=VERSION,
           magic=b"KVN1"):
    """The 32 bytes of a header, with a right CRC whatever the rest says."""
    head = HEADER.pack(magic, version, kind, flags, message_bytes, request_id, payload_bytes)
    return head + struct.pack("<I", zlib.crc32(head))


def frame(message, request_id, payload=b"", flags=0):
    """A whole request: header, message, payload and, with FLAG_XXH3, its trailer."""
    kind, packed = TYPES[type(message).__name__], message.SerializeToString()
    parts = [header(kind, len(packed), request_id, len(payload), flags), packed, payload]
    if flags & FLAG_XXH3:
        parts.append(struct.pack("<Q", xxh3(payload)))
    return b"".join(parts)


def reply_class(kind):
    """The message class of a reply of this type."""
    if kind == TYPE_ERROR:
        return pb.ErrorReply
    name = next(name for name, number in TYPES.items() if number == kind)
    return pb.AttendReply if name == "AppendAttend" else getattr(pb, name + "Reply")


_REPLY_CLASSES = {kind: reply_class(kind) for kind in [TYPE_ERROR, *TYPES.values()]}


class Reply:
    """One reply: request_id, kind (its type's number), message, payload and status."""
    __slots__ = ("kind", "request_id", "message", "payload")

    def __init__(self, kind, request_id, message, payload):
        self.kind, self.request_id, self.message, self.payload = kind, request_id, message, payload

    @property
    def status(self):
        return self.message.status

    @property
    def code(self):
        return CODES[self.message.status.code]

    def __repr__(self):
        return f"<{type(self.message).__name__} {self.request_id} {self.code} " \
               f"{self.message.status.text!r} payload {len(self.payload)}>"


class Parser:
    """Bytes in, replies out. Checks what a reply's frame must hold."""

    def __init__(self):
        self._data, self._at = bytearray(), 0

    def feed(self, data):
        if self._at > 1 << 16:
            del self._data[:self._at]
            self._at = 0
        self._data += data

    def next(self):
        """The next whole reply, or None."""
        data, at = self._data, self._at
        if len(data) - at < HEADER_BYTES:
            return None
        magic, version, kind, flags, message_bytes, request_id, payload_bytes = \
            HEADER.unpack_from(data, at)
        assert magic == b"KVN1" and version == VERSION, bytes(data[at:at + HEADER_BYTES])
        assert flags & ~FLAG_XXH3 == FLAG_REPLY, flags
        assert message_bytes <= MESSAGE_BYTES_MAX and payload_bytes <= PAYLOAD_BYTES_MAX
        crc, = struct.unpack_from("<I", data, at + HEADER_BYTES - 4)
        assert crc == zlib.crc32(data[at:at + HEADER_BYTES - 4])
        trailer = 8 if flags & FLAG_XXH3 else 0
        end = at + HEADER_BYTES + message_bytes + payload_bytes + trailer
        if len(data) < end:
            return None
        at += HEADER_BYTES
        message = _REPLY_CLASSES[kind].FromString(bytes(data[at:at + message_bytes]))
        at += message_bytes
        payload = bytes(data[at:at + payload_bytes])
        if trailer:
            assert struct.unpack_from("<Q", data, at + payload_bytes)[0] == xxh3(payload)
        self._at = end
        return Reply(kind, request_id, message, payload)

    @property
    def rest(self):
        return len(self._data) - self._at
