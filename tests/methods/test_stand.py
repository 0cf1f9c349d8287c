"""STAND: the reference values of its merge and of its Gumbel children, the laws it hands up, what it learns and shares, its file."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from draftwise import probs
from draftwise.methods import shapes
from draftwise.methods.grams import Grams
from draftwise.methods.stand import Stand, tempered
from draftwise.noise import Noise
from draftwise.protocols import Ask
from draftwise.types import Draft, Outcome, Rows, Sampling, Sparse, Text

P1, P2, P3 = (0.5, 0.3, 0.1, 0.06, 0.04, 0.0), (0.15, 0.14, 0.16, 0.2, 0.35, 0.0), (0.1, 0.6, 0.1, 0.1, 0.1, 0.0)


def logs(*laws: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(laws).log()


def stored(store: Grams, tail: list[int]) -> dict[int, float]:
    ids, p = store.find([tail])
    return {int(i): float(x) for i, x in zip(ids[0], p[0], strict=True) if i >= 0}


def text(tokens: list[int], id: int = 0, seed: int = 0, coupled: bool = False, **sampling: object) -> Text:
    return Text(id, id, tokens, Sampling(**sampling), Noise(seed, coupled))  # type: ignore[arg-type]


def see(drafter: Stand, one: Text, *laws: tuple[float, ...]) -> None:
    """A round without a draft for each law, whose last token is 0."""
    for law in laws:
        one.tokens.append(0)  # type: ignore[attr-defined]
        drafter.observe(one, Draft(torch.zeros(0, dtype=torch.long)), Outcome([], 0, (), 0, Rows(logs(law), {})))


def test_the_merge_of_the_reference() -> None:
    store = Grams(top=3)
    for law, wanted in (
        (P1, {0: 0.5, 1: 0.3, 2: 0.1}),
        (P2, {0: 0.325, 1: 0.22, 4: 0.175}),
        (P3, {1: 0.346667, 0: 0.25, 4: 0.15}),
    ):
        store.learn([[7]], logs(law))
        found = stored(store, [7])
        assert list(found) == list(wanted), "largest first"
        assert found == pytest.approx(wanted, abs=1e-6)
    q = tempered(store.find([[7]])[1], Sampling(temperature=1.0))[0]
    assert q.tolist() == pytest.approx([0.464286, 0.334821, 0.200893], abs=1e-6)


def test_repeats_within_one_pass_merge_in_turn() -> None:
    one, other = Grams(top=3), Grams(top=3)
    one.learn([[7]] * 3, logs(P1, P2, P3))
    for law in (P1, P2, P3):
        other.learn([[7]], logs(law))
    assert stored(one, [7]) == stored(other, [7])


def test_the_gumbel_order_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    drafter, one = Stand(top=3, tree=shapes.shape([(0,), (1,), (2,)]), share="all"), text([7], temperature=1.0)
    drafter._all.learn([[7]] * 3, logs(P1, P2, P3))
    u = {1: 0.3, 0: 0.9, 4: 0.6}
    assert math.log(0.464286) - math.log(-math.log(0.3)) == pytest.approx(-0.952881, abs=1e-5)
    monkeypatch.setattr(Noise, "fresh", lambda *_: torch.tensor([u[1], u[0], u[4]], dtype=torch.float64))
    (draft,) = drafter.propose([Ask(one, 1)])
    assert draft.tokens.tolist() == [0, 4, 1]
    assert draft.parents is not None
    assert draft.parents.tolist() == [-1, -1, -1]
    assert isinstance(draft.probs, Sparse)
    rows = [probs.row(draft.probs, i, 6).tolist() for i in range(3)]
    assert rows[0] == pytest.approx([0.334821, 0.464286, 0, 0, 0.200893, 0], abs=1e-5)
    assert rows[1] == pytest.approx([0, 0.464286 / 0.665179, 0, 0, 0.200893 / 0.665179, 0], abs=1e-5)
    assert rows[2] == pytest.approx([0, 1, 0, 0, 0, 0])


def test_children_are_drawn_from_the_law_they_are_said_to_come_from() -> None:
    """Ordered pairs of 6,000 seeds against q(x) q(y) / (1 - q(x)): chi-square below the 1 - 1e-6 quantile of its 5 degrees of freedom."""
    drafter = Stand(top=3, tree=shapes.shape([(0,), (1,)]), share="all")
    drafter._all.learn([[7]] * 3, logs(P1, P2, P3))
    q, runs = {1: 0.464286, 0: 0.334821, 4: 0.200893}, 6_000
    seen = Counter(tuple(drafter.propose([Ask(text([7], seed=seed, temperature=1.0), 1)])[0].tokens.tolist()) for seed in range(runs))
    expected = {(x, y): runs * q[x] * q[y] / (1 - q[x]) for x in q for y in q if x != y}
    assert set(seen) == set(expected)
    assert sum((seen[pair] - e) ** 2 / e for pair, e in expected.items()) < 35.9


def test_no_noise_is_used_twice() -> None:
    drafter = Stand(top=3, tree=shapes.shape(shapes.by_levels((3, 9, 27), 3)), share="all")
    for token in range(6):
        drafter._all.learn([[token]], logs(P1))
    one = text([0], temperature=1.0)
    first = drafter.propose([Ask(one, 3)])[0].tokens.tolist()
    assert one.noise.used[2, 0] == 3 * (1 + 3 + 9), "top numbers for every node that has children"
    assert any(drafter.propose([Ask(one, 3)])[0].tokens.tolist() != first for _ in range(5))


def test_at_temperature_0_the_likeliest_in_order() -> None:
    drafter = Stand(top=3, tree=shapes.shape([(0,), (1,), (0, 0)]), share="all")
    drafter._all.learn([[7]] * 3, logs(P1, P2, P3))
    drafter._all.learn([[7, 1]], logs(P1))
    (draft,) = drafter.propose([Ask(text([7]), 4)])
    assert (draft.tokens.tolist(), draft.probs) == ([1, 0, 0], None)
    assert draft.parents is not None
    assert draft.parents.tolist() == [-1, -1, 0]


def test_the_longest_run_counts() -> None:
    store = Grams(order=2, top=1)
    store.learn([[1, 7]], logs(P1))
    store.learn([[2, 7]], logs(P3))
    assert list(stored(store, [5, 1, 7])) == [0]
    assert list(stored(store, [5, 2, 7])) == [1]
    assert stored(store, [5, 9, 7]) == pytest.approx({1: 0.3}), "the mean of both: .3 and .35, less what id 1 had before it was held"


def test_what_a_request_cannot_write_is_not_drafted() -> None:
    p = np.array([[0.5, 0.3, 0.1, 0.0]])
    assert tempered(p, Sampling(temperature=1.0, top_k=2))[0].tolist() == pytest.approx([0.625, 0.375, 0, 0], abs=1e-6)
    assert tempered(p, Sampling(temperature=0.5))[0].tolist() == pytest.approx([25 / 35, 9 / 35, 1 / 35, 0])
    assert tempered(p, Sampling(temperature=1e-300))[0].tolist() == [1, 0, 0, 0]
    assert tempered(np.zeros((2, 3)), Sampling(temperature=1.0)).tolist() == [[0, 0, 0]] * 2


def test_it_learns_from_every_row_or_from_the_accepted_ones() -> None:
    rows = Rows(torch.arange(24.0).view(4, 6) % 7, {})
    draft = Draft(torch.tensor([3, 4, 5]), parents=torch.tensor([-1, -1, 1]))
    for refused, known in ((True, {(2,), (3,), (4,), (5,)}), (False, {(2,), (4,), (5,)})):
        drafter, one = Stand(order=2, share="all", refused=refused), text([1, 2, 4, 5, 0])
        drafter.observe(one, draft, Outcome([1, 2], 0, (), 0, rows))
        assert {tail for tail in ((i,) for i in range(6)) if stored(drafter._all, list(tail))} == known
        assert stored(drafter._all, [2, 4]) == stored(drafter._all, [4])
        assert stored(drafter._all, [4, 5])
        assert bool(stored(drafter._all, [2, 3])) == refused


def test_a_text_that_was_cut_is_told_from_one_that_was_not() -> None:
    draft, rows = Draft(torch.tensor([3, 4])), Rows(logs(P1, P2, P3), {})
    for tokens in ([1, 2, 3, 4, 5], [1, 2, 3, 4], [1, 2, 3]):
        drafter = Stand(order=2, share="all")
        drafter.observe(text(tokens), draft, Outcome([0, 1], 5, (), 0, rows))
        assert stored(drafter._all, [1, 2])[0] == pytest.approx(0.5)


def test_requests_of_one_problem_share_a_store_and_others_do_not() -> None:
    drafter = Stand(tree="chain")
    see(drafter, text([1, 2]), P1, P1)
    drafter.free(text([1, 2, 0, 0]))
    assert len(drafter.propose([Ask(text([1, 2], id=1), 2)])[0].tokens)
    assert not len(drafter.propose([Ask(text([2, 2], id=2), 2)])[0].tokens)
    source = text([1, 2], id=3)._replace(source=torch.tensor([5, 6]))
    assert not len(drafter.propose([Ask(source, 2)])[0].tokens), "the same beginning, but another source"
    alone = Stand(tree="chain", share="request")
    see(alone, text([1, 2]), P1, P1)
    assert not len(alone.propose([Ask(text([1, 2], id=1), 2)])[0].tokens)


def test_old_problems_are_forgotten() -> None:
    drafter = Stand(tree="chain", problems=2)
    for id in range(3):
        see(drafter, text([id, 2], id=id), P1)
        drafter.free(text([id, 2, 0], id=id))
    assert len(drafter._stores) == 2
    assert not len(drafter.propose([Ask(text([0, 2], id=7), 2)])[0].tokens)


def test_memory_is_bounded_and_the_latest_runs_stay() -> None:
    store = Grams(order=2, top=3, size=100)
    for token in range(1000):
        store.learn([[token, token + 1]], logs(P1))
        assert len(store) <= 100
    assert stored(store, [999, 1000])
    assert stored(store, [975])
    assert not stored(store, [500])
    assert store.nbytes < 100 * 300


def test_a_run_that_is_seen_again_moves_to_the_young() -> None:
    store = Grams(order=1, top=3, size=20)
    for token in range(1000, 1200):
        store.learn([[7], [token]], logs(P1, P2))
    assert stored(store, [7])[0] == pytest.approx(0.5)
    assert store.young.repeats[store.young.index[7 | 1 << 21]] == 200


def test_saved_and_loaded_it_drafts_the_same(tmp_path: Path) -> None:
    file = tmp_path / "store.npz"
    first = Stand(tree="chain", store=str(file), model="a")
    see(first, text([1, 2]), P1, P2, P3)
    drafted = first.propose([Ask(text([1, 2], id=1), 4)])[0].tokens.tolist()
    assert drafted
    first.free(text([1, 2, 0, 0, 0]))
    again = Stand(tree="chain", store=str(file), model="a")
    assert again.propose([Ask(text([1, 2]), 4)])[0].tokens.tolist() == drafted
    assert len(again._all) == len(first._all)


def test_a_small_store_takes_the_latest_of_a_file(tmp_path: Path) -> None:
    big, small = Grams(order=1, top=3), Grams(order=1, top=3, size=10)
    for token in range(100):
        big.learn([[token]], logs(P1))
    big.save(tmp_path / "s", "m")
    small.load(tmp_path / "s", "m")
    assert len(small) == 10
    assert stored(small, [99])
    assert not stored(small, [89])


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "s"
    Grams().save(file, "a model of 8 tokens")
    with pytest.raises(ValueError, match="rows of another model .a model of 8 tokens., and this one is b"):
        Grams().load(file, "b")
    with pytest.raises(ValueError, match="order=4 and top=10"):
        Grams(order=3).load(file, "a model of 8 tokens")
    whole = file.read_bytes()
    for torn in (whole[: len(whole) // 2], b"", b"something else"):
        file.write_bytes(torn)
        with pytest.raises(ValueError, match="no store of n-grams"):
            Stand(store=str(file), model="b")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, store = tmp_path / "s", Grams()
    store.save(file, "a")
    before = file.read_bytes()
    store.learn([[1]], logs(P1))

    def torn(out: object, **_: object) -> None:
        out.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(np, "savez", torn)
    with pytest.raises(OSError, match="space"):
        store.save(file, "a")
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize(
    "options", [{"order": 0}, {"top": 0}, {"size": 1}, {"share": "some"}, {"nodes": -1}, {"problems": 0}, {"tree": "missing.json"}]
)
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be|no tree file"):
        Stand(**options)  # type: ignore[arg-type]
