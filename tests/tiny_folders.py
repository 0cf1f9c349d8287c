"""Saved folders with a tiny random Llama in float32 and a byte-level tokenizer, for tests that load by name."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 512
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"


def save(folder: Path, seed: int = 0, extra: int = 0, shift: int = 0) -> Path:
    """A vocabulary of the 256 bytes turned by `shift`, ``<end>`` (id 256), and `extra` further tokens; weights by `seed`."""
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*signs[shift:], *signs[:shift], "<end>", *(f"<more{i}>" for i in range(extra))]
    inner = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", chat_template=TEMPLATE).save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=len(names), max_position_embeddings=CONTEXT, initializer_range=0.3, eos_token_id=256, bos_token_id=256, **SHAPE)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
