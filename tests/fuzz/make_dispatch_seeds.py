#!/usr/bin/env python3
"""Make the seeds of fuzz_dispatch: conversations that reach every call's handler and most refusals.

    make_dispatch_seeds.py          write corpus/dispatch/seed_*
    make_dispatch_seeds.py --check  exit 1 unless they are there, byte for byte

An input is a byte of options, then steps (fuzz_dispatch.c); a made-up frame's fields are chosen
byte by byte in the order of their numbers (dispatch_message.c), which this script reads from
kvarnd.proto. Python's stdlib only.
"""
import pathlib
import re
import struct
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FRAMES = ROOT / "tests/golden/frames/good"

BARE, FILLED, TIGHT, UNCREDITED, XXH3 = 1, 2, 4, 8, 16  # options
SMALL, HUGE = b"\x00", b"\xf0"  # payload: small numbers, or one of them huge
TEXTS = ["a", "b", "c", "payload_xxh3", "", "m", "a/1", "\u00e9", "\x80"]
TYPES = {name: int(number) for number, name in re.findall(
    r"X\((\d+), \w+, \"\w+\", (\w+),", (ROOT / "proto/frame.h").read_text())}


class By(int):
    """A number by what the daemon holds: the selector byte of named_value()."""


LENGTH = By(0)     # of a token field: the layer's length
BLOCK_END = By(5)  # the length, rounded down to blocks


def messages():
    """Message -> its fields in order of their numbers: (label, type, name)."""
    text = re.sub(r"//[^\n]*", "", (ROOT / "proto/kvarnd.proto").read_text())
    out = {}
    for name, body in re.findall(r"message (\w+) \{([^}]*)\}", text):
        fields = re.findall(r"(required|optional|repeated) (\w+) (\w+) = (\d+)", body)
        out[name] = [f[:3] for f in sorted(fields, key=lambda f: int(f[3]))]
    return out


MESSAGES = messages()


def scalar(kind, value):
    if kind in ("uint32", "uint64"):
        if isinstance(value, By):
            return bytes([0, value])
        if value < 1 << 16:
            return b"\xe8" + struct.pack("<H", value)
        return b"\xfa" + struct.pack("<Q", value)
    if kind == "string":
        return bytes([next(h for h in range(0x80, 0xf0)
                           if h % len(TEXTS) == TEXTS.index(value))])
    if kind == "float":
        return b"\xf0" + struct.pack("<fI", value, 0)
    return bytes([value])  # bool, enum


def choices(message, values):
    """The bytes by which dispatch_message_make() makes this message."""
    values = dict(values)
    out = b""
    for label, kind, name in MESSAGES[message]:
        value = values.pop(name, None)
        if label == "required":
            assert value is not None, (message, name)
            out, items = out + b"\0", [value]
        elif label == "optional":
            out, items = out + (b"\0" if value is None else b"\x90"), (
                [] if value is None else [value])
        else:
            items = value or []
            assert len(items) <= 5
            out += bytes([next(h for h in range(0x80, 0x86) if h % 6 == len(items))])
        for item in items:
            out += choices(kind, item) if kind in MESSAGES else scalar(kind, item)
    assert not values, (message, values)
    return out


def call(what, /, payload=SMALL, flags=0, **values):
    """A frame; flags 1 puts a checksum behind its payload."""
    return bytes([0, TYPES[what] - 1]) + choices(what, values) + bytes([flags]) + payload


HELLO = call("Hello", client="a", features=["payload_xxh3"])


def raw(data):
    return b"\x0c" + struct.pack("<H", len(data)) + data


AGAIN, TURN, SETTLE = b"\x0d", b"\x12", b"\x13"


def clone(handle):
    return bytes([14, handle])


def select(client, how=0):
    return bytes([15, how + client])


def peer(how):
    return bytes([16, how])


def advance(which):
    """0: 1 ms, 1: 10, 2: 11, 3: 100, 4: 1,000, 5: 5,000, 6: 11,000, 7: 40,000."""
    return bytes([17, which])


# Handles by the order of their opening: "a", "b", the one without a name, "c".
A, B, UNNAMED, C = By(0), By(1), By(2), By(3)
EPOCH = By(0)


def append(handle, count, layers=2, **more):
    return call("Append", handle=handle, epoch=EPOCH, layer_first=0, layer_count=layers,
                start=LENGTH, token_count=count, **more)


def decode_step(handles, count=1, **more):
    items = [dict(handle=h, epoch=EPOCH, start=LENGTH, token_count=count) for h in handles]
    return call("AppendAttend", params=dict(layer=0, q_heads=4), items=items, **more)


def attend(handles, **more):
    items = [dict(handle=h, query_tokens=2, position=LENGTH) for h in handles]
    return call("Attend", params=dict(layer=1, q_heads=2), items=items, **more)


