"""Fixtures of the integration tests: daemons, connections, deadlines, the summary of tries."""
import signal

import pytest

from support.daemon import Daemon
from support.settings import patience
from support.wire import Conn

LOG_TAIL_BYTES = 8000
TRIES = []


def pytest_configure(config):
    config.addinivalue_line("markers", "deadline(seconds): of one test, default 60")


def pytest_terminal_summary(terminalreporter):
    for line in TRIES:
        terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def deadline(request):
    """Every test ends in time: SIGALRM raises in whatever it waits for."""
    marker = request.node.get_closest_marker("deadline")
    seconds = patience(marker.args[0] if marker else 60)

    def expired(*_):
        raise TimeoutError(f"the test took more than {seconds:.0f} s")

    previous = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture
def start():
    """start(*flags, transports=..., env=..., nofile=...): a daemon that must end cleanly."""
    daemons = []

    def start_one(*flags, **options):
        daemon = Daemon(*flags, **options)
        daemons.append(daemon)
        return daemon

    yield start_one
    try:
        for daemon in daemons:
            print(f"--- log of {' '.join(daemon.command[1:])}\n{daemon.log()[-LOG_TAIL_BYTES:]}")
        for daemon in daemons:
            daemon.stop()
    finally:
        for daemon in daemons:
            daemon.kill()
            daemon.clean()


@pytest.fixture
def daemon(start):
    """A daemon with default flags on both transports."""
    return start("--memory-limit", "256MiB", transports=("unix", "tcp"))


@pytest.fixture(params=["unix", "tcp"])
def transport(request):
    return request.param


@pytest.fixture
def connect():
    """connect(address, ...): a connection that is closed at the end."""
    conns = []

    def connect_one(address, **options):
        conn = Conn(getattr(address, "address", address), **options)
        conns.append(conn)
        return conn

    yield connect_one
    for conn in conns:
        conn.close()


@pytest.fixture
def conn(daemon, connect):
    """One connection over the unix socket of `daemon`."""
    return connect(daemon.addresses["unix"])


@pytest.fixture
def tries(request):
    """tries(wrong, tried): a line in the summary, and the verdict."""

    def report(wrong, tried, at_least=10000):
        TRIES.append(f"{request.node.name}: wrong = {wrong}, tried = {tried}")
        assert wrong == 0 and tried >= at_least

    return report
