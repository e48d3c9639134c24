"""kvarn.codec against the golden vectors: rules 1, 2 and 4 of tests/golden/README.md."""
import json
import os

import numpy as np
import pytest
from conftest import ROOT, build_folder

from kvarn import codec

GOLDEN = ROOT / "tests" / "golden"
CASES = json.loads((GOLDEN / "cases.json").read_text())
DEGENERATE = ("edge_zero", "edge_constant", "edge_same_token", "edge_single_spike")


def native():
    """The codec of libkvarn, where the build folder has one that Python can load."""
    if os.environ.get("KVARN_SANITIZED"):
        pytest.skip("a libkvarn with a sanitizer cannot be loaded into Python")
    found = sorted(build_folder().glob("**/libkvarn.so.0"))
    if not found and codec.find_library() is None:
        pytest.skip("libkvarn.so.0 is not built")
    return codec.NativeCodec(str(found[0]) if found else None)


@pytest.fixture(params=["numpy", "native"])
def impl(request):
    return codec.NumpyCodec() if request.param == "numpy" else native()


def load(case):
    folder = GOLDEN / "cases" / case["name"]
    spec = codec.TileSpec(case["head_dim"], case["v_dim"], case["group"], case["k_bits"],
                          case["v_bits"])
    arrays = {n: np.load(folder / f"{n}.npy") for n in ("input_k", "input_v", "decoded_k",
                                                        "decoded_v")}
    return spec, np.fromfile(folder / "record.bin", np.uint8), arrays


def relative_error(x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    total = (y ** 2).sum()
    return ((x - y) ** 2).sum() / total if total else float((x != 0).any())


def test_cases_are_there():
    assert len(CASES) >= 58


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["name"])
def test_golden(impl, case):
    spec, record, arrays = load(case)
    assert spec.record_bytes == case["record_bytes"] == record.size
    assert (codec.join(spec, codec.split(spec, record)) == record).all()
    for mine, name in zip(impl.decode(spec, record), ("decoded_k", "decoded_v")):
        assert np.abs(mine - arrays[name]).max() <= 1e-6 * np.abs(arrays[name]).max()
    mine = impl.encode(spec, arrays["input_k"], arrays["input_v"], "reference")
    is_loose = case["name"].startswith(DEGENERATE)
    for x, name in zip(impl.decode(spec, mine), ("decoded_k", "decoded_v")):
        assert relative_error(x, arrays[name]) <= (1e-4 if is_loose else 1e-5), name
    if not is_loose:
        ours, golden = codec.split(spec, mine), codec.split(spec, record)
        for a, b in ((ours.k_codes, golden.k_codes), (ours.v_codes, golden.v_codes)):
            off = np.abs(a.astype(int) - b.astype(int))
            assert off.max() <= 1 and (off > 0).sum() <= max(4, 1e-5 * off.size)


def test_refined_beats_reference(impl):
    """lib/FORMAT.md 7.5: on real tiles, half the squared error."""
    ratios = []
    for case in CASES:
        if case["name"].startswith("real") and case["name"].endswith("k2v2_g128"):
            spec, _, arrays = load(case)
            truth = [impl.rotate(arrays[n].astype(np.float32)) for n in ("input_k", "input_v")]
            errors = {}
            for encoder in ("reference", "default"):
                out = impl.decode(spec, impl.encode(spec, arrays["input_k"], arrays["input_v"],
                                                    encoder))
                errors[encoder] = [relative_error(x, t) for x, t in zip(out, truth)]
            ratios += [d / r for d, r in zip(errors["default"], errors["reference"])]
    assert len(ratios) == 12 and np.mean(ratios) < 0.65, ratios


def recorded(layer, head):
    """(k [128, 64], queries [2, 192, 64]: earlier and later ones) of tests/data/kv, float32."""
    load = [np.load(ROOT / "tests" / "data" / "kv" / f"layer{layer:02}_{x}.npy") for x in "kq"]
    k, q = (x.astype(np.float32) for x in load)
    q = q[3 * head:3 * head + 3]
    return k[head, 384:512], np.stack([q[:, :64].reshape(-1, 64), q[:, 64:].reshape(-1, 64)])


def logit_error(impl, spec, record, k, q):
    """Mean squared error of q.k, which rotation keeps."""
    return ((impl.rotate(q) @ (impl.decode(spec, record)[0] - impl.rotate(k)).T) ** 2).mean()


def test_aware_errs_where_queries_do_not_look(impl):
    """lib/FORMAT.md 7.4: scales and V of refined, K better for queries like the metric's."""
    spec, ratios = codec.TileSpec(64, 64), []
    for layer in (1, 15, 29):
        for head in range(3):
            k, (before, after) = recorded(layer, head)
            metric = impl.query_metric(before)
            assert metric.shape == (64, 64) and (metric == metric.T).all()
            refined = impl.encode(spec, k, k, "refined")
            aware = impl.encode(spec, k, k, "aware", metric=metric)
            one, two = codec.split(spec, refined), codec.split(spec, aware)
            for name in ("k_scale", "k_zero", "k_token", "v_codes", "v_scale", "v_zero"):
                assert (getattr(one, name) == getattr(two, name)).all()
            ratios.append(logit_error(impl, spec, aware, k, after)
                          / logit_error(impl, spec, refined, k, after))
    assert np.mean(ratios) < 0.6, ratios


