"""Daemons for the tests of package kvarn, and a bound on each test.

The environment's KVARND names the daemon, or KVARN_BUILD the build folder that has it in bin/.
"""
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent
sys.path.insert(0, str(HERE.parent / "src"))
SLOW = float(os.environ.get("KVARN_TEST_SLOW", "1"))


def build_folder():
    """Where the tree was built."""
    return pathlib.Path(os.environ.get("KVARN_BUILD", ROOT / "build"))


def daemon_path():
    """The daemon to test with; the tests fail where there is none."""
    path = pathlib.Path(os.environ.get("KVARND") or build_folder() / "bin" / "kvarnd")
    assert path.is_file(), f"{path} is not there: set KVARND, or KVARN_BUILD to a build folder"
    return path


class Daemon:
    """A running kvarnd on a unix socket and on TCP."""

    def __init__(self, *flags, folder=None):
        self.folder = pathlib.Path(folder or tempfile.mkdtemp(prefix="kvarn-python-"))
        self.unix = f"unix:{self.folder / 'kvarnd.sock'}"
        self.command = [str(daemon_path()), "--listen-unix", self.unix[5:], "--listen-tcp",
                        "127.0.0.1:0", "--insecure-tcp", *map(str, flags)]
        self.process = None
        self.start()

    def start(self):
        env = {k: v for k, v in os.environ.items() if not k.startswith("KVARN")}
        with open(self.folder / "stderr", "ab") as stderr:
            self.process = subprocess.Popen(self.command, env=env, stdin=subprocess.DEVNULL,
                                            stdout=subprocess.PIPE, stderr=stderr)
        end, line = time.monotonic() + 20 * SLOW, b""
        while not line.endswith(b"\n"):
            ready = select.select([self.process.stdout], [], [], end - time.monotonic())[0]
            data = os.read(self.process.stdout.fileno(), 1) if ready else b""
            assert data, f"the daemon is not ready: {self.log()}"
            line += data
        self.tcp = next(w for w in line.decode().split() if w.startswith("tcp:"))

    def log(self):
        return (self.folder / "stderr").read_text(errors="replace")

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def stop(self):
        """SIGTERM; it must end well."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(30 * SLOW)
        self.process.stdout.close()
        assert status == 0 and "ERROR" not in self.log(), f"{status}\n{self.log()}"


@pytest.fixture(autouse=True)
def deadline(request):
    """Every test ends in time."""
    marker = request.node.get_closest_marker("deadline")
    seconds = (marker.args[0] if marker else 60) * SLOW

    def expired(*_):
        raise TimeoutError(f"the test took more than {seconds:.0f} s")

    previous = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


def pytest_configure(config):
    config.addinivalue_line("markers", "deadline(seconds): of one test, default 60")


@pytest.fixture
def start():
    """start(*flags): a daemon of the test's own."""
    daemons = []

    def start_one(*flags):
        daemons.append(Daemon(*flags))
        return daemons[-1]

    yield start_one
    for one in daemons:
        if one.process.poll() is None:
            one.kill()
        shutil.rmtree(one.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_daemon():
    one = Daemon("--memory-limit", "256MiB")
    yield one
    one.stop()
    shutil.rmtree(one.folder, ignore_errors=True)


@pytest.fixture
def daemon(shared_daemon):
    """One daemon for all tests that only need some daemon."""
    return shared_daemon
