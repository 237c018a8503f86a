"""The quantized vectors of every system, through the base: for the caption loss, and to perturb them in training."""

import pytest
import torch

from tests.tokenizers.small_systems import build_small, list_kinds
from tests.tokenizers.test_published_systems import make_media
from tests.tokenizers.tiny_system import TinyConfig, TinySystem
from unimodal.tokenizers.conditions import ConditionMaker
from unimodal.tokenizers.interface import MediaTokenizer
from unimodal.tokenizers.losses.bag import LossBag
from unimodal.tokenizers.losses.perturbation import Perturbation
from unimodal.tokenizers.losses.settings import LossSettings, PerturbationSettings
from unimodal.tokenizers.losses.trained_tokenizer import TrainedTokenizer

#: of codes that are set after training, and of books that are no one quantizer's
WITHOUT = {"tokenbridge", "cubid", "uniaudio2-reasoning"}
FROZEN = {"vocos-encodec"}  # whose encoder is never trained


@pytest.mark.parametrize("name", list_kinds())
def test_every_system_of_codes_gives_its_quantized_vectors_with_a_gradient(name):
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
