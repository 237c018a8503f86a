"""An exported folder inside transformers: its `AutoProcessor`. The folder's class inherits this one.

    processor = AutoProcessor.from_pretrained(DIR, trust_remote_code=True)
    chat = [{"role": "user", "content": [{"type": "image", "path": "apple.png"}, {"type": "text", "text": "What?"}]}]
    inputs = processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=True)

A chat is rendered by `Template` and not as a string, so nothing in a message's text becomes a control or media token.
Media are files, bytes, PIL pictures or arrays; an address on the network is refused: fetch it first.

Shapes: B rows, N tokens, T samples or frames, H and W height and width.
"""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin

from unimodal.coder.media_coder import MediaCoder
from unimodal.hub_classes.generation import folder_of
from unimodal.media.audio import save_audio
from unimodal.media.limits import DEFAULT_LIMITS
from unimodal.media.registry import MEDIA, join_names
from unimodal.model_folder.layout import VOCABULARY_FILE
from unimodal.model_folder.settings import read_processor
from unimodal.sequence.document import MEDIA_PARTS, Document, Media, Part, Text, Turn
from unimodal.sequence.templates.own import Template
from unimodal.text.tokenizer import TextTokenizer
from unimodal.vocabulary import read_vocabulary


class MultimodalProcessor(ProcessorMixin):
    """Chats with media → `input_ids` and `attention_mask` [B, N]; generated ids → words, pictures, sounds, clips."""

    def __init__(self, tokenizer: Any = None, chat_template: str | None = None) -> None:
        super().__init__(tokenizer, chat_template=chat_template)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> MultimodalProcessor:
        folder = folder_of(str(pretrained_model_name_or_path), options)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        processor = cls(tokenizer, chat_template=tokenizer.chat_template)
        vocabulary = read_vocabulary(folder / VOCABULARY_FILE)
        processor.template = Template(vocabulary, TextTokenizer.load(folder))
        processor.coder = MediaCoder(folder, vocabulary, read_processor(folder))
        return processor

    def save_pretrained(self, save_directory: Any, **options: Any) -> list[str]:
        raise ValueError("copy the model's folder: a processor is its tokenizers and their hashes")

    # ---- to ids

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        return_tensors: str | None = "pt",
        sampling_rate: int | None = None,
        **ignored: Any,
    ) -> BatchFeature:
        """One user's turn for every text: its media, then the words; media without words get the trained question.

        With several texts each of `images`, `videos`, `audio` is a list as long. A text is plain words whatever it
        spells; for a chat use `apply_chat_template(..., tokenize=True)`.
        """
        batched = text is not None and not isinstance(text, str)
        texts = list(text) if batched and text is not None else [text]
        given = {"image": images, "video": videos, "audio": audio}
        columns = {name: _column(name, media, len(texts), batched) for name, media in given.items()}
        rows = []
        for index, words in enumerate(texts):
            parts: list[Part] = [
                self._part(name, medium, sampling_rate) for name in columns for medium in columns[name][index]
            ]
            if words:
                parts.append(Text(str(words)))
            elif parts:
                parts.append(Text(self.coder.processor.wording.ask(parts[-1].modality)))  # type: ignore[union-attr]
            else:
                raise ValueError("there is nothing to read; give text, images, audio or videos")
            rows.append(self._ids(Document([Turn("user", parts)])))
        return self._batch(rows, return_tensors)

    def apply_chat_template(
        self,
        conversation: Any,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = "pt",
        sampling_rate: int | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """The ids of one chat, or of several, with every medium encoded.

        A medium is a part such as {"type": "image", "path": F}; instead of `path` it may have `base64`, or under its
        own type's name bytes, a PIL picture or an array ([H, W, 3] or [T]). tokenize=False only shows the prompt, with
        spans empty: given back as text it is plain words.
        """
        batched = not isinstance(conversation[0], Mapping)
        chats = conversation if batched else [conversation]
        if not tokenize:
            shown = [self.tokenizer.apply_chat_template(c, None, tokenize=False, **options) for c in chats]
            return shown if batched else shown[0]
        rate = (processor_kwargs or {}).get("sampling_rate", sampling_rate)
        documents = [Document([self._turn(message, rate) for message in chat]) for chat in chats]
        rows = [self._ids(document, add_generation_prompt, continue_final_message) for document in documents]
        batch = self._batch(rows, return_tensors)
        return batch if return_dict else batch["input_ids"]

    def _turn(self, message: Mapping[str, Any], sampling_rate: int | None) -> Turn:
        content = message.get("content")
        if isinstance(content, str):
            return Turn(str(message.get("role")), content)
        parts: list[Part] = []
        for part in content or ():
            kind = str(part.get("type")).removesuffix("_url")
            if kind == "text":
                parts.append(Text(str(part["text"])))
            elif kind in MEDIA_PARTS:
                parts.append(self._part(kind, _source(part), part.get("sampling_rate", sampling_rate)))
            else:
                raise ValueError(f"part type {part.get('type')!r} is unknown; use {join_names(('text', *MEDIA))}")
        return Turn(str(message.get("role")), parts)

    def _part(self, modality: str, medium: Any, sampling_rate: int | None) -> Part:
        self.coder.vocabulary.layout(modality)
        made = _media_part(modality, medium, sampling_rate, self.coder)
        return self.coder.encode_part(made)

    def _ids(self, document: Document, prompt: bool = True, continued: bool = False) -> list[int]:
        if not continued:
            return self.template.render(document, add_generation_prompt=prompt).ids.tolist()
        if not document.turns or document.turns[-1].role != "assistant":
            raise ValueError("only an assistant's message can be continued; let the last one be the assistant's")
        return self.template.render(document).ids.tolist()[:-1]  # without the end of the turn

    def _batch(self, rows: Sequence[list[int]], return_tensors: str | None) -> BatchFeature:
        """Padded on the left, where no answer will stand."""
        longest, pad = max(map(len, rows)), self.coder.vocabulary.control_id("<|pad|>")
        ids = [[pad] * (longest - len(row)) + row for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        return BatchFeature({"input_ids": ids, "attention_mask": mask}, tensor_type=return_tensors)

    # ---- from ids

    def post_process_multimodal_output(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        **ignored: Any,
    ) -> list[Any]:
        """Of every row [B, N] the last answer, as `generation_mode` says.

        "text": its words. "image": a PIL picture; "audio": float32 [T] at the rate `sampling_rate`; "video": uint8
        [T, H, W, 3]. Raises ValueError for an answer without that medium.
        """
        found = []
        for row in torch.as_tensor(generated_outputs).reshape(-1, np.shape(generated_outputs)[-1]).tolist():
            parts = self.template.parse_answer(self._answer(row))
            if generation_mode in (None, "text"):
                found.append(" ".join(part.text for part in parts if isinstance(part, Text)))
                continue
            wanted = [part for part in parts if isinstance(part, Media) and part.modality == generation_mode]
            if not wanted:
                raise ValueError(f"the answer holds no {generation_mode}; generate it with generation_mode")
            medium = self.coder.decode_part(wanted[0]).media
            assert medium is not None
            found.append(_shown(medium, generation_mode))
        return found

    post_process_image_text_to_text = post_process_multimodal_output

    def _answer(self, row: Sequence[int]) -> Sequence[int]:
        """What stands behind the last assistant's mark; all of a row without one."""
        mark, pad = (self.coder.vocabulary.control_id(name) for name in ("<|assistant|>", "<|pad|>"))
        places = [index for index, token in enumerate(row) if token == mark]
        return [token for token in row[places[-1] + 1 if places else 0 :] if token != pad]

    @property
    def sampling_rate(self) -> int:
        """Samples a second of generated sounds."""
        return int(self.coder.rate("audio") or 0)


# ---- what transformers' users hand over, and what they get


def _column(name: str, media: Any, count: int, batched: bool) -> list[list[Any]]:
    """The media of one kind for each of `count` texts."""
    if media is None:
        return [[] for _ in range(count)]
    several = isinstance(media, (list, tuple))
    if not batched:
        return [list(media) if several else [media]]
    if not several or len(media) != count:
        raise ValueError(f"{count} texts need a list of {count} {name} entries; got {len(media) if several else 1}")
    return [list(item) if isinstance(item, (list, tuple)) else [] if item is None else [item] for item in media]


def _source(part: Mapping[str, Any]) -> Any:
    """Where a part of a chat has its medium; bytes for base64, and codes as `MEDIA_PARTS` takes them."""
    sources = ("path", "url", "base64", "data", *MEDIA, "codes", "image_url")
    given = [name for name in sources if part.get(name) is not None]
    if len(given) != 1:
        raise ValueError(f"a medium needs one of {', '.join(sources)}; this part has {' and '.join(given) or 'none'}")
    value = part[given[0]]
    if given[0] == "image_url" and isinstance(value, Mapping):
        value = value.get("url")
    if given[0] == "base64" or (isinstance(value, str) and value.startswith("data:")):
        try:
            return base64.b64decode(value.partition("base64,")[2] or value, validate=True)
        except ValueError as error:
            raise ValueError(f"the medium is not base64 ({error})") from None
    return MEDIA_PARTS[str(part["type"])](codes=value) if given[0] == "codes" else value


def _media_part(modality: str, medium: Any, sampling_rate: int | None, coder: MediaCoder) -> Part:
    part = MEDIA_PARTS[modality]
    if isinstance(medium, Media):
        return medium
    if isinstance(medium, (bytes, bytearray)):
        return part(data=bytes(medium))
    if isinstance(medium, (str, Path)):
        if str(medium).startswith(("http://", "https://", "ftp://")):
            raise ValueError(f"{str(medium)[:80]} is not fetched from here; save it to a file and give its path")
        return part(path=str(medium).removeprefix("file://"))
    if isinstance(medium, Mapping) and "array" in medium:  # a row of `datasets`
        return _media_part(modality, medium["array"], medium.get("sampling_rate"), coder)
    if modality == "image" and hasattr(medium, "convert"):
        return part(data=_png(medium))
    array = np.asarray(medium.detach().cpu() if isinstance(medium, Tensor) else medium)
    if modality == "image" and array.ndim == 3 and 3 in (array.shape[0], array.shape[-1]):
        return part(data=_png(_picture(array)))
    if modality == "audio" and array.ndim == 1 and array.dtype.kind == "f":
        rate = int(sampling_rate or coder.rate("audio") or 16_000)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sound.wav"
            save_audio(torch.from_numpy(array.astype(np.float32)), path, rate)
            return part(data=path.read_bytes())
    raise ValueError(
        f"{modality} of {type(medium).__name__} {list(array.shape)} cannot be read; give a file, its bytes, or "
        f"{'a PIL picture or [H, W, 3]' if modality == 'image' else 'float [T]' if modality == 'audio' else 'a path'}"
    )


def _picture(array: np.ndarray) -> Any:
    """[H, W, 3] or [3, H, W], uint8 or float in [0, 1] → a PIL picture."""
    from PIL import Image as Pictures

    if array.shape[-1] != 3:
        array = array.transpose(1, 2, 0)
    if array.dtype.kind == "f":
        array = (array.clip(0, 1) * 255).round()
    return Pictures.fromarray(array.astype(np.uint8))


def _png(picture: Any) -> bytes:
    DEFAULT_LIMITS.check_pixels("the picture", picture.width, picture.height)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _shown(medium: Tensor, modality: str) -> Any:
    """A picture [3, H, W] for PIL, a clip [T, 3, H, W] as uint8 [T, H, W, 3], another medium as numpy has it."""
    if modality == "image":
        return _picture(medium.numpy())
    if modality == "video":
        return (medium.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return medium.numpy()
