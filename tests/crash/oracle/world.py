"""What is known of every session by name, and the verdict on what the daemon answers of it.

A session that requests are in flight on when the daemon dies has several *candidates*: with or
without each of them. None among them: there need not be a session. After kill -9 a session may come
back shorter, or not at all; what comes back must be the beginning of a candidate. It must never be
something that was dropped or cut away: then it is told apart as resurrected.
"""
import collections
import time

from oracle.rows import Fresh
from support.frame import pb
from support.settings import patience
from support.wire import Refused

DEAD_KEPT = 8
HISTORY_KEPT = 12
NOTES_MAX = 20
LAWFUL_MISSES = {pb.MISS_WINDOW, pb.MISS_EVICTED, pb.MISS_RESTART}


def call_in_need(conn, message):
    """Ask what needs little memory, again while a daemon whose memory is full refuses it."""
    end = time.monotonic() + patience(10)
    while (reply := conn.ask(message)).code == "RETRY_LATER" and time.monotonic() < end:
        pass
    if reply.code != "OK":
        raise Refused(reply)
    return reply.message


class Tally(collections.Counter):
    """Counts by name; `wrong` and `resurrected` end a run with failure, `died` too."""

    FATAL = ("wrong", "resurrected", "died")

    def __init__(self):
        super().__init__()
        self.notes = []

    def fault(self, kind, text, known=None):
        """Count it, and tell of the first ones; of a name with what was last done to it."""
        self[kind] += 1
        if len(self.notes) < NOTES_MAX:
            past = "" if known is None else "; before: " + ", ".join(known.history)
            self.notes.append(f"{kind}: {text}{past}")
            print(self.notes[-1], flush=True)

    @property
    def is_clean(self):
        return not any(self[kind] for kind in self.FATAL)


class Known:
    """A name: what it holds (None: nothing), by which epoch, and what it once held."""

    def __init__(self, name):
        self.name, self.state, self.epoch, self.source = name, None, None, None
        self.conn = self.handle = None
        self.history = collections.deque(maxlen=HISTORY_KEPT)
        self.epochs, self.dead = set(), collections.deque(maxlen=DEAD_KEPT)
        self.candidates = []       # besides the state, while requests are in flight
        self.doubts = []           # what a crash may bring back: the daemon said so
        self.olds = []             # the same tokens as they were before a cut re-opened a block
        self.is_whole = True       # nothing of it may be missing
        self.misses = False        # an answer said that something of it is
        self.written = 0           # tokens that were acknowledged, over all its lives

    def reopened(self, before, length):
        """A cut kept these tokens, some of them with loss: a crash may bring back what is on disk,
        which is from before that, but no more of it than the cut left."""
        kept = [state.beginning(length) for state in (*self.olds, before)]
        self.olds = [state for i, state in enumerate(kept) if state not in kept[:i]]

    def bury(self, state):
        """What it must never hold again."""
        if state is not None and any(state.lengths):
            self.dead.append(state)


