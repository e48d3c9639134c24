"""The unit is valid and tight, and agrees with the example configuration and with kvarnd."""
import pathlib
import re
import shutil
import subprocess

import pytest

EXPOSURE_MAX = 0.4  # of 10; what is left is the root folder, AF_UNIX, /proc and users to see
OTHER_DESCRIPTORS = 64  # besides connections

needs_analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"),
                                   reason="there is no systemd-analyze")


def run(*command, timeout=60):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True,
                          timeout=timeout)


@pytest.fixture
def folder(root):
    return root / "deploy" / "systemd"


def settings(path):
    """name -> values of a unit file, in order."""
    found = {}
    for line in path.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


@pytest.fixture
def unit(folder):
    return settings(folder / "kvarnd.service")


@pytest.fixture
def here(folder, build, tmp_path):
    """The unit with this build's kvarnd in it."""
    text = (folder / "kvarnd.service").read_text()
    assert text.count("/usr/bin/kvarnd") == 1
    path = tmp_path / "kvarnd.service"
    path.write_text(text.replace("/usr/bin/kvarnd", str(build.resolve() / "bin" / "kvarnd")))
    return path


@needs_analyze
def test_unit_is_valid(here):
    done = run("systemd-analyze", "verify", "--man=no", here)
    assert done.returncode == 0 and done.stdout + done.stderr == "", done


@needs_analyze
def test_verify_sees_a_wrong_unit(here):
    here.write_text(here.read_text().replace("ProtectHome=yes", "ProtectHomes=yes"))
    assert "ProtectHomes" in run("systemd-analyze", "verify", "--man=no", here).stderr


@needs_analyze
def test_unit_is_tight(here):
    version = int(re.search(r"systemd (\d+)", run("systemd-analyze", "--version").stdout).group(1))
    if version < 250:
        pytest.skip(f"systemd-analyze {version} looks at running units only")
    done = run("systemd-analyze", "security", "--offline=true", "--no-pager", here)
    level = re.search(r"Overall exposure level for kvarnd.service: ([\d.]+)", done.stdout)
    assert level, done
    assert float(level.group(1)) <= EXPOSURE_MAX, done.stdout


@pytest.mark.skipif(not shutil.which("systemd-sysusers"), reason="there is no systemd-sysusers")
def test_user_of_the_unit_is_made(folder, unit, tmp_path):
    (tmp_path / "etc").mkdir()
    done = run("systemd-sysusers", f"--root={tmp_path}", folder / "kvarnd.sysusers")
    if "Permission denied" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip("only root can make users, even in a folder")
    assert done.returncode == 0, done
    user, = unit["User"]
    assert re.search(rf"^{user}:", (tmp_path / "etc" / "passwd").read_text(), re.MULTILINE)
    group, = unit["Group"]
    assert re.search(rf"^{group}:", (tmp_path / "etc" / "group").read_text(), re.MULTILINE)


def printed(build, path):
    """What kvarnd makes of a configuration file: key -> value."""
    done = run(build / "bin" / "kvarnd", "--config", path, "--print-config")
    assert done.returncode == 0, done
    return dict(line.split(" = ", 1) if " = " in line else (line.rstrip(" ="), "")
                for line in done.stdout.splitlines() if line[:1] not in "#[")


def test_example_is_accepted(folder, build):
    done = run(build / "bin" / "kvarnd", "--config", folder / "kvarnd.conf", "--check-config")
    assert (done.returncode, done.stdout) == (0, "configuration ok\n"), done


def test_keys_left_out_of_the_example_are_accepted(folder, build, tmp_path):
    text, count = re.subn(r"^# (\w+ = )", r"\1", (folder / "kvarnd.conf").read_text(),
                          flags=re.MULTILINE)
    assert count >= 1
    (tmp_path / "all.conf").write_text(text)
    assert printed(build, tmp_path / "all.conf")["allow_uids"] == "1000,1001"


def test_unit_and_example_agree_with_kvarnd(folder, unit, build):
    config = printed(build, folder / "kvarnd.conf")
    command, = unit["ExecStart"]
    assert command.split()[1] == "--config"
    assert f"/run/{unit['RuntimeDirectory'][0]}" == str(pathlib.Path(config["listen_unix"]).parent)
    assert unit["RuntimeDirectoryMode"] == ["0700"]
    stop_ms = int(config["drain_timeout"]) + int(config["flush_timeout"])
    assert int(unit["TimeoutStopSec"][0]) * 1000 >= 1.2 * stop_ms
    assert int(unit["LimitNOFILE"][0]) >= int(config["connections_max"]) + OTHER_DESCRIPTORS
    assert config["listen_tcp"] == "" and unit["RestrictAddressFamilies"] == ["AF_UNIX"]
    assert config["listen_unix"] == "/run/kvarnd/kvarnd.sock"  # where clients look


def test_install_names_where_things_are(build, tmp_path):
    done = run("cmake", "--install", build, "--component", "systemd", "--prefix", tmp_path)
    assert done.returncode == 0, done
    cache = (build / "CMakeCache.txt").read_text()
    prefix = re.search(r"^CMAKE_INSTALL_PREFIX:PATH=(.*)$", cache, re.MULTILINE).group(1)
    installed = settings(tmp_path / "lib" / "systemd" / "system" / "kvarnd.service")
    assert installed["ExecStart"] == [f"{prefix}/bin/kvarnd --config /etc/kvarnd/kvarnd.conf"]
    assert (tmp_path / "lib" / "sysusers.d" / "kvarnd.conf").exists()
