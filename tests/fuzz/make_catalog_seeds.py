#!/usr/bin/env python3
"""Make the seeds of fuzz_catalog: heads of cold records, as server/COLD.md says they are.

    make_catalog_seeds.py          write corpus/catalog/seed_*
    make_catalog_seeds.py --check  exit 1 unless they are there, byte for byte

An input is a byte that says the type, then the head. Python's stdlib only.
"""
import pathlib
import struct
import sys

HERE = pathlib.Path(__file__).resolve().parent
SHAPE, SESSION, PAGE, TAIL, MAP, TOMBSTONE = 1, 2, 3, 4, 6, 7
FINGERPRINT = bytes(range(16))


def text(value):
    raw = value.encode()
    return struct.pack("<I", len(raw)) + raw


def shape(groups, model="llama", revision="", group=128, bits=(2, 2), sink=128):
    head = struct.pack("<4I", group, *bits, sink) + text(model) + text(revision)
    return head + struct.pack("<I", len(groups)) + b"".join(
        struct.pack("<4IQ", *one) for one in groups)


def session(name, encoder=1, seal_lag=0):
    return FINGERPRINT + struct.pack("<2I", encoder, seal_lag) + text(name)


def page(block, layers):
    return FINGERPRINT + struct.pack("<2I", block, len(layers)) + b"".join(
        struct.pack("<2BQ", *one) for one in layers)


def tail(pages):
    return struct.pack("<I", len(pages)) + b"".join(
        struct.pack("<4IQ", *one) for one in pages)


def map_of(epoch, tail_id, blocks, layers):
    return struct.pack("<3Q2I", epoch, *tail_id, blocks, len(layers)) + b"".join(
        struct.pack("<Q2I", *one) for one in layers)


def seeds():
    """Name -> input: what is good, what is at a limit, and what is just beyond."""
    heads = {
        "shape": (SHAPE, shape([(32, 8, 128, 128, 0)])),
        "shape_groups": (SHAPE, shape([(2, 2, 16, 16, 0), (1, 1, 24, 8, 100)], "small", "r1", 64)),
        "shape_too_many_groups": (SHAPE, shape([(1, 1, 8, 8, 0)] * 300)),
        "shape_long_name": (SHAPE, shape([(1, 1, 8, 8, 0)], "m" * 300)),
        "shape_no_layers": (SHAPE, shape([])),
        "session": (SESSION, session("chat/1")),
        "session_aware": (SESSION, session("s", 3, 64)),
        "session_long_name": (SESSION, session("n" * 2000)),
        "session_no_name": (SESSION, session("")),
        "session_zero_in_name": (SESSION, session("a\0b")),
        "page_tiles": (PAGE, page(3, [(1, 2, 0x0123456789ABCDEF)] * 4)),
        "page_sink": (PAGE, page(0, [(2, 0, 0), (0, 0, 0), (2, 0, 0)])),
        "page_unknown_kind": (PAGE, page(0, [(3, 0, 0)])),
        "page_no_layers": (PAGE, page(0, [])),
        "tail": (TAIL, tail([(0, 4, 17, 0, 0), (1, 4, 17, 0, 0), (1, 3, 0, 2, 99)])),
        "tail_empty": (TAIL, tail([])),
        "tail_more_than_there": (TAIL, struct.pack("<I", 0xFFFFFFFF) + bytes(24)),
        "map": (MAP, map_of(77, (0, 0), 4, [(512, 4, 0), (512, 4, 2)])),
        "map_tail": (MAP, map_of(2 ** 63, (1, 2), 1, [(170, 1, 0)] * 3)),
        "map_too_long": (MAP, map_of(1, (0, 0), 1, [(2 ** 40, 1, 0)])),
        "map_too_many_layers": (MAP, map_of(1, (0, 0), 0, [(0, 0, 0)] * 2000)),
        "tombstone": (TOMBSTONE, b""),
    }
    out = {f"seed_{name}": bytes([kind]) + head for name, (kind, head) in heads.items()}
    for name in ("shape", "session", "page_tiles", "tail", "map"):
        whole = out[f"seed_{name}"]
        out[f"seed_{name}_cut"] = whole[:-1]
        out[f"seed_{name}_more"] = whole + b"\0"
    return out


def main():
    folder, made = HERE / "corpus/catalog", seeds()
    if sys.argv[1:] == ["--check"]:
        wrong = [n for n, data in made.items()
                 if not (folder / n).is_file() or (folder / n).read_bytes() != data]
        print(f"{len(made)} seeds made, {len(wrong)} differ", *wrong)
        return 1 if wrong or not made else 0
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in made.items():
        (folder / name).write_bytes(data)
    print(f"{len(made)} seeds in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
