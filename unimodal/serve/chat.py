"""`/v1/chat/completions`: whole answers and streamed ones."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncGenerator
from dataclasses import replace
from time import time
from typing import Any

from starlette.responses import JSONResponse, Response

from unimodal.pipeline.requests import AnswerSettings, fit_history
from unimodal.pipeline.rows import GenerationRequest
from unimodal.serve.answer import AnswerReader, Piece
from unimodal.serve.conversation import completed, gathered, turns_of, wanted
from unimodal.serve.media_output import medium_url, sound_bytes
from unimodal.serve.protocol import DONE, ChatRequest, event, parse, usage, voice_name
from unimodal.serve.service import Call, EventStream, Service


async def chat_completions(call: Call) -> Response:
    service = call.service
    asked = await service.off_loop(parse, ChatRequest, call.body)
    asked.check()
    service.check_model(asked.model)
    to, allow = wanted(asked, service.model.vocabulary.media)
    turns = await turns_of(asked, service.media, service.config.max_parts)
    voice = None if asked.audio is None else voice_name(asked.audio.voice)
    turns[-1] = completed(service.model, turns[-1], to, voice)
    settings = _settings(service, asked, to, allow)
    document = await service.off_loop(fit_history, service.model, turns, settings)
    request = await service.prepare(document, settings)
    reader = AnswerReader(service.model, asked.stop)
    identity = f"chatcmpl-{secrets.token_hex(12)}"
    if asked.stream:
        if asked.stream_partial and "image" in service.model.vocabulary.media:
            reader.partial = bool(service.model.coder.tokenizer("image").ordered)
        return EventStream(_streamed(service, asked, request, reader, identity))
    ids = await service.answer(replace(request, on_token=reader))
    reader.finish()
    message = await _message(service, asked, reader)
    finish = _finish_reason(service, request, reader, ids)
    return JSONResponse(
        {
            **_head(service, identity, "chat.completion"),
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
            "usage": _usage(asked, request, ids),
        }
    )


def _settings(service: Service, asked: ChatRequest, to: str | None, allow: tuple[str, ...] | None) -> AnswerSettings:
    """Temperature and top_p are of all that the answer may hold; `max_tokens` does not count the end of its words."""
    words = asked.tokens if to in (None, "text") else None
    return AnswerSettings(
        to=to,
        allow=allow if to is not None or allow is not None else ("text", *service.model.writable),
        seed=secrets.randbits(32) if asked.seed is None else asked.seed,
        guidance=asked.guidance,
        temperature=asked.temperature,
        top_p=asked.top_p,
        tokens=asked.tokens if words is None else words + 1,
        text_tokens=words,
        shorten=True,
        negative=asked.negative,
    )


def _head(service: Service, identity: str, kind: str) -> dict[str, Any]:
    return {"id": identity, "object": kind, "created": int(time()), "model": service.name}


def _finish_reason(service: Service, request: GenerationRequest, reader: AnswerReader, ids: list[int]) -> str:
    """ "length" where a limit ended the answer. A forced medium of a fixed length is whole when it is as long."""
    config, vocabulary = request.config, service.model.vocabulary
    whole = config.force in vocabulary.media and vocabulary.layout(str(config.force)).open_segment is None
    if reader.stopped or whole:
        return "stop"
    words = sum(vocabulary.is_text(row) for row in ids)
    cut = config.max_text_tokens is not None and words >= config.max_text_tokens
    return "length" if cut or len(ids) >= config.max_new_tokens else "stop"


def _usage(asked: ChatRequest, request: GenerationRequest, ids: list[int]) -> dict[str, int]:
    """The end of an answer that `max_tokens` has cut was not written by the model."""
    return usage(len(request.prompt), len(ids) if asked.tokens is None else min(len(ids), asked.tokens))


async def _message(service: Service, asked: ChatRequest, reader: AnswerReader) -> dict[str, Any]:
    """The whole answer: words, or parts in their order; the first sound as `audio`."""
    media = [piece for piece in reader.pieces if piece.kind == "medium"]
    decoded = await gathered([service.decode(piece.modality, piece.codes) for piece in media])
    audio = None
    parts: dict[int, dict[str, Any]] = {}
    for piece, medium in zip(media, decoded, strict=True):
        rate = service.model.coder.rate(piece.modality)
        if piece.modality == "audio" and audio is None:
            kind = asked.audio.format if asked.audio is not None else "wav"
            data, _ = await service.off_loop(sound_bytes, medium, int(rate or 16_000), kind)
            audio = {
                "id": f"audio-{secrets.token_hex(12)}",
                "data": base64.b64encode(data).decode("ascii"),
                "transcript": reader.text,
                "expires_at": int(time()),  # it is not stored: a later message sends it again
            }
        else:
            url = await service.off_loop(medium_url, piece.modality, medium, rate)
            parts[id(piece)] = media_part(piece.modality, url)
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    if parts:
        content: list[dict[str, Any]] = []
        for piece in reader.pieces:
            if id(piece) in parts:
                content.append(parts[id(piece)])
            elif piece.kind == "text" and content and content[-1]["type"] == "text":
                content[-1]["text"] += piece.text
            elif piece.kind == "text":
                content.append({"type": "text", "text": piece.text})
        message["content"] = content
    elif reader.text or audio is None:
        message["content"] = reader.text
    if audio is not None:
        message["audio"] = audio
    return message


def media_part(modality: str, url: str) -> dict[str, Any]:
    return {"type": f"{modality}_url", f"{modality}_url": {"url": url}}


async def _streamed(
    service: Service, asked: ChatRequest, request: GenerationRequest, reader: AnswerReader, identity: str
) -> AsyncGenerator[bytes, None]:
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[Piece | None] = asyncio.Queue()

    def emit(piece: Piece) -> None:  # from the worker's thread
        loop.call_soon_threadsafe(pieces.put_nowait, piece)

    reader.emit = emit
    answer = asyncio.ensure_future(service.answer(replace(request, on_token=reader)))
    answer.add_done_callback(lambda _: pieces.put_nowait(None))
    head = _head(service, identity, "chat.completion.chunk")
    with_usage = asked.stream_options is not None and asked.stream_options.include_usage

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event({**head, "choices": [choice], **({"usage": None} if with_usage else {})})

    try:
        yield chunk({"role": "assistant", "content": ""})
        while (piece := await pieces.get()) is not None:
            if piece.kind == "text":
                yield chunk({"content": piece.text})
                continue
            if piece.kind == "partial" and not pieces.empty():
                continue  # already out of date
            medium = await service.decode(piece.modality, piece.codes)
            rate = service.model.coder.rate(piece.modality)
            url = await service.off_loop(medium_url, piece.modality, medium, rate)
            if piece.kind == "partial":
                yield chunk({"partial_image": {"index": piece.index, "url": url}})
            else:
                yield chunk({"content_parts": [media_part(piece.modality, url)]})
        ids = await answer
        before = len(reader.pieces)
        reader.finish()
        for piece in reader.pieces[before:]:
            yield chunk({"content": piece.text})
        yield chunk({}, _finish_reason(service, request, reader, ids))
        if with_usage:
            yield event({**head, "choices": [], "usage": _usage(asked, request, ids)})
        yield DONE
    finally:
        if not answer.done():
            answer.cancel()
            await asyncio.wait({answer})