def read(handle, **more):
    return call("ReadBlocks", handle=handle, layer_first=0, layer_count=2, token_first=0,
                token_last=LENGTH, **more)


def cancel():
    return call("Cancel", request_id=By(0))


def open_session(name, **more):
    return call("OpenSession", name=name, **more)


def seeds_of_calls():
    """What each call does, and how it is refused."""
    shape = dict(model="m", layer_groups=[dict(layers=2, kv_heads=2, k_dim=16, v_dim=8, window=70)],
                 group=64, k_bits=4, v_bits=2, sink_tokens=0)
    yield "from_hello", BARE, [
        HELLO, call("Ping"), call("RegisterShape", shape=shape),
        open_session("a", shape_id=1, mode=1, encoder=1, seal_lag=5), append(A, 70), SETTLE,
        decode_step([A], flags=1), attend([A]), call("Stats"), HELLO]
    keys = dict(shape, k_bits=2)
    yield "metric", BARE, [
        HELLO, call("RegisterShape", shape=keys, metric_layer_count=2,
                    metric_counts=[0, 0, 100, 100]),
        open_session("a", shape_id=1, encoder=3), append(A, 70), SETTLE, decode_step([A]),
        call("ReadMetric", shape_id=1),
        call("ReadMetric", shape_id=1, layer_first=1, layer_count=1),
        call("RegisterShape", HUGE, shape=keys, metric_layer_count=1, metric_layer_first=1,
             metric_counts=[100, 100]),
        call("RegisterShape", shape=keys, metric_layer_count=1, metric_counts=[100]),
        call("RegisterShape", shape=keys, metric_layer_count=1, metric_counts=[100, 0]),
        call("RegisterShape", shape=shape, metric_layer_count=1, metric_counts=[100, 100]),
        call("ReadMetric"), call("ReadMetric", shape_id=9), append(A, 200), SETTLE,
        call("InspectSession", handle=A), call("Stats")]
    yield "not_hello", BARE, [call("Ping"), SETTLE, HELLO, call("Ping", deadline_ms=By(0))]
    yield "pipelined", FILLED, [
        append(A, 1), append(A, 1, flags=1), attend([A, B, UNNAMED]), decode_step([A, B, UNNAMED]),
        read(A), read(B, dtype=2, rotated=1, layout=1), read(B, what=1, dtype=1), TURN,
        append(B, 64, dtype=2, layout=1), append(A, 1, rotated=1, dtype=1), attend([A], flags=1)]
    yield "attend_all_ways", FILLED, [
        call("Attend", params=dict(layer=1, q_heads=4, scale=0.5, non_causal=1, window=20,
                                   softcap=30.0, q_dtype=1, q_rotated=1, out_dtype=0,
                                   out_rotated=1, accuracy=2),
             items=[dict(handle=A, query_tokens=3, position=LENGTH, token_first=5,
                         token_last=LENGTH), dict(handle=B, query_tokens=1)]),
        call("Attend", HUGE, params=dict(layer=0, q_heads=2, q_dtype=2),
             items=[dict(handle=A, query_tokens=1)]),
        call("Attend", params=dict(layer=0, q_heads=3), items=[dict(handle=B, query_tokens=1)]),
        call("Attend", params=dict(layer=0, q_heads=2, scale=float("inf")),
             items=[dict(handle=B, query_tokens=1)])]
    yield "clone", FILLED, [
        read(A, stored=1), SETTLE, clone(2), SETTLE, open_session("m", shape_id=1), SETTLE,
        clone(4), SETTLE, clone(4), read(By(4), stored=1), SETTLE,
        read(B, stored=1), SETTLE, open_session("a/1", shape_id=2), SETTLE, clone(5), SETTLE,
        append(By(5), 3), attend([By(5)])]


