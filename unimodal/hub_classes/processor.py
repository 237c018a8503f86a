"""An exported folder inside transformers: its `AutoProcessor`. The folder's class inherits this one.

    processor = AutoProcessor.from_pretrained(DIR, trust_remote_code=True)
    chat = [{"role": "user", "content": [{"type": "image", "path": "apple.png"}, {"type": "text", "text": "What?"}]}]
    inputs = processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=True)

A chat is rendered by `Template` and not as a string, so nothing in a message's text becomes a control or media token.
Media are files, bytes, PIL pictures or arrays; an address on the network is refused: fetch it first. What is left out
of a file (moments of a film, its sound) is a warning.

Shapes: B rows, N tokens, T samples or frames, H and W height and width.
"""

from __future__ import annotations

import base64
import io
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from PIL import Image as Pictures
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin

from unimodal.coder.media_coder import MediaCoder
from unimodal.hub_classes.generation import find_folder
from unimodal.media.audio import save_audio
from unimodal.media.limits import DEFAULT_LIMITS
from unimodal.media.registry import MEDIA, find_by_type, join_names
from unimodal.model_folder.layout import VOCABULARY_FILE
from unimodal.model_folder.settings import read_processor
from unimodal.sequence.document import MEDIA_PARTS, Document, Media, Part, Text, Turn
from unimodal.sequence.templates.own import Template
from unimodal.text.tokenizer import TextTokenizer
from unimodal.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HubMessage = Mapping[str, object]  # {"role": "user", "content": "words" or parts}
HubChat = Sequence[HubMessage]
ShownAnswer = str | Pictures.Image | np.ndarray  # words, a picture, or a sound or clip as an array

SOURCES = ("path", "url", "base64", "data", "codes")  # where a part may have its medium, beside its own type's name


