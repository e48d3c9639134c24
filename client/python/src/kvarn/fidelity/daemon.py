"""A kvarnd of the harness's own, on a socket in a folder of its own, for as long as it runs."""
from __future__ import annotations

import os
import pathlib
import select
import shutil
import subprocess
import tempfile
import time
from types import TracebackType

READY_SECONDS = 30.0
STOP_SECONDS = 30.0


class PrivateDaemon:
    """A context manager; `address` is where it listens. Raises OSError where it does not start."""

    def __init__(self, program: str, memory_limit: str = "1GiB") -> None:
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="kvarn-fidelity-"))
        self.address = f"unix:{self._folder / 'kvarnd.sock'}"
        env = {k: v for k, v in os.environ.items() if not k.startswith("KVARN")}
        with open(self._folder / "log", "wb") as log:
            self._process = subprocess.Popen(
                [program, "--listen-unix", self.address[len("unix:"):], "--memory-limit",
                 memory_limit], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=log)
        if not self._is_ready():
            words = (self._folder / "log").read_text(errors="replace")
            self.stop()
            raise OSError(f"{program} did not become ready: {words}")

    def _is_ready(self) -> bool:
        assert self._process.stdout is not None
        end, line = time.monotonic() + READY_SECONDS, b""
        while not line.endswith(b"\n"):
            left = max(end - time.monotonic(), 0)
            if not select.select([self._process.stdout], [], [], left)[0]:
                return False
            data = os.read(self._process.stdout.fileno(), 256)
            if not data:
                return False
            line += data
        return line.startswith(b"kvarnd ready")

    def stop(self) -> None:
        """End it, and remove its folder."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> PrivateDaemon:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stop()
