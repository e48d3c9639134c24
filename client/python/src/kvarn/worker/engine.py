"""Generation: feeds tokens to a model over a cache, chooses the next, and keeps a journal.

The journal is a file of lines: a JSON object with what the run was asked for, then one token id a
line, each written before the token is fed. A worker that starts with the journal of one that died
knows the tokens, and the daemon has K and V of them: nothing is prefilled.
"""
from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from kvarn.errors import Conflict
from kvarn.worker.caches import AttendCache, Cache
from kvarn.worker.model import Llama

NDArray = np.ndarray[Any, Any]
PREFILL_CHUNK = 256


@dataclasses.dataclass
class Sampling:
    """temperature 0 is greedy. The choice depends on the seed and the token's position alone."""
    temperature: float = 0.0
    top_p: float = 0.95
    seed: int = 0

    def choose(self, logits: NDArray, position: int) -> int:
        if self.temperature <= 0:
            return int(np.argmax(logits))
        scaled = logits.astype(np.float64) / self.temperature
        weights = np.exp(scaled - scaled.max())
        weights /= weights.sum()
        order = np.argsort(-weights)
        cumulated = np.cumsum(weights[order])
        kept = order[:int(np.searchsorted(cumulated, self.top_p)) + 1]
        random = np.random.default_rng([self.seed, position])
        return int(random.choice(kept, p=weights[kept] / weights[kept].sum()))


@dataclasses.dataclass
class Counts:
    """Tokens fed and seconds spent, apart for prompts and for single tokens."""
    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0

    def decode_rate(self) -> float:
        """Tokens a second."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0


class Journal:
    """An append-only list of token ids in a file; without a path, in memory."""

    def __init__(self, path: str | None, asked: dict[str, Any]) -> None:
        self.asked, self.ids = asked, list[int]()
        self._file = open(path, "w", encoding="utf-8") if path else None
        self._write(json.dumps(asked))

    @classmethod
    def resume(cls, path: str) -> Journal:
        """Take up a journal; a last line that was not written whole is cut off."""
        with open(path, "r+b") as file:
            data = file.read()
            whole = data[:data.rfind(b"\n") + 1]
            file.truncate(len(whole))
        lines = whole.decode().splitlines()
        if not lines:
            raise ValueError(f"{path} is not a journal")
        journal = cls.__new__(cls)
        journal.asked, journal.ids = json.loads(lines[0]), [int(line) for line in lines[1:]]
        journal._file = open(path, "a", encoding="utf-8")
        return journal

    def _write(self, text: str) -> None:
        if self._file is not None:
            self._file.write(text + "\n")
            self._file.flush()

    def extend(self, ids: list[int]) -> None:
        """Add ids; they are in the file when this returns."""
        self.ids += ids
        if ids:
            self._write("\n".join(map(str, ids)))

    def close(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()


class Engine:
    """A model, a cache and a journal: what the cache holds are the journal's first tokens."""

    def __init__(self, model: Llama, cache: Cache, journal: Journal, sampling: Sampling) -> None:
        self.model, self.cache, self.journal, self.sampling = model, cache, journal, sampling
        self.counts = Counts()

    def _feed(self, tokens: list[int]) -> NDArray:
        logits = self.model.forward(tokens, self.cache)
        self.cache.finish_step()
        return logits

    def _prefill(self, tokens: list[int]) -> NDArray:
        began = time.monotonic()
        for i in range(0, len(tokens), PREFILL_CHUNK):
            logits = self._feed(tokens[i:i + PREFILL_CHUNK])
        self.counts.prefill_tokens += len(tokens)
        self.counts.prefill_seconds += time.monotonic() - began
        return logits

    def _decode(self, token: int) -> NDArray:
        began = time.monotonic()
        logits = self._feed([token])
        self.counts.decode_tokens += 1
        self.counts.decode_seconds += time.monotonic() - began
        return logits

    def _catch_up(self) -> NDArray:
        """Logits behind the journal's last token, whatever the cache holds of it."""
        ids = self.journal.ids
        missing = len(ids) - self.cache.length
        if missing > 1 or not isinstance(self.cache, AttendCache):
            self._cut(self.cache.length)
            return self._prefill(ids[self.cache.length:])
        # The layers, or some, may have the last token. Appends that are sent again are recognised
        # as such, and their attention is done again.
        self.cache.length = len(ids) - 1
        try:
            return self._decode(ids[-1])
        except Conflict:
            # Not bit by bit what was sent before: another machine, say. Then it is done anew.
            self._cut(len(ids) - 1)
            return self._decode(ids[-1])

    def _cut(self, length: int) -> None:
        """Make all layers of the session that long: a worker that died may have left some ahead."""
        if isinstance(self.cache, AttendCache):
            self.cache.session.refresh(takeover=True)
            if any(n > length for n in self.cache.session.lengths):
                self.cache.session.truncate(length)
            self.cache.length = length

    def generate(self, tokens: list[int], count: int, end: int,
                 already: int = 0) -> Iterator[int]:
        """Feed `tokens`, then yield up to `count` chosen ones; `end` closes, and is not yielded.

        Without tokens it goes on from the journal, of whose ids the last `already` were yielded.
        """
        if not self.journal.ids and not tokens:
            raise ValueError("expected at least one token to begin with")
        if self.cache.length > len(self.journal.ids):
            raise ValueError("the cache holds tokens that the journal does not have")
        if tokens:
            self.journal.extend(tokens)
            logits = self._prefill(self.journal.ids[self.cache.length:])
        elif already >= count or self.journal.ids[-1] == end:
            return
        else:
            logits = self._catch_up()
        for number in range(already, count):
            token = self.sampling.choose(logits, len(self.journal.ids))
            self.journal.extend([token])
            if token == end:
                return
            yield token
            if number + 1 < count:
                logits = self._decode(token)
