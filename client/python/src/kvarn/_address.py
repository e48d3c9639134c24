"""Addresses of daemons, as kvarnctl reads them: unix:PATH or tcp:HOST:PORT."""
from __future__ import annotations

import os
from typing import NamedTuple

from kvarn.errors import AddressError

DEFAULT_ADDRESS = "unix:/run/kvarnd/kvarnd.sock"


class Address(NamedTuple):
    """A unix socket's path, or a host and port."""
    text: str
    path: str = ""
    host: str = ""
    port: int = 0

    @property
    def is_tcp(self) -> bool:
        return self.port != 0


def parse(text: str | None) -> Address:
    """An address; None is the environment's KVARN_SERVER, else the daemon's default socket."""
    text = text or os.environ.get("KVARN_SERVER") or DEFAULT_ADDRESS
    if text.startswith("unix:") and len(text) > 5:
        return Address(text, path=text[5:])
    host, colon, port = text[4:].rpartition(":")
    if text.startswith("tcp:") and colon and port.isascii() and port.isdigit() \
            and 1 <= int(port) <= 65535:
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            host = ""  # an IPv6 host needs its brackets
        if host:
            return Address(text, host=host, port=int(port))
    raise AddressError(f"expected unix:PATH or tcp:HOST:PORT, got {text!r}")
