"""Pictures, speech and transcriptions by OpenAI's endpoints, and codes by our own."""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import Mapping
from functools import partial
from time import time
from typing import NamedTuple

import numpy as np
from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse, PlainTextResponse, Response

from unimodal.pipeline.requests import AnswerSettings
from unimodal.pipeline.rows import describe_codes
from unimodal.sequence.document import Document, Part, Text, Turn
from unimodal.serve.answer import AnswerReader, MediumPiece
from unimodal.serve.media_output import encode_picture, encode_sound, make_data_url, make_medium_url
from unimodal.serve.protocol import (
    ApiError,
    DetokenizeRequest,
    ImageRequest,
    SpeechRequest,
    TokenizeRequest,
    parse,
    read_voice,
)
from unimodal.serve.service import Exchange, Service, gather


class _Answer(NamedTuple):
    """An answer, and the tokens of its prompt and of itself."""

    reader: AnswerReader
    num_in: int
    num_out: int

    def find_medium(self, modality: str) -> MediumPiece:
        """The one medium of an answer that had to hold it."""
        [piece] = [piece for piece in self.reader.media if piece.modality == modality]
        return piece


async def _answer(service: Service, parts: list[Part], settings: AnswerSettings) -> _Answer:
    """The answer to a turn of the user's."""
    reader = AnswerReader(service.model)
    request = await service.prepare(Document([Turn("user", parts)]), settings, reader)
    ids = await service.answer(request)
    reader.finish()
    return _Answer(reader, len(request.prompt), len(ids))


def _check_medium(service: Service, modality: str, does: str) -> None:
    """Raises ApiError 400 for a medium that the model does not have."""
    if modality not in service.model.vocabulary.media:
        known = ", ".join(("text", *service.model.vocabulary.media))
        raise ApiError(400, f"this model {does} no {modality}; it has {known}", "unsupported_modality", "model")


async def draw_images(exchange: Exchange) -> Response:
    service = exchange.service
    asked = parse(ImageRequest, exchange.body, exchange.content_type)
    service.check_model(asked.model)
    _check_medium(service, "image", "draws")
    height, width = service.model.coder.tokenizer("image").picture_size or (None, None)
    if asked.size not in (None, "auto", f"{width}x{height}"):
        sizes = "one size: leave size out" if width is None else f"{width}x{height}"
        message = f"size {asked.size[:20]!r} cannot be drawn; this model draws {sizes}"
        raise ApiError(400, message, "invalid_value", "size")
    if asked.stream:
        raise ApiError(
            400, "pictures are streamed by chat completions; leave stream out", "unsupported_value", "stream"
        )
    words: list[Part] = [Text(service.model.wording.word_request(asked.prompt, "image"))]
    num, kind = asked.n or 1, asked.output_format or "png"
    exchange.take_places(num)
    settings = asked.make_settings()

    async def draw(number: int) -> tuple[bytes, _Answer]:
        answer = await _answer(service, words, settings.replace(seed=settings.seed + number))
        picture = await service.decode("image", answer.find_medium("image").codes)
        return await service.run(encode_picture, picture, kind), answer

    drawn = await gather(draw(number) for number in range(num))
    if asked.response_format == "url":
        data = [{"url": make_data_url(picture, f"image/{kind}")} for picture, _ in drawn]
    else:
        data = [{"b64_json": base64.b64encode(picture).decode("ascii")} for picture, _ in drawn]
    num_in, num_out = sum(answer.num_in for _, answer in drawn), sum(answer.num_out for _, answer in drawn)
    counts = {"input_tokens": num_in, "output_tokens": num_out, "total_tokens": num_in + num_out}
    details = {"input_tokens_details": {"text_tokens": num_in, "image_tokens": 0}}
    about = {"output_format": kind} | ({} if width is None else {"size": f"{width}x{height}"})
    return JSONResponse({"created": int(time()), "data": data, "usage": counts | details, **about})


async def speak(exchange: Exchange) -> Response:
    service = exchange.service
    asked = parse(SpeechRequest, exchange.body, exchange.content_type)
    service.check_model(asked.model)
    _check_medium(service, "audio", "speaks")
    if asked.speed != 1.0:
        raise ApiError(400, "this model speaks at its own speed; leave speed out", "unsupported_value", "speed")
    words = service.model.wording.word_request(asked.input, "audio", read_voice(asked.voice))
    answer = await _answer(service, [Text(words)], asked.make_settings())
    sound = await service.decode("audio", answer.find_medium("audio").codes)
    rate_hz = int(service.model.coder.rate("audio") or 16_000)
    data, media_type = await service.run(encode_sound, sound, rate_hz, asked.response_format)
    return Response(data, media_type=media_type)


