"""The container's recipe: what its build sees suffices, and what it runs has its libraries.

There is mostly no container engine where tests run, so its steps are looked at one by one.
"""
import pathlib
import re
import shutil
import subprocess

import pytest


@pytest.fixture
def folder(root):
    return root / "deploy" / "docker"


def run(*command, timeout=120, **options):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True,
                          timeout=timeout, **options)


def instructions(path):
    """(name, rest) of each instruction, continued lines joined."""
    text = re.sub(r"\\\n", " ", path.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in lines]


@pytest.mark.skipif(not shutil.which("hadolint"), reason="there is no hadolint")
def test_lint(folder):
    done = run("hadolint", folder / "Dockerfile")
    assert done.returncode == 0, done.stdout


def test_runs_as_nobody_special_and_is_asked_how_it_is(folder):
    found = dict(instructions(folder / "Dockerfile"))
    assert re.fullmatch(r"\d+:\d+", found["USER"]) and found["USER"] != "0:0"
    assert 'CMD ["/usr/bin/kvarnctl", "ping"]' in found["HEALTHCHECK"]
    assert found["ENTRYPOINT"] == '["/usr/bin/kvarnd"]'
    assert found["STOPSIGNAL"] == "SIGTERM"


def test_build_context_suffices(folder, root, build, tmp_path):
    """What .dockerignore lets through configures, and a compiler finds every source."""
    ignore = (folder / "Dockerfile.dockerignore").read_text().splitlines()
    kept = [line[1:] for line in ignore if line.startswith("!")]
    assert "*" in ignore and kept
    context = tmp_path / "src"
    context.mkdir()
    for name in kept:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, context / name)
        else:
            shutil.copy(source, context / name)
    done = run("cmake", "-S", context, "-B", tmp_path / "b", "-G", "Ninja", "-DKVARND_TESTS=OFF")
    assert done.returncode == 0, done.stderr
    done = run("ninja", "-C", tmp_path / "b", "-n", "kvarnd", "kvarnctl")
    assert done.returncode == 0, done.stdout + done.stderr


def release():
    path = pathlib.Path("/etc/os-release")
    return dict(re.findall(r'^(\w+)="?(.*?)"?$', path.read_text() if path.exists() else "",
                           re.MULTILINE))


def owner(path):
    """The package that a file is of, where /lib may be /usr/lib."""
    for name in (str(path), str(path).removeprefix("/usr")):
        found = run("dpkg-query", "-S", name)
        if found.returncode == 0:
            return found.stdout.split(":")[0]
    raise AssertionError(f"{path} is of no package")


@pytest.mark.skipif((release().get("ID"), release().get("VERSION_ID")) != ("debian", "12"),
                    reason="the image is Debian 12, and this is not")
def test_image_has_every_library(folder, build):
    """Packages of the run stage, against those of the libraries that the programs load."""
    stage = [rest for name, rest in instructions(folder / "Dockerfile") if name == "RUN"][-1]
    listed = set(re.search(r"--no-install-recommends ([\w .+-]+?) *&&", stage).group(1).split())
    needed = set()
    for program in ("kvarnd", "kvarnctl"):
        head = run("readelf", "-d", build / "bin" / program).stdout
        names = set(re.findall(r"NEEDED.*\[(.*)\]", head))
        loaded = dict(re.findall(r"(\S+) => (/\S+)", run("ldd", build / "bin" / program).stdout))
        assert names and names <= loaded.keys()
        needed |= {owner(pathlib.Path(loaded[name]).resolve()) for name in names}
    base = {"libc6", "libgcc-s1"}  # of every image
    sanitizers = {name for name in needed if re.match(r"lib(a|t|ub)san", name)}
    # A build without jemalloc, or on a system without libsystemd, is not the image's.
    assert needed - base - sanitizers | {"libjemalloc2", "libsystemd0"} == listed
