"""One choice of a chat answer: its tokens → a message, or the deltas of a stream."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncGenerator, Mapping
from time import time

import numpy as np
import torch
from torch import Tensor

from unimodal.generation.request import GenerationRequest
from unimodal.media.registry import MEDIA
from unimodal.pipeline.requests import UnfitRequestError
from unimodal.pipeline.settings import AnswerSettings
from unimodal.sequence.document import MEDIA_PARTS, Document, Text, Turn
from unimodal.serve.answer import AnswerReader, MediumPiece, PartialPiece, Piece, WordsPiece
from unimodal.serve.media_output import encode_sound, make_medium_url
from unimodal.serve.protocol import AnswerMessage, ContentPart, Delta, FinishReason, SpokenAnswer
from unimodal.serve.service import Service, gather
from unimodal.serve.sound_stream import SoundStream, add_pause


class Choice:
    """One answer on its way to the client.

    sound_format: of the first sound. spoken: the words that it says, if the request gave them.
    """

    def __init__(
        self,
        service: Service,
        reader: AnswerReader,
        request: GenerationRequest,
        sound_format: str = "wav",
        spoken: str | None = None,
    ) -> None:
        self.service, self.reader, self.request = service, reader, request
        self.sound_format, self.spoken = sound_format, spoken
        self.ids: list[int] = []  # once it is written
        self._num_pictures = 0

    async def write(self) -> AnswerMessage:
        """The whole answer: words, media with the words in their order, the first sound as `audio`."""
        self.ids = await self.service.answer(self.request)
        self.reader.finish()
        media = self.reader.media
        decoded = await gather(self.service.decode(piece.modality, piece.codes) for piece in media)
        if self.request.num_parts > 1:  # utterances of one speech
            rate_hz = self.service.model.coder.get_rate("audio")
            media, decoded = media[:1], [torch.cat([decoded[0], *(add_pause(one, rate_hz) for one in decoded[1:])])]
        sound: SpokenAnswer | None = None
        parts: dict[int, ContentPart] = {}  # by the number of the medium
        for piece, medium in zip(media, decoded, strict=True):
            if piece.modality == "audio" and sound is None:
                sound = await self._write_sound(piece, medium)
            else:
                parts[piece.index] = await self._write_part(piece.modality, medium)
        words = self.reader.text
        message: AnswerMessage = {"role": "assistant", "content": words, "refusal": None}
        if sound is not None:
            message["content"] = words or None
            message["audio"] = sound
        if parts:
            message["content_parts"] = self._join_parts(parts)
            images = [part for part in parts.values() if part["type"] == "image_url"]
            if images:
                message["images"] = [self._number_picture(part) for part in images]
        return message

    async def stream(self, partial: bool) -> AsyncGenerator[Delta, None]:
        """The new pieces as they are written. partial: pictures being written too, if the codes are ordered."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece | None] = asyncio.Queue()

        def emit(piece: Piece) -> None:  # from the worker's thread
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        model, reader = self.service.model, self.reader
        if partial and "image" in model.vocabulary.media:
            reader.partial = bool(model.coder.get_tokenizer("image").ordered)
        reader.emit = emit
        answer = asyncio.ensure_future(self.service.answer(self.request))
        answer.add_done_callback(lambda _: pieces.put_nowait(None))
        has_sound, sound_id = False, ""
        speech: SoundStream | None = None
        if self.request.num_parts > 1:
            kind = "pcm" if self.sound_format == "pcm16" else self.sound_format
            speech = SoundStream(kind, int(model.coder.get_rate("audio") or 16_000))
        try:
            yield {"role": "assistant", "content": ""}
            while (piece := await pieces.get()) is not None:
                if isinstance(piece, WordsPiece):
                    yield {"content": piece.text}
                elif isinstance(piece, MediumPiece) and speech is not None:
                    sound_id = sound_id or f"audio-{secrets.token_hex(12)}"
                    medium = await self.service.decode("audio", piece.codes)
                    medium = add_pause(medium, speech.given_hz) if has_sound else medium
                    data = await self.service.run(speech.write, medium)
                    yield self._write_spoken(sound_id, data, "" if has_sound else self.spoken or "")
                    has_sound = True
                elif isinstance(piece, MediumPiece):
                    first_sound = piece.modality == "audio" and not has_sound
                    has_sound = has_sound or first_sound
                    medium = await self.service.decode(piece.modality, piece.codes)
                    if not first_sound:
                        yield await self._write_delta(piece.modality, medium)
                        continue
                    sound = await self._write_sound(piece, medium)
                    yield {"audio": {"id": sound["id"], "data": sound["data"], "transcript": sound["transcript"]}}
                    yield {"audio": {"expires_at": sound["expires_at"]}}
                elif pieces.empty():  # else it is out of date already
                    yield await self._write_partial(piece)
            self.ids = await answer
            if speech is not None:
                yield self._write_spoken(sound_id, await self.service.run(speech.finish), "")
                yield {"audio": {"expires_at": int(time())}}
            num_told = len(reader.pieces)
            reader.finish()
            for rest in reader.pieces[num_told:]:
                if isinstance(rest, WordsPiece):
                    yield {"content": rest.text}
        finally:
            if not answer.done():
                answer.cancel()
                await asyncio.wait({answer})

    def find_reason(self) -> FinishReason:
        """ "length" if a limit ended the answer; a forced medium of fixed length is complete at that length."""
        config, vocabulary = self.request.config, self.service.model.vocabulary
        whole = config.force in vocabulary.media and vocabulary.get_layout(str(config.force)).open_segment is None
        if self.reader.stopped or whole:
            return "stop"
        words = sum(vocabulary.is_text(row) for row in self.ids)
        cut = config.max_text_tokens is not None and words >= config.max_text_tokens
        full = self.request.num_parts == 1 and vocabulary.positions.count(self.ids) >= config.max_new_tokens
        return "length" if cut or full else "stop"

    # ---- pieces

    def _write_spoken(self, sound_id: str, data: bytes, words: str) -> Delta:
        """A further piece of a sound; all pieces together are one file."""
        return {"audio": {"id": sound_id, "data": base64.b64encode(data).decode("ascii"), "transcript": words}}

    async def _write_delta(self, modality: str, medium: Tensor) -> Delta:
        part = await self._write_part(modality, medium)
        if modality == "image":
            return {"content_parts": [part], "images": [self._number_picture(part)]}
        return {"content_parts": [part]}

    async def _write_partial(self, piece: PartialPiece) -> Delta:
        picture = await self.service.decode("image", piece.codes)
        url = await self.service.run(make_medium_url, "image", picture, None)
        return {"partial_image": {"index": piece.index, "url": url}}

    async def _write_sound(self, piece: MediumPiece, sound: Tensor) -> SpokenAnswer:
        rate_hz = int(self.service.model.coder.get_rate("audio") or 16_000)
        data, _ = await self.service.run(encode_sound, sound, rate_hz, self.sound_format)
        transcript = await hear(self.service, piece.codes) if self.spoken is None else self.spoken
        return {
            "id": f"audio-{secrets.token_hex(12)}",
            "data": base64.b64encode(data).decode("ascii"),
            "transcript": transcript,
            "expires_at": int(time()),  # it is not stored: a later message sends it again
        }

    async def _write_part(self, modality: str, medium: Tensor) -> ContentPart:
        rate = self.service.model.coder.get_rate(modality)
        url = await self.service.run(make_medium_url, modality, medium, rate)
        kind = MEDIA[modality].url_type
        return {"type": kind, kind: {"url": url}}

    def _number_picture(self, part: ContentPart) -> ContentPart:
        numbered: ContentPart = {"index": self._num_pictures, **part}
        self._num_pictures += 1
        return numbered

    def _join_parts(self, parts: Mapping[int, ContentPart]) -> list[ContentPart]:
        """Words and media in the order in which they were written; words between two media are one part."""
        content: list[ContentPart] = []
        words = ""
        for piece in self.reader.pieces:
            if isinstance(piece, WordsPiece):
                words += piece.text
            elif piece.index in parts:
                content += [*([_make_text_part(words)] if words else []), parts[piece.index]]
                words = ""
        return [*content, *([_make_text_part(words)] if words else [])]


async def hear(service: Service, codes: np.ndarray) -> str:
    """The words that the model hears in a sound of its own, codes [N] or [N, G]; "" if it was not trained to."""
    question = service.model.wording.ask("audio")
    if not question:
        return ""
    reader = AnswerReader(service.model)
    sound = MEDIA_PARTS["audio"](codes=codes)
    document = Document([Turn("user", [sound, Text(question)])])
    try:
        request = await service.prepare(document, AnswerSettings(to="text"), reader)
    except UnfitRequestError:  # too long to be heard
        return ""
    await service.answer(request)
    reader.finish()
    return reader.text


def _make_text_part(text: str) -> ContentPart:
    return {"type": "text", "text": text}
