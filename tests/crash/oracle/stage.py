"""Actors on one daemon after the other: what the kill loop, the soak and the fault tests share."""
import numpy as np

from oracle.rows import Codec
from oracle.traffic import Actor
from oracle.world import World
from support.settings import BIN
from support.wire import Conn


class Stage:
    """A world and its actors. close() when done."""

    def __init__(self, seed, actors=3, names=8, conns=2, **allowed):
        """allowed: of World."""
        self.rng = np.random.default_rng(seed)
        self.codec = Codec(BIN / "oracle_codec")
        self.world = World(self.codec, seed, **allowed)
        self.tally = self.world.tally
        self.actors = [Actor(self.world, self.rng, [f"a{i}-{j}" for j in range(names)], conns)
                       for i in range(actors)]
        for actor in self.actors:
            for name in actor.names:
                _ = self.world[name]

    def connect(self, address):
        """Sessions that came back belong to their actors' connections from now on."""
        for actor in self.actors:
            actor.connect(address)
            for name in actor.names:
                if self.world[name].state is not None:
                    actor.reopen(self.world[name])

    def disconnect(self):
        """The daemon is gone, or nearly so."""
        for actor in self.actors:
            actor.lost()
            actor.close()

    def round(self, ops):
        """Some operations of each actor, all in flight at once."""
        for actor in self.actors:
            actor.submit(ops)
        for actor in self.actors:
            actor.collect()

    def check_all(self):
        """Every token of every session."""
        for actor in self.actors:
            for known in [self.world[name] for name in actor.names]:
                if known.state is not None:
                    self.world.check_all(known, known.conn, known.handle)

    def settle_all(self, address, was_clean, has_cold):
        """All names after a restart, by their candidates, read to the last byte."""
        with Conn(address) as conn:
            for known in self.world.known.values():
                self.world.settle(known, conn, was_clean, has_cold)

    def counts(self, besides=()):
        """The tally as text, without what is told apart."""
        return ", ".join(f"{key} = {value}" for key, value in sorted(self.tally.items())
                         if key not in ("wrong", "resurrected", *besides))

    def close(self):
        self.disconnect()
        self.codec.close()
