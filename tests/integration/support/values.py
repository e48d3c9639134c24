"""Arrays to wire bytes and back: fp16, bf16, fp32; head-major and token-major (SEMANTICS.md 20)."""
import numpy as np


def to_bf16(x):
    """Float32 to bfloat16's 16 bits, round to nearest, halves to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(x):
    return (x.astype(np.uint32) << 16).view(np.float32)


def encode(x, dtype):
    """An array's bytes in a wire type. Values too large for fp16 become infinite."""
    with np.errstate(over="ignore"):
        if dtype == "bf16":
            return to_bf16(x).astype("<u2").tobytes()
        return np.ascontiguousarray(x, {"f16": "<f2", "f32": "<f4"}[dtype]).tobytes()


def decode(data, dtype, shape):
    """Wire bytes to an array: float16 for f16, float32 for the others."""
    if dtype == "bf16":
        return from_bf16(np.frombuffer(data, "<u2")).reshape(shape)
    return np.frombuffer(data, {"f16": "<f2", "f32": "<f4"}[dtype]).reshape(shape)


def item_bytes(dtype):
    return 4 if dtype == "f32" else 2


def rounded(x, dtype):
    """What a wire type leaves of values: float32."""
    return decode(encode(x, dtype), dtype, np.shape(x)).astype(np.float32)


def kv_payload(kv, dtype, layout):
    """Payload of Append: kv is [(k, v)] a layer, each [KV head, token, D]."""
    parts = []
    for pair in kv:
        for x in pair:
            parts.append(encode(x if layout == "head" else np.swapaxes(x, 0, 1), dtype))
    return b"".join(parts)


def rows_from(data, heads, tokens, dim, dtype="f16", layout="head"):
    """One layer's K or V from a payload, as [KV head, token, D]."""
    if layout == "head":
        return decode(data, dtype, (heads, tokens, dim))
    return np.swapaxes(decode(data, dtype, (tokens, heads, dim)), 0, 1)
