"""kvarnctl as scripts use it: exact forms, exit codes, JSON, files; with the real daemon."""
import json
import os
import subprocess

import numpy as np
import pytest

from support import codec
from support.model import assert_rows_close, attention
from support.session import Session
from support.settings import BIN, ROOT, patience
from support.wire import Conn

GOLDEN = ROOT / "tests" / "golden"


def ctl(*args, server=None, code=0):
    env = {k: v for k, v in os.environ.items() if k != "KVARN_SERVER"}
    if server:
        env["KVARN_SERVER"] = server
    done = subprocess.run([str(BIN / "kvarnctl"), *map(str, args)], env=env, timeout=patience(30),
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == code, (args, done.returncode, done.stdout, done.stderr)
    return done


def ctl_json(*args, **kw):
    return json.loads(ctl(*args, "--json", **kw).stdout)


@pytest.fixture
def server(daemon, transport):
    return daemon.addresses[transport]


def test_usage_is_2_and_goes_to_stderr():
    for args in ([], ["nope"], ["tile"], ["size"], ["ping", "extra"], ["append", "s"],
                 ["read", "--layer"], ["--server", "bad:x", "ping"], ["ping", "--server=x"]):
        done = ctl(*args, code=2)
        assert done.stdout == "" and done.stderr != ""
    assert "Usage" in ctl("--help").stdout
    for command in ("ping", "stats", "sessions", "inspect", "append", "read", "attend",
                    "truncate", "fork", "touch", "pin", "unpin", "evict", "prefetch", "jobs",
                    "drop", "top", "size", "shape export", "shape import", "tile encode",
                    "tile decode", "tile inspect"):
        assert command in ctl(*command.split(), "--help").stdout


def test_no_connection_is_3(tmp_path):
    done = ctl("--server", f"unix:{tmp_path}/nobody", "ping", code=3)
    assert "IO" in done.stderr
    done = ctl("ping", "--json", "--server", f"unix:{tmp_path}/nobody", code=3)
    assert json.loads(done.stdout)["error"]["name"] == "IO"


def test_size_of_llama():
    got = ctl_json("size", "--layers", 32, "--kv-heads", 8, "--head-dim=128")
    assert got["format_bits"] == 2.375
    assert [s["tokens"] for s in got["sizes"]] == [1024, 4096, 32768]
    assert got["sizes"][0]["format_bytes"] == 7 * 32 * 77824
    assert got["sizes"][0]["sink_bytes"] == 128 * 131072
    text = ctl("size", "--layers", 32, "--kv-heads", 8, "--head-dim", 128, "--tokens", "8k").stdout
    assert "8192" in text and "MiB" in text


def golden_cases():
    cases = json.loads((GOLDEN / "cases.json").read_text())
    cases = cases["cases"] if isinstance(cases, dict) else cases
    assert len(cases) == 58
    return cases


@pytest.mark.parametrize("case", golden_cases(), ids=lambda c: c["name"])
def test_tile_golden(case, tmp_path):
    folder = GOLDEN / "cases" / case["name"]
    preset = f"k{case['k_bits']}v{case['v_bits']}"
    shape = ["--preset", preset, "--group", case["group"]]
    dims = ["--head-dim", case["head_dim"], "--v-dim", case["v_dim"]]

    def decoded(record):
        ctl("tile", "decode", record, *dims, *shape, "--k", tmp_path / "k.npy",
            "--v", tmp_path / "v.npy")
        return np.load(tmp_path / "k.npy"), np.load(tmp_path / "v.npy")

    want = [np.load(folder / f"decoded_{x}.npy") for x in "kv"]
    for mine, golden in zip(decoded(folder / "record.bin"), want):
        assert np.abs(mine - golden).max() <= 1e-6 * np.abs(golden).max()
    ctl("tile", "encode", "--k", folder / "input_k.npy", "--v", folder / "input_v.npy", *shape,
        "--encoder", "reference", "-o", tmp_path / "r.bin")
    assert (tmp_path / "r.bin").stat().st_size == case["record_bytes"]
    bound = 1e-4 if case["name"].startswith("edge_") else 1e-5
    for mine, golden in zip(decoded(tmp_path / "r.bin"), want):
        assert ((mine - golden).astype(np.float64) ** 2).sum() <= \
            bound * (golden.astype(np.float64) ** 2).sum()
    got = ctl_json("tile", "inspect", tmp_path / "r.bin", *dims, *shape)
    assert got["record_bytes"] == case["record_bytes"]
    assert sum(got["k_codes"]) == case["group"] * case["head_dim"]


def test_attend_gives_the_output_alone(server, tmp_path):
    k, v, q, out = (tmp_path / f"{name}.npy" for name in ("k", "v", "q", "out"))
    for path in (k, v, q):
        np.save(path, np.ones((1, 2, 8), np.float32))
    ctl_json("append", "s", "--k", k, "--v", v, "--layer", 0, "--model", "m", "--layers", 1,
             server=server)
    ctl_json("attend", "s", "--layer", 0, "--q", q, "--out", out, server=server)
    assert np.allclose(np.load(out), 1, atol=0.01)


def test_session_from_append_to_drop(server, tmp_path):
    rng = np.random.default_rng(1)
    k, v = (rng.standard_normal((2, 300, 64)).astype(np.float16) for _ in "kv")
    q = rng.standard_normal((4, 3, 64)).astype(np.float32)
    for name, array in (("k", k), ("v", v), ("q", q)):
        np.save(tmp_path / f"{name}.npy", array)
    files = ["--k", tmp_path / "k.npy", "--v", tmp_path / "v.npy"]
    outs = ["--out", tmp_path / "out.npy", "--lse", tmp_path / "lse.npy"]

    def run(*args, **kw):
        return ctl_json(*args, server=server, **kw)

    assert "--model" in ctl("append", "s", *files, "--layer", 0, server=server, code=2).stderr
    got = run("append", "s", *files, "--layer", 0, "--model", "m", "--layers", 2, "--preset",
              "k2v2")
    assert got["created"] and got["length"] == 300 and got["start"] == 0
    got = run("append", *files, "--layer=1", "s")
    assert not got["created"] and got["length"] == 300
    assert run("inspect", "s")["layer_lengths"] == [300, 300]
    assert [s["name"] for s in run("sessions")["sessions"]] == ["s"]

    back = [tmp_path / "bk.npy", tmp_path / "bv.npy"]
    run("read", "s", "--layer", 0, "--from", 0, "--to", 300, "--k", back[0], "--v", back[1],
        "--dtype", "f32")
    for path, exact in zip(back, (k, v)):
        x = np.load(path)
        assert x.dtype == np.float32 and x.shape == (2, 300, 64)
        for part in (slice(0, 128), slice(256, 300)):  # sink and tail: fp16 in another frame
            assert np.abs(x[:, part] - exact[:, part].astype(np.float32)).max() < 0.02
        error = ((x - exact.astype(np.float32)) ** 2).sum() / (exact.astype(np.float32) ** 2).sum()
        assert error < 0.2
    got = run("attend", "s", "--layer", 0, "--q", tmp_path / "q.npy", "--position", 297, *outs)
    assert got["length"] == 300
    # What the daemon attends to is what it reads back. The default is fast, not exact: bounds as in
    # test_attention.py, test_fast_is_near_exact().
    out, lse = attention(q, np.load(back[0]), np.load(back[1]), 297)
    assert ((np.load(tmp_path / "out.npy") - out) ** 2).sum() < 3e-4 * (out ** 2).sum()
    assert np.abs(np.load(tmp_path / "lse.npy") - lse).max() < 0.02

    got = run("truncate", "s", "--length", 290)
    assert got["layer_lengths"] == [290, 290] and not got["lossy_tail"]
    error = run("read", "s", "--layer", 0, "--to", 300, "--k", back[0], "--v", back[1], code=1)
    assert error["error"]["name"] == "MISS"
    fork = run("fork", "s", "s2", "--length", 200)
    assert fork["created"] and fork["length"] == 200 and fork["lossy_tail"]
    assert run("fork", "s", "s2", code=1)["error"]["name"] == "CONFLICT"
    assert not run("fork", "s", "s2", "--or-open")["created"]
    assert run("fork", "s", "s3", "--length", 291, code=1)["error"]["name"] == "MISS"
    assert run("inspect", "s2")["layer_lengths"] == [200, 200]
    touched = run("touch", "s2", "--ttl-ms", 3600000, "--priority", 40)
    assert 0 < touched["ttl_left_ms"] <= 3600000 and touched["priority"] == 40
    assert run("touch", "s2", "--priority", 101, code=1)["error"]["name"] == "INVALID"
    pinned = run("pin", "s2", "--for-ms", 600000)
    assert pinned["pinned_bytes"] > 0
    assert run("evict", "s2")["blocks"] == 0
    assert 0 < run("inspect", "s2")["pin_left_ms"] <= 600000
    assert run("unpin", "s2")["pinned_bytes"] == 0
    evicted = run("evict", "s2", "--blocks", 1)
    assert evicted["blocks"] == 1 and evicted["missing_last"] > evicted["missing_first"]
    got = run("inspect", "s2")
    assert got["missing_tokens"] == evicted["missing_last"] - evicted["missing_first"]
    assert got["missing_first"] == evicted["missing_first"] and got["ttl_ms"] == 3600000
    assert run("drop", "s2")["dropped"]
    assert run("drop", "s")["dropped"]
    assert run("inspect", "s", code=1)["error"]["name"] == "NOT_FOUND"
    stats = run("stats")
    assert {o["op"]: o["count"] for o in stats["ops"]}["append"] >= 2
    assert stats["counters"]["sessions_open"] == 0
    assert "CALL" in ctl("top", "--once", server=server).stdout
    assert run("ping")["round_trip_us"] > 0


def test_prefetch_and_jobs(start, tmp_path):
    """From disk back into memory, waited for, and how it went."""
    server = start("--cold-dir", tmp_path / "cold").address
    rng = np.random.default_rng(3)
    for name in "kv":
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((2, 1280, 64)).astype(np.float16))
    files = ["--k", tmp_path / "k.npy", "--v", tmp_path / "v.npy"]

    def run(*args, **kw):
        return ctl_json(*args, server=server, **kw)

    run("append", "s", *files, "--layer", 0, "--model", "m", "--layers", 1, "--preset", "k2v2")
    while run("stats")["counters"]["cold_blocks_written"] < 10:
        pass
    assert run("jobs") == {"jobs": []}
    assert run("prefetch", "s") == {"session": "s", "blocks": 0, "bytes": 0}
    assert "nothing to load" in ctl("prefetch", "s", server=server).stdout
    run("evict", "s", "--blocks", 10)
    got = run("prefetch", "s", "--wait", "--last-blocks", 4)
    assert (got["state"], got["session"]) == ("done", "s")
    assert got["blocks"] == got["blocks_done"] == 4 and got["bytes"] == got["bytes_done"] > 0
    said = ctl("prefetch", "s", "--wait", server=server).stdout
    assert said.startswith("s: done, 6 of 6 blocks")
    assert run("inspect", "s")["missing_tokens"] == 0
    assert [job["job"] for job in run("jobs")["jobs"]] == [got["job"] + 1, got["job"]]
    lines = ctl("jobs", server=server).stdout.splitlines()
    assert lines[0].split()[:3] == ["JOB", "SESSION", "STATE"]
    assert lines[1].split()[1:3] == ["s", "done"] and len(lines) == 3
    run("evict", "s", "--blocks", 1)
    assert run("prefetch", "s")["blocks"] == 1
    assert run("prefetch", "nobody", code=1)["error"]["name"] == "NOT_FOUND"
    assert "last-blocks" in ctl("prefetch", "s", "--last-blocks", 0, server=server, code=2).stderr


