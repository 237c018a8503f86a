"""Every way to decode on a GPU, and its twin on the processor: the same arguments, the answers of the reference."""

import pytest
import torch

from unimodal.generation.continuous import ContinuousBatch
from unimodal.generation.decoders.compiled_decoder import CompiledDecoder
from unimodal.generation.decoders.lean_decoder import LeanDecoder
from unimodal.generation.decoders.lean_layers import LeanLayers
from unimodal.generation.decoders.packed_decoder import PackedDecoder
from unimodal.generation.decoders.packed_layers import PackedLayers
from unimodal.generation.engine import Engine
from unimodal.generation.kinds import CACHES
from unimodal.generation.request import GenerationConfig, GenerationRequest
from unimodal.generation.sampling import GREEDY

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
#: torch.compile's backend that takes the graph whole, as a GPU's does, and runs it as it is
BACKEND = {"cpu": "eager", "cuda": "inductor"}
WAYS = {
    "lean": lambda model, device: LeanDecoder(model),
    "packed": lambda model, device: LeanDecoder(PackedLayers(model)),
    "narrow weights": lambda model, device: PackedDecoder(model, "bfloat16"),
    "fixed shapes": lambda model, device: CompiledDecoder(model, backend=None),
    "compiled": lambda model, device: CompiledDecoder(model, backend=BACKEND[device]),
    **{f"kv {kv}": lambda model, device, kv=kv: LeanDecoder(LeanLayers(model, kv)) for kv in CACHES},
}
EXACT = {"lean", "packed", "fixed shapes", "compiled", "kv model"}


@pytest.fixture
def requests(ask):
    sampling = dict.fromkeys(("text", "image"), GREEDY)
    config = GenerationConfig(
        max_new_tokens=20, force="image", guidance={"image": 2.0}, unconditional=tuple(ask()), sampling=sampling
    )
    return [ask([3, 4, 5]), ask([6])], config


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", WAYS)
def test_answers_are_those_of_the_models_own_forward(make_model, vocabulary, requests, way, device):
    """In the engine and in a batch that is joined; narrow ways write codes of the same form."""
    prompts, config = requests
    expected = Engine(make_model(), vocabulary, "reference").generate(prompts, config)
    model = make_model().to(device)
    engine = Engine(model, vocabulary, WAYS[way](model, device))
    answers = [engine.generate(prompts, config)]
    batch, done = ContinuousBatch(engine), {}
    keys = [key for prompt in prompts for key in batch.admit([GenerationRequest(prompt, config)])]
    while len(batch):
        done.update({one.key: one.answer for one in batch.advance_rows()})
    answers.append([done[key] for key in keys])
    for found in answers:
        assert found == expected if way in EXACT else [len(row) for row in found] == [len(row) for row in expected]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("half", [False, True])
@torch.inference_mode()
def test_a_compiled_step_is_that_of_fixed_shapes(make_model, half, device):
    """Steps that replay the graph, a step of several tokens, guesses taken back, rows that go: the states are those of
    the step that is not compiled."""
    model = make_model().to(device)
    model = model.bfloat16() if half else model
    tolerance = 5e-2 if half else 1e-5
    decoders = [CompiledDecoder(model, backend=backend) for backend in (BACKEND[device], None)]
    for decoder in decoders:
        decoder.prefill([[3, 4, 5, 6], [7]], 0, 60)
    for number in range(9):
        width = 3 if number == 4 else 1
        rows = len(decoders[0].streams)
        ids = torch.randint(1, 40, (rows, width), generator=torch.Generator().manual_seed(number)).to(device)
        states = [decoder.step(ids).float() for decoder in decoders]
        torch.testing.assert_close(*states, rtol=tolerance, atol=tolerance)
        for decoder in decoders if number == 4 else ():
            decoder.commit([[0], [0, 2]], 3)
        for decoder in decoders if number == 6 else ():
            decoder.keep([1])


def test_a_compiled_step_and_narrow_copies_are_refused_together(make_model, vocabulary):
    for given in ({"weights": "bfloat16"}, {"kv": "int8"}):
        with pytest.raises(ValueError, match="compile"):
            Engine(make_model(), vocabulary, compile="eager", **given)