class World:
    """All names, the codec, the tally, and what the machine lacks, so that misses are lawful."""

    def __init__(self, codec, seed, may_evict=False, may_fail=False, keeps_evicted=False):
        self.codec, self.tally, self.may_evict = codec, Tally(), may_evict
        self.may_fail = may_fail  # disks do
        self.keeps_evicted = keeps_evicted  # on a disk with room
        self.lawful = LAWFUL_MISSES | ({pb.MISS_CHECKSUM} if may_fail else set())
        # What a map on disk names is there after a restart, unless the disk lost it.
        self.holes = set() if may_fail else {pb.MISS_RESTART, pb.MISS_CHECKSUM}
        self._seed, self._keys, self.known = seed, 0, {}

    def __getitem__(self, name):
        if name not in self.known:
            self.known[name] = Known(name)
        return self.known[name]

    def new_source(self):
        """A key that no other branch has."""
        self._keys += 1
        return Fresh(self._seed * 1_000_003 + self._keys)

    def see_epoch(self, known, epoch, is_new):
        """Epochs of a name are never used again (SEMANTICS.md 7)."""
        if is_new and epoch in known.epochs:
            self.tally.fault("wrong", f"{known.name}: epoch {epoch} was used before", known)
        known.epochs.add(epoch)
        known.epoch = epoch

    # Reading.

    def read_stored(self, conn, handle, state, layer, first, last):
        """[(first, last, form, bytes or None)] of tokens [first, last); None where they miss."""
        message = pb.ReadBlocks(handle=handle, layer_first=layer, token_first=first,
                                token_last=last, stored=True)
        reply = conn.ask(message)
        end = time.monotonic() + (patience(10) if self.may_evict else 0)
        while reply.code == "RETRY_LATER" and time.monotonic() < end:
            self.tally["reads_retried"] += 1
            reply = conn.ask(message)
        if reply.code == "MISS":
            return reply.status.reason
        if reply.code != "OK":
            return reply
        out, at = [], 0
        ls, group = state.shape.layers[layer], state.shape.group
        for run in reply.message.runs:
            if run.form == pb.RECORDS:
                size = run.token_count // group * ls.kv_heads * state.shape.record_bytes(layer)
            else:
                size = run.token_count * ls.kv_heads * (ls.k_dim + ls.v_dim) * 2
            out.append((run.first_token, run.first_token + run.token_count, run.form,
                        reply.payload[at:at + size]))
            at += size
        return out if at == len(reply.payload) else reply

    def judge(self, known, layer, got, want_runs, state):
        """Compares runs with a state; names what is wrong. Returns whether all is right."""
        self.tally["reads"] += 1
        if [run[:3] for run in got] != want_runs:
            self.tally.fault("wrong", f"{known.name} layer {layer}: runs "
                                      f"{[run[:3] for run in got]}, not {want_runs}", known)
            return False
        for first, last, form, data in got:
            self.tally["tokens_checked"] += last - first
            if data != state.stored_bytes(self.codec, layer, first, last, form):
                self.blame(known, layer, (first, last, form, data))
                return False
        return True

    def blame(self, known, layer, run):
        """Bytes that are not the session's: does it once have held them?"""
        first, last, form, data = run
        for dead in known.dead:
            if layer < len(dead.layers) and dead.layers[layer].length >= last and \
                    self._agrees(dead, layer, run):
                self.tally.fault("resurrected", f"{known.name} layer {layer}: tokens [{first}, "
                                                f"{last}) were dropped or cut away", known)
                return
        self.tally.fault("wrong", f"{known.name} layer {layer}: tokens [{first}, {last}), "
                                  f"form {form}", known)

    def blame_rows(self, known, layer, span, payload):
        """The same for an answer in halves."""
        for dead in known.dead:
            if layer < len(dead.layers) and dead.layers[layer].length >= span[1] and \
                    payload == b"".join(x.tobytes() for x in dead.rows(self.codec, layer, *span)):
                self.tally.fault("resurrected", f"{known.name} layer {layer}: tokens {span}, as "
                                                "halves, were dropped or cut away", known)
                return
        self.tally.fault("wrong", f"{known.name} layer {layer}: tokens {span} as halves", known)

    def _agrees(self, state, layer, run):
        """Whether the last row or record of a run is what a state holds there."""
        first, last, form, data = run
        if form == pb.RECORDS and state.layers[layer].sealed * state.shape.group < last:
            return False
        return state.stored_bytes(self.codec, layer, first, last, form) == data

    def check_miss(self, known, what, layer, first):
        """A MISS is lawful where memory is short, after a crash, or below a window."""
        reason = what if isinstance(what, int) else None
        self.tally["misses"] += 1
        known.misses = True
        is_window = known.state is not None and reason == pb.MISS_WINDOW and \
            first < known.state.layers[layer].dropped * known.state.shape.group
        if reason not in self.lawful or \
                (known.is_whole and not self.may_evict and not is_window):
            self.tally.fault("wrong", f"{known.name} layer {layer}: tokens from {first} on: "
                                      f"answered {what!r}", known)

    def check_all(self, known, conn, handle):
        """Every token that a session holds; stretches that miss are looked at block by block."""
        state = known.state
        for layer, held in enumerate(state.layers):
            first = held.dropped * state.shape.group
            if first < held.length:
                self.check_range(known, conn, handle, layer, first, held.length)

    def check_range(self, known, conn, handle, layer, first, last):
        """Tokens [first, last), which cut no sealed block."""
        state, group = known.state, known.state.shape.group
        got = self.read_stored(conn, handle, state, layer, first, last)
        if isinstance(got, list):
            self.judge(known, layer, got, state.forms(layer, first, last), state)
        elif self.may_evict and getattr(got, "code", None) == "NO_SPACE":
            self.tally["reads_refused"] += 1  # what is left in memory leaves no chunk free
        elif not isinstance(got, int) or last - first <= group:
            self.check_miss(known, got, layer, first)
        else:
            for at in range(first // group * group, last, group):
                self.check_range(known, conn, handle, layer, max(at, first),
                                 min(at + group, last))

    # After a restart.

    def settle(self, known, conn, is_clean, has_cold):
        """A name after a restart: what is there must be the beginning of a candidate."""
        candidates = [known.state, *known.candidates, *known.doubts]
        candidates += [] if is_clean or known.state is None else known.olds
        known.history.append("clean stop" if is_clean else "kill")
        reply = conn.ask(pb.OpenSession(name=known.name, mode=pb.EXISTING))
        known.conn = known.handle = None
        if reply.code == "NOT_FOUND":
            if is_clean and has_cold and None not in candidates:
                self.tally.fault("wrong", f"{known.name}: lost by a clean stop", known)
            self._gone(known)
            return
        if reply.code != "OK":
            self.tally.fault("wrong", f"{known.name}: {reply}", known)
            self._gone(known)
            return
        opened = reply.message
        live = [state for state in candidates if state is not None]
        if not has_cold or not live:
            self.tally.fault("resurrected", f"{known.name}: there after a restart, "
                             f"lengths {list(opened.layer_lengths)}", known)
            conn.ask(pb.DropSession(name=known.name))
            self._gone(known)
            return
        self._adopt(known, conn, opened, live, is_clean)

    def _gone(self, known):
        known.bury(known.state)
        for state in known.candidates + known.doubts:
            known.bury(state)
        known.state, known.candidates, known.doubts, known.handle = None, [], [], None
        known.olds = []

    def _adopt(self, known, conn, opened, live, is_clean):
        """Find the candidate whose beginning came back, and go on from there."""
        lengths = list(opened.layer_lengths)
        fits = [state for state in live if len(state.layers) == len(lengths) and
                all(a <= b for a, b in zip(lengths, state.lengths))]
        if not fits:
            self.tally.fault("resurrected", f"{known.name}: lengths {lengths}, at most "
                             f"{[state.lengths for state in live]} were ever asked for", known)
        chosen = None
        for state in fits:
            chosen = self._begins(known, conn, opened.handle, state, lengths)
            if chosen is not None:
                break
        before = known.state
        for state in live:
            if state is not chosen and not any(state is old for old in known.olds):
                known.bury(state)
        is_loss = before is None or lengths != before.lengths
        known.state, known.is_whole = chosen or live[0], False
        known.candidates, known.doubts, known.olds = [], [], []
        if chosen is None:
            if fits:
                known.state = fits[0].recovered(
                    lengths, [min(a // state.shape.group, layer.sealed)
                              for a, layer in zip(lengths, fits[0].layers)])
                self._blame_all(known, conn, opened.handle)
            conn.ask(pb.DropSession(name=known.name))
            self._gone(known)
            return
        if is_clean and lengths != before.lengths:
            self.tally.fault("wrong", f"{known.name}: {lengths} after a clean stop, "
                                      f"not {before.lengths}", known)
        self.see_epoch(known, opened.epoch, is_new=is_loss and before is not None and
                       any(a < b for a, b in zip(lengths, before.lengths)))
        known.conn, known.handle, known.source = conn, opened.handle, self.new_source()
        self.tally["sessions_survived"] += 1
        self.tally["tokens_survived"] += sum(lengths)

    def _begins(self, known, conn, handle, state, lengths):
        """The state that is there, if it is the beginning of `state`; None if it is not."""
        told = call_in_need(conn, pb.InspectSession(handle=handle)).layer_sealed
        sealed = [at // state.shape.group for at in told]
        if any(a > layer.sealed for a, layer in zip(sealed, state.layers)):
            return None
        there = state.recovered(lengths, sealed)
        for layer, held in enumerate(there.layers):
            for run in self._read_pieces(known, conn, handle, there, layer, held.length):
                first, last, form, data = run
                self.tally["tokens_checked"] += last - first
                if [run[:3]] != there.forms(layer, first, last) or \
                        data != there.stored_bytes(self.codec, layer, first, last, form):
                    return None
        return there

    def _read_pieces(self, known, conn, handle, state, layer, length):
        """The runs of a session that came back, but for what it misses."""
        group, pieces = state.shape.group, []
        first = state.layers[layer].dropped * group
        todo = [(first, length)] if first < length else []
        while todo:
            a, b = todo.pop(0)
            got = self.read_stored(conn, handle, state, layer, a, b)
            if isinstance(got, list):
                pieces += got
            elif isinstance(got, int) and b - a > group:
                todo = [(max(at, a), min(at + group, b))
                        for at in range(a // group * group, b, group)] + todo
            elif isinstance(got, int) and got in self.lawful - self.holes:
                self.tally["recovered_misses"] += 1
            else:
                self.tally.fault("wrong", f"{known.name} layer {layer}: tokens [{a}, {b}) of "
                                          f"{length}: {got!r}", known)
        return pieces

    def _blame_all(self, known, conn, handle):
        """Nothing fits: say what came instead, once a layer."""
        before = self.tally["wrong"] + self.tally["resurrected"]
        for layer, held in enumerate(known.state.layers):
            for run in self._read_pieces(known, conn, handle, known.state, layer, held.length):
                if not self._agrees_any(known, layer, run):
                    self.blame(known, layer, run)
                    break
        if before == self.tally["wrong"] + self.tally["resurrected"]:
            self.tally.fault("wrong", f"{known.name}: layers of different states", known)

    def _agrees_any(self, known, layer, run):
        first, last, form, data = run
        state = known.state
        return state.layers[layer].length >= last and \
            data == state.stored_bytes(self.codec, layer, first, last, form)
