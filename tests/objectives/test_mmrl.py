"""MMRL: next tokens, and the states of answers near those of the base, against the sum written out per document."""

import pytest
import torch
from torch.nn import functional as F

from tests.objectives.prompted import make_vocabulary
from tests.objectives.test_prompt_objectives import DOCUMENTS, batch_of
from tests.tiny_bases import make_base, save_base
from unimodal.model.build import build_model
from unimodal.model.lora import LoraSettings
from unimodal.model.prompt_settings import PrefixSettings, PromptSettings, SpaceSettings
from unimodal.model.soft_prompt import find_soft_prompt, list_prompt_ids
from unimodal.objectives.mmrl import MmrlConfig, MmrlLoss
from unimodal.objectives.next_token import LossConfig

SPACE = PromptSettings(length=4, space=SpaceSettings(width=6))


@pytest.fixture(scope="module")
def vocabulary():
    return make_vocabulary()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"), make_base("llama", True))


def make(base, vocabulary, settings=SPACE, lora=None, weight=0.7):
    model = build_model(base, vocabulary, lora, prompt=settings)
    return MmrlLoss(model, vocabulary, LossConfig(softmax="joint"), MmrlConfig(weight=weight))


@pytest.mark.parametrize("settings", [SPACE, PromptSettings(length=3, prefix=PrefixSettings()), PromptSettings()])
@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
def test_the_sum_is_that_of_its_documents(base, vocabulary, settings, lora):
    module = make(base, vocabulary, settings, lora).eval()
    model, prompt = module.model, list_prompt_ids(module.model)
    bare = build_model(base, vocabulary, None, freeze_base=True).eval()  # the same new rows, by the same seed
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():  # as after some steps: what is compared with stays what it was
        for name, p in model.named_parameters():
            if p.requires_grad and ("prompt" in name or "lora_B" in name):
                p += 0.3 * torch.randn(p.shape, generator=noise)
    total, parts = module(*batch_of(model, DOCUMENTS))
    entropy, apart, num = 0.0, 0.0, 0
    for ids, num_asked in DOCUMENTS:
        read = torch.tensor([[*prompt, *ids]])
        logits = model(read).logits[0, len(prompt) :][num_asked - 1 : -1]
        entropy += F.cross_entropy(logits, torch.tensor(ids[num_asked:]), reduction="sum")
        with torch.no_grad():
            known = bare.get_decoder()(input_ids=torch.tensor([ids])).last_hidden_state[0]
        states = model.get_decoder()(input_ids=read).last_hidden_state[0, len(prompt) :]
        apart += (1 - F.cosine_similarity(states, known, dim=1))[num_asked - 1 : -1].sum()
        num += len(logits)
    assert parts["weight"] == num and parts["metrics"]["apart"] == (pytest.approx(float(apart.detach())), num)
    assert float(total.detach()) == pytest.approx(float((entropy + 0.7 * apart).detach()), rel=1e-5)
    assert float(sum(parts["terms"].values()).detach()) == pytest.approx(float(total.detach()))
    trained = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(total, trained, allow_unused=True)
    plain = torch.autograd.grad(entropy + 0.7 * apart, trained, allow_unused=True)
    for mine, expected in zip(ours, plain, strict=True):
        expected = torch.zeros_like(mine) if expected is None else expected
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_the_slope_and_packing_changes_nothing(base, vocabulary):
    module = make(base, vocabulary).double().eval()
    module.start.double()
    batches = [batch_of(module.model, DOCUMENTS), *(batch_of(module.model, [one]) for one in DOCUMENTS)]
    whole, *alone = (module(*batch) for batch in batches)
    assert float(whole[0].detach()) == pytest.approx(sum(float(total.detach()) for total, _ in alone), rel=1e-6)
    assert whole[1]["weight"] == sum(parts["weight"] for _, parts in alone)
    prompt, noise = find_soft_prompt(module.model), torch.Generator().manual_seed(3)
    parameters = [p for p in prompt.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(module(*batches[0])[0], parameters)
    way = [torch.randn(p.shape, generator=noise, dtype=torch.float64) for p in parameters]
    slope = sum(float((g * w).sum()) for g, w in zip(gradients, way, strict=True))
    found = []
    for step in (1e-3, -2e-3):
        with torch.no_grad():
            for p, w in zip(parameters, way, strict=True):
                p += step * w
            found.append(float(module(*batches[0])[0]))
    assert (found[0] - found[1]) / 2e-3 == pytest.approx(slope, rel=0.02)


def test_it_needs_a_prompt(base, vocabulary):
    model = build_model(base, vocabulary, LoraSettings(rank=2))
    with pytest.raises(ValueError, match="set prompt, such as prompt.space.width"):
        MmrlLoss(model, vocabulary, None, MmrlConfig())
