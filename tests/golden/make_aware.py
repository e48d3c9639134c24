"""Makes the golden vectors of encoder `aware` (aware/): README.md says what they hold.

usage: python3 make_aware.py    NumPy's own rounding decides ties: made once, kept in the tree
"""
import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "integration"))
from support import codec  # noqa: E402

CASES = ["real_l00_k2v2_g64", "real_l15_k2v2_g128", "real_l29_k2v2_g128", "synthetic_d80_k2v2_g128",
         "synthetic_d128_k2v2_g64", "synthetic_d192x128_k2v2_g128", "synthetic_d256_k2v2_g128",
         "edge_outlier_channel_k2v2_g128"]
QUERIES = 64


def queries(name, dim):
    """fp16 [64, dim], not rotated: recorded ones of the layer, or made-up ones that share a
    direction and have loud channels."""
    if name.startswith("real_l"):
        recorded = np.load(HERE.parent / "data" / "kv" / f"layer{name[6:8]}_q.npy")
        return recorded[0, :QUERIES]
    random = np.random.default_rng(len(name) * dim)
    gain = np.where(np.arange(dim) % 7 == 3, 4.0, 0.5)
    common = random.standard_normal((QUERIES, 1))
    return (gain * (common + random.standard_normal((QUERIES, dim)))).astype(np.float16)


def main():
    spec = {case["name"]: case for case in json.loads((HERE / "cases.json").read_text())}
    for name in CASES:
        case, source, folder = spec[name], HERE / "cases" / name, HERE / "aware" / name
        k, v = (codec.rotate(np.load(source / f"input_{x}.npy").astype(np.float32)) for x in "kv")
        q = queries(name, case["head_dim"])
        rotated = codec.rotate(q.astype(np.float32)).astype(np.float64)
        metric = rotated.T @ rotated / len(q)
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "q.npy", q)
        record = codec.encode_record(k, v, case["k_bits"], case["v_bits"], "aware", metric)
        assert len(record) == case["record_bytes"]
        (folder / "record.bin").write_bytes(record)


if __name__ == "__main__":
    main()
