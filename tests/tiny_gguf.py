"""The tiny models of `tiny`, in float32, as GGUF files: what transformers computes with them is then what llama.cpp should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor

import tiny

_ARCH = {"qwen2": gguf.MODEL_ARCH.QWEN2, "gemma3": gguf.MODEL_ARCH.GEMMA3, "mamba": gguf.MODEL_ARCH.MAMBA}
_OPTIONS: dict[str, dict[str, Any]] = {
    "gemma3": {"layer_types": ["sliding_attention"] * 2},  # only every sixth layer is a full one
    "mamba": {"intermediate_size": 64},  # always twice the hidden size
}
NAMES = list(_ARCH)


def model(name: str) -> Any:
    """The model of transformers, as the file format can have it."""
    return tiny.model(name, **_OPTIONS.get(name, {}))


def write(name: str, path: Path) -> Path:
    """Its file, with a vocabulary of as many made-up words."""
    own = model(name)
    writer = gguf.GGUFWriter(str(path), gguf.MODEL_ARCH_NAMES[_ARCH[name]])
    _settings(writer, name, own.config)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(tiny.VOCAB - 3))])
    writer.add_token_scores([0.0] * tiny.VOCAB)
    writer.add_token_types([gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (tiny.VOCAB - 3))
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(_ARCH[name], own.config.num_hidden_layers)
    tied = own.get_output_embeddings().weight is own.get_input_embeddings().weight
    for key, value in own.state_dict().items():
        if not (tied and key == "lm_head.weight"):
            writer.add_tensor(names.get_name(key, (".weight", ".bias")), _converted(name, key, value).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _settings(writer: Any, name: str, config: Any) -> None:
    writer.add_context_length(128)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    if name == "mamba":
        writer.add_feed_forward_length(0)
        writer.add_head_count(0)
        writer.add_ssm_conv_kernel(config.conv_kernel)
        writer.add_ssm_inner_size(config.intermediate_size)
        writer.add_ssm_state_size(config.state_size)
        writer.add_ssm_time_step_rank(config.time_step_rank)
        writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
        return
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1e4)
    if name == "gemma3":
        writer.add_sliding_window(config.sliding_window)


def _converted(name: str, key: str, value: Tensor) -> Tensor:
    """A weight as the file format wants it."""
    if name == "gemma3" and "norm" in key:
        return value + 1
    if key.endswith("A_log"):
        return -torch.exp(value)
    return value.squeeze(1) if "conv1d.weight" in key else value
