"""The oracle can fail: what is damaged, dropped or cut away is found, counted and told apart."""
import os
import pathlib
import re
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
SECONDS = 60 * float(os.environ.get("KVARN_TEST_SLOW", "1"))


def run_loop(*arguments):
    """(exit status, counts by name) of a short kill loop."""
    done = subprocess.run([sys.executable, str(HERE / "crash_loop.py"), "--seed", "1",
                           "--kills", "8", *arguments],
                          capture_output=True, text=True, timeout=SECONDS, check=False)
    print(done.stdout[-4000:], done.stderr[-4000:])
    last = done.stdout.strip().splitlines()[-1]
    return done.returncode, {key: int(n) for key, n in re.findall(r"(\w+) = (\d+)", last)}


def test_nothing_is_wrong_without_sabotage():
    status, counts = run_loop()
    assert status == 0 and counts["wrong"] == counts["resurrected"] == 0
    assert counts["kills"] == 8 and counts["tried"] > 100


@pytest.mark.parametrize("way, kind", [("flip", "wrong"), ("drop", "resurrected"),
                                       ("truncate", "resurrected")])
def test_sabotage_is_found(way, kind):
    """One flipped bit in an answer; a drop, a cut that never reached the daemon."""
    status, counts = run_loop("--sabotage", way, "--kills", "20")
    assert status == 1 and counts[kind] > 0, counts
