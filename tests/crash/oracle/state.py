"""What a session holds, as a value: each change gives a new state, so that forks are free.

The rules are SEMANTICS.md 1-4 and 11; the names are those of tests/integration/support/model.py.
"""
import typing

import numpy as np

from oracle.rows import Decoded, rows_of
from support.frame import pb

REFERENCE, REFINED = pb.REFERENCE, pb.REFINED


class Layer(typing.NamedTuple):
    """One layer: lineage, length, leading blocks that are sealed or due, and that were dropped."""
    segs: tuple = ()
    length: int = 0
    sealed: int = 0
    dropped: int = 0


class Options(typing.NamedTuple):
    """What a session is made with; it goes where its contents go."""
    encoder: int = REFINED
    seal_lag: int = 0


class State(typing.NamedTuple):
    """A session of a shape."""
    shape: object
    options: Options
    layers: tuple

    @property
    def lengths(self):
        return [layer.length for layer in self.layers]

    @property
    def committed(self):
        return min(self.lengths)

    @property
    def sink_blocks(self):
        return self.shape.sink // self.shape.group

    def _with(self, changed):
        return self._replace(layers=tuple(changed.get(i, layer)
                                          for i, layer in enumerate(self.layers)))

    def append(self, layers, count, source):
        """`count` tokens of a source to each of these layers."""
        group, lag, changed = self.shape.group, self.options.seal_lag, {}
        for i in layers:
            old, window = self.layers[i], self.shape.layers[i].window
            segs, length = old.segs, old.length + count
            if not segs or segs[-1][1] is not source:
                segs += ((old.length, source),)
            dropped = old.dropped
            if window:
                dropped = max(dropped, max(length - window - group - lag, 0) // group)
            changed[i] = Layer(segs, length, max(old.sealed, max(length - lag, 0) // group),
                               dropped)
        return self._with(changed)

    def cut(self, length, may_miss=True):
        """(state, whether a sealed block was re-opened); (None, False) where it is a MISS.

        may_miss: what left its window is gone. After a restart more of it may be there."""
        group, changed, is_lossy = self.shape.group, {}, False
        for i, old in enumerate(self.layers):
            cut, window = min(old.length, length), self.shape.layers[i].window
            block = cut // group
            if may_miss and 0 < cut < old.length and \
                    max(cut - window + 1, 0) < old.dropped * group:
                return None, False
            segs = tuple(seg for seg in old.segs if seg[0] < cut)
            if cut % group and self.sink_blocks <= block < old.sealed:
                is_lossy = True
                base = block * group
                segs = tuple(seg for seg in segs if seg[0] < base)
                segs += ((base, Decoded(old.segs, block, self.encoder_of(block))),)
            changed[i] = Layer(segs, cut, min(old.sealed, block), min(old.dropped, block))
        return self._with(changed), is_lossy

    def recovered(self, lengths, sealed):
        """What is left of it after a crash: less of each layer, nothing re-opened."""
        changed = {}
        for i, old in enumerate(self.layers):
            segs = tuple(seg for seg in old.segs if seg[0] < lengths[i])
            dropped = min(old.dropped, lengths[i] // self.shape.group)
            changed[i] = Layer(segs, lengths[i], sealed[i], dropped)
        return self._with(changed)

    def beginning(self, length):
        """The first tokens of each layer, as they are."""
        return self.recovered([min(layer.length, length) for layer in self.layers],
                              [min(layer.sealed, length // self.shape.group)
                               for layer in self.layers])

    def cloned(self):
        """What AppendTiles makes of its runs: records stay sealed, rows wait for their length."""
        changed = {}
        for i, old in enumerate(self.layers):
            due = max(old.length - self.options.seal_lag, 0) // self.shape.group
            sealed = old.sealed if old.sealed > self.sink_blocks else min(due, old.sealed)
            changed[i] = old._replace(sealed=sealed)
        return self._with(changed)

    def encoder_of(self, block):
        """The first block without a sink before it is `reference`: FORMAT.md, Encoders."""
        return REFERENCE if block == 0 and self.shape.sink == 0 else self.options.encoder

    def stored_bytes(self, codec, layer, first, last, form):
        """The bytes of a run of ReadBlocks{stored}."""
        segs, group = self.layers[layer].segs, self.shape.group
        if form == pb.RECORDS:
            return b"".join(codec.block(self.shape, layer, segs, b, self.encoder_of(b))[0]
                            for b in range(first // group, last // group))
        k, v = rows_of(codec, self.shape, layer, segs, first, last)
        return k.tobytes() + v.tobytes()

    def forms(self, layer, first, last):
        """[(first, last, form)] that a stored read must give."""
        group = self.shape.group
        tiles = [min(max(at, first), last) for at in
                 (self.shape.sink, max(self.layers[layer].sealed * group, self.shape.sink))]
        if tiles[0] == tiles[1]:
            return [(first, last, pb.ROWS_STORED)]
        runs = [(first, tiles[0], pb.ROWS_STORED), (*tiles, pb.RECORDS),
                (tiles[1], last, pb.ROWS_STORED)]
        return [run for run in runs if run[0] < run[1]]

    def rows(self, codec, layer, first, last, sealed=None):
        """Rotated halves as a reader of ROWS in F16 gets them; `sealed` blocks read as tiles."""
        state, group = self.layers[layer], self.shape.group
        sealed = state.sealed if sealed is None else sealed
        parts, at = [rows_of(codec, self.shape, layer, (), 0, 0)], first
        while at < last:
            block = at // group
            base, end = block * group, min(last, (block + 1) * group)
            if self.sink_blocks <= block < sealed:
                _, k, v = codec.block(self.shape, layer, state.segs, block,
                                      self.encoder_of(block))
                parts.append((k[:, at - base:end - base], v[:, at - base:end - base]))
            else:
                parts.append(rows_of(codec, self.shape, layer, state.segs, at, end))
            at = end
        return tuple(np.concatenate(x, axis=1) for x in zip(*parts))


def new_state(shape, options):
    return State(shape, options, (Layer(),) * len(shape.layers))
