"""What calls take and give: shapes, items of batches, results. Plain data, no I/O.

Lengths, positions and counts are tokens; sizes are bytes; times are seconds. Letters of array
shapes: L layers, H KV heads, Hq query heads, T tokens or query tokens, Dk and Dv the head_dim of K
and of V. `Array` is anything with __array__ or DLPack; K is given after RoPE.
"""
from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kvarn.errors import ServerError

if TYPE_CHECKING:
    from kvarn._core import SessionCore

Array = Any
NDArray = np.ndarray[Any, Any]
PRESETS = {"k2v2": (2, 2), "k4v2": (4, 2), "k4v4": (4, 4)}


@dataclasses.dataclass(frozen=True)
class LayerGroup:
    """`layers` consecutive layers of one kind.

    v_dim None: as k_dim. window: tokens that a query sees, itself included; 0 is full attention.
    """
    layers: int
    kv_heads: int
    k_dim: int
    v_dim: int | None = None
    window: int = 0

    @property
    def dims(self) -> tuple[int, int]:
        """(Dk, Dv)"""
        return self.k_dim, self.k_dim if self.v_dim is None else self.v_dim


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a session's tensors look like (PROTOCOL.md section 4).

    group: tokens of a block, 64 or 128. sink_tokens: first tokens that stay 16 bits wide, 0 or a
    multiple of group; None is one group.
    """
    model: str
    layer_groups: tuple[LayerGroup, ...]
    revision: str = ""
    group: int = 128
    k_bits: int = 2
    v_bits: int = 2
    sink_tokens: int | None = None

    @classmethod
    def uniform(cls, model: str, layers: int, kv_heads: int, head_dim: int, *,
                preset: str = "k2v2", **fields: Any) -> Shape:
        """A model whose layers are all alike. preset: "k2v2", "k4v2" or "k4v4"."""
        if preset not in PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
        k_bits, v_bits = PRESETS[preset]
        return cls(model, (LayerGroup(layers, kv_heads, head_dim),), k_bits=k_bits, v_bits=v_bits,
                   **fields)

    @property
    def layers(self) -> int:
        """Layers in all."""
        return sum(g.layers for g in self.layer_groups)

    @property
    def sinks(self) -> int:
        """sink_tokens with its default filled in."""
        return self.group if self.sink_tokens is None else self.sink_tokens

    def layer(self, number: int) -> LayerGroup:
        """The kind of one layer; IndexError where there is none."""
        left = number
        for group in self.layer_groups:
            if 0 <= left < group.layers:
                return group
            left -= group.layers
        raise IndexError(f"layer: expected 0 to {self.layers - 1}, got {number}")

    def text(self) -> str:
        """The text whose hash is the fingerprint."""
        lines = ["kvarn-shape 1", *(f"{key} {len(value.encode())}:{value}" for key, value in
                                    (("model", self.model), ("revision", self.revision))),
                 f"group {self.group}", f"bits {self.k_bits} {self.v_bits}", f"sink {self.sinks}"]
        merged: list[list[Any]] = []
        for group in self.layer_groups:
            kind = (group.kv_heads, *group.dims, group.window)
            if merged and merged[-1][1] == kind:
                merged[-1][0] += group.layers
            else:
                merged.append([group.layers, kind])
        lines += [f"layers {count} {' '.join(map(str, kind))}" for count, kind in merged]
        return "\n".join(lines) + "\n"

    def fingerprint(self) -> bytes:
        """16 bytes that name the shape everywhere and always."""
        return hashlib.sha256(self.text().encode()).digest()[:16]


@dataclasses.dataclass(frozen=True)
class LayerMetric:
    """What is known of the queries of a layer, for the encoder "aware" (PROTOCOL.md section 4).

    counts: queries that each KV head's sum is of. sums: fp32 [H, Dk, Dk], for each KV head the sum
    of q q^T over rotated queries; the upper triangle counts. version: of read_metric.
    """
    layer: int
    counts: tuple[int, ...]
    sums: Array
    version: int = 0


@dataclasses.dataclass(frozen=True)
class ServerInfo:
    """What the daemon said at Hello. server_id is new at each start of the daemon."""
    version: str
    server_id: int
    features: tuple[str, ...]
    tenant: str
    message_bytes_max: int
    payload_bytes_max: int
    credit_requests: int
    credit_bytes: int


@dataclasses.dataclass(frozen=True)
class AppendResult:
    """length: of the layers appended to. sealed_tokens: those below are in blocks that no longer
    change. repeated: the identical append had been stored before; nothing was stored twice."""
    length: int
    sealed_tokens: int
    repeated: bool


@dataclasses.dataclass(frozen=True)
class TruncateResult:
    """lossy_tail: the cut re-opened a sealed block from its decoded rows."""
    lengths: tuple[int, ...]
    lossy_tail: bool


@dataclasses.dataclass(frozen=True)
class AttendOptions:
    """What the items of one attention call share (PROTOCOL.md section 6, Attend).

    scale: None is 1 / sqrt(Dk). window narrows the layer's own; 0 is none. softcap 0 is none.
    out_dtype: "f32", "f16" or "bf16". *_rotated: q is, out is wanted, in the rotated frame.
    accuracy: "default", "exact" or "fast".
    """
    scale: float | None = None
    causal: bool = True
    window: int = 0
    softcap: float = 0.0
    q_rotated: bool = False
    out_dtype: str = "f32"
    out_rotated: bool = False
    accuracy: str = "default"


@dataclasses.dataclass(frozen=True)
class AttendItem:
    """q [Hq, T, Dk] of one session. Defaults: position length - T, the whole layer."""
    session: SessionCore
    q: Array
    position: int | None = None
    token_first: int = 0
    token_last: int | None = None


@dataclasses.dataclass(frozen=True)
class AppendAttendItem:
    """k [H, T, Dk] and v [H, T, Dv] to append to one layer of one session, then q [Hq, Tq, Dk] to
    attend. start None: the layer's length as the client knows it. token_ids, block_hashes: as in
    Session.append; all items of a call have the same kind, or none."""
    session: SessionCore
    k: Array
    v: Array
    q: Array
    start: int | None = None
    position: int | None = None
    token_first: int = 0
    token_last: int | None = None
    token_ids: Array | None = None
    block_hashes: Sequence[bytes] | None = None


@dataclasses.dataclass(frozen=True)
class AttendResult:
    """out [Hq, T, Dv] and lse fp32 [Hq, T], the natural log of the sum of exp(logits).

    length: of the layer, as this item saw it. sealed_tokens: those below were read as sealed.
    appended: of append_attend, the tokens are stored, whatever became of the attention.
    error: why this item failed; then out is 0 and lse -inf.
    """
    out: NDArray
    lse: NDArray
    length: int
    sealed_tokens: int
    appended: bool = False
    error: ServerError | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """A stretch of a layer: form "records", "rows_stored" or "rows" (PROTOCOL.md, ReadBlocks).

    records: uint8 [blocks, H, record bytes]; see kvarn.codec. rows_stored: (k [H, T, Dk],
    v [H, T, Dv]) of rotated fp16.
    """
    layer: int
    first_token: int
    token_count: int
    form: str
    records: NDArray | None = None
    rows: tuple[NDArray, NDArray] | None = None


@dataclasses.dataclass(frozen=True)
class StoredRuns:
    """What a session keeps, bit by bit: `append_tiles` of it to an empty session is a clone."""
    runs: tuple[Run, ...]
    payload: memoryview

    @property
    def nbytes(self) -> int:
        """Bytes of all runs."""
        return self.payload.nbytes


@dataclasses.dataclass(frozen=True)
class PrefixMatch:
    """Of match_prefix: leading tokens that are stored, a multiple of group. lease: for open, of the
    connection in use, for `seconds`; None where there is nothing or none was asked for."""
    tokens: int
    lease: int | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class Lifetime:
    """Of touch: seconds until the session expires when nobody uses it, None for never; what is left
    of its priority."""
    ttl_left: float | None
    priority: int


@dataclasses.dataclass(frozen=True)
class Pinned:
    """Of pin: bytes of the session that stay, and bytes that other pins of the tenant may keep."""
    pinned_bytes: int
    budget_left_bytes: int


@dataclasses.dataclass(frozen=True)
class Evicted:
    """Of evict: blocks that went, bytes that nobody else held, and the tokens [first, last) that
    are missing now, in whole blocks."""
    blocks: int
    freed_bytes: int
    missing: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Prefetched:
    """Of prefetch: blocks that are to be loaded, bytes of their pages, and the job that does it:
    None where there is nothing to load. tokens: of a prefix, those that are stored, in memory or
    not."""
    job: int | None
    blocks: int
    bytes: int
    tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Job:
    """A prefetch that runs or has ended. session: its name, "" without, and of a prefix.

    state: "running", "done", "failed" or "cancelled". age: seconds since it began; ran: of these,
    how long it ran. error: of a failed one, the name of a code: "NO_SPACE", there was no memory for
    a block; "MISS", one could not be read back.
    """
    id: int
    session: str
    state: str
    blocks: int
    blocks_done: int
    bytes: int
    bytes_done: int
    age: float
    ran: float
    error: str | None = None

    @property
    def running(self) -> bool:
        """It has not ended."""
        return self.state == "running"


@dataclasses.dataclass(frozen=True)
class VerifyFinding:
    """Something wrong, or not read. session: None without a name. part: "block", or a record of the
    session itself: "session", "map", "tail". layer: first of the wrong pages in memory.
    record_error: of the record on disk: None, "CORRUPT", or why it could not be read. outcome:
    "dropped" from memory, to be read from disk; "lost", a Miss from now on; "rewrite": written to
    disk once more; "left" as it was."""
    session: str | None
    part: str
    block: int
    wrong_pages: int
    layer: int
    record_error: str | None
    outcome: str


@dataclasses.dataclass(frozen=True)
class Verification:
    """Of verify. pages: sealed, in memory; rows_pages have no checksum; records: read back from
    disk. next: while it goes on, (session, block, blocks of that session); session is None where
    only one is verified."""
    findings: tuple[VerifyFinding, ...]
    next: tuple[str | None, int, int] | None
    sessions: int
    blocks: int
    pages: int
    page_bytes: int
    rows_pages: int
    records: int
    record_bytes: int
    wrong_pages: int
    wrong_records: int
    unread_records: int


@dataclasses.dataclass(frozen=True)
class SessionSummary:
    """A line of the list of sessions. bytes: resident pages; handles: connections that hold it.

    ttl_left, pin_left: None without. missing_tokens: that were evicted. away_blocks: not in memory,
    whether on disk or gone. restart_tokens: that a restart after a crash now would find. tail_cold:
    what is not sealed is on disk, not in memory.
    """
    name: str
    model: str
    length: int
    epoch: int
    bytes: int
    handles: int
    idle: float
    ttl_left: float | None = None
    priority: int = 0
    pin_left: float | None = None
    missing_tokens: int = 0
    away_blocks: int = 0
    restart_tokens: int = 0
    tail_cold: bool = False


@dataclasses.dataclass(frozen=True)
class SessionDetails:
    """All about one session. tile_, sink_ and tail_bytes are resident pages by class."""
    summary: SessionSummary
    shape: Shape
    fingerprint: bytes
    lengths: tuple[int, ...]
    sealed: tuple[int, ...]
    tile_pages: int
    tile_bytes: int
    sink_pages: int
    sink_bytes: int
    tail_pages: int
    tail_bytes: int
    reserved_bytes: int
    pages_reference: int
    pages_refined: int
    encoder: str
    seal_lag: int
    pages_aware: int = 0
    metric_version: int = 0  # newest query metric of the shape; 0: none yet
    ttl: float | None = None
    pinned_bytes: int = 0
    missing: tuple[int, int] = (0, 0)  # tokens [first, last) that were evicted
    shared_pages: int = 0  # in blocks that others hold as well
    shared_bytes: int = 0
    prefix_tokens: int = 0  # that came with a lease
    adopted_blocks: int = 0  # whose like another session had stored before
    share_prefix: bool = False
    cold_blocks: int = 0  # on disk, not in memory; bytes are those of their pages in memory
    cold_bytes: int = 0
    loading_blocks: int = 0
    loading_bytes: int = 0
    missing_blocks: int = 0
    missing_bytes: int = 0
    stored_blocks: int = 0  # on disk, whether in memory or not
    stored_bytes: int = 0  # of these and of the session's other records, there


@dataclasses.dataclass(frozen=True)
class OpStats:
    """Of one call: latencies in microseconds, upper bounds."""
    op: str
    count: int
    errors: int
    bytes_in: int
    bytes_out: int
    latency_us_p50: int
    latency_us_p99: int
    latency_us_max: int


@dataclasses.dataclass(frozen=True)
class ServerStats:
    """counters: names and meaning are in the daemon's manual."""
    ops: dict[str, OpStats]
    counters: dict[str, int]


@dataclasses.dataclass
class Options:
    """How a client behaves.

    deadline: seconds a call may take, None for no end. connect_timeout: seconds for connecting and
    Hello. checksum: "auto" (over TCP only), "on" or "off": XXH3-64 of payload both ways; needs the
    package xxhash or libxxhash, without which "auto" leaves it off. reconnect: connect again, and
    repeat what is safe to repeat. retry_later: try again within the deadline when the daemon asks.
    name: for the daemon's log.
    """
    deadline: float | None = 60.0
    connect_timeout: float = 5.0
    checksum: str = "auto"
    reconnect: bool = True
    retry_later: bool = True
    name: str = "kvarn-python"


def layers_of(kinds: Sequence[LayerGroup]) -> tuple[int, set[tuple[int, int, int]]]:
    """(layers, distinct (H, Dk, Dv)) of a sequence of layers."""
    return len(kinds), {(k.kv_heads, *k.dims) for k in kinds}
