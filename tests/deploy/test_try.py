"""try.sh as a newcomer runs it, on the programs of this build."""
import json
import os
import pathlib
import re
import signal
import subprocess

import pytest


@pytest.fixture
def script(root, build):
    """script(*arguments): try.sh without a build of its own; its CompletedProcess."""
    def run(*arguments, folder=build, timeout=240, env=None):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("KVARN")}
        command = ["sh", root / "deploy" / "try.sh", "--no-build", "--build-dir", folder]
        return subprocess.run([str(word) for word in [*command, *arguments]],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=timeout, env={**clean, **(env or {})}, cwd="/")
    return run


def test_the_main_job(script, tmp_path):
    """Bytes and errors on the recorded tensors are those that the documents give."""
    done = script("--", "--json", env={"TMPDIR": str(tmp_path), "KVARND_WORKERS": "wrong"})
    assert done.returncode == 0, done.stderr
    assert "kvarnd ready unix:" in done.stderr and "stopped cleanly" in done.stderr
    assert list(tmp_path.iterdir()) == []
    got = json.loads(done.stdout)
    assert all(check["passed"] for check in got["checks"]) and len(got["checks"]) == 6
    assert [layer["layer"] for layer in got["layers"]] == [0, 1, 7, 15, 22, 29]
    assert got["tokens"] == 1024 and got["query_tokens"] == 128
    # 6 layers, 3 KV heads: 7 blocks of records of 5,248 bytes, one of 128 tokens in fp16.
    assert got["bytes"]["fp16"] == 6 * 3 * 1024 * 128 * 2
    assert got["bytes"]["format"] == 6 * 3 * 7 * 5248
    assert got["bytes"]["sink"] == 6 * 3 * 128 * 128 * 2
    assert got["bytes"]["tail"] == got["bytes"]["reserved"] == 0
    assert got["bits_per_value"] == 2.5625
    # The bars of the refined encoder, lib/FORMAT.md.
    assert 0 < got["mean"]["k_quantised"] <= 0.042
    assert 0 < got["mean"]["v_quantised"] <= 0.110
    assert 0 < got["mean"]["decode"] <= 0.018
    assert 0 < got["mean"]["k_all"] < got["mean"]["k_quantised"]
    assert got["mean"]["decode"] < got["mean"]["attend"] < 0.2
    assert all(rate > 0 for rate in got["tokens_per_second"].values())
    assert got["round_trip"]["append"]["count"] == 6 * 896
    assert got["round_trip"]["append_attend"]["count"] == 6 * 128


def test_options_reach_the_command(script):
    done = script("--", "--preset", "k4v4", "--group", "64", "--json")
    got = json.loads(done.stdout)
    assert (got["preset"], got["group"]) == ("k4v4", 64)
    assert got["mean"]["k_quantised"] < 0.005 and got["mean"]["v_quantised"] < 0.02


def test_model_answers_twice(script, build):
    """The worker that tests/run.sh --python made: both texts, and figures of both sides."""
    if not (build / "python-venv" / "bin" / "python").exists():
        pytest.skip("no worker in this build: tests/run.sh --python")
    done = script("--model", "--", "--document-tokens", "400", "--max-tokens", "8")
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert re.search(r"^prompt of 4\d\d tokens: LICENSE, its first 400 tokens", out)
    assert out.index("local: fp16 cache in the worker\n  | ") < out.index(
        "attend: cache and attention in kvarnd, k2v2, sink 128, seal lag 32\n  | ")
    rows = dict(re.findall(r"^(\w[\w ,/]+?)  +(\S.*\S)$", out, re.MULTILINE))
    assert re.fullmatch(r"[\d.]+ MiB +0", rows["cache in the worker"])
    assert re.fullmatch(r"0 +[\d.]+ MiB", rows["cache in kvarnd"])
    assert all(float(rate) > 0 for rate in rows["decode, tokens/s"].split())
    first, told = map(int, re.search(r"the first (\d) of [1-8] tokens are the same; along local's "
                                     r"text attend chooses (\d) of [1-8] alike", out).groups())
    assert first <= told <= 8 and told >= 4


