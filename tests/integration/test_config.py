"""kvarnd as a command: where its configuration comes from, what it refuses (SEMANTICS.md 25)."""
import os
import stat

import pytest

from support.daemon import run_kvarnd
from support.wire import Conn

KEYS = ["listen_unix", "listen_tcp", "insecure_tcp", "allow_uids", "memory_limit", "workers",
        "connections_max", "sessions_max", "credit_requests", "credit_bytes", "payload_max",
        "output_max", "header_timeout", "write_timeout", "idle_timeout", "drain_timeout",
        "flush_timeout", "log_level"]


def printed(*args, env=None):
    """The merged configuration as a dict."""
    done = run_kvarnd(*args, "--print-config", env=env)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line and line[0] not in "#;["]
    return {key.strip(): value.strip().strip('"')
            for key, value in (line.split("=", 1) for line in lines)}


def refused(*args, env=None):
    """Exit status 2; returns what it said."""
    done = run_kvarnd(*args, env=env)
    assert done.returncode == 2 and done.stdout == "", (args, done)
    assert done.stderr.startswith("kvarnd: ")
    return done.stderr


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "kvarnd.conf"
        path.write_text(text)
        return path
    return write


def test_defaults_name_every_key():
    config = printed()
    assert set(KEYS) <= config.keys()
    assert config["workers"] == "1" and config["listen_tcp"] == ""


def test_flags_win_over_environment_over_file(file):
    path = file("[kvarnd]\nworkers = 2\ncredit_requests = 20\nsessions_max = 200\n")
    env = {"KVARND_CREDIT_REQUESTS": "30", "KVARND_SESSIONS_MAX": "300"}
    assert printed("--config", path)["workers"] == "2"
    config = printed("--config", path, "--sessions-max", "400", env=env)
    assert (config["workers"], config["credit_requests"], config["sessions_max"]) == \
        ("2", "30", "400")
    assert printed(env={"KVARND_CONFIG": str(path)})["sessions_max"] == "200"


def test_printed_config_can_be_read_back(file):
    flags = ["--memory-limit", "123MiB", "--workers=3", "--listen-tcp", "127.0.0.1:7411",
             "--insecure-tcp", "--allow-uids", "1000,1001", "--idle-timeout", "5000",
             "--log-level", "debug", "--listen-unix", "/tmp/a socket"]
    done = run_kvarnd(*flags, "--print-config")
    assert done.returncode == 0
    again = run_kvarnd("--config", file(done.stdout), "--print-config")
    assert again.returncode == 0 and again.stdout == done.stdout
    assert printed(*flags)["memory_limit"] != printed()["memory_limit"]


def test_check_config(file):
    done = run_kvarnd("--check-config")
    assert done.returncode == 0 and "ok" in done.stdout
    assert "typo" in refused("--check-config", "--config", file("[kvarnd]\ntypo = 1\n"))


@pytest.mark.parametrize("args, env, said", [
    (["--nope"], {}, "--nope"),
    (["--workers"], {}, "--workers"),
    (["--workers", "many"], {}, "many"),
    (["--memory-limit", "12parsecs"], {}, "12parsecs"),
    (["stray"], {}, "stray"),
    ([], {"KVARND_NOPE": "1"}, "KVARND_NOPE"),
    ([], {"KVARND_WORKERS": "x"}, "KVARND_WORKERS"),
    (["--log-level", "loud"], {}, "loud"),
    (["--allow-uids", "root"], {}, "root"),
    (["--listen-unix", ""], {}, "listen"),
    (["--config", "/nonexistent/kvarnd.conf"], {}, "/nonexistent/kvarnd.conf"),
])
def test_wrong_configuration_is_an_error(args, env, said):
    assert said in refused(*args, env=env)


@pytest.mark.parametrize("text, said", [
    ("[kvarnd]\nnope = 1\n", "nope"),
    ("[other]\nworkers = 1\n", "outside the section [kvarnd]"),
    ("[kvarnd]\nworkers = -1\n", "-1"),
    ("[kvarnd]\nworkers\n", "2"),
])
def test_wrong_file_is_an_error(file, text, said):
    assert said in refused("--config", file(text), "--check-config")


def test_s25_tcp_needs_insecure_tcp_and_loopback():
    assert "insecure-tcp" in refused("--listen-tcp", "127.0.0.1:0")
    for address in ("0.0.0.0:0", "192.168.1.1:7411", "[::]:0"):
        assert "listen-tcp" in refused("--listen-tcp", address, "--insecure-tcp")
    assert "localhost" in refused("--listen-tcp", "localhost:1", "--insecure-tcp")


def test_s25_tcp_without_authentication_is_warned_of(start):
    daemon = start("--listen-unix", "", transports=("tcp",))
    assert daemon.addresses.keys() == {"tcp"}
    with Conn(daemon.address) as conn:
        conn.ping()
    assert "tcp_not_authenticated" in daemon.log()


def test_ready_line_names_the_addresses(start):
    daemon = start(transports=("unix", "tcp"))
    assert daemon.addresses["unix"] == f"unix:{daemon.folder}/kvarnd.sock"
    assert daemon.addresses["tcp"].startswith("tcp:127.0.0.1:")
    assert daemon.addresses["tcp"] != "tcp:127.0.0.1:0"
    for address in daemon.addresses.values():
        with Conn(address) as conn:
            conn.ping()


def test_s25_socket_is_for_the_owner(start):
    """Whatever the umask, the socket's folder or the socket itself keeps others out."""
    daemon = start(umask=0)
    path = daemon.folder / "kvarnd.sock"
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    assert os.stat(daemon.folder).st_mode & 0o077 == 0


def test_s25_socket_folder_is_made_private(start):
    """A folder that is not there is made 0700 before listening."""
    daemon = start()
    inner = daemon.folder / "made" / "kvarnd.sock"
    other = start("--listen-unix", str(inner))
    assert other.addresses["unix"] == f"unix:{inner}"
    assert stat.S_IMODE(os.stat(inner.parent).st_mode) == 0o700


def test_second_daemon_on_the_same_socket_is_refused(start):
    daemon = start()
    done = run_kvarnd("--listen-unix", daemon.folder / "kvarnd.sock")
    assert done.returncode == 1
    with Conn(daemon.address) as conn:  # the first one is not disturbed
        conn.ping()


def test_stale_socket_is_replaced(start):
    first = start()
    path = str(first.folder / "kvarnd.sock")
    first.kill()
    assert os.path.exists(path)
    second = start("--listen-unix", path)
    with Conn(second.address) as conn:
        conn.ping()


def test_version_and_help():
    assert run_kvarnd("--version").stdout.startswith("kvarnd ")
    text = run_kvarnd("--help").stdout
    for key in KEYS:
        assert "--" + key.replace("_", "-") in text
