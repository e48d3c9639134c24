"""Messages of the wire from and to the plain data of kvarn.types. No I/O, no state."""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kvarn import _arrays
from kvarn._messages import ENUMS, message
from kvarn.codec import TileSpec
from kvarn.errors import CODES, Internal, WireError, from_status
from kvarn.types import (AttendOptions, AttendResult, Job, LayerGroup, LayerMetric, OpStats,
                         PrefixMatch, Run, ServerInfo, ServerStats, SessionDetails, SessionSummary,
                         Shape, StoredRuns)

ENCODERS = {"default": "ENCODER_DEFAULT", "reference": "REFERENCE", "refined": "REFINED",
            "aware": "AWARE"}
ACCURACIES = {"default": "ACCURACY_DEFAULT", "exact": "EXACT", "fast": "FAST"}
LAYOUTS = {"head": "HEAD_MAJOR", "token": "TOKEN_MAJOR"}
MODES = {"either": "EITHER", "create": "CREATE", "existing": "EXISTING"}
WHATS = {"kv": "K_AND_V", "k": "K_ONLY", "v": "V_ONLY"}
FORMS = ("records", "rows_stored", "rows")
JOB_STATES = ("running", "done", "failed", "cancelled")


def enum(kind: str, names: dict[str, str], value: str, what: str) -> int:
    """The wire's number of one of our words; ValueError naming `what`."""
    if value not in names:
        raise ValueError(f"{what}: expected {', '.join(names)}, got {value!r}")
    return ENUMS[kind][names[value]]


def server_info(reply: Any) -> ServerInfo:
    return ServerInfo(reply.server_version, reply.server_id, tuple(reply.features), reply.tenant,
                      reply.message_bytes_max, reply.payload_bytes_max, reply.credit_requests,
                      reply.credit_bytes)


def shape_message(shape: Shape) -> Any:
    out = message["Shape"](model=shape.model, group=shape.group, k_bits=shape.k_bits,
                           v_bits=shape.v_bits)
    if shape.revision:
        out.revision = shape.revision
    if shape.sink_tokens is not None:
        out.sink_tokens = shape.sink_tokens
    for group in shape.layer_groups:
        k_dim, v_dim = group.dims
        out.layer_groups.add(layers=group.layers, kv_heads=group.kv_heads, k_dim=k_dim,
                             v_dim=v_dim, window=group.window)
    return out


def shape_of(wire: Any) -> Shape:
    groups = tuple(LayerGroup(g.layers, g.kv_heads, g.k_dim,
                              g.v_dim if g.HasField("v_dim") else g.k_dim, g.window)
                   for g in wire.layer_groups)
    return Shape(wire.model, groups, wire.revision, wire.group, wire.k_bits, wire.v_bits,
                 wire.sink_tokens if wire.HasField("sink_tokens") else wire.group)


def creation(ttl: float, priority: int, share_prefix: bool, salt: bytes,
             lease: PrefixMatch | None) -> dict[str, Any]:
    """Fields of OpenSession that count for a new session."""
    fields: dict[str, Any] = {"ttl_ms": milliseconds(ttl, "ttl"), "priority": priority}
    if share_prefix:
        fields |= {"share_prefix": True, "salt": salt}
    if lease is not None and lease.lease is not None:
        fields["lease"] = lease.lease
    return fields


def named(token_ids: Any, block_hashes: Sequence[bytes] | None, start: int, count: int,
          group: int) -> tuple[dict[str, bool], list[memoryview]]:
    """What tokens [start, start + count) are of: the field that says in which way, and its bytes.
    """
    if token_ids is not None and block_hashes is not None:
        raise ValueError("expected token_ids or block_hashes, got both")
    if token_ids is not None:
        return {"token_ids": True}, [_arrays.token_ids(token_ids, count)]
    if block_hashes is not None:
        ended = (start + count) // group - start // group
        return {"block_hashes": True}, [_arrays.block_hashes(block_hashes, ended)]
    return {}, []


def milliseconds(time: float, what: str) -> int:
    """What the wire takes for a time in seconds; a time that is not 0 stays so."""
    if not 0 <= time < 1 << 53:
        raise ValueError(f"{what}: expected seconds, got {time}")
    return math.ceil(time * 1000)


def seconds(ms: int) -> float | None:
    """Of a time whose 0 says that there is none."""
    return ms / 1000 if ms else None


def summary(wire: Any) -> SessionSummary:
    return SessionSummary(wire.name, wire.model, wire.length, wire.epoch, wire.bytes, wire.handles,
                          wire.idle_ms / 1000, seconds(wire.ttl_left_ms), wire.priority,
                          seconds(wire.pin_left_ms), wire.missing_tokens, wire.away_blocks,
                          wire.restart_tokens, wire.tail_cold)


