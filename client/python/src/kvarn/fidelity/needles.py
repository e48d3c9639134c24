"""Needles: codes planted in a text, and asked for at its end.

A needle is one sentence between two lines of the text. A question is the sentence's beginning, and
the answer is right where each digit of the code is the model's most likely token, as greedy
decoding would choose them. That is exact recall, the hardest that a cache is asked for: all needles
of a text begin alike, and only the city tells them apart.
"""
from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np

from kvarn.fidelity.cache import BlockCache

CITIES = ("Oslo", "Paris", "Cairo", "Lima", "Tokyo", "Delhi", "Rome", "Berlin")
DIGITS = 5


@dataclasses.dataclass(frozen=True)
class Needle:
    """Tokens of the question and of its answer, a digit each, and where the sentence begins."""
    question: tuple[int, ...]
    answer: tuple[int, ...]
    position: int


def plant(tokens: list[int], tokenizer: Any, count: int, length: int, first: int,
          seed: str) -> tuple[list[int], list[Needle]]:
    """The first tokens of a text with `count` needles in it: `length` tokens and the needles.

    They lie evenly behind token `first`, each where a line of the text ends. Codes depend on seed.
    """
    if count > len(CITIES):
        raise ValueError(f"expected at most {len(CITIES)} needles, got {count}")
    chance, context, needles, at = random.Random(seed), list[int](), list[Needle](), 0
    for number in range(count):
        code = "".join(chance.choices("0123456789", k=DIGITS))
        sentence = tokenizer.encode(f"\nThe secret number of {CITIES[number]}: {code}")
        question, answer = sentence[:-DIGITS], sentence[-DIGITS:]
        end = tokenizer.encode(".\n")
        wanted = first + (length - first) * number // count
        while len(context) < wanted or "\n" not in tokenizer.decode(tokens[at - 1:at]):
            if at == len(tokens) or len(context) >= length:
                raise ValueError("the text has too few lines, or is too short, for its needles")
            context.append(tokens[at])
            at += 1
        needles.append(Needle(tuple(question), tuple(answer), len(context)))
        context += sentence + end
    context += tokens[at:at + length - len(context)]
    if len(context) != length:
        raise ValueError(f"expected a text of {length} tokens, got {len(context)}")
    return context, needles


def recall(model: Any, cache: BlockCache, needles: list[Needle]) -> list[list[bool]]:
    """For each needle, whether each digit of its answer is the most likely token."""
    found = []
    for needle in needles:
        asked = list(needle.question) + list(needle.answer)
        states = cache.ask(model, asked[:-1])[len(needle.question) - 1:]
        best = np.argmax(states @ model.head.T, axis=1)
        found.append([bool(b == a) for b, a in zip(best, needle.answer)])
    return found
