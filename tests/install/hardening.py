"""What was installed is hardened: PIE, full RELRO, no executable stack, canaries, fortify.

usage: python3 hardening.py PREFIX LIBDIR
"""
import pathlib
import re
import subprocess
import sys

PROGRAMS = ("bin/kvarnd", "bin/kvarnctl")


def readelf(path, *options):
    """What readelf prints about a file."""
    return subprocess.run(["readelf", "--wide", *options, str(path)], check=True,
                          capture_output=True, text=True).stdout


def imports(path):
    """Names that a file takes from libraries."""
    table = readelf(path, "--dyn-syms")
    return set(re.findall(r"\bUND\s+(\w+)", table))


def faults(path, is_program):
    """What is missing in one file."""
    dynamic, segments = readelf(path, "--dynamic"), readelf(path, "--segments")
    taken = imports(path)
    stack = re.search(r"GNU_STACK(?:\s+0x\w+){5}\s+(\w+)", segments)
    missing = []
    if is_program and not (re.search(r"FLAGS_1\).*\bPIE\b", dynamic) and
                           re.search(r"Type:\s+DYN", readelf(path, "--file-header"))):
        missing.append("not a PIE")
    if "GNU_RELRO" not in segments or not re.search(r"\(BIND_NOW\)|FLAGS.*\bNOW\b", dynamic):
        missing.append("no full RELRO")
    if stack is None or "E" in stack.group(1):
        missing.append("an executable stack")
    if re.search(r"\((RPATH|RUNPATH)\)", dynamic):
        missing.append("a path of the build in RPATH")
    if "__stack_chk_fail" not in taken:
        missing.append("no stack protector")
    if is_program and not any(re.fullmatch(r"__(?!stack)\w+_chk", name) for name in taken):
        missing.append("no fortified call")
    return missing


def main(prefix, libdir):
    """Returns the exit status."""
    root = pathlib.Path(prefix)
    paths = [(root / name, True) for name in PROGRAMS]
    paths.append((root / libdir / "libkvarn.so", False))
    wrong = 0
    for path, is_program in paths:
        missing = faults(path, is_program)
        wrong += len(missing)
        print(f"hardening: {path.name}: {', '.join(missing) or 'ok'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
