"""The quantized vectors of every system, through the base: for the caption loss, and to perturb them in training."""

import pytest
import torch

from tests.tokenizers.small_systems import build_small, list_kinds
from tests.tokenizers.test_published_systems import make_media
from tests.tokenizers.tiny_system import TinyConfig, TinySystem
from unimodal.tokenizers.conditions import ConditionMaker
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.interface import MediaTokenizer
from unimodal.tokenizers.losses.bag import LossBag, choose_features
from unimodal.tokenizers.losses.perturbation import Perturbation
from unimodal.tokenizers.losses.settings import LossSettings, PerturbationSettings
from unimodal.tokenizers.losses.trained_tokenizer import TrainedTokenizer
from unimodal.tokenizers.parts.quantizers.interface import Quantizer

#: of codes that are set after training, and of books that are no one quantizer's
WITHOUT = {"tokenbridge", "cubid", "uniaudio2-reasoning"}
#: families that encode what follows by what was decoded so far
FED_BACK = {"comit", "i2_world"}
FROZEN = {"vocos-encodec"}  # whose encoder is never trained


@pytest.mark.sweep
@pytest.mark.parametrize("name", list_kinds())
def test_every_system_of_codes_gives_its_quantized_vectors_with_a_gradient(name, monkeypatch):
    tokenizer = build_small(name)
    if not tokenizer.reconstructs:
        return
    conditions, x = ConditionMaker(tokenizer), make_media(tokenizer)
    condition = conditions.make(x, ["a cat"] * len(x) if conditions.reads_text else None)
    made = tokenizer.reconstruct_codes(x, None, condition)
    assert ("codes" in made.features) == (isinstance(tokenizer, MediaTokenizer) and name not in WITHOUT)
    if "codes" in made.features:
        codes = made.features["codes"]
        assert codes.dim() == 3 and len(codes) == len(x) and codes.requires_grad != (name in FROZEN)
    check_the_caption_loss(tokenizer, made, x, monkeypatch)
    check_a_perturbation(tokenizer, x, condition, made)


class MeanReader:
    """In place of a language model: what it loses is the mean of the media's embeddings."""

    width = 4

    def __init__(self, folder):
        assert folder == "reader"

    def __call__(self, media, captions):
        return media.square().mean()


def check_the_caption_loss(tokenizer, made, x, monkeypatch):
    """It reads the codes, or is refused by the family's name before any training."""
    monkeypatch.setattr("unimodal.tokenizers.losses.bag.HubCaptionModel", MeanReader)
    settings = LossSettings(l2=0, quantizer=0, caption=1, caption_model="reader")
    widths = {name: values.shape[-1] for name, values in made.features.items()}
    family = tokenizer.config.family

    def set_up():
        return LossBag(settings, tokenizer.modality, widths, decodes=tokenizer.can_decode, family=family)

    if "codes" in made.features:
        loss, numbers = set_up()(made, x, 0, captions=["a cat"] * len(x))
        assert torch.isfinite(loss) and loss.requires_grad and numbers["caption"] > 0
    else:
        with pytest.raises(ValueError, match=f"^{family} has no vectors of codes .*; leave losses.caption out$"):
            set_up()


def check_a_perturbation(tokenizer, x, condition, made):
    """It changes what is decoded and not the codes, or is refused by the family's name before any training."""
    settings = LossSettings(l2=0, perturbation=PerturbationSettings(share=1.0, near=4))
    bag = LossBag(settings, tokenizer.modality, decodes=tokenizer.can_decode)
    quantizer = dict(tokenizer.named_children()).get("quantizer")
    one = isinstance(quantizer, Quantizer) and len(quantizer.codebook_sizes) == 1 and quantizer.num_levels == 1
    if one and quantizer.make_table(0) is not None and not tokenizer.perturbs_codes:
        change = TrainedTokenizer(tokenizer, bag).perturbation
        changed = tokenizer.reconstruct_codes(x, None, condition, change)
        assert changed.ids is None or tokenizer.config.family in FED_BACK or torch.equal(changed.ids, made.ids)
        assert not torch.equal(changed.features["codes"], made.features["codes"])
    else:
        with pytest.raises(ValueError, match=f"^{tokenizer.config.family}[ :].*; (set|leave|.*or leave)[^\n]*$"):
            TrainedTokenizer(tokenizer, bag)


def test_what_perturbs_its_codes_already_is_not_perturbed_twice():
    with pytest.raises(ValueError, match="perturbs its codes by its own setting perturbed_share; set it to 0"):
        TrainedTokenizer(build_small("robustok"), LossBag(LossSettings(perturbation=PerturbationSettings()), "image"))
    known = read_system("robustok").choose_settings(small=True)
    for change, said in (({"num_branches": 2}, "one branch of one scale"), ({"near_codes": 10**6}, "near_codes is")):
        with pytest.raises(ValueError, match=said):
            build_tokenizer({**known, **change})


def test_a_perturbation_of_the_recipe_is_in_training_alone_and_refused_where_there_is_no_one_codebook():
    settings = LossSettings(perturbation=PerturbationSettings(share=0.5, near=4, steps=(10, 20)))
    tokenizer = TinySystem(TinyConfig())
    module = TrainedTokenizer(tokenizer, LossBag(settings, "image"))
    x = torch.rand(4, 3, 16, 16)
    plain = tokenizer.reconstruct(x)
    module.train()
    torch.manual_seed(0)
    changed = module.reconstruct(x, None, None)
    different = ((changed.decoded - plain.decoded).abs() > 1e-5).flatten(1).any(1).tolist()
    assert any(different[:2]) and different[2:] == [False, False] and torch.equal(changed.ids, plain.ids)
    assert torch.equal(module.eval().reconstruct(x, None, None).decoded, plain.decoded)
    latents = build_small("titok-bl64-vae-c16")
    with pytest.raises(ValueError, match="titok_latents has no quantizer"):
        latents.reconstruct_codes(make_media(latents), None, None, Perturbation(PerturbationSettings()))
    books = build_small("dualtoken-384")
    with pytest.raises(ValueError, match="perturbation is of codes of one listed codebook"):
        books.reconstruct_codes(make_media(books), None, None, Perturbation(PerturbationSettings()))


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["snac-24", "speechtokenizer", "tadicodec"])
def test_sounds_of_several_lengths_have_the_vectors_that_they_have_alone(name):
    """And a mask as long as these, for losses that look at what is real."""
    tokenizer = build_small(name)
    frame = tokenizer.samples_per_code
    lengths = [3 * frame - 5, 5 * frame, 1, 5 * frame]
    x = torch.zeros(4, 1, 5 * frame)
    for row, length in zip(x, lengths, strict=True):
        row[:, :length] = torch.rand(length, generator=torch.Generator().manual_seed(length)) - 0.5
    values, mask = choose_features(tokenizer.reconstruct_codes(x, torch.tensor(lengths)), "codes")
    for row, length in enumerate(lengths):
        alone = tokenizer.reconstruct_codes(x[row : row + 1, :, :length]).features["codes"][0]
        torch.testing.assert_close(values[row][mask[row]], alone, atol=1e-5, rtol=0)


def test_the_shortest_sounds_have_a_finite_loss():
    tokenizer = build_small("tadicodec").train()
    try:
        for seed in range(4):
            torch.manual_seed(seed)
            assert tokenizer.training_loss(torch.rand(2, 1, 2), torch.tensor([1, 2]))[0].isfinite()
    finally:
        tokenizer.eval()
