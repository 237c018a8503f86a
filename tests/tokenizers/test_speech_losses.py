"""Spelling and distillation: codes from which texts of any script are read, and the authors' formulas."""

import pytest
import torch
from torch.nn.functional import cosine_similarity, l1_loss

from tests.campaigns import is_study
from tests.tokenizers.test_speech_encoders import save_whisper
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.losses.bag import LossBag
from unimodal.tokenizers.losses.distillation import (
    DistillationLoss,
    TextTeacher,
    distill_by_dimension,
    distill_by_time,
    match_steps,
)
from unimodal.tokenizers.losses.heard import HeardLoss
from unimodal.tokenizers.losses.settings import LossSettings
from unimodal.tokenizers.losses.spelling import Alphabet, SpellingLoss, collect_characters, count_edits
from unimodal.tokenizers.losses.trained_tokenizer import TrainedTokenizer
from unimodal.tokenizers.pretrained.speech_encoders import load_speech_encoder


def make_words(signs):
    """Six texts of three letters, and their sounds: each letter a tone of 160 ms."""
    generator = torch.Generator().manual_seed(0)
    moments = torch.arange(2560) / 16000
    sounds, texts = [], []
    for _ in range(6):
        chosen = torch.randperm(len(signs), generator=generator)[:3].tolist()
        texts.append("".join(signs[number] for number in chosen))
        sounds.append(torch.cat([0.5 * torch.sin(2 * torch.pi * 300 * (1 + n) * moments) for n in chosen]))
    return torch.stack(sounds)[:, None], tuple(texts)


