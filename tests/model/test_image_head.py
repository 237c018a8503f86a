"""A head of two halves: any slice of its rows is the whole head's, and a damaged file is one line."""

import pytest
import torch
from torch import nn

from unimodal.generation.guidance import combine
from unimodal.generation.head import SlicedHead
from unimodal.model.build import NanoConfig, build_nano
from unimodal.model.image_head import HEAD_FILE, ImageHead, attach_image_head

START, CODES, ROWS = 40, 24, 64


def decoder():
    torch.manual_seed(0)
    sizes = NanoConfig(hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=2, intermediate_size=16)
    model = build_nano(ROWS, sizes, pad_id=0, bos_id=1, eos_id=2)
    untied = nn.Linear(16, ROWS, bias=False)
    model.set_output_embeddings(untied)
    return model, ImageHead(untied, START, nn.Linear(16, 12), "gelu", nn.Linear(12, CODES))


def test_slices_are_those_of_the_whole_head_and_survive_saving(tmp_path):
    model, head = decoder()
    head.save(tmp_path)
    attach_image_head(model, tmp_path)
    hidden = torch.randn(5, 16)
    with torch.inference_mode():
        text = head.base(hidden)[:, :START]
        codes = head.outer(nn.functional.gelu(head.inner(hidden)))
        whole = model.get_output_embeddings()(hidden)
        assert torch.allclose(whole, torch.cat([text, codes], 1), atol=1e-6)
        sliced = SlicedHead(model)
        assert sliced.num_rows == ROWS
        for ranges in (((0, ROWS),), ((3, 9), (50, 52)), ((START, ROWS),), ((38, 44),)):
            found = sliced.select(ranges)
            logits = sliced.compute_logits(hidden, found)
            allowed = torch.isfinite(logits[0])
            assert sorted(found.ids[allowed].tolist()) == [row for start, end in ranges for row in range(start, end)]
            assert torch.allclose(logits[:, allowed], whole[:, found.ids[allowed]], atol=1e-6)


def test_guidance_combines_logits_where_the_head_is_no_linear_map(tmp_path):
    model, head = decoder()
    head.save(tmp_path)
    attach_image_head(model, tmp_path)
    sliced, scales = SlicedHead(model), torch.full((3, 1), 4.0)
    conditional, unconditional = torch.randn(3, 16), torch.randn(3, 16)
    with torch.inference_mode():
        found = sliced.select(((START, ROWS),))
        guided = sliced.compute_guided_logits(conditional, unconditional, scales, found)
        whole = model.get_output_embeddings()
        expected = combine(whole(conditional), whole(unconditional), scales)[:, START:]
        wrong = whole(combine(conditional, unconditional, scales))[:, START:]
    assert torch.allclose(guided, expected, atol=1e-5)
    assert (guided - wrong).abs().max() > 1e-2


def test_a_head_that_does_not_belong(tmp_path):
    model, head = decoder()
    with pytest.raises(ValueError, match="scores 24 rows from 41 on, but the model has 64 rows"):
        ImageHead(head.base, START + 1, head.inner, "gelu", head.outer)
    assert attach_image_head(model, tmp_path) is model  # most folders have none
    (tmp_path / HEAD_FILE).write_bytes(b"nonsense")
    with pytest.raises(
        ValueError, match=r"image_head.safetensors is damaged .*; convert the checkpoint again"
    ) as error:
        attach_image_head(model, tmp_path)
    assert "\n" not in str(error.value)
