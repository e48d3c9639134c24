"""Random traffic on one daemon whose memory is too small, each answer held against an oracle.

usage: soak.py [--seconds S] [--seed S] [--memory-limit SIZE] [--workers N] [--cold | --no-cold]
Ends with a clean stop. Exit 1 when anything was wrong, resurrected or died, or when the daemon
never had to evict.
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

from oracle.lives import Life, has_option  # noqa: E402
from oracle.stage import Stage  # noqa: E402
from support.wire import Conn  # noqa: E402

ACTORS, NAMES, ROUND_OPS, CONNS = 4, 12, 5, 3
CHECK_EVERY, PROGRESS_SECONDS = 20, 5


class Soak:
    """A daemon, its actors and what is known of it."""

    def __init__(self, args):
        self.args = args
        self.stage = Stage(args.seed, ACTORS, NAMES, CONNS, may_evict=True)
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="kvarn-soak-"))
        flags = ["--memory-limit", args.memory_limit, "--workers", args.workers]
        if args.cold:
            flags += ["--cold-dir", self.folder / "cold"]
        self.life = Life(*flags)

    def run(self):
        began = told = time.monotonic()
        rounds = 0
        self.stage.connect(self.life.address)
        while (now := time.monotonic()) - began < self.args.seconds:
            self.stage.round(ROUND_OPS)
            rounds += 1
            if rounds % CHECK_EVERY == 0:
                self.stage.check_all()
            if now - told > PROGRESS_SECONDS:
                told = now
                print(f"{now - began:.0f} s: {self.line()}", flush=True)
        self.stage.check_all()

    def line(self):
        t = self.stage.tally
        return f"tried = {t['answered']}, wrong = {t['wrong']}, resurrected = {t['resurrected']}"

    def end(self):
        """Stop it; the verdict."""
        t = self.stage.tally
        with Conn(self.life.address) as conn:
            counters = conn.stats()[1]
        rss, is_sanitized = self.life.rss_bytes(), self.life.is_sanitized()
        self.stage.disconnect()
        fault = self.life.end_cleanly()
        if fault:
            t.fault("died", fault)
        short = sum(counters[f"evicted_blocks_{why}"] for why in ("watermark", "reservation"))
        print(f"seed {self.args.seed}; {self.stage.counts(['answered'])}")
        print(f"blocks evicted = {short} and {counters['evicted_blocks_call']} when asked, "
              f"VmRSS = {rss >> 20} MiB" + (" (with a sanitizer's own)" if is_sanitized else ""))
        print(self.line())
        return 0 if t.is_clean and short > 0 and t["tokens_checked"] > 0 else 1

    def close(self):
        self.life.end()
        self.stage.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    parser.add_argument("--memory-limit", default="16MiB")
    parser.add_argument("--workers", default="2")
    parser.add_argument("--cold", action=argparse.BooleanOptionalAction, default=None,
                        help="with a cold tier; default: if the daemon has one")
    args = parser.parse_args(arguments)
    if args.cold is None:
        args.cold = has_option("--cold-dir")
    return args


def main():
    args = parse(sys.argv[1:])
    print(f"soak: seed {args.seed}", flush=True)
    soak = Soak(args)
    try:
        soak.run()
        return soak.end()
    finally:
        soak.close()


if __name__ == "__main__":
    sys.exit(main())
