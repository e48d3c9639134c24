"""The tokenizer of a GGUF file: byte-level BPE from its metadata, by package tokenizers."""
from __future__ import annotations

from typing import Any

NORMAL = 1  # of tokenizer.ggml.token_type; 3 is a control token, 4 one that users defined
# tokenizer.ggml.pre: whether digits stand alone, as in the models' own tokenizer files.
DIGITS_APART = {"smollm": True, "gpt-2": False, "default": False}


class Tokenizer:
    """encode and decode; raises ValueError for a vocabulary that is not byte-level BPE."""

    def __init__(self, fields: dict[str, Any]) -> None:
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers

        kind, pre = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre", "default")
        if kind != "gpt2" or pre not in DIGITS_APART:
            raise ValueError(f"expected a byte-level BPE tokenizer, one of "
                             f"{', '.join(DIGITS_APART)}; got {kind}, {pre}")
        words = fields["tokenizer.ggml.tokens"]
        merges = [tuple(m.split(" ", 1)) for m in fields["tokenizer.ggml.merges"]]
        self._bpe = tokenizers.Tokenizer(models.BPE(
            vocab={w: i for i, w in enumerate(words)}, merges=merges))
        steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        if DIGITS_APART[pre]:
            steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
        self._bpe.pre_tokenizer = pre_tokenizers.Sequence(steps)
        self._bpe.decoder = decoders.ByteLevel()
        special = [w for w, t in zip(words, fields["tokenizer.ggml.token_type"]) if t != NORMAL]
        self._bpe.add_special_tokens(special)
        self.end = int(fields["tokenizer.ggml.eos_token_id"])
        self._is_chatml = "<|im_start|>" in fields.get("tokenizer.chat_template", "")

    def encode(self, text: str) -> list[int]:
        """Ids of a text; names of special tokens in it become those tokens."""
        return list(self._bpe.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        """The text of ids, special tokens left out."""
        return str(self._bpe.decode(ids, skip_special_tokens=True))

    def chat(self, role: str, text: str, is_first: bool) -> list[int]:
        """Ids of one message of a chat, and of the answer's head."""
        if not self._is_chatml:
            raise ValueError("the model has no chat template in the ChatML form; use --raw")
        head = "" if is_first else "\n"
        # What users type must not end their message: their text is encoded by itself, in parts.
        ids = self.encode(f"{head}<|im_start|>{role}\n") + self._plain(text)
        return ids + self.encode("<|im_end|>\n<|im_start|>assistant\n" if role == "user"
                                 else "<|im_end|>")

    def _plain(self, text: str) -> list[int]:
        """Ids of a text in which names of special tokens are only words."""
        return self.encode(text.replace("<|", "<\u200b|"))
