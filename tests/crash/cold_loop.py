"""Kill loop of the cold tier: an oracle drives kvarnd, kills it and checks what came back.

usage: cold_loop.py [--kills N] [--seed S] [--bin BUILD_FOLDER]

Every token's rows follow from a seed that the oracle keeps, so that a read of any session can be
held to what was stored there: by its error against the rows, which is below 1 for what was stored,
however often it was quantised, and about 2 for anything else; and byte for byte against what the
same blocks gave before the kill, where they had been read.

What may come back of a session is a beginning of what it held, or of what an operation that was
under way at the kill would have made of it. What was cut off or dropped, and acknowledged, may not.
"""
import argparse
import os
import pathlib
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "client/python/src"))
import kvarn  # noqa: E402  pylint: disable=wrong-import-position

LAYERS, HEADS, DIM, GROUP = 2, 2, 64, 128
SHAPE = kvarn.Shape.uniform("crash", layers=LAYERS, kv_heads=HEADS, head_dim=DIM, group=GROUP)
POINTS = ("cold_made", "cold_written", "cold_synced", "cold_sealed", "cold_punched",
    "cold_removed", "cold_moved", "cold_tail")
NAMES = [f"s{i}" for i in range(10)]
TOKENS_MAX = 3000
# Relative mean square: 0.2 for 2 bits, about 0.5 where re-opened tails were sealed again; 2 for
# rows of anything else.
ERROR_MAX = 0.9
PATIENCE = float(os.environ.get("KVARN_TEST_SLOW") or 1) * 30


def rows(seed, layer, count):
    """K and V of the tokens that one append stored in a layer."""
    generator = np.random.default_rng((seed, layer))
    return tuple(generator.standard_normal((HEADS, count, DIM)).astype(np.float16) for _ in "kv")


class Held:
    """What a session holds: stretches (seed, tokens of it)."""

    def __init__(self, stretches=()):
        self.stretches = list(stretches)

    @property
    def length(self):
        """Tokens in all."""
        return sum(count for _, count in self.stretches)

    def cut(self, length):
        """The first tokens of it."""
        kept = []
        for seed, count in self.stretches:
            if length > 0:
                kept.append((seed, min(count, length)))
            length -= count
        return Held(kept)

    def data(self, layer):
        """(K, V) of all tokens; a stretch that was cut is a beginning of its rows."""
        parts = [[], []]
        for seed, count in self.stretches:
            whole = rows(seed, layer, WHOLE[seed])
            for i in range(2):
                parts[i].append(whole[i][:, :count])
        return tuple(np.concatenate(p, axis=1) if p else np.zeros((HEADS, 0, DIM)) for p in parts)


WHOLE = {}  # tokens of each append, by its seed


