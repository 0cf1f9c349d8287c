"""The pass of a Llama-shaped decoder (Llama, Qwen 2 and 3, Mistral without windows) in as few operations as it takes.

transformers' own forward of a small model spends much of its time between the products: modules that call modules, checks, conversions. This is the
same arithmetic over the same weights, with one product for queries, keys and values and one for both halves of the gated layer. With 8-bit products
(`draftwise.backends.hf_int8`) what is added up from layer to layer is float32, so that nothing is rounded to bfloat16 on the way but keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, rms_norm, silu

from draftwise.backends.hf_int8 import Int8Linear

FAMILIES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM")

Product = Callable[..., Tensor]
"""(x [T, in], add [T, out] or None, gain [T, 1] or None) -> gain * x W^T + bias + add, [T, out]. Gains are given to 8-bit products only."""
_ROPES = ("default", "linear", "llama3", "yarn")  # whose angles depend on the position alone
_TABLE = 512  # positions whose angles are computed at first; then twice as many


class _Layer(NamedTuple):
    """`norms`: before attention and before the gated layer. `heads`: the weights of the norms of queries and keys, if it has such."""

    norms: tuple[Tensor, Tensor]
    heads: tuple[Tensor, Tensor] | None
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
    """The decoder of `model`, whose linear layers are taken out of it one by one: it is of no use of its own afterwards. `make`: weight and bias to a
    `Product`. Raises ValueError for a model of another shape: see `unfit`."""

    def __init__(self, model: Any, make: Callable[[Tensor, Tensor | None], Product]) -> None:
        if reason := unfit(model):
            raise ValueError(f"{type(model).__name__} has no lean pass: {reason}")
        config, base = model.config, model.model
        self.width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.heads, self.groups, self.eps = config.num_attention_heads, config.num_key_value_heads, config.rms_norm_eps
        self.dtype: torch.dtype = model.dtype
        self.embed, self.rotary = base.embed_tokens.weight.detach(), base.rotary_emb
        self.head = make(model.lm_head.weight, model.lm_head.bias)
        model.lm_head = _Taken(model.lm_head.out_features)
        self.exact = isinstance(self.head, Int8Linear)  # adds up in float32
        self._carried = torch.float32 if self.exact else self.dtype
        self.norm = base.norm.weight.detach().to(self._carried)
        self.layers = [self._layer(layer, make) for layer in base.layers]
        self._table: tuple[Tensor, ...] = (torch.empty(0),) * 2

    @torch.inference_mode()
    def body(
        self, tokens: Tensor, positions: Tensor, cache: Any, attention: Any, taps: Sequence[int]
    ) -> tuple[Tensor, Tensor | None, dict[int, Tensor]]:
        """The rows [T, H] after the last norm with their gains, and those tapped: i = the input of layer i, -1 = after the last norm."""
        x = embedding(tokens, self.embed)
        x = x.float() if self.exact else x
        turn = self._angles(positions)
        hidden = {}
        for i, layer in enumerate(self.layers):
            if i in taps:
                hidden[i] = x.to(self.dtype)
            x = self._attend(i, layer, x, turn, cache, attention)
            gate, up = layer.gated(*self._normed(x, layer.norms[1])).chunk(2, -1)
            x = layer.down(silu(gate).mul_(up), x)
        x, gain = self._normed(x, self.norm)[::2]
        if -1 in taps:
            hidden[-1] = (x if gain is None else x * gain).to(self.dtype)
        return x, gain, hidden

    def __call__(
        self, tokens: Tensor, positions: Tensor, wanted: Tensor, cache: Any, attention: Any, taps: Sequence[int]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Logits [len(wanted), V] and the tapped rows {tap: [T, H]}."""
        x, gain, hidden = self.body(tokens, positions, cache, attention, taps)
        with torch.no_grad():  # rows leave as plain tensors
            logits = self.head(x[wanted].clone(), None, None if gain is None else gain[wanted].clone())
            return logits, {tap: row.clone() for tap, row in hidden.items()}

    def _attend(self, i: int, layer: _Layer, x: Tensor, turn: tuple[Tensor, Tensor], cache: Any, attention: Any) -> Tensor:
        qkv = layer.qkv(*self._normed(x, layer.norms[0])).to(self.dtype).view(len(x), -1, self.width)
        turned, value = torch.split(qkv, [self.heads + self.groups, self.groups], 1)
        if layer.heads is not None:
            query, key = torch.split(turned, [self.heads, self.groups], 1)
            turned = torch.cat([rms_norm(part, (self.width,), weight, self.eps) for part, weight in zip((query, key), layer.heads, strict=True)], 1)
        low, high = turned.chunk(2, -1)
        turned = torch.cat([-high, low], -1).mul_(turn[1]).add_(turned * turn[0])
        query, key = torch.split(turned.transpose(0, 1)[None], [self.heads, self.groups], 1)
        keys, values = cache.update(key, value.transpose(0, 1)[None], i)
        mixed, _ = attention(layer.attention, query, keys, values, None, scaling=self.width**-0.5)
        return layer.out(mixed.reshape(len(x), -1), x)

    def _normed(self, x: Tensor, weight: Tensor) -> tuple[Tensor, None, Tensor | None]:
        """What a product is given of the rows' norm: with 8 bits, x times the weight, and 1 / rms(x) as the gain."""
        if not self.exact:
            return rms_norm(x, (x.shape[-1],), weight, self.eps), None, None
        size = torch.linalg.vector_norm(x, 2, -1, True)
        return x * weight, None, size.square_().mul_(1 / x.shape[-1]).add_(self.eps).rsqrt_()

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [T, 1, width] of the rotary embedding."""
        if int(positions.max()) >= len(self._table[0]):
            with torch.inference_mode(False), torch.no_grad():
                n = max(_TABLE, 2 * int(positions.max()))
                parts = self.rotary(self.embed[:1, None], torch.arange(n)[None])
                self._table = tuple(part[0, :, None] for part in parts)
        return self._table[0][positions], self._table[1][positions]

    def _layer(self, layer: Any, make: Callable[[Tensor, Tensor | None], Product]) -> _Layer:
        attention, gated = layer.self_attn, layer.mlp
        norms = [norm.weight.detach().to(self._carried) for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
        heads = (attention.q_norm.weight.detach(), attention.k_norm.weight.detach()) if hasattr(attention, "q_norm") else None
        parts = (attention, ("q_proj", "k_proj", "v_proj")), (attention, ("o_proj",)), (gated, ("gate_proj", "up_proj")), (gated, ("down_proj",))
        return _Layer((norms[0], norms[1]), heads, attention, *(_joined(parent, names, make) for parent, names in parts))


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


def _joined(parent: Any, names: Sequence[str], make: Callable[[Tensor, Tensor | None], Product]) -> Product:
    """One product for several linear layers of `parent`, which are taken out."""
    linears = [getattr(parent, name) for name in names]
    biases = [linear.bias for linear in linears]
    bias = None
    if any(one is not None for one in biases):
        bias = torch.cat([linear.weight.new_zeros(len(linear.weight)) if linear.bias is None else linear.bias.detach() for linear in linears])
    weight = torch.cat([linear.weight.detach() for linear in linears]) if len(linears) > 1 else linears[0].weight.detach()
    for name in names:
        setattr(parent, name, _Taken(getattr(parent, name).out_features))
    return make(weight, bias)
