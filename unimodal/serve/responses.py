"""`/v1/responses`: OpenAI's newer form of a conversation, answered in words, whole or as events."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from time import time

from starlette.responses import JSONResponse, Response

from unimodal.sequence.document import Turn
from unimodal.serve.bodies import ChatMessage, ChatRequest, ResponseRequest, parse
from unimodal.serve.chat import ChatAnswer, prepare_answer
from unimodal.serve.fields import check_fields
from unimodal.serve.messages import complete_turns, read_text, read_turns
from unimodal.serve.protocol import ApiError, encode_event
from unimodal.serve.service import EventStream, Exchange

#: types of parts here → those of a chat message, which are taken too
PART_TYPES = {"input_text": "text", "output_text": "text", "input_image": "image_url"}
ITEM_FIELDS = ("type", "role", "content")
ITEM_WITHOUT_EFFECT = frozenset(("id", "status", "phase"))  # of an answer that is sent back
PART_WITHOUT_EFFECT = frozenset(("annotations", "logprobs", "prompt_cache_breakpoint"))


async def respond(exchange: Exchange) -> Response:
    service = exchange.service
    asked = await service.run(parse, ResponseRequest, exchange.body, exchange.content_type)
    service.check_model(asked.model)
    chat = ChatRequest(
        messages=list_messages(asked),
        temperature=asked.temperature,
        top_p=asked.top_p,
        seed=asked.seed,
        max_tokens=asked.max_output_tokens,
        compress=asked.compress,
    )
    turns = await read_turns(chat.messages, service.media, service.config.max_parts, "input")
    turns = complete_turns(service.model, turns, "text", None, "input")
    if asked.instructions:
        turns = [Turn("system", [read_text(asked.instructions, "instructions")]), *turns]
    names = {"prompt": "input", "tokens": "max_output_tokens"}
    answer = await prepare_answer(service, chat, turns, chat.make_settings(()), names)
    written = WrittenResponse(asked, answer)
    return EventStream(exchange, written.stream()) if asked.stream else JSONResponse(await written.write())


# ---- input → messages


def list_messages(asked: ResponseRequest) -> list[ChatMessage]:
    """The input as the messages of a chat. Raises ApiError 400 for items and parts of other kinds."""
    if isinstance(asked.input, str):
        return [ChatMessage(role="user", content=asked.input)]
    if not asked.input:
        raise ApiError(400, "the input is empty; give words or messages", "invalid_value", "input")
    return [_read_item(item, f"input[{number}]") for number, item in enumerate(asked.input)]


def _read_item(item: Mapping[str, object], where: str) -> ChatMessage:
    kind, role, content = item.get("type", "message"), item.get("role"), item.get("content")
    if kind != "message":
        message = f"items of type {str(kind)[:40]!r} are not read; send messages: this model has no tools"
        raise ApiError(400, message, "unsupported_value", f"{where}.type")
    more = {str(name): value for name, value in item.items() if name not in ITEM_FIELDS}
    check_fields(more, {}, ITEM_WITHOUT_EFFECT, ITEM_FIELDS, f"{where}.")
    if not isinstance(role, str):
        raise ApiError(400, "a message has no role; use user, assistant or system", "invalid_value", f"{where}.role")
    if isinstance(content, str):
        return ChatMessage(role=role, content=content)
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise ApiError(400, "content must be words or a list of parts", "invalid_value", f"{where}.content")
    parts = [_read_part(part, f"{where}.content[{number}]") for number, part in enumerate(content)]
    return ChatMessage(role=role, content=parts)


def _read_part(part: Mapping[str, object], where: str) -> dict[str, object]:
    """A part as that of a chat message."""
    kind = part.get("type")
    known = {str(name): value for name, value in part.items() if name not in PART_WITHOUT_EFFECT}
    if kind == "input_image":
        if known.get("file_id") is not None or known.get("image_url") is None:
            message = "a picture is sent as a data URL in image_url; no files are stored here"
            raise ApiError(400, message, "unsupported_value", f"{where}.file_id")
        more = {name: value for name, value in known.items() if name not in ("type", "image_url", "detail", "file_id")}
        return {**more, "type": "image_url", "image_url": {"url": known["image_url"]}}
    return {**known, "type": PART_TYPES.get(str(kind), kind)}


# ---- the answer


class WrittenResponse:
    """The answer to a request, on its way to the client."""

    def __init__(self, asked: ResponseRequest, answer: ChatAnswer) -> None:
        self.asked, self.answer = asked, answer
        [self.choice] = answer.choices
        self.id, self.item_id = (f"{kind}_{secrets.token_hex(12)}" for kind in ("resp", "msg"))
        self.created = int(time())

    async def write(self) -> dict[str, object]:
        """The whole `response`."""
        message = await self.choice.write()
        return self._describe(self._name_status(), message["content"] or "")

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The events from `response.created` to `response.completed` or `response.incomplete`."""
        number = 0

        def write_event(kind: str, **more: object) -> bytes:
            nonlocal number
            number += 1
            return encode_event({"type": kind, "sequence_number": number - 1, **more}, kind)

        place = {"item_id": self.item_id, "output_index": 0, "content_index": 0}
        yield write_event("response.created", response=self._describe("in_progress", None))
        yield write_event("response.in_progress", response=self._describe("in_progress", None))
        begun = {**self._write_item("in_progress", ""), "content": []}
        yield write_event("response.output_item.added", output_index=0, item=begun)
        yield write_event("response.content_part.added", **place, part=_write_text(""))
        words = ""
        async with aclosing(self.choice.stream(partial=False)) as deltas:
            async for delta in deltas:
                if delta.get("content"):
                    words += delta["content"]
                    yield write_event("response.output_text.delta", **place, delta=delta["content"], logprobs=[])
        status = self._name_status()
        yield write_event("response.output_text.done", **place, text=words, logprobs=[])
        yield write_event("response.content_part.done", **place, part=_write_text(words))
        yield write_event("response.output_item.done", output_index=0, item=self._write_item(status, words))
        yield write_event(f"response.{status}", response=self._describe(status, words))

    def _name_status(self) -> str:
        return "completed" if self.choice.find_reason() == "stop" else "incomplete"

    def _write_item(self, status: str, words: str) -> dict[str, object]:
        return {
            "id": self.item_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [_write_text(words)],
        }

    def _describe(self, status: str, words: str | None) -> dict[str, object]:
        """The `response` object; words: None while there are none yet."""
        asked = self.asked
        usage: dict[str, object] | None = None
        if words is not None:
            counts = self.answer.count_usage()
            usage = {
                "input_tokens": counts["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": counts["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counts["total_tokens"],
            }
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": (asked.model_extra or {}).get("metadata") or {},
            "model": self.answer.service.name,
            "output": [] if words is None else [self._write_item(status, words)],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": asked.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": asked.top_p,
            "truncation": "auto",
            "usage": usage,
            **({"notes": self.answer.notes} if self.answer.notes else {}),
        }


def _write_text(words: str) -> dict[str, object]:
    return {"type": "output_text", "text": words, "annotations": [], "logprobs": []}