class Daemon:
    """kvarnd on one cold folder, started again and again."""

    def __init__(self, binary, folder):
        self.binary, self.folder = binary, folder
        self.socket = f"{folder}/s.sock"
        self.process = None

    def start(self, kill=None):
        """Start; returns once it serves. A kill point may end it before: then False."""
        env = dict(os.environ)
        env.pop("KVARND_TEST_KILL", None)
        if kill:
            env["KVARND_TEST_KILL"] = kill
        with open(f"{self.folder}/log", "ab") as log:
            self.process = subprocess.Popen([self.binary, "--listen-unix", self.socket,
                "--cold-dir", f"{self.folder}/cold", "--cold-segment", "256KiB", "--cold-limit",
                "16MiB", "--memory-limit", "48MiB"], stdout=subprocess.PIPE, stderr=log, env=env)
        end, line = time.monotonic() + PATIENCE, b""
        while not line.endswith(b"\n"):
            if not select.select([self.process.stdout], [], [], end - time.monotonic())[0]:
                raise RuntimeError("kvarnd did not say that it is ready")
            byte = os.read(self.process.stdout.fileno(), 1)
            if not byte:
                return False
            line += byte
        return True

    def alarms(self):
        """Starts that told of damage: none of this test's ends can cause any."""
        lines = pathlib.Path(f"{self.folder}/log").read_text(errors="replace").splitlines()
        return sum("event=cold_opened" in line and "damaged=0" not in line for line in lines)

    def kill(self):
        """As by the kernel. Returns whether it ended so, and not by itself before."""
        self.process.kill()
        return self.process.wait() == -signal.SIGKILL

    def stop(self):
        """Cleanly. Returns whether it was."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE) == 0


class Oracle:
    """Traffic, and what every session must be after the next start."""

    def __init__(self, daemon, seed):
        self.daemon = daemon
        self.random = random.Random(seed)
        self.held = {}        # name -> Held: acknowledged
        self.maybe = {}       # name -> Held or None (dropped): under way at the kill
        self.exact = {}       # name -> per layer (K, V) as read, with the Held it was read of
        self.counts = dict.fromkeys(("appends", "reads", "truncates", "forks", "drops", "evictions",
            "kills", "points", "stops", "back", "gone", "tokens", "shorter", "missed"), 0)
        self.wrong = self.resurrected = self.lost = self.holes = self.died = 0
        self.seed_last = seed * 1000000

    def client(self):
        """A connection that does not connect again by itself."""
        return kvarn.Client(f"unix:{self.daemon.socket}")

    def complain(self, kind, text):
        """Count and tell."""
        setattr(self, kind, getattr(self, kind) + 1)
        print(f"{kind}: {text}")

    def missed(self, name, miss):
        """What is short of memory may miss; what a map on disk names must be there."""
        self.counts["missed"] += 1
        if miss.reason in ("restart", "checksum"):
            self.complain("holes", f"{name}: {miss}")

    def step(self, client):
        """One operation of the traffic."""
        name = self.random.choice(NAMES)
        held = self.held.get(name)
        kind = self.random.choices(("append", "read", "truncate", "fork", "drop", "evict"),
            (10, 3, 2, 1, 1, 2))[0]
        if held is None or kind == "append":
            self.append(client, name)
        elif kind == "read":
            self.read(client, name)
        elif kind == "truncate":
            self.truncate(client, name)
        elif kind == "fork":
            self.fork(client, name)
        elif kind == "drop":
            self.drop(client, name)
        else:
            self.evict(client, name)

    def append(self, client, name):
        """More tokens in all layers."""
        held = self.held.get(name, Held())
        count = self.random.randint(1, 400)
        if held.length + count > TOKENS_MAX:
            return
        self.seed_last += 1
        seed = self.seed_last
        WHOLE[seed] = count
        after = Held(held.stretches + [(seed, count)])
        self.maybe[name] = after
        session = client.open(name, SHAPE)
        try:
            session.append_layers([rows(seed, layer, count) for layer in range(LAYERS)])
        except kvarn.Miss:
            self.counts["missed"] += 1
            del self.maybe[name]
            return
        self.held[name] = after
        del self.maybe[name]
        self.counts["appends"] += 1

    def read(self, client, name):
        """All of a session; what was evicted without a cold copy is a miss."""
        session = client.open(name)
        try:
            self.exact[name] = (self.held[name], self.check(session, name, self.held[name]))
        except kvarn.Miss as miss:
            self.missed(name, miss)
        self.counts["reads"] += 1

    def truncate(self, client, name):
        """Cut somewhere."""
        after = self.held[name].cut(self.random.randint(0, self.held[name].length))
        self.maybe[name] = after
        try:
            client.open(name).truncate(after.length)
        except kvarn.Miss:
            del self.maybe[name]
            return
        self.held[name] = after
        self.exact.pop(name, None)
        del self.maybe[name]
        self.counts["truncates"] += 1

    def fork(self, client, name):
        """A copy under another name, where that is free."""
        other = self.random.choice(NAMES)
        if other in self.held:
            return
        self.maybe[other] = self.held[name]
        try:
            client.open(name).fork(other)
        except kvarn.Miss:
            del self.maybe[other]
            return
        self.held[other] = self.held[name]
        del self.maybe[other]
        self.counts["forks"] += 1

    def drop(self, client, name):
        """End a session for good."""
        self.maybe[name] = None
        client.drop(name)
        del self.held[name]
        del self.maybe[name]
        self.exact.pop(name, None)
        self.counts["drops"] += 1

    def evict(self, client, name):
        """Out of memory, to the cold tier where that has it."""
        session = client.open(name)
        if hasattr(session, "evict"):
            session.evict()
            self.counts["evictions"] += 1

    def check(self, session, name, held):
        """Read everything and compare. Returns what was read, per layer."""
        got = []
        for layer in range(LAYERS):
            want = held.data(layer)
            have = tuple(np.asarray(x, np.float32) for x in session.read(layer=layer))
            got.append(have)
            for i in range(2):
                self.compare(have[i], want[i].astype(np.float32), f"{name} layer {layer}")
        return got

    def compare(self, have, want, text):
        """By blocks: the error of what was stored is small, of anything else it is not."""
        for first in range(0, want.shape[1], GROUP):
            h, w = have[:, first:first + GROUP], want[:, first:first + GROUP]
            error = float(((h - w) ** 2).mean() / (w ** 2).mean()) if h.shape == w.shape else 9.0
            if error > ERROR_MAX:
                self.complain("wrong", f"{text}, tokens from {first}: error {error:.2f}")
        self.counts["tokens"] += want.shape[1]

    def judge(self, client, was_clean):
        """After a start: every name."""
        for name in NAMES:
            options = [self.held[name]] if name in self.held else []
            if self.maybe.get(name) is not None:
                options.append(self.maybe[name])
            may_be_gone = name not in self.held or self.maybe.get(name, 0) is None
            try:
                session = client.open(name, mode="existing")
            except kvarn.NotFound:
                self.counts["gone"] += 0 if may_be_gone else 1
                if was_clean and name in self.held:
                    self.complain("lost", f"{name} after a clean stop")
                self.held.pop(name, None)
                self.exact.pop(name, None)
                continue
            if not options:
                self.complain("resurrected", f"{name}: dropped before the kill")
                session.drop()
                continue
            self.judge_session(session, name, options, was_clean)
        self.maybe.clear()

    def judge_session(self, session, name, options, was_clean):
        """Its length is a beginning of one of the options, and so is what it holds."""
        length = min(session.lengths)
        fitting = [o.cut(length) for o in options if o.length >= length]
        self.counts["back"] += 1
        if not fitting:
            self.complain("resurrected",
                f"{name}: {length} tokens, it had {[o.length for o in options]}")
            session.drop()
            self.held.pop(name, None)
            return
        if was_clean and length != options[0].length:
            self.complain("lost", f"{name}: {length} of {options[0].length} after a clean stop")
        self.counts["shorter"] += length < options[0].length
        held = self.pick(session, name, fitting)
        read_of, before = self.exact.pop(name, (None, None))
        self.held[name] = held
        if held.length == 0 or read_of is None:
            return
        common = min(held.length, read_of.length) // GROUP * GROUP
        if read_of.cut(common).stretches != held.cut(common).stretches:
            return
        for layer in range(LAYERS):
            now = session.read(layer=layer, token_last=common)
            for i in range(2):
                # Blocks that were not sealed when they were read may be by now.
                sealed = common - 2 * GROUP
                if sealed > 0 and not np.array_equal(np.asarray(now[i], np.float32)[:, :sealed],
                        before[layer][i][:, :sealed]):
                    self.complain("wrong", f"{name} layer {layer}: not what it was before")

    def pick(self, session, name, fitting):
        """Which of the options came back: the first that matches; none is an error."""
        wrong = self.wrong
        for held in fitting[:-1]:
            quiet = Oracle.__new__(Oracle)
            quiet.__dict__ = dict(self.__dict__, complain=lambda *a: None, counts=dict(self.counts))
            quiet.wrong = 0
            quiet.complain = lambda kind, text, q=quiet: setattr(q, kind, getattr(q, kind) + 1)
            try:
                quiet.check(session, name, held)
            except kvarn.Miss as miss:
                self.missed(name, miss)
                return held
            if quiet.wrong == 0:
                return held
        try:
            self.check(session, name, fitting[-1])
        except kvarn.Miss as miss:
            self.missed(name, miss)
        assert self.wrong >= wrong
        return fitting[-1]

    def round(self, number):
        """Start, judge, traffic, and an end."""
        way = self.random.choices(("kill", "point", "stop"), (5, 4, 2))[0]
        point = None
        if way == "point":
            point = f"{self.random.choice(POINTS)}:{self.random.randint(1, 12)}"
        if not self.daemon.start(point):
            self.daemon.process.wait()
            assert self.daemon.start()
            way = "kill"
        timer = None
        try:
            with self.client() as client:
                self.judge(client, self.was_clean)
                if way == "kill":
                    timer = threading.Timer(self.random.uniform(0.01, 0.35), self.daemon.kill)
                    timer.start()
                for _ in range(self.random.randint(5, 60)):
                    self.step(client)
        except (kvarn.ConnectionLost, ConnectionError):
            pass
        if timer is not None:
            timer.join()
        self.was_clean = False
        is_good = self.daemon.stop() if way == "stop" else self.daemon.kill()
        if not is_good:
            self.complain("died", f"round {number}: status {self.daemon.process.returncode}")
        self.was_clean = way == "stop" and is_good and not self.maybe
        self.counts[way + "s"] += 1
        return number

    was_clean = True


def main():
    """Returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bin", default=os.environ.get("KVARND_BUILD_DIR", str(ROOT / "build")))
    options = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="kvarnd-crash-")
    binary = pathlib.Path(options.bin) / "bin/kvarnd"
    oracle = Oracle(Daemon(str(binary), folder), options.seed)
    start = time.monotonic()
    rounds = 0
    while oracle.counts["kills"] + oracle.counts["points"] < options.kills:
        rounds = oracle.round(rounds + 1)
    if oracle.daemon.start():
        with oracle.client() as client:
            oracle.judge(client, oracle.was_clean)
        oracle.daemon.stop()
    print(f"{rounds} rounds in {time.monotonic() - start:.0f} s: " + ", ".join(
        f"{value} {key}" for key, value in oracle.counts.items()))
    alarms = oracle.daemon.alarms()
    bad = oracle.wrong + oracle.resurrected + oracle.lost + oracle.holes + oracle.died + alarms
    print(f"died by itself = {oracle.died}, holes in what came back = {oracle.holes}")
    print(f"damage told though the disk was well = {alarms}")
    print(f"lost after a clean stop = {oracle.lost}")
    print(f"wrong = {oracle.wrong}, resurrected = {oracle.resurrected}")
    if bad:
        print(f"log and files are in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