async def transcribe(exchange: Exchange) -> Response:
    service = exchange.service
    _check_medium(service, "audio", "hears")
    if not exchange.http.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(415, "send multipart/form-data with a file", "unsupported_media")
    async with exchange.http.form(max_files=1, max_fields=32, max_part_size=2**16) as form:
        file, model = form.get("file"), form.get("model")
        if not isinstance(file, UploadFile):
            raise ApiError(400, "the file is missing", "missing_value", "file")
        data = await file.read()
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
    service.check_model(model if isinstance(model, str) else None)
    kind = fields.get("response_format", "json")
    if kind not in ("json", "text") or fields.get("stream", "false").lower() == "true":
        raise ApiError(400, "transcriptions are given as json or text, whole", "unsupported_value", "response_format")
    settings = AnswerSettings(to="text", temperature=_read_number(fields, "temperature"))
    if not data:
        raise ApiError(400, "the file is empty", "invalid_media", "file")
    part = await service.media.make_part("audio", data, "file")
    question = Text(service.model.wording.ask("audio"))
    answer = await _answer(service, [part, question], settings)
    text = answer.reader.text
    if kind == "text":
        return PlainTextResponse(text + "\n")
    tokens = {
        "type": "tokens",
        "input_tokens": answer.num_in,
        "output_tokens": answer.num_out,
        "total_tokens": answer.num_in + answer.num_out,
    }
    return JSONResponse({"text": text, "usage": tokens})


def _read_number(fields: Mapping[str, str], name: str) -> float | None:
    """A number from 0 to 2, None where the field is missing. Raises ApiError 400 for anything else."""
    if name not in fields:
        return None
    try:
        value = float(fields[name])
    except ValueError:
        value = math.nan
    if not 0 <= value <= 2:
        raise ApiError(400, f"{name} must be a number from 0 to 2", "invalid_value", name)
    return value


async def tokenize(exchange: Exchange) -> Response:
    """The codes of a medium and how they lie."""
    service = exchange.service
    if exchange.http.headers.get("content-type", "").startswith("multipart/form-data"):
        async with exchange.http.form(max_files=1, max_fields=8, max_part_size=2**16) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise ApiError(400, "the file is missing", "missing_value", "file")
            data, where = await file.read(), "file"
    else:
        asked = await service.run(parse, TokenizeRequest, exchange.body, exchange.content_type)
        data, where = await service.media.read_url(asked.url, "url"), "url"
    if not data:
        raise ApiError(400, "the file is empty", "invalid_media", where)
    modality = await service.media.find_modality(data, where)
    notes: list[str] = []
    medium = await service.media.read(modality, data, where, notes.append)
    described = await asyncio.wrap_future(service.worker.call(partial(describe_codes, service.model, modality, medium)))
    return JSONResponse({**described, "shape": list(medium.shape), **({"notes": notes} if notes else {})})


async def detokenize(exchange: Exchange) -> Response:
    """The medium of codes, or of the first of them."""
    service = exchange.service
    asked = await service.run(parse, DetokenizeRequest, exchange.body, exchange.content_type)
    _check_medium(service, asked.modality, "makes")
    vocabulary, tokenizer = service.model.vocabulary, service.model.coder.tokenizer(asked.modality)
    groups = len(vocabulary.group_blocks(vocabulary.layout(asked.modality).segments[0].block))
    if len(asked.codes) % groups:
        raise ApiError(400, f"codes come in groups of {groups}", "invalid_value", "codes")
    if len(asked.codes) > groups * service.model.max_positions:
        raise ApiError(
            400, f"{len(asked.codes):,} codes are more than this model ever writes", "invalid_value", "codes"
        )
    try:
        codes = np.array(asked.codes, dtype=np.int64).reshape(-1, groups)
        codes = codes[:, 0] if groups == 1 else codes
        vocabulary.encode_span(asked.modality, codes)  # every code within its block, as many as there must be
    except (ValueError, OverflowError) as error:
        raise ApiError(400, str(error), "invalid_value", "codes") from None
    if asked.prefix is not None:
        if not tokenizer.ordered:
            message = f"the codes of {asked.modality} are not ordered; a prefix of them shows nothing"
            raise ApiError(400, message, "unsupported_value", "prefix")
        codes = codes[: asked.prefix]
    medium = await service.decode(asked.modality, codes)
    rate = service.model.coder.rate(asked.modality)
    return JSONResponse({"url": await service.run(make_medium_url, asked.modality, medium, rate)})
