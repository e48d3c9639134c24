"""Kills a daemon again and again under traffic, and looks at what comes back.

usage: crash_loop.py [--kills N] [--seconds S] [--seed S] [--cold | --no-cold] [--memory-limit SIZE]
                     [--sabotage flip|drop|truncate]
Exit 1 when anything was wrong, resurrected or died by itself. --sabotage lies to the oracle or
changes an answer, so that it must exit 1: what shows that it can.
"""
import argparse
import os
import pathlib
import shutil
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "integration")]

from oracle import sabotage  # noqa: E402
from oracle.lives import Life, has_option, kill_points  # noqa: E402
from oracle.stage import Stage  # noqa: E402
from support.wire import Closed  # noqa: E402

ROUND_OPS, ROUNDS_MAX = 6, 60
CLEAN_EVERY = 8    # with a cold tier: one stop in so many is a clean one
POINT_EVERY = 3    # one life in so many ends at a kill point, if it gets there
EARLY_EVERY = 10   # one in so many may be killed while it starts
PROGRESS_SECONDS = 5


class Loop:
    """Lives of a daemon over one cold folder, if there is one."""

    def __init__(self, args):
        self.args = args
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="kvarn-crash-"))
        self.stage = Stage(args.seed, may_evict=args.memory_limit is not None,
                           keeps_evicted=args.cold and args.memory_limit is None)
        self.rng, self.tally = self.stage.rng, self.stage.tally
        self.points = kill_points() if args.cold else []
        self.was_clean = False

    def flags(self):
        flags = ["--memory-limit", self.args.memory_limit or "256MiB",
                 "--workers", str(int(self.rng.integers(0, 3)))]
        if self.args.cold:
            # Small segments are sealed, rewritten and removed within a life. Fat sinks need more.
            small = "4MiB" if self.args.memory_limit else "256KiB"
            flags += ["--cold-dir", str(self.folder / "cold"),
                      "--cold-segment", str(self.rng.choice([small, "8MiB", "64MiB"])),
                      "--cold-compress", str(self.rng.choice(["0", "0", "3"]))]
        return flags

    def one_life(self):
        """Start, look at all that came back, go on with traffic, end."""
        env = {}
        if self.points and self.rng.integers(POINT_EVERY) == 0:
            point = self.points[self.rng.integers(len(self.points))]
            env["KVARND_TEST_KILL"] = f"{point}:{1 + int(self.rng.exponential(4))}"
        early = float(self.rng.uniform(0.001, 0.05)) \
            if self.rng.integers(EARLY_EVERY) == 0 else None
        life = Life(*self.flags(), env=env, kill_after=early)
        is_clean = False
        try:
            if life.is_up:
                is_clean = self.live(life, env)
        finally:
            fault = life.end() if not is_clean else life.end_cleanly()
        if fault:
            self.tally.fault("died", fault)
        self.stage.disconnect()
        self.tally["clean_stops" if is_clean else "kills"] += 1
        self.tally["at_kill_points"] += bool(env) and not is_clean

    def live(self, life, env):
        """Returns whether the daemon is to be stopped cleanly."""
        try:
            was_clean, self.was_clean = self.was_clean, False
            self.stage.settle_all(life.address, was_clean, self.args.cold)
            self.stage.connect(life.address)
            wants_clean = self.args.cold and not env and self.rng.integers(CLEAN_EVERY) == 0
            if not wants_clean:
                life.kill_in(float(self.rng.exponential(0.15)) if not env else 3.0)
            self.traffic(int(self.rng.integers(5, 25)) if wants_clean else ROUNDS_MAX)
            if wants_clean:
                self.was_clean = True
            return wants_clean
        except (Closed, OSError):
            return False

    def traffic(self, rounds):
        for _ in range(rounds):
            self.stage.round(ROUND_OPS)
        # All that was done is looked at once more, as a client would.
        self.stage.check_all()

    def run(self):
        began = told = time.monotonic()
        while self.tally["kills"] < self.args.kills:
            now = time.monotonic()
            if self.args.seconds and now - began > self.args.seconds:
                break
            if now - told > PROGRESS_SECONDS:
                told = now
                print(f"{now - began:.0f} s: {self.line()}", flush=True)
            self.one_life()
        return self.report(time.monotonic() - began)

    def line(self):
        t = self.tally
        return (f"tried = {t['answered']}, kills = {t['kills']}, wrong = {t['wrong']}, "
                f"resurrected = {t['resurrected']}")

    def report(self, seconds):
        t = self.tally
        tier = "a cold tier" if self.args.cold else "no cold tier"
        print(f"seed {self.args.seed}, {tier}, {seconds:.0f} s; "
              f"{self.stage.counts(['kills', 'answered'])}")
        print(f"survived: {t['sessions_survived']} sessions, {t['tokens_survived']} tokens")
        print(self.line())
        # What never looked at anything, or lost everything all the time, shows nothing.
        has_looked = t["tokens_checked"] > 0 and t["in_flight_at_death"] > 0
        has_survivors = t["tokens_survived"] > 0 or not self.args.cold
        return 0 if t.is_clean and has_looked and has_survivors else 1

    def close(self):
        self.stage.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=0, help="stop after so long; 0: never")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    parser.add_argument("--cold", action=argparse.BooleanOptionalAction, default=None,
                        help="with a cold tier; default: if the daemon has one")
    parser.add_argument("--memory-limit", help="small enough, and the daemon evicts")
    parser.add_argument("--sabotage", choices=sorted(sabotage.WAYS))
    args = parser.parse_args(arguments)
    if args.cold is None:
        args.cold = has_option("--cold-dir")
    elif args.cold and not has_option("--cold-dir"):
        parser.error("this daemon has no --cold-dir")
    return args


def main():
    args = parse(sys.argv[1:])
    print(f"crash_loop: seed {args.seed}", flush=True)
    if args.sabotage:
        sabotage.WAYS[args.sabotage]()
    loop = Loop(args)
    try:
        return loop.run()
    finally:
        loop.close()


if __name__ == "__main__":
    sys.exit(main())
