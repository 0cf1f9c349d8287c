"""Folders with a tiny random Llama and a byte-level tokenizer, for tests that go in by the command line."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 2048
_CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


def save(folder: Path, seed: int = 0, shift: int = 0, weight: float | None = None) -> Path:
    """Writes a model whose tokens are the 256 bytes and an end of text. `shift`: by how much the bytes' ids are turned, which makes another
    vocabulary. `weight`: the value of every weight instead of chance."""
    tokenizer = _tokenizer(shift)
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, initializer_range=0.3, **ends, **shape)
    model = LlamaForCausalLM(config)
    if weight is not None:
        for parameter in model.parameters():
            parameter.data.fill_(weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(shift: int) -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*letters[shift:], *letters[:shift], "<end>"])}
    found = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=found, eos_token="<end>", chat_template=_CHAT)
