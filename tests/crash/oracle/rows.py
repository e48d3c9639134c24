"""Data that need not be kept: every row follows from a key, its layer and its token.

A *source* gives the rotated halves of any stretch of tokens: Fresh by a keyed random number,
Decoded from the record that a block was sealed to. Codec asks libkvarn for those records.
"""
import collections
import functools
import struct
import subprocess

import numpy as np

REQUEST = struct.Struct("<BBBxHHHxxHxx")
TILES_MAX = 4        # a request, so that neither pipe can fill up while the other is written
BLOCKS_KEPT = 4096
CHUNK_TOKENS = 64


@functools.lru_cache(maxsize=2048)
def _chunk(key, layer, chunk, width):
    """[CHUNK_TOKENS, width] halves of either sign between 1/8 and 2."""
    bits = np.random.Philox(key=[key, layer << 32 | chunk]).random_raw(CHUNK_TOKENS * width // 4)
    bits = bits.view(np.uint16)
    return ((bits & 0x83FF) | ((bits & 0x0C00) + 0x3000)).view(np.float16).reshape(-1, width)


def keyed_halves(key, layer, first, last, width):
    """[token, width] halves: a function of key, layer and token."""
    chunks = range(first // CHUNK_TOKENS, (last - 1) // CHUNK_TOKENS + 1)
    rows = np.concatenate([_chunk(key, layer, chunk, width) for chunk in chunks])
    base = first // CHUNK_TOKENS * CHUNK_TOKENS
    return rows[first - base:last - base]


class Fresh:
    """What a client made up: a new key for each branch, so that no two branches are alike."""
    __slots__ = ("key",)

    def __init__(self, key):
        self.key = key

    def rows(self, _codec, shape, layer, first, last):
        """(K [head, token, Dk], V [head, token, Dv])"""
        ls, count = shape.layers[layer], last - first
        x = keyed_halves(self.key, layer, first, last, ls.kv_heads * (ls.k_dim + ls.v_dim))
        cut = ls.kv_heads * ls.k_dim
        return (x[:, :cut].reshape(count, ls.kv_heads, ls.k_dim).swapaxes(0, 1),
                x[:, cut:].reshape(count, ls.kv_heads, ls.v_dim).swapaxes(0, 1))


class Decoded:
    """A sealed block that was cut: its rows are what its record decodes to."""
    __slots__ = ("segs", "block", "encoder")

    def __init__(self, segs, block, encoder):
        self.segs, self.block, self.encoder = segs, block, encoder

    def rows(self, codec, shape, layer, first, last):
        _, k, v = codec.block(shape, layer, self.segs, self.block, self.encoder)
        base = self.block * shape.group
        return k[:, first - base:last - base], v[:, first - base:last - base]


def clip(segs, first, last):
    """The segments ((start, source), ...) of tokens [first, last), starts within it."""
    out = []
    for i, (start, source) in enumerate(segs):
        end = segs[i + 1][0] if i + 1 < len(segs) else last
        if start < last and end > first:
            out.append((max(start, first), source))
    return tuple(out)


def rows_of(codec, shape, layer, segs, first, last):
    """(K, V) halves of tokens [first, last) of a lineage."""
    parts = clip(segs, first, last)
    ends = [start for start, _ in parts[1:]] + [last]
    pairs = [source.rows(codec, shape, layer, start, end)
             for (start, source), end in zip(parts, ends)]
    if not pairs:
        ls = shape.layers[layer]
        return tuple(np.zeros((ls.kv_heads, 0, dim), np.float16) for dim in (ls.k_dim, ls.v_dim))
    return tuple(np.concatenate(x, axis=1) for x in zip(*pairs))


class Codec:
    """libkvarn of this build, as a process (oracle_codec.c); blocks are remembered for a while."""

    def __init__(self, program):
        self._process = subprocess.Popen([str(program)], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE)
        self._blocks = collections.OrderedDict()

    def close(self):
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def _encode(self, shape, layer, k, v, encoder):
        ls = shape.layers[layer]
        sizes = [shape.record_bytes(layer), shape.group * ls.k_dim * 2, shape.group * ls.v_dim * 2]
        parts = [[], [], []]
        for at in range(0, len(k), TILES_MAX):
            count = min(TILES_MAX, len(k) - at)
            head = REQUEST.pack(encoder, shape.k_bits, shape.v_bits, ls.k_dim, ls.v_dim,
                                shape.group, count)
            body = b"".join(k[i].tobytes() + v[i].tobytes() for i in range(at, at + count))
            self._process.stdin.write(head + body)
            self._process.stdin.flush()
            for _ in range(count):
                for part, size in zip(parts, sizes):
                    part.append(self._process.stdout.read(size))
        k, v = (np.frombuffer(b"".join(part), np.float16).reshape(ls.kv_heads, shape.group, dim)
                for part, dim in zip(parts[1:], (ls.k_dim, ls.v_dim)))
        return b"".join(parts[0]), k, v

    def block(self, shape, layer, segs, block, encoder):
        """(records of all heads, decoded K, V halves) of a sealed block."""
        first, last = block * shape.group, (block + 1) * shape.group
        key = (shape.model, layer, block, encoder, clip(segs, first, last))
        if key not in self._blocks:
            k, v = rows_of(self, shape, layer, segs, first, last)
            self._blocks[key] = self._encode(shape, layer, k, v, encoder)
            if len(self._blocks) > BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end(key)
        return self._blocks[key]
