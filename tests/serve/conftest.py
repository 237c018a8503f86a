"""A real server in a thread, with a tiny model, and OpenAI's own client."""

import base64
import contextlib
import io
import logging
import threading
import time

import httpx2 as httpx
import numpy as np
import openai
import pytest
import soundfile
import torch
from PIL import Image

from tests.tiny_model import tiny_folder
from unimodal.pipeline import load
from unimodal.serve.server import create_app, make_server
from unimodal.serve.settings import ServeConfig, listen


def lively_model():
    """The tiny model with twenty times its weights, so that its answers depend on what it is asked, and without the
    bytes that make no character. Each call gives another copy: a server's thread shares its engine with nobody."""
    model = load(tiny_folder(), device="cpu")
    bytes_above = [model.template.text._tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(0x80, 0x100)]
    with torch.no_grad():
        model.decoder.get_input_embeddings().weight[bytes_above] = 0  # the head's rows, too: never the likeliest
        for weight in model.decoder.parameters():
            if weight.dim() > 1:
                weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def model():
    """The same weights as the server's."""
    return lively_model()


#: no connection is kept, and what each would load for encryption is loaded once
HTTP = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))


class Served:
    """Where a server listens, its inner service, and clients of it."""

    step_s = 0.0  # how long a step of a slowed decoder waits

    def __init__(self, service, port, key=None):
        self.service, self.port, self.key = service, port, key
        self.url = f"http://127.0.0.1:{port}"
        self.model = service.model
        self.name = service.name

    def client(self, key=None, **settings):
        settings = {"max_retries": 0, "timeout": 60, **settings}
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key or "none", **settings)

    def post(self, path, body, **more):
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return HTTP.post(self.url + path, json=body, headers=headers, **more)

    def get(self, path):
        return HTTP.get(self.url + path)

    def idle(self, within_s=20.0):
        """Waits until nothing is inside; whether that came about."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            worker = self.service.worker
            if not (worker.num_running or worker.num_waiting or self.service.num_inside):
                return True
            time.sleep(0.02)
        return False


@contextlib.contextmanager
def serving(model=None, **settings):
    config = ServeConfig(port=0, **settings)
    app = create_app(model or lively_model(), config)
    server, sock = make_server(app), listen(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        served = Served(app.app.state.service, sock.getsockname()[1], config.api_key)
        served.server = server
        yield served
    finally:
        server.should_exit = True
        thread.join(30)
        sock.close()
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def server():
    with serving() as served:
        yield served


@pytest.fixture
def client(server):
    return server.client()


@pytest.fixture
def log_records():
    """What is logged during a test."""
    records = []

    class Keeper(logging.Handler):
        def emit(self, record):
            records.append(record)

    keeper = Keeper()
    logging.root.addHandler(keeper)
    yield records
    logging.root.removeHandler(keeper)


def data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png(seed=0, side=40) -> bytes:
    memory = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(memory, "PNG")
    return memory.getvalue()


def wav(seconds=0.5, hz=300) -> bytes:
    memory = io.BytesIO()
    soundfile.write(
        memory, 0.3 * np.sin(np.arange(int(16_000 * seconds)) * 2 * np.pi * hz / 16_000), 16_000, format="WAV"
    )
    return memory.getvalue()


def gif() -> bytes:
    memory = io.BytesIO()
    frames = [Image.fromarray(np.full((16, 16, 3), 40 * n, np.uint8)) for n in range(5)]
    frames[0].save(memory, "GIF", save_all=True, append_images=frames[1:], duration=120, loop=0)
    return memory.getvalue()


JSON = {"Content-Type": "application/json"}


def json_head(length: int) -> bytes:
    """The head of a chat request whose body is so long, for a raw socket."""
    lines = (
        "POST /v1/chat/completions HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        f"Content-Length: {length}",
    )
    return "\r\n".join((*lines, "", "")).encode()


def user(*content):
    """A user's message of texts and parts."""
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    return {"role": "user", "content": parts}


def image_part(data: bytes) -> dict:
    return {"type": "image_url", "image_url": {"url": data_url(data, "image/png")}}


def opened(url: str, kind="image/png") -> bytes:
    """The bytes of a data URL of this kind."""
    head, _, data = url.partition(",")
    assert head == f"data:{kind};base64"
    return base64.b64decode(data, validate=True)


def pixels(data: bytes) -> torch.Tensor:
    """uint8 [3, H, W]"""
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
