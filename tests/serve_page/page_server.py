"""A server of the contract in `unimodal/serve/protocol.py`, as small as it can be, over the real pipeline.

python -m tests.serve_page.page_server model_cards/nano 8000
"""

import base64
import json
import queue
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles

from unimodal.pipeline import Unimodal, load
from unimodal.sequence.document import MEDIA_PARTS, Document, Text

STATIC = Path(__file__).resolve().parents[2] / "unimodal" / "serve" / "static"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FORMATS = {"image": ("image/png", ".png"), "audio": ("audio/wav", ".wav"), "video": ("video/mp4", ".mp4")}


def data_url(output) -> str:
    kind, suffix = FORMATS[output.modality]
    with tempfile.TemporaryDirectory() as folder:
        output.save(Path(folder) / f"x{suffix}")
        return f"data:{kind};base64,{base64.b64encode((Path(folder) / f'x{suffix}').read_bytes()).decode()}"


def bytes_of(url: str) -> bytes:
    return base64.b64decode(url.partition(",")[2])


def make_app(model: Unimodal, delay_s: float = 0.0) -> FastAPI:
    app, lock = FastAPI(), threading.Lock()

    @app.middleware("http")
    async def policy(request: Request, call_next):
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    app.mount("/static", StaticFiles(directory=STATIC))

    @app.get("/")
    def page():
        return FileResponse(STATIC / "index.html")

    @app.get("/v1/settings")
    def settings():
        sampling = {
            name: {"temperature": s.temperature, "top_k": s.top_k, "top_p": s.top_p, "guidance": s.guidance}
            for name, s in model.sampling.items()
        }
        limits = {"max_audio_s": model.processor.max_audio_s}
        return {
            "model": model.folder.name,
            "modalities": list(model.vocabulary.media),
            "sampling": sampling,
            "limits": limits,
        }

    def part_of(part):
        if part["type"] == "text":
            return Text(part["text"])
        if part["type"] == "input_audio":
            data = base64.b64decode(part["input_audio"]["data"])
            return model.coder.encode_part(MEDIA_PARTS["audio"](data=data))
        kind = part["type"].removesuffix("_url")
        return model.coder.encode_part(MEDIA_PARTS[kind](data=bytes_of(part[part["type"]]["url"])))

    @app.post("/v1/chat/completions")
    async def chat(request: Request):
        body = await request.json()
        wanted = body.get("modalities")
        to = wanted[0] if wanted and len(wanted) == 1 else None
        content = body["messages"][-1]["content"]
        content = [{"type": "text", "text": content}] if isinstance(content, str) else content
        try:
            parts = [part_of(part) for part in content]
            if to in model.vocabulary.media and len(parts) == 1:
                parts = [Text(model.wording.request(parts[0].text, to))]
            turn = model.user_turn(parts)
        except ValueError as error:
            return JSONResponse({"error": {"message": str(error)}}, 400)
        events: queue.Queue = queue.Queue()

        def work():
            stream = model.template.text.stream()

            def on_token(event):
                if delay_s:
                    threading.Event().wait(delay_s)
                if event.modality == "text" and model.vocabulary.is_text(event.id):
                    events.put({"content": stream.push(event.id)})

            def on_partial(_, output):
                events.put({"partial_image": {"index": 0, "url": data_url(output)}})

            settings = {name: body.get(name) for name in ("guidance", "temperature")}
            try:
                with lock:
                    outputs = model.answers(
                        [Document([turn])], to=to, seeds=[body["seed"]], on_token=on_token,
                        on_partial=on_partial if body.get("stream_partial") else None, **settings,
                    )[0]  # fmt: skip
                for output in outputs:
                    if output.media is not None:
                        kind = f"{output.modality}_url"
                        events.put({"content_parts": [{"type": kind, kind: {"url": data_url(output)}}]})
            except ValueError as error:
                events.put(error)
            events.put(None)

        threading.Thread(target=work, daemon=True).start()

        def lines():
            while (delta := events.get()) is not None:
                if isinstance(delta, ValueError):
                    yield f"data: {json.dumps({'error': {'message': str(delta)}})}\n\n"
                    return
                yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")

    @app.post("/v1/tokenize")
    def tokenize(body: dict):
        with tempfile.NamedTemporaryFile() as file:
            file.write(bytes_of(body["url"]))
            file.flush()
            found = model.tokenize(file.name)
        tokenizer = model.coder.tokenizer(found.modality)
        segments, start = [], 0
        for name, count in tokenizer.segments:
            count = len(found.codes) if count is None else count
            grid = [1, 8, 8] if name == "video" else None
            segments.append({"name": name, "start": start, "count": count, "grid": grid})
            start += count
        codes = np.asarray(found.codes).reshape(-1).tolist()
        return {
            "modality": found.modality, "codes": codes, "segments": segments, "ordered": tokenizer.ordered, "groups": 1,
        }  # fmt: skip

    @app.post("/v1/detokenize")
    def detokenize(body: dict):
        codes = np.array(body["codes"][: body.get("prefix") or None], dtype=np.int64)
        return {"url": data_url(model.coder.decode_part(MEDIA_PARTS[body["modality"]](codes=codes)))}

    return app


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(make_app(load(sys.argv[1]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0), port=int(sys.argv[2]))
