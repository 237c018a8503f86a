"""Compression in a server: by its own setting, or by a request's where it lets them, beside rows without."""

import json
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.serve.conftest import image_part, png, serving, user
from tests.tiny_model import tiny_folder
from unimodal.pipeline import load
from unimodal.sequence.document import Image

pytestmark = pytest.mark.sweep("the server")


@pytest.fixture(scope="module")
def open_server():
    with serving(compress=("stride:0.5",), allow_compress=True) as served:
        yield served


def ask(served, seed=0, **more):
    return served.client().chat.completions.create(
        model=served.name, messages=[user(image_part(png(seed)), "what is this?")], max_tokens=8, seed=0,
        modalities=["text"], extra_body=more,
    )  # fmt: skip


def expect(model, seed=0, compress=None):
    outputs = model.chat(
        [Image(data=png(seed)), "what is this?"], to="text", tokens=9, text_tokens=8, compress=compress
    )
    return " ".join(output.text for output in outputs if output.text)


def test_rows_of_several_methods_at_once_answer_as_alone(open_server, model):
    asked = [None, "divprune:0.25", "h2o:0.5", [], ["fastv:0.5", "snapkv:0.5"], "pooling:0.25", None, []]

    def one(number):
        more = {} if asked[number] is None else {"compress": asked[number]}
        return ask(open_server, number, **more)

    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(one, range(len(asked))))
    for number, answer in enumerate(answers):
        methods = "stride:0.5" if asked[number] is None else asked[number] or None
        assert answer.choices[0].message.content == expect(model, number, methods)
        told = answer.to_dict()
        if methods is None:
            assert "notes" not in told and "prompt_tokens_kept" not in told["usage"]
        else:
            [note] = told["notes"]
            kept = told["usage"]["prompt_tokens_kept"]
            assert f"{kept} of {answer.usage.prompt_tokens} tokens" in note and kept < answer.usage.prompt_tokens
    assert open_server.idle() and "forward" not in vars(open_server.model.decoder.get_decoder())


def test_a_stream_says_by_what_and_its_usage_how_much(open_server, model):
    chunks = list(
        open_server.client().chat.completions.create(
            model=open_server.name,
            messages=[user(image_part(png()), "what is this?")],
            max_tokens=8,
            seed=0,
            modalities=["text"],
            stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
    )
    assert chunks[0].to_dict()["notes"] == ["compressed by stride:0.5"]
    assert 0 < chunks[-1].to_dict()["usage"]["prompt_tokens_kept"] < chunks[-1].usage.prompt_tokens
    words = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert words == expect(model, 0, "stride:0.5")


def test_responses_take_it_too(open_server):
    body = {"model": open_server.name, "input": "hello", "compress": "divprune:0.5", "max_output_tokens": 3}
    answer = json.loads(open_server.post("/v1/responses", body).content)
    assert "nothing to shorten" in answer["notes"][0]


WRONG = ["divprun", "divprune:2", "tokenflex", "fastv:0.5,fastv:x", "h2o,snapkv:9", "", [""], ["stride", ""], "none"]
MANY = ["stride,stride,stride,stride,stride", ["stride"] * 5, ["stride,h2o", "h2o,h2o,h2o"], ["stride"] * 90_000]


@pytest.mark.parametrize("asked", [*WRONG, *MANY], ids=lambda asked: str(asked)[:30])
@pytest.mark.parametrize("path", ["chat/completions", "responses"])
def test_a_wrong_method_is_the_fields_mistake(open_server, path, asked):
    question = {"input": "hello"} if path == "responses" else {"messages": [user("hello")]}
    answer = open_server.post(f"/v1/{path}", {"model": open_server.name, "compress": asked, **question})
    told = answer.json()["error"]
    assert answer.status_code == 400 and told["param"].startswith("compress") and "\n" not in told["message"]
    assert asked not in MANY or "at most 4" in told["message"]


def test_a_server_that_lets_nobody_choose(client, server):
    with pytest.raises(openai.BadRequestError, match="does not let requests choose") as caught:
        ask(server, compress="divprune:0.5")
    assert caught.value.param == "compress"


@pytest.mark.parametrize("narrow", [{"weights": "int8"}, {"kv": "int8"}], ids=str)
def test_a_server_of_narrow_weights_or_caches_refuses_it(narrow):
    with serving(load(tiny_folder(), device="cpu", **narrow), allow_compress=True) as served:
        for path, question in (("chat/completions", {"messages": [user("hello")]}), ("responses", {"input": "hello"})):
            told = served.post(f"/v1/{path}", {**question, "compress": "stride:0.5"})
            assert told.status_code == 400 and told.json()["error"]["param"] == "compress"
            assert served.post(f"/v1/{path}", {**question, "compress": []}).status_code == 200
