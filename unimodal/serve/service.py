"""What the endpoints share: the model and its worker, the places inside, deadlines, and clients that leave.

`Service` is the model as endpoints use it. An `Exchange` is one HTTP request on its way through an endpoint, and an
`EventStream` its response where that is written bit by bit.

Shapes: N codes, G groups.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import monotonic
from typing import ParamSpec, TypeVar

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send
from torch import Tensor

from unimodal.generation.request import GenerationRequest
from unimodal.pipeline import Unimodal
from unimodal.pipeline.compression import check_methods, load_methods
from unimodal.pipeline.requests import UnfitRequestError
from unimodal.pipeline.rows import make_row
from unimodal.pipeline.settings import AnswerSettings
from unimodal.sequence.document import Document
from unimodal.serve.answer import AnswerReader
from unimodal.serve.cache_budget import MIB, CacheBudget, find_default_budget
from unimodal.serve.media_input import MediaInput, make_limits
from unimodal.serve.metrics import Metrics
from unimodal.serve.protocol import DONE, ApiError, encode_event
from unimodal.serve.settings import ServeConfig
from unimodal.serve.tickets import CLIENT, MemoryShort, ShuttingDown
from unimodal.serve.worker import Worker

log = logging.getLogger("unimodal.serve")
CLIENT_LEFT = 499  # nginx's number for it; nobody receives it

Handler = Callable[["Exchange"], Awaitable[Response]]
Given = ParamSpec("Given")
Result = TypeVar("Result")


class Service:
    """`start` it before the first request and `stop` it after the last.

    methods: those of `config.compress`. Raises ValueError for methods that there are not or that do not fit the model.
    """

    def __init__(self, model: Unimodal, config: ServeConfig) -> None:
        self.model, self.config = model, config
        self.name = model.folder.name
        self.methods = check_methods(model, load_methods(config.compress))
        self.metrics = Metrics()
        most = find_default_budget(model.engine.device) if config.cache_mb is None else int(config.cache_mb * MIB)
        self.budget = CacheBudget(model.engine, most)
        self.worker = Worker(model, config.max_batch, most, self.metrics.count_turn, self.metrics.work.observe)
        self.pool = ThreadPoolExecutor(max(2, min(4, os.cpu_count() or 2)), thread_name_prefix="unimodal-media")
        self.media = MediaInput(model, self.worker, config, self.pool)
        self.num_inside = 0
        self.ending = False  # nobody is let in any more
        self.ended = asyncio.Event()  # who is still inside is sent away
        model.coder.limits = make_limits(config)
        for modality in model.vocabulary.media:  # loaded now: threads would load them twice
            model.coder.get_tokenizer(modality)
            if model.is_read_by_features(modality):
                model.coder.get_reader(modality)

    def start(self) -> None:
        self.worker.start()

    async def end_requests(self) -> None:
        """Let nobody in, give those inside `grace_s` seconds to end, and send the others away with ShuttingDown."""
        self.ending = True
        end = monotonic() + self.config.grace_s
        while self.num_inside and monotonic() < end:
            await asyncio.sleep(0.05)
        self.ended.set()

    def stop(self) -> None:
        self.worker.stop()
        self.media.close()
        self.pool.shutdown(wait=False, cancel_futures=True)

    # ---- how many are inside

    def enter(self, num: int = 1, of: int = 1) -> None:
        """Take `num` places of the `of` that a request needs in all.

        Raises ApiError: 429 if the queue is full, 400 for more places than there are, 503 while the server stops.
        """
        most = self.config.max_batch + self.config.queue_limit
        if of > most:  # waiting would not help
            raise ApiError(400, f"n is {of}, and this server makes at most {most} at once", "invalid_value", "n")
        if self.ending or not self.worker.alive:
            raise ApiError(
                503, "the server is shutting down; try again later", "unavailable", None, {"Retry-After": "5"}
            )
        if self.num_inside + num > most:
            message = "the server is busy; try again in a moment"
            raise ApiError(429, message, "queue_full", None, {"Retry-After": "1"})
        self.num_inside += num
        self.metrics.in_flight.set(self.num_inside)

    def leave(self, num: int = 1) -> None:
        self.num_inside -= num
        self.metrics.in_flight.set(self.num_inside)

    # ---- work

    async def run(self, work: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
        """Work of the processor, in a thread of its own: it would hold up the other requests."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, partial(work, *args, **kwargs))

    async def prepare(self, document: Document, settings: AnswerSettings, reader: AnswerReader) -> GenerationRequest:
        """What the worker is asked for an answer, whose tokens `reader` is given. Raises ValueError, before anything
        is begun, for whatever the model or the engine would refuse."""

        def make_request() -> GenerationRequest:
            request = make_row(self.model, document, settings, reader, reader.note_compression)
            compressed = bool(request.methods)
            prepared = self.model.engine.prepare([request.prompt], [request.config], compressed)
            self.budget.check(prepared, compressed)
            return request

        return await self.run(make_request)

    async def answer(self, request: GenerationRequest) -> list[int]:
        """The ids of an answer; cancelling frees its row."""
        ticket = self.worker.submit(request, CLIENT.get())
        try:
            ids = await asyncio.wrap_future(ticket.future)
        except asyncio.CancelledError:
            self.worker.cancel(ticket)
            raise
        except UnfitRequestError:  # a row of an answer that takes several
            raise
        except ValueError as error:  # it was checked: this is no mistake of the client's
            raise RuntimeError("the batch refused a request that had been checked") from error
        self.metrics.tokens.labels("prompt").inc(len(request.prompt))
        self.metrics.tokens.labels("completion").inc(len(ids))
        return ids

    async def decode(self, modality: str, codes: np.ndarray) -> Tensor:
        """The medium of codes [N] or [N, G] that the model wrote."""
        self.metrics.media.labels(modality).inc()
        try:
            return await asyncio.wrap_future(self.worker.decode(modality, codes))
        except ValueError as error:
            raise RuntimeError("codes of an answer cannot be decoded") from error

    def check_model(self, name: str | None) -> None:
        """Raises ApiError 404 for a model that is named and is not this one."""
        if name is not None and name not in (self.name, str(self.model.folder), *self.config.aliases):
            message = f"the model {name[:100]!r} is not served here; use {self.name!r}"
            raise ApiError(404, message, "model_not_found", "model")

    # ---- one exchange

    def make_endpoint(self, name: str, handler: Handler) -> Callable[[HttpRequest], Awaitable[Response]]:
        """A handler with its place in the queue, its deadline, and an eye on whether the client is still there."""

        async def endpoint(http: HttpRequest) -> Response:
            exchange = Exchange(self, name, http)
            try:
                exchange.take_places(1)
                response = await exchange.handle(handler)
            except Exception as error:
                response = make_error_response(to_api_error(error))
            except BaseException:
                exchange.close(CLIENT_LEFT)
                raise
            if not isinstance(response, OpenResponse):
                exchange.close(response.status_code)
            return response

        return endpoint


