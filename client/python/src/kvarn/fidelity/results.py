"""What runs gave, kept in files so that a run that was broken off goes on where it was."""
from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

import numpy as np

from kvarn.fidelity.metrics import Positions, by_position

NDArray = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Result:
    """Of one text under one configuration. bits: a value; positions: those at which something is
    quantised, from `first` on; needles: for each, whether each digit was right; seconds: taken."""
    text: str
    configuration: str
    bits: float
    first: int
    positions: Positions
    needles: list[list[bool]]
    seconds: float

    @property
    def kl(self) -> float:
        """Mean KL to fp16, nats."""
        return float(np.mean(self.positions.kl))

    @property
    def top1(self) -> float:
        """Share of positions whose most likely token is that of fp16."""
        return float(np.mean(self.positions.same))

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood of the text's tokens, nats; its exp is the perplexity."""
        return float(np.mean(self.positions.nll))

    @property
    def recalled(self) -> int:
        """Needles of which each digit was right."""
        return sum(all(digits) for digits in self.needles)

    def stretches(self, width: int) -> list[tuple[int, float]]:
        """(position, mean KL of the `width` positions from there on)."""
        return by_position(self.positions.kl, self.first, width)


class Folder:
    """A folder of results. The name of a file ends with a hash of all that they depend on."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        (self.path / "runs").mkdir(parents=True, exist_ok=True)

    def _file(self, text: str, what: str, depends: dict[str, Any], suffix: str) -> pathlib.Path:
        key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:12]
        return self.path / "runs" / f"{text}.{what}.{key}{suffix}"

    def array(self, text: str, what: str, depends: dict[str, Any]) -> NDArray | None:
        """An array of the fp16 run, its "states" or "queries"; None where it is not kept."""
        path = self._file(text, what, depends, ".npy")
        return np.load(path) if path.exists() else None

    def keep_array(self, text: str, what: str, depends: dict[str, Any], array: NDArray) -> None:
        """For `array` of a later run."""
        path = self._file(text, what, depends, ".npy")
        with open(path.with_suffix(".part"), "wb") as file:
            np.save(file, array)
        path.with_suffix(".part").replace(path)

    def load(self, text: str, name: str, depends: dict[str, Any]) -> Result | None:
        """A result that was kept, or None."""
        path = self._file(text, name, depends, ".npz")
        if not path.exists():
            return None
        with np.load(path) as kept:
            facts = json.loads(str(kept["facts"]))
            positions = Positions(*(kept[f.name] for f in dataclasses.fields(Positions)))
        return Result(positions=positions, **facts)

    def keep(self, result: Result, depends: dict[str, Any]) -> None:
        """Write a result; it is there whole, or not at all."""
        path = self._file(result.text, result.configuration, depends, ".npz")
        facts = {f.name: getattr(result, f.name) for f in dataclasses.fields(Result)
                 if f.name != "positions"}
        arrays = {f.name: getattr(result.positions, f.name) for f in dataclasses.fields(Positions)}
        with open(path.with_suffix(".part"), "wb") as file:
            np.savez_compressed(file, facts=np.array(json.dumps(facts)), **arrays)
        path.with_suffix(".part").replace(path)
