"""Objectives of soft prompts: a stopped run goes on to the same weights, and two ranks train to what one does."""

import pytest
import torch

from tests.objectives.prompted import make_vocabulary
from tests.objectives.ranks import assert_ranks_agree, train, train_on_two
from tests.objectives.test_prompt_objectives import batch_of, make_context
from tests.tiny_bases import make_base, save_base
from unimodal.model.build import build_model
from unimodal.model.prompt_settings import ContextSettings, PrefixSettings, PromptSettings, SpaceSettings
from unimodal.model.soft_prompt import find_soft_prompt
from unimodal.objectives.context_prompt import ContextLossConfig, ContextPromptLoss
from unimodal.objectives.mmrl import MmrlConfig, MmrlLoss
from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.packed import PackedLoss
from unimodal.objectives.prompt_transfer import PromptTransfer, PromptTransferConfig

DOCUMENTS = [([40, 3, 9, 41, 6, 5], 4), ([40, 8, 41, 2], 3), ([40, 1, 1, 3, 41, 7, 7], 5), ([40, 5, 41, 4, 9], 3)]
CFG = LossConfig(softmax="joint")


@pytest.fixture(scope="module")
def vocabulary():
    return make_vocabulary()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"), make_base("llama", True))


def make_prompted(base, vocabulary, **settings):
    words = make_context() if "context" in settings else None
    return build_model(base, vocabulary, None, prompt=PromptSettings(**settings), prompt_words=words)


def make_next_token(base, vocabulary, **settings):
    return PackedLoss(make_prompted(base, vocabulary, **settings), vocabulary, CFG)


def make_context_loss(base, vocabulary):
    context = ContextSettings(path="examples.jsonl", examples=2)
    return ContextPromptLoss(make_prompted(base, vocabulary, context=context), vocabulary, CFG, ContextLossConfig())


def make_panda(base, vocabulary):
    model = make_prompted(base, vocabulary, length=3)
    prompts = [find_soft_prompt(build_model(base, vocabulary, None, prompt=PromptSettings(length=2), seed=2))]
    own = PromptTransferConfig(source="source", weight=0.3)
    return PromptTransfer(model, vocabulary, CFG, own, prompts=prompts)


def make_post(base, vocabulary):
    small = build_model(base, vocabulary, None, prompt=PromptSettings(length=2), seed=5).eval()
    own = PromptTransferConfig(kind="post", source="small", alpha=0.3)
    return PromptTransfer(make_prompted(base, vocabulary, length=3), vocabulary, CFG, own, small)


MAKERS = {
    "prompt": lambda *given: make_next_token(*given, length=3),
    "prefix": lambda *given: make_next_token(*given, length=3, prefix=PrefixSettings()),
    "mmrl": lambda base, vocabulary: MmrlLoss(
        make_prompted(base, vocabulary, length=4, space=SpaceSettings(width=6)), vocabulary, CFG, MmrlConfig(weight=0.7)
    ),
    "context_prompt": make_context_loss,
    "panda": make_panda,
    "post": make_post,
}


def call(module, documents):
    return module(*batch_of(getattr(module, "module", module).model, documents))


@pytest.mark.parametrize("name", MAKERS)
def test_a_stopped_run_goes_on_to_the_same_weights(base, vocabulary, tmp_path, name):
    make = MAKERS[name]
    whole = train(make(base, vocabulary), call, DOCUMENTS, tmp_path / "whole")
    assert train(make(base, vocabulary), call, DOCUMENTS, tmp_path / "stopped", stop_at=1) is None
    again = train(make(base, vocabulary), call, DOCUMENTS, tmp_path / "stopped")
    begun = [p.detach() for p in make(base, vocabulary).parameters() if p.requires_grad]
    assert whole and all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(whole, begun, strict=True))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, base, vocabulary):
    """A folder with the weights that two processes have trained with each objective."""

    def train_one(name, folder, parallel):
        return train(MAKERS[name](base, vocabulary), call, DOCUMENTS, folder, steps=2, parallel=parallel)

    folder = tmp_path_factory.mktemp("ranks")
    train_on_two(MAKERS, train_one, folder)
    return folder


@pytest.mark.parametrize("name", MAKERS)
def test_two_ranks_train_to_what_one_does(two_ranks, base, vocabulary, tmp_path, name):
    assert_ranks_agree(two_ranks, name, train(MAKERS[name](base, vocabulary), call, DOCUMENTS, tmp_path, steps=2))
