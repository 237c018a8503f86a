"""Messages of a chat request → a document, and `modalities` → what the answer must or may hold."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from unimodal.pipeline import Unimodal
from unimodal.sequence.document import Part, Text, Turn
from unimodal.serve.media_input import MediaInput
from unimodal.serve.protocol import MOST_CHARACTERS, ApiError, ChatRequest, Message

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
#: part type → modality, for the parts that hold a URL
URL_PARTS = {"image_url": "image", "audio_url": "audio", "video_url": "video"}


def wanted(request: ChatRequest, media: Sequence[str]) -> tuple[str | None, tuple[str, ...] | None]:
    """(the medium that the answer must hold or "text", what it may hold); both None: what the model likes."""
    asked = request.modalities
    if asked is None:
        return None, None
    known = ("text", *media)
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        message = f"modalities {unknown or asked} cannot be answered; this model writes {', '.join(known)}"
        raise ApiError(400, message, "unsupported_modality", "modalities")
    names = tuple(name for name in known if name in asked)
    if len(names) == 1:
        return names[0], None
    if names == ("text", "audio"):  # OpenAI's way to ask for speech
        return "audio", None
    return None, names


async def turns_of(request: ChatRequest, media: MediaInput, most_parts: int) -> list[Turn]:
    """The turns of a request, with every medium in codes. Raises ApiError for what cannot be used."""
    num_media = sum(_is_medium(part) for message in request.messages for part in _parts(message))
    if num_media > most_parts:
        raise ApiError(
            400, f"{num_media} media in one request; send at most {most_parts}", "too_many_parts", "messages"
        )
    if request.messages[-1].role != "user":
        raise ApiError(400, "the last message must be the user's", "invalid_value", "messages")
    turns = []
    for number, message in enumerate(request.messages):
        where = f"messages[{number}]"
        if message.role not in ROLES:
            known = ", ".join(ROLES)
            raise ApiError(
                400, f"role {message.role[:40]!r} is not known; use {known}", "invalid_value", f"{where}.role"
            )
        if message.audio is not None and message.content is None:
            told = "answers are not stored: send the sound again, as an input_audio part of the content"
            raise ApiError(400, told, "unsupported_value", f"{where}.audio")
        coding = [_part(part, media, f"{where}.content[{n}]") for n, part in enumerate(_parts(message))]
        turns.append(Turn(ROLES[message.role], await gathered(coding)))
    return turns


def completed(model: Unimodal, turn: Turn, to: str | None, voice: str | None) -> Turn:
    """The last turn as the model was trained to be asked: `user_turn` of the pipeline, and wishes in its own words."""
    has_media = any(not isinstance(part, Text) for part in turn.parts)
    words = turn.text.strip()
    if to in model.vocabulary.media and words and not has_media:
        return model.user_turn([model.wording.request(words, str(to), voice)])
    if voice is not None and to != "audio":
        raise ApiError(400, "a voice is for answers in audio; ask for them with modalities", "invalid_value", "audio")
    return model.user_turn(turn.parts)


def _parts(message: Message) -> list[dict[str, Any]]:
    if message.content is None:
        return []
    return [{"type": "text", "text": message.content}] if isinstance(message.content, str) else message.content


def _is_medium(part: dict[str, Any]) -> bool:
    return part.get("type") not in ("text", "refusal")


async def _part(part: dict[str, Any], media: MediaInput, where: str) -> Part:
    kind = part.get("type")
    if not isinstance(kind, str):
        raise ApiError(400, "a part has no type; use text, image_url, …", "invalid_value", f"{where}.type")
    if kind in ("text", "refusal"):
        text = part.get(kind)
        if not isinstance(text, str) or len(text) > MOST_CHARACTERS:
            raise ApiError(
                400, f"a text is missing or longer than {MOST_CHARACTERS:,} characters", "invalid_value", where
            )
        try:
            return Text(text)
        except ValueError as error:
            raise ApiError(400, str(error), "invalid_value", where) from None
    if kind in URL_PARTS:
        holder = part.get(kind)
        url = holder.get("url") if isinstance(holder, dict) else holder
        return await media.part(URL_PARTS[kind], await media.url(url, where), where)
    if kind == "input_audio":
        holder = part.get(kind)
        data = await media.base64(holder.get("data") if isinstance(holder, dict) else None, where)
        return await media.part("audio", data, where)
    known = ", ".join(("text", "input_audio", *URL_PARTS))
    raise ApiError(400, f"a part of type {kind[:40]!r} is not known; use {known}", "invalid_value", where)


async def gathered(coding: Sequence[Any]) -> list[Any]:
    """All at once; the first error ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in coding]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
