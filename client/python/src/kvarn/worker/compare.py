"""The same question with the cache here, and with cache and attention in kvarnd: both answers."""
from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from kvarn.worker.caches import AttendCache, Cache
from kvarn.worker.engine import PREFILL_CHUNK, Counts
from kvarn.worker.model import Llama

NDArray = np.ndarray[Any, Any]


@dataclasses.dataclass
class Answer:
    """Tokens that were chosen, greedily, what they took, and bytes of cache on both sides."""
    ids: list[int]
    counts: Counts
    worker_bytes: int
    kvarnd_bytes: int


def prefill(model: Llama, cache: Cache, tokens: list[int], counts: Counts) -> NDArray:
    """Logits behind a prompt."""
    began = time.monotonic()
    for i in range(0, len(tokens), PREFILL_CHUNK):
        logits = model.forward(tokens[i:i + PREFILL_CHUNK], cache)
        cache.finish_step()
    counts.prefill_tokens, counts.prefill_seconds = len(tokens), time.monotonic() - began
    return logits


def answer(model: Llama, cache: Cache, logits: NDArray, count: int, end: int,
           counts: Counts) -> Answer:
    """Up to `count` tokens behind a prompt that gave `logits`; `end` closes, and is not kept."""
    ids: list[int] = []
    began = time.monotonic()
    while len(ids) < count and (token := int(np.argmax(logits))) != end:
        ids.append(token)
        logits = model.forward([token], cache)
        cache.finish_step()
    counts.decode_tokens, counts.decode_seconds = len(ids), time.monotonic() - began
    return Answer(ids, counts, cache.local_bytes(), cache.remote_bytes())


def choices_along(model: Llama, cache: Cache, logits: NDArray, told: list[int]) -> list[int]:
    """What the model would choose at each token of `told`, all before it being told too."""
    ids: list[int] = []
    for token in told:
        ids.append(int(np.argmax(logits)))
        logits = model.forward([token], cache)
        cache.finish_step()
    return ids


@dataclasses.dataclass
class Comparison:
    """Both answers; same_first: tokens until they part; same_told: of those of local's answer,
    how many `attend` would choose too, local's tokens before it being given."""
    local: Answer
    attend: Answer
    same_first: int
    same_told: int


def compare(model: Llama, tokens: list[int], local: Cache, attend: AttendCache, count: int,
            end: int) -> Comparison:
    """Ask the same of both; attend's session is copied where the prompt ends."""
    counts = Counts()
    mine = answer(model, local, prefill(model, local, tokens, counts), count, end, counts)
    counts = Counts()
    logits = prefill(model, attend, tokens, counts)
    copy = AttendCache(attend.session.fork())
    theirs = answer(model, attend, logits, count, end, counts)
    told = choices_along(model, copy, logits, mine.ids)
    same = [a == b for a, b in zip(mine.ids, theirs.ids)]
    first = same.index(False) if False in same else len(same)
    return Comparison(mine, theirs, first, sum(a == b for a, b in zip(mine.ids, told)))


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2 ** 20:.2f} MiB" if count >= 2 ** 20 else f"{count / 2 ** 10:.1f} KiB" \
        if count else "0"


def table(found: Comparison) -> str:
    """The figures side by side."""
    sides = (found.local, found.attend)
    rows = [("prefill, tokens/s", [f"{a.counts.prefill_tokens / a.counts.prefill_seconds:.1f}"
                                   for a in sides]),
            ("decode, tokens/s", [f"{a.counts.decode_rate():.1f}" for a in sides]),
            ("cache in the worker", [size(a.worker_bytes) for a in sides]),
            ("cache in kvarnd", [size(a.kvarnd_bytes) for a in sides])]
    lines = [f"{'':22} {'local':>12} {'attend':>12}"]
    lines += [f"{what:22} {mine:>12} {theirs:>12}" for what, (mine, theirs) in rows]
    count = len(found.local.ids)
    lines.append(f"agreement: the first {found.same_first} of {count} tokens are the same; along "
                 f"local's text attend chooses {found.same_told} of {count} alike")
    return "\n".join(lines)
