"""COMiT: a message that is written again with every crop, by the transformer that draws it."""

import pytest
import torch

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system


@pytest.fixture(scope="session")
def tokenizer():
    torch.manual_seed(0)
    made = build_tokenizer(read_system("comit").choose_settings(small=True)).eval()
    for p in made.trunk.parameters():  # branches of new blocks are closed
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.15)
    return made


def test_a_message_hangs_on_the_crops_that_were_seen_alone(tokenizer):
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    places = tokenizer.list_places()
    assert places[:4] == [(0, 0), (0, 4), (0, 8), (4, 0)] and len(places) == 9
    messages = []
    with torch.inference_mode():
        for num in range(1, 10):
            _, ids, _ = tokenizer.write_message(x, num)
            seen = torch.zeros(16, 16, dtype=torch.bool)
            for row, column in places[:num]:
                seen[row : row + 8, column : column + 8] = True
            assert ids.shape == (2, 4, 1)  # no longer than before
            assert torch.equal(tokenizer.write_message(torch.where(seen, x, 1 - x), num)[1], ids)
            messages.append(ids)
        first = x.clone()
        first[:, :, :4, :4] = 1 - first[:, :, :4, :4]  # seen in the first crop only, and told on
        assert not torch.equal(tokenizer.write_message(first, 2)[1], messages[1])
    assert any(not torch.equal(a, b) for a, b in zip(messages, messages[1:], strict=False))
    assert torch.equal(tokenizer.encode(x).ids, messages[-1])


def test_one_transformer_writes_and_draws(tokenizer):
    assert [name for name, part in tokenizer.named_children() if any(True for _ in part.parameters())] == ["trunk"]
    tokenizer.train()
    tokenizer.training_loss(torch.rand(2, 3, 16, 16))[0].backward()
    tokenizer.eval()
    for layer in (tokenizer.trunk.message_out, tokenizer.trunk.velocity_out, tokenizer.trunk.blocks[0].attn.wq):
        assert layer.weight.grad.abs().sum() > 0  # the flow's loss reaches what writes the message
    tokenizer.zero_grad()


def test_a_picture_is_drawn_from_its_message(tokenizer):
    codes = tokenizer.encode(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2)))
    made = tokenizer.decode(codes)
    other = tokenizer.decode(Codes.whole((codes.ids + 60) % 200))
    assert made.shape == (2, 3, 16, 16) and not torch.allclose(made, other, atol=1e-3)
    with pytest.raises(ValueError, match="a message of comit is 4 codes; got \\[3, 3\\]"):
        tokenizer.decode(Codes.whole(codes.ids[:, :3]))
    with pytest.raises(ValueError, match="there are 1 to 9 crops; got 10"):
        tokenizer.write_message(torch.rand(1, 3, 16, 16), 10)
