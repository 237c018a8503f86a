"""Media that a model reads through continuous features: rendered prompts → ids that stand for what was seen.

A template writes a reserved row as often as a medium has features (`FeatureSpan` of the vocabulary). Before a prompt is
read, the reader of the model's folder (`image_reader/`) looks at the medium, and the ids of its features
(`model/feature_rows.py`) take the places of that row. A model without such media never comes here.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import Any

from unimodal.model.feature_rows import Features, attach_feature_rows
from unimodal.pipeline_media import MediaCoder
from unimodal.sequence.document import MEDIA_PARTS, Media
from unimodal.sequence.template import Rendered

REMEMBERED = 32  # media; those of a prompt are kept beyond that, as long as the prompt is


class Prompt(list[int]):
    """Ids, some of which stand for features, and these."""

    features: tuple[Features, ...] = ()


class FeatureMemory:
    """The features of the media that were read last, by what they hold: in a chat all of them come again each turn."""

    def __init__(self, decoder: Any, coder: MediaCoder) -> None:
        self.rows, self.coder = attach_feature_rows(decoder), coder
        self._latest: OrderedDict[bytes, Features] = OrderedDict()
        self._lock = threading.Lock()

    def prompt(self, rendered: Rendered) -> list[int]:
        """The ids [N] of a rendered document, with the features of the media that it reads in their places."""
        ids = Prompt(rendered.ids.tolist())
        if rendered.read:
            ids.features = tuple(self.features(part) for part in rendered.read)
            layouts = self.coder.vocabulary.layouts
            placeholders = {layout.features.row for layout in layouts if layout.features is not None}
            places = [place for place, row in enumerate(ids) if row in placeholders]
            rows = [row for kept in ids.features for row in kept.ids]
            for place, row in zip(places, rows, strict=True):
                ids[place] = row
        return ids

    def features(self, part: Media) -> Features:
        """What the model sees of a medium; a file is read, and codes that the model wrote are decoded."""
        if part.codes is None:
            part = MEDIA_PARTS[part.modality](data=self.coder.content(part))
        content = part.data or part.codes.tobytes()
        key = hashlib.sha256(f"{part.modality} {part.codes is None} ".encode() + content).digest()
        with self._lock:
            found = self._latest.get(key)
        found = found or self.rows.add(self.coder.look(part))
        with self._lock:
            self._latest[key] = found
            self._latest.move_to_end(key)
            while len(self._latest) > REMEMBERED:
                self._latest.popitem(last=False)
        return found
