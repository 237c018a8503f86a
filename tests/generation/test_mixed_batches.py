"""Any requests in one batch, with every fast decoder: none fails, and each row is answered as it is alone.

Rows are compared with a model in float64, since two sums in another order may turn a draw in float32.
"""

from pathlib import Path

import pytest

from unimodal.generation import DECODERS, make_decoder
from unimodal.generation.decoders.compiled_decoder import CompiledDecoder
from unimodal.generation.engine import Engine
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import SamplingConfig
from unimodal.sequence.document import Document

MEDIA = ("image", "audio", "video")
NAMES = [name for name in DECODERS if name != "draft-heads"]  # heads of a model, in batches: test_draft_heads.py
IDENTICAL = ("jacobi", "retrieval", "token-recycling")  # the ids of the plain loop
KINDS = ("lean", "reference", "packed", "fixed shapes")


@pytest.fixture(scope="module")
def engines(make_model, vocabulary):
    wide = make_model(max_positions=256).double()
    single = make_model(max_positions=256)
    return {
        "lean": Engine(wide, vocabulary, "lean", weights="model"),
        "reference": Engine(wide, vocabulary, "reference"),
        "packed": Engine(single, vocabulary, weights="float32"),
        "fixed shapes": Engine(single, vocabulary, CompiledDecoder(single, backend=None)),
    }


def draw_sampling(rng):
    return SamplingConfig(
        temperature=rng.choice([0.0, 0.3, 1.0, 1.5]),
        top_k=rng.choice([0, 0, 3, 9]),
        top_p=rng.choice([1.0, 1.0, 0.8]),
        first_codes=rng.choice([0, 0, 1, 4, 50]),
        first_temperature=rng.choice([0.0, 0.7]),
    )


def draw_row(rng, ask):
    """A prompt of 4 to 60 tokens and a config: a medium, words or both, of any length, guided or not."""
    prompt = ask([rng.randrange(1, 7) for _ in range(rng.choice([0, 1, 3, 8, 55]))])
    to = rng.choice([*MEDIA, "audio", "text", None])
    changes = {} if to is None else {"force": to} if to != "text" else {"allow": ("text",)}
    guided = rng.random() < 0.4 and to != "text"
    if guided:
        changes["guidance"] = {name: rng.choice([0.5, 2.0, 4.0]) for name in MEDIA}
        changes["unconditional"] = tuple(ask([rng.randrange(1, 7) for _ in range(rng.choice([0, 2, 20]))]))
    if guided and rng.random() < 0.4:
        first = rng.randrange(4)
        changes["guidance_interval"] = dict.fromkeys(MEDIA, (first, first + rng.randrange(1, 6)))
    if rng.random() < 0.3:
        changes["max_text_tokens"] = rng.randrange(1, 12)
    config = GenerationConfig(
        max_new_tokens=rng.choice([16, 20, 40, 90]),
        seed=rng.randrange(1000),
        sampling={name: draw_sampling(rng) for name in ("text", *MEDIA)},
        max_codes={"audio": rng.randrange(3, 60)},
        **changes,
    )
    return prompt, config


def draw_decoder(rng, vocabulary):
    name = rng.choice([*NAMES, "sjd", "retrieval"])
    settings = {}
    if name == "zipar":
        settings = {"columns": {"image": rng.choice([1, 2]), "video": 3}, "window": rng.choice([1, 2, 4])}
    elif name == "masked":
        settings = {"passes": rng.randrange(1, 9), "sees_ahead": rng.random() < 0.5}
    elif name == "next-x":
        settings = {
            "unit": rng.choice(["token", "whole", "scale"]),
            "columns": {"image": 2, "video": 3},
            "steps": rng.randrange(1, 4),
            "wrong": rng.choice([0.0, 0.3, 1.0]),
        }
    elif name == "enat":
        settings = {"passes": rng.randrange(1, 9)}
    elif name == "explore":
        settings = {"threshold": rng.choice([0.1, 0.5, 0.9]), "branches": rng.choice([1, 2, 5])}
    elif name == "window-diffusion":
        settings = {
            "passes": rng.randrange(1, 9),
            "active": 2,
            "window": rng.choice([2, 3, 9]),
            "refresh": rng.choice([1, 2, 3]),
            "own_place": rng.random() < 0.5,
        }
    elif name == "any-order":
        settings = {"window": rng.choice([1, 2, 5]), "order": rng.choice(["ascending", "random"])}
    elif name == "token-recycling":
        settings = {"nodes": rng.choice([3, 80])}
    else:
        settings = {"window": rng.choice([1, 2, 5, 16])}
    decoder = make_decoder(name, **settings)
    if rng.random() < 0.5:
        decoder.learn([rng.randrange(vocabulary.size) for _ in range(200)])
    return name, decoder


