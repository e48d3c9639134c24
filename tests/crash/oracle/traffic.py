"""Clients that do at random what clients do, and hold each answer against the oracle.

An actor has connections and names of its own. A round sends a few operations on different sessions
without waiting, over all its connections, then takes the answers. What is unanswered when the
daemon dies stays with its names as candidates.
"""
import time

import numpy as np

from oracle.state import Options, new_state
from oracle.world import call_in_need
from support import values
from support.frame import CODES, pb
from support.model import attention
from support.session import Layer, Shape
from support.settings import patience
from support.wire import Closed, Conn

GROUP = 64
SHAPES = [
    Shape([Layer(2, 16)] * 3, group=GROUP, model="even"),
    Shape([Layer(1, 24, 8), Layer(2, 8)], group=GROUP, k_bits=4, v_bits=2, sink=0, model="uneven"),
    Shape([Layer(1, 16), Layer(1, 16, window=100)], group=GROUP, k_bits=4, v_bits=4, sink=GROUP,
          model="window"),
]
# Fat enough that some sessions fill the smallest memory limit.
FAT = Shape([Layer(8, 64)] * 3, group=GROUP, model="fat")
OPTIONS = [Options(), Options(pb.REFERENCE, 0), Options(pb.REFINED, 30)]
SPENT = {"RETRY_LATER", "NO_SPACE", "NO_MEMORY"}
DISK = {"IO", "NO_SPACE", "NO_MEMORY", "RETRY_LATER"}
TOKENS_MAX = 1200
ATTENTION_BOUND = 2e-3


class Op:
    """A request on its way: what it may make of each name, and what to do with the answer."""
    __slots__ = ("conn", "request_id", "after", "done", "what")

    def __init__(self, what, after, done):
        self.what, self.after, self.done = what, after, done
        self.conn = self.request_id = None


