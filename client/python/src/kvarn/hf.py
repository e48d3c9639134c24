"""Hugging Face transformers 5 with its cache, or its attention too, in kvarnd.

    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="kvarn")
    with KvarnCache(model) as cache:
        model.generate(**inputs, cache=cache)       # before 5.24: past_key_values=cache

Importing this module registers the attention function "kvarn" and its mask function. `generate()`
works greedy, sampled, with beams, assisted (prompt lookup too), in chunks, and again on the same
cache. Needs the packages of kvarn[hf]. Letters of shapes: B rows of the batch, Hq query heads,
H KV heads, T new tokens, N all tokens, D head_dim.

transformers hands no cache to attention functions. What does get there is the key tensor that the
cache's `update` returns: it carries an attribute that names the cache and the layer. K and V of the
new tokens are not sent before the queries are known, so that a layer is one round trip.
"""
from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.cache_utils import CacheLayerMixin, get_layer_types_and_kwargs
from transformers.masking_utils import causal_mask_function

from kvarn.client import Client, Pending, Session
from kvarn.errors import Error
from kvarn.types import (AppendAttendItem, AppendResult, AttendOptions, NDArray, SessionDetails,
                         Shape)

__all__ = ["IMPLEMENTATION", "KvarnCache", "attention", "mask"]

IMPLEMENTATION = "kvarn"
MODES = ("attend", "offload")
ITEMS_MAX = 1024  # of a call
AHEAD = 2  # layers that offload asks for before they are needed
_TAG = "_kvarn_step"
# What attention functions of some models are given that kvarnd's attention does not do.
_REFUSED = ("position_bias", "s_aux", "sliding_window", "cu_seq_lens_q", "cu_seq_lens_k")