@pytest.mark.sweep("campaigns of the engine")
def test_any_batch_is_answered_as_its_rows_are_alone(campaign, engines, vocabulary, ask):
    for rng in campaign(10, 400):
        kind = rng.choice(["lean", "reference", *KINDS])
        engine, (name, decoder) = engines[kind], draw_decoder(rng, vocabulary)
        rows = [draw_row(rng, ask) for _ in range(rng.randrange(2, 8))]
        prompts, configs = [prompt for prompt, _ in rows], [config for _, config in rows]
        answers = engine.generate(prompts, configs, method=decoder)
        for config, answer in zip(configs, answers, strict=True):
            assert answer[-1] == vocabulary.get_control_id("<|end_of_turn|>") and len(answer) <= config.max_new_tokens
            if config.force is not None:
                last = answer.index(vocabulary.get_end_id(config.force)) + 1
                assert vocabulary.decode_span(answer[:last])[0] == config.force
        if kind not in ("lean", "reference"):
            continue
        one = rng.randrange(len(rows))
        assert engine.generate(*[[part] for part in rows[one]], method=decoder) == [answers[one]], name
        if name in IDENTICAL:
            assert engine.generate(prompts, configs) == answers, name


@pytest.mark.sweep
@pytest.mark.sliced
@pytest.mark.parametrize("memory", ["none", "another answer", "parts of it"])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_request_has_the_same_answer_whatever_was_asked_before(engines, ask, name, memory):
    """Twice in a row, behind other requests and among them, with a memory of what may come and without."""
    config = GenerationConfig(
        max_new_tokens=60, force="audio", seed=5, max_codes={"audio": 40}, min_codes={"audio": 30},
        sampling=dict.fromkeys(("text", *MEDIA), SamplingConfig()),
    )  # fmt: skip
    asked = ask([3, 4])
    others = [config.model_copy(update={"seed": seed, "allow": ("text",) if seed == 9 else None,
                                        "force": None if seed == 9 else "audio"}) for seed in (7, 8, 9)]  # fmt: skip
    engine = engines["lean"]
    decoder = make_decoder(name)
    if name == "next-x":
        decoder = make_decoder(name, unit="whole")
    if name == "zipar":  # audio has no rows; pictures do
        decoder = make_decoder(name, columns={"image": 2, "video": 3}, window=1)
        config = config.model_copy(update={"force": "image", "max_codes": {}, "min_codes": {}})
        others = [other.model_copy(update={"force": "image", "max_codes": {}, "min_codes": {}}) for other in others[:2]]
    if memory != "none":
        [known] = engine.generate([asked], others[:1])
        decoder.learn(known if memory == "another answer" else known[3:30] + known[:20])
    [first] = engine.generate([asked], [config], method=decoder)
    assert engine.generate([asked], [config], method=decoder) == [first]
    engine.generate([ask([6])] * len(others), others, method=decoder)
    engine.generate([asked], others[:1], method=decoder)
    assert engine.generate([asked], [config], method=decoder) == [first]
    batch = engine.generate(
        [ask([1] * 30), asked, ask([2]), asked], [others[0], config, others[1], config], method=decoder
    )
    assert batch[1] == batch[3] == first


@pytest.fixture(scope="module")
def nano():
    from unimodal.pipeline import load

    return load(Path(__file__).resolve().parents[2] / "model_cards" / "nano", device="cpu")


@pytest.mark.sweep("campaigns of the engine")
def test_the_released_model_answers_mixed_batches_with_any_decoder(campaign, nano):
    """The first batch once filled the cache: a clip goes on behind a picture that is finished, and loses no guess."""
    words = [
        "a red apple",
        "a clip of a red apple",
        "say hello",
        "what is a tree?",
        "an owl",
        "a clip of a dancing cat",
    ]
    for number, rng in enumerate(campaign(1, 40)):
        asked, seeds, decoder = words[:2], [718, 123], "retrieval"
        if number:
            asked = rng.choices(words, k=rng.randrange(2, 7))
            seeds = [rng.randrange(1000) for _ in asked]
            decoder = rng.choice([name for name in NAMES if name != "zipar"])  # its codes have no rows
        documents = [Document((nano.user_turn(line),)) for line in asked]
        answers = nano.answers(documents, decoder=decoder, tokens=90, seeds=seeds, temperature=1.0)
        assert all(answers) and len(answers) == len(asked)
        assert (
            not number
            or decoder not in IDENTICAL
            or list_codes(answers) == list_codes(nano.answers(documents, tokens=90, seeds=seeds, temperature=1.0))
        )


def list_codes(answers):
    return [[output.text or output.part.codes.tolist() for output in answer] for answer in answers]
