"""Captions, and the media themselves, as the `Condition` that a tokenizer reads beside them.

    text      the captions as they are
    features  the vectors that a frozen text model gives for them; which one `text_settings` of the tokenizer names
    medium    the first frame of each clip

Shapes: B batch, C channels, M text vectors, D their width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from hashlib import sha256

import torch
from torch import Tensor, nn

from unimodal.tokenizers.interface import Condition, LatentTokenizer, MediaTokenizer
from unimodal.tokenizers.text_settings import WORDS, TextSettings

#: B texts → a condition of features, [B, M, D], on a device
TextFeatures = Callable[[Sequence[str], torch.device], Condition]


class ConditionMaker:
    """Makes what `tokenizer` reads. Raises ValueError for one whose features come from no text model that is known."""

    def __init__(self, tokenizer: MediaTokenizer | LatentTokenizer) -> None:
        self.family = tokenizer.config.family
        self.encode_kinds, self.decode_kinds = tokenizer.encode_conditions, tokenizer.decode_conditions
        self.kinds, self.optional = self.encode_kinds | self.decode_kinds, tokenizer.optional_conditions
        self.read_features: TextFeatures | None = None
        if "features" in self.kinds and (tokenizer.text_settings is not None or "features" not in self.optional):
            self.read_features = load_text_features(tokenizer.text_settings, self.family)

    @property
    def reads_text(self) -> bool:
        """Whether it takes a caption for each item: its text, or features of a text."""
        return "text" in self.kinds or self.read_features is not None

    def make(self, x: Tensor, captions: Sequence[str] | None) -> Condition | None:
        """All that either side reads of media x [B, C, …] and their captions. ValueError for captions that lack."""
        if not self.kinds:
            return None
        if captions is None and not self.kinds - self.optional:
            return None
        if self.reads_text and (captions is None or not all(captions)):
            raise ValueError(f"{self.family} reads a caption of every item; give data with texts")
        made = Condition() if captions is None else self.make_of_texts(captions, x.device)
        if "medium" not in self.kinds - self.optional:
            return made
        if x.dim() != 5:
            raise ValueError(f"{self.family} reads a frame beside the medium; give clips")
        return replace(made, medium=x[:, :, 0])

    def make_of_texts(self, captions: Sequence[str], device: torch.device) -> Condition:
        """What either side reads of captions."""
        made = Condition() if self.read_features is None else self.read_features(captions, device)
        return replace(made, text=tuple(captions)) if "text" in self.kinds else made

    def choose(self, condition: Condition | None, kinds: Collection[str]) -> Condition | None:
        """The part of a condition that one side reads; None for nothing."""
        if condition is None or not set(condition.kinds) & set(kinds):
            return None
        features = condition.features if "features" in kinds else None
        return Condition(
            condition.text if "text" in kinds else None,
            features,
            None if features is None else condition.features_mask,
            condition.medium if "medium" in kinds else None,
        )


def load_text_features(settings: TextSettings | None, family: str) -> TextFeatures:
    """The text model of a tokenizer's settings. Raises ValueError where none is named, or another width."""
    if settings is None:
        raise ValueError(f"{family} reads features and names no text model; make the condition yourself")
    if settings.network is None:
        raise ValueError(
            f"{family} reads texts through a text model, but its settings name none; set text_network to the model's "
            f"folder, or to {WORDS} for a trial without one"
        )
    if settings.network == WORDS:
        return WordFeatures(settings)
    return NetworkFeatures(settings.network, settings)


class WordFeatures:
    """A fixed normal vector for each word, by its hash: no model, no grammar, and enough to tell captions apart."""

    def __init__(self, settings: TextSettings) -> None:
        self.settings = settings

    def __call__(self, texts: Sequence[str], device: torch.device) -> Condition:
        features = torch.zeros(len(texts), self.settings.length, self.settings.width)
        mask = torch.zeros(len(texts), self.settings.length, dtype=torch.bool)
        for row, text in enumerate(texts):
            for place, word in enumerate(text.lower().split()[: self.settings.length]):
                seed = int.from_bytes(sha256(word.encode()).digest()[:7])
                vector = torch.randn(self.settings.width, generator=torch.Generator().manual_seed(seed))
                features[row, place], mask[row, place] = vector, True
        return Condition(features=features.to(device), features_mask=mask.to(device))


class NetworkFeatures:
    """The last vectors of a frozen text model of transformers: CLIP's text tower with all its places, as TA-TiTok reads
    it; of any other encoder (T5, BERT, …) those of the tokens."""

    def __init__(self, source: str, settings: TextSettings) -> None:
        """Raises ValueError for a folder without such a model, and for one of another width or fewer places."""
        from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModel, T5EncoderModel

        try:
            kind = AutoConfig.from_pretrained(source, local_files_only=True).model_type
            classes = {"clip": CLIPTextModel, "clip_text_model": CLIPTextModel, "t5": T5EncoderModel}
            loaded = classes.get(kind, AutoModel).from_pretrained(source, local_files_only=True, dtype=torch.float32)
            self.text = AutoTokenizer.from_pretrained(source, local_files_only=True)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"the text model {source} cannot be loaded ({reason}); set text_network to its folder, or to {WORDS}"
            ) from None
        if self.text.pad_token is None:
            self.text.pad_token = self.text.eos_token
        self.network: nn.Module = loaded.eval().requires_grad_(False)
        self.settings, self.padded = settings, kind.startswith("clip")
        width = int(loaded.config.hidden_size)
        if width != settings.width:
            raise ValueError(
                f"{source} gives vectors of width {width}, and the tokenizer reads text of {settings.width}"
            )
        places = loaded.config.to_dict().get("max_position_embeddings")  # T5 has positions without a last one
        if isinstance(places, int) and places < settings.length:
            raise ValueError(
                f"{source} has {places} positions, and the tokenizer reads text of length {settings.length}; name "
                "another text_network, or set tokenizer.text.length"
            )

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], device: torch.device) -> Condition:
        rows = self.text(
            list(texts), padding="max_length", truncation=True, max_length=self.settings.length, return_tensors="pt"
        )
        ids, mask = rows["input_ids"].to(device), rows["attention_mask"].to(device)
        found = self.network.to(device)(input_ids=ids, attention_mask=mask).last_hidden_state
        return Condition(features=found, features_mask=None if self.padded else mask.bool())
