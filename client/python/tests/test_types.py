"""The package is typed: mypy, strict, says so where it is installed."""
import subprocess
import sys

import pytest
from conftest import HERE, SLOW

pytest.importorskip("mypy", reason="package mypy is not installed: tests/python/venv.sh")


@pytest.mark.deadline(150)
def test_package_is_typed(tmp_path):
    done = subprocess.run([sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path)],
                          cwd=HERE.parent, capture_output=True, text=True, timeout=140 * SLOW)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no issues found in" in done.stdout
