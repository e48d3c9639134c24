"""OPERATIONS.md names every option, metric, event and error that there is, and none besides."""
import re
import subprocess

import pytest


@pytest.fixture
def manual(root):
    return (root / "deploy" / "OPERATIONS.md").read_text()


def table(text, first):
    """Rows of the table whose first column is headed `first`, as lists of cells."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| {first} |"):
            break
    else:
        pytest.fail(f"no table of {first}")
    assert set(next(lines)) <= set("| -")
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line[1:].rstrip("|").split("|")])
        assert all(rows[-1][2:]), f"nothing is said of {rows[-1][0]}"
    assert rows
    return rows


def code(cell):
    return cell.strip("`")


def test_every_option_is_there_with_its_default(manual, root, rows):
    socket = re.search(r'KVARN_DEFAULT_SOCKET "(.*)"',
                       (root / "lib" / "base" / "limits.h").read_text()).group(1)
    want = {}
    for flag, default in rows("server/config/config.def", r'\w+, \w+, "([\w-]+)", (\S+), ".*"'):
        want["--" + flag] = socket if default == "KVARN_DEFAULT_SOCKET" else default.strip('"')
    assert {code(row[0]): code(row[1]) for row in table(manual, "option")} == want


def test_options_are_those_of_the_program(manual, build):
    usage = subprocess.run([build / "bin" / "kvarnd", "--help"], capture_output=True, text=True,
                           timeout=20, check=True).stdout
    listed = dict(re.findall(r"^  (--[\w-]+) .*\[(.*)\]$", usage, re.MULTILINE))
    assert listed == {code(row[0]): code(row[1]) for row in table(manual, "option")}


def test_every_metric_is_there_with_its_meaning(manual, rows):
    got = {code(row[0]): (row[1], row[2]) for row in table(manual, "metric")}
    want = {name: (kind.lower(), text)
            for name, kind, text in rows("server/base/metrics.def", r'(\w+), (\w+), "(.*)"')}
    assert list(got) == list(want)
    for name, (kind, text) in want.items():
        assert got[name][0] == kind, name
        assert got[name][1].startswith(text), name


def test_every_event_is_there_with_its_level(manual, root):
    want = set()
    for path in (root / "server").rglob("*.c"):
        want |= {(event, level.lower()) for level, event in
                 re.findall(r'kvd_log\(\s*KVD_LOG_(\w+),\s*"(\w+)"', path.read_text())}
    assert len(want) > 5
    assert {(code(row[0]), row[1]) for row in table(manual, "event")} == want


def test_every_error_is_there_with_its_text(manual, rows):
    got = {row[0]: row[1] for row in table(manual, "error")}
    assert got == dict(rows("lib/base/err.def", r'\d+, (\w+), "\w+", "(.*)"'))


def test_figures_are_those_of_the_calculator(manual, build):
    command = "kvarnctl size --layers 32 --kv-heads 8 --head-dim 128"
    quoted = manual.split(f"    $ {command}\n")[1].split("\n\n")[0].splitlines()
    out = subprocess.run([build / "bin" / "kvarnctl", *command.split()[1:]], capture_output=True,
                         text=True, timeout=20, check=True).stdout
    assert [line[4:] for line in quoted] == out.splitlines()


def test_links_lead_somewhere(manual, root):
    anchors = {re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
               for line in manual.splitlines() if line.startswith("#")}
    links = re.findall(r"\]\(#([\w-]+)\)", manual)
    assert links and set(links) <= anchors
    named = re.findall(r"\b((?:deploy|lib|proto|server)/(?!sys)[\w./-]+\.\w+)\b", manual)
    assert len(named) >= 3  # lib/systemd and lib/sysusers.d are where things are installed
    for path in named:
        assert (root / path).exists(), path
