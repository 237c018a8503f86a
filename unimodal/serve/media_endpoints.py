"""Pictures, speech and transcriptions by OpenAI's endpoints, and codes by our own."""

from __future__ import annotations

import asyncio
import base64
from functools import partial
from time import time
from typing import NamedTuple

import numpy as np
from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse, Response
from torch import Tensor

from unimodal.pipeline.rows import describe_codes
from unimodal.pipeline.settings import AnswerSettings
from unimodal.sequence.document import Document, Part, Text, Turn
from unimodal.serve.answer import AnswerReader, MediumPiece, Piece
from unimodal.serve.bodies import (
    DetokenizeRequest,
    ImageRequest,
    SpeechRequest,
    TokenizeForm,
    TokenizeRequest,
    parse,
    parse_form,
)
from unimodal.serve.media_output import (
    describe_resizing,
    encode_picture,
    encode_sound,
    make_data_url,
    make_medium_url,
    resize_picture,
)
from unimodal.serve.protocol import ApiError, name_fields, read_voice
from unimodal.serve.service import Exchange, Service, gather
from unimodal.serve.sound_stream import SoundStream, StreamedSound, encode_sounds, hear_sounds


class WholeAnswer(NamedTuple):
    """A finished answer, the number of tokens of its prompt, and its ids."""

    reader: AnswerReader
    num_in: int
    ids: list[int]

    @property
    def num_out(self) -> int:
        return len(self.ids)

    def find_medium(self, modality: str) -> MediumPiece:
        """The one medium of an answer that had to hold it."""
        [piece] = [piece for piece in self.reader.media if piece.modality == modality]
        return piece


async def answer_turn(service: Service, parts: list[Part], settings: AnswerSettings, **names: str) -> WholeAnswer:
    """Answers one turn of the user. names: setting → field of the request, to name in errors."""
    reader = AnswerReader(service.model)
    with name_fields(**names):
        request = await service.prepare(Document([Turn("user", parts)]), settings, reader)
    ids = await service.answer(request)
    reader.finish()
    return WholeAnswer(reader, len(request.prompt), ids)


def phrase_wish(service: Service, prompt: str, to: str, param: str, voice: str | None = None) -> list[Part]:
    """A prompt as the model was trained to be asked for a medium. Raises ApiError for an empty prompt."""
    try:
        return [Text(service.model.wording.phrase_request(prompt, to, voice))]
    except ValueError as error:
        raise ApiError(400, str(error), "invalid_value", param) from None


def check_medium(service: Service, modality: str, does: str) -> None:
    """Raises ApiError 400 for a medium that the model does not have."""
    if modality not in service.model.vocabulary.media:
        known = ", ".join(("text", *service.model.vocabulary.media))
        raise ApiError(400, f"this model {does} no {modality}; it has {known}", "unsupported_modality", "model")


async def draw_images(exchange: Exchange) -> Response:
    service = exchange.service
    asked = parse(ImageRequest, exchange.body, exchange.content_type)
    service.check_model(asked.model)
    check_medium(service, "image", "draws")
    own, wanted = service.model.coder.get_tokenizer("image").picture_size, asked.width_and_height
    num, kind = asked.n or 1, asked.output_format or "png"
    if asked.output_compression not in (None, 100) and kind == "png":
        message = "output_compression is for jpeg and webp; set output_format, or leave it out"
        raise ApiError(400, message, "unsupported_value", "output_compression")
    words = phrase_wish(service, asked.prompt, "image", "prompt")
    exchange.take_places(num)
    settings = asked.make_settings()

    async def draw(number: int) -> tuple[Tensor, WholeAnswer]:
        answer = await answer_turn(service, words, settings.replace(seed=settings.seed + number))
        return await service.decode("image", answer.find_medium("image").codes), answer

    drawn = await gather(draw(number) for number in range(num))
    sizes = {(picture.shape[2], picture.shape[1]) for picture, _ in drawn}
    notes = [describe_resizing(size, wanted) for size in sizes if wanted not in (None, size)]

    def encode(picture: Tensor) -> bytes:
        fitted = picture if wanted is None else resize_picture(picture, *wanted)
        return encode_picture(fitted, kind, asked.output_compression)

    files = await gather(service.run(encode, picture) for picture, _ in drawn)
    if asked.response_format == "url":
        data = [{"url": make_data_url(file, f"image/{kind}")} for file in files]
    else:
        data = [{"b64_json": base64.b64encode(file).decode("ascii")} for file in files]
    num_in, num_out = sum(answer.num_in for _, answer in drawn), sum(answer.num_out for _, answer in drawn)
    counts = {"input_tokens": num_in, "output_tokens": num_out, "total_tokens": num_in + num_out}
    details = {"input_tokens_details": {"text_tokens": num_in, "image_tokens": 0}}
    about: dict[str, object] = {"output_format": kind}
    shown = wanted if wanted is not None else own and (own[1], own[0])
    if shown is not None:
        about["size"] = f"{shown[0]}x{shown[1]}"
    if notes:
        about["notes"] = notes
    return JSONResponse({"created": int(time()), "data": data, "usage": counts | details, **about})