def details(reply: Any) -> SessionDetails:
    names = {ENUMS["Encoder"][wire]: name for name, wire in ENCODERS.items()}
    return SessionDetails(
        summary(reply.summary), shape_of(reply.shape), reply.fingerprint,
        tuple(reply.layer_lengths), tuple(reply.layer_sealed), reply.tile_pages, reply.tile_bytes,
        reply.sink_pages, reply.sink_bytes, reply.tail_pages, reply.tail_bytes,
        reply.reserved_bytes, reply.pages_reference, reply.pages_refined,
        names.get(reply.encoder, "default"), reply.seal_lag, reply.pages_aware,
        reply.metric_version, seconds(reply.ttl_ms), reply.pinned_bytes,
        (reply.missing_first, reply.missing_last), reply.shared_pages, reply.shared_bytes,
        reply.prefix_tokens, reply.adopted_blocks, reply.share_prefix, reply.cold_blocks,
        reply.cold_bytes, reply.loading_blocks, reply.loading_bytes, reply.missing_blocks,
        reply.missing_bytes, reply.stored_blocks, reply.stored_bytes)


def metric(reply: Any, payload: memoryview) -> list[LayerMetric]:
    """The layers of a ReadMetricReply that have a metric."""
    reader, shape, found, at = _arrays.Reader(payload), shape_of(reply.shape), [], 0
    for layer, version in enumerate(reply.versions, reply.layer_first):
        heads, (k_dim, _) = shape.layer(layer).kv_heads, shape.layer(layer).dims
        counts = tuple(int(n) for n in reply.counts[at:at + heads])
        at += heads
        if any(counts):
            sums = reader.take((heads, k_dim, k_dim), _arrays.DTYPES["f32"])
            found.append(LayerMetric(layer, counts, sums, version))
    return found


def job(wire: Any) -> Job:
    age = wire.age_ms / 1000
    return Job(wire.job_id, wire.session, JOB_STATES[wire.state], wire.blocks, wire.blocks_done,
               wire.bytes, wire.bytes_done, age,
               wire.run_ms / 1000 if wire.HasField("run_ms") else age,
               CODES.get(wire.error, Internal).name if wire.error else None)


def stats(reply: Any) -> ServerStats:
    ops = {o.op: OpStats(o.op, o.count, o.errors, o.bytes_in, o.bytes_out, o.latency_us_p50,
                         o.latency_us_p99, o.latency_us_max) for o in reply.ops}
    return ServerStats(ops, {c.name: c.value for c in reply.counters})


def attend_params(options: AttendOptions, layer: int, q_heads: int, q_dtype: int) -> Any:
    out = message["AttendParams"](
        layer=layer, q_heads=q_heads, non_causal=not options.causal, window=options.window,
        softcap=options.softcap, q_dtype=q_dtype, q_rotated=options.q_rotated,
        out_dtype=_arrays.dtype_number(options.out_dtype), out_rotated=options.out_rotated,
        accuracy=enum("Accuracy", ACCURACIES, options.accuracy, "accuracy"))
    if options.scale is not None:
        out.scale = options.scale
    return out


def attend_results(reply: Any, payload: memoryview, rows: list[tuple[int, int]], v_dim: int,
                   dtype: int) -> list[AttendResult]:
    """rows: (q_heads, query tokens) of each item."""
    wanted = sum(h * t * (v_dim * _arrays.BYTES[dtype] + 4) for h, t in rows)
    if payload.nbytes != wanted or len(reply.items) != len(rows):
        raise WireError(f"expected {len(rows)} items and {wanted} bytes of attention, got "
                        f"{len(reply.items)} and {payload.nbytes}")
    reader = _arrays.Reader(payload)
    outs = [reader.take((h, t, v_dim), dtype) for h, t in rows]
    lses = [reader.take((h, t), _arrays.DTYPES["f32"]) for h, t in rows]
    return [AttendResult(out, lse, item.length, item.sealed_tokens, item.appended,
                         from_status(item.status))
            for out, lse, item in zip(outs, lses, reply.items)]


def tile_spec(shape: Shape, layer: int) -> TileSpec:
    """What a record of this layer looks like, for kvarn.codec."""
    k_dim, v_dim = shape.layer(layer).dims
    return TileSpec(k_dim, v_dim, shape.group, shape.k_bits, shape.v_bits)


def stored_runs(reply: Any, payload: memoryview, shape: Shape) -> StoredRuns:
    reader, runs, f16 = _arrays.Reader(payload), [], _arrays.DTYPES["f16"]
    for run in reply.runs:
        kind, form = shape.layer(run.layer), FORMS[run.form]
        heads, (k_dim, v_dim) = kind.kv_heads, kind.dims
        records: np.ndarray[Any, Any] | None = None
        rows = None
        if form == "records":
            count, nbytes = run.token_count // shape.group, tile_spec(shape, run.layer).record_bytes
            records = reader.take((count, heads, nbytes // 2), f16).view(np.uint8)
        else:
            rows = (reader.take((heads, run.token_count, k_dim), f16),
                    reader.take((heads, run.token_count, v_dim), f16))
        runs.append(Run(run.layer, run.first_token, run.token_count, form, records, rows))
    return StoredRuns(tuple(runs), payload)


def row_shape(layout: str, heads: int, tokens: int, dim: int) -> tuple[int, int, int]:
    """Of K or V of one layer, in a layout."""
    return (heads, tokens, dim) if layout == "head" else (tokens, heads, dim)
