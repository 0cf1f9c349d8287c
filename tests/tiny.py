"""Tiny models with seeded random weights in float32, one for each kind of attention layer and cache; vocabulary of at most 64."""

from __future__ import annotations

from typing import Any

import torch
import transformers

VOCAB = 48
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
_HEAD = {"head_dim": 8}
_GEMMA = {**_HEAD, "sliding_window": 5, "query_pre_attn_scalar": 8}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", _HEAD),
    "gemma2": ("Gemma2Config", {**_GEMMA, "attn_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3TextConfig", {**_GEMMA, "layer_types": ["sliding_attention", "full_attention"]}),
    "mistral": ("MistralConfig", {"sliding_window": 5}),
    "phi": ("PhiConfig", {"num_key_value_heads": 4, "partial_rotary_factor": 0.5}),
    "gpt-oss": ("GptOssConfig", {**_HEAD, "sliding_window": 5, "num_local_experts": 2, "num_experts_per_tok": 1}),
    "phi3": ("Phi3Config", {"num_key_value_heads": 4, "sliding_window": 7}),
}
RECURRENT: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("MambaConfig", {"state_size": 4, "time_step_rank": 4, "expand": 2}),
    "mamba2": ("Mamba2Config", {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "expand": 2, "chunk_size": 16}),
}


def model(name: str, seed: int = 0) -> Any:
    """The tiny model called `name`, the same weights for the same seed."""
    kind, options = {**CONFIGS, **RECURRENT}[name]
    torch.manual_seed(seed)
    config = getattr(transformers, kind)(**{**_SHAPE, **options})
    attention = {"attn_implementation": "eager"} if "attn_logit_softcapping" in options else {}  # sdpa of transformers 5.20 leaves it out
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, **attention).eval()
