"""No draft at all."""

from draftwise.methods.none import NoDraft
from draftwise.noise import Noise
from draftwise.protocols import Ask
from draftwise.types import Sampling, Text


def test_every_draft_is_empty() -> None:
    text = Text(0, 0, [1, 2, 3], Sampling(), Noise(0))
    drafts = NoDraft().propose([Ask(text, 5), Ask(text, 0)])
    assert [(len(d.tokens), d.probs, d.logits, d.steps) for d in drafts] == [(0, None, None, ())] * 2
    assert NoDraft().lag(text) == 0
