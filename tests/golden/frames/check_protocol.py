#!/usr/bin/env python3
"""Hold proto/PROTOCOL.md to the golden frames, to the list of errors and to the list of calls.

    check_protocol.py ROOT      exit 1 and say what differs; ROOT is the project's folder
"""
import hashlib
import pathlib
import re
import sys

import make_frames

EXAMPLES = ("truncate", "append_xxh3")  # frames that the text shows byte for byte


def example_bytes(text):
    """The bytes of all indented lines that begin with some, annotations left out."""
    out = bytearray()
    for line in re.findall(r"^    (.*)$", text, re.M):
        for word in line.split():
            if not re.fullmatch(r"[0-9a-f]{2}", word):
                break
            out.append(int(word, 16))
    return bytes(out)


def table(text):
    """The rows of tables whose first cell is a number: {number: second cell}."""
    return {int(n): name.strip() for n, name in re.findall(r"^\| (\d+) \| ([^|]+) \|", text, re.M)}


def section(text, start, end):
    return text[text.index(start):text.index(end, text.index(start))]


def check(root):
    """Yield what was compared, and whether it agrees."""
    text = (root / "proto/PROTOCOL.md").read_text()
    shown = example_bytes(text)
    made = make_frames.files()
    for name in EXAMPLES:
        yield f"example {name}", made[f"good/{name}.bin"] in shown
    lines = make_frames.CANONICAL.decode().splitlines()
    yield "canonical text", "\n".join("    " + line for line in lines) in text
    digest = hashlib.sha256(make_frames.CANONICAL).hexdigest()
    yield "SHA-256", f"`{digest}`" in text and f"`{digest[:32]}`" in text

    errors = re.findall(r'^X\((\d+), \w+, "(\w+)"', (root / "lib/base/err.def").read_text(), re.M)
    table_rows = table(section(text, "| code | name |", "| reason |"))
    wanted = {0: "OK", **{int(n): label.upper() for n, label in errors}}
    yield "errors", len(errors) >= 20 and table_rows == wanted

    header = (root / "proto/frame.h").read_text().replace("\\\n", " ")
    calls = re.findall(r'X\((\d+), \w+, "\w+",\s+(\w+),', header)
    table_rows = table(section(text, "| type | call |", "### OpenSession"))
    yield "calls", len(calls) >= 16 and table_rows == {int(n): name for n, name in calls}
    yield "calls of the golden frames", {int(n) for n, _ in calls} | {0} == set(
        make_frames.TYPES.values())


def main():
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    results = list(check(pathlib.Path(sys.argv[1])))
    for what, ok in results:
        print(f"{'ok  ' if ok else 'FAIL'} {what}")
    return 0 if results and all(ok for _, ok in results) else 1


if __name__ == "__main__":
    sys.exit(main())
