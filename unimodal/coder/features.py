"""Media that a model reads through continuous features: rendered prompts → ids that stand for what was seen.

A template writes a reserved row as often as a medium has features (`FeatureSpan` of the vocabulary). Before the prompt
is read, the reader of the model's folder (`image_reader/`) looks at the medium, and the ids of its features
(`model/feature_rows.py`) replace that row. Models without such media do not use this file.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from unimodal.coder.media_coder import MediaCoder
from unimodal.model.feature_rows import Features, attach_feature_rows
from unimodal.sequence.document import MEDIA_PARTS, Media
from unimodal.sequence.templates.own import Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REMEMBERED = 32  # media; those of a prompt live on as long as the prompt does


class FeaturePrompt(list[int]):
    """The ids of a prompt, some of which stand for features; it keeps these features alive."""

    features: tuple[Features, ...] = ()


class FeatureMemory:
    """The features of the media that were read last, by content: in a chat, all media come again with every turn.

    later: look at a medium only when the decoder is fed its features, each time anew, and forget none; for training on
    a corpus whose features would not fit in memory.
    """

    def __init__(self, decoder: PreTrainedModel, coder: MediaCoder, later: bool = False) -> None:
        self.rows, self.coder, self.later = attach_feature_rows(decoder), coder, later
        self._latest: OrderedDict[bytes, Features] = OrderedDict()
        self._lock = threading.Lock()

    def fill_prompt(self, rendered: Rendered) -> list[int]:
        """The ids [N] of a rendered document, with the features of the media that it reads in their places."""
        ids = FeaturePrompt(rendered.ids.tolist())
        if rendered.read:
            ids.features = tuple(self.find_features(part) for part in rendered.read)
            layouts = self.coder.vocabulary.layouts
            placeholders = {layout.features.row for layout in layouts if layout.features is not None}
            places = [place for place, row in enumerate(ids) if row in placeholders]
            rows = [row for kept in ids.features for row in kept.ids]
            for place, row in zip(places, rows, strict=True):
                ids[place] = row
        return ids

    def fill_rendered(self, rendered: Rendered) -> Rendered:
        """A rendered document with the features in their places."""
        return Rendered(np.array(self.fill_prompt(rendered), dtype=np.int64), rendered.labels, rendered.modality)

    def find_features(self, part: Media) -> Features:
        """The features of a medium: a file is read; codes that the model wrote are decoded first.

        Raises ValueError for a file that cannot be used.
        """
        span = self.coder.vocabulary.get_layout(part.modality).features
        assert span is not None
        if part.codes is not None:
            kind, content = "codes", part.codes.tobytes()
        elif self.later and part.path is not None:
            kind, content = "path", part.path.encode()
        else:
            kind, content = "data", self.coder.read_content(part)
            part = MEDIA_PARTS[part.modality](data=content)
        key = hashlib.sha256(f"{part.modality} {kind} ".encode() + content).digest()
        with self._lock:
            found = self._latest.get(key)
        if found is None and self.later:
            found = self.rows.add_later(lambda: self.coder.look(part), span.count)
        elif found is None:
            found = self.rows.add(self.coder.look(part))
        with self._lock:
            self._latest[key] = found
            self._latest.move_to_end(key)
            while len(self._latest) > REMEMBERED and not self.later:
                self._latest.popitem(last=False)
        return found
