"""Pictures, speech and transcriptions by OpenAI's endpoints, and codes by our own."""

from __future__ import annotations

import asyncio
import base64
import math
import secrets
from dataclasses import replace
from time import time

import numpy as np
from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse, PlainTextResponse, Response

from unimodal.pipeline.requests import AnswerSettings
from unimodal.pipeline.rows import describe_codes
from unimodal.sequence.document import MEDIA_PARTS, Document, Part, Text, Turn
from unimodal.serve.answer import AnswerReader
from unimodal.serve.conversation import gathered
from unimodal.serve.media_output import data_url, medium_url, picture_bytes, sound_bytes
from unimodal.serve.protocol import (
    ApiError,
    DetokenizeRequest,
    ImageRequest,
    SpeechRequest,
    TokenizeRequest,
    parse,
    usage,
    voice_name,
)
from unimodal.serve.service import Call, Service


async def _written(service: Service, parts: list[Part], settings: AnswerSettings) -> tuple[AnswerReader, int, int]:
    """The answer to a turn: what it holds, and the tokens of prompt and answer."""
    request = await service.prepare(Document([Turn("user", parts)]), settings)
    reader = AnswerReader(service.model)
    ids = await service.answer(replace(request, on_token=reader))
    reader.finish()
    return reader, len(request.prompt), len(ids)


def _needs(service: Service, modality: str, what: str) -> None:
    if modality not in service.model.vocabulary.media:
        known = ", ".join(("text", *service.model.vocabulary.media))
        raise ApiError(400, f"this model {what} no {modality}; it has {known}", "unsupported_modality", "model")


async def images_generations(call: Call) -> Response:
    service = call.service
    asked = parse(ImageRequest, call.body)
    service.check_model(asked.model)
    _needs(service, "image", "draws")
    side = service.model.coder.setting("image", "image_size")
    if asked.size not in (None, "auto", f"{side}x{side}"):
        message = f"size {asked.size[:20]!r} cannot be drawn; this model draws {side}x{side}"
        raise ApiError(400, message, "invalid_value", "size")
    if asked.stream:
        raise ApiError(
            400, "pictures are streamed by chat completions; leave stream out", "unsupported_value", "stream"
        )
    words: list[Part] = [Text(service.model.wording.request(asked.prompt, "image"))]
    num, kind = asked.n or 1, asked.output_format or "png"
    call.take_places(num)
    first = secrets.randbits(32) if asked.seed is None else asked.seed
    settings = AnswerSettings(
        to="image", seed=first, temperature=asked.temperature, guidance=asked.guidance, negative=asked.negative
    )

    async def one(seed: int) -> tuple[bytes, int, int]:
        reader, prompt_tokens, tokens = await _written(service, words, settings.replace(seed=seed))
        [piece] = [piece for piece in reader.pieces if piece.modality == "image"]
        picture = await service.decode("image", piece.codes)
        return await service.off_loop(picture_bytes, picture, kind), prompt_tokens, tokens

    made = await gathered([one(first + number) for number in range(num)])
    if asked.response_format == "url":
        data = [{"url": data_url(picture, f"image/{kind}")} for picture, _, _ in made]
    else:
        data = [{"b64_json": base64.b64encode(picture).decode("ascii")} for picture, _, _ in made]
    num_in, num_out = sum(m[1] for m in made), sum(m[2] for m in made)
    counts = {"input_tokens": num_in, "output_tokens": num_out, "total_tokens": num_in + num_out}
    details = {"input_tokens_details": {"text_tokens": num_in, "image_tokens": 0}}
    about = {"output_format": kind, "size": f"{side}x{side}"}
    return JSONResponse({"created": int(time()), "data": data, "usage": counts | details, **about})