def seeds_of_order():
    """Retries, cancels, deadlines, cuts: what depends on what came before."""
    yield "retries", FILLED, [
        append(A, 3), AGAIN, SETTLE, AGAIN, append(A, 3), decode_step([A, B]), AGAIN, SETTLE,
        AGAIN, call("Truncate", handle=A, epoch=EPOCH, length=100), AGAIN]
    yield "large_retry", 0, [
        decode_step([C], 40), SETTLE, AGAIN, SETTLE, decode_step([C], 80), AGAIN, SETTLE,
        append(C, 60, 1), AGAIN, SETTLE, attend([C]), read(C, stored=1)]
    yield "cancels", FILLED, [
        append(A, 64), call("Truncate", handle=A, epoch=EPOCH, length=100), cancel(),
        append(A, 64), append(A, 64), cancel(), read(A), cancel(),
        open_session("a", takeover=1), cancel(), attend([A]), cancel(), decode_step([A]), cancel(),
        SETTLE, append(C, 60, 1), cancel(), TURN]
    yield "deadlines", FILLED, [
        append(A, 64), append(A, 64, deadline_ms=3), read(A, deadline_ms=3),
        call("Truncate", handle=A, epoch=EPOCH, length=10, deadline_ms=3),
        open_session("a", deadline_ms=3), attend([A], deadline_ms=3),
        decode_step([A], deadline_ms=3), advance(2), SETTLE,
        append(C, 60, 1, deadline_ms=3), advance(2), SETTLE, call("Ping", deadline_ms=0)]
    yield "truncates", FILLED, [
        call("Truncate", handle=A, epoch=EPOCH, length=100), append(A, 40), SETTLE,
        call("Truncate", handle=A, epoch=EPOCH, length=64), append(A, 70),
        call("Truncate", handle=B, epoch=EPOCH, length=130), SETTLE,
        call("Truncate", handle=B, epoch=EPOCH, length=3), append(B, 200, dtype=1), SETTLE,
        call("Truncate", handle=B, epoch=EPOCH, length=1), SETTLE,
        call("Truncate", handle=B, epoch=EPOCH, length=0), append(B, 1)]
    yield "takeover", FILLED, [
        select(1), HELLO, SETTLE, open_session("a", takeover=1), SETTLE, append(A, 2), SETTLE,
        select(0), append(A, 2), call("Truncate", handle=A, epoch=9, length=1), select(1),
        call("DropSession", name="a"), select(0), append(A, 1), attend([A]), read(A), SETTLE]
    yield "sessions", 0, [
        call("ListSessions", limit=1), call("ListSessions", prefix="a", after="a", limit=256),
        call("InspectSession", handle=B), call("InspectSession", name="a"),
        call("InspectSession", name="a", handle=A), open_session("a", mode=1),
        open_session("m", mode=2), open_session("b", shape_id=1), open_session("", shape_id=1),
        call("OpenSession", mode=2), call("OpenSession", shape_id=7), open_session("m"),
        call("CloseSession", handle=A), call("CloseSession", handle=A),
        call("DropSession", handle=B), call("DropSession", name="m"), call("InspectSession")]


def seeds_of_sharing():
    """Copies, beams, prefixes."""
    def fork(*items, **more):
        return call("Fork", items=[dict(handle=h, **m) for h, m in items], **more)

    def reorder(handles, sources, **more):
        item = dict(handles=handles, epochs=[EPOCH] * len(handles), sources=sources)
        return call("Reorder", items=[item], **more)

    yield "forks", FILLED, [
        fork((A, {}), (A, dict(name="a/1")), (A, dict(length=BLOCK_END)), (B, dict(length=100))),
        SETTLE, append(A, 3), append(By(4), 70), decode_step([A, By(4), By(5)]), SETTLE,
        fork((A, dict(name="a/1", mode=0)), (A, dict(name="a/1")), (A, dict(mode=2)),
             (B, dict(epoch=9)), (B, dict(length=5000))), SETTLE,
        call("Truncate", handle=By(4), epoch=EPOCH, length=70), append(By(4), 5), SETTLE,
        call("DropSession", handle=A), attend([By(4), By(5)]), read(By(5)), SETTLE,
        append(B, 64), fork((B, {})), cancel(), append(B, 64), fork((B, {}), deadline_ms=3),
        advance(2), SETTLE, fork()]
    yield "reorders", FILLED, [
        fork((A, {}), (A, {})), SETTLE, reorder([A, By(4), By(5)], [1, 0, 0]), SETTLE,
        decode_step([A, By(4), By(5)]), SETTLE, reorder([A, B], [1, 0]), SETTLE,
        append(A, 64), reorder([A, By(4)], [1, 1]), cancel(), SETTLE, append(A, 64),
        reorder([By(4), A], [1, 1], deadline_ms=3), advance(2), SETTLE,
        reorder([A, A], [0, 0]), reorder([A], [3]), reorder([], []), call("Reorder"),
        read(A), attend([By(5)])]
    yield "prefixes", FILLED, [
        call("OpenSession", shape_id=1, share_prefix=1), SETTLE,
        append(By(4), 200, token_ids=1), SETTLE, append(By(4), 3, token_ids=1, block_hashes=1),
        call("MatchPrefix", shape_id=1, token_count=200), SETTLE,
        call("OpenSession", shape_id=1, share_prefix=1, lease=1), SETTLE,
        append(By(5), 70, token_ids=1), read(By(5)), attend([By(5)]), SETTLE,
        call("Truncate", handle=By(5), epoch=EPOCH, length=100), append(By(5), 100, token_ids=1),
        fork((By(5), {})), SETTLE, append(By(6), 64, token_ids=1), decode_step(
            [By(4), By(6)], token_ids=1), SETTLE,
        call("OpenSession", shape_id=1, share_prefix=1), SETTLE,
        append(By(7), 130, block_hashes=1), SETTLE, call("MatchPrefix", shape_id=1, hash_count=2),
        call("MatchPrefix", shape_id=1, token_count=100, lease_ms=3), advance(2),
        call("OpenSession", shape_id=1, lease=2), call("OpenSession", shape_id=2, lease=1),
        call("MatchPrefix", shape_id=1), call("MatchPrefix", shape_id=9, token_count=1),
        call("InspectSession", handle=By(5)), call("Stats"), SETTLE]
    yield "prefetches", FILLED, [
        call("Prefetch", handle=A), call("Prefetch", name="b", last_blocks=2), SETTLE,
        call("Prefetch", name="a", last_blocks=0), call("Prefetch"),
        call("Prefetch", shape_id=1, token_count=200), call("Prefetch", shape_id=1, hash_count=2),
        call("Prefetch", shape_id=1, hash_count=2, handle=A), call("ListJobs"), SETTLE,
        append(A, 64), call("Prefetch", handle=A), cancel(), append(A, 64),
        call("Prefetch", handle=A, deadline_ms=3), advance(2), SETTLE, call("ListJobs")]