def train_spelling(system, texts_of, settings, steps):
    """Losses of spelling and character errors, before and behind so many steps."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(read_system(system).choose_settings(small=True))
    sounds, texts = make_words(texts_of)
    made = tokenizer.reconstruct(sounds)
    widths = {name: values.shape[-1] for name, values in made.features.items()}
    bag = LossBag(settings.name_characters(texts), "audio", widths, 16000, decodes=False)
    module = TrainedTokenizer(tokenizer, bag).train()
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], 1e-2)
    before = module.eval()(sounds, None, 0, texts)[1]
    module.train()
    for step in range(steps):
        optimizer.zero_grad()
        module(sounds, None, step, texts)[0].backward()
        optimizer.step()
    return before, module.eval()(sounds, None, 0, texts)[1], module


@pytest.mark.sweep
@pytest.mark.study
@pytest.mark.parametrize(
    ("signs", "characters"), [("жи你한", None), ("abcd", "data"), ("жизн", "data"), ("你好嗎天", None)]
)
def test_texts_of_any_script_are_spelled_from_the_codes(signs, characters):
    """Each is trained for longer in `make study`, but for the first."""
    spelling = {"characters": characters, "hidden": 64, "num_layers": 1}
    settings = LossSettings.model_validate({"spelling": spelling})
    whole = is_study() or signs == "жи你한"
    before, after, module = train_spelling("whisper-bottleneck", signs, settings, 90 if whole else 10)
    assert after["spelling"] < (0.6 if whole else 1.0) * before["spelling"]
    assert not whole or after["character_errors"] < 0.75 < before["character_errors"]
    assert module.bag.spelling.alphabet.size == (257 if characters is None else 6)


@pytest.mark.parametrize("system", ["s3-v1", "s3-v2"])
def test_a_tokenizer_that_only_encodes_is_trained_by_spelling(system):
    settings = LossSettings.model_validate({"spelling": {"characters": "data", "hidden": 32, "per_code": 6}})
    before, after, module = train_spelling(system, "abc", settings, 6)
    assert after["spelling"] < before["spelling"]
    assert any(parameter.grad is not None for parameter in module.tokenizer.encoder.parameters())
    with pytest.raises(ValueError, match="losses l1 compare what is decoded, and this tokenizer only encodes"):
        LossBag(LossSettings(l1=1.0), "audio", {}, 16000, decodes=False)


def test_padding_is_not_spelled_and_errors_are_counted():
    torch.manual_seed(0)
    loss, texts = SpellingLoss(4, "abc"), ("abc", "cab")
    values, mask = torch.randn(2, 9, 4), torch.ones(2, 9, dtype=torch.bool)
    mask[1, 5:] = False
    alone = loss(values[1:, :5], mask[1:, :5], texts[1:])
    other = values.clone()
    other[1, 5:] = 100.0
    both = loss(other, mask, texts)
    torch.testing.assert_close(both, (loss(values[:1], mask[:1], texts[:1]) + alone) / 2)
    assert (count_edits("kitten", "sitting"), count_edits("", "abc"), count_edits("abc", "abc")) == (3, 3, 0)
    assert loss.measure_errors(values, mask, texts) > 0
    for wrong, said in [(("a" * 40,) * 2, "does not fit the 18 steps"), (("", "a"), "empty"), (("a",), "1 texts")]:
        with pytest.raises(ValueError, match=said):
            loss(values, mask, wrong)


def test_items_without_a_text_count_nothing_where_they_may():
    torch.manual_seed(0)
    loss = SpellingLoss(4, "abc", skip_empty=True)
    values, mask = torch.randn(3, 9, 4, requires_grad=True), torch.ones(3, 9, dtype=torch.bool)
    some = loss(values, mask, ("", "cab", ""))
    torch.testing.assert_close(some, loss(values[1:2], mask[1:2], ("cab",)))
    assert loss.measure_errors(values, mask, ("", "cab", "")) == loss.measure_errors(values[1:2], mask[1:2], ("cab",))
    none = loss(values, mask, ("", "", ""))
    none.backward()
    assert none == 0 and all((parameter.grad == 0).all() for parameter in (*loss.parameters(), values))
    assert loss(values, mask, ("", "a" * 40, "")) == 0  # a batch may have one text, and that be of another length
    torch.testing.assert_close(loss(values, mask, ("a" * 40, "cab", "")), some)


def test_only_what_needs_a_text_refuses_items_without_one():
    def read(**losses):
        settings = LossSettings.model_validate(losses)
        return settings.reads_texts, settings.needs_texts

    skip = {"without_text": "skip"}
    assert [read(), read(spelling=1), read(spelling=skip), read(spelling=skip, caption=1)] == [
        (False, False), (True, True), (True, False), (True, True),
    ]  # fmt: skip


def test_an_alphabet_gives_texts_back_in_their_simple_form():
    text = "  Ünï \n Жизнь 你好 "
    for alphabet in (Alphabet(), Alphabet(collect_characters([text]))):
        assert alphabet.decode(alphabet.encode(text)) == "ünï жизнь 你好"
        assert min(alphabet.encode(text)) > 0 and max(alphabet.encode(text)) < alphabet.size
    assert Alphabet("ab").decode(Alphabet("ab").encode("abz")) == "ab\ufffd"


def test_distillation_is_the_authors_formula_on_whole_items():
    generator = torch.Generator().manual_seed(0)
    ours, teacher = (torch.randn(2, 7, 5, generator=generator) for _ in range(2))
    whole = torch.ones(2, 7, dtype=torch.bool)
    theirs = -torch.log(torch.sigmoid(cosine_similarity(ours, teacher, dim=1))).mean()
    torch.testing.assert_close(distill_by_dimension(ours, teacher, whole), theirs)
    similar = -torch.log(torch.sigmoid(cosine_similarity(ours, teacher, dim=-1))).mean()
    torch.testing.assert_close(distill_by_time(ours, teacher, whole, 0.5), l1_loss(ours, teacher) + 0.5 * similar)
    cut = whole.clone()
    cut[:, 4:] = False
    torch.testing.assert_close(distill_by_dimension(ours, teacher, cut), distill_by_dimension(
        ours[:, :4], teacher[:, :4], whole[:, :4]
    ))  # fmt: skip
    rows, kept = match_steps([teacher[0], teacher[1, :2]], [6, 7], 7)
    assert torch.equal(rows[0, :6], teacher[0, :6]) and kept.sum(1).tolist() == [6, 7]


def save_text_model(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "one", "two", "three"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=5,
            hidden_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=12,
            max_position_embeddings=32,
        )  # fmt: skip
    ).save_pretrained(folder)


def test_a_codec_is_taught_by_a_speech_encoder_and_by_a_language_model(tmp_path):
    save_whisper(tmp_path / "whisper")
    save_text_model(tmp_path / "bert")
    text = TextTeacher(tmp_path / "bert")
    spread, padded = (TextTeacher(tmp_path / "bert", spread=s).read(["one two"], [6], torch.device("cpu"))[0]
                      for s in (True, False))  # fmt: skip
    assert torch.equal(spread[0], spread[2]) and not torch.equal(spread[2], spread[3]) and padded.shape == (6, 12)
    torch.manual_seed(0)
    loss = DistillationLoss(8, load_speech_encoder(str(tmp_path / "whisper")), text, sample_rate_hz=8000)
    values = torch.randn(2, 9, 8, requires_grad=True)
    mask, sounds = torch.ones(2, 9, dtype=torch.bool), torch.randn(2, 1, 1600)
    loss(values, mask, sounds, torch.tensor([1600, 1200]), ("one", "two three")).backward()
    assert values.grad.abs().sum() > 0 and sorted(loss.projections) == ["speech", "text"]
    with pytest.raises(ValueError, match="give every item its text"):
        loss(values, mask, sounds, None, None)
    with pytest.raises(ValueError, match="needs a teacher"):
        DistillationLoss(8, None, None)
    taught = {"feature": "semantic", "network": str(tmp_path / "whisper"), "weight": 120}
    settings = LossSettings.model_validate({"distillation": taught})
    with pytest.raises(ValueError, match="compares the features 'semantic', and this tokenizer gives codes"):
        LossBag(settings, "audio", {"codes": 8}, 16000)
    tokenizer = build_tokenizer(read_system("speechtokenizer").choose_settings(small=True))
    x = 0.3 * torch.randn(2, 1, 4000, generator=torch.Generator().manual_seed(0))
    made = tokenizer.reconstruct(x)
    widths = {name: feature.shape[-1] for name, feature in made.features.items()}
    bag = LossBag(settings, "audio", widths, tokenizer.sample_rate_hz)
    total, numbers = bag(made, x, 0)
    total.backward()
    assert numbers["distillation"] > 0 and settings.read_weights()["distillation"] == 120


def test_without_a_text_there_are_no_character_errors():
    settings = LossSettings.model_validate({"spelling": {"without_text": "skip"}})
    tokenizer = build_tokenizer(read_system("whisper-bottleneck").choose_settings(small=True))
    made = tokenizer.reconstruct(torch.zeros(2, 1, 3200))
    bag = LossBag(settings, "audio", {"codes": made.features["codes"].shape[-1]}, 16000, decodes=False)
    assert bag.measure_spelling(made, ("", "")) == {} == bag.measure_spelling(made, None)
    assert bag.measure_spelling(made, ("", "ab"))["character_errors"] > 0


@pytest.mark.parametrize("rate_hz", [16000, 24000])
def test_what_an_encoder_hears_of_two_sounds_is_compared(tmp_path, rate_hz):
    save_whisper(tmp_path, positions=60)
    encoder = load_speech_encoder(str(tmp_path))
    loss = HeardLoss(encoder, rate_hz, lead_s=0.1)
    generator = torch.Generator().manual_seed(0)
    real, made = (0.3 * torch.randn(3, rate_hz // 2, generator=generator) for _ in range(2))
    made.requires_grad_()
    assert loss(real, real) == 0
    value = loss(made, real)
    if rate_hz == encoder.sample_rate_hz:  # the formula, plainly
        front = torch.zeros(3, 1600)
        here, there = (encoder.list_hidden(torch.cat([front, x], 1))[1:] for x in (made, real))
        plain = [
            ((a - b).abs() / b.flatten(0, 1).std(0, correction=0)).mean() for a, b in zip(here, there, strict=True)
        ]
        torch.testing.assert_close(value, sum(plain) / 2)
    (slope,) = torch.autograd.grad(value, made)
    with torch.no_grad():
        assert loss(made - 1e-3 * slope / slope.norm(), real) < value
        # a padded item counts as it does alone, and what lies behind its end counts nothing
        lengths = torch.tensor([rate_hz // 2, rate_hz // 4, rate_hz // 2])
        noise = made.detach().clone()
        noise[1, rate_hz // 4 :] = 9
        assert loss(noise, real, lengths) == loss(made, real, lengths) != value
        torch.testing.assert_close(
            loss(made[1:2], real[1:2], lengths[1:2]), loss(made[1:2, : rate_hz // 4], real[1:2, : rate_hz // 4])
        )


def test_sounds_are_trained_by_what_an_encoder_hears(tmp_path):
    save_whisper(tmp_path, positions=60)
    settings = LossSettings.model_validate({"l2": 0, "perceptual": {"network": str(tmp_path), "weight": 0.5}})
    bag = LossBag(settings, "audio", {}, 24000)
    tokenizer = build_tokenizer(read_system("encodec-24").choose_settings(small=True))
    x = 0.3 * torch.randn(2, 1, 6000, generator=torch.Generator().manual_seed(0))
    made = tokenizer.reconstruct(x)
    total, numbers = bag(made, x, 0, torch.tensor([6000, 4800]))
    total.backward()
    torch.testing.assert_close(float(total.detach()), 0.5 * numbers["perceptual"] + numbers["quantizer"])
    assert any(weight.grad is not None and weight.grad.any() for weight in tokenizer.parameters())
    assert not any(weight.requires_grad for weight in bag.parameters())
