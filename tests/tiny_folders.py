"""Saved folders with a tiny random Llama in float32 and a byte-level tokenizer, for tests that load by name."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import tiny

CONTEXT = 512
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"


def save_seq2seq(folder: Path, name: str = "t5", seed: int = 0, chat: bool = False, shift: int = 0, **settings: object) -> Path:
    """The same vocabulary, its tokenizer ending every text with ``<end>`` as T5's does, and the tiny encoder-decoder model called `name`.
    `settings`: of the model's configuration or, where it has them, of its generation configuration."""
    save(folder, shift=shift)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 256)])
    tokenizer.chat_template = TEMPLATE if chat else None
    for old in folder.iterdir():
        old.unlink()
    tokenizer.save_pretrained(folder)
    model = tiny.seq2seq(name, seed, **{"vocab_size": 257, "eos_token_id": 256, **{k: v for k, v in settings.items() if not k.startswith("forced")}})
    for key in settings:
        if key.startswith("forced"):
            setattr(model.generation_config, key, settings[key])
    model.save_pretrained(folder)
    return folder


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
