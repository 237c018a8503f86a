"""`/v1/attributions`: of the media in a conversation, how much of an answer came from each, and from where in it."""

from __future__ import annotations

import asyncio
import io
from functools import partial

from PIL import Image
from starlette.responses import JSONResponse, Response

from unimodal.evaluation.inspection.opened import OpenedModel
from unimodal.evaluation.inspection.sources import METHOD, MediumSource, find_sources
from unimodal.pipeline.requests import fit_history
from unimodal.pipeline.settings import AnswerSettings
from unimodal.sequence.document import Document, Media, Text, Turn
from unimodal.serve.bodies import AttributionRequest, parse
from unimodal.serve.media_output import make_data_url
from unimodal.serve.messages import complete_turns, read_turns
from unimodal.serve.protocol import ApiError
from unimodal.serve.service import Exchange, Service

MOST_TOKENS = 2048  # of a conversation and its answer, which are read forwards and backwards in one piece of work
MOST_DECODED = 128  # codes without a place of their own, each of which is decoded to see where it shows


async def attribute(exchange: Exchange) -> Response:
    """The last message is the answer, in words; the others are what it answered, as a chat request has them."""
    service = exchange.service
    asked = await service.run(parse, AttributionRequest, exchange.body, exchange.content_type)
    service.check_model(asked.model)
    *turns, answered = await read_turns(asked.messages, service.media, service.config.max_parts)
    if answered.role != "assistant" or not answered.text.strip() or any(isinstance(p, Media) for p in answered.parts):
        message = "the last message must be the assistant's answer, in words alone"
        raise ApiError(400, message, "invalid_value", f"messages[{len(turns)}]")
    if turns[-1].role == "assistant":
        raise ApiError(400, "the answer follows no message of the user", "invalid_value", f"messages[{len(turns) - 1}]")
    turns = complete_turns(service.model, turns, "text", None)
    document = await service.run(fit_history, service.model, turns, AnswerSettings(to="text"))
    work = partial(look, service, document, answered)
    found = await asyncio.wrap_future(service.worker.call(work))
    media = [
        {
            "message": message,
            "modality": source.modality,
            "share": round(source.share, 4),
            "url": await paint(service, source),
        }
        for message, source in zip(list_places(turns, document), found, strict=True)
    ]
    return JSONResponse({"object": "attribution", "method": METHOD, "media": media})


def look(service: Service, document: Document, answered: Turn) -> list[MediumSource]:
    """The sources of an answer; only the thread of the model may ask. Raises ApiError for what cannot be looked at."""
    words = " ".join(part.text for part in answered.parts if isinstance(part, Text))
    try:
        opened = OpenedModel(service.name, service.model.decoder, service.model.template.text, service.model)
        return find_sources(opened, document, words, most_tokens=MOST_TOKENS, most_decoded=MOST_DECODED)
    except ValueError as error:
        raise ApiError(400, str(error), "invalid_value", "messages") from None


def list_places(turns: list[Turn], document: Document) -> list[int]:
    """For each medium of the document the number of the message that it stands in; earlier messages may have been left
    out, but for those of the system at the head."""
    system = next((number for number, turn in enumerate(turns) if turn.role != "system"), len(turns))
    left_out = len(turns) - len(document.turns)
    return [
        number + (left_out if number >= system else 0)
        for number, turn in enumerate(document.turns)
        for part in turn.parts
        if isinstance(part, Media)
    ]


async def paint(service: Service, source: MediumSource) -> str | None:
    """The picture of a source as a data URL."""
    if source.picture is None:
        return None
    memory = io.BytesIO()
    await service.run(Image.fromarray(source.picture).save, memory, "PNG")
    return make_data_url(memory.getvalue(), "image/png")
