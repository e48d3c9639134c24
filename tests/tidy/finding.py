"""What a check has to say about one line."""
import typing


class Finding(typing.NamedTuple):
    """`path` is relative to the root; lines count from 1."""

    path: str
    line: int
    message: str
