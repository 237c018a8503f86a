"""The messages of a conversation → the turns of a document, with every medium in codes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from unimodal.media.registry import MEDIA, find_by_type
from unimodal.pipeline import Unimodal
from unimodal.sequence.document import Media, Part, Text, Turn
from unimodal.serve.bodies import ChatMessage
from unimodal.serve.fields import (
    MEDIUM_WITHOUT_EFFECT,
    MESSAGE,
    MESSAGE_WITHOUT_EFFECT,
    PART_WITHOUT_EFFECT,
    check_fields,
)
from unimodal.serve.media_input import MediaInput
from unimodal.serve.protocol import MOST_CHARACTERS, ApiError
from unimodal.serve.service import gather

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
WORDS = ("text", "refusal")  # types of parts that are words


async def read_turns(
    messages: Sequence[ChatMessage], media: MediaInput, most_media: int, field: str = "messages"
) -> list[Turn]:
    """The turns of a conversation. field: of the request, where they stand. Raises ApiError for what cannot be used."""
    num_media = sum(part.get("type") not in WORDS for one in messages for part in one.parts)
    num_media += sum(one.audio is not None for one in messages)
    if num_media > most_media:
        message = f"{num_media} media in one request; send at most {most_media}"
        raise ApiError(400, message, "too_many_parts", field)
    turns = []
    for number, one in enumerate(messages):
        where = f"{field}[{number}]"
        if one.role not in ROLES:
            message = f"role {one.role[:40]!r} is not known; use {', '.join(ROLES)}"
            raise ApiError(400, message, "invalid_value", f"{where}.role")
        check_fields(one.model_extra or {}, MESSAGE, MESSAGE_WITHOUT_EFFECT, ("role", "content", "audio"), f"{where}.")
        content = "content_parts" if one.content_parts else "content"
        if one.content_parts and one.content and one.role != "assistant":
            message = "content and content_parts are both given; leave one out"
            raise ApiError(400, message, "invalid_value", f"{where}.content_parts")
        parts = await gather(read_part(part, media, f"{where}.{content}[{n}]") for n, part in enumerate(one.parts))
        if one.audio is not None:
            parts.append(await _read_answered_sound(one.audio, media, f"{where}.audio"))
        turns.append(Turn(ROLES[one.role], parts))
    if all(turn.role == "system" for turn in turns):  # a request of the system alone is the one that is asked
        turns[-1] = Turn("user", turns[-1].parts)
    return turns


async def read_part(part: Mapping[str, object], media: MediaInput, where: str) -> Part:
    """One part of a message. Raises ApiError for what cannot be used."""
    kind = part.get("type")
    if not isinstance(kind, str):
        raise ApiError(400, "a part has no type; use text, image_url, …", "invalid_value", f"{where}.type")
    medium = find_by_type(kind)
    if kind not in WORDS and (medium is None or kind == medium.name):
        known = ", ".join(("text", "input_audio", *(medium.url_type for medium in MEDIA.values())))
        raise ApiError(400, f"a part of type {kind[:40]!r} is not known; use {known}", "invalid_value", where)
    content = part.get(kind)
    more = {name: value for name, value in part.items() if name not in ("type", kind, "index")}
    check_fields(more, {}, PART_WITHOUT_EFFECT, ("type", kind), f"{where}.")
    if medium is None:
        return read_text(content, where)
    holder = content if isinstance(content, dict) else {}
    source = "url" if kind == medium.url_type else "data"
    taken = (source, "start", "seconds")
    more = {str(name): value for name, value in holder.items() if name not in taken}
    check_fields(more, {}, MEDIUM_WITHOUT_EFFECT, taken, f"{where}.{kind}.")
    start_s, seconds = _read_span(holder, f"{where}.{kind}")
    if source == "url":
        url = content if isinstance(content, str) else holder.get("url")
        data = await media.read_url(url, where)
    else:
        data = await media.decode_base64(holder.get("data"), where)
    return await media.make_part(medium.name, data, where, start_s, seconds)


def read_text(text: object, where: str) -> Text:
    """Words. Raises ApiError for what is none or too long."""
    if not isinstance(text, str) or len(text) > MOST_CHARACTERS:
        message = f"a text is missing or longer than {MOST_CHARACTERS:,} characters"
        raise ApiError(400, message, "invalid_value", where)
    try:
        return Text(text)
    except ValueError as error:
        raise ApiError(400, str(error), "invalid_value", where) from None


def _read_span(holder: Mapping[object, object], where: str) -> tuple[float, float | None]:
    """(`start`, `seconds`) of a medium; by default it is taken whole."""

    def read(name: str, least: float) -> float | None:
        value = holder.get(name)
        if value is None:
            return None
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or float(str(value)) < least or (name == "seconds" and value == 0):
            bound = "0 or more" if name == "start" else "more than 0"
            raise ApiError(400, f"{name} must be a number of seconds, {bound}", "invalid_value", f"{where}.{name}")
        return float(str(value))

    return read("start", 0.0) or 0.0, read("seconds", 0.0)


async def _read_answered_sound(audio: Mapping[str, object], media: MediaInput, where: str) -> Part:
    """The sound of an earlier answer that is sent back as it came."""
    if not audio.get("data"):
        message = "answers are not stored: send the sound again, with its data or as an input_audio part of the content"
        raise ApiError(400, message, "unsupported_value", where)
    return await media.make_part("audio", await media.decode_base64(audio["data"], f"{where}.data"), where)


def complete_turns(
    model: Unimodal, turns: Sequence[Turn], to: str | None, voice: str | None, where: str = "messages"
) -> list[Turn]:
    """The turns with the last one as the model was trained to be asked: words alone, for a medium, in its own wording;
    media without words with the trained question. Behind an assistant's message another is written. Raises ApiError
    for a voice that has nothing to speak, and where there is nothing to answer."""
    *before, last = turns
    words, has_media = last.text.strip(), any(isinstance(part, Media) for part in last.parts)
    worded = last.role != "assistant" and to in model.vocabulary.media and bool(words) and not has_media
    if voice is not None and not (worded and to == "audio"):
        message = "a voice is for words that are to be spoken; ask for audio with modalities, in words alone"
        raise ApiError(400, message, "invalid_value", "audio")
    if last.role == "assistant":
        return list(turns)
    try:
        parts = [model.wording.phrase_request(words, str(to), voice)] if worded else last.parts
        return [*before, model.user_turn(parts)]
    except ValueError as error:
        raise ApiError(400, str(error), "invalid_value", where) from None
