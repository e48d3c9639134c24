"""Distances between two distributions of the next token, for many positions at once.

Letters of shapes: T positions, V words of the vocabulary. All logarithms are natural, in nats.
"""
from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

NDArray = np.ndarray[Any, Any]
F = np.float32


def log_softmax(logits: NDArray) -> NDArray:
    """Logarithms of probabilities, [T, V] float32, of logits [T, V], which are overwritten."""
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


@dataclasses.dataclass
class Positions:
    """What each position of a text gives, all [T]: kl, KL(fp16 || configuration) in nats; nll,
    -log p of the token that follows; nll_fp16, the same of the fp16 cache; same, whether the most
    likely token is the same one."""
    kl: NDArray
    nll: NDArray
    nll_fp16: NDArray
    same: NDArray

    @classmethod
    def join(cls, parts: list[Positions]) -> Positions:
        """One behind the other."""
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts])
                     for f in dataclasses.fields(cls)))

    def behind(self, first: int) -> Positions:
        """The positions from `first` on."""
        return Positions(*(getattr(self, f.name)[first:] for f in dataclasses.fields(self)))


def compare(exact: NDArray, other: NDArray, following: NDArray) -> Positions:
    """Of log-probabilities [T, V] over the fp16 cache and over another one; following [T], the
    tokens that come next."""
    rows = np.arange(len(following))
    kl = (np.exp(exact) * (exact - other)).sum(axis=1, dtype=np.float64)
    return Positions(np.maximum(kl, 0.0), -other[rows, following].astype(np.float64),
                     -exact[rows, following].astype(np.float64),
                     exact.argmax(axis=1) == other.argmax(axis=1))


def by_position(values: NDArray, first: int, width: int) -> list[tuple[int, float]]:
    """(position where a stretch of `width` begins, mean of `values` [T] in it); values[0] is at
    position `first`; stretches begin at multiples of width, and the last may be short."""
    found = []
    for begin in range(first // width * width, first + len(values), width):
        part = values[max(begin - first, 0):begin - first + width]
        if len(part):
            found.append((begin, float(np.mean(part))))
    return found
