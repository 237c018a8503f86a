"""A run that begins from a finished adapter: it computes what the adapter computes, and refuses what does not fit."""

import pytest
import torch
from torch import nn

from tests.tiny_bases import BASES, PADDED, make_base, save_base
from unimodal.model.adapter import save_adapter
from unimodal.model.adapter_files import LORA_FILE, ROWS_FILE
from unimodal.model.base import load_base
from unimodal.model.build import build_model
from unimodal.model.fourier_head import FourierSettings
from unimodal.model.initial_adapter import begin_from_adapter, list_initial_files
from unimodal.model.lora import LoraSettings
from unimodal.model.prompt_settings import PromptSettings
from unimodal.model.rows import get_new_rows
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

IMAGE = Block(name="image", modality="image", size=16, sha256="a" * 64)
AUDIO = Block(name="audio", modality="audio", size=12, sha256="b" * 64)
SPANS = [SpanLayout("image", [Segment("image", 4)]), SpanLayout("audio", [Segment("audio")])]
TWO = LoraSettings(rank=2)


def lay_out(*blocks, text="t"):
    media = {block.modality for block in blocks}
    return Vocabulary.build(PADDED, list(blocks), [span for span in SPANS if span.modality in media], (), text)


@torch.no_grad()
def move(model, seed=1):
    """Another value for everything that is trained, as after some steps."""
    noise = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += torch.randn(parameter.shape, generator=noise) * 0.1
    return model.eval()


@pytest.mark.sweep("bases")
@pytest.mark.parametrize("shared", [False, True], ids=["rows of their own", "rows that share"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", BASES)
@torch.no_grad()
def test_it_computes_what_the_adapter_computes(kind, tied, shared, tmp_path):
    base, vocabulary = save_base(tmp_path / "base", make_base(kind, tied)), lay_out(IMAGE, AUDIO)
    rows = vocabulary.get_block_range("image")
    features = {rows: nn.functional.one_hot(torch.arange(16) // 4, 4).float()} if shared else None
    earlier = move(build_model(str(base), vocabulary, TWO, shared=features))
    save_adapter(tmp_path / "first", earlier, str(base), vocabulary)
    model = build_model(str(base), vocabulary, TWO, shared=features, seed=5).eval()
    ids = torch.tensor(
        [[3, 5, *vocabulary.encode_span("image", [1, 15, 0, 7]), *vocabulary.encode_span("audio", [3, 4])]]
    )
    expected = earlier(ids).logits
    assert float((model(ids).logits - expected).abs().max()) > 1e-3
    assert begin_from_adapter(model, tmp_path / "first", vocabulary) == vocabulary.size - PADDED
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-5 * scale)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in earlier.named_parameters() if p.requires_grad}
    if shared:  # what the features explain is in the table that the codes share
        assert max(float(p.abs().max()) for name, p in model.named_parameters() if "tables" in name) > 0


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_with_more_media_or_fewer_the_rows_of_both_are_taken(tied, tmp_path):
    base, small, large = save_base(tmp_path / "base", make_base("llama", tied)), lay_out(IMAGE), lay_out(AUDIO, IMAGE)
    for theirs, ours in ((small, large), (large, small)):
        earlier = move(build_model(str(base), theirs, TWO))
        save_adapter(tmp_path / "first", earlier, str(base), theirs)
        model = build_model(str(base), ours, TWO, seed=5)
        before = {side: rows.detach().clone() for side, rows in get_new_rows(model).items()}
        taken = begin_from_adapter(model, tmp_path / "first", ours)
        kept = set(range(PADDED, ours.size))
        for side, rows in get_new_rows(model).items():
            other = get_new_rows(earlier)[side]
            pairs = [(ours.get_block_range("image"), theirs.get_block_range("image"))]
            for control in ours.controls:
                if theirs.has_control(control.name):
                    row = theirs.get_control_id(control.name)
                    pairs.append((range(control.id, control.id + 1), range(row, row + 1)))
            assert taken == sum(len(mine) for mine, _ in pairs)
            for mine, same in pairs:
                kept -= set(mine)
                assert torch.equal(
                    rows[mine.start - PADDED : mine.stop - PADDED], other[same.start - PADDED : same.stop - PADDED]
                )
            for row in kept:
                assert torch.equal(rows[row - PADDED], before[side][row - PADDED])


def test_what_does_not_fit_is_told_in_one_line(tmp_path):
    base, vocabulary = save_base(tmp_path / "base", make_base("llama", True)), lay_out(IMAGE)
    folder = tmp_path / "first"
    save_adapter(folder, move(build_model(str(base), vocabulary, TWO)), str(base), vocabulary)
    assert set(list_initial_files(folder)) == {f"initial/{LORA_FILE}", f"initial/{ROWS_FILE}"}
    assert list_initial_files(None) == {}

    def refuse(match, lora=TWO, of=folder, home=base, words=vocabulary):
        model = build_model(str(home), words, lora)
        with pytest.raises(ValueError, match=match) as found:
            begin_from_adapter(model, of, words)
        assert "\n" not in str(found.value)

    refuse("has r 2, and this run 4; set `lora` as", LoraSettings(rank=4))
    refuse("has lora_alpha 4, and this run 16", LoraSettings(rank=2, alpha=16))
    refuse("has target_modules .* and this run", LoraSettings(rank=2, targets="attention"))
    refuse("has LoRA, and lora is null", None)
    refuse("holds no adapter", of=base)
    refuse("has another text tokenizer", words=lay_out(IMAGE, text="other"))
    other = make_base("llama", True)
    nn.init.normal_(other.get_input_embeddings().weight, std=0.3)
    save_base(tmp_path / "other", other)
    refuse("was trained on another base", home=tmp_path / "other")
    (folder / ROWS_FILE).write_bytes(b"torn")
    refuse("cannot be read .*; copy or download the folder again")

    prompted = build_model(str(base), vocabulary, TWO, prompt=PromptSettings(length=3))
    save_adapter(tmp_path / "prompted", prompted, str(base), vocabulary)
    refuse("has a soft prompt; set prompt.source=", of=tmp_path / "prompted")
    scored = build_model(str(base), vocabulary, TWO, fourier=FourierSettings(blocks=("image",)))
    save_adapter(tmp_path / "scored", scored, str(base), vocabulary)
    refuse("has Fourier heads; set `fourier`", of=tmp_path / "scored")
    refuse("has heads for its own codes", of=tmp_path / "scored", words=lay_out(IMAGE, AUDIO))


def test_rows_alone_may_be_followed_by_lora(tmp_path):
    base, vocabulary = save_base(tmp_path / "base", make_base("llama", True)), lay_out(IMAGE)
    earlier = move(build_model(str(base), vocabulary))
    save_adapter(tmp_path / "first", earlier, str(base), vocabulary)
    model = build_model(str(base), vocabulary, TWO, seed=5)
    begin_from_adapter(model, tmp_path / "first", vocabulary)
    for side, rows in get_new_rows(model).items():
        assert torch.equal(rows, get_new_rows(earlier)[side])
    assert load_base(str(base)).num_rows == PADDED
