"""Encoder-decoder models of transformers (T5, BART, Marian, NLLB, Whisper and their kind) as a `Backend` over the decoder's text.

The first feed of an empty slot brings the encoder's input, ``Feed.source``. The encoder reads it once; its output and the cross-attention's keys
and values stay as they are until the slot is empty again, while `keep` cuts the self-attention's cache. A slot that was cut to 0 entries is
empty: the next feed brings the source again, and may bring another one.

Every feed gets a decoder pass of its own: these decoders count positions from one cache's length and add biases by distance, which leaves no
place for several texts in one packed row. So a batch saves no time here. Trees are refused for the same reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from draftwise.backends.feeds import check
from draftwise.backends.hf import CACHES, cache_name, longest, nothing, vocabulary
from draftwise.trees import is_chain
from draftwise.types import Feed, Rows

_PROBE = 7  # tokens of the test text
_IDS = "input_ids"


@dataclass(slots=True)
class _Slot:
    """`encoded`: what the encoder returned, states [1, S, H] first. `cache`: of the decoder, both attentions. `length`: entries of its
    self-attention."""

    encoded: Any
    cache: EncoderDecoderCache
    length: int = 0


class HFSeq2Seq:
    """`model` is a loaded encoder-decoder model with a language-model head (set to eval mode here). A source is int64 [S] for a model that
    reads text (`reads` is then 'input_ids'), else the features of one input without batch dimension, [mels, frames] for Whisper. `max_length` and
    `vocab_size` are the decoder's, `source_vocab` and `source_length` (ids at most) the encoder's; `shared`: both have one vocabulary.

    `taps` as in `HF`, of the decoder. A few short decoder passes find out whether a text can be read in parts. Raises ValueError if it cannot."""

    trees = False

    def __init__(self, model: Any, *, taps: tuple[int, ...] = ()) -> None:
        if not getattr(model.config, "is_encoder_decoder", False) or model.get_output_embeddings() is None:
            raise ValueError(f"{type(model).__name__} cannot be run here: it must be an encoder-decoder model with a language-model head")
        self.model = model.eval()
        self.taps = taps
        self.vocab_size = vocabulary(model)
        self._name = cache_name(model) or CACHES[0]
        limits = (getattr(model.config, name, None) for name in ("max_target_positions", "max_decoder_position_embeddings"))
        self.max_length = min(longest(model), *(limit or 2**31 for limit in limits))
        self._encoder = model.get_encoder()
        self.reads: str = getattr(self._encoder, "main_input_name", _IDS)
        embedding = getattr(self._encoder, "get_input_embeddings", model.get_input_embeddings)
        self.source_vocab = embedding().num_embeddings if self.reads == _IDS else 0
        self.source_length = _longest_source(model.config)
        self.shared = self.source_vocab == self.vocab_size and getattr(model.config, "share_encoder_decoder_embeddings", True)
        self._slots: dict[int, _Slot] = {}
        self._alone: int | None = None  # a token after which a pass must end
        self._probe()

    @property
    def device(self) -> torch.device:
        """Where tokens go in and logits come out."""
        device: torch.device = self.model.get_output_embeddings().weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, and of the logits."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    def refusal(self, source: Tensor | None) -> str:
        """Why this encoder cannot read `source`; '' if it can."""
        if source is None:
            return f"{type(self.model).__name__} is an encoder-decoder model and needs an encoder input (source), which was not given"
        if self.reads != _IDS:
            return self._refused_features(source)
        if source.dim() != 1 or source.is_floating_point():
            return f"an encoder input is one row of token ids, got {source.dtype} of shape {list(source.shape)}".replace("torch.", "")
        if not len(source):
            return "the encoder input is empty: at least one token is needed"
        if len(source) > self.source_length:
            return f"the encoder input has {len(source)} tokens and the model's encoder reads {self.source_length} at most"
        if not 0 <= int(source.min()) <= int(source.max()) < self.source_vocab:
            return f"the encoder input has token ids outside the encoder's vocabulary of {self.source_vocab}"
        return ""

    def length(self, slot: int) -> int:
        """Entries of the slot's self-attention cache."""
        return self._slots[slot].length if slot in self._slots else 0

    @torch.no_grad()
    def forward(self, feeds: Sequence[Feed]) -> list[Rows]:
        """One decoder pass for each feed, after an encoder pass where its slot is empty. Raises ValueError for feeds that cannot be read; the
        caches are then unchanged. What else goes wrong in a pass leaves its slot empty."""
        check(feeds, self)
        for feed in feeds:
            if feed.parents is not None and not is_chain(feed.parents):
                raise ValueError(f"{type(self.model).__name__} counts positions by itself and cannot read a tree of drafts, only a chain")
            if len(feed.tokens) and not self.length(feed.slot) and (reason := self.refusal(feed.source)):
                raise ValueError(f"slot {feed.slot}: {reason}")
        return [self._read(feed) for feed in feeds]

    def keep(self, slot: int, length: int, path: Sequence[int] = ()) -> int:
        """Cuts the slot to the chain ``length + path``. Nothing kept is an empty slot: its source is forgotten too."""
        text = self._slots.get(slot)
        if text is None:
            return 0
        wanted = min(max(length, 0), text.length)
        for i in path:
            wanted += i == wanted < text.length
        if not wanted:
            self.free(slot)
            return 0
        text.cache.crop(wanted - text.length)
        text.length = wanted
        return wanted

    def free(self, slot: int) -> None:
        """Empties the slot."""
        self._slots.pop(slot, None)

    def _read(self, feed: Feed) -> Rows:
        n = len(feed.tokens)
        if not n:
            return Rows(torch.zeros(0, self.vocab_size, dtype=self.dtype, device=self.device), nothing(self))
        tokens = feed.tokens.to(self.device)
        try:
            if feed.slot not in self._slots:
                self._slots[feed.slot] = _Slot(self._encode(feed.source), _empty())
            text = self._slots[feed.slot]
            parts = [self._pass(text, tokens[a:b], max(0, min(b - a, feed.want - n + b))) for a, b in pairwise(self._cuts(feed.tokens))]
        except BaseException:  # half of the layers may have read a token
            self.free(feed.slot)
            raise
        return Rows(torch.cat([part.logits for part in parts]), {tap: torch.cat([part.hidden[tap] for part in parts]) for tap in self.taps})

    def _encode(self, source: Tensor | None) -> Any:
        """What the encoder returns for one input."""
        assert source is not None  # `forward` has refused it
        given = source.to(self.device, torch.long if self.reads == _IDS else self.dtype)
        return self._encoder(**{self.reads: given[None]}, return_dict=True)

    def _cuts(self, tokens: Tensor) -> list[int]:
        """Where the passes over `tokens` begin and end: one, except after a token that changes the positions of what follows in its pass."""
        ends = [] if self._alone is None else [i + 1 for i, token in enumerate(tokens[:-1].tolist()) if token == self._alone]
        return [0, *ends, len(tokens)]

    def _pass(self, text: _Slot, tokens: Tensor, want: int) -> Rows:
        """Reads `tokens` [n > 0]; logits of the last `want`."""
        out = self.model(
            encoder_outputs=text.encoded,
            decoder_input_ids=tokens[None],
            use_cache=True,
            output_hidden_states=bool(self.taps),
            return_dict=True,
            **{self._name: text.cache},
        )
        text.length += len(tokens)
        if text.cache.get_seq_length() != text.length:
            raise ValueError(f"{type(self.model).__name__} cannot be run here: it does not keep its decoder's state in the cache it is given")
        return Rows(out.logits[0, len(tokens) - want :], {tap: out.decoder_hidden_states[tap][0] for tap in self.taps})

    @torch.no_grad()
    def _probe(self) -> None:
        """Reads a text at once, in parts and token by token, after a source of a few ids or after made-up encoder states. Some decoders do not
        count padding tokens within a pass: one that comes up in an answer must then end its pass, so that positions are those of decoding token
        by token."""
        encoded = self._made_up() if self.reads != _IDS else self._encode(torch.arange(5, 9) % self.source_vocab)

        def read(tokens: Tensor, cuts: Sequence[int]) -> Tensor:
            text = _Slot(encoded, _empty())
            return torch.cat([self._pass(text, tokens[a:b], b - a).logits for a, b in pairwise(cuts)]).float()

        pad = getattr(self.model.config.get_text_config(decoder=True), "pad_token_id", None)
        tokens = torch.arange(1, _PROBE + 1, device=self.device) * 7919 % self.vocab_size
        tokens = torch.where(tokens == pad, (tokens + 1) % self.vocab_size, tokens) if pad is not None else tokens
        ones = range(_PROBE + 1)
        whole, single = read(tokens, [0, _PROBE]), read(tokens, ones)
        noise, scale = float((whole - single).abs().max()), float(whole.std())
        allowed = 4 * noise + max(1e-4, 8 * torch.finfo(self.dtype).eps) * scale
        if not (noise <= 0.5 * scale and float((whole - read(tokens, [0, 3, _PROBE])).abs().max()) <= allowed):
            raise ValueError(f"{type(self.model).__name__} cannot be run here: read in parts, a text gives other logits than read at once")
        if pad is not None and 0 <= pad < self.vocab_size:
            tokens = torch.where(torch.arange(_PROBE, device=self.device) == 2, pad, tokens)
            if not float((read(tokens, [0, _PROBE]) - read(tokens, ones)).abs().max()) <= allowed:
                self._alone = pad

    def _made_up(self) -> BaseModelOutput:
        """Encoder states of no input: what features an encoder takes is not known here."""
        width = self._encoder.config.hidden_size
        states = torch.sin(torch.arange(4 * width, device=self.device).float()).view(1, 4, width)
        found = BaseModelOutput(last_hidden_state=states.to(self.dtype))
        found.attention_mask = None  # Moonshine's encoder returns one
        return found

    def _refused_features(self, source: Tensor) -> str:
        if not source.is_floating_point():
            return f"{type(self.model).__name__} reads {self.reads}, not token ids: give what its processor makes of one input"
        mels, frames = getattr(self.model.config, "num_mel_bins", None), _frames(self.model.config)
        if frames and mels and list(source.shape) != [mels, frames]:
            return f"{type(self.model).__name__} reads {self.reads} of shape {[mels, frames]}, got {list(source.shape)}"
        return ""


def auto_class(config: Any) -> Any:
    """The class of transformers that loads a language model of this configuration."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING as speech

    if not getattr(config, "is_encoder_decoder", False):
        return transformers.AutoModelForCausalLM
    return transformers.AutoModelForSpeechSeq2Seq if type(config) in speech else transformers.AutoModelForSeq2SeqLM


def _empty() -> EncoderDecoderCache:
    """Layers are made as they come: configurations name the number of the encoder's, or of neither."""
    return EncoderDecoderCache(DynamicCache(), DynamicCache())


def _longest_source(config: Any) -> int:
    """Ids that the encoder has positions for; without bound (2**31) where the configuration names none."""
    own = getattr(config, "encoder", config)
    names = ("max_encoder_position_embeddings", "max_source_positions", "max_position_embeddings")
    return int(next((found for name in names if (found := getattr(own, name, None))), 2**31))


def _frames(config: Any) -> int:
    """Frames that Whisper's encoder insists on: two for each of its positions. 0 for encoders that take any number."""
    return 2 * int(config.max_source_positions) if getattr(config, "model_type", "") == "whisper" else 0