def test_model_runs_the_worker_of_the_build_folder(script, tmp_path):
    daemon(tmp_path, "exit 0")
    program(tmp_path / "python-venv" / "bin" / "python", 'echo "$KVARN_SERVER" "$@"\n')
    done = script("--model", "--", "--preset", "k4v4", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    server, *arguments = done.stdout.split()
    assert server.startswith("unix:/") and arguments[:3] == ["-m", "kvarn.worker", "compare"]
    assert arguments[-2:] == ["--preset", "k4v4"]


def test_model_without_its_environment(script, tmp_path):
    daemon(tmp_path, "exit 0")
    done = script("--model", folder=tmp_path)
    assert done.returncode == 1 and "python-venv/bin/python; run without --no-build" in done.stderr


def test_keep_leaves_a_daemon_and_tells_how_to_use_it(script, tmp_path):
    done = script("--keep", env={"TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    pid = int(re.search(r"^  kill (\d+) && rm -r (\S+)$", done.stderr, re.MULTILINE).group(1))
    try:
        server = re.search(r"export KVARN_SERVER=(\S+)", done.stderr).group(1)
        told = re.findall(r"^  (\S+/kvarnctl (?:ping|inspect evaluate))$", done.stderr,
                          re.MULTILINE)
        assert len(told) == 2
        for command in told:
            answer = subprocess.run(command.split(), env={"KVARN_SERVER": server}, timeout=30,
                                    capture_output=True, text=True)
            assert answer.returncode == 0, answer
        assert "ERROR against fp16" in done.stdout
    finally:
        log = next(tmp_path.iterdir()) / "log"
        ended = os.pidfd_open(pid)
        os.kill(pid, signal.SIGTERM)
        assert pathlib.Path(log).exists()
        wait_until_readable(ended, 30)
    assert "event=stopped" in log.read_text()


def wait_until_readable(fd, seconds):
    """A process descriptor is readable once the process has ended."""
    import select
    try:
        assert select.select([fd], [], [], seconds)[0], "the daemon did not end"
    finally:
        os.close(fd)


def test_wrong_usage_is_2(script):
    for arguments in (["--kep"], ["--build-dir"], ["x"]):
        done = script(*arguments)
        assert done.returncode == 2 and "usage:" in done.stderr and done.stdout == ""


def test_missing_programs_are_named(script, tmp_path):
    done = script(folder=tmp_path)
    assert done.returncode == 1 and "bin/kvarnd; run without --no-build" in done.stderr
    done = script(folder=tmp_path / "nowhere")
    assert done.returncode == 1 and "there is no folder" in done.stderr


def program(path, text):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)


def daemon(folder, at_term):
    """Programs that say they are ready, and do `at_term` at SIGTERM."""
    program(folder / "bin" / "kvarnd", f"trap '{at_term}' TERM\necho 'kvarnd ready unix:x'\n"
            "mkfifo \"$0.pipe\"\nread -r line <>\"$0.pipe\"\n")
    program(folder / "bin" / "kvarnctl", "echo table\n")


def test_a_daemon_that_does_not_start_is_quoted(script, tmp_path):
    program(tmp_path / "bin" / "kvarnd", "echo 'event=start_failed' >&2; exit 1\n")
    program(tmp_path / "bin" / "kvarnctl", "exit 0\n")
    done = script(folder=tmp_path)
    assert done.returncode == 1
    assert "event=start_failed" in done.stderr and "did not become ready" in done.stderr


def test_a_daemon_that_ends_badly_is_a_failure(script, tmp_path):
    """Ready, then an exit status other than 0 at SIGTERM."""
    daemon(tmp_path, "exit 9")
    done = script(folder=tmp_path)
    assert done.returncode == 1 and done.stdout == "table\n"
    assert "ended with status 9 instead of 0" in done.stderr


def test_a_command_that_fails_stops_the_daemon(script, tmp_path):
    daemon(tmp_path, f"echo gone >{tmp_path}/end; exit 0")
    program(tmp_path / "bin" / "kvarnctl", "exit 1\n")
    done = script(folder=tmp_path)
    assert done.returncode == 1 and "kvarnctl evaluate failed" in done.stderr
    assert (tmp_path / "end").read_text() == "gone\n"
