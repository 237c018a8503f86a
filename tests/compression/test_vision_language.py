"""Stock vision-language models of transformers, random and tiny, beside their own forward."""

from functools import wraps

import pytest
import torch

from tests.campaigns import is_study
from tests.compression.tiny_vision import BEGIN, CLIP, END, NAMES, PICTURE, Picture, make_inputs, make_model
from unimodal.compression import METHODS, CacheCompressor, DivPrune

pytestmark = pytest.mark.sweep("vision-language models")
FREE = [name for name, method in METHODS.items() if not method.is_learned]
#: these turn keys to other positions, which M-RoPE does not allow
TURNING = {"dapq", "expected_attention", "prumerge"}
#: a model of each kind of positions and masks; those of the other kinds are alike, and share the methods among them
KINDS = ("Qwen2VL", "Gemma3")
ROWS = [[5, 6, Picture(1), 7, 8], [3, 4, 5, Picture(2, wide=True), 10, Picture(3), 11, 12, 13]]


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    """A model that computes the features of the same pictures once: what is compressed lies behind them."""
    model = make_model(name)
    own, known = model.model.get_image_features, {}

    @wraps(own)  # generate() asks for its parameters
    def get_image_features(pixel_values, *args, **settings):
        key = pixel_values.numpy().tobytes()
        if key not in known:
            known[key] = own(pixel_values, *args, **settings)
        return known[key]

    model.model.get_image_features = get_image_features
    return model


@torch.no_grad()
def read(model, name, rows):
    """Logits behind the rows, [B, V]."""
    return model(**make_inputs(name, rows)).logits[:, -1]


@pytest.mark.parametrize("method", ["stride", "fastv", "h2o"])
def test_keeping_everything_is_the_models_own_forward_to_the_bit(model, name, method):
    own = read(model, name, ROWS)
    with METHODS[method](1.0)(model) as session:
        assert torch.equal(read(model, name, ROWS), own)
    assert session.stats.tokens_before == session.stats.tokens_after or method == "h2o"
    assert "forward" not in vars(model.model) and "forward" not in vars(model.model.language_model)
    assert torch.equal(read(model, name, ROWS), own)


def test_every_method_shortens_and_no_row_depends_on_its_neighbour(model, name):
    """The rows take turns in being read alone, so that every method meets both: the padded one and the longer one."""
    own, mine = read(model, name, ROWS), NAMES.index(name)
    others = [other for other in NAMES if other not in KINDS]
    for number, kind in enumerate(FREE, mine):
        if name not in KINDS and not is_study() and number % len(others) != others.index(name):
            continue
        if kind in TURNING and name.startswith("Qwen"):
            with pytest.raises(ValueError, match="M-RoPE"), METHODS[kind](0.5)(model):
                read(model, name, ROWS)
            continue
        if kind == "kvzip" and name.startswith(("Qwen", "Gemma")):
            with pytest.raises(ValueError, match="cannot be read a second time"), METHODS[kind](0.5)(model):
                read(model, name, ROWS)
            continue
        with METHODS[kind](0.5)(model) as session:
            found = read(model, name, ROWS)
            kept = session.rows
            row = number % len(ROWS)
            [alone] = read(model, name, [ROWS[row]])
        assert torch.allclose(found[row], alone, atol=2e-4), (kind, (found[row] - alone).abs().max())
        if not issubclass(METHODS[kind], CacheCompressor):
            assert all(row.kept < row.num for row in kept) and not torch.allclose(found, own, atol=1e-4), kind


