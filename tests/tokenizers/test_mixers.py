"""Mixers in the place of attention: the authors' formulas, their weights and cost, and tokenizers made of them."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.tokenizers.test_published_systems import make_media
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.parts.mixers import MIXERS, divide_line, make_mixer_block
from unimodal.tokenizers.parts.mixers.ponet import PoolingMixing
from unimodal.tokenizers.parts.resamplers import Resampler

#: a published system, and the settings that take a mixer
TAKERS = [
    *(("meaning-first-64", {"network": {"mixer": name}}) for name in MIXERS),
    *(("seit", {"mixer": name}) for name in MIXERS),
    ("one-d-piece-s256", {"mixer": "ponet"}),
    ("tatitok-bl32-vae", {"family": "titok_latents", "text": None, "mixer": "ponet"}),
]


def build_small(name, changes):
    settings = read_system(name).choose_settings(small=True)
    for key, value in changes.items():
        settings[key] = {**settings[key], **value} if isinstance(value, dict) else value
    torch.manual_seed(0)
    return build_tokenizer(settings)


def test_poolformer_averages_the_neighbours_that_there_are_and_takes_the_token_away():
    block, x = make_mixer_block("poolformer", 6, 1, 12, (3, 5)), torch.randn(2, 15, 6)
    with torch.no_grad():
        block.mixer_scale.fill_(0.5)
        block.down.weight.zero_()
    normed = (x - x.mean((1, 2), keepdim=True)) / (x.var((1, 2), unbiased=False, keepdim=True) + 1e-5).sqrt()
    maps, mixed = normed.unflatten(1, (3, 5)), torch.empty(2, 3, 5, 6)
    for row in range(3):
        for column in range(5):
            window = maps[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            mixed[:, row, column] = window.mean((1, 2)) - maps[:, row, column]
    torch.testing.assert_close(block(x), x + 0.5 * mixed.flatten(1, 2))
    with pytest.raises(ValueError, match="odd number"):
        MIXERS["poolformer"](6, (3, 5), 12, window=2)


def test_raftmlp_mixes_columns_and_then_rows_with_all_rafts_of_a_place():
    torch.manual_seed(0)
    rows, columns, width, rafts = 3, 4, 6, 2
    block, x = make_mixer_block("raftmlp", width, 1, 8, (rows, columns)), torch.randn(2, rows * columns, width)
    maps, inside = x.unflatten(1, (rows, columns)).clone(), width // rafts

    def mix(line, layer):  # one column or row [places, D]: for every place within rafts, the rafts one after another
        normed, added = layer.norm(line), torch.empty_like(line)
        for place in range(inside):
            together = torch.cat([normed[:, raft * inside + place] for raft in range(rafts)])
            found = layer.down(torch.nn.functional.gelu(layer.up(together))).chunk(rafts)
            for raft in range(rafts):
                added[:, raft * inside + place] = found[raft]
        return line + added

    with torch.no_grad():
        for item in maps:
            for column in range(columns):
                item[:, column] = mix(item[:, column], block.vertical)
            for row in range(rows):
                item[row] = mix(item[row], block.horizontal)
        y = maps.flatten(1, 2)
        y = y + block.down(torch.nn.functional.gelu(block.up(block.norm_mlp(y))))
        torch.testing.assert_close(block(x), y)
    with pytest.raises(ValueError, match="2 rafts do not divide a width of 7"):
        make_mixer_block("raftmlp", 7, 1, 8, (3, 4))


@pytest.mark.parametrize("num", [11, 6])
def test_ponet_fuses_the_pools_of_the_whole_of_segments_and_of_neighbours(num):
    torch.manual_seed(0)
    layer, x = PoolingMixing(8, 2, (4, 4, 3)), torch.randn(2, num, 8)
    with torch.no_grad():
        query, key = layer.query(x), layer.key(x)
        whole = []
        for head in (slice(0, 4), slice(4, 8)):
            attention = torch.einsum("bd,bnd->bn", query[..., head].mean(1), key[..., head]) / 2
            whole.append(torch.einsum("bn,bnd->bd", attention.softmax(-1), key[..., head]))
        whole, segment, near, mixed = torch.cat(whole, 1), layer.segment(x), layer.neighbours(x), torch.empty_like(x)
        for at in range(num):
            start = at // 4 * 4
            best = segment[:, start : start + 4].amax(1)
            mixed[:, at] = (whole + best) * layer.own(x)[:, at] + near[:, max(at - 1, 0) : at + 2].amax(1)
        torch.testing.assert_close(layer(x), layer.out(mixed))


def test_tokens_that_are_not_there_change_nothing_in_ponet():
    torch.manual_seed(0)
    layer, x = PoolingMixing(8, 2, divide_line(11)), torch.randn(2, 11, 8)
    real = torch.arange(11) < torch.tensor([[11], [7]])
    made = layer(x, real)
    torch.testing.assert_close(made[0], layer(x[:1])[0])
    torch.testing.assert_close(made[1, :7], layer(x[1:, :7])[0])
    with pytest.raises(ValueError, match="are 11 tokens; got 12"):
        layer(torch.randn(1, 12, 8))


def count_flops(mixer, side, width=16):
    """Of what mixes alone: the feed-forward layer has no width to speak of."""
    block = make_mixer_block(mixer, width, 2, 1, (side, side))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        block(torch.randn(1, side * side, width))
    return counter.get_total_flops() - 2 * 2 * side * side * width


def test_the_cost_grows_with_the_tokens_as_published():
    # 4 times as many tokens: PoNet and PoolFormer are linear, RaftMLP grows by 8, and attention or an MLP by 16
    assert count_flops("ponet", 16) == pytest.approx(4 * count_flops("ponet", 8), rel=1e-3)
    assert count_flops("poolformer", 16) == count_flops("poolformer", 8) == 0
    assert count_flops("raftmlp", 16) == 8 * count_flops("raftmlp", 8)
    assert count_flops("raftmlp", 16) == 2 * 16 * 16 * (2 * 2 * 2 * 2 * 16 * 16)  # 2 ways · N · 2 layers · 2 · E·R·S·D


def test_the_weights_are_as_many_as_published():
    width, side, inner = 12, 5, 48
    mlp = 2 * width * inner + width + inner
    count = {name: sum(p.numel() for p in make_mixer_block(name, width, 2, inner, (side, side)).parameters())
             for name in MIXERS}  # fmt: skip
    assert count["poolformer"] == mlp + 2 * 2 * width + 2 * width  # the mixer has none: norms and scales
    assert count["ponet"] == mlp + 2 * 2 * width + 6 * (width**2 + width)  # five maps and the one behind
    mixed = 2 * side  # two rafts
    assert count["raftmlp"] == mlp + 3 * 2 * width + 2 * (2 * mixed * 2 * mixed + 3 * mixed)


@pytest.mark.parametrize(("name", "changes"), TAKERS)
def test_a_tokenizer_with_a_mixer_trains_and_comes_back_from_its_folder(name, changes, tmp_path):
    tokenizer = build_small(name, changes).train()
    x = make_media(tokenizer)
    optimizer = torch.optim.SGD(tokenizer.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        torch.manual_seed(1)
        loss, _ = tokenizer.training_loss(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]
    assert not [one for one, weight in tokenizer.named_parameters() if weight.requires_grad and weight.grad is None]
    tokenizer.round_to_half().eval()
    tokenizer.save(tmp_path)
    again = type(tokenizer).load(tmp_path)
    assert again.config == tokenizer.config and again.sha256 == tokenizer.sha256
    made = tokenizer.encode(x)
    assert torch.equal(tokenizer.decode(made), again.decode(made))
    if name == "one-d-piece-s256":  # a prefix in a batch of longer ones is what it is alone
        short = type(made)(made.ids, torch.arange(made.ids.shape[1]) < torch.tensor([[3], [8]]), order=made.order)
        alone = type(made).whole(made.ids[:1, :3], order=made.order)
        torch.testing.assert_close(tokenizer.decode(short)[0], tokenizer.decode(alone)[0])


def test_attention_stays_and_what_needs_it_refuses_a_mixer():
    before = build_small("meaning-first-64", {})
    assert before.config.network.mixer == "attention" and any("qkv" in name for name in before.state_dict())
    for name, settings in [
        ("karl", {"mixer": "ponet"}),
        ("himtok", {"mixer": "ponet"}),
        ("one-d-piece-s256", {"mixer": "raftmlp"}),
        ("tatitok-bl32-vq", {"mixer": "ponet"}),
        ("meaning-first-64", {"network": {"mixer": "conv"}}),
    ]:
        with pytest.raises(ValueError, match="attention"):
            build_small(name, settings)
    for name, mixer in [("seit", "poolformer"), ("one-d-piece-s256", "ponet")]:  # no code of theirs would load it
        assert build_small(name, {}).collect_authors_state()
        with pytest.raises(ValueError, match=f"no mixer {mixer}"):
            build_small(name, {"mixer": mixer}).collect_authors_state()
    with pytest.raises(ValueError, match="no mixer 'attention'"):
        make_mixer_block("attention", 8, 1, 8, (2, 2))
    with pytest.raises(ValueError, match="causal mask"):
        Resampler(4, 8, 1, 2, mask="causal", segments=(2, 2))
    assert divide_line(20) == (3, 3, 3, 3, 3, 3, 2) and divide_line(3) == (1, 1, 1)
