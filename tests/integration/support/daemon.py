"""Starts kvarnd, waits until it is ready, stops it and looks at how it ended."""
import ctypes
import os
import pathlib
import re
import resource
import select
import shutil
import signal
import subprocess
import tempfile
import time

from support.settings import BIN, patience

READY = "kvarnd ready"
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)
BAD_LOG = re.compile(r"Sanitizer|runtime error:|[Aa]ssert|DEADLYSIGNAL|Segmentation")


def clean_environment(extra=None):
    """Our environment without what would configure a daemon."""
    env = {k: v for k, v in os.environ.items()
           if not k.startswith("KVARND_") and k not in ("NOTIFY_SOCKET", "KVARN_SERVER")}
    env.update(extra or {})
    return env


class Daemon:
    """A running kvarnd. `addresses` maps "unix" and "tcp" to what clients connect to."""

    def __init__(self, *flags, transports=("unix",), env=None, nofile=None, umask=None):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="kvarnd-"))
        self.stderr_path = self.folder / "stderr"
        self.addresses, self.process = {}, None
        self.command = [str(BIN / "kvarnd"), *self._listen_flags(transports), *map(str, flags)]
        self._limit, self._umask = nofile, umask
        try:
            self._start(clean_environment(env))
        except BaseException:
            self.kill()
            print(self.log())
            self.clean()
            raise

    def _listen_flags(self, transports):
        socket_path = self.folder / "kvarnd.sock"
        flags = ["--listen-unix", str(socket_path) if "unix" in transports else ""]
        if "tcp" in transports:
            flags += ["--listen-tcp", "127.0.0.1:0", "--insecure-tcp"]
        return flags

    def _before_exec(self):
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a test that is killed leaves no daemon
        if self._limit is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self._limit, self._limit))
        if self._umask is not None:
            os.umask(self._umask)

    def _start(self, env):
        with open(self.stderr_path, "wb") as stderr:
            self.process = subprocess.Popen(
                self.command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=stderr, preexec_fn=self._before_exec, close_fds=True)
        words = self._read_ready_line().split()
        for address in words[2:]:
            self.addresses[address.split(":")[0]] = address

    def _read_ready_line(self):
        """The daemon's first line on standard output, within a deadline."""
        stdout, end, line = self.process.stdout, time.monotonic() + patience(20), b""
        while not line.endswith(b"\n"):
            left = end - time.monotonic()
            assert left > 0, "the daemon did not say that it is ready"
            if select.select([stdout], [], [], left)[0]:
                data = os.read(stdout.fileno(), 1)
                assert data, f"the daemon ended with {self.process.wait(patience(10))}"
                line += data
        text = line.decode()
        assert text.startswith(READY), text
        return text

    @property
    def address(self):
        """The one to use when a test does not care."""
        return next(iter(self.addresses.values()))

    @property
    def pid(self):
        return self.process.pid

    def log(self):
        return self.stderr_path.read_text(errors="replace")

    def is_sanitized(self):
        """Sanitizers have memory of their own, so figures of memory do not count under them."""
        binary = (BIN / "kvarnd").read_bytes()
        return b"__asan_init" in binary or b"__tsan_init" in binary

    def rss_bytes(self):
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) * 1024

    def cpu_seconds(self):
        """Processor time used so far, user and system."""
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, seconds=30):
        """Exit status, within a deadline."""
        return self.process.wait(patience(seconds))

    def stop(self, code=0, seconds=30):
        """SIGTERM, unless it has ended already; the exit status and the log must be right."""
        if self.process is not None:
            if self.process.poll() is None:
                self.signal(signal.SIGTERM)
            status = self.wait(seconds)
            self.process.stdout.close()
            self.process = None
            log = self.log()
            assert status == code, f"exit status {status}\n{log}"
            assert not BAD_LOG.search(log), log

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.process = None

    def clean(self):
        shutil.rmtree(self.folder, ignore_errors=True)


def run_kvarnd(*args, env=None, timeout=20):
    """kvarnd as a command that ends by itself: its CompletedProcess with text."""
    return subprocess.run([str(BIN / "kvarnd"), *map(str, args)], env=clean_environment(env),
                          stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=patience(timeout))