async def speak(exchange: Exchange) -> Response:
    service = exchange.service
    asked = parse(SpeechRequest, exchange.body, exchange.content_type)
    service.check_model(asked.model)
    check_medium(service, "audio", "speaks")
    voice = read_voice(asked.voice, tuple(service.model.wording.voices))
    words = phrase_wish(service, asked.input, "audio", "input", voice)
    pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def emit(piece: Piece) -> None:  # from the worker's thread
        loop.call_soon_threadsafe(pieces.put_nowait, piece)

    reader = AnswerReader(service.model, emit=emit)
    with name_fields(prompt="input"):
        request = await service.prepare(Document([Turn("user", words)]), asked.make_settings(), reader)
    rate_hz = int(service.model.coder.get_rate("audio") or 16_000)
    kind, sounds = asked.response_format or "mp3", hear_sounds(service, request, pieces)
    try:
        first = await anext(sounds)
        if request.num_parts > 1:
            stream = SoundStream(kind, rate_hz)
            return StreamedSound(exchange, encode_sounds(service, stream, first, sounds), stream.media_type)
        data, media_type = await service.run(encode_sound, first, rate_hz, kind)
        return Response(data, media_type=media_type)
    except BaseException:
        await sounds.aclose()
        raise


async def read_form(exchange: Exchange) -> tuple[bytes, dict[str, object]]:
    """The file of a form, and its other fields; those named `name[]` are lists. Raises ApiError 400 and 415."""
    if not (exchange.content_type or "").lower().startswith("multipart/form-data"):
        raise ApiError(415, "send multipart/form-data with a file (curl: -F file=@NAME)", "unsupported_media")
    async with exchange.http.form(max_files=1, max_fields=64, max_part_size=2**16) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise ApiError(400, "the file is missing", "missing_value", "file")
        data = await file.read()
        fields: dict[str, object] = {}
        for name, value in form.multi_items():
            if name != "file" and isinstance(value, str):
                fields[name] = [*form.getlist(name)] if name.endswith("[]") else value
    return data, fields


async def tokenize(exchange: Exchange) -> Response:
    """The codes of a medium and how they lie."""
    service = exchange.service
    part: TokenizeRequest | TokenizeForm
    if (exchange.content_type or "").lower().startswith("multipart/form-data"):
        data, fields = await read_form(exchange)
        part, where = parse_form(TokenizeForm, fields), "file"
    else:
        part = asked = await service.run(parse, TokenizeRequest, exchange.body, exchange.content_type)
        data, where = await service.media.read_url(asked.url, "url"), "url"
    if not data:
        raise ApiError(400, "the file is empty", "invalid_media", where)
    modality = await service.media.find_modality(data, where)
    notes: list[str] = []
    medium = await service.media.read(modality, data, where, notes.append, part.start or 0.0, part.seconds)
    described = await asyncio.wrap_future(service.worker.call(partial(describe_codes, service.model, modality, medium)))
    return JSONResponse({**described, "shape": list(medium.shape), **({"notes": notes} if notes else {})})


async def detokenize(exchange: Exchange) -> Response:
    """The medium of codes, or of the first of them."""
    service = exchange.service
    asked = await service.run(parse, DetokenizeRequest, exchange.body, exchange.content_type)
    check_medium(service, asked.modality, "makes")
    vocabulary, tokenizer = service.model.vocabulary, service.model.coder.get_tokenizer(asked.modality)
    groups = len(vocabulary.group_blocks(vocabulary.get_layout(asked.modality).segments[0].block))
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
    except OverflowError:
        raise ApiError(400, "a code is larger than any of this model's", "invalid_value", "codes") from None
    except ValueError as error:
        raise ApiError(400, str(error), "invalid_value", "codes") from None
    if asked.prefix is not None:
        if not tokenizer.ordered:
            message = f"the codes of {asked.modality} are not ordered; a prefix of them shows nothing"
            raise ApiError(400, message, "unsupported_value", "prefix")
        if asked.prefix > len(codes):
            message = f"a prefix of {asked.prefix} is longer than the {len(codes)} codes"
            raise ApiError(400, message, "invalid_value", "prefix")
        codes = codes[: asked.prefix]
    medium = await service.decode(asked.modality, codes)
    rate = service.model.coder.get_rate(asked.modality)
    return JSONResponse({"url": await service.run(make_medium_url, asked.modality, medium, rate)})
