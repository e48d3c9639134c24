"""kvarnctl evaluate: its figures against NumPy's, its checks, what it leaves behind, bad input."""
import json
import os
import subprocess

import numpy as np
import pytest

from support.codec import rotate, roundtrip
from support.model import attention
from support.settings import BIN, patience

GROUP, TOKENS, QUERIES = 64, 300, 20
LAYERS = {0: (2, 4, 64, 64), 7: (1, 3, 80, 64), 12: (3, 3, 64, 128)}  # KV heads, q heads, Dk, Dv


def ctl(server, *args, code=0):
    env = {**os.environ, "KVARN_SERVER": server}
    done = subprocess.run([str(BIN / "kvarnctl"), *map(str, args)], env=env, timeout=patience(60),
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == code, (args, done.returncode, done.stdout, done.stderr)
    return done


def evaluate(server, folder, *args):
    return json.loads(ctl(server, "evaluate", folder, "--group", GROUP, *args, "--json").stdout)


@pytest.fixture(params=[np.float16, np.float32])
def tensors(request, tmp_path):
    """Three layers of other dimensions in a folder; layer -> (k, v, q)."""
    rng = np.random.default_rng(3)
    found = {}
    for layer, (kv_heads, q_heads, k_dim, v_dim) in LAYERS.items():
        shapes = ((kv_heads, TOKENS, k_dim), (kv_heads, TOKENS, v_dim), (q_heads, QUERIES, k_dim))
        found[layer] = [rng.standard_normal(shape).astype(request.param) for shape in shapes]
        for name, array in zip("kvq", found[layer]):
            np.save(tmp_path / f"layer{layer:02d}_{name}.npy", array)
    return tmp_path, found


def relative(got, want):
    want = want.astype(np.float64)
    return ((got.astype(np.float64) - want) ** 2).sum() / (want ** 2).sum()


def tile_errors(k, v):
    """relMSE of K and of V over the blocks between sink and tail, by NumPy's codec."""
    blocks = slice(GROUP, TOKENS // GROUP * GROUP)
    want = [rotate(x[:, blocks].astype(np.float32)) for x in (k, v)]
    got = [np.empty_like(x) for x in want]
    for head in range(len(k)):
        for at in range(0, want[0].shape[1], GROUP):
            block = (head, slice(at, at + GROUP))
            got[0][block], got[1][block] = roundtrip(
                want[0][block], want[1][block], 2, 2, "reference")
    return relative(got[0], want[0]), relative(got[1], want[1])


def test_figures_are_numpys(daemon, transport, tensors):
    server = daemon.addresses[transport]
    folder, data = tensors
    got = evaluate(server, folder, "--encoder", "reference", "--keep-session")
    assert all(check["passed"] for check in got["checks"])
    assert [layer["layer"] for layer in got["layers"]] == list(LAYERS)
    assert got["bytes"]["fp16"] == sum(2 * (k.size + v.size) for k, v, _ in data.values())
    for number, (layer, (k, v, q)) in enumerate(data.items()):
        figures = got["layers"][number]
        want_k, want_v = tile_errors(k, v)
        assert figures["k_quantised"] == pytest.approx(want_k, rel=0.01)
        assert figures["v_quantised"] == pytest.approx(want_v, rel=0.01)
        assert 0 < figures["k_all"] < figures["k_quantised"]
        out = [folder / "out.npy", folder / "lse.npy"]
        ctl(server, "attend", "evaluate", "--layer", number, "--q",
            folder / f"layer{layer:02d}_q.npy", "--position", TOKENS - QUERIES, "--out", out[0],
            "--lse", out[1])
        exact, lse = attention(q, k, v, TOKENS - QUERIES)
        assert figures["attend"] == pytest.approx(relative(np.load(out[0]), exact), rel=1e-4)
        error = np.abs(np.load(out[1]) - lse)
        assert figures["attend_lse_max_nats"] == pytest.approx(error.max(), rel=1e-3)
    inspected = json.loads(ctl(server, "inspect", "evaluate", "--json").stdout)
    for name, key in (("format", "tile_bytes"), ("sink", "sink_bytes"), ("tail", "tail_bytes"),
                      ("reserved", "reserved_bytes")):
        assert got["bytes"][name] == inspected[key] > 0
    assert got["pages_reference"] == inspected["pages_reference"] == len(LAYERS) * 3


def test_nothing_is_left_behind_unless_asked_for(daemon, tensors):
    server, (folder, _) = daemon.address, tensors
    evaluate(server, folder)
    assert json.loads(ctl(server, "sessions", "--json").stdout)["sessions"] == []
    assert "kvarnctl drop evaluate" in ctl(server, "evaluate", folder, "--keep-session").stdout
    done = ctl(server, "evaluate", folder, "--keep-session", code=1)
    assert "CONFLICT" in done.stderr and "kvarnctl drop evaluate" in done.stderr
    ctl(server, "drop", "evaluate")
    ctl(server, "evaluate", folder, "--keep-session")


@pytest.mark.parametrize("options", [("--sink-tokens", 0), ("--seal-lag", 64), ("--preset", "k4v4"),
                                     ("--sink-tokens", 128, "--seal-lag", 1)])
def test_options_change_what_is_stored(daemon, tensors, options):
    folder, _ = tensors
    plain = evaluate(daemon.address, folder)
    got = evaluate(daemon.address, folder, *options)
    assert all(check["passed"] for check in got["checks"])
    assert got["bytes"] != plain["bytes"] and got["bytes"]["fp16"] == plain["bytes"]["fp16"]


def test_short_recordings_have_no_tiles(daemon, tmp_path):
    """Fewer tokens than a block: all is sink, nothing is quantised, and figures are still there."""
    rng = np.random.default_rng(5)
    for name, shape in (("k", (1, 30, 64)), ("v", (1, 30, 64)), ("q", (2, 30, 64))):
        np.save(tmp_path / f"layer3_{name}.npy", rng.standard_normal(shape).astype(np.float16))
    got = evaluate(daemon.address, tmp_path)
    assert all(check["passed"] for check in got["checks"])
    assert got["bytes"]["format"] == 0 and got["mean"]["k_quantised"] == 0
    assert 0 < got["mean"]["k_all"] < 1e-6 and got["mean"]["attend"] < 1e-6
    assert got["round_trip"]["append"] == {"count": 0, "median_us": 0, "p99_us": 0}


def test_refusals_end_it_with_their_reason(start, tmp_path):
    """One layer of 16 MiB, all of it sink, in a daemon that has 16 MiB; then one that has NaN."""
    rng = np.random.default_rng(7)
    k = rng.standard_normal((8, 4096, 128)).astype(np.float16)
    for name, array in (("k", k), ("v", k), ("q", k[:, :1])):
        np.save(tmp_path / f"layer07_{name}.npy", array)
    server = start("--memory-limit", "16MiB").address
    done = ctl(server, "evaluate", tmp_path, "--sink-tokens", 4096, code=1)
    assert "NOSPC" in done.stderr and done.stdout == ""
    k[3, 111, 5] = np.nan
    np.save(tmp_path / "layer07_k.npy", k)
    done = ctl(server, "evaluate", tmp_path, "--json", code=1)
    assert json.loads(done.stdout)["error"]["name"] == "DOMAIN"
    for place in ("layer 0", "head 3", "token 111"):
        assert place in done.stderr


def test_names_of_others_do_not_reach_the_terminal(daemon, tensors):
    """A model may be called anything; what kvarnctl shows of it is harmless."""
    folder, _ = tensors
    files = ["--k", folder / "layer00_k.npy", "--v", folder / "layer00_v.npy", "--layer", 0]
    ctl(daemon.address, "append", "s", *files, "--model", "m\x1b[31m\x9b", "--layers", 1)
    for command in (["sessions"], ["inspect", "s"], ["top", "--once"]):
        assert not set(map(chr, range(32))) - {"\n"} & set(ctl(daemon.address, *command).stdout)
    assert json.loads(ctl(daemon.address, "inspect", "s", "--json").stdout)["shape"]["model"] == \
        "m\x1b[31m\x9b"


def test_append_does_not_mix_models(daemon, tensors):
    folder, _ = tensors
    files = ["--k", folder / "layer00_k.npy", "--v", folder / "layer00_v.npy", "--layer", 0]
    ctl(daemon.address, "append", "s", *files, "--model", "m", "--layers", 2)
    ctl(daemon.address, "append", "s", *files, "--model", "m", "--layers", 2, "--preset", "k2v2")
    ctl(daemon.address, "append", "s", *files)
    for other in (["--model", "n", "--layers", 2], ["--model", "m", "--layers", 3],
                  ["--model", "m", "--layers", 2, "--preset", "k4v4"],
                  ["--model", "m", "--layers", 2, "--group", 64]):
        assert "CONFLICT" in ctl(daemon.address, "append", "s", *files, *other, code=1).stderr
    for lonely in (["--model", "m"], ["--layers", 2]):
        assert "go together" in ctl(daemon.address, "append", "s", *files, *lonely, code=2).stderr
    assert json.loads(ctl(daemon.address, "inspect", "s", "--json").stdout)["layer_lengths"] == \
        [3 * TOKENS, 0]
