"""libkvarn.so exports the functions of its installed headers, all of them and nothing else.

Archives have no such list; there, what others can link to must begin with "kvarn".

usage: python3 exports.py PREFIX LIBDIR
"""
import pathlib
import re
import subprocess
import sys

HEADERS = ("attention.h", "codec.h", "cpu.h", "err.h")
ARCHIVES = ("libkvarn.a", "libkvarn_base.a", "libkvarn_proto.a", "libkvarn_client.a")
API = re.compile(r"KVARN_API[^;{]*?\b(kvarn_\w+)\s*\(")


def symbols(path, *options):
    """Names of defined symbols that others can link to."""
    out = subprocess.run(["nm", "--defined-only", "-g", "-P", *options, str(path)], check=True,
                         capture_output=True, text=True).stdout
    lines = [line.split() for line in out.splitlines()]
    return {words[0] for words in lines if len(words) >= 2 and words[1] in "TDBRVWCGSu"}


def public_functions(include):
    """Names that the headers mark with KVARN_API."""
    names = set()
    for header in HEADERS:
        text = re.sub(r"/\*.*?\*/", "", (include / header).read_text(), flags=re.DOTALL)
        names |= set(API.findall(text))
    return names


def main(prefix, libdir):
    """Returns the exit status."""
    root = pathlib.Path(prefix)
    wanted = public_functions(root / "include" / "kvarn")
    found = symbols(root / libdir / "libkvarn.so", "-D")
    wrong = [f"not exported: {name}" for name in sorted(wanted - found)]
    wrong += [f"exported, in no header: {name}" for name in sorted(found - wanted)]
    count = 0
    for archive in ARCHIVES:
        names = symbols(root / libdir / archive)
        count += len(names)
        wrong += [f"{archive}: {name}" for name in sorted(names) if not name.startswith("kvarn")]
        if not names:
            wrong.append(f"{archive} has no symbols")
    print(*wrong, sep="\n")
    print(f"exports: {len(wanted)} functions in headers, {len(found)} exported, "
          f"{count} symbols in {len(ARCHIVES)} archives, {len(wrong)} wrong")
    return 1 if wrong or not wanted or not found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