class Actor:
    """One client. names: its sessions, which nobody else changes."""

    def __init__(self, world, rng, names, conns=2):
        self.world, self.rng, self.names, self.conn_count = world, rng, names, conns
        self.shapes = SHAPES + [FAT] * 3 if world.may_evict else SHAPES
        self.conns, self.flying, self.busy = [], [], set()

    def connect(self, address):
        self.conns = [Conn(address) for _ in range(self.conn_count)]
        for conn in self.conns:
            conn.ids = [conn.call(pb.RegisterShape(shape=shape.message)).message.shape_id
                        for shape in self.shapes]

    def close(self):
        for conn in self.conns:
            conn.close()
        self.conns = []

    def reopen(self, known):
        """A session that came back after a restart, on a connection of this actor."""
        conn = self.pick(self.conns)
        reply = call_in_need(conn, pb.OpenSession(name=known.name, mode=pb.EXISTING))
        self.expect(known, "open: epoch", reply.epoch, known.epoch)
        self.expect(known, "open", list(reply.layer_lengths), known.state.lengths)
        known.conn, known.handle = conn, reply.handle

    def live(self, shape=None):
        """Sessions that are there and not part of this round yet."""
        known = [self.world[name] for name in self.names if name not in self.busy]
        return [k for k in known if k.state is not None and k.handle is not None and
                (shape is None or k.state.shape is shape)]

    def pick_well(self):
        """One to go on with; one that misses something is started over every other time."""
        known = self.pick(self.live())
        if known is not None and known.misses and self.rng.random() < 0.5:
            self.start_over(known)
            return None
        return known

    def free(self):
        known = [self.world[name] for name in self.names if name not in self.busy]
        return [k for k in known if k.state is None]

    def pick(self, items):
        return items[self.rng.integers(len(items))] if items else None

    # A round.

    def submit(self, count):
        """Send some operations; a connection that is gone keeps what was meant for it in doubt."""
        self.busy = set()
        for _ in range(count):
            step = self.pick(STEPS)
            step(self)

    def send(self, conn, message, payload, op):
        op.conn = conn
        self.flying.append(op)
        told = " ".join(str(message).split()) if len(payload) == 0 else \
            f"{op.what} {len(payload)}"
        for known, state in op.after:
            self.busy.add(known.name)
            known.history.append(f"{type(message).__name__} {told[:80]}")
            known.candidates.append(state)
        self.world.tally["sent"] += 1
        op.request_id = conn.send(message, payload)

    def collect(self):
        """Take the answers of a round."""
        while self.flying:
            op = self.flying[0]
            if op.request_id is None:
                raise Closed("never sent")
            reply = op.conn.recv(op.request_id)
            self.flying.pop(0)
            for known, state in op.after:
                remove_one(known.candidates, state)
            self.world.tally["answered"] += 1
            if reply.code == "OK":
                op.done(reply)
            else:
                self.refused(op, reply.code, reply.status)
        self.busy = set()

    def refused(self, op, code, status):
        """Nothing happened. Lawful where memory is short or tokens are gone."""
        self.world.tally[f"refused_{code.lower()}"] += 1
        known = op.after[0][0] if op.after else None
        if op.what in ("open", "fork") and code == "CONFLICT":
            self.world.tally.fault("resurrected", f"{known.name} is there: {status.text}",
                                   known)
            return
        # Done, or half done, but not on disk: for want of a disk, or of memory.
        is_half = self.world.may_fail or (self.world.may_evict and "cold tier" in status.text)
        if code in DISK and is_half and op.what in ("truncate", "drop", "reorder"):
            for known, state in op.after:
                self.resolve(known, [known.state, state])
            return
        if code in SPENT and (self.world.may_evict or op.what == "verify"):
            return
        if op.what == "prefetch" and code == "UNSUPPORTED":
            return  # there is no cold tier; prefetched_blocks says where there was one
        if code == "MISS" and known is not None and \
                (self.world.may_evict or not known.is_whole or op.what == "window"):
            known.misses = True
            return
        self.world.tally.fault("wrong", f"{op.what} of {known and known.name}: {code} "
                                        f"{status.text}", known)

    def resolve(self, known, states):
        """A change that is not on disk: it may have happened, and a crash may bring back either."""
        conn = known.conn
        reply = conn.ask(pb.OpenSession(name=known.name, mode=pb.EXISTING))
        known.doubts += states
        known.state = known.handle = None
        if reply.code == "OK":
            known.handle, lengths = reply.message.handle, list(reply.message.layer_lengths)
            known.state = next((state for state in states if state is not None and
                                state.lengths == lengths), None)
            self.world.see_epoch(known, reply.message.epoch, is_new=False)
            known.source, known.is_whole = self.world.new_source(), False
        if known.state is None and (reply.code != "NOT_FOUND" or None not in states):
            self.world.tally.fault("wrong", f"{known.name} after a failed change: {reply}",
                                   known)

    def lost(self):
        """The daemon is gone: what is unanswered stays in doubt."""
        self.world.tally["in_flight_at_death"] += len(self.flying)
        self.flying = []

    def expect(self, known, what, got, want):
        if got != want:
            self.world.tally.fault("wrong", f"{what} of {known.name}: {got}, not {want}", known)

    # Operations.

    def open(self):
        known = self.pick(self.free())
        if known is None:
            return
        idx = int(self.rng.integers(len(self.shapes)))
        state = new_state(self.shapes[idx], self.pick(OPTIONS))
        conn = self.pick(self.conns)
        message = pb.OpenSession(name=known.name, shape_id=conn.ids[idx], mode=pb.CREATE,
                                 encoder=state.options.encoder, seal_lag=state.options.seal_lag)

        def done(reply):
            self.world.see_epoch(known, reply.message.epoch, is_new=True)
            self.begin(known, state, conn, reply.message.handle)
            self.expect(known, "open", list(reply.message.layer_lengths), state.lengths)

        self.send(conn, message, b"", Op("open", [(known, state)], done))

    def begin(self, known, state, conn, handle):
        known.state, known.conn, known.handle = state, conn, handle
        known.source, known.is_whole = self.world.new_source(), True
        known.misses, known.olds = False, []

    def append(self):
        """All layers at once, or one at a time, pipelined."""
        known = self.pick_well()
        if known is None or max(known.state.lengths) > TOKENS_MAX:
            return
        layers = list(range(len(known.state.layers)))
        count = int(self.pick([1, 3, 40, 64, 150, 200]))
        if len(set(known.state.lengths)) > 1:
            self.level(known, layers)
        elif self.rng.random() < 0.5:
            self.append_layers(known, layers, count)
        else:
            for layer in layers[:int(self.rng.integers(1, len(layers) + 1))]:
                self.append_layers(known, [layer], count)

    def start_over(self, known):
        """What a client does whose session misses something: from the start, or not at all."""
        if self.rng.random() < 0.3:
            self.drop_one(known)
        else:
            self.truncate_one(known, 0)

    def level(self, known, layers):
        """Bring layers that are behind to the length of the longest."""
        longest = max(known.state.lengths)
        for layer in layers:
            if known.state.lengths[layer] < longest:
                self.append_layers(known, [layer], longest - known.state.lengths[layer])

    def payload(self, known, layers, start, count):
        kv = [known.source.rows(None, known.state.shape, layer, start, start + count)
              for layer in layers]
        return values.kv_payload(kv, "f16", "head")

    def append_layers(self, known, layers, count):
        start = known.state.lengths[layers[0]]
        message = pb.Append(handle=known.handle, epoch=known.epoch, layer_first=layers[0],
                            layer_count=len(layers), start=start, token_count=count, rotated=True)
        source = known.source
        # What other layers of this round bring is in doubt too: the candidate has all of it.
        base = known.candidates[-1] if known.candidates else known.state
        after = base.append(layers, count, source)

        def done(reply):
            known.state = known.state.append(layers, count, source)
            known.written += count * len(layers)
            self.expect(known, "append: length", reply.message.length, start + count)
            sealed = min(known.state.layers[i].sealed for i in layers) * GROUP
            self.expect(known, "append: sealed", reply.message.sealed_tokens, sealed)

        self.send(known.conn, message, self.payload(known, layers, start, count),
                  Op("append", [(known, after)], done))

    def append_attend(self):
        """A decode step of one layer, its outcome held against attention in double precision."""
        known = self.pick_well()
        if known is None or len(set(known.state.lengths)) > 1 or \
                max(known.state.lengths) > TOKENS_MAX:
            return
        for layer, ls in enumerate(known.state.shape.layers):
            self.decode_step(known, layer, ls, int(self.pick([1, 1, 4])))

    def decode_step(self, known, layer, ls, count):
        start, source, before = known.state.lengths[layer], known.source, known.state
        q = self.rng.standard_normal((2 * ls.kv_heads, count, ls.k_dim)).astype(np.float32)
        params = pb.AttendParams(layer=layer, q_heads=q.shape[0], q_dtype=pb.F32, q_rotated=True,
                                 out_rotated=True, accuracy=pb.EXACT)
        message = pb.AppendAttend(params=params, kv_rotated=True)
        message.items.add(handle=known.handle, epoch=known.epoch, start=start, token_count=count)
        base = known.candidates[-1] if known.candidates else known.state
        after = base.append([layer], count, source)
        op = Op("append_attend", [(known, after)], None)

        def done(reply):
            item = reply.message.items[0]
            if item.appended:
                known.state = known.state.append([layer], count, source)
                known.written += count
            if item.status.code != 0:
                self.refused(op, CODES[item.status.code], item.status)
                return
            self.check_attention(known, layer, (before, source, start, count), q, reply)

        op.done = done
        self.send(known.conn, message, self.payload(known, [layer], start, count) + q.tobytes(),
                  op)

    def check_attention(self, known, layer, step, q, reply):
        before, source, start, count = step
        held, ls = before.layers[layer], before.shape.layers[layer]
        item = reply.message.items[0]
        self.expect(known, "append_attend: sealed", item.sealed_tokens, held.sealed * GROUP)
        base = max(start + 1 - ls.window, 0) // GROUP * GROUP if ls.window else 0
        after = before.append([layer], count, source)
        k, v = after.rows(self.world.codec, layer, base, start + count, held.sealed)
        out, lse = attention(q, k, v, start, base=base, window=ls.window)
        size = out.size * 4
        got = np.frombuffer(reply.payload[:size], np.float32).reshape(out.shape)
        got_lse = np.frombuffer(reply.payload[size:], np.float32).reshape(lse.shape)
        scale = max(np.abs(v).max(initial=0), 1.0)
        worst = max(np.abs(got - out).max() / scale, np.abs(got_lse - lse).max() / 4)
        self.world.tally["attends_checked"] += 1
        if not worst <= ATTENTION_BOUND:
            self.world.tally.fault("wrong", f"attention of {known.name} layer {layer}: off by "
                                            f"{worst:.2g}, {before.lengths} tokens before",
                                   known)

    def clone(self):
        """What another session stores, appended to an empty one."""
        known = self.pick([k for k in self.live() if k.state.committed and
                           k.state.shape.layers[-1].window == 0])
        child = self.pick([k for k in self.live(known.state.shape) if not any(k.state.lengths) and
                           k.state.options == known.state.options]) if known else None
        if child is None:
            return
        state, message = known.state, pb.AppendTiles(handle=child.handle, epoch=child.epoch)
        parts = []
        for layer, held in enumerate(state.layers):
            for first, last, form in state.forms(layer, 0, held.length):
                message.runs.add(layer=layer, first_token=first, token_count=last - first,
                                 form=form)
                parts.append(state.stored_bytes(self.world.codec, layer, first, last, form))

        state = state.cloned()

        def done(reply):
            child.state = state
            child.source = self.world.new_source()
            self.expect(child, "append_tiles", list(reply.message.lengths), state.lengths)

        self.send(child.conn, message, b"".join(parts), Op("append_tiles", [(child, state)], done))

    def truncate(self):
        known = self.pick(self.live())
        if known is None or not any(known.state.lengths):
            return
        length = int(self.rng.integers(max(known.state.lengths) + 1))
        if self.rng.random() < 0.2 or not known.is_whole:
            length = 0 if self.rng.random() < 0.5 else length // GROUP * GROUP
        self.truncate_one(known, length)

    def truncate_one(self, known, length):
        before = known.state
        state, is_lossy = before.cut(length, may_miss=known.is_whole)
        message = pb.Truncate(handle=known.handle, epoch=known.epoch, length=length)

        def done(reply):
            if state is None:
                self.world.tally.fault("wrong", f"{known.name} was cut below its window")
                return
            if state.lengths != before.lengths:
                known.bury(before)
                known.reopened(before, length)
                known.source = self.world.new_source()
            self.world.see_epoch(known, reply.message.epoch,
                                 is_new=state.lengths != before.lengths)
            known.state = state
            if length == 0:
                known.is_whole, known.misses = True, False
            self.expect(known, "truncate", list(reply.message.layer_lengths), state.lengths)
            self.expect(known, "truncate: lossy", reply.message.lossy_tail, is_lossy)

        what = "window" if state is None else "truncate"
        self.send(known.conn, message, b"", Op(what, [(known, state or before)], done))

    def fork(self):
        parent, child = self.pick_well(), self.pick(self.free())
        if parent is None or child is None:
            return
        committed, before = parent.state.committed, parent.state
        length = committed if self.rng.random() < 0.6 else int(self.rng.integers(committed + 1))
        state, is_lossy = before.cut(length, may_miss=parent.is_whole)
        message = pb.Fork()
        message.items.add(handle=parent.handle, epoch=parent.epoch, name=child.name, length=length)
        op = Op("window" if state is None else "fork", [(child, state)], None)

        def done(reply):
            item = reply.message.items[0]
            if item.status.code != 0:
                if CODES[item.status.code] != "CONFLICT":
                    op.after = [(parent, before)]
                self.refused(op, CODES[item.status.code], item.status)
                return
            if state is None:
                self.world.tally.fault("wrong", f"{parent.name} was forked below its window")
                return
            self.world.see_epoch(child, item.epoch, is_new=True)
            self.begin(child, state, parent.conn, item.handle)
            child.is_whole = parent.is_whole
            self.expect(child, "fork", (item.length, item.lossy_tail), (state.committed, is_lossy))

        op.done = done
        self.busy.add(parent.name)
        self.send(parent.conn, message, b"", op)

    def reorder(self):
        first = self.pick(self.live())
        if first is None:
            return
        members = [k for k in self.live(first.state.shape) if k.conn is first.conn][:4]
        sources = [int(i) for i in self.rng.integers(len(members), size=len(members))]
        before = [(k.state, k.is_whole) for k in members]
        message = pb.Reorder()
        message.items.add(handles=[k.handle for k in members], epochs=[k.epoch for k in members],
                          sources=sources)
        after = [(k, before[i][0]) for k, i in zip(members, sources)]
        op = Op("reorder", after, None)

        def done(reply):
            item = reply.message.items[0]
            if item.status.code != 0:
                self.refused(op, CODES[item.status.code], item.status)
                return
            for at, (known, source) in enumerate(zip(members, sources)):
                is_new = source != at
                if is_new and known.state is not before[source][0]:
                    known.bury(known.state)
                known.olds = [] if is_new else known.olds
                known.state, known.is_whole = before[source]
                self.world.see_epoch(known, item.epochs[at], is_new)
                known.source = self.world.new_source() if is_new else known.source
                self.expect(known, "reorder", item.lengths[at], known.state.committed)

        op.done = done
        self.send(first.conn, message, b"", op)

    def drop(self):
        known = self.pick(self.live())
        if known is not None:
            self.drop_one(known)

    def drop_one(self, known):
        def done(_):
            known.bury(known.state)
            known.state = known.handle = None

        message = pb.DropSession(name=known.name) if self.rng.random() < 0.5 else \
            pb.DropSession(handle=known.handle)
        self.send(known.conn, message, b"", Op("drop", [(known, None)], done))

    def read(self):
        """Whole blocks as they are stored, or any stretch as halves."""
        known = self.pick_well()
        if known is None:
            return
        layer = int(self.rng.integers(len(known.state.layers)))
        held, state = known.state.layers[layer], known.state
        if held.length <= held.dropped * GROUP:
            return
        first = int(self.rng.integers(held.dropped * GROUP, held.length))
        last = int(self.rng.integers(first + 1, held.length + 1))
        self.busy.add(known.name)
        message = pb.ReadBlocks(handle=known.handle, layer_first=layer, token_first=first,
                                token_last=last, rotated=True)
        op = Op("read", [], None)

        def done(reply):
            k, v = state.rows(self.world.codec, layer, first, last)
            self.world.tally["reads"] += 1
            self.world.tally["tokens_checked"] += last - first
            if reply.payload != values.kv_payload([(k, v)], "f16", "head"):
                self.world.blame_rows(known, layer, (first, last), reply.payload)

        op.done = done
        op.after = [(known, state)]
        self.send(known.conn, message, b"", op)

    def move(self):
        """Another connection takes the session over, or the same one anew."""
        known = self.pick(self.live())
        if known is None:
            return
        conn, takes = self.pick(self.conns), bool(self.rng.random() < 0.5)
        message = pb.OpenSession(name=known.name, mode=pb.EXISTING, takeover=takes)

        def done(reply):
            if not takes:
                self.expect(known, "open: epoch", reply.message.epoch, known.epoch)
            self.world.see_epoch(known, reply.message.epoch, is_new=takes)
            known.conn, known.handle = conn, reply.message.handle
            self.expect(known, "open", list(reply.message.layer_lengths), known.state.lengths)

        self.send(conn, message, b"", Op("move", [(known, known.state)], done))

    def touch(self):
        """Priority and pins change what goes first, never what is right."""
        known = self.pick(self.live())
        if known is None:
            return
        message = self.pick([pb.Touch(handle=known.handle, priority=int(self.rng.integers(101))),
                             pb.Pin(handle=known.handle, pin_ms=50),
                             pb.Pin(handle=known.handle, unpin=True)])
        self.send(known.conn, message, b"", Op("touch", [(known, known.state)], lambda _: None))

    def evict(self):
        known = self.pick(self.live())
        if known is None:
            return
        message = pb.Evict(handle=known.handle)
        if self.rng.random() < 0.7:
            message.blocks = int(self.rng.integers(1, 5))

        def done(_):
            known.is_whole = known.is_whole and self.world.keeps_evicted

        self.send(known.conn, message, b"", Op("evict", [(known, known.state)], done))


    def prefetch(self):
        """What is on disk comes back by itself, while others go on with the session."""
        known = self.pick(self.live())
        if known is None:
            return
        message = pb.Prefetch(handle=known.handle)
        if self.rng.random() < 0.5:
            message.last_blocks = int(self.rng.integers(1, 5))

        def done(reply):
            self.world.tally["prefetched_blocks"] += reply.message.blocks

        self.send(known.conn, message, b"", Op("prefetch", [(known, known.state)], done))

    def expire(self):
        """A TTL that is over soon. Once it is, the session is gone for good, as after a Drop."""
        known = self.pick(self.live())
        if known is None or self.rng.random() < 0.6:
            return
        message = pb.Touch(handle=known.handle, ttl_ms=1)

        def done(_):
            end = time.monotonic() + patience(20)
            while self.is_listed(known):
                if time.monotonic() > end:
                    self.world.tally.fault("wrong", f"{known.name} does not expire", known)
                    return
            self.world.tally["expired"] += 1
            known.bury(known.state)
            known.state = known.handle = None

        self.send(known.conn, message, b"", Op("expire", [(known, None)], done))

    def verify(self):
        """Whatever goes on beside it, nothing is found that is not there."""
        known = self.pick(self.live())
        if known is None:
            return

        def done(reply):
            self.world.tally["records_verified"] += reply.message.records
            self.world.tally["pages_verified"] += reply.message.pages
            unread = DISK if self.world.may_fail else SPENT
            found = [f for f in reply.message.findings
                     if f.wrong_pages or CODES[f.record_error] not in unread]
            if found:
                self.world.tally.fault("wrong", f"verify of {known.name}: {found}", known)

        self.send(known.conn, pb.Verify(handle=known.handle), b"",
                  Op("verify", [(known, known.state)], done))

    def is_listed(self, known):
        """Whether the daemon has a session of this name; to look is no use of it."""
        message = pb.ListSessions(prefix=known.name, limit=256)
        return any(one.name == known.name
                   for one in call_in_need(known.conn, message).sessions)


def remove_one(items, item):
    """By identity: states compare by value."""
    for i, other in enumerate(items):
        if other is item:
            del items[i]
            return


STEPS = [Actor.open] * 2 + [Actor.append] * 8 + [Actor.append_attend] * 3 + [Actor.truncate] * 3 + \
    [Actor.fork] * 2 + [Actor.read] * 3 + [Actor.reorder, Actor.drop, Actor.clone, Actor.move,
                                           Actor.touch, Actor.evict, Actor.evict,
                                           Actor.prefetch, Actor.prefetch, Actor.expire,
                                           Actor.verify]

__all__ = ["Actor"]
