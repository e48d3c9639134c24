"""The law of ARCHITECTURE: which room may include which, who may use libuv and intrinsics.

    lib/base <- {lib/*, proto} <- {server, client} <- tests

Server and client never include each other, and nothing is above tests. A room is the longest of
ROOMS that a path begins with; ROOMS also says what it may include.
"""
import posixpath
import re

from finding import Finding

# Public headers know only each other: they are installed without the rest.
ROOMS = {
    "lib/include": ("lib/include",),
    "lib/base": ("lib/base", "lib/include"),
    "lib": ("lib",),
    "proto": ("proto", "lib/base", "lib/include"),
    "server": ("server", "proto", "lib"),
    "client/include": ("client/include", "lib/include"),
    "client": ("client", "proto", "lib"),
    "tests": ("tests", "server", "client", "proto", "lib"),
}

# Where `#include "kvarn/..."` and the like may lie, and what the build makes.
SEARCH = ("", "lib/include", "client/include")
GENERATED = {
    "kvarnd.pb-c.h": "proto/kvarnd.pb-c.h",
    "kvarn/version.h": "lib/include/kvarn/version.h",
    "kvarn/err.def": "lib/include/kvarn/err.def",
}

INTRINSICS = re.compile(r"(\w*mmintrin|x86intrin|immintrin|x86gprintrin|cpuid|arm_\w+)\.h")
KERNEL_ROOM = re.compile(r"lib/kernels/\w+/")
CPU_DETECTION = "lib/kernels/cpu.c"
RIVALS = re.compile(r"tests/bench/rivals_\w+\.c")
UV_OWNERS = ("server/io/io_uv.c", "client/src/loop_uv.c")
UV_CALL = re.compile(r"\b(uv_\w+)\s*\(")


def room_of(path):
    """The room of a path, or None where C files have no place."""
    rooms = [room for room in ROOMS if path.startswith(room + "/")]
    return max(rooms, key=len, default=None)


def is_within(path, rooms):
    """Whether a path lies in one of the rooms."""
    return any(path.startswith(room + "/") for room in rooms)


def resolve(tree, source, name):
    """The path of an include in quotes; None where the tree has no such file."""
    if name in GENERATED:
        return GENERATED[name]
    beside = posixpath.normpath(posixpath.join(posixpath.dirname(source.path), name))
    for path in [posixpath.join(folder, name) for folder in SEARCH] + [beside]:
        if path in tree:
            return path
    return None


def check_include_law(tree):
    """Quoted includes go down the law, to files that exist; deploy holds no C."""
    findings, count = [], 0
    for source in tree.c_files():
        room = room_of(source.path)
        if room is None:
            count += 1
            findings.append(Finding(source.path, 1, "C has no place outside the rooms"))
            continue
        for include in source.includes:
            if include.is_system:
                continue
            count += 1
            path = resolve(tree, source, include.name)
            if path is None:
                message = f"{include.name} is not in the tree"
            elif not is_within(path, ROOMS[room]):
                message = f"{room} may not include {path}"
            else:
                continue
            findings.append(Finding(source.path, include.line, message))
    return findings, {"includes": count}


def may_use_intrinsics(source, include):
    """Kernels; the detection of the level; others' kernels that ours are measured against."""
    if include.name == "cpuid.h":
        return source.path == CPU_DETECTION
    return KERNEL_ROOM.match(source.path) or RIVALS.match(source.path)


def check_intrinsics(tree):
    """Headers of intrinsics stay in lib/kernels/<isa>/, but for may_use_intrinsics()."""
    findings, count = [], 0
    for source in tree.c_files():
        for include in source.includes:
            count += 1
            if INTRINSICS.fullmatch(include.name) and not may_use_intrinsics(source, include):
                findings.append(Finding(source.path, include.line,
                    f"{include.name} outside lib/kernels/<isa>/"))
    return findings, {"includes": count}


def check_libuv(tree):
    """Others than the two event-loop files may name libuv's types and call nothing."""
    findings, count = [], 0
    for source in tree.c_files():
        if source.path in UV_OWNERS or source.path.startswith("tests/"):
            continue
        count += 1
        for number, line in enumerate(source.code.split("\n"), 1):
            for name in UV_CALL.findall(line):
                findings.append(Finding(source.path, number, f"{name}() outside the loop's file"))
    return findings, {"files": count}
