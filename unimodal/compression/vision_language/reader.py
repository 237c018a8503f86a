"""The reader of a stock vision-language model: it notes what the whole model is given for the call of its decoder.

The model around a decoder puts features in the places of placeholder ids and gives the decoder embeddings, so that the
ids, the grids of the media and the blocks that see each other are known to it alone. While contexts are open its
`forward` is replaced by one that notes them.

Shapes: B rows, N tokens of a call, A axes of a position.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from unimodal.compression.running.checks import check_cache
from unimodal.compression.running.reading import CallInput, number_blocks
from unimodal.compression.running.scope import is_compressing
from unimodal.compression.running.spans import LocatedSpan, TurnState
from unimodal.compression.vision_language.spans import Frames, find_media, list_frames

#: models whose way from pictures to the decoder is known; each is tested against its own forward
KNOWN = (
    "Qwen2VLModel", "Qwen2_5_VLModel", "LlavaModel", "LlavaOnevisionModel", "InternVLModel", "Gemma3Model",
)  # fmt: skip
MADE_BY_US = "compression"  # the key of a mask that the model must not make


@dataclass(frozen=True, eq=False)
class _Noted:
    """A call of the model around a decoder. sizes: of the media of the call, by medium."""

    ids: Tensor
    mask: Tensor | None
    blocks: Tensor | None
    sizes: Mapping[str, list[Frames]]


_CALL: ContextVar[_Noted | None] = ContextVar("unimodal_vision_language_call", default=None)


class VisionLanguageReader:
    """The reader of a model of transformers with a `language_model`.

    Raises ValueError for a model that is not among `KNOWN`, and for a config without an id for pictures.
    """

    has_axes: ClassVar[bool] = True

    def __init__(self, outer: nn.Module) -> None:
        name = type(outer).__name__
        if name not in KNOWN:
            raise ValueError(f"how {name} gives pictures to its decoder is not known; known are {', '.join(KNOWN)}")
        self.outer, self.backbone = outer, find_language_model(outer)
        config: PretrainedConfig = outer.config
        settings = config.to_dict()
        picture = settings.get("image_token_id", settings.get("image_token_index"))
        if picture is None:
            raise ValueError(f"the config of {name} has no image_token_id, by which pictures are found")
        clip = settings.get("video_token_id", settings.get("video_token_index"))
        self.kinds: dict[int, str] = {picture: "image"} | ({} if clip is None else {clip: "video"})
        vision = settings.get("vision_config") or {}
        self.merge = int(vision.get("spatial_merge_size", 1))
        fixed = settings.get("mm_tokens_per_image", settings.get("image_seq_length"))
        self.fixed: int | None = None if name == "LlavaOnevisionModel" else fixed  # its pictures have crops
        self._names = list(inspect.signature(type(outer).forward).parameters)[1:]

    # ---- the model around the decoder

    def install(self) -> None:
        self.outer.forward = self.forward

    def remove(self) -> None:
        del self.outer.forward

    def forward(self, *args: object, **settings: object) -> object:
        """The forward of the model around the decoder, which notes what it is given where contexts are open.

        Raises ValueError for a call without ids, and with a mask that is not 2-d.
        """
        outer = self.outer
        if not is_compressing(self.backbone):
            return type(outer).forward(outer, *args, **settings)
        settings = {**dict(zip(self._names, args, strict=False)), **settings}
        token = _CALL.set(self._note(settings))
        try:
            return type(outer).forward(outer, **settings)
        finally:
            _CALL.reset(token)

    def _note(self, settings: dict[str, object]) -> _Noted:
        ids, mask = settings.get("input_ids"), settings.get("attention_mask")
        if not isinstance(ids, Tensor):
            raise ValueError("compression finds pictures by their ids; call the model with input_ids")
        check_cache(settings.get("cache", settings.get("past_key_values")))
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
            raise ValueError("compression makes the masks itself; give a 2-d attention_mask, or none")
        blocks = None
        if "token_type_ids" in self._names:  # Gemma 3: the tokens of a picture see each other
            types = settings.get("token_type_ids")
            blocks = number_blocks(types[:, -ids.shape[1] :]) if isinstance(types, Tensor) else None
            settings["attention_mask"] = {MADE_BY_US: mask}
        return _Noted(ids, mask, blocks, self._list_sizes(settings))

    def _list_sizes(self, settings: Mapping[str, object]) -> dict[str, list[Frames]]:
        sizes: dict[str, list[Frames]] = {}
        for medium in ("image", "video"):
            grids = settings.get(f"{medium}_grid_thw")
            sizes[medium] = list_frames(grids, self.merge) if isinstance(grids, Tensor) else []
        return sizes

    # ---- for the executor

    def complete(self, given: CallInput) -> CallInput:
        noted = _CALL.get()
        if given.ids is None and noted is None:
            raise ValueError("compression finds pictures by their ids; call the whole model, not its language_model")
        if given.ids is None and noted is not None:
            given = replace(given, ids=noted.ids, mask=noted.mask, blocks=noted.blocks)
        position_ids = given.position_ids
        if position_ids is None or position_ids.ndim < 3:
            return given
        return replace(given, position_ids=None, axes=position_ids[-3:])  # the first of four is that of text

    def find_spans(self, ids: Tensor, valid: Tensor, before: TurnState | None) -> tuple[list[LocatedSpan], TurnState]:
        noted = _CALL.get()
        return find_media(ids, valid, self.kinds, {} if noted is None else noted.sizes, self.fixed, before)

    def find_words(self, ids: Tensor) -> Tensor:
        return ~torch.isin(ids, torch.tensor(list(self.kinds), device=ids.device))


def find_language_model(outer: nn.Module) -> nn.Module:
    return dict(outer.named_children())["language_model"]


def find_reader(model: object) -> VisionLanguageReader | None:
    """The reader of a vision-language model of transformers; None for anything else.

    Raises ValueError as `VisionLanguageReader` does.
    """
    if not isinstance(model, nn.Module):
        return None
    outer = next((module for module in model.modules() if "language_model" in dict(module.named_children())), None)
    return None if outer is None else VisionLanguageReader(outer)
