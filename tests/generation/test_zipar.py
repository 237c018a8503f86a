"""ZipAR on pictures that are written as Emu3 writes them: rows of codes with a mark behind each."""

import pytest

from tests.generation.test_grids import VOCABULARY
from unimodal.generation import make_decoder
from unimodal.generation.engine import Engine
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import SamplingConfig
from unimodal.model.build import NanoConfig, build_nano

BOS, END_OF_TURN = VOCABULARY.get_control_id("<|bos|>"), VOCABULARY.get_control_id("<|end_of_turn|>")


@pytest.fixture(scope="module")
def model():
    shape = NanoConfig(
        hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48, max_positions=256, init_std=0.2
    )
    pad = VOCABULARY.get_control_id("<|pad|>")
    return build_nano(VOCABULARY.size, shape, pad_id=pad, bos_id=BOS, eos_id=END_OF_TURN, seed=2).eval()


def draw(seed, grid, temperature=0.9, **changes):
    """A guided picture of so many rows and columns; guidance ends within it."""
    return GenerationConfig(
        max_new_tokens=VOCABULARY.count_span_rows("image", grid=grid) + 1, force="image", grid=grid, seed=seed,
        guidance={"image": 2.0}, guidance_interval={"image": (0, grid[0] * grid[1] // 2)}, unconditional=(BOS,),
        sampling={"image": SamplingConfig(temperature=temperature)}, **changes,
    )  # fmt: skip


@pytest.mark.sweep
@pytest.mark.sliced
@pytest.mark.parametrize("kind", ["lean", "reference"])
@pytest.mark.parametrize("window", [1, 2, 4, 7])
def test_rows_with_marks_are_written_in_parallel(model, kind, window):
    """(H - 1) · window + W passes for H · W codes, one more for the prompt; each row the next one's window behind."""
    engine = Engine(model, VOCABULARY, kind, weights="model" if kind == "lean" else "auto")
    (height, width), prompt = (6, 7), [BOS, 3, 4]
    plain = engine.generate([prompt], [draw(1, (height, width))])
    assert engine.stats.forwards == 1 + height * width
    fast = engine.generate([prompt], [draw(1, (height, width))], method=make_decoder("zipar", window=window))
    assert engine.stats.forwards == 1 + (height - 1) * window + width
    assert VOCABULARY.read_span(fast[0][:-1])[2] == (height, width)
    if window == width:
        assert fast == plain
    else:  # the first row has seen all that the plain loop has
        begin = plain[0].index(41) + 1 + width
        assert fast[0][:begin] == plain[0][:begin] and fast != plain


@pytest.mark.sweep
@pytest.mark.parametrize("window", [1, 3, 99])
def test_batches_of_marked_pictures_are_what_each_is_alone(model, window):
    """Of unequal sizes, one whose rows the prompt begins, one behind words; and a pause inside a row."""
    engine, decoder = Engine(model.double(), VOCABULARY, "lean", weights="model"), make_decoder("zipar", window=window)
    begun = VOCABULARY.encode_span("image", [number % 20 for number in range(20)], (4, 5))
    rows = [
        ([BOS, 3], draw(1, (6, 7))),
        ([BOS, *[5] * 9], draw(2, (2, 11), temperature=0.0)),
        ([BOS, 6, *begun[: begun.index(41) + 9]], draw(3, (4, 5))),
        ([BOS, 8], draw(4, (5, 1))),
        ([BOS, 9], draw(5, (6, 7), pause=30)),
        ([BOS, 2], GenerationConfig(max_new_tokens=9, allow=("text",), seed=6)),
    ]
    prompts, configs = [prompt for prompt, _ in rows], [config for _, config in rows]
    together = engine.generate(prompts, configs, method=decoder)
    for prompt, config, answer in zip(prompts, configs, together, strict=True):
        assert engine.generate([prompt], [config], method=decoder) == [answer]
    assert len(together[4]) == 30
    if window == 99:
        assert together == engine.generate(prompts, configs)
    model.float()
