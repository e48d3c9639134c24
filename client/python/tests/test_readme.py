"""The README's example does what it says."""
import os
import re
import subprocess
import sys

import pytest
from conftest import HERE

README = (HERE.parent / "README.md").read_text()


def test_example_runs(daemon):
    example = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    assert len(example.strip().splitlines()) == 5
    env = {**os.environ, "KVARN_SERVER": daemon.tcp, "PYTHONPATH": str(HERE.parent / "src")}
    done = subprocess.run([sys.executable, "-c", example], env=env, capture_output=True, text=True,
                          timeout=50)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(8, 1, 64)\n"


@pytest.mark.parametrize("name", re.findall(r"`(\w+)`", README.split("| batches")[0].split(
    "| `Session` |")[1]))
def test_session_has_what_the_readme_names(name):
    import kvarn
    assert hasattr(kvarn.Session, name) or name in ("epoch",)
    assert hasattr(kvarn.AsyncSession, name) or name in ("epoch",)


def test_the_projects_readme_shows_the_same_example():
    example = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    assert example in (HERE.parents[2] / "README.md").read_text()
