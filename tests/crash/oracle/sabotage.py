"""Ways to make an oracle's run fail, so that a test can tell that it would."""
import itertools

from oracle import traffic
from oracle.traffic import Actor
from support.frame import pb
from support.wire import Conn

FLIP_EVERY = 50


def flip():
    """One bit of a payload now and then is another one."""
    recv_any, count = Conn.recv_any, itertools.count(1)

    def flipped(conn):
        reply = recv_any(conn)
        if reply.payload and next(count) % FLIP_EVERY == 0:
            data = bytearray(reply.payload)
            data[len(data) // 2] ^= 4
            reply.payload = bytes(data)
        return reply

    Conn.recv_any = flipped


def drop():
    """Sessions that clients were told to be dropped stay: the request never gets there."""
    send = Actor.send

    def sent(actor, conn, message, payload, op):
        lost = isinstance(message, pb.DropSession)
        send(actor, conn, pb.Ping() if lost else message, payload, op)

    Actor.send = sent


def truncate():
    """A cut and what was appended behind it never got there: what was cut off is still read."""

    def lied(actor):
        known = actor.pick(actor.live())
        if known is None or known.state.committed < 2 or len(set(known.state.lengths)) > 1:
            return
        actor.busy.add(known.name)
        before, layers = known.state, range(len(known.state.layers))
        state, _ = before.cut(before.committed // 2)
        if state is not None:
            known.bury(before)
            known.state = state.append(layers, before.committed - state.committed,
                                       actor.world.new_source())

    traffic.STEPS[:] = [lied if step is Actor.truncate else step for step in traffic.STEPS]


WAYS = {"drop": drop, "flip": flip, "truncate": truncate}