def seeds_of_limits():
    """Memory, credit, slow and strange peers."""
    yield "tight", FILLED | TIGHT, [append(C, 80, 2), SETTLE, append(A, 128), append(B, 90), SETTLE,
                                    read(A), attend([A]), decode_step([A, B, UNNAMED]), SETTLE,
                                    call("DropSession", name="a"), append(B, 90), SETTLE]
    yield "credit", FILLED | UNCREDITED, [
        peer(5), *[append(A, 64) for _ in range(4)], append(B, 100), read(A), read(A), peer(0),
        SETTLE, append(A, 1)]
    yield "slow_reader", FILLED | XXH3, [
        peer(5), *[read(A, dtype=2) for _ in range(8)], TURN, peer(3), TURN, TURN, advance(7),
        peer(0), SETTLE, read(A)]
    yield "checksums", FILLED | XXH3, [
        read(A), append(A, 2, flags=1), attend([A], flags=1), append(A, 2, flags=0xf9), SETTLE,
        append(A, 2), append(C, 80, 1, flags=1), SETTLE, read(C, dtype=2), SETTLE]
    yield "verify", FILLED, [
        call("Verify"), SETTLE, call("Verify", blocks=1), call("Verify", handle=A, block_first=1),
        call("Verify", name_first="a", block_first=2, blocks=1), call("Verify"), cancel(), SETTLE,
        append(A, 64), call("Verify", name="a"), call("DropSession", name="a"), SETTLE,
        call("Verify", blocks=0), call("Verify", handle=B, deadline_ms=3), advance(2), SETTLE]
    yield "domain", FILLED, [append(A, 2, payload=HUGE), append(B, 64, payload=HUGE),
                             append(A, 2, payload=HUGE, dtype=2), decode_step([A], payload=HUGE)]
    yield "peers_leave", FILLED, [
        select(1), HELLO, open_session("a"), SETTLE, append(A, 64), select(1, 0xc0), SETTLE,
        select(2, 0xb0), HELLO, SETTLE, select(0), append(A, 64), peer(0xf0), SETTLE,
        select(3), HELLO, peer(0xf8), call("Ping"), SETTLE]
    yield "cut_frames", FILLED, [
        peer(0x81), append(A, 2), peer(0x83), append(A, 2, flags=1), append(A, 2, flags=0xee),
        select(1), HELLO, call("Ping", flags=0xfe), SETTLE, select(2), HELLO,
        call("Ping", flags=0xf1), advance(6), SETTLE,
        select(0), append(B, 2, flags=0xe8), select(1), HELLO, read(A, flags=0xe8)]
    yield from seed_of_golden_frames()


def seed_of_golden_frames():
    frames = b"".join((FRAMES / f"{n}.bin").read_bytes() for n in (
        "hello", "ping_newer_client", "register_shape", "open_session_unnamed", "list_sessions",
        "append", "attend", "inspect_session", "stats", "cancel"))
    yield "golden_frames", BARE, [
        raw(frames), SETTLE, raw(b"KVN1"), select(0, 0xc0), raw(bytes(40))]


def main():
    seeds = [*seeds_of_calls(), *seeds_of_order(), *seeds_of_sharing(), *seeds_of_limits()]
    made = {f"seed_{name}": bytes([options]) + b"".join(steps) for name, options, steps in seeds}
    folder = HERE / "corpus/dispatch"
    if sys.argv[1:] == ["--check"]:
        wrong = [n for n, data in made.items()
                 if not (folder / n).is_file() or (folder / n).read_bytes() != data]
        print(f"{len(made)} seeds made, {len(wrong)} differ", *wrong)
        return 1 if wrong or not made else 0
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in made.items():
        (folder / name).write_bytes(data)
    print(f"{len(made)} seeds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
