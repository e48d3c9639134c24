"""Verify, part after part: what a daemon holds against its checksums."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvarn._core import ClientCore, SessionCore
from kvarn._messages import message
from kvarn.errors import CODES
from kvarn.types import Verification, VerifyFinding

PARTS = ("block", "session", "map", "tail")
OUTCOMES = ("left", "dropped", "lost", "rewrite")
SUMS = ("sessions", "blocks", "pages", "page_bytes", "rows_pages", "records", "record_bytes",
        "wrong_pages", "wrong_records", "unread_records")

Progress = Callable[[Verification], object]


def _word(words: tuple[str, ...], number: int) -> str:
    return words[number] if number < len(words) else "unknown"


def _error(code: int) -> str | None:
    return None if code == 0 else CODES[code].name if code in CODES else "UNKNOWN"


def _finding(wire: Any) -> VerifyFinding:
    return VerifyFinding(wire.session if wire.HasField("session") else None,
                         _word(PARTS, wire.part), wire.block, wire.wrong_pages, wire.layer,
                         _error(wire.record_error), _word(OUTCOMES, wire.outcome))


def _sum(sums: dict[str, int], findings: list[VerifyFinding], reply: Any) -> Verification:
    at = (reply.next_name if reply.HasField("next_name") else None, reply.next_block,
          reply.session_blocks) if reply.more else None
    return Verification(tuple(findings), at, **sums)


async def verify(core: ClientCore, target: str | SessionCore | None, progress: Progress | None,
                 deadline: float | None) -> Verification:
    """All parts, of one session or, with None, of all that have a name."""
    sums = dict.fromkeys(SUMS, 0)
    findings: list[VerifyFinding] = []
    fields: dict[str, Any] = {}
    while True:
        if target is None:
            request = message["Verify"](**fields)
            reply = (await core.call("Verify", lambda: request, deadline=deadline)).message
        else:
            reply = await core._of("Verify", target, fields, True, deadline)
        for name in SUMS:
            sums[name] += getattr(reply, name)
        findings += map(_finding, reply.findings)
        done = _sum(sums, findings, reply)
        if progress is not None:
            progress(done)
        if not reply.more:
            return done
        fields = {"block_first": reply.next_block}
        if reply.HasField("next_name"):
            fields["name_first"] = reply.next_name