def test_aware_native_equals_numpy():
    """Scales are refined's, which differ a little; held to the logits' error: SEMANTICS.md 22."""
    one, two = codec.NumpyCodec(), native()
    spec = codec.TileSpec(64, 64)
    pairs = [recorded(layer, head) for layer in (1, 15) for head in range(3)]
    k, q = np.stack([p[0] for p in pairs]), np.stack([p[1][0] for p in pairs])
    metrics = one.query_metric(q)
    assert np.allclose(metrics, two.query_metric(q), rtol=1e-4, atol=1e-4 * metrics.max())
    mine, theirs = (x.encode(spec, k, k, "aware", metric=metrics) for x in (one, two))
    assert mine.shape == (6, spec.record_bytes)
    errors = np.array([[logit_error(one, spec, r, k[i], q[i]) for i, r in enumerate(records)]
                       for records in (mine, theirs)])
    assert np.abs(errors[1].sum() / errors[0].sum() - 1) < 0.05, errors
    alone = two.encode(spec, k[2], k[2], "aware", metric=metrics[2])
    assert (alone == theirs[2]).all()  # each tile took its own metric


def test_what_is_no_metric_is_refused(impl):
    spec, random = codec.TileSpec(64, 64), np.random.default_rng(9)
    k, metric = random.standard_normal((128, 64)), impl.query_metric(np.eye(64))
    impl.encode(spec, k, k, "aware", metric=metric)
    for bad in (metric * np.nan, metric * 0, -metric):
        with pytest.raises(ValueError, match="metric"):
            impl.encode(spec, k, k, "aware", metric=bad)
    with pytest.raises(ValueError, match="expected a metric"):
        impl.encode(spec, k, k, "aware", metric=metric[:32])
    for encoder, given in (("aware", None), ("refined", metric)):
        with pytest.raises(ValueError, match="aware"):
            impl.encode(spec, k, k, encoder, metric=given)
    for q, what in ((np.full((2, 64), np.inf), "q: a value"), (np.zeros((0, 64)), "queries"),
                    (np.zeros((4, 60)), "k_dim")):
        with pytest.raises(ValueError, match=what):
            impl.query_metric(q)
    four = codec.TileSpec(64, 64, 128, 4, 2)  # 4-bit K is reference
    assert (impl.encode(four, k, k, "aware", metric=metric) == impl.encode(four, k, k)).all()


def test_native_equals_numpy():
    spec, random = codec.TileSpec(96, 64, 64, 4, 2), np.random.default_rng(5)
    k, v = random.standard_normal((3, 2, 64, 96)), random.standard_normal((3, 2, 64, 64))
    one, two = codec.NumpyCodec(), native()
    for encoder in ("reference", "refined", "default"):
        records = one.encode(spec, k, v, encoder)
        assert records.shape == (3, 2, spec.record_bytes)
        for a, b in zip(one.decode(spec, records), two.decode(spec, records)):
            assert (a == b).all() and a.shape[:3] == (3, 2, 64)
        for a, b in zip(one.decode(spec, records),
                        two.decode(spec, two.encode(spec, k, v, encoder))):
            assert relative_error(a, b) < 1e-3


def test_rotate_is_its_own_inverse(impl):
    x = np.random.default_rng(1).standard_normal((5, 80)).astype(np.float32)
    y = impl.rotate(x)
    assert np.abs(impl.rotate(y) - x).max() < 1e-5 and np.abs(y - x).max() > 0.1
    assert np.allclose((y ** 2).sum(1), (x ** 2).sum(1), rtol=1e-5)


@pytest.mark.parametrize("bits", [2, 4])
def test_pack_order(bits):
    codes = np.arange(16, dtype=np.uint8)[None] & ((1 << bits) - 1)
    packed = codec.pack(codes, bits)
    assert packed[0, 0] == (0b11100100 if bits == 2 else 0x10)
    assert (codec.unpack(packed, bits) == codes).all()


def test_huge_columns_stay_in_range(impl):
    """lib/FORMAT.md 8: encoding never fails, whatever the columns."""
    spec, random = codec.TileSpec(64, 64), np.random.default_rng(2)
    k = random.standard_normal((128, 64)) * 10.0 ** random.integers(-3, 4, (128, 1))
    k = np.clip(k, -32000, 32000)
    for encoder in ("reference", "refined"):
        out = impl.decode(spec, impl.encode(spec, k, k, encoder, rotated=True))
        assert all(np.isfinite(x).all() and np.abs(x).max() <= 40960 for x in out)


def test_bad_input_is_refused(impl):
    spec = codec.TileSpec(64, 64)
    k = np.zeros((128, 64), np.float32)
    for bad in (np.nan, np.inf, 1e6):
        with pytest.raises(ValueError, match="v: a value"):
            impl.encode(spec, k, np.full_like(k, bad))
    with pytest.raises(ValueError, match="expected k"):
        impl.encode(spec, k[:64], k)
    with pytest.raises(ValueError, match="encoder"):
        impl.encode(spec, k, k, "best")
    record = impl.encode(spec, k, k)
    with pytest.raises(ValueError):
        impl.decode(spec, record[:-8])
    scale_at = 64 * 128 * 2 // 8
    record[scale_at:scale_at + 2] = (0x00, 0x7C)
    with pytest.raises(ValueError, match="scale"):
        impl.decode(spec, record)
    for wrong in ((60, 64), (520, 64)):
        with pytest.raises(ValueError):
            codec.TileSpec(*wrong)