class _Step:
    """K and V [B, H, T, D] of one layer, on the way from `update` to the attention function."""

    def __init__(self, cache: KvarnCache, layer: _Layer, key: torch.Tensor,
                 value: torch.Tensor) -> None:
        self.cache, self.layer, self.key, self.value = cache, layer, key, value


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of a KvarnCache. What concerns all layers at once is the cache's."""

    is_sliding = False
    is_croppable = True
    is_compileable = False
    supports_early_init = False

    def __init__(self, cache: KvarnCache, index: int) -> None:
        super().__init__()
        self.cache, self.index, self.length = cache, index, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is kept here."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any,
               **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """New K and V [B, H, T, D]: in mode attend returned as they are, else all N tokens'."""
        return self.cache._update(self, key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(tokens that a mask covers, where it begins)"""
        self.cache._check_attended()
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens of the layer."""
        return self.length

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    get_max_cache_shape = get_max_length  # its name before 5.23

    def offload(self) -> None:
        """Nothing is here that could be moved."""

    prefetch = offload

    def _refuse(self, *_: Any) -> None:
        raise TypeError("a KvarnCache changes all its layers at once: call the cache's method")

    crop = reset = reorder_cache = batch_repeat_interleave = batch_select_indices = _refuse


class KvarnCache(Cache):  # type: ignore[misc]
    """A transformers cache whose keys and values are in kvarnd: one session a row of the batch.

    model: a model or its configuration; all its layers must be full_attention.
    client: a kvarn.Client, of which this is one more user in its thread, or an address for a
    client of the cache's own; None is the environment's KVARN_SERVER.
    mode: "attend": kvarnd computes the attention, and nothing is kept here; the model must use
    attention "kvarn" (attn_implementation="kvarn", or model.set_attn_implementation("kvarn")).
    "offload": K and V come back a layer at a time, for any other attention, "sdpa" say.
    name: of the session of row 0, rows behind it are NAME#1, NAME#2, ...; they outlive the cache,
    and a cache made with that name again goes on where they end. "": they end with the client.
    preset, group, sink_tokens, encoder, seal_lag, ttl, priority: as in kvarn.Shape and Client.open.
    seal_lag should be at least the number of tokens that assisted decoding takes back at once.
    accuracy: kvarn.AttendOptions's. model_name: under which kvarnd knows the shape; None is what
    the configuration says.

    The sessions stay until close(), or the end of a `with`; copies and forks have their own.
    Rows may be padded on the left. Weights keep their type: K and V are sent as they are (float32,
    float16 or bfloat16), and stored in 16 bits and fewer. Raises ValueError for a model or a batch
    that does not fit, RuntimeError where the model's attention does not fit the cache,
    kvarn.ServerError's subclasses for what the daemon refuses. After an exception inside a forward
    pass `crop(0)` takes back what is half done.
    """

    def __init__(self, model: Any, client: Client | str | None = None, *, mode: str = "attend",
                 name: str = "", preset: str = "k2v2", group: int = 128,
                 sink_tokens: int | None = None, encoder: str = "default", seal_lag: int = 32,
                 ttl: float = 0, priority: int = 0, accuracy: str = "default",
                 model_name: str | None = None) -> None:
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
        self._config = getattr(model, "config", model).get_text_config(decoder=True)
        self._options: dict[str, Any] = {
            "mode": mode, "preset": preset, "group": group, "encoder": encoder,
            "sink_tokens": sink_tokens, "seal_lag": seal_lag, "ttl": ttl, "priority": priority,
            "accuracy": accuracy, "model_name": model_name}
        self.shape = _shape_of(self._config, model_name, preset=preset, group=group,
                               sink_tokens=sink_tokens)
        self.mode, self.name, self.accuracy = mode, name, accuracy
        self._owns_client = not isinstance(client, Client)
        self._client = client if isinstance(client, Client) else Client(client, name="kvarn.hf")
        self._rows: list[Session] = []
        self._step: _Step | None = None
        self._reads: dict[int, list[list[Pending[tuple[NDArray, NDArray]]]]] = {}
        self._appends: list[Pending[AppendResult]] = []
        self._begin = 0  # tokens before the forward pass under way
        self._is_broken = self._has_warned = False
        self._layers = [_Layer(self, i) for i in range(self.shape.layers)]
        super().__init__(layers=self._layers)
        if name:
            self._resume()

    # ---- sessions ----

    def __enter__(self) -> KvarnCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the sessions back; those without a name end. The cache is of no use afterwards."""
        for row in self._rows:
            with contextlib.suppress(Error):
                row.close()
        self._rows = []
        if self._owns_client:
            self._client.close()

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The session of each row; none before the first forward pass."""
        return tuple(self._rows)

    @property
    def batch_size(self) -> int:
        """Rows; -1 before the first forward pass."""
        return len(self._rows) or -1

    def details(self) -> list[SessionDetails]:
        """What the daemon says of each row's session."""
        return [row.inspect() for row in self._rows]

    def nbytes(self) -> int:
        """Bytes that the rows take in the daemon."""
        return sum(d.tile_bytes + d.sink_bytes + d.tail_bytes for d in self.details())

    def _row_name(self, row: int) -> str:
        return "" if not self.name else f"{self.name}#{row}" if row else self.name

    def _open_row(self, row: int) -> Session:
        options = {name: self._options[name] for name in ("encoder", "seal_lag", "ttl", "priority")}
        return self._client.open(self._row_name(row), self.shape, takeover=bool(self.name),
                                 **options)

    def _resume(self) -> None:
        """Take the sessions that have the name, as long as all their layers are."""
        there = {s.name for s in self._client.sessions(self.name)}
        while self._row_name(len(self._rows)) in there:
            self._rows.append(self._open_row(len(self._rows)))
        if self._rows:
            self._take_back(min(row.length for row in self._rows))

    def _forget(self) -> None:
        self._rows, self._step, self._is_broken = [], None, False
        self._reads.clear()
        self._appends.clear()
        for layer in self._layers:
            layer.length = 0

    # ---- a forward pass ----

    def _check_attended(self) -> None:
        """K and V that were handed out must have come back in the attention function."""
        if self._step is not None:
            raise RuntimeError(
                f"K and V of layer {self._step.layer.index} never got to kvarnd's attention. "
                "Either the model uses another one (model.set_attn_implementation('kvarn'), or "
                "KvarnCache(mode='offload')), or the forward pass broke off (cache.crop(0))")

    def _check_even(self) -> None:
        """Before a forward pass all layers are equally long."""
        lengths = {layer.length for layer in self._layers}
        if self._is_broken or len(lengths) > 1:
            raise RuntimeError(f"a forward pass broke off and left layers of {min(lengths)} to "
                               f"{max(lengths)} tokens: cache.crop(0) takes it back")

    def _check_rows(self, layer: _Layer, key: torch.Tensor, value: torch.Tensor) -> None:
        """The shapes of K and V; opens the sessions of the first batch."""
        kind = self.shape.layer(layer.index)
        for tensor, dim, what in zip((key, value), kind.dims, ("keys", "values")):
            if tensor.ndim != 4 or (tensor.shape[1], tensor.shape[3]) != (kind.kv_heads, dim):
                raise ValueError(f"{what} of layer {layer.index}: the configuration says "
                                 f"[B, {kind.kv_heads}, T, {dim}], got {list(tensor.shape)}")
        batch = key.shape[0]
        if not self._rows:
            self._rows = [self._open_row(i) for i in range(batch)]
        elif len(self._rows) != batch:
            raise ValueError(f"the cache holds {len(self._rows)} sequences, got a batch of "
                             f"{batch}: batch_repeat_interleave() and batch_select_indices() "
                             "change that, reset() begins anew")

    def _update(self, layer: _Layer, key: torch.Tensor,
                value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self._check_attended()
        if layer.index == 0:
            self._check_even()
            self._begin = layer.length
            self._reads.clear()
        self._check_rows(layer, key, value)
        if self.mode == "offload":
            with self._undone_on_error():
                return self._fetch(layer, key, value)
        self._step = _Step(self, layer, key, value)
        setattr(key, _TAG, self._step)
        return key, value

    @contextlib.contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        """What fails in one layer is taken back in all, if the daemon can be reached."""
        try:
            yield
        except BaseException:
            self._is_broken = True
            with contextlib.suppress(Error):
                self._take_back(self._begin)
            raise

    def _take_back(self, length: int) -> None:
        """Make all layers of all rows that long."""
        self._step = None
        self._reads.clear()
        appends, self._appends = self._appends, []
        for append in appends:
            with contextlib.suppress(Error):
                append.result()
        cuts = [self._client.submit(row.truncate, length) for row in self._rows]
        if any([cut.result().lossy_tail for cut in cuts]) and not self._has_warned:
            self._has_warned = True
            warnings.warn("crop() cut into a block that was sealed: what is left of it is kept as "
                          "it decodes. A larger seal_lag avoids that", stacklevel=3)
        for layer in self._layers:
            layer.length = length
        self._is_broken = False

    # ---- mode attend ----

    def _attend(self, step: _Step, query: torch.Tensor, firsts: list[int] | None,
                options: AttendOptions) -> torch.Tensor:
        """Store the step's K and V and attend: query [B, Hq, T, Dk] -> [B, T, Hq, Dv]."""
        key, value = step.key, step.value
        self._step = None
        delattr(key, _TAG)  # or K and V would stay until cycles are collected
        batch, heads, tokens, _ = query.shape
        if (batch, tokens) != (key.shape[0], key.shape[2]):
            raise ValueError(f"expected as many queries as new keys, got {list(query.shape)} and "
                             f"{list(key.shape)}")
        if firsts is not None and len(firsts) != batch:
            raise ValueError(f"expected a mask of {batch} rows, got {len(firsts)}")
        firsts = firsts or [0] * batch
        k, v, q = (_to_host(t) for t in (key, value, query))
        out = np.empty((batch, heads, tokens, value.shape[3]), np.float32)
        with self._undone_on_error():
            for rows, part in self._calls(heads, tokens):
                items = [AppendAttendItem(self._rows[i], k[i, :, part], v[i, :, part],
                                          q[i, :, part], token_first=firsts[i]) for i in rows]
                results = self._client.append_attend(items, step.layer.index, options)
                for i, result in zip(rows, results):
                    if result.error is not None:
                        raise result.error
                    out[i, :, part] = result.out
            step.layer.length += tokens
        return torch.from_numpy(out).transpose(1, 2).contiguous().to(query.device, query.dtype)

    def _calls(self, heads: int, tokens: int) -> Iterator[tuple[range, slice]]:
        """(rows, tokens) of calls within the daemon's limits: one call, but for long prompts."""
        kind, room = self.shape.layer(0), self._client.server.payload_bytes_max // 2
        k_dim, v_dim = kind.dims
        each = max(4 * (kind.kv_heads * (k_dim + v_dim) + heads * k_dim), 4 * heads * (v_dim + 1))
        most = min(ITEMS_MAX, max(1, room // each))
        for first in range(0, len(self._rows), most):
            rows = range(first, min(first + most, len(self._rows)))
            chunk = max(1, room // (each * len(rows)))
            chunk -= chunk % self.shape.group if chunk > self.shape.group else 0
            for start in range(0, tokens, chunk):
                yield rows, slice(start, min(start + chunk, tokens))

    # ---- mode offload ----

    def _ask(self, index: int, dtype: str) -> None:
        """Ask for what is stored of a layer."""
        length = self._begin
        if index in self._reads or index >= len(self._layers) or not length:
            return
        kind = self.shape.layer(index)
        chunk = self._client.server.payload_bytes_max // 2 // (4 * kind.kv_heads * sum(kind.dims))
        self._reads[index] = [
            [self._client.submit(row.read, index, first, min(first + chunk, length), dtype=dtype)
             for first in range(0, length, chunk)] for row in self._rows]

    def _fetch(self, layer: _Layer, key: torch.Tensor,
               value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new K and V [B, H, T, D] and return those of all tokens [B, H, N, D].

        The next layers are asked for before they are needed, and appends are not waited for until
        the forward pass ends, so that wire and daemon work while the model computes.
        """
        dtype = "f32" if key.dtype == torch.float32 else "f16"
        for ahead in range(AHEAD + 1):
            self._ask(layer.index + ahead, dtype)
        full = [torch.cat([t.new_empty((*t.shape[:2], layer.length, t.shape[3])), t], dim=2)
                for t in (key, value)]
        for i, parts in enumerate(self._reads.pop(layer.index, [])):
            at = 0
            for part in parts:
                for target, rows in zip(full, part.result()):
                    target[i, :, at:at + rows.shape[1]] = torch.from_numpy(rows)
                at += rows.shape[1]
        k, v = _to_host(key), _to_host(value)
        self._appends += [self._client.submit(row.append, k[i], v[i], layer.index)
                          for i, row in enumerate(self._rows)]
        layer.length += key.shape[2]
        if layer.index == len(self._layers) - 1:
            appends, self._appends = self._appends, []
            for append in appends:
                append.result()
        return full[0], full[1]

    # ---- what generate() asks for ----

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last -tokens_to_remove tokens; 0 takes back a forward pass that broke off."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop: expected minus the number of tokens to remove, got "
                             f"{tokens_to_remove}")
        lengths = [layer.length for layer in self._layers]
        length = max(0, min(lengths) + tokens_to_remove)
        if self._is_broken or self._step is not None or length != max(lengths):
            self._take_back(length)

    def reset(self) -> None:
        """Empty the cache: its sessions end, and the next batch may be of any size."""
        for row in self._rows:
            row.drop()
        self._forget()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row i becomes what row beam_idx[i] is: beam search."""
        self._select(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times, one after the other."""
        self._select([i for i in range(len(self._rows)) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows of these indices, in their order."""
        self._select(torch.arange(len(self._rows))[indices].tolist())

    def fork(self, name: str = "") -> KvarnCache:
        """A cache that holds what this one holds, and goes on by itself; copy.deepcopy() too.

        Raises kvarn.Conflict where a session of that name exists.
        """
        self._check_attended()
        self._check_even()
        copy = KvarnCache(self._config, self._client, **self._options)
        copy.name = name
        copy._rows = self._client.fork(self._rows, map(copy._row_name, range(len(self._rows))))
        for ours, theirs in zip(self._layers, copy._layers):
            theirs.length = ours.length
        return copy

    def __deepcopy__(self, memo: dict[int, Any]) -> KvarnCache:
        return self.fork()

    def _select(self, indices: list[int]) -> None:
        """Row i becomes what row indices[i] is: one call for all rows."""
        self._check_attended()
        self._check_even()
        if len(indices) == len(self._rows):
            self._client.reorder((self._rows[first:last], [i - first for i in indices[first:last]])
                                 for first, last in _moves(indices))
            return
        if self.name:
            raise ValueError("the rows of a cache with a name keep their sessions, so that their "
                             "number cannot change: name=''")
        again = [i for n, i in enumerate(indices) if i in indices[:n]]
        copies: dict[int, list[Session]] = {i: [] for i in again}
        for i, copy in zip(again, self._client.fork(self._rows[i] for i in again)):
            copies[i].append(copy)
        for i, row in enumerate(self._rows):
            if i not in indices:
                row.close()
        self._rows = [copies[i].pop() if i in indices[:n] else self._rows[i]
                      for n, i in enumerate(indices)]


def _moves(indices: list[int]) -> list[tuple[int, int]]:
    """[first, last) of stretches of rows that take rows of the same stretch; those that stay as
    they are are left out. A beam search keeps to the stretch of each prompt."""
    found: list[tuple[int, int]] = []
    for i, source in enumerate(indices):
        if i == source:
            continue
        first, last = min(i, source), max(i, source) + 1
        while found and found[-1][1] > first:
            earlier = found.pop()
            first, last = min(first, earlier[0]), max(last, earlier[1])
        found.append((first, last))
    return found


def _to_host(tensor: torch.Tensor) -> Any:
    """The tensor where NumPy, or what sends arrays, can read it. NumPy has no bf16."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _shape_of(config: Any, name: str | None, **fields: Any) -> Shape:
    """The shape of a model's cache; ValueError where kvarnd cannot keep it."""
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError("an encoder-decoder model has keys that do not come from update()")
    kinds, _ = get_layer_types_and_kwargs(config)
    others = sorted(set(kinds) - {"full_attention"})
    if others:
        raise ValueError(f"layer_types: expected full_attention in all {len(kinds)} layers, got "
                         + ", ".join(f"{kinds.count(k)} of {k}" for k in others))
    heads = config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    if dim % 8 or not 8 <= dim <= 512:
        raise ValueError(f"head_dim: expected a multiple of 8 up to 512, got {dim}")
    return Shape.uniform(name or config.name_or_path or config.model_type, len(kinds),
                         getattr(config, "num_key_value_heads", None) or heads, dim, **fields)


def mask(batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, kv_offset: int = 0,
         mask_function: Callable[..., Any] = causal_mask_function,
         attention_mask: torch.Tensor | None = None, **_: Any) -> torch.Tensor | None:
    """The mask function: the first token of each row, int64 [B]; None where all rows begin at 0.

    attention_mask [B, at least kv_length]: 0 where a row is padded, which must be on its left.
    Raises ValueError for what is not causal attention behind such padding.
    """
    if mask_function is not causal_mask_function:
        raise ValueError("attention 'kvarn' is causal; the model asks for another mask "
                         f"({getattr(mask_function, '__qualname__', mask_function)})")
    if q_offset + q_length != kv_offset + kv_length:
        raise ValueError(f"expected queries of the last tokens, got {q_length} from {q_offset} on "
                         f"and {kv_length} keys from {kv_offset} on")
    if attention_mask is None:
        return None
    seen = attention_mask[:, kv_offset:kv_offset + kv_length].bool()
    if seen.shape != (batch_size, kv_length):
        raise ValueError(f"attention_mask: expected [{batch_size}, {kv_length}], got "
                         f"{list(attention_mask.shape)}")
    firsts = kv_length - seen.sum(dim=1)
    if not bool((seen == (torch.arange(kv_length, device=seen.device) >= firsts[:, None])).all()):
        raise ValueError("attention_mask: rows may be padded on the left only")
    return firsts.cpu() if bool(firsts.any()) else None


def attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor,
              value: torch.Tensor, attention_mask: torch.Tensor | None, dropout: float = 0.0,
              scaling: float | None = None, is_causal: bool | None = None,
              softcap: float | None = None, **others: Any) -> tuple[torch.Tensor, None]:
    """The attention function: query [B, Hq, T, Dk] -> (out [B, T, Hq, Dv], None).

    key, value: as KvarnCache.update returned them. Raises RuntimeError where they are not,
    ValueError for what kvarnd's attention does not do.
    """
    step = getattr(key, _TAG, None)
    if not isinstance(step, _Step) or step is not step.cache._step or value is not step.value:
        raise RuntimeError(
            "the keys or values are not those that a KvarnCache in mode attend has just returned: "
            "the model was called without cache=KvarnCache(model), or it changed or copied them "
            "between the cache's update and attention 'kvarn'")
    asked = [name for name in _REFUSED if others.get(name) is not None]
    if dropout:
        asked.append("dropout")
    if others.get("output_attentions"):
        asked.append("output_attentions")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        asked.append("attention that is not causal")
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
        asked.append("gradients (use torch.no_grad())")
    if asked:
        raise ValueError(f"attention 'kvarn' has no {', '.join(asked)}")
    if attention_mask is not None and attention_mask.ndim != 1:
        raise ValueError("attention_mask: attention 'kvarn' takes masks of two dimensions for left "
                         f"padding, got {list(attention_mask.shape)}")
    firsts = None if attention_mask is None else [int(i) for i in attention_mask.tolist()]
    options = AttendOptions(scale=scaling, softcap=softcap or 0.0, accuracy=step.cache.accuracy)
    return step.cache._attend(step, query, firsts, options), None


AttentionInterface.register(IMPLEMENTATION, attention)
AttentionMaskInterface.register(IMPLEMENTATION, mask)