class Exchange:
    """One request on its way through an endpoint; `body` is there once the handler is called."""

    def __init__(self, service: Service, name: str, http: HttpRequest) -> None:
        self.service, self.name, self.http = service, name, http
        self.started = monotonic()
        self.places = 0
        self.body = b""

    @property
    def content_type(self) -> str | None:
        return self.http.headers.get("content-type")

    @property
    def seconds_left(self) -> float:
        return max(0.001, self.service.config.timeout_s - (monotonic() - self.started))

    def take_places(self, num: int) -> None:
        """Take room for so many rows in all. Raises ApiError as `Service.enter` does."""
        self.service.enter(num - self.places, of=num)
        self.places = num

    async def handle(self, handler: Handler) -> Response:
        """The handler's response. It is cancelled when the client leaves; when time is up, with ApiError 504; and when
        the server ends, with ShuttingDown."""
        work: asyncio.Task[Response] | None = None
        try:
            async with asyncio.timeout(self.seconds_left):
                self.body = await self._read_body()
                work = asyncio.ensure_future(handler(self))
                gone = asyncio.ensure_future(wait_for_disconnect(self.http.receive))
                ended = asyncio.ensure_future(self.service.ended.wait())
                try:
                    await asyncio.wait({work, gone, ended}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    gone.cancel()
                    ended.cancel()
                if work.done():
                    return work.result()
                if ended.done():
                    raise ShuttingDown
                return Response(status_code=CLIENT_LEFT)
        except TimeoutError:
            raise ApiError(504, f"no answer within {self.service.config.timeout_s:g} s", "timeout") from None
        finally:
            if work is not None and not work.done():
                work.cancel()
                await asyncio.wait({work})

    async def _read_body(self) -> bytes:
        """The body. Raises ShuttingDown where the server ends before it is here."""
        body = asyncio.ensure_future(self.http.body())
        ended = asyncio.ensure_future(self.service.ended.wait())
        try:
            await asyncio.wait({body, ended}, return_when=asyncio.FIRST_COMPLETED)
            if body.done():
                return body.result()
            raise ShuttingDown
        finally:
            ended.cancel()
            body.cancel()

    def close(self, status: int) -> None:
        """Give the places back, and count the exchange."""
        metrics = self.service.metrics
        if self.places:
            self.service.leave(self.places)
            self.places = 0
        metrics.requests.labels(self.name, str(status)).inc()
        metrics.seconds.labels(self.name).observe(monotonic() - self.started)


class OpenResponse(Response):
    """A response that closes its exchange itself, at its own end."""


class EventStream(OpenResponse):
    """Server-sent events. They end when the client leaves; what goes wrong is told as an event of its own."""

    media_type = "text/event-stream"

    def __init__(self, exchange: Exchange, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.exchange, self.events = exchange, events
        self._is_cut = False  # whether the server's end has cut the events off

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = CLIENT_LEFT
        pump = gone = ended = None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            pump = asyncio.ensure_future(self._write_events(send))
            gone = asyncio.ensure_future(wait_for_disconnect(receive))
            ended = asyncio.ensure_future(self.exchange.service.ended.wait())
            await asyncio.wait({pump, gone, ended}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done() and not pump.done():
                self._is_cut = pump.cancel()  # it writes its last words
                await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
            if pump.done() and not pump.cancelled():
                status = pump.result()
        finally:
            for task in (pump, gone, ended):
                if task is not None and not task.done():
                    task.cancel()
                    await asyncio.wait({task})
            self.exchange.close(status)

    async def _write_events(self, send: Send) -> int:
        """Send all events; the status that the exchange ended with."""

        async def write(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        status, failure = 200, None
        deadline = asyncio.timeout(self.exchange.seconds_left)
        try:
            async with deadline:
                async for data in self.events:
                    await write(data)
        except asyncio.CancelledError:
            if not self._is_cut:
                raise  # the client has left
            self._is_cut = False
            failure = to_api_error(ShuttingDown())
        except Exception as error:
            if isinstance(error, TimeoutError) and not deadline.expired():
                raise  # of a client that takes nothing
            if deadline.expired():
                error = ApiError(504, f"no end within {self.exchange.service.config.timeout_s:g} s", "timeout")
            failure = to_api_error(error)
        finally:
            await self.events.aclose()
        if failure is not None:
            status = failure.status
            await write(encode_event(failure.make_body()) + DONE)
        await write(b"", more=False)
        return status


async def wait_for_disconnect(receive: Receive) -> None:
    """Returns when the client has left."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return


def to_api_error(error: Exception) -> ApiError:
    """A user's mistake as 400; a defect of ours as 500, told in the log and not to the client."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):  # Starlette's own, of a form that cannot be read
        return ApiError(error.status_code, str(error.detail), "invalid_value")
    if isinstance(error, MemoryShort):
        return ApiError(503, str(error), "out_of_memory", None, {"Retry-After": "5"})
    if isinstance(error, ShuttingDown):
        return ApiError(503, str(error), "unavailable", None, {"Retry-After": "5"})
    if isinstance(error, ClientDisconnect):
        return ApiError(CLIENT_LEFT, "the client has left")
    if type(error) is ValueError or isinstance(error, UnfitRequestError):
        return ApiError(400, str(error).replace("<bytes>", "the file"), "invalid_value")
    log.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed at this request; its log says why", "internal_error")


def make_error_response(error: ApiError) -> Response:
    headers = dict(error.headers)
    if error.status in (408, 413):
        headers["Connection"] = "close"  # there is more of the body, and nobody reads it
    return JSONResponse(error.make_body(), error.status, headers)


async def gather(work: Iterable[Coroutine[object, object, Result]]) -> list[Result]:
    """The results of all, which run together; the first error ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
