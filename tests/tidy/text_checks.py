"""What every text of the tree keeps: white space, columns, words; and tests that never sleep."""
import re

from finding import Finding

COLUMNS_MAX = 100

# Folders of one person's or one machine's disk; fixed names in /tmp; marks of unfinished work.
WORDS = (
    (re.compile(r"(?<![\w./$}-])/(home|root|work|Users|workspace)/\w"), "a path of one machine"),
    (re.compile(r"/tmp/(?=[\w.-])(?![\w.-]*X{6})[\w.-]+/"), "a fixed folder in /tmp"),
    (re.compile(r"\b(" + "TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b"), "a mark of unfinished work"),
    (re.compile(r"^(<{7}|={7}|>{7})( |$)", re.MULTILINE), "a conflict of a merge"),
)

SLEEPS = {
    ".c": re.compile(r"\b(sleep|usleep|nanosleep|clock_nanosleep|thrd_sleep|uv_sleep)\s*\("
                     r"|\b(poll|select)\s*\(\s*(NULL|0)\s*,"),
    ".py": re.compile(r"\bsleep\s*\(|\bimport\s+sleep\b"),
    ".sh": re.compile(r"(^|[;&|({]|\b(do|then|else)\b)\s*sleep\s+\S"),
}
SLEEPS[".h"] = SLEEPS[".c"]


def line_of(text, position):
    """The line of a position, counted from 1."""
    return text.count("\n", 0, position) + 1


def check_white_space(tree):
    """No tabs, no blanks at the end of a line, one newline at the end, no carriage returns."""
    findings, count = [], 0
    for source in tree.text_files():
        for number, line in enumerate(source.lines, 1):
            count += 1
            if line != line.rstrip():
                findings.append(Finding(source.path, number, "white space at the end"))
            if "\t" in line:
                findings.append(Finding(source.path, number, "a tab"))
        if source.text and (not source.text.endswith("\n") or source.text.endswith("\n\n")):
            findings.append(Finding(source.path, len(source.lines), "no single newline at the end"))
    return findings, {"lines": count}


def check_columns(tree):
    """Code has at most 100 columns. Documents wrap where their tables and links let them."""
    findings, count = [], 0
    for source in tree.code_files():
        for number, line in enumerate(source.lines, 1):
            count += 1
            if len(line) > COLUMNS_MAX:
                findings.append(Finding(source.path, number, f"{len(line)} columns"))
    return findings, {"lines": count}


def check_words(tree):
    """Nothing that belongs to one machine or to work under way."""
    findings, count = [], 0
    for source in tree.text_files():
        count += 1
        for pattern, what in WORDS:
            for match in pattern.finditer(source.text):
                findings.append(Finding(source.path, line_of(source.text, match.start()),
                    f"{what}: {match.group(0).strip()}"))
    return findings, {"files": count}


def check_no_sleep(tree):
    """Tests wait for what they wait for, with a bound; they never sleep."""
    findings, count = [], 0
    for source in tree.code_files():
        pattern = SLEEPS.get(source.suffix)
        if pattern is None or not source.path.startswith("tests/"):
            continue
        count += 1
        text = source.code if source.is_c else re.sub(r"#.*", "", source.text)
        for number, line in enumerate(text.split("\n"), 1):
            if pattern.search(line):
                findings.append(Finding(source.path, number, "a test sleeps"))
    return findings, {"files": count}
