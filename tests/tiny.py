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

_SEQ2SEQ: dict[str, Any] = {
    "vocab_size": VOCAB, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 2, "init_std": 0.4, "is_encoder_decoder": True,
}  # fmt: skip
_T5 = {
    "vocab_size": VOCAB, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2, "pad_token_id": 0,
    "eos_token_id": 2, "decoder_start_token_id": 0, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
}  # fmt: skip
_SOUND = {"num_mel_bins": 4, "max_source_positions": 6, "max_target_positions": 128, "decoder_start_token_id": 1, "decoder_layers": 3}
SEQ2SEQ: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5Config", _T5),
    "mt5": ("MT5Config", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart": ("BartConfig", {**_SEQ2SEQ, "forced_eos_token_id": None}),
    "marian": ("MarianConfig", {**_SEQ2SEQ, "decoder_start_token_id": 0, "scale_embedding": True, "forced_eos_token_id": None}),
    "nllb": ("M2M100Config", {**_SEQ2SEQ, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}),
    "whisper": ("WhisperConfig", {**_SEQ2SEQ, **_SOUND, "suppress_tokens": None, "begin_suppress_tokens": None}),
}


def model(name: str, seed: int = 0, **own: Any) -> Any:
    """The tiny model called `name`, the same weights for the same seed; `own` replaces settings of its configuration."""
    kind, options = {**CONFIGS, **RECURRENT}[name]
    options = {**options, **own}
    torch.manual_seed(seed)
    config = getattr(transformers, kind)(**{**_SHAPE, **options})
    attention = {"attn_implementation": "eager"} if "attn_logit_softcapping" in options else {}  # sdpa of transformers 5.20 leaves it out
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, **attention).eval()


def seq2seq(name: str, seed: int = 0, **options: Any) -> Any:
    """The tiny encoder-decoder model called `name`; `options` replace settings of its configuration."""
    kind, own = SEQ2SEQ[name]
    config = getattr(transformers, kind)(**{**own, **options})
    torch.manual_seed(seed)
    maker = transformers.AutoModelForSpeechSeq2Seq if name == "whisper" else transformers.AutoModelForSeq2SeqLM
    model = maker.from_config(config, dtype=torch.float32).eval()
    if "t5" in name:  # its own small beginning repeats one token whatever the source
        for weight in model.parameters():
            if weight.dim() == 2:
                torch.nn.init.normal_(weight, std=0.3)
    return model


def source(name: str, seed: int = 0, n: int = 9) -> torch.Tensor:
    """An encoder input for the model called `name`: n ids that are no padding, or features of the one shape that Whisper reads."""
    generator = torch.Generator().manual_seed(seed)
    if name == "whisper":
        return torch.randn(4, 12, generator=generator)
    return torch.randint(3, VOCAB, (n,), generator=generator)
