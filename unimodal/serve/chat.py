"""`/v1/chat/completions`: a conversation → one or several choices of an answer, whole or streamed."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from time import time

from starlette.responses import JSONResponse, Response

from unimodal.compression import Method
from unimodal.pipeline.compression import describe_kept, describe_methods
from unimodal.pipeline.requests import fit_history
from unimodal.pipeline.settings import AnswerSettings
from unimodal.sequence.document import Document, Media, Turn
from unimodal.serve.answer import AnswerReader
from unimodal.serve.bodies import ChatRequest, parse
from unimodal.serve.choice import Choice
from unimodal.serve.messages import complete_turns, read_turns
from unimodal.serve.protocol import (
    DONE,
    ApiError,
    Delta,
    FinishReason,
    Usage,
    count_usage,
    encode_event,
    name_fields,
    read_voice,
)
from unimodal.serve.service import EventStream, Exchange, Service, gather


async def complete_chat(exchange: Exchange) -> Response:
    service = exchange.service
    asked = await service.run(parse, ChatRequest, exchange.body, exchange.content_type)
    service.check_model(asked.model)
    settings = asked.make_settings(service.model.vocabulary.media)
    if asked.n is not None:
        exchange.take_places(asked.n)
    turns = await read_turns(asked.messages, service.media, service.config.max_parts)
    voices = tuple(service.model.wording.voices)
    voice = None if asked.audio is None else read_voice(asked.audio.voice, voices, "audio.voice")
    turns = complete_turns(service.model, turns, settings.to, voice)
    answer = await prepare_answer(service, asked, turns, settings)
    return EventStream(exchange, answer.stream()) if asked.stream else JSONResponse(await answer.write())


#: settings of an answer → the fields of a chat request that they come from
FIELDS_OF_CHAT = {"prompt": "messages", "tokens": "max_tokens", "to": "modalities", "allow": "modalities"}


async def prepare_answer(
    service: Service,
    asked: ChatRequest,
    turns: Sequence[Turn],
    settings: AnswerSettings,
    names: Mapping[str, str] = FIELDS_OF_CHAT,
) -> ChatAnswer:
    """Prepares the answer to turns whose last one is phrased; nothing is started yet. names: of fields, for
    `name_fields`.

    Raises ApiError for what does not fit the model.
    """
    spoken = service.model.wording.extract_speech(turns[-1].text) if settings.to == "audio" else None
    kind = asked.audio.format if asked.audio is not None else None

    async def make_choice(number: int) -> Choice:
        reader = AnswerReader(service.model, asked.stop)
        own = settings.replace(seed=settings.seed + number)
        return Choice(service, reader, await service.prepare(document, own, reader), kind or "wav", spoken)

    with name_fields(**names):
        settings = choose_methods(service, asked, settings)
        document = await service.run(fit_history, service.model, turns, settings)
        choices = [await make_choice(number) for number in range(asked.n or 1)]
    return ChatAnswer(service, asked, choices, list_notes(service, document, turns), settings.methods)


def choose_methods(service: Service, asked: ChatRequest, settings: AnswerSettings) -> AnswerSettings:
    """The settings with the methods of compression of the request, or else of the server; an empty list is none.

    Raises ApiError for methods of a request that may name none, and for methods that there are not.
    """
    config = service.config
    if asked.compress is None:
        return settings.replace(compress=service.methods) if service.methods else settings
    if not config.allow_compress:
        message = "compress: this server does not let requests choose it (serve --allow-compress); leave it out"
        raise ApiError(400, message, "unsupported_value", "compress")
    try:
        return settings if asked.compress == [] else settings.replace(compress=asked.compress)
    except ValueError as error:
        raise ApiError(400, str(error), "invalid_value", "compress") from None


def list_notes(service: Service, document: Document, turns: Sequence[Turn]) -> list[str]:
    """What was left out of the files of a document, and of the turns of its conversation."""
    notes = [note for part in document.parts if isinstance(part, Media) for note in part.notes]
    if num_left_out := len(turns) - len(document.turns):
        limit = service.model.processor.history_turns
        why = "it has no room for more"
        if limit is not None:
            why = f"it sees at most {limit} earlier exchanges" if limit else "it answers every message by itself"
        which = "1 earlier message was" if num_left_out == 1 else f"{num_left_out} earlier messages were"
        notes.append(f"{which} not shown to the model: {why}")
    return notes


class ChatAnswer:
    """The answer to a chat request, on its way to the client."""

    def __init__(
        self,
        service: Service,
        asked: ChatRequest,
        choices: Sequence[Choice],
        notes: Sequence[str],
        methods: Sequence[Method] = (),
    ) -> None:
        self.service, self.asked, self.choices, self.methods = service, asked, choices, methods
        self._notes = notes
        self.id = f"chatcmpl-{secrets.token_hex(12)}"

    @property
    def notes(self) -> list[str]:
        """What was left out of the files and of the conversation, and what compression has left of the prompt; before
        the prompt is read, by which methods it will be compressed."""
        if not self.methods:
            return list(self._notes)
        event = self.choices[0].reader.compressed
        if event is not None:
            return [*self._notes, describe_kept(self.methods, event.num_tokens, event.num_kept)]
        if self.choices[0].request.methods:
            return [*self._notes, f"compressed by {describe_methods(self.methods)}"]
        num = len(self.choices[0].request.prompt)
        return [*self._notes, describe_kept(self.methods, num, num)]

    async def write(self) -> dict[str, object]:
        """The whole `chat.completion`."""
        messages = await gather(choice.write() for choice in self.choices)
        choices = [
            {"index": index, "message": message, "logprobs": None, "finish_reason": choice.find_reason()}
            for index, (message, choice) in enumerate(zip(messages, self.choices, strict=True))
        ]
        return {**self._write_head("chat.completion"), "choices": choices, "usage": self.count_usage()}

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """`chat.completion.chunk` events, and `DONE`."""
        head = self._write_head("chat.completion.chunk")
        with_usage = self.asked.stream_options is not None and self.asked.stream_options.include_usage

        def write_chunk(index: int, delta: Delta, reason: FinishReason | None = None) -> bytes:
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
            return encode_event({**head, "choices": [choice], **({"usage": None} if with_usage else {})})

        async def write_choice(index: int, choice: Choice) -> AsyncGenerator[bytes, None]:
            async for delta in choice.stream(self.asked.stream_partial):
                yield write_chunk(index, delta)
            yield write_chunk(index, {}, choice.find_reason())

        async for chunk in merge([write_choice(index, choice) for index, choice in enumerate(self.choices)]):
            yield chunk
        if with_usage:
            yield encode_event({**head, "choices": [], "usage": self.count_usage()})
        yield DONE

    def count_usage(self) -> Usage:
        """Counts tokens; the end mark of an answer that `max_tokens` cut was not written by the model and does not
        count.
        """
        most = self.asked.tokens
        written = sum(len(one.ids) if most is None else min(len(one.ids), most) for one in self.choices)
        usage = count_usage(len(self.choices[0].request.prompt), written)
        event = self.choices[0].reader.compressed
        if event is not None:
            usage["prompt_tokens_kept"] = event.num_kept
        return usage

    def _write_head(self, kind: str) -> dict[str, object]:
        """The head of every object of an answer; `notes` say what was left out of the files that were sent."""
        head: Mapping[str, object] = {
            "id": self.id,
            "object": kind,
            "created": int(time()),
            "model": self.service.name,
        }
        return {**head, "notes": self.notes} if self.notes else dict(head)


@dataclass(frozen=True)
class _End:
    """A stream has ended, with an error or without."""

    error: Exception | None = None


async def merge(streams: Sequence[AsyncGenerator[bytes, None]]) -> AsyncGenerator[bytes, None]:
    """The events of all streams as they come. The first error ends the other streams, and so does leaving."""
    events: asyncio.Queue[bytes | _End] = asyncio.Queue(1)

    async def drain(stream: AsyncGenerator[bytes, None]) -> None:
        async with aclosing(stream):
            try:
                async for event in stream:
                    await events.put(event)
            except Exception as error:
                await events.put(_End(error))
            else:
                await events.put(_End())

    tasks = [asyncio.ensure_future(drain(stream)) for stream in streams]
    try:
        left = len(tasks)
        while left:
            event = await events.get()
            if not isinstance(event, _End):
                yield event
            elif event.error is not None:
                raise event.error
            else:
                left -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
