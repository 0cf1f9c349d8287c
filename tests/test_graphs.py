"""Recorded passes: when there are any, what they read, and that a text does not notice. Their rows are in the battery for backends too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import graphs
import tiny
from draftwise import catalog, picking
from draftwise.backends import hf_graphs
from draftwise.backends.hf import HF
from draftwise.backends.hf_cache import PooledCache
from draftwise.context import Context
from draftwise.engine import Engine
from draftwise.loading import load_model
from draftwise.spec import parse
from draftwise.types import Feed, Sampling


def read(backend: Any, tokens: list[int], slot: int = 0, want: int | None = None) -> torch.Tensor:
    rows: torch.Tensor = backend.forward([Feed(slot, torch.tensor(tokens), len(tokens) if want is None else want)])[0].logits
    return rows


def count(backend: HF) -> int:
    assert backend._graphs is not None
    return len(backend._graphs._recorded)


class Counted:
    """How often Python goes through a model."""

    def __init__(self, model: Any) -> None:
        self.calls = 0
        model.register_forward_pre_hook(self)

    def __call__(self, *_: object) -> None:
        self.calls += 1


def test_a_kind_of_pass_is_recorded_the_second_time_and_then_python_is_not_asked() -> None:
    model = tiny.model("llama")
    calls, backend, plain = Counted(model), graphs.backend(model), HF(tiny.model("llama"))
    found = []
    for token in range(6):
        torch.testing.assert_close(read(backend, [token]), read(plain, [token]), atol=2e-5, rtol=1e-5)
        found.append((count(backend), calls.calls))
    assert [recorded for recorded, _ in found] == [0, 1, 1, 1, 1, 1]
    assert found[-1][1] == found[1][1]


def test_long_feeds_and_several_at_once_run_as_they_did() -> None:
    backend, plain = graphs.backend(tiny.model("llama"), after=1), HF(tiny.model("llama"))
    tokens = [1 + i % 40 for i in range(hf_graphs.WIDEST + 1)]
    torch.testing.assert_close(read(backend, tokens), read(plain, tokens))
    feeds = [Feed(slot, torch.tensor([3, 4]), 2) for slot in (0, 1)]
    for one, other in zip(backend.forward(feeds), plain.forward(feeds), strict=True):
        torch.testing.assert_close(one.logits, other.logits)
    assert count(backend) == 0
    torch.testing.assert_close(read(backend, [5], slot=1), read(plain, [5], slot=1), atol=2e-5, rtol=1e-5)
    assert count(backend) == 1


def test_buffers_that_move_are_recorded_anew() -> None:
    backend, plain = graphs.backend(tiny.model("llama", max_position_embeddings=700), after=1), HF(tiny.model("llama", max_position_embeddings=700))
    for step in range(5):
        tokens = [1 + (step + i) % 40 for i in range(120)]
        read(backend, tokens, want=0), read(plain, tokens, want=0)
        torch.testing.assert_close(read(backend, [7, 8]), read(plain, [7, 8]), atol=2e-5, rtol=1e-5)
    assert count(backend) < 3  # there were three lengths of attention: what was recorded of earlier buffers is gone


def test_few_recordings_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_graphs, "_MOST", 3)
    backend, plain = graphs.backend(tiny.model("llama"), after=1), HF(tiny.model("llama"))
    for n in (1, 2, 3, 4, 5, 1, 2):
        torch.testing.assert_close(read(backend, list(range(n))), read(plain, list(range(n))), atol=2e-5, rtol=1e-5)
        assert count(backend) <= 3


def test_what_cannot_be_recorded_runs_as_it_did_and_says_so() -> None:
    model = tiny.model("llama")
    inner = model.model.forward

    def waiting(*args: Any, **kwargs: Any) -> Any:
        out = inner(*args, **kwargs)
        if float(out[0].sum()) == 0:  # what some models do: a number of the device decides
            raise AssertionError
        return out

    model.model.forward = waiting
    backend, plain = graphs.backend(model, after=1), HF(tiny.model("llama"))
    with pytest.warns(UserWarning, match="goes on without CUDA graphs, since a pass could not be recorded: It appears"):
        torch.testing.assert_close(read(backend, [1, 2]), read(plain, [1, 2]))
    torch.testing.assert_close(read(backend, [3]), read(plain, [3]))
    assert count(backend) == 0


def test_what_a_broken_text_left_does_not_spoil_the_next() -> None:
    backend, plain = graphs.backend(tiny.model("llama"), after=1), HF(tiny.model("llama"))
    read(backend, [1, 2, 3, 4, 5])
    for keys, values in backend._cache.buffers.values():
        keys[:, :, :5], values[:, :, :5] = float("nan"), float("inf")
    backend.free(0)
    torch.testing.assert_close(read(backend, [6]), read(plain, [6]), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["fixed:n=3", "breakeven", "draft-tree", "plain"])
def test_a_text_is_the_same(method: str) -> None:
    texts = []
    for make in (graphs.backend, HF):
        target, draft = make(tiny.model("llama")), make(tiny.model("llama", 1))
        context = Context(target=target, draft=draft, vocab_size=tiny.VOCAB)
        engine = Engine(target)
        sampling = Sampling(max_tokens=40)
        texts.append([engine.generate([prompt], sampling, catalog.method(method, context))[0] for prompt in ([1, 2, 3], [4, 5], [6] * 20)])
        if make is graphs.backend:
            assert count(target) > 0
    assert texts[0] == texts[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3"])
def test_on_a_gpu(name: str) -> None:
    model = tiny.model(name).cuda()
    backend, plain = HF(model, record=hf_graphs.captured(model.device)), HF(model)
    for step in range(12):
        tokens = [1 + (step * 7 + i) % 40 for i in range(1 + step % 4)]
        torch.testing.assert_close(read(backend, tokens), read(plain, tokens), atol=1e-3, rtol=1e-3)
        backend.keep(0, backend.length(0) - step % 2), plain.keep(0, plain.length(0) - step % 2)
    assert count(backend) == 4 and not getattr(backend._graphs, "broken", "")


def test_the_stand_in_bakes_numbers_of_the_host_in() -> None:
    """Else the tests above could not fail."""
    numbers, tensor = [1], torch.ones(2)
    again = graphs.record(lambda: (tensor * numbers[0],))
    numbers[0], tensor[0] = 5, 3.0
    assert again()[0].tolist() == [3.0, 1.0]
    cache = PooledCache(4)
    cache.ready(1, 1, 2, torch.float32)
    at = torch.tensor([2])

    def write() -> tuple[torch.Tensor]:
        cache.fixed(at)
        return (cache.update(tensor.view(1, 1, 1, 2), tensor.view(1, 1, 1, 2), 0)[0],)

    again = graphs.record(write)
    cache.clear(0, 4)
    at[0] = 1
    assert again()[0][0, 0, :, 0].tolist() == [0, 3, 0, 0]


def test_where_graphs_can_be_asked_for() -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert (
        picking.graphs(parse("hf:graphs=true"), cuda) and not picking.graphs(parse("hf:graphs=false"), cpu) and not picking.graphs(parse("hf"), cuda)
    )
    assert not picking.graphs(parse("auto"), cpu)
    with pytest.raises(ValueError, match="is for a CUDA device, and the model goes to 'cpu'"):
        load_model("nowhere", device="cpu", backend="hf:graphs=true")
