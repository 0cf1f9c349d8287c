"""Products of 8 and 4 bits against their definitions, models made of them, and what happens where they cannot be computed."""

from __future__ import annotations

import math
import mmap
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

import tiny
from draftwise import compiled
from draftwise.backends import hf_grouped
from draftwise.backends.hf import HF
from draftwise.backends.hf_decoder import Decoder
from draftwise.backends.hf_grouped import GroupedLinear, _fitted
from draftwise.backends.hf_int8 import Int8Linear, rounded
from draftwise.backends.hf_lean import Lean
from draftwise.backends.hf_product import GATED, Before, InPlace, Norm, prepared, put
from draftwise.backends.hf_replay import wrap
from draftwise.rounded import PRECISIONS
from draftwise.types import Feed

CPU = torch.device("cpu")
WAYS = {way.name: way for ways in PRECISIONS.values() for way in ways if not way.possible(CPU)}
grouped = pytest.mark.skipif(bool(hf_grouped.possible(CPU)), reason=hf_grouped.possible(CPU))


def befores(width: int) -> dict[str, Before]:
    return {"nothing": None, "norm": Norm(torch.rand(width) + 0.5, 1e-5), "gated": GATED}


def inputs(n: int, width: int, before: Before) -> Tensor:
    """Rows of all sizes, one of nothing, one of a single number."""
    x = torch.randn(n, 2 * width if before == GATED else width) * torch.logspace(-3, 2, n)[:, None]
    x[n // 2] = 0
    x[n // 3] = torch.eye(x.shape[1])[5]
    return x


@pytest.mark.parametrize("before", ["nothing", "norm", "gated"])
def test_an_eight_bit_product(before: str) -> None:
    """Against its definition, and every row alone as in company."""
    torch.manual_seed(0)
    weight, bias, first = torch.randn(24, 16), torch.randn(24), befores(16)[before]
    x, add = inputs(9, 16, first), torch.randn(9, 24)
    linear = Int8Linear(rounded(weight), weight.shape, bias, first)
    y = prepared(x, first)
    step = y.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    weights = torch.round(weight / (weight.abs().amax(1, keepdim=True) / 127)) * weight.abs().amax(1, keepdim=True) / 127
    want = torch.floor(y / step + 0.5) * step @ weights.T
    slack = 1e-4 if first is None else 2 * float((step * weight.abs().max()).max())  # another order of products can move a level by one
    torch.testing.assert_close(linear(x), want + bias, rtol=1e-5, atol=slack)
    torch.testing.assert_close(linear(x, add), want + bias + add, rtol=1e-5, atol=slack)
    assert torch.equal(torch.cat([linear(row[None]) for row in x]), linear(x))


@grouped
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("before", ["nothing", "norm", "gated"])
@pytest.mark.parametrize(("outputs", "width"), [(5, 16), (16, 32), (40, 200), (33, 48), (17, 2100)])
def test_a_grouped_product(outputs: int, width: int, before: str, bits: int) -> None:
    """Against its definition, for as many rows as there are tiles for and more, and every row alone as in company."""
    torch.manual_seed(outputs)
    weight, bias, first = torch.randn(outputs, width), torch.randn(outputs), befores(width)[before]
    linear = GroupedLinear(hf_grouped.rounded(weight, bits=bits), weight.shape, bias, first)
    spare = -width % 256
    ends, numbers = _fitted(pad(weight, (0, spare)).view(outputs, -1, 8, 32), bits)
    near = ends.values(numbers).view(outputs, -1)
    assert (near[:, :width] - weight).abs().max() < (0.5 if bits == 4 else 0.03)
    for n in (*range(1, 13), 25):
        x, add = inputs(n, width, first), torch.randn(n, outputs)
        gain = (x.square().mean(1, True) + 1e-5).rsqrt() if before == "norm" else torch.ones(n, 1)
        y = pad(prepared(x, first) / gain, (0, spare)).view(n, -1, 32)
        scale = y.abs().amax(-1, keepdim=True).clamp(min=1e-20) / 127
        scale = scale if bits == 8 else 2 ** torch.ceil(torch.log2(scale))
        want = gain * (torch.round(y / scale) * scale).view(n, -1) @ near.T
        slack = 1e-5 * float(x.abs().max() + 1) * width if first is None else 4 * float((gain[:, None] * scale).max())
        torch.testing.assert_close(linear(x), want + bias, rtol=1e-4, atol=slack)
        torch.testing.assert_close(linear(x, add), want + bias + add, rtol=1e-4, atol=slack)
        assert torch.equal(torch.cat([linear(row[None]) for row in x]), linear(x))
    assert linear(x[:0]).shape == (0, outputs)
    with pytest.raises(ValueError, match=f"rows are {x.shape[1]} wide here, got 3"):
        linear(torch.zeros(2, 3))


@grouped
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("at", [3, 20, 70])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_no_number_stays_none(bits: int, at: int, value: float) -> None:
    """In its own row: it must not come out as a small number that nobody would notice."""
    weight, x = torch.randn(20, 96), torch.randn(3, 96)
    linear = GroupedLinear(hf_grouped.rounded(weight, bits=bits), weight.shape)
    want = linear(x)
    x[1, at] = value
    found = linear(x)
    assert found[1].isnan().all() and torch.equal(found[[0, 2]], want[[0, 2]])


@grouped
@pytest.mark.parametrize(("outputs", "width"), [(40, 200), (3000, 64)])
def test_a_head_reads_the_lower_bits_of_its_best_alone(outputs: int, width: int) -> None:
    """Of 64 blocks of 16 outputs at most: there the error is that of 8 bits, elsewhere of 4; and a row does not depend on its neighbours."""
    torch.manual_seed(0)
    weight, x = torch.randn(outputs, width), torch.randn(13, width)
    parts = hf_grouped.rounded(weight, "head")
    linear, coarse = (GroupedLinear(own, weight.shape) for own in (parts, {"records": parts["records"]}))
    grouped_x = pad(x, (0, -width % 32)).view(13, -1, 32)
    unit = 2 ** torch.ceil(torch.log2(grouped_x.abs().amax(-1, True) / 127))
    near = (torch.round(grouped_x / unit) * unit).view(13, -1)[:, :width]
    found, without, want = linear(x), coarse(x), near @ weight.T
    assert torch.equal(torch.cat([linear(row[None]) for row in x]), found)
    blocks = pad(without, (0, -outputs % 16), value=-math.inf).view(13, -1, 16).amax(-1)
    best = torch.zeros_like(blocks, dtype=torch.bool).scatter_(1, blocks.topk(min(64, blocks.shape[1])).indices, True)
    chosen = best.repeat_interleave(16, 1)[:, :outputs]
    assert torch.equal(found[~chosen], without[~chosen]) and bool((~chosen).any()) == (outputs == 3000)
    assert (found - want)[chosen].std() < 0.1 * (without - want).std()


@pytest.mark.parametrize("pages", ["large", "refused", "unknown"])
def test_records_have_memory_of_their_own(pages: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a large weight, with large pages, with a system that gives none, and with one that has not heard of them."""
    if pages == "refused":
        monkeypatch.setattr(mmap, "MADV_HUGEPAGE", -1, raising=False)
    elif pages == "unknown":
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    records = torch.randint(0, 255, (3, 1 << 10, 1 << 10), dtype=torch.uint8)
    own = hf_grouped._settled(records)
    assert torch.equal(own, records) and own.is_contiguous()
    assert pages == "unknown" or own.data_ptr() != records.data_ptr()
    assert hf_grouped._settled(records[:1]).data_ptr() == records.data_ptr()


@grouped
def test_four_bits_are_found_again() -> None:
    """Weights that were of 4 bits in groups of 32 before, whichever of the 16 levels a group uses, and all of one size: but for what a byte leaves
    out of a step (a 510th of the largest, up to 15 times) and an eighth of a step out of what a group begins with."""
    torch.manual_seed(0)
    step = torch.rand(64, 8, 1).half().float() + 0.01
    least = step * (3 + 5 * torch.rand(64, 8, 1))
    numbers = torch.randint(0, 16, (64, 8, 32)).clamp(torch.randint(0, 4, (64, 8, 1)), torch.randint(10, 16, (64, 8, 1)))
    weight = (step * numbers - least).view(-1, 32)
    weight[0] = 0.25
    ends, numbers = _fitted(weight.view(-1, 8, 32), 4)
    assert (ends.values(numbers).view_as(weight) - weight).abs().max() < 0.1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_few_bits_are_near_full_precision(name: str, way: str) -> None:
    """The error of a logit against the spread of logits, where so few inputs leave little to average: 0.05 and 0.06 with 8 bits row by row."""
    tokens = torch.randint(3, tiny.VOCAB, (60,), generator=torch.Generator().manual_seed(90))
    most = {"int8": 0.09, "int8-levels8": 0.05, "int4-levels8": 0.5, "int4-levels4": 0.5}[way]
    own = tiny.model(name)
    with torch.no_grad():
        exact = own(input_ids=tokens[None]).logits[0]
    for layer in own.model.layers:
        layer.mlp.up_proj = InPlace(layer.mlp.up_proj, WAYS[way].make)
    with torch.no_grad():
        assert 0 < (own(input_ids=tokens[None]).logits[0] - exact).std() / exact.std() < most
    own = tiny.model(name)
    own.lean = WAYS[way].lean(own, WAYS[way].make)
    assert 0 < (rows(own, tokens) - exact).std() / exact.std() < most


def rows(model: Any, tokens: Tensor) -> Tensor:
    return wrap(model).forward([Feed(0, tokens, len(tokens))])[0].logits


@grouped
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "wide"])
def test_one_call_is_the_lean_pass(name: str, dtype: torch.dtype) -> None:
    """Logits and tapped rows of chains, trees and several slots at once, against the same products called one by one; then every bit, however it is
    cut. In bfloat16 the one pass rounds keys and values, the other queries and angles too. An input at a tie between two levels may fall to either
    side, by how a processor adds up: then a few rows differ by a level, and the rest by nothing."""
    options = {"hidden_size": 160, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 80} if name == "wide" else {}
    made = [tiny.model("llama" if name == "wide" else name, **options).to(dtype) for _ in range(2)]
    way = WAYS["int8-levels8"]
    made[0].lean = Lean(made[0], way.make, way.carried)
    made[1].lean = way.lean(made[1], way.make)
    assert isinstance(made[1].lean, Decoder)
    both = [HF(model, taps=(0, 1, -1)) for model in made]
    texts = torch.randint(3, tiny.VOCAB, (2, 40))
    tree = torch.tensor([-1, 0, 0, 2, 1])
    feeds = [
        [Feed(0, texts[0, :9], 9)],
        [Feed(0, texts[0, 9:12], 1), Feed(1, texts[1, :5], 2), Feed(2, texts[1, :0], 0)],
        [Feed(1, texts[1, 5:10], 5, tree), Feed(0, texts[0, 12:13], 0)],
    ]
    slack = {torch.float32: 1e-3, torch.bfloat16: 0.1}[dtype]

    def near(own: Tensor, want: Tensor) -> None:
        assert own.shape == want.shape
        if want.numel():
            error, spread = (own - want).float().abs(), want.float().std()
            assert error.median() < slack * spread and error.std() < max(slack, 0.02) * spread

    for given in feeds:
        one, other = (backend.forward(given) for backend in both)
        for own, want in zip(other, one, strict=True):
            near(own.logits, want.logits)
            for tap, hidden in want.hidden.items():
                near(own.hidden[tap], hidden)
    whole = both[1].forward([Feed(5, texts[1], 40)])[0].logits
    parts = [both[1].forward([Feed(6, part, len(part))])[0].logits for part in texts[1].split([1, 11, 2, 26])]
    assert torch.equal(torch.cat(parts), whole)
    few = HF(made[1], taps=(1,))  # without the rows after the last norm the last layer is computed for the wanted rows alone
    own = few.forward([Feed(0, texts[1], 3), Feed(1, texts[0, :4], 0), Feed(2, texts[1, :8], 1)])
    assert torch.equal(torch.cat([part.logits for part in own]), torch.cat([whole[-3:], whole[7:8]]))
    assert torch.equal(few.forward([Feed(0, texts[0, :2], 2)])[0].logits, both[1].forward([Feed(5, texts[0, :2], 2)])[0].logits)
    assert few.forward([Feed(3, texts[0], 0)])[0].logits.shape == (0, whole.shape[1])


@pytest.mark.parametrize("way", WAYS)
def test_single_layers(way: str) -> None:
    """Of a model without a lean pass: large ones alone change."""
    model = torch.nn.Sequential(torch.nn.Linear(512, 256), torch.nn.Linear(8, 8)).bfloat16()
    assert put(model, lambda weight: weight.numel() >= 1 << 16, lambda linear: InPlace(linear, WAYS[way].make)) == 1
    assert isinstance(model[0], InPlace) and model[0](torch.zeros(1, 3, 512).bfloat16()).dtype == torch.bfloat16


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    compiled.library.cache_clear()
    return tmp_path / "cache"


def test_without_a_compiler(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(compiled.NotCompiled, match="there is no C compiler: install one"):
        compiled.library(Path(hf_grouped.__file__).with_name("native") / "decoder.c", fresh)


def test_a_source_that_does_not_compile_and_a_folder_that_is_not_needed(fresh: Path, tmp_path: Path) -> None:
    if not any(map(shutil.which, compiled._COMPILERS)):
        pytest.skip("no compiler here")
    source = tmp_path / "wrong.c"
    source.write_text("int f(void) { return g; }")
    with pytest.raises(compiled.NotCompiled, match="could not compile it: .*error"):
        compiled.library(source, fresh)
    source.write_text("int seven(void) { return 7; }")
    assert compiled.library(source, fresh).seven() == 7
    assert len(list(fresh.iterdir())) == 1
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert compiled.library(source, blocked).seven() == 7


def test_where_four_bits_are_not_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "for the CPU" in hf_grouped.possible(torch.device("meta"))

    class Old:
        @staticmethod
        def possible() -> int:
            return 0

    monkeypatch.setattr(hf_grouped, "library", lambda *_: Old())
    assert "no AVX-512 VNNI" in hf_grouped.possible(CPU)

    def missing(*_: Any) -> None:
        raise compiled.NotCompiled("there is no C compiler")

    monkeypatch.setattr(hf_grouped, "library", missing)
    assert hf_grouped.possible(CPU) == "there is no C compiler"
