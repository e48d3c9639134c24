"""What goes wrong, as classes: `kvarn.Error` is above them all.

    Error
        AddressError, ValueError      not an address of a daemon
        ConnectionLost, OSError       no connection, or it broke and the outcome is not known
        WireError                     the peer sent bytes that are no reply
        ServerError                   the daemon refused: one subclass a code of PROTOCOL.md
"""
from __future__ import annotations

import builtins
from typing import Any


class Error(Exception):
    """Any failure of this package."""


class AddressError(Error, ValueError):
    """Expected unix:PATH or tcp:HOST:PORT."""


class ConnectionLost(Error, ConnectionError):
    """No connection, or one that broke before the reply.

    was_sent: the request may have been done; nothing is known of its outcome. A session's
    `refresh()` tells what it holds.
    """

    def __init__(self, text: str, was_sent: bool = False) -> None:
        super().__init__(text)
        self.was_sent = was_sent


class WireError(Error):
    """The peer sent bytes that are not a valid reply; the connection was closed."""


class ServerError(Error):
    """The daemon's refusal.

    code:         number of PROTOCOL.md section 3
    name:         its name, "STALE_EPOCH"
    text:         one sentence for people; do not parse it
    reason:       of a Miss: "never_stored", "window", ...; else "none"
    retry_after:  seconds, of a RetryLater; else None
    epoch:        of StaleEpoch and Conflict: the session's epoch that holds, or None
    lengths:      of StaleEpoch and Conflict: tokens of the layers in the request, or of all
    """

    code = 15
    name = "INTERNAL"

    def __init__(self, text: str, *, reason: str = "none", retry_after: float | None = None,
                 epoch: int | None = None, lengths: tuple[int, ...] = ()) -> None:
        super().__init__(text)
        self.text, self.reason, self.retry_after = text, reason, retry_after
        self.epoch, self.lengths = epoch, lengths

    def __str__(self) -> str:
        return f"{self.name}: {self.text}" if self.text else self.name


class Invalid(ServerError, ValueError):
    """A value is not allowed, or contradicts another or the shape."""
    code, name = 1, "INVALID"


class Unsupported(ServerError):
    """No such call or protocol version."""
    code, name = 2, "UNSUPPORTED"


class Unauthenticated(ServerError):
    """A call before Hello."""
    code, name = 3, "UNAUTHENTICATED"


class Forbidden(ServerError, PermissionError):
    """This user may not connect."""
    code, name = 4, "FORBIDDEN"


class NotFound(ServerError, LookupError):
    """No such session or shape; a session that was dropped or ended with its connection."""
    code, name = 5, "NOT_FOUND"


class Conflict(ServerError):
    """The session is not in the state that the request assumes: `start` is not the length, ..."""
    code, name = 6, "CONFLICT"


class StaleEpoch(ServerError):
    """Another client has taken or cut the session; `Session.refresh()` takes it as it now is."""
    code, name = 7, "STALE_EPOCH"


class Miss(ServerError, LookupError):
    """Tokens asked for are not stored: `reason`."""
    code, name = 8, "MISS"


class RetryLater(ServerError):
    """A limit is reached that work in progress may relieve, and was not within the deadline."""
    code, name = 9, "RETRY_LATER"


class DeadlineExceeded(ServerError, TimeoutError):
    """The deadline passed; nothing was stored or cut."""
    code, name = 10, "DEADLINE"


class Cancelled(ServerError):
    """The request was cancelled before it began."""
    code, name = 11, "CANCELLED"


class NoSpace(ServerError):
    """The memory limit or the limit of sessions is reached."""
    code, name = 12, "NO_SPACE"


class Domain(ServerError, ValueError):
    """A number is not finite, or out of the format's range."""
    code, name = 13, "DOMAIN"


class TooLarge(ServerError, ValueError):
    """A size is above a limit."""
    code, name = 14, "TOO_LARGE"


class Internal(ServerError):
    """An error of the daemon, or a code of a newer one."""
    code, name = 15, "INTERNAL"


class ShuttingDown(ServerError):
    """The daemon is stopping."""
    code, name = 16, "SHUTTING_DOWN"


class Protocol(ServerError):
    """The daemon found bytes of ours that are not a valid frame or message."""
    code, name = 17, "PROTOCOL"


class ServerIO(ServerError):
    """A file or socket of the daemon failed."""
    code, name = 18, "IO"


class NoMemory(ServerError, builtins.MemoryError):
    """The daemon could not allocate."""
    code, name = 19, "NO_MEMORY"


class Corrupt(ServerError):
    """Bytes do not match their checksum."""
    code, name = 20, "CORRUPT"


CODES: dict[int, type[ServerError]] = {c.code: c for c in (
    Invalid, Unsupported, Unauthenticated, Forbidden, NotFound, Conflict, StaleEpoch, Miss,
    RetryLater, DeadlineExceeded, Cancelled, NoSpace, Domain, TooLarge, Internal, ShuttingDown,
    Protocol, ServerIO, NoMemory, Corrupt)}
REASONS = ("none", "never_stored", "window", "evicted", "checksum", "incompatible", "restart")


def from_status(status: Any) -> ServerError | None:
    """The error that a reply's Status says; None for OK."""
    if status.code == 0:
        return None
    reason = REASONS[status.reason] if status.reason < len(REASONS) else "unknown"
    retry = status.retry_after_ms / 1000 if status.HasField("retry_after_ms") else None
    return CODES.get(status.code, Internal)(
        status.text, reason=reason, retry_after=retry,
        epoch=status.epoch if status.HasField("epoch") else None,
        lengths=tuple(status.layer_lengths))
