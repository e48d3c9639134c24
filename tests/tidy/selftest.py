"""Each check must catch the bad snippets of selftest/ and let the good ones pass.

A snippet is a small tree in one text file:

    check: NAME              the check that reads it
    expect: PATH:LINE        a finding, on the line it is about; one line each, none for a good tree
    --- PATH                 the lines of a file follow
    @repeat N TEXT           N lines of TEXT
    @chomp                   drops the newline before it: at the end of a file

Exits 1 where a check finds anything else, has no bad or no good snippet, or passes an empty tree.
"""
import contextlib
import io
import pathlib
import sys

import tidy

FOLDER = pathlib.Path(__file__).resolve().parent / "selftest"


def read_snippet(text):
    """(name of the check, expected places, texts by path)."""
    check, expected, texts, path = None, set(), {}, None
    for line in text.split("\n")[:-1]:
        word, _, rest = line.partition(" ")
        if word == "---":
            path = rest
            texts[path] = ""
        elif path is None and word == "check:":
            check = rest
        elif path is None and word == "expect:":
            expected.add(rest)
        elif path is None:
            raise ValueError(f"neither check nor expect: {line}")
        elif word == "@repeat":
            count, _, what = rest.partition(" ")
            texts[path] += (what + "\n") * int(count)
        elif word == "@chomp":
            texts[path] = texts[path][:-1]
        else:
            texts[path] += line + "\n"
    return check, expected, texts


def try_snippet(path, seen):
    """Returns what is wrong with a check on one snippet, "" where nothing is."""
    check, expected, texts = read_snippet(path.read_bytes().decode("utf-8"))
    findings, counts = tidy.CHECKS[check](tidy.Tree(texts))
    found = {f"{finding.path}:{finding.line}" for finding in findings}
    seen.add((check, bool(expected)))
    if found != expected:
        return f"{path.name}: {check} found {sorted(found)}, expected {sorted(expected)}"
    if not expected and not all(counts.values()):
        return f"{path.name}: {check} looked at nothing in it: {counts}"
    return ""


def main():
    """Returns the exit status."""
    seen, wrong = set(), []
    paths = sorted(FOLDER.glob("*.txt"))
    for path in paths:
        wrong.append(try_snippet(path, seen))
    for check in tidy.CHECKS:
        wrong += [f"{check} has no {'bad' if is_bad else 'good'} snippet"
                  for is_bad in (True, False) if (check, is_bad) not in seen]
        with contextlib.redirect_stdout(io.StringIO()):
            if tidy.run(tidy.Tree({}), [check]) != 1:
                wrong.append(f"{check} passes an empty tree")
    wrong = [text for text in wrong if text]
    for text in wrong:
        print(text)
    print(f"tidy selftest: {len(paths)} snippets, {len(tidy.CHECKS)} checks, {len(wrong)} wrong")
    return 1 if wrong or not paths else 0


if __name__ == "__main__":
    sys.exit(main())
