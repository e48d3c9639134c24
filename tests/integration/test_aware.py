"""Encoder AWARE, sealing by what queries look like: learnt from Attend, moved by kvarnctl."""
import json
import os
import subprocess

import numpy as np
import pytest

from support import codec
from support.frame import pb
from support.session import Layer, Session, Shape, register
from support.settings import BIN, ROOT, patience

DATA = ROOT / "tests" / "data" / "kv"
LAYERS = (0, 1, 7, 15, 22, 29)
TOKENS, GROUP, DIM, KV_HEADS, GQA = 1024, 128, 64, 3, 3
# 4 x 64 queries a KV head, 3 of them in a sample, one sample in 16 tokens, of one of 3 KV heads.
TEACH_TOKENS = 4 * DIM / GQA * 16 * KV_HEADS
SHAPE = Shape([Layer(KV_HEADS, DIM)] * len(LAYERS), group=GROUP, model="smollm2")


def ctl(server, *args, code=0):
    done = subprocess.run([str(BIN / "kvarnctl"), *map(str, args)],
                          env={**os.environ, "KVARN_SERVER": server}, timeout=patience(30),
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == code, (args, done.returncode, done.stdout, done.stderr)
    return done


@pytest.fixture(scope="module")
def data():
    """K, V [layer][KV head][token][D] and q [layer][query head][token][D] of a real model."""
    return [np.stack([np.load(DATA / f"layer{i:02d}_{name}.npy") for i in LAYERS])
            for name in "kvq"]


def store(conn, data, **options):
    """A session that holds all of it, sealed but for the first and the last block."""
    session = Session(conn, SHAPE, seal_lag=GROUP, **options)
    session.append([(k, v) for k, v in zip(*data[:2])], 0, layer=0)
    session.read(TOKENS - 1, TOKENS, 0, len(LAYERS))
    return session


def teach(conn, session, q):
    """Attend with the first half of the recorded queries until every layer has a metric."""
    half = q.shape[2] // 2
    for layer in range(len(LAYERS)):
        for _ in range(int(1.3 * TEACH_TOKENS / half) + 1):
            session.attend(q[layer][:, :half], layer, position=TOKENS - 2 * half)
    assert conn.counter("query_metric_versions") == len(LAYERS)


def divergence(k, got, q):
    """Mean KL of attention weights over all tokens from exact keys', of the later queries."""
    total = []
    for layer in range(len(LAYERS)):
        for head in range(KV_HEADS):
            rows = q[layer][head * GQA:(head + 1) * GQA, q.shape[2] // 2:].reshape(-1, DIM)
            logits = [rows.astype(np.float64) @ keys[layer][head].astype(np.float64).T / DIM ** 0.5
                      for keys in (k, got)]
            exact, mine = (x - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True))
                           - x.max(1, keepdims=True) for x in logits)
            total.append((np.exp(exact) * (exact - mine)).sum(1).mean())
    return np.mean(total)


def keys(session):
    rows = session.read(0, TOKENS, 0, len(LAYERS), dtype="f32")
    return [layer_rows[0] for layer_rows in rows]


def output_error(session, data):
    """relMSE of the later queries' attention output, mean over layers."""
    errors, (k, v, q) = [], data
    half = q.shape[2] // 2
    for layer in range(len(LAYERS)):
        out = session.attend(q[layer][:, half:], layer, position=TOKENS - half).out
        want = exact_attention(k[layer], v[layer], q[layer][:, half:], TOKENS - half)
        errors.append(((out - want) ** 2).sum() / (want ** 2).sum())
    return np.mean(errors)


