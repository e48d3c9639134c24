"""The tidy test: holds the tree to its own rules and says how much it looked at.

usage: python3 tests/tidy/tidy.py [ROOT] [CHECK...]

Reads the working tree, git or no git. Exits 1 for a finding, and also for a check that looked at
nothing: such a check is broken, not clean.
"""
import pathlib
import sys

import code_checks
import law
import text_checks
from source import Source

ROOMS = ("proto", "server", "client", "lib", "tests", "deploy", ".ci")
CODE_SUFFIXES = (".c", ".h", ".def", ".proto", ".py", ".sh", ".cmake", "CMakeLists.txt", "run")
TEXT_SUFFIXES = CODE_SUFFIXES + (".md", ".json", ".txt", ".in", ".yml", ".yaml", ".service",
    ".conf", "Dockerfile", ".dockerignore", ".gitignore", ".clang-format", ".clang-tidy",
    ".editorconfig", ".svg")
# Bad on purpose; made elsewhere and kept as it came; made by runs.
SKIPPED = ("tests/tidy/selftest/", "tests/golden/cases", "tests/golden/frames/", "tests/data/",
    "tests/fuzz/corpus/")
# What Python's tools leave in the tree; the last two are pip's, of client/python.
SKIPPED_FOLDERS = ("__pycache__", ".pytest_cache", ".hypothesis", ".mypy_cache", "build",
                   "kvarn.egg-info")

CHECKS = {
    "include_law": law.check_include_law,
    "intrinsics": law.check_intrinsics,
    "libuv": law.check_libuv,
    "function_length": code_checks.check_function_length,
    "function_shape": code_checks.check_function_shape,
    "file_length": code_checks.check_file_length,
    "header_comment": code_checks.check_header_comment,
    "prototype_comments": code_checks.check_prototype_comments,
    "goto": code_checks.check_goto,
    "unique_names": code_checks.check_unique_names,
    "prefixes": code_checks.check_prefixes,
    "white_space": text_checks.check_white_space,
    "columns": text_checks.check_columns,
    "words": text_checks.check_words,
    "no_sleep": text_checks.check_no_sleep,
}


class Tree:
    """The files that the checks read, by path."""

    def __init__(self, texts):
        self.sources = {path: Source(path, text) for path, text in sorted(texts.items())}

    def __contains__(self, path):
        return path in self.sources

    def text_files(self):
        """All of them."""
        return list(self.sources.values())

    def code_files(self):
        """C, Python, shell, CMake, protobuf."""
        return [s for s in self.sources.values() if s.suffix in CODE_SUFFIXES
                or s.basename in CODE_SUFFIXES]

    def c_files(self):
        """Sources and headers of C."""
        return [s for s in self.sources.values() if s.is_c]


def is_text(path):
    """Whether a path (relative, slashes) is one that checks read."""
    name = path.rsplit("/", 1)[-1]
    return not path.startswith(SKIPPED) and name.endswith(TEXT_SUFFIXES)


def read_tree(root):
    """All texts of the rooms and of the top level under `root`."""
    paths = [path for path in root.iterdir() if path.is_file()]
    for room in ROOMS:
        paths += [path for path in (root / room).rglob("*") if path.is_file()
                  and not any(part in SKIPPED_FOLDERS for part in path.relative_to(root).parts)]
    texts = {path.relative_to(root).as_posix(): path for path in paths}
    return Tree({name: path.read_bytes().decode("utf-8") for name, path in texts.items()
                 if is_text(name)})


def run(tree, names):
    """Runs the checks, prints a line for each and every finding; returns how many failed."""
    failed = 0
    for name in names:
        findings, counts = CHECKS[name](tree)
        has_looked = all(counts.values())
        is_ok = has_looked and not findings
        failed += not is_ok
        looked = ", ".join(f"{value} {what}" for what, value in counts.items())
        print(f"{name}: {looked}: {'ok' if is_ok else 'FAILED'}")
        if not has_looked:
            print(f"  {name} looked at nothing")
        for finding in findings:
            print(f"  {finding.path}:{finding.line}: {finding.message}")
    return failed


def main(arguments):
    """Returns the exit status."""
    default = pathlib.Path(__file__).resolve().parents[2]
    root = pathlib.Path(arguments[0]) if arguments else default
    tree = read_tree(root)
    failed = run(tree, arguments[1:] or CHECKS)
    files, functions = tree.c_files(), sum(len(s.functions) for s in tree.c_files())
    print(f"tidy: {len(tree.sources)} files, {len(files)} of C, {functions} functions in C; "
          f"{failed} checks failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
