"""ETT: what a language model says of the codes trains the tokenizer that made them."""

import pytest
import torch

from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.losses.bag import LossBag
from unimodal.tokenizers.losses.caption import HubCaptionModel
from unimodal.tokenizers.losses.settings import LossSettings

CAPTIONS = ("dark", "light")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A language model of a few words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    place = tmp_path_factory.mktemp("words")
    words = Tokenizer(WordLevel({"<end>": 0, "?": 1, "dark": 2, "light": 3, "very": 4}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", unk_token="?").save_pretrained(place)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=5,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=0,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(place)
    return place


def make_parts(folder):
    """A small tokenizer, the caption's loss alone, and a dark and a light picture."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(read_system("ett").choose_settings(small=True)).train()
    settings = LossSettings(l2=0, quantizer=0, caption=1, caption_model=str(folder))
    x = torch.rand(2, 3, 32, 32) * 0.2 + torch.tensor([0.1, 0.7]).reshape(2, 1, 1, 1)
    return tokenizer, LossBag(settings, "image", {"codes": 8}), x


def test_the_caption_loss_changes_the_encoder_and_the_codes_say_more(folder):
    tokenizer, bag, x = make_parts(folder)
    before = {name: tensor.detach().clone() for name, tensor in tokenizer.named_parameters()}
    optimizer = torch.optim.Adam(tokenizer.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        total, numbers = bag(tokenizer.reconstruct(x), x, 0, captions=CAPTIONS)
        total.backward()
        optimizer.step()
        losses.append(numbers["caption"])
    assert min(losses[-3:]) < losses[0] - 0.2
    changed = {
        name.split(".")[0] for name, tensor in tokenizer.named_parameters() if not torch.equal(tensor, before[name])
    }
    assert changed == {"encoder", "quant_conv", "quantizer"}


def test_by_indices_nothing_would_reach_the_encoder(folder):
    tokenizer, bag, x = make_parts(folder)
    words = bag.caption(tokenizer.quantizer.look_up(tokenizer.reconstruct(x).ids), CAPTIONS)
    assert torch.autograd.grad(words, tokenizer.encoder.conv_in.weight, allow_unused=True) == (None,)


def test_the_loss_of_captions_of_different_length_is_the_language_models_own(folder):
    model = HubCaptionModel(folder)
    media, captions = torch.randn(2, 3, 16), ("dark", "very very light")
    alone = [float(model(media[row : row + 1], captions[row : row + 1])) for row in range(2)]
    counts = [2, 4]  # words and the end
    wanted = sum(loss * count for loss, count in zip(alone, counts, strict=True)) / sum(counts)
    assert float(model(media, captions)) == pytest.approx(wanted, rel=1e-5)
    tokens = torch.tensor([[2, 0]])
    embedded = torch.cat([media[:1], model.embedding(tokens)], 1)
    labels = torch.cat([torch.full((1, 3), -100), tokens], 1)
    assert alone[0] == pytest.approx(float(model.network(inputs_embeds=embedded, labels=labels).loss), rel=1e-5)


def test_what_is_missing_is_named(folder, tmp_path):
    settings = LossSettings(caption=1.0, caption_model=str(folder))
    with pytest.raises(ValueError, match="no vectors of codes while it is trained .* leave losses.caption out"):
        LossBag(settings, "image", {"tokens": 8})
    with pytest.raises(ValueError, match="holds no language model"):
        HubCaptionModel(tmp_path)
    with pytest.raises(ValueError, match="an empty caption"):
        HubCaptionModel(folder)(torch.randn(1, 2, 16), ("",))