def test_exact_forms_that_scripts_rely_on(server, tmp_path):
    """The commands as documents show them, letter by letter."""
    rng = np.random.default_rng(2)
    tile = rng.standard_normal((2, 128, 128)).astype(np.float16)
    k, v = (rng.standard_normal((2, 200, 128)).astype(np.float16) for _ in "kv")
    arrays = {"TK": tile[0], "TV": tile[1], "K": k, "V": v,
              "Q": rng.standard_normal((4, 2, 128)).astype(np.float16)}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)

    def form(text):
        env = {**os.environ, "KVARN_SERVER": server}
        done = subprocess.run(["sh", "-ec", text.replace("kvarnctl", str(BIN / "kvarnctl"))],
                              cwd=tmp_path, env=env, capture_output=True, text=True,
                              timeout=patience(30))
        assert (done.returncode, done.stderr) == (0, ""), (text, done)

    form("kvarnctl tile encode --k TK.npy --v TV.npy --preset k2v2 --group 128 "
         "--encoder reference -o REC.bin")
    form("kvarnctl tile decode REC.bin --head-dim 128 --preset k2v2 --group 128 "
         "--k DK.npy --v DV.npy")
    want = codec.roundtrip(*(codec.rotate(x) for x in tile), 2, 2, "reference")
    for name, exact in zip(("DK", "DV"), want):
        mine = np.load(tmp_path / f"{name}.npy")
        assert mine.dtype == np.float32 and codec.is_golden_equal(mine, exact)
    for layer in range(2):
        form(f"kvarnctl append SESSION --k K.npy --v V.npy --layer {layer} --model NAME "
             "--layers 2 --preset k2v2")
    form("kvarnctl read SESSION --layer 1 --from 0 --to 100 --k RK.npy --v RV.npy "
         "--rotated --dtype f32")
    form("kvarnctl read SESSION --layer 1 --from 0 --to 100 --k HK.npy --v HV.npy --dtype f16")
    for letter, exact in (("K", k), ("V", v)):
        rotated, plain = np.load(tmp_path / f"R{letter}.npy"), np.load(tmp_path / f"H{letter}.npy")
        assert rotated.dtype == np.float32 and plain.dtype == np.float16
        assert_rows_close(rotated, codec.rotate(exact[:, :100]))
        assert np.abs(plain - exact[:, :100].astype(np.float32)).max() < 0.01
    form("kvarnctl attend SESSION --layer 1 --q Q.npy --position 150 --out OUT.npy --lse LSE.npy")
    assert np.load(tmp_path / "OUT.npy").shape == (4, 2, 128)
    assert np.load(tmp_path / "LSE.npy").shape == (4, 2)
    with Conn(server) as conn:
        session = Session(conn, None, "SESSION", mode="existing")
        assert session.lengths == [200, 200]
