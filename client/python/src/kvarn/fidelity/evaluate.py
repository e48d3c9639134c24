"""One text under one configuration: the model reads it block by block.

The fp16 cache's own run comes first: its final states are kept, 2 KB a token instead of the 200 KB
of a whole distribution, and each configuration compares itself with what they give.
"""
from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from kvarn.fidelity.cache import BlockCache, Store
from kvarn.fidelity.metrics import Positions, compare, log_softmax
from kvarn.fidelity.needles import Needle, recall
from kvarn.worker.model import Llama

NDArray = np.ndarray[Any, Any]
Progress = Callable[[int, float], None]


def read(model: Llama, store: Store, tokens: list[int], group: int,
         progress: Progress) -> tuple[NDArray, BlockCache]:
    """Final states [T, E] behind each token, and the cache after them."""
    cache, parts = BlockCache(model.config, store, len(tokens) + group, group), []
    began = time.monotonic()
    for first in range(0, len(tokens), group):
        block = tokens[first:first + group]
        parts.append(model.hidden(block, cache))
        if len(block) == group:
            cache.finish_block()
        progress(cache.length, time.monotonic() - began)
    return np.concatenate(parts), cache


def judge(model: Llama, exact: NDArray, other: NDArray, tokens: list[int],
          chunk: int = 128) -> Positions:
    """Compare the distributions that two runs' final states [T, E] give, over the whole
    vocabulary, for all positions but the last, whose next token is not known."""
    parts = []
    for first in range(0, len(tokens) - 1, chunk):
        following = np.array(tokens[first + 1:first + 1 + chunk])
        last = first + len(following)
        parts.append(compare(log_softmax(exact[first:last] @ model.head.T),
                             log_softmax(other[first:last] @ model.head.T), following))
    return Positions.join(parts)


def find_needles(model: Llama, store: Store, context: list[int], needles: list[Needle],
                 group: int, progress: Progress) -> list[list[bool]]:
    """Read a context, whose blocks are all sealed then, and ask for its needles."""
    if len(context) % group:
        raise ValueError(f"expected whole blocks of {group} tokens, got {len(context)} tokens")
    _, cache = read(model, store, context, group, progress)
    return recall(model, cache, needles)
