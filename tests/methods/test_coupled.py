"""The coupled rule: the target's own tokens, whatever is drafted."""

import itertools

import torch

from draftwise.methods.coupled import Coupled
from draftwise.noise import Noise
from draftwise.types import Draft, Target, Uniforms

V, N = 4, 3
ROWS = (2 * torch.randn(N + 1, V, generator=torch.Generator().manual_seed(0))).softmax(-1)


def emitted(tokens: tuple[int, ...], rows: torch.Tensor, race: torch.Tensor | None) -> list[int]:
    target = Target(rows[: len(tokens) + 1], rows.log(), torch.ones(len(tokens), dtype=torch.bool))
    u = Uniforms(torch.zeros(len(tokens), dtype=torch.float64), torch.zeros(len(tokens) + 1, dtype=torch.float64), race)
    verdict, _ = Coupled().judge(target, Draft(torch.tensor(tokens, dtype=torch.int64)), u, 0)
    assert verdict.weights.sum() == verdict.weights.max() == 1
    return [*(tokens[i] for i in verdict.path), int(verdict.weights.argmax())]


def test_golden() -> None:
    rows = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]])
    race = torch.tensor([[0.0, 0.1, 9.0, 9.0], [2.0, 1.2, 0.0, 0.0]], dtype=torch.float64)
    assert emitted((1,), rows, race) == [1, 0]  # .1 e^2 > .2 e^1.2 > .4; tokens without mass cannot win
    assert emitted((2,), rows, race[:2]) == [1]


def test_every_draft_gives_the_tokens_of_plain_decoding() -> None:
    """Rows that do not depend on the text, so that plain decoding of all positions is one line."""
    for seed in range(20):
        race = Noise(seed).race(0, 5, N + 1, V)
        plain = [emitted((), ROWS[d : d + 1], race[d : d + 1])[0] for d in range(N + 1)]
        for tokens in itertools.product(range(V), repeat=N):
            found = emitted(tokens, ROWS, race)
            assert found == plain[: len(found)]
        assert emitted(tuple(plain[:N]), ROWS, race) == plain


def test_at_temperature_0_the_race_changes_nothing() -> None:
    one_hot = torch.nn.functional.one_hot(ROWS.argmax(-1), V).float()
    for tokens in itertools.product(range(V), repeat=N):
        assert emitted(tokens, one_hot, None) == emitted(tokens, one_hot, Noise(3).race(0, 0, N + 1, V))
