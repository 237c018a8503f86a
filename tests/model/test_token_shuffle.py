"""Token-Shuffle: the windows are a permutation, the logits are causal by window, and a small model learns pictures."""

import pytest
import torch

from unimodal.model.build import NanoConfig, build_nano
from unimodal.model.token_shuffle import TokenShuffle, TokenShuffleLM, join_windows, split_windows

ROWS, COLUMNS = range(12, 28), 4


def make(side=2, seed=0):
    torch.manual_seed(seed)
    cfg = NanoConfig(hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=2, intermediate_size=48, max_positions=64)
    base = build_nano(28, cfg, pad_id=0, bos_id=1, eos_id=2, seed=seed)
    return TokenShuffleLM(base, ROWS, COLUMNS, side, num_blocks=1)


@pytest.mark.parametrize(("num", "columns", "side"), [(16, 4, 2), (24, 6, 2), (36, 6, 3), (8, 4, 1)])
def test_windows_are_a_permutation_of_the_raster(num, columns, side):
    codes = torch.arange(2 * num).view(2, num)
    tiles = split_windows(codes, columns, side)
    assert tiles.shape == (2, num // side**2, side**2)
    assert torch.equal(join_windows(tiles, columns, side), codes)
    assert tiles[0, 0].tolist() == [row * columns + column for row in range(side) for column in range(side)]


def test_what_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="15 codes in 4 columns do not divide into 2×2 windows"):
        split_windows(torch.zeros(1, 15), 4, 2)
    with pytest.raises(ValueError, match="width 30 is not a multiple of 2² channels"):
        TokenShuffle(30, 2)


def test_fusing_keeps_the_shapes():
    shuffle = TokenShuffle(32, 2, num_blocks=1)
    fused = shuffle.fuse(torch.randn(3, 5, 4, 32))
    assert fused.shape == (3, 5, 32) and shuffle.unfuse(fused).shape == (3, 5, 4, 32)


@torch.no_grad()
def test_logits_depend_on_earlier_windows_only():
    model = make().eval()
    prompt, codes = torch.tensor([[1, 5, 6]]), torch.randint(0, 16, (1, 16))
    base = split_windows(model(prompt, codes).argmax(-1), COLUMNS, 2)
    logits = model(prompt, codes)[0]  # [N, K]
    place = split_windows(torch.arange(16)[None], COLUMNS, 2)[0]  # [G, W]
    changed = codes.clone()
    changed[0, place[1, 2]] = (changed[0, place[1, 2]] + 1) % 16
    other = model(prompt, changed)[0]
    assert torch.allclose(logits[place[:2].flatten()], other[place[:2].flatten()], atol=1e-6)
    assert not torch.allclose(logits[place[2:].flatten()], other[place[2:].flatten()], atol=1e-4)
    assert base.shape == (1, 4, 4)


def test_a_short_training_learns_pictures_and_draws_them_in_a_quarter_of_the_steps():
    model = make(seed=1)
    torch.manual_seed(0)
    pictures = torch.randint(0, 16, (4, 16))
    prompts = torch.tensor([[1, 3 + number] for number in range(4)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = None
    for _ in range(75):
        loss = model.compute_loss(prompts, pictures)
        first = first or float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1 < first
    calls = []
    hook = model.model.model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    drawn = model.eval().generate(prompts, 16)
    hook.remove()
    assert torch.equal(drawn, pictures) and len(calls) == 4
    assert torch.equal(model.generate(prompts, 16, temperature=0.1, seed=1), pictures)
    guided = model.generate(prompts[:2], 16, unconditional=prompts[2:], guidance=0.0)
    assert torch.equal(guided[:, :4], pictures[2:, :4])  # scale 0 draws what the other prompt asks for
    with pytest.raises(ValueError, match="needs the unconditional prompts"):
        model.generate(prompts, 16, guidance=2.0)
