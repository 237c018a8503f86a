"""FlowTok: a flow between the tokens of captions and those of pictures."""

import pytest
import torch

from unimodal.tokenizers.codes import Latents
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.interface import Condition


@pytest.fixture(scope="session")
def captions():
    return Condition(features=torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope="session")
def trained(captions):
    """A small network whose flow has seen the tokens of four pictures with their captions; and these tokens."""
    torch.manual_seed(0)
    made = build_tokenizer(read_system("flowtok").choose_settings(small=True)).train()
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(4, 6, 4, generator=generator)
    trained = [*made.captions.parameters(), *made.flow.parameters()]
    optimizer, losses = torch.optim.AdamW(trained, 4e-3), []
    for _ in range(80):
        loss, numbers = made.measure_flow(tokens, captions, generator)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(numbers["flow"])
    return made.eval(), Latents(tokens, torch.ones(4, 6, dtype=torch.bool)), losses


@pytest.mark.sweep("tokenizers at work")
def test_a_caption_flows_to_its_own_picture_and_back(trained, captions):
    made, own, losses = trained
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    drawn = made.draw_tokens(captions)
    assert drawn.values.shape == own.values.shape
    distances = torch.cdist(drawn.values.flatten(1), own.values.flatten(1))
    assert distances.argmin(1).tolist() == [0, 1, 2, 3]
    with torch.inference_mode():
        starts = made.project_caption(captions)
    back = torch.cdist(made.read_tokens(own).flatten(1), starts.flatten(1))
    assert back.argmin(1).tolist() == [0, 1, 2, 3]
    assert made.decode(drawn).shape == (4, 3, 16, 16)


def test_the_flow_is_trained_beside_the_tokens_and_does_not_reach_them(captions):
    torch.manual_seed(0)
    made = build_tokenizer(read_system("flowtok").choose_settings(small=True)).train()
    x = torch.rand(4, 3, 16, 16)
    made.reconstruct(x, condition=captions, generator=torch.Generator().manual_seed(1)).loss.backward()
    assert made.flow.out.weight.grad.abs().sum() > 0 and made.captions.out.weight.grad.abs().sum() > 0
    beside = made.encoder.out.weight.grad.clone()
    made.zero_grad()
    made.reconstruct(x, generator=torch.Generator().manual_seed(1)).loss.backward()
    assert torch.allclose(beside, made.encoder.out.weight.grad)


def test_no_noise_is_drawn_and_padding_does_not_count(trained, captions):
    made, *_ = trained
    assert torch.equal(made.draw_tokens(captions).values, made.draw_tokens(captions).values)
    assert captions.features is not None
    padded = torch.cat([captions.features, torch.full((4, 1, 8), 9.0)], 1)
    mask = torch.tensor([[True] * 5 + [False]]).expand(4, -1)
    again = made.draw_tokens(Condition(features=padded, features_mask=mask)).values
    assert torch.allclose(again, made.draw_tokens(captions).values, atol=1e-4)
    with pytest.raises(ValueError, match="up to 6 vectors of width 8; got \\(4, 7, 8\\)"):
        made.draw_tokens(Condition(features=torch.zeros(4, 7, 8)))
    with pytest.raises(ValueError, match="of the caption for each picture"):
        made.draw_tokens(Condition())
