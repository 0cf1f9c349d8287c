"""Packed linear layers compute what the plain ones do."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from draftwise import catalog
from draftwise.backends.hf import HF
from draftwise.backends.hf_packed import PackedLinear, pack
from draftwise.context import Context
from draftwise.engine import Engine
from draftwise.types import Sampling


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_is_the_layer(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(256, 512, bias=bias).to(dtype)
    holder = nn.Sequential(layer)
    if not pack(holder):
        pytest.skip("this torch or processor cannot pack this dtype")
    assert isinstance(holder[0], PackedLinear)
    assert holder[0].weight.shape == layer.weight.shape
    for shape in [(1, 1, 256), (1, 7, 256), (3, 256), (1, 300, 256)]:
        x, slack = torch.randn(shape).to(dtype), 1e-2 if dtype == torch.bfloat16 else 1e-5
        with torch.no_grad():
            torch.testing.assert_close(holder(x), layer(x), rtol=slack, atol=slack)


def test_a_row_does_not_depend_on_how_many_there_are_up_to_five() -> None:
    """In bfloat16, where fewer are filled up to five: a short draft is judged by the numbers that plain decoding would have had."""
    torch.manual_seed(0)
    holder = nn.Sequential(nn.Linear(256, 512).bfloat16())
    if not pack(holder):
        pytest.skip("this torch or processor cannot pack bfloat16")
    x = torch.randn(5, 256).bfloat16()
    rows = holder(x)
    for n in range(1, 5):
        assert torch.equal(holder(x[None, :n]), rows[None, :n])
    assert torch.equal(holder(x[2]), rows[2]) and holder(x[:0]).shape == (0, 512)


def test_small_layers_and_other_modules_stay() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Embedding(5, 8), nn.LayerNorm(8), nn.Linear(256, 256).half())
    before = list(model)
    assert pack(model) == 0
    assert list(model) == before


def test_a_packed_model_decodes_the_same_text() -> None:
    config = transformers.Qwen2Config(
        vocab_size=300, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(config).eval()
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    context = Context(HF(model), None, 300)
    plain = Engine(context.target).generate([prompt], Sampling(max_tokens=30), catalog.method("plain", context))
    if not pack(model):
        pytest.skip("this torch cannot pack")
    context = Context(HF(model), HF(model), 300)
    assert context.target.vocab_size == 300
    for name in ("plain", "adasd-stop", "lookup"):
        assert Engine(context.target, chunk=5).generate([prompt], Sampling(max_tokens=30), catalog.method(name, context)) == plain
