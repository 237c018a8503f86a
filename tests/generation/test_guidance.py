"""Guidance by interval and with a negative prompt: what it computes, and what it does not."""

import pytest
import torch

from unimodal.generation import make_decoder
from unimodal.generation.engine import Engine
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import GREEDY

SAMPLING = {"image": GREEDY, "video": GREEDY}


@torch.inference_mode()
def naive(model, vocabulary, prompt, other, scales):
    """A picture from full forwards of both prompts, code step by code step."""
    rows, answer = vocabulary.get_block_range("image"), [vocabulary.get_start_id("image")]
    for scale in scales:
        c, u = (model(torch.tensor([[*p, *answer]])).logits[0, -1, rows.start : rows.stop] for p in (prompt, other))
        answer.append(rows.start + int((u + scale * (c - u)).argmax()))
    return answer


@pytest.mark.sweep
@pytest.mark.sliced
@pytest.mark.parametrize("kind", ["lean", "reference"])
@pytest.mark.parametrize("interval", [(0, 6), (2, 5), (1, 2), (0, 3), (4, 40)])
@pytest.mark.parametrize("method", [None, "jacobi"])
def test_only_steps_in_the_interval_are_guided(model, vocabulary, ask, kind, interval, method):
    engine = Engine(model, vocabulary, kind)
    config = GenerationConfig(
        max_new_tokens=20,
        force="image",
        sampling=SAMPLING,
        guidance={"image": 4.0},
        guidance_interval={"image": interval},
        unconditional=ask([9, 8]),  # a negative prompt is any other prompt
    )
    fast = method and make_decoder(method)
    first, second = engine.generate([ask([3, 4]), ask([5])], [config, config], method=fast)
    scales = [4.0 if interval[0] <= step < interval[1] else 1.0 for step in range(6)]
    assert first[:7] == naive(model, vocabulary, ask([3, 4]), ask([9, 8]), scales)
    assert second[:7] == naive(model, vocabulary, ask([5]), ask([9, 8]), scales)


def test_a_branch_that_no_later_step_needs_is_dropped(model, vocabulary, ask):
    engine = Engine(model, vocabulary)
    config = GenerationConfig(
        max_new_tokens=20,
        force="image",
        guidance={"image": 4.0},
        guidance_interval={"image": (0, 2)},
        unconditional=ask(),
    )
    engine.generate([ask([3])], config)
    assert engine.stats.stream_counts == [2] * 3 + [1] * 4  # the prompt, two guided codes, four that are not


@pytest.mark.parametrize("method", [None, "jacobi", "coupled-sjd", "token-recycling"])
def test_guidance_of_one_costs_one_branch(model, vocabulary, ask, method):
    engine = Engine(model, vocabulary)
    fast = method and make_decoder(method)
    for scale, streams in ((1.0, 1), (2.0, 2)):
        config = GenerationConfig(max_new_tokens=20, force="image", guidance={"image": scale}, unconditional=ask())
        engine.generate([ask([3])], config, method=fast)
        assert set(engine.stats.stream_counts) == {streams}
        assert engine.stats.prompt_tokens == len(ask([3])) + (streams - 1) * len(ask())


@pytest.mark.parametrize("interval", [(3, 3), (5, 2), (-1, 4)])
def test_an_empty_interval_is_refused(interval):
    with pytest.raises(ValueError, match="guidance_interval .* of image is empty"):
        GenerationConfig(guidance_interval={"image": interval})
