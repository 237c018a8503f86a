"""`/v1/chat/completions`: messages → a document, and its answer → a message, whole or streamed."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from time import time

from starlette.responses import JSONResponse, Response
from torch import Tensor

from unimodal.generation.request import GenerationRequest
from unimodal.media.registry import MEDIA
from unimodal.pipeline import Unimodal
from unimodal.pipeline.requests import fit_history
from unimodal.sequence.document import Media, Part, Text, Turn
from unimodal.serve.answer import AnswerReader, PartialPiece, Piece, WordsPiece
from unimodal.serve.media_input import MediaInput
from unimodal.serve.media_output import encode_sound, make_medium_url
from unimodal.serve.protocol import (
    DONE,
    MOST_CHARACTERS,
    AnswerMessage,
    ApiError,
    ChatRequest,
    ContentPart,
    Delta,
    FinishReason,
    SpokenAnswer,
    Usage,
    count_usage,
    encode_event,
    parse,
    read_voice,
)
from unimodal.serve.service import EventStream, Exchange, Service, gather

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


async def complete_chat(exchange: Exchange) -> Response:
    service = exchange.service
    model = service.model
    asked = await service.run(parse, ChatRequest, exchange.body, exchange.content_type)
    asked.check()
    service.check_model(asked.model)
    settings = asked.make_settings(model.vocabulary.media, model.writable)
    turns = await read_turns(asked, service.media, service.config.max_parts)
    voice = None if asked.audio is None else read_voice(asked.audio.voice)
    turns[-1] = complete_turn(model, turns[-1], settings.to, voice)
    document = await service.run(fit_history, model, turns, settings)
    reader = AnswerReader(model, asked.stop)
    notes = [note for part in document.parts if isinstance(part, Media) for note in part.notes]
    answer = ChatAnswer(service, asked, reader, await service.prepare(document, settings, reader), notes)
    return EventStream(exchange, answer.stream()) if asked.stream else JSONResponse(await answer.write())


# ---- messages → a document


async def read_turns(asked: ChatRequest, media: MediaInput, most_media: int) -> list[Turn]:
    """The turns of a request, with every medium in codes. Raises ApiError for what cannot be used."""
    num_media = sum(part.get("type") not in ("text", "refusal") for one in asked.messages for part in one.parts)
    if num_media > most_media:
        message = f"{num_media} media in one request; send at most {most_media}"
        raise ApiError(400, message, "too_many_parts", "messages")
    if asked.messages[-1].role != "user":
        raise ApiError(400, "the last message must be the user's", "invalid_value", "messages")
    turns = []
    for number, one in enumerate(asked.messages):
        where = f"messages[{number}]"
        if one.role not in ROLES:
            message = f"role {one.role[:40]!r} is not known; use {', '.join(ROLES)}"
            raise ApiError(400, message, "invalid_value", f"{where}.role")
        if one.audio is not None and one.content is None:
            message = "answers are not stored: send the sound again, as an input_audio part of the content"
            raise ApiError(400, message, "unsupported_value", f"{where}.audio")
        parts = await gather(_read_part(part, media, f"{where}.content[{n}]") for n, part in enumerate(one.parts))
        turns.append(Turn(ROLES[one.role], parts))
    return turns


async def _read_part(part: Mapping[str, object], media: MediaInput, where: str) -> Part:
    kind = part.get("type")
    if not isinstance(kind, str):
        raise ApiError(400, "a part has no type; use text, image_url, …", "invalid_value", f"{where}.type")
    content = part.get(kind)
    if kind in ("text", "refusal"):
        return _read_text(content, where)
    holder = content if isinstance(content, dict) else {}
    if kind == "input_audio":
        return await media.make_part("audio", await media.decode_base64(holder.get("data"), where), where)
    for medium in MEDIA.values():
        if kind == medium.url_type:
            url = content if isinstance(content, str) else holder.get("url")
            return await media.make_part(medium.name, await media.read_url(url, where), where)
    known = ", ".join(("text", "input_audio", *(medium.url_type for medium in MEDIA.values())))
    raise ApiError(400, f"a part of type {kind[:40]!r} is not known; use {known}", "invalid_value", where)


def _read_text(text: object, where: str) -> Text:
    if not isinstance(text, str) or len(text) > MOST_CHARACTERS:
        message = f"a text is missing or longer than {MOST_CHARACTERS:,} characters"
        raise ApiError(400, message, "invalid_value", where)
    try:
        return Text(text)
    except ValueError as error:
        raise ApiError(400, str(error), "invalid_value", where) from None


def complete_turn(model: Unimodal, turn: Turn, to: str | None, voice: str | None) -> Turn:
    """The last turn as the model was trained to be asked: words alone, for a medium, in its own wording; media without
    words with the trained question. Raises ApiError for a voice that has nothing to speak."""
    has_media = any(not isinstance(part, Text) for part in turn.parts)
    words = turn.text.strip()
    if to in model.vocabulary.media and words and not has_media:
        return model.user_turn([model.wording.word_request(words, str(to), voice)])
    if voice is not None and to != "audio":
        raise ApiError(400, "a voice is for answers in audio; ask for them with modalities", "invalid_value", "audio")
    return model.user_turn(turn.parts)


# ---- its answer → a message


class ChatAnswer:
    """The answer to a chat request, on its way to the client."""

    def __init__(
        self,
        service: Service,
        asked: ChatRequest,
        reader: AnswerReader,
        request: GenerationRequest,
        notes: Sequence[str] = (),
    ) -> None:
        self.service, self.asked, self.reader, self.request, self.notes = service, asked, reader, request, notes
        self.id = f"chatcmpl-{secrets.token_hex(12)}"

    async def write(self) -> dict[str, object]:
        """The whole `chat.completion`."""
        ids = await self.service.answer(self.request)
        self.reader.finish()
        message = await self._write_message()
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._find_reason(ids)}
        return {**self._write_head("chat.completion"), "choices": [choice], "usage": self._count_usage(ids)}

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """`chat.completion.chunk` events, and `DONE`."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece | None] = asyncio.Queue()

        def emit(piece: Piece) -> None:  # from the worker's thread
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        model, reader = self.service.model, self.reader
        if self.asked.stream_partial and "image" in model.vocabulary.media:
            reader.partial = bool(model.coder.tokenizer("image").ordered)
        reader.emit = emit
        answer = asyncio.ensure_future(self.service.answer(self.request))
        answer.add_done_callback(lambda _: pieces.put_nowait(None))
        head = self._write_head("chat.completion.chunk")
        with_usage = self.asked.stream_options is not None and self.asked.stream_options.include_usage

        def write_chunk(delta: Delta, reason: FinishReason | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
            return encode_event({**head, "choices": [choice], **({"usage": None} if with_usage else {})})

        try:
            yield write_chunk({"role": "assistant", "content": ""})
            while (piece := await pieces.get()) is not None:
                if isinstance(piece, WordsPiece):
                    yield write_chunk({"content": piece.text})
                elif not isinstance(piece, PartialPiece):
                    medium = await self.service.decode(piece.modality, piece.codes)
                    yield write_chunk({"content_parts": [await self._write_part(piece.modality, medium)]})
                elif pieces.empty():  # else it is out of date already
                    picture = await self.service.decode("image", piece.codes)
                    url = await self.service.run(make_medium_url, "image", picture, None)
                    yield write_chunk({"partial_image": {"index": piece.index, "url": url}})
            ids = await answer
            num_told = len(reader.pieces)
            reader.finish()
            for rest in reader.pieces[num_told:]:
                if isinstance(rest, WordsPiece):
                    yield write_chunk({"content": rest.text})
            yield write_chunk({}, self._find_reason(ids))
            if with_usage:
                yield encode_event({**head, "choices": [], "usage": self._count_usage(ids)})
            yield DONE
        finally:
            if not answer.done():
                answer.cancel()
                await asyncio.wait({answer})

    def _write_head(self, kind: str) -> dict[str, object]:
        """The head of every object of an answer; `notes` say what was left out of the files that were sent."""
        head: dict[str, object] = {"id": self.id, "object": kind, "created": int(time()), "model": self.service.name}
        return {**head, "notes": list(self.notes)} if self.notes else head

    def _find_reason(self, ids: list[int]) -> FinishReason:
        """ "length" where a limit ended the answer. A forced medium of a fixed length is whole when it is as long."""
        config, vocabulary = self.request.config, self.service.model.vocabulary
        whole = config.force in vocabulary.media and vocabulary.layout(str(config.force)).open_segment is None
        if self.reader.stopped or whole:
            return "stop"
        words = sum(vocabulary.is_text(row) for row in ids)
        cut = config.max_text_tokens is not None and words >= config.max_text_tokens
        return "length" if cut or len(ids) >= config.max_new_tokens else "stop"

    def _count_usage(self, ids: list[int]) -> Usage:
        """The end of an answer that `max_tokens` has cut was not written by the model, and does not count."""
        asked = self.asked.tokens
        return count_usage(len(self.request.prompt), len(ids) if asked is None else min(len(ids), asked))

    async def _write_message(self) -> AnswerMessage:
        """The whole answer: words, or parts in their order; the first sound as `audio`."""
        media = self.reader.media
        decoded = await gather(self.service.decode(piece.modality, piece.codes) for piece in media)
        sound: SpokenAnswer | None = None
        parts: dict[int, ContentPart] = {}  # by the number of the medium
        for piece, medium in zip(media, decoded, strict=True):
            if piece.modality == "audio" and sound is None:
                sound = await self._write_sound(medium)
            else:
                parts[piece.index] = await self._write_part(piece.modality, medium)
        message: AnswerMessage = {"role": "assistant", "content": None, "refusal": None}
        if parts:
            message["content"] = self._join_parts(parts)
        elif self.reader.text or sound is None:
            message["content"] = self.reader.text
        if sound is not None:
            message["audio"] = sound
        return message

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

    async def _write_sound(self, sound: Tensor) -> SpokenAnswer:
        kind = self.asked.audio.format if self.asked.audio is not None else "wav"
        rate_hz = int(self.service.model.coder.rate("audio") or 16_000)
        data, _ = await self.service.run(encode_sound, sound, rate_hz, kind)
        return {
            "id": f"audio-{secrets.token_hex(12)}",
            "data": base64.b64encode(data).decode("ascii"),
            "transcript": self.reader.text,
            "expires_at": int(time()),  # it is not stored: a later message sends it again
        }

    async def _write_part(self, modality: str, medium: Tensor) -> ContentPart:
        rate = self.service.model.coder.rate(modality)
        url = await self.service.run(make_medium_url, modality, medium, rate)
        kind = MEDIA[modality].url_type
        return {"type": kind, kind: {"url": url}}


def _make_text_part(text: str) -> ContentPart:
    return {"type": "text", "text": text}
