"""Where the oracle and the integration tests' client are; a deadline for every test."""
import pathlib
import signal
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "integration")]


def pytest_configure(config):
    config.addinivalue_line("markers", "deadline(seconds): of one test, default 60")


@pytest.fixture(autouse=True)
def deadline(request):
    """Every test ends in time: SIGALRM raises in whatever it waits for."""
    from support.settings import patience
    marker = request.node.get_closest_marker("deadline")
    seconds = patience(marker.args[0] if marker else 60)

    def expired(*_):
        raise TimeoutError(f"the test took more than {seconds:.0f} s")

    previous = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)