class MultimodalProcessor(ProcessorMixin):
    """Chats with media → `input_ids` and `attention_mask` [B, N]; generated ids → words, pictures, sounds, clips."""

    #: set by `from_pretrained`
    template: Template
    coder: MediaCoder

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None = None, chat_template: str | None = None) -> None:
        super().__init__(tokenizer, chat_template=chat_template)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: object
    ) -> MultimodalProcessor:
        """The processor of a folder or a hub id. Raises ValueError for a folder that is not whole."""
        folder = find_folder(pretrained_model_name_or_path, options)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        processor = cls(tokenizer, chat_template=tokenizer.chat_template)
        vocabulary = read_vocabulary(folder / VOCABULARY_FILE)
        processor.template = Template(vocabulary, TextTokenizer.load(folder))
        processor.coder = MediaCoder(folder, vocabulary, read_processor(folder))
        return processor

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: object) -> list[str]:
        """Always raises ValueError: copy the folder as a whole."""
        raise ValueError("copy the model's folder: a processor is its tokenizers and their hashes")

    # ---- to ids

    def __call__(
        self,
        images: object = None,
        text: str | Sequence[str] | None = None,
        videos: object = None,
        audio: object = None,
        return_tensors: str | None = "pt",
        sampling_rate: int | None = None,
        **ignored: object,
    ) -> BatchFeature:
        """One turn of the user for every text: its media, then the words; media without words get the trained question.

        With several texts, each of `images`, `videos` and `audio` is a list of that length. A text is plain words,
        whatever it spells; for a chat use `apply_chat_template(..., tokenize=True)`. Raises ValueError for media that
        cannot be read.
        """
        batched = text is not None and not isinstance(text, str)
        texts = [text] if text is None or isinstance(text, str) else list(text)
        given = {"image": images, "video": videos, "audio": audio}
        columns = {name: _split_column(name, media, len(texts), batched) for name, media in given.items()}
        rows = []
        for index, words in enumerate(texts):
            parts: list[Part] = [
                self._encode(name, medium, sampling_rate) for name in columns for medium in columns[name][index]
            ]
            if words:
                parts.append(Text(str(words)))
            elif parts:
                parts.append(self._ask_about(parts[-1]))
            else:
                raise ValueError("there is nothing to read; give text, images, audio or videos")
            rows.append(self._render(Document([Turn("user", parts)])))
        return self._pad(rows, return_tensors)

    def apply_chat_template(
        self,
        conversation: HubChat | Sequence[HubChat],
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = "pt",
        sampling_rate: int | None = None,
        processor_kwargs: Mapping[str, int | None] | None = None,
        **options: object,
    ) -> BatchFeature | Tensor | str | list[str]:
        """The ids of one chat, or of several, with every medium encoded.

        A medium is a part such as {"type": "image", "path": F}. In place of `path` it may have `base64` or, under the
        name of its type, bytes, a PIL picture or an array ([H, W, 3] or [T]). tokenize=False only shows the prompt,
        with empty spans; given back as text it is plain words.
        """
        batched = not isinstance(conversation[0], Mapping)
        chats = cast(Sequence[HubChat], conversation if batched else [conversation])
        if not tokenize:
            prompts = [self.tokenizer.apply_chat_template(c, None, tokenize=False, **options) for c in chats]
            return prompts if batched else prompts[0]
        rate = (processor_kwargs or {}).get("sampling_rate", sampling_rate)
        documents = [Document([self._read_message(message, rate) for message in chat]) for chat in chats]
        rows = [self._render(document, add_generation_prompt, continue_final_message) for document in documents]
        batch = self._pad(rows, return_tensors)
        return batch if return_dict else batch["input_ids"]

    def _read_message(self, message: HubMessage, sampling_rate: int | None) -> Turn:
        """A message of a chat as a turn, with every medium in codes."""
        content = message.get("content")
        if isinstance(content, str):
            return Turn(str(message.get("role")), content)
        parts: list[Part] = []
        for part in cast(Sequence[Mapping[str, object]], content or ()):
            kind = part.get("type")
            medium = find_by_type(kind)
            if kind == "text":
                parts.append(Text(str(part["text"])))
            elif medium is None:
                raise ValueError(f"part type {kind!r} is unknown; use {join_names(('text', *MEDIA))}")
            else:
                rate = cast(int | None, part.get("sampling_rate", sampling_rate))
                parts.append(self._encode(medium.name, _read_source(medium.name, part), rate))
        return Turn(str(message.get("role")), parts)

    def _encode(self, modality: str, medium: object, sampling_rate: int | None) -> Part:
        """A medium in any form that a user may give, as a part with codes."""
        self.coder.vocabulary.get_layout(modality)
        part = self.coder.encode_part(_make_part(modality, medium, sampling_rate, self.coder))
        for note in part.notes if isinstance(part, Media) else ():
            warnings.warn(note, stacklevel=4)
        return part

    def _ask_about(self, part: Part) -> Text:
        """The trained question about a medium without words."""
        assert isinstance(part, Media)
        return Text(self.coder.processor.wording.ask(part.modality))

    def _render(self, document: Document, prompt: bool = True, go_on: bool = False) -> list[int]:
        """The ids [N] of a chat. prompt: with the mark that opens an answer. go_on: with its last answer left open."""
        if not go_on:
            return self.template.render(document, add_generation_prompt=prompt).ids.tolist()
        if not document.turns or document.turns[-1].role != "assistant":
            raise ValueError("only an assistant's message can be continued; let the last one be the assistant's")
        return self.template.render(document).ids.tolist()[:-1]  # without the end of the turn

    def _pad(self, rows: Sequence[list[int]], return_tensors: str | None) -> BatchFeature:
        """Pads rows on the left, where no answer will stand."""
        longest, pad = max(map(len, rows)), self.coder.vocabulary.get_control_id("<|pad|>")
        ids = [[pad] * (longest - len(row)) + row for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        return BatchFeature({"input_ids": ids, "attention_mask": mask}, tensor_type=return_tensors)

    # ---- from ids

    def post_process_multimodal_output(
        self,
        generated_outputs: Tensor | np.ndarray | Sequence[Sequence[int]],
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        **ignored: object,
    ) -> list[ShownAnswer]:
        """The last answer in each row [B, N], in the form of `generation_mode`.

        "text": its words. "image": a PIL picture. "audio": float32 [T] at `sampling_rate`. "video": uint8 [T, H, W, 3].
        Raises ValueError for an answer without that medium.
        """
        found: list[ShownAnswer] = []
        for row in torch.as_tensor(generated_outputs).reshape(-1, np.shape(generated_outputs)[-1]).tolist():
            parts = self.template.parse_answer(self._cut_answer(row))
            if generation_mode is None or generation_mode == "text":
                found.append(" ".join(part.text for part in parts if isinstance(part, Text)))
                continue
            wanted = [part for part in parts if isinstance(part, Media) and part.modality == generation_mode]
            if not wanted:
                raise ValueError(f"the answer holds no {generation_mode}; generate it with generation_mode")
            medium = self.coder.decode_part(wanted[0]).media
            assert medium is not None
            found.append(_show(medium, generation_mode))
        return found

    post_process_image_text_to_text = post_process_multimodal_output

    def _cut_answer(self, row: Sequence[int]) -> Sequence[int]:
        """The ids behind the last mark of the assistant; the whole row if there is none."""
        mark, pad = (self.coder.vocabulary.get_control_id(name) for name in ("<|assistant|>", "<|pad|>"))
        places = [index for index, token in enumerate(row) if token == mark]
        return [token for token in row[places[-1] + 1 if places else 0 :] if token != pad]

    @property
    def sampling_rate(self) -> int:
        """Samples a second of generated sounds."""
        return int(self.coder.get_rate("audio") or 0)


# ---- what transformers' users hand over, and what they get


def _split_column(name: str, media: object, count: int, batched: bool) -> list[list[object]]:
    """The media of one kind for each of `count` texts."""
    if media is None:
        return [[] for _ in range(count)]
    if not batched:
        return [list(media) if isinstance(media, (list, tuple)) else [media]]
    if not isinstance(media, (list, tuple)) or len(media) != count:
        given = len(media) if isinstance(media, (list, tuple)) else 1
        raise ValueError(f"{count} texts need a list of {count} {name} entries; got {given}")
    return [list(item) if isinstance(item, (list, tuple)) else [] if item is None else [item] for item in media]


def _read_source(modality: str, part: Mapping[str, object]) -> object:
    """The medium of a part of a chat: bytes from base64, a part from codes, or what the user put there."""
    sources = (*SOURCES, modality, MEDIA[modality].url_type)
    given = [name for name in sources if part.get(name) is not None]
    if len(given) != 1:
        raise ValueError(f"a medium needs one of {', '.join(sources)}; this part has {' and '.join(given) or 'none'}")
    [name] = given
    value = part[name]
    if name == "codes":
        return MEDIA_PARTS[modality](codes=np.asarray(value))
    if name == MEDIA[modality].url_type and isinstance(value, Mapping):
        value = value.get("url")
    if isinstance(value, str) and (name == "base64" or value.startswith("data:")):
        try:
            return base64.b64decode(value.partition("base64,")[2] or value, validate=True)
        except ValueError as error:
            raise ValueError(f"the medium is not base64 ({error})") from None
    return value


def _make_part(modality: str, medium: object, sampling_rate: int | None, coder: MediaCoder) -> Media:
    """Makes a part of anything that a user gave: a part, bytes, a path, a row of `datasets`, a PIL picture or an
    array.
    """
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
        return _make_part(modality, medium["array"], medium.get("sampling_rate"), coder)
    if modality == "image" and isinstance(medium, Pictures.Image):
        return part(data=_write_png(medium))
    array = np.asarray(medium.detach().cpu() if isinstance(medium, Tensor) else medium)
    if modality == "image" and array.ndim == 3 and 3 in (array.shape[0], array.shape[-1]):
        return part(data=_write_png(_make_picture(array)))
    if modality == "audio" and array.ndim == 1 and array.dtype.kind == "f":
        rate_hz = int(sampling_rate or coder.get_rate("audio") or 16_000)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sound.wav"
            save_audio(torch.from_numpy(array.astype(np.float32)), path, rate_hz)
            return part(data=path.read_bytes())
    raise ValueError(
        f"{modality} of {type(medium).__name__} {list(array.shape)} cannot be read; give a file, its bytes, or "
        f"{'a PIL picture or [H, W, 3]' if modality == 'image' else 'float [T]' if modality == 'audio' else 'a path'}"
    )


def _make_picture(array: np.ndarray) -> Pictures.Image:
    """[H, W, 3] or [3, H, W], uint8 or float in [0, 1] → a PIL picture."""
    if array.shape[-1] != 3:
        array = array.transpose(1, 2, 0)
    if array.dtype.kind == "f":
        array = (array.clip(0, 1) * 255).round()
    return Pictures.fromarray(array.astype(np.uint8))


def _write_png(picture: Pictures.Image) -> bytes:
    """The bytes of a PNG file of a picture. Raises ValueError for one beyond the limits."""
    DEFAULT_LIMITS.check_pixels("the picture", picture.width, picture.height)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _show(medium: Tensor, modality: str) -> ShownAnswer:
    """A picture [3, H, W] as a PIL picture, a clip [T, 3, H, W] as uint8 [T, H, W, 3], a sound [T] as it is."""
    if modality == "image":
        return _make_picture(medium.numpy())
    if modality == "video":
        return (medium.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return medium.numpy()
