"""What the tests of deploy/ share: where the tree and the build are.

KVARN_BUILD_DIR  folder of the build, with bin/ in it; default build
"""
import os
import pathlib
import re

import pytest

EXIT_SKIPPED = 77
ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("KVARN_BUILD_DIR", ROOT / "build"))


def pytest_sessionfinish(session, exitstatus):
    """A run of which every test was skipped says so to ctest."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    ran = [key for key in ("passed", "failed", "error") if reporter.stats.get(key)]
    if exitstatus == 0 and not ran and reporter.stats.get("skipped"):
        session.exitstatus = EXIT_SKIPPED


@pytest.fixture
def root():
    return ROOT


@pytest.fixture
def build():
    return BUILD


def list_rows(path, pattern):
    """Rows of a .def file: what `pattern` finds behind "X(", with strings still quoted."""
    text = re.sub(r",\n +", ", ", (ROOT / path).read_text())  # a row may take two lines
    rows = re.findall(rf"^X\({pattern}\)$", text, re.MULTILINE)
    lines = re.findall(r"^X\(", text, re.MULTILINE)
    assert rows and len(rows) == len(lines), f"{path}: {len(rows)} of {len(lines)} rows understood"
    return rows


@pytest.fixture
def rows():
    return list_rows
