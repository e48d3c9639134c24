"""Texts that every Debian and Ubuntu ships: none of them was made for this.

Two are licences (package base-files), one the language reference inside Python's own library
(libpython3-stdlib), one a manual of CMake (cmake-data, which building kvarnd needs).
"""
from __future__ import annotations

import dataclasses
import glob
import hashlib
import pathlib
import runpy

LICENCES = "/usr/share/common-licenses"


@dataclasses.dataclass(frozen=True)
class Text:
    """A text and where it is from; digest: of the text, 16 hexadecimal digits."""
    name: str
    source: str
    text: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def from_file(path: str, name: str = "") -> Text:
    """A text file, as it is."""
    text = pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    return Text(name or pathlib.Path(path).stem, path, text)


def _newest(pattern: str, package: str) -> str:
    paths = sorted(glob.glob(pattern))
    if not paths:
        raise FileNotFoundError(f"no {pattern}; it is in Debian's package {package}")
    return paths[-1]


def _python() -> Text:
    """The topics of help(): Python's language reference, one behind the other by name."""
    path = _newest("/usr/lib/python3*/pydoc_data/topics.py", "libpython3-stdlib")
    topics = runpy.run_path(path)["topics"]
    return Text("python", path, "\n\n".join(topics[name] for name in sorted(topics)))


def _cmake() -> Text:
    path = _newest("/usr/share/cmake-*/Help/manual/cmake-buildsystem.7.rst", "cmake-data")
    return from_file(path, "cmake")


SHIPPED = {
    "gpl": lambda: from_file(f"{LICENCES}/GPL-3", "gpl"),
    "mpl": lambda: from_file(f"{LICENCES}/MPL-1.1", "mpl"),
    "python": _python,
    "cmake": _cmake,
}