@pytest.mark.parametrize("method", ["divprune", "pooling", "ppe", "centerclip"])
def test_what_is_generated_with_a_cache_is_what_the_whole_prompt_gives(model, name, method):
    """The positions behind a picture, on all axes, go on where the whole prompt would have gone on."""
    with torch.no_grad(), METHODS[method](0.5)(model):
        given = make_inputs(name, ROWS)
        marks = [PICTURE, CLIP, BEGIN, END]
        written = model.generate(**given, max_new_tokens=3, do_sample=False, suppress_tokens=marks)[:, -3:]
        for step in range(3):
            rows = [[*row, *new[:step].tolist()] for row, new in zip(ROWS, written, strict=True)]
            logits = read(model, name, rows).index_fill(1, torch.tensor(marks), -torch.inf)
            assert torch.equal(logits.argmax(-1), written[:, step])


@pytest.mark.parametrize("name", ["Qwen2VL", "Qwen2_5_VL", "LlavaOnevision"])
def test_clips(name):
    model, rows = make_model(name), [[5, Picture(4, frames=3), 6, Picture(1), 7]]
    own = read(model, name, rows)
    with METHODS["stride"](1.0)(model):
        assert torch.equal(read(model, name, rows), own)
    with DivPrune(0.5, modalities=("video",))(model) as session:
        read(model, name, rows)
    num = int((make_inputs(name, rows)["input_ids"] == CLIP).sum())
    assert session.stats.tokens_before - session.stats.tokens_after == num - round(num / 2)


@pytest.mark.parametrize("kind", ["streaming_llm", "tokenselect", "expected_attention", "kvzip"])
@torch.no_grad()
def test_first_entries_are_those_of_the_row_and_not_of_its_padding(kind):
    """A plain call counts positions from the padding in front of a row."""
    model = make_model("Llava")
    with METHODS[kind](0.3, scope="prompt")(model):
        logits = []
        for rows in (ROWS, ROWS[:1]):
            given = make_inputs("Llava", rows)
            held = model(**given, use_cache=True).past_key_values
            mask = torch.cat([given["attention_mask"], torch.ones(len(rows), 1, dtype=torch.long)], 1)
            step = torch.full((len(rows), 1), 9)
            logits.append(model(input_ids=step, attention_mask=mask, past_key_values=held).logits[0, -1])
    assert torch.allclose(*logits, atol=2e-4)


def test_pictures_without_a_word_between_them_are_told_apart():
    from unimodal.compression.vision_language.spans import find_media

    ids = torch.tensor([[0, PICTURE, PICTURE, PICTURE, PICTURE, PICTURE, 7, PICTURE, PICTURE]])
    valid = ids != 0
    sizes = {"image": [(2,), (3,), (2,)]}
    found, after = find_media(ids, valid, {PICTURE: "image"}, sizes, None, None)
    assert [(span.columns, span.end) for span in found] == [((1,), 2), ((3, 4, 5), 6), ((7,), 8)]
    assert bool(after.is_open[0])
    with pytest.raises(ValueError, match="in pieces"):
        find_media(ids[:, 1:], valid[:, 1:], {PICTURE: "image"}, {}, None, after)
    fixed, _ = find_media(ids[:, 1:5], valid[:, 1:5], {PICTURE: "image"}, {}, 2, None)
    assert [span.columns for span in fixed] == [(0,), (2,)]


def test_what_cannot_be_done_is_one_line():
    model = make_model("Qwen2VL")
    given = make_inputs("Qwen2VL", ROWS)
    with pytest.raises(ValueError, match="several axes"), DivPrune(0.5, positions="compacted")(model):
        pass
    with DivPrune(0.5)(model):
        with pytest.raises(ValueError, match="call the model with input_ids"):
            model(inputs_embeds=model.get_input_embeddings()(given["input_ids"]))
        with pytest.raises(ValueError, match="call the whole model"):
            model.model.language_model(inputs_embeds=model.get_input_embeddings()(given["input_ids"]))
        with pytest.raises(ValueError, match="not a StaticCache"):
            model.generate(**given, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match="give the whole"):
        DivPrune(0.5)(model.model.language_model)

    class Unknown(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.language_model = torch.nn.Linear(1, 1)

    with pytest.raises(ValueError, match="how Unknown gives pictures"):
        DivPrune(0.5)(Unknown())