async def audio_speech(call: Call) -> Response:
    service = call.service
    asked = parse(SpeechRequest, call.body)
    service.check_model(asked.model)
    _needs(service, "audio", "speaks")
    if asked.speed != 1.0:
        raise ApiError(400, "this model speaks at its own speed; leave speed out", "unsupported_value", "speed")
    words = service.model.wording.request(asked.input, "audio", voice_name(asked.voice))
    seed = secrets.randbits(32) if asked.seed is None else asked.seed
    settings = AnswerSettings(to="audio", seed=seed, temperature=asked.temperature, guidance=asked.guidance)
    reader, _, _ = await _written(service, [Text(words)], settings)
    [piece] = [piece for piece in reader.pieces if piece.modality == "audio"]
    sound = await service.decode("audio", piece.codes)
    rate_hz = int(service.model.coder.rate("audio") or 16_000)
    data, media_type = await service.off_loop(sound_bytes, sound, rate_hz, asked.response_format)
    return Response(data, media_type=media_type)


async def audio_transcriptions(call: Call) -> Response:
    service = call.service
    _needs(service, "audio", "hears")
    if not call.http.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(415, "send multipart/form-data with a file", "unsupported_media")
    async with call.http.form(max_files=1, max_fields=32, max_part_size=2**16) as form:
        file, model = form.get("file"), form.get("model")
        if not isinstance(file, UploadFile):
            raise ApiError(400, "the file is missing", "missing_value", "file")
        data = await file.read()
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
    service.check_model(model if isinstance(model, str) else None)
    kind = fields.get("response_format", "json")
    if kind not in ("json", "text") or fields.get("stream", "false").lower() == "true":
        raise ApiError(400, "transcriptions are given as json or text, whole", "unsupported_value", "response_format")
    temperature = _number(fields, "temperature")
    if not data:
        raise ApiError(400, "the file is empty", "invalid_media", "file")
    part = await service.media.part("audio", data, "file")
    question = Text(service.model.wording.question("audio"))
    reader, num_in, num_out = await _written(
        service, [part, question], AnswerSettings(to="text", temperature=temperature)
    )
    if kind == "text":
        return PlainTextResponse(reader.text + "\n")
    counts = usage(num_in, num_out)
    tokens = {
        "type": "tokens",
        "input_tokens": num_in,
        "output_tokens": num_out,
        "total_tokens": counts["total_tokens"],
    }
    return JSONResponse({"text": reader.text, "usage": tokens})


def _number(fields: dict[str, str], name: str) -> float | None:
    if name not in fields:
        return None
    try:
        value = float(fields[name])
    except ValueError:
        value = math.nan
    if not 0 <= value <= 2:
        raise ApiError(400, f"{name} must be a number from 0 to 2", "invalid_value", name)
    return value


async def tokenize(call: Call) -> Response:
    """The codes of a medium and how they lie."""
    service = call.service
    if call.http.headers.get("content-type", "").startswith("multipart/form-data"):
        async with call.http.form(max_files=1, max_fields=8, max_part_size=2**16) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise ApiError(400, "the file is missing", "missing_value", "file")
            data, where = await file.read(), "file"
    else:
        asked = await service.off_loop(parse, TokenizeRequest, call.body)
        data, where = await service.media.url(asked.url, "url"), "url"
    if not data:
        raise ApiError(400, "the file is empty", "invalid_media", where)
    modality = await service.media.kind(data, where)
    medium = await service.media.read(modality, data, where)
    work = service.worker.call(lambda: describe_codes(service.model, modality, medium))
    return JSONResponse(await asyncio.wrap_future(work) | {"shape": list(medium.shape)})


async def detokenize(call: Call) -> Response:
    service = call.service
    asked = await service.off_loop(parse, DetokenizeRequest, call.body)
    _needs(service, asked.modality, "makes")
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
    part = MEDIA_PARTS[asked.modality](codes=codes)
    medium = await service.decode(asked.modality, part.codes)
    rate = service.model.coder.rate(asked.modality)
    return JSONResponse({"url": await service.off_loop(medium_url, asked.modality, medium, rate)})
