"""The README's C example, as it is compiled by the tests, against the real daemon."""
import os
import pathlib
import subprocess

from support.settings import BIN, patience

EXAMPLE = pathlib.Path(os.environ.get("KVARN_EXAMPLE", BIN / "example_client"))


def run_example(address):
    return subprocess.run([str(EXAMPLE), address], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=patience(20))


def test_example_prints_what_its_comment_says(daemon, conn, transport):
    done = run_example(daemon.addresses[transport])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "out[0] = 1.0000, lse[0] = 1.3863\n"
    while conn.counter("sessions_open"):  # its session ended with its connection
        pass


def test_example_without_a_daemon_fails(tmp_path):
    done = run_example(f"unix:{tmp_path}/nobody")
    assert done.returncode == 1 and done.stdout == "" and done.stderr


def test_readme_shows_this_program():
    root = pathlib.Path(__file__).resolve().parents[2]
    source = (root / "tests/integration/example_client.c").read_text()
    assert source in (root / "README.md").read_text()
