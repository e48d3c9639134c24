"""`pip install ./client/python`, from a copy of the folder, without the network."""
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from conftest import HERE, SLOW

PACKAGE = HERE.parent


def can_build():
    """Whether the packages that pip builds with are here; importing setuptools patches others."""
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        return False
    major, minor = (int(n) for n in version.split(".")[:2])
    has_wheel = (major, minor) >= (70, 1) or importlib.util.find_spec("wheel") is not None
    return has_wheel and major >= 61 and importlib.util.find_spec("pip") is not None


pytestmark = pytest.mark.skipif(not can_build(), reason="pip, setuptools or wheel is not installed")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Where the package was installed, and nothing else."""
    folder = tmp_path_factory.mktemp("install")
    shutil.copytree(PACKAGE, folder / "source", ignore=shutil.ignore_patterns(
        "build", "*.egg-info", "__pycache__", ".mypy_cache", "tests"))
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps",
         "--no-build-isolation", "--target", folder / "target", folder / "source"],
        capture_output=True, text=True, timeout=50 * SLOW)
    assert done.returncode == 0, done.stderr
    return folder / "target"


def test_all_modules_are_there(installed):
    ours = {p.relative_to(PACKAGE / "src") for p in (PACKAGE / "src").rglob("*.py")}
    theirs = {p.relative_to(installed) for p in installed.rglob("*.py")}
    assert ours == theirs and len(ours) > 20
    assert (installed / "kvarn" / "py.typed").is_file()
    assert (installed / "bin" / "kvarn-worker").is_file()


def test_example_runs_where_it_was_installed(installed, daemon, tmp_path):
    example = re.search(r"```python\n(.*?)```", (PACKAGE / "README.md").read_text(), re.S).group(1)
    env = {**os.environ, "KVARN_SERVER": daemon.unix, "PYTHONPATH": str(installed)}
    code = example + "\nprint(kvarn.__file__)"
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True,
                          text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    shape, path = done.stdout.splitlines()
    assert shape == "(8, 1, 64)" and pathlib.Path(path).is_relative_to(installed)
