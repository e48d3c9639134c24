"""Client of kvarnd, a KV-cache server with attention on 2-bit tiles.

    with kvarn.Client() as client:
        session = client.open("chat-1", kvarn.Shape.uniform("my-model", layers=30, kv_heads=3,
                                                            head_dim=64))
        result = session.append_attend(k, v, q, layer=0)     # result.out [Hq, T, Dv]

`Client` blocks, `AsyncClient` runs on asyncio; `kvarn.codec` reads and writes the records that
`read_stored` gives. proto/PROTOCOL.md in kvarnd's sources says what each call means.
"""
from kvarn import codec
from kvarn.aio import AsyncClient, AsyncSession
from kvarn.client import Client, Pending, Session
from kvarn.errors import (AddressError, Cancelled, Conflict, ConnectionLost, Corrupt,
                          DeadlineExceeded, Domain, Error, Forbidden, Internal, Invalid, Miss,
                          NoMemory, NoSpace, NotFound, Protocol, RetryLater, ServerError, ServerIO,
                          ShuttingDown, StaleEpoch, TooLarge, Unauthenticated, Unsupported,
                          WireError)
from kvarn.types import (AppendAttendItem, AppendResult, AttendItem, AttendOptions, AttendResult,
                         Evicted, Job, LayerGroup, LayerMetric, Lifetime, OpStats, Options, Pinned,
                         Prefetched, PrefixMatch, Run, ServerInfo, ServerStats, SessionDetails,
                         SessionSummary, Shape, StoredRuns, TruncateResult, Verification,
                         VerifyFinding)

__version__ = "0.1.0"

__all__ = [
    "AddressError", "AppendAttendItem", "AppendResult", "AsyncClient", "AsyncSession", "AttendItem",
    "AttendOptions", "AttendResult", "Cancelled", "Client", "Conflict", "ConnectionLost", "Corrupt",
    "DeadlineExceeded", "Domain", "Error", "Evicted", "Forbidden", "Internal", "Invalid",
    "Job", "LayerGroup", "LayerMetric", "Lifetime", "Miss", "NoMemory", "NoSpace", "NotFound",
    "OpStats", "Options", "Pending", "Pinned", "Prefetched", "PrefixMatch", "Protocol",
    "RetryLater", "Run", "ServerError", "ServerIO", "ServerInfo", "ServerStats", "Session",
    "SessionDetails", "SessionSummary", "Shape", "ShuttingDown", "StaleEpoch", "StoredRuns",
    "TooLarge", "TruncateResult", "Unauthenticated", "Unsupported", "Verification",
    "VerifyFinding", "WireError", "codec",
]
