"""One daemon after the other over the same folder, each ended by kill -9 or by SIGTERM."""
import contextlib
import io
import re
import subprocess
import threading

from support.daemon import BAD_LOG, Daemon, clean_environment
from support.settings import BIN, ROOT, patience

KILLED = -9


def has_option(option):
    """Whether this build's daemon knows a flag."""
    text = subprocess.run([str(BIN / "kvarnd"), "--help"], capture_output=True, text=True,
                          env=clean_environment(), timeout=patience(20), check=True).stdout
    return option in text


def kill_points():
    """Names of all kill points in the daemon's sources."""
    names = set()
    for path in (ROOT / "server").rglob("*.c"):
        names |= set(re.findall(r'kvd_kill_point\("(\w+)"\)', path.read_text()))
    return sorted(names)


class Life(Daemon):
    """A daemon that may die at any time: nothing of that is an error, a sanitizer's word is."""

    def __init__(self, *flags, env=None, kill_after=None):
        """kill_after: seconds from before its start to kill -9."""
        self._timer = None
        if kill_after is not None:
            self._timer = threading.Timer(kill_after, self._kill_now)
        self.is_up = False
        with contextlib.redirect_stdout(io.StringIO()) as log:
            try:
                super().__init__(*flags, env=env)
                self.is_up = True
            except AssertionError:
                if BAD_LOG.search(log.getvalue()) or "ended with -9" not in self._ended:
                    raise

    def _start(self, env):
        try:
            if self._timer is not None:
                self._timer.start()
            super()._start(env)
        except AssertionError as error:
            self._ended = str(error)
            raise

    def _kill_now(self):
        process = self.process
        if process is not None:
            process.kill()

    def kill_in(self, seconds):
        """kill -9, so many seconds from now."""
        self._timer = threading.Timer(seconds, self._kill_now)
        self._timer.start()

    def end(self):
        """Kill it if it still lives. Returns what is wrong with how it ended, or None."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
        if self.process is None:
            return None
        self.process.kill()
        status = self.process.wait()
        self.process.stdout.close()
        self.process = None
        log = self.log()
        self.clean()
        if status != KILLED or BAD_LOG.search(log):
            return f"exit status {status}\n{log[-4000:]}"
        return None

    def end_cleanly(self):
        """SIGTERM. Returns what is wrong with how it ended, or None."""
        try:
            self.stop()
        except (AssertionError, subprocess.TimeoutExpired) as error:
            self.kill()
            return str(error)[-4000:]
        finally:
            self.clean()
        return None
