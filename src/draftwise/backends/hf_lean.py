"""The pass of a Llama-shaped decoder (Llama, Qwen 2 and 3, Mistral without windows) in as few operations as it takes.

transformers' own forward of a small model spends much of its time between the products: modules that call modules, checks, conversions. This is the
same arithmetic over the same weights, with one product for queries, keys and values and one for both halves of the gated layer. With products of 8
or 4 bits what is added up from layer to layer is float32, so that nothing is rounded to bfloat16 on the way but keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, rms_norm

from draftwise.backends.hf_product import GATED, Before, Make, Norm, Product, prepared

FAMILIES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM")

_ROPES = ("default", "linear", "llama3", "yarn")  # whose angles depend on the position alone
_TABLE = 512  # positions whose angles are computed at first; then twice as many


class _Layer(NamedTuple):
    """`heads`: the weights of the norms of queries and keys, or none."""

    heads: tuple[Tensor, ...]
    attention: Any
    qkv: Product
    out: Product
    gated: Product
    down: Product


class _Taken(nn.Module):
    """Stands where a linear layer was."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features


class Lean:
    """The decoder of `model`, whose linear layers are taken out of it one by one: it is of no use of its own afterwards. `carried`: the dtype of what
    is added up from layer to layer, by default the model's. Raises ValueError for a model of another shape: see `unfit`."""

    def __init__(self, model: Any, make: Make, carried: torch.dtype | None = None) -> None:
        if reason := unfit(model):
            raise ValueError(f"{type(model).__name__} has no lean pass: {reason}")
        config, base = model.config, model.model
        self.width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.heads, self.groups, self.eps = config.num_attention_heads, config.num_key_value_heads, config.rms_norm_eps
        self.dtype: torch.dtype = model.dtype
        self.embed, self.rotary = base.embed_tokens.weight.detach(), base.rotary_emb
        self.carried = carried or self.dtype
        self.norm = self._norm(base.norm)
        self.head = make("head", model.lm_head.weight, model.lm_head.bias, self.norm)
        self.vocabulary = model.lm_head.out_features
        model.lm_head = _Taken(self.vocabulary)
        self.layers = [self._layer(layer, make) for layer in base.layers]
        self._table: tuple[Tensor, ...] = (torch.empty(0),) * 2

    def __call__(
        self, tokens: Tensor, positions: Tensor, wanted: Tensor, cache: Any, attention: Any, taps: Sequence[int]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Logits [len(wanted), V] and the tapped rows {tap: [T, H]}: i = the input of layer i, -1 = after the last norm."""
        with torch.inference_mode():
            x = embedding(tokens, self.embed).to(self.carried)
            turn = self.angles(positions)
            hidden = {}
            for i, layer in enumerate(self.layers):
                if i in taps:
                    hidden[i] = x.to(self.dtype)
                x = self._attend(i, layer, x, turn, cache, attention)
                x = layer.down(layer.gated(x), x)
            if -1 in taps:
                hidden[-1] = prepared(x, self.norm).to(self.dtype)
        with torch.no_grad():  # rows leave as plain tensors
            return self.head(x[wanted].clone()), {tap: row.clone() for tap, row in hidden.items()}

    def _attend(self, i: int, layer: _Layer, x: Tensor, turn: tuple[Tensor, Tensor], cache: Any, attention: Any) -> Tensor:
        qkv = layer.qkv(x).view(len(x), -1, self.width)
        turned, value = torch.split(qkv, [self.heads + self.groups, self.groups], 1)
        if layer.heads:
            query, key = torch.split(turned, [self.heads, self.groups], 1)
            turned = torch.cat([rms_norm(part, (self.width,), weight, self.eps) for part, weight in zip((query, key), layer.heads, strict=True)], 1)
        low, high = turned.chunk(2, -1)
        turned = torch.cat([-high, low], -1).mul_(turn[1]).add_(turned * turn[0]).to(self.dtype)
        query, key = torch.split(turned.transpose(0, 1)[None], [self.heads, self.groups], 1)
        keys, values = cache.update(key, value.to(self.dtype).transpose(0, 1)[None], i)
        mixed, _ = attention(layer.attention, query, keys, values, None, scaling=self.width**-0.5)
        return layer.out(mixed.reshape(len(x), -1), x)

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [T, 1, width] of the rotary embedding."""
        if int(positions.max()) >= len(self._table[0]):
            with torch.inference_mode(False), torch.no_grad():
                n = max(_TABLE, 2 * int(positions.max()))
                parts = self.rotary(self.embed[:1, None].to(self.carried), torch.arange(n)[None])
                self._table = tuple(part[0, :, None] for part in parts)
        return self._table[0][positions], self._table[1][positions]

    def _layer(self, layer: Any, make: Make) -> _Layer:
        attention, gated = layer.self_attn, layer.mlp
        own = [getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
        heads = tuple(norm.weight.detach().to(self.carried) for norm in own)
        parts: tuple[tuple[str, Any, tuple[str, ...], Before], ...] = (
            ("qkv", attention, ("q_proj", "k_proj", "v_proj"), self._norm(layer.input_layernorm)),
            ("out", attention, ("o_proj",), None),
            ("gated", gated, ("gate_proj", "up_proj"), self._norm(layer.post_attention_layernorm)),
            ("down", gated, ("down_proj",), GATED),
        )
        return _Layer(heads, attention, *(make(role, *_joined(parent, names), before) for role, parent, names, before in parts))

    def _norm(self, norm: Any) -> Norm:
        return Norm(norm.weight.detach().to(self.carried), self.eps)


def unfit(model: Any) -> str:
    """Why a model has no lean pass; '' if it has."""
    config = model.config
    if type(model).__name__ not in FAMILIES:
        return f"it is none of {', '.join(FAMILIES)}"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    if (rope := (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")) not in _ROPES:
        return f"its positions are of type {rope}"
    layers = set(getattr(config, "layer_types", None) or ())
    if layers - {"full_attention"} or (not layers and getattr(config, "sliding_window", None)):
        return "some of its layers see a window only"
    return ""


def _joined(parent: Any, names: Sequence[str]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of several linear layers of `parent` as one; they are taken out."""
    linears = [getattr(parent, name) for name in names]
    biases = [linear.bias for linear in linears]
    bias = None
    if any(one is not None for one in biases):
        bias = torch.cat([linear.weight.new_zeros(len(linear.weight)) if linear.bias is None else linear.bias.detach() for linear in linears])
    weight = torch.cat([linear.weight.detach() for linear in linears]) if len(linears) > 1 else linears[0].weight.detach()
    for name in names:
        setattr(parent, name, _Taken(getattr(parent, name).out_features))
    return weight, bias
