"""The competitors' quantisers: rows of one block in, the rows that their codes decode to out.

All are asymmetric rounding to 2^bits levels between the least and the greatest value of a group
of values that share a scale and a zero point, both kept as fp16. They differ in which values a
group has, and in the frame. Shapes: k and v are [H, G, D], KV heads, tokens of a block, head_dim.
"""
from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np

from kvarn import codec

NDArray = np.ndarray[Any, Any]
F = np.float32
SCALE_BITS = 32  # of an fp16 scale and an fp16 zero point


class Quantiser(Protocol):
    """How a competitor keeps a block."""

    def bits(self, group: int, dim: int) -> float:
        """Bits a value, scales included: the mean of K and V."""

    def decoded(self, k: NDArray, v: NDArray) -> tuple[NDArray, NDArray]:
        """(k, v) [H, G, D] float32 as they come back."""


def round_groups(x: NDArray, size: int, bits: int = 2) -> NDArray:
    """x [..., n] rounded in groups of `size` neighbours along the last axis, n a multiple of it.

    Returns float32 of x's shape: low + code * step, step = (high - low) / (2^bits - 1).
    """
    if x.shape[-1] % size:
        raise ValueError(f"expected a multiple of {size} values, got {x.shape[-1]}")
    groups = x.astype(F).reshape(*x.shape[:-1], -1, size)
    top = F((1 << bits) - 1)
    low = groups.min(axis=-1, keepdims=True)
    step = (groups.max(axis=-1, keepdims=True) - low) / top
    low, step = low.astype(np.float16).astype(F), step.astype(np.float16).astype(F)
    codes = np.clip(np.rint((groups - low) / np.maximum(step, F(1e-8))), 0, top)
    return np.asarray((codes * step + low).reshape(x.shape))


def along_tokens(x: NDArray, size: int, bits: int) -> NDArray:
    """round_groups along the tokens of each channel of x [H, G, D]."""
    return round_groups(x.swapaxes(1, 2), size, bits).swapaxes(1, 2)


@dataclasses.dataclass(frozen=True)
class Fp16:
    """What is exact here: K and V as the worker computes them, rounded to fp16."""

    def bits(self, group: int, dim: int) -> float:
        return 16.0

    def decoded(self, k: NDArray, v: NDArray) -> tuple[NDArray, NDArray]:
        return k.astype(F), v.astype(F)


@dataclasses.dataclass(frozen=True)
class Rtn:
    """Round to nearest, a group for each token of each head, in K as in V."""
    width: int = 2

    def bits(self, group: int, dim: int) -> float:
        return self.width + SCALE_BITS / dim

    def decoded(self, k: NDArray, v: NDArray) -> tuple[NDArray, NDArray]:
        dim = k.shape[-1]
        return round_groups(k, dim, self.width), round_groups(v, dim, self.width)


@dataclasses.dataclass(frozen=True)
class Kivi:
    """KIVI (arXiv:2402.02750): K in groups of `size` tokens of a channel, V in groups of `size`
    channels of a token (of a head's all channels where it has no more)."""
    size: int
    width: int = 2

    def bits(self, group: int, dim: int) -> float:
        return self.width + SCALE_BITS * (1 / self.size + 1 / min(self.size, dim)) / 2

    def decoded(self, k: NDArray, v: NDArray) -> tuple[NDArray, NDArray]:
        return (along_tokens(k, self.size, self.width),
                round_groups(v, min(self.size, v.shape[-1]), self.width))


@dataclasses.dataclass(frozen=True)
class Rotation:
    """KVarN (arXiv:2606.03458) without its normalisation: Hadamard rotation of each head, then K
    in groups of a channel's tokens and V in groups of a token's channels."""
    width: int = 2

    def bits(self, group: int, dim: int) -> float:
        return self.width + SCALE_BITS * (1 / group + 1 / dim) / 2

    def decoded(self, k: NDArray, v: NDArray) -> tuple[NDArray, NDArray]:
        k, v = codec.rotate(k.astype(F)), codec.rotate(v.astype(F))
        return (codec.rotate(along_tokens(k, k.shape[1], self.width)),
                codec.rotate(round_groups(v, v.shape[-1], self.width)))