def exact_attention(k, v, q, position):
    out = np.empty(q.shape, np.float64)
    for head in range(len(q)):
        logits = q[head].astype(np.float64) @ k[head // GQA].astype(np.float64).T / DIM ** 0.5
        logits[np.arange(TOKENS)[None, :] > position + np.arange(len(logits))[:, None]] = -np.inf
        weights = np.exp(logits - logits.max(1, keepdims=True))
        out[head] = weights / weights.sum(1, keepdims=True) @ v[head // GQA].astype(np.float64)
    return out


@pytest.mark.deadline(180)
def test_aware_loses_less_than_refined_on_real_data(start, connect, data):
    """Learnt from some tokens' queries, scored on others': as the bars of lib/FORMAT.md."""
    conn = connect(start("--memory-limit", "512MiB"))
    aware = store(conn, data, encoder="aware")
    refined = store(conn, data, encoder="refined")
    before = aware.read_stored(0, TOKENS, 0, len(LAYERS))
    assert (aware.inspect().pages_aware, aware.inspect().metric_version) == (0, 0)
    teach(conn, aware, data[2])
    later = store(conn, data, encoder="aware")
    seen = later.inspect()
    blocks = (TOKENS - SHAPE.sink - GROUP) // GROUP * len(LAYERS)
    assert (seen.pages_aware, seen.pages_refined) == (blocks, 0)
    assert seen.metric_version == len(LAYERS)
    kl = [divergence(data[0], keys(s), data[2]) for s in (refined, later)]
    out = [output_error(s, data) for s in (refined, later)]
    print(f"KL refined {kl[0]:.4f}, aware {kl[1]:.4f}, ratio {kl[1] / kl[0]:.3f}; "
          f"output relMSE refined {out[0]:.4f}, aware {out[1]:.4f}")
    assert kl[0] < 0.045 and kl[1] < 0.60 * kl[0]
    assert out[1] < 0.8 * out[0]
    # What was sealed before stays as it was.
    after = aware.read_stored(0, TOKENS, 0, len(LAYERS))
    assert [(run.layer, run.first, run.data) for run in before] == [
        (run.layer, run.first, run.data) for run in after]
    counters = conn.stats()[1]
    assert counters["pages_sealed_aware"] == blocks
    assert counters["pages_aware_fallback"] == blocks
    assert counters["queries_sampled"] >= 4 * DIM * KV_HEADS * len(LAYERS)
    assert counters["queries_unusable"] == counters["query_metric_failures"] == 0
    assert counters["memory_query_metric_bytes"] > 0


@pytest.mark.deadline(120)
def test_a_metric_moves_to_another_daemon(start, connect, data, tmp_path):
    """export | import: the first seals there are aware, and the same bits as here."""
    here, there = start("--memory-limit", "512MiB"), start("--memory-limit", "512MiB")
    conn, path = connect(here), tmp_path / "metric"
    session = store(conn, data, name="teacher", encoder="aware")
    ctl(here.address, "shape", "export", "teacher", "-o", path, code=1)  # nothing is known yet
    assert not path.exists()
    teach(conn, session, data[2])
    said = json.loads(ctl(here.address, "shape", "export", "teacher", "-o", path, "--json").stdout)
    fingerprint = session.inspect().fingerprint
    assert said["model"] == "smollm2" and said["fingerprint"] == fingerprint.hex()
    assert said["layers_known"] == len(LAYERS) and said["queries_min"] >= 4 * DIM
    other = tmp_path / "by_fingerprint"
    ctl(here.address, "shape", "export", fingerprint.hex(), "--out", other)
    assert other.read_bytes() == path.read_bytes()
    said = json.loads(ctl(there.address, "shape", "import", path, "--json").stdout)
    assert said["metric_version"] == 1 and said["layers_known"] == len(LAYERS)
    far = connect(there)
    mine, theirs = store(conn, data, encoder="aware"), store(far, data, encoder="aware")
    assert theirs.inspect().pages_refined == 0 and theirs.inspect().pages_aware > 0
    assert [run.data for run in mine.read_stored(0, TOKENS, 0, len(LAYERS))] == [
        run.data for run in theirs.read_stored(0, TOKENS, 0, len(LAYERS))]
    # A damaged file changes nothing.
    damaged = bytearray(path.read_bytes())
    damaged[-100] ^= 1
    (tmp_path / "damaged").write_bytes(damaged)
    error = json.loads(ctl(there.address, "shape", "import", tmp_path / "damaged", "--json",
                           code=1).stdout)
    assert error["error"]["name"] == "CORRUPT"
    assert theirs.inspect().metric_version == 1


def test_s13_register_shape_replaces_the_metric(conn):
    """By hand over the wire: a version for each, what holds is what came last."""
    shape = Shape([Layer(1, 8), Layer(2, 16)], group=64, model="small")
    dims = [8, 16, 16]
    session = Session(conn, shape, encoder="aware")

    def give(layer_first, counts, scale):
        sums = [scale * np.diag(np.arange(1.0, d + 1)).astype(np.float32)
                for d in dims[layer_first:layer_first + len(counts)]]
        message = pb.RegisterShape(shape=shape.message, metric_layer_first=layer_first,
                                   metric_layer_count=1 if layer_first else 2,
                                   metric_counts=counts)
        return conn.call(message, b"".join(s.tobytes() for s in sums)).message, sums

    reply, first = give(0, [100, 100, 200], 50)
    assert reply.metric_version == 1 and reply.shape_id == register(conn, shape)
    reply, second = give(1, [300, 400], 70)
    assert reply.metric_version == 2
    reply = conn.call(pb.ReadMetric(shape_id=reply.shape_id))
    assert list(reply.message.counts) == [100, 300, 400]
    assert list(reply.message.versions) == [1, 2]
    assert reply.payload == first[0].tobytes() + b"".join(s.tobytes() for s in second)
    rows = [tuple(np.random.default_rng(i).standard_normal((ls.kv_heads, 200, ls.k_dim))
                  .astype(np.float16) for _ in "kv") for i, ls in enumerate(shape.layers)]
    session.append(rows, 0)
    session.read(0, 200, 0, 2)
    seen = session.inspect()
    assert (seen.pages_aware, seen.pages_refined, seen.metric_version) == (4, 0, 2)
    assert np.abs(codec.rotate(rows[0][0].astype(np.float32))).max() > 0


def test_without_room_sessions_are_sealed_refined(start, connect, data):
    """--metric-memory 0: nothing is sampled, nothing fails, Stats says why."""
    conn = connect(start("--memory-limit", "256MiB", "--metric-memory", "0"))
    session = store(conn, data, encoder="aware")
    for _ in range(40):
        session.attend(data[2][0][:, :64], 0, position=TOKENS - 64)
    counters = conn.stats()[1]
    assert counters["queries_sampled"] == 0 and counters["query_metric_no_room"] > 0
    assert session.inspect().pages_refined == 36
    reply = conn.ask(pb.RegisterShape(shape=SHAPE.message, metric_layer_count=1,
                                      metric_counts=[300] * KV_HEADS),
                     np.tile(np.eye(DIM, dtype=np.float32), (KV_HEADS, 1, 1)).tobytes())
    assert reply.code == "NO_SPACE" and "--metric-memory" in reply.status.text
