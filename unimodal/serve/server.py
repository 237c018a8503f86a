"""The application: which path leads where. `create_app` makes it, `make_server` has uvicorn serve it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from unimodal.media.registry import MEDIA
from unimodal.model_folder.layout import VOCABULARY_FILE
from unimodal.pipeline import Unimodal
from unimodal.serve.attribution import attribute
from unimodal.serve.chat import complete_chat
from unimodal.serve.connections import ConnectionLimits, GuardedConfig, GuardedServer
from unimodal.serve.gate import Gate
from unimodal.serve.media_endpoints import detokenize, draw_images, speak, tokenize
from unimodal.serve.media_output import list_formats
from unimodal.serve.protocol import ApiError
from unimodal.serve.responses import respond
from unimodal.serve.service import Service, make_error_response, to_api_error
from unimodal.serve.settings import ServeConfig
from unimodal.serve.transcription import transcribe

STATIC = Path(__file__).parent / "static"
POST = {
    "/v1/chat/completions": complete_chat,
    "/v1/responses": respond,
    "/v1/images/generations": draw_images,
    "/v1/audio/speech": speak,
    "/v1/audio/transcriptions": transcribe,
    "/v1/tokenize": tokenize,
    "/v1/detokenize": detokenize,
    "/v1/attributions": attribute,
}


def create_app(model: Unimodal, config: ServeConfig | None = None) -> Gate:
    """The ASGI application of one model; its worker starts and stops with it."""
    service = Service(model, config or ServeConfig())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            service.stop()

    app = FastAPI(title="unimodal", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    for path, handler in POST.items():
        app.add_api_route(path, service.make_endpoint(path, handler), methods=["POST"], response_model=None)
    _add_reports(app, service)
    if STATIC.is_dir():
        app.mount("/static", StaticFiles(directory=STATIC))
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(ApiError, _answer_error)
    app.add_exception_handler(Exception, _answer_error)
    return Gate(app, service.config)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own errors: no such path, wrong method, a form that cannot be read."""
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    missing = f"there is no path {request.url.path[:100]!r}; this server has {', '.join(POST)} and GET /v1/models"
    message = {404: missing, 405: f"{request.method} is not for this path"}.get(error.status_code)
    code = codes.get(error.status_code)
    found = ApiError(error.status_code, message or str(error.detail), code, headers=error.headers)
    return make_error_response(found)


async def _answer_error(request: Request, error: Exception) -> Response:
    return make_error_response(to_api_error(error))


def _add_reports(app: FastAPI, service: Service) -> None:
    """What is answered without the model."""

    async def report_health() -> Response:
        well = service.worker.alive and not service.ending
        state = {"status": "ok" if well else "unavailable", "model": service.name}
        counts = {"running": service.worker.num_running, "waiting": service.worker.num_waiting}
        return JSONResponse(state | counts, 200 if well else 503)

    async def report_metrics() -> Response:
        service.metrics.running.set(service.worker.num_rows)
        service.metrics.waiting.set(service.worker.num_waiting)
        return Response(service.metrics.encode(), media_type="text/plain; version=0.0.4; charset=utf-8")

    created = int((service.model.folder / VOCABULARY_FILE).stat().st_mtime)

    def describe(name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": created, "owned_by": "unimodal"}

    async def list_models() -> Response:
        names = dict.fromkeys((service.name, *service.config.aliases))
        return JSONResponse({"object": "list", "data": [describe(name) for name in names]})

    async def describe_model(name: str) -> Response:
        service.check_model(name)
        return JSONResponse(describe(name if name in service.config.aliases else service.name))

    async def report_settings() -> Response:
        return JSONResponse(describe_settings(service))

    async def show_page() -> Response:
        if not (STATIC / "index.html").is_file():
            raise ApiError(404, "this server has no page; the API is under /v1", "not_found")
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    reports: dict[str, Callable[..., Awaitable[Response]]] = {
        "/health": report_health,
        "/metrics": report_metrics,
        "/v1/models": list_models,
        "/v1/models/{name:path}": describe_model,
        "/v1/settings": report_settings,
        "/": show_page,
    }
    for path, handler in reports.items():
        app.add_api_route(path, handler, methods=["GET", "HEAD"], response_model=None)


def describe_settings(service: Service) -> dict[str, object]:
    """What a page needs to know of the model and the server."""
    model, config = service.model, service.config
    coder, media = model.coder, model.vocabulary.media
    about: dict[str, dict[str, object]] = {}
    for name in media:
        tokenizer = coder.get_tokenizer(name)
        medium = MEDIA[name]
        about[name] = {
            "noun": medium.noun,
            "type": medium.sent_as[1],
            "suffixes": list(medium.suffixes),
            "writes": name in model.writable,
            "ordered": bool(tokenizer.ordered),
            "segments": [{"name": block, "count": count} for block, count in tokenizer.segments],
            "codes": tokenizer.tokens_per_item,
            "codes_per_second": tokenizer.tokens_per_second,
        }
        declared = {
            "image_size": tokenizer.picture_size and tokenizer.picture_size[0],
            "sample_rate_hz": tokenizer.sample_rate_hz,
            "fps": tokenizer.frames_per_second,
            "num_frames": tokenizer.num_frames,
        }
        about[name] |= {setting: value for setting, value in declared.items() if value is not None}
    return {
        "model": service.name,
        "modalities": ["text", *media],
        "sampling": {name: own.model_dump() for name, own in model.sampling.items()},
        "media": about,
        "max_positions": model.max_positions,
        "max_audio_s": model.coder.find_max_seconds("audio") if "audio" in media else None,
        "history_turns": model.processor.history_turns,
        "questions": {name: model.wording.ask(name) for name in media},
        "voices": list(model.wording.voices),
        "formats": list_formats(),
        "limits": {
            "max_body_bytes": config.max_body_bytes, "max_parts": config.max_parts, "max_pixels": config.max_pixels,
            "max_seconds": config.max_seconds, "max_frames": config.max_frames, "timeout_s": config.timeout_s,
            "remote_urls": config.allow_remote_urls,
        },
    }  # fmt: skip


def make_server(app: Gate) -> uvicorn.Server:
    """What serves the application of `create_app`."""
    assert isinstance(app.app, FastAPI)
    service: Service = app.app.state.service
    limits = ConnectionLimits(service.config)
    return GuardedServer(GuardedConfig(app, limits, service.config.grace_s), service)
