"""What of a tokenizer is trained: every published system by its losses; its decoder alone, with the same codes."""

import pytest
import torch

from tests.tokenizers.test_published_systems import make_media
from tests.tokenizers.tiny_system import TinyConfig, TinySystem
from unimodal.tokenizers.configs.registry import build_tokenizer, list_systems, read_system
from unimodal.tokenizers.interface import LatentTokenizer, MediaTokenizer
from unimodal.tokenizers.losses.bag import LossBag
from unimodal.tokenizers.losses.settings import LossSettings
from unimodal.tokenizers.losses.trained_tokenizer import (
    StageParts,
    TrainedTokenizer,
    choose_trained,
    find_encoder_names,
)
from unimodal.tokenizers.systems.base import SystemModule


def encode(tokenizer, x, condition):
    coded = tokenizer.encode(x, condition=condition)
    return coded.values if isinstance(tokenizer, LatentTokenizer) else coded.ids


def test_every_published_system_trains_by_the_losses_and_its_decoder_alone_keeps_its_codes(campaign):
    names = [
        name for name in list_systems() if not read_system(name).small_like and name != "seed-2"
    ]  # it draws no pixels
    for rng in campaign(slice=3, whole=len(names)):
        name = names.pop(rng.randrange(len(names)))
        check_system(name)


def check_system(name: str) -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(read_system(name).choose_settings(small=True))
    if not isinstance(tokenizer, SystemModule) or not isinstance(tokenizer, MediaTokenizer | LatentTokenizer):
        return
    x, captions = make_media(tokenizer), ("a cat", "two dogs")
    judge = {"width": 4, "num_layers": 1, "judge": "waves" if tokenizer.modality == "audio" else "patch"}
    judged = {} if tokenizer.modality == "mask" else {"adversarial": judge}  # judges see colours, or sounds
    bag = LossBag(LossSettings.model_validate({"l1": 1, **judged}), tokenizer.modality)
    whole = TrainedTokenizer(tokenizer, bag).train()
    loss, numbers = whole(x, None, 0, captions)
    loss.backward()
    assert torch.isfinite(loss) and numbers["l1"] > 0, name
    condition = whole.conditions.choose(whole.conditions.make(x, captions), tokenizer.encode_conditions)
    before = encode(tokenizer.eval(), x, condition)
    try:
        trained = choose_trained(tokenizer, "decoder", find_encoder_names(tokenizer, x, condition))
    except ValueError as error:
        assert "leaves nothing to train" in str(error)  # a decoder that is frozen, or none
        return
    alone = TrainedTokenizer(tokenizer, bag, [StageParts(0, trained)]).train()
    optimizer = torch.optim.SGD([p for p in alone.parameters() if p.requires_grad], lr=0.1)
    tokenizer.zero_grad()
    alone(x, None, 0, captions)[0].backward()
    changed = [name for name, p in tokenizer.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    optimizer.step()
    assert changed and set(changed) <= trained, name
    assert torch.equal(encode(tokenizer.eval(), x, condition), before), name


def test_parts_are_chosen_by_name_and_what_is_left_out_goes_to_eval():
    tokenizer = TinySystem(TinyConfig())
    encoder = find_encoder_names(tokenizer, torch.rand(1, 3, 16, 16))
    assert {name.partition(".")[0] for name in encoder} == {"encoder", "quantizer"}
    names = choose_trained(tokenizer, ["out", "quantizer"], encoder)
    assert names == {"out.weight", "out.bias", "quantizer.codebook"}
    bag = LossBag(LossSettings(), "image")
    stages = [StageParts(0, names), StageParts(5)]
    module = TrainedTokenizer(tokenizer, bag, stages).train()
    module(torch.rand(1, 3, 16, 16), None, 0)[0].backward()
    assert not tokenizer.encoder.training and tokenizer.out.training
    assert {n for n, p in tokenizer.named_parameters() if p.grad is not None} == names
    module(torch.rand(1, 3, 16, 16), None, 5)[0].backward()
    assert all(p.grad is not None for p in tokenizer.parameters())
    with pytest.raises(ValueError, match="the parts encoder, quantizer, decoder, out"):
        choose_trained(tokenizer, "head", encoder)
