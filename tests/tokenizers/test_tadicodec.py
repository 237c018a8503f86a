"""TaDiCodec: the authors' reference file; what text, prompt and neighbours change."""

import pytest
import torch

from unimodal.coder.beside import Beside, make_condition
from unimodal.media.audio import save_audio
from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.interface import Condition
from unimodal.tokenizers.systems.tadicodec import TaDiCodecTokenizer


def write_words(path, count):
    """A text tokenizer whose words w0, w1, … are the tokens 0, 1, …"""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(count)}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(path))


@pytest.fixture
def released(open_reference, tmp_path):
    reference = open_reference("audio/tadicodec")
    tokenizer = TaDiCodecTokenizer.from_authors(
        reference.weights, TaDiCodecTokenizer.read_authors_config(reference.config)
    )
    write_words(tmp_path / "tokenizer.json", 40)
    return reference, tokenizer.use_text_tokenizer(tmp_path)


def spell(text_ids):
    return tuple(" ".join(f"w{index}" for index in row) for row in text_ids.tolist())


def test_it_gives_the_authors_codes(released):
    reference, tokenizer = released
    x = reference["input"][:, None]
    reference.check_equal("codes", tokenizer.encode(x).ids[..., 0])
    short = x[..., : int(reference["ragged_length"])]
    reference.check_equal("codes_ragged", tokenizer.encode(short, published=True).ids[..., 0])
    assert tokenizer.encode(short).counts == [10, 10]
    with torch.inference_mode():
        mel = tokenizer.measure_mel(x)
        reference.check_close("mel", mel)
        reference.check_close("mel_ragged_item1", tokenizer.measure_mel(short)[1:])
        latents = tokenizer.encode_mel(mel)
        reference.check_close("latents", latents)
        reference.check_close("quantized", tokenizer.quantizer(latents).values, atol=1e-6)
        mask = torch.arange(80) < torch.tensor([[80], [64]])
        reference.check_equal("codes_item1_valid64", tokenizer.quantizer(tokenizer.encode_mel(mel, mask)).ids[..., 0])


def test_it_decodes_as_the_authors_do(released):
    reference, tokenizer = released
    codes = Codes.whole(reference["codes"].long())
    mel, noise, text = reference["mel"], reference["noise"], reference["text_ids"].long()
    with torch.inference_mode():
        made = tokenizer.sample_mel(codes.ids, noise, text, mel[:, :24], 4, 2.0, whole_batch=True)
        reference.check_close("mel_decoded_cfg2_prompt24", made, atol=1e-4)
        reference.check_close("decoded", tokenizer.vocoder(made.transpose(1, 2)), atol=5e-4)
        reference.check_close("mel_decoded_cfg0", tokenizer.sample_mel(codes.ids, noise, text, None, 4, 1.0), atol=1e-4)
        ragged = reference["codes_ragged"].long()[..., None]
        made = tokenizer.sample_mel(ragged, noise[:, :72], text, None, 4, 2.0, whole_batch=True)
        reference.check_close("mel_decoded_ragged_cfg2", made, atol=1e-4)
        heard = tokenizer.vocoder(mel[:1].transpose(1, 2))
        reference.check_close("vocoder_of_input_mel_item0", heard, atol=5e-4)
        settings = {"steps": 4, "guidance": 2.0, "noise": noise, "published": True}
        prompt = reference["input"][:, None, : 24 * 60]
        decoded = tokenizer.decode(codes, Condition(text=spell(text)), **settings)
        assert decoded.shape == (2, 1, 4800)
        decoded = tokenizer.decode(codes, Condition(text=spell(text), medium=prompt), **settings)
        assert decoded.shape == (2, 1, 3360)  # what follows the prompt
    plain = TaDiCodecTokenizer.from_authors(
        reference.weights, tokenizer.config.model_copy(update={"guidance_rescale": 0.0})
    )
    with torch.inference_mode():
        made = plain.sample_mel(codes.ids, noise, text, None, 4, 2.0)
    reference.check_close("mel_decoded_cfg2_norescale", made, atol=1e-4)


def test_its_weights_are_written_back(released):
    reference, tokenizer = released
    written = tokenizer.collect_authors_state()
    computed = {"mel_model.mel_basis": tokenizer.mel.bands, "mel_model.hann_window": tokenizer.mel.window}
    assert written.keys() | computed.keys() == reference.weights.keys()
    assert all(torch.equal(reference.weights[name], value) for name, value in written.items())
    for name, value in computed.items():  # no part of the release
        torch.testing.assert_close(value, reference.weights[name])
    bare = {name.removeprefix("tadicodec."): tensor for name, tensor in written.items()}
    assert TaDiCodecTokenizer.from_authors(bare, tokenizer.config).sha256 == tokenizer.sha256


def make_small():
    torch.manual_seed(0)
    tokenizer = build_tokenizer(read_system("tadicodec").choose_settings(small=True)).eval()
    for name, parameter in tokenizer.named_parameters():
        if "to_weight" in name:  # begins closed to the time
            torch.nn.init.normal_(parameter, 0.5, 0.5)
    return tokenizer


def test_an_item_sounds_the_same_alone_and_beside_others_and_text_and_prompt_change_it():
    tokenizer = make_small()
    size = tokenizer.samples_per_code
    x = torch.rand(2, 1, 4 * size) - 0.5
    codes = tokenizer.encode(x, torch.tensor([4 * size, 2 * size]))
    told = Condition(text=("good day", "ünïcode"))
    decoded = tokenizer.decode(codes, told, steps=2)
    assert decoded.shape == x.shape and not decoded[1, :, 2 * size :].any()
    alone = tokenizer.decode(Codes.whole(codes.row(1)[None]), Condition(text=("ünïcode",)), steps=2)
    assert torch.allclose(decoded[1:, :, : 2 * size], alone, atol=1e-5)
    assert not torch.allclose(tokenizer.decode(codes, steps=2), decoded, atol=1e-4)
    prompt = x[..., :size]
    prompted = tokenizer.decode(codes, Condition(text=told.text, medium=prompt), steps=2)
    assert prompted.shape == x.shape and not torch.allclose(prompted, decoded, atol=1e-4)
    with pytest.raises(ValueError, match="longer than the codes"):
        tokenizer.decode(codes, Condition(medium=x), steps=2)
    with pytest.raises(ValueError, match="of one length"):
        tokenizer.decode(codes, told, steps=2, published=True)


def test_a_text_tokenizer_is_kept_with_the_weights_and_missed_where_it_is_not_there(tmp_path):
    settings = {**read_system("tadicodec").choose_settings(small=True), "text": "tokenizer"}
    tokenizer = build_tokenizer(settings).eval()
    codes = tokenizer.encode(torch.rand(1, 1, 500))
    with pytest.raises(ValueError, match="use_text_tokenizer"):
        tokenizer.decode(codes, Condition(text=("w1 w2",)), steps=1)
    with pytest.raises(ValueError, match="is no tokenizer.json"):
        tokenizer.use_text_tokenizer(tmp_path)
    write_words(tmp_path / "tokenizer.json", 300)
    tokenizer.use_text_tokenizer(tmp_path).round_to_half().save(tmp_path / "saved")
    again = TaDiCodecTokenizer.load(tmp_path / "saved")
    told = Condition(text=("w1 w2",))
    assert torch.equal(again.decode(codes, told, steps=1), tokenizer.decode(codes, told, steps=1))
    with pytest.raises(ValueError, match="gives 299"):
        again.decode(codes, Condition(text=("w299",)), steps=1)


@pytest.mark.sweep("tokenizers at work")
def test_training_lowers_the_loss_of_flow_and_vocoder():
    tokenizer = make_small().train()
    x = torch.sin(torch.arange(2 * 1024) / torch.tensor([[[9.0]], [[23.0]]]))
    optimizer = torch.optim.AdamW(tokenizer.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss, numbers = tokenizer.training_loss(x, torch.tensor([2048, 1500]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(numbers["flow"] + numbers["vocoder"])
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_text_and_the_sound_before_are_given_beside_the_codes_or_left_out(tmp_path):
    tokenizer, kinds = make_small(), TaDiCodecTokenizer.decode_conditions
    assert make_condition(tokenizer, Beside(), kinds, "decoder") is None
    save_audio(torch.rand(600) - 0.5, tmp_path / "before.wav", 24000)
    told = make_condition(tokenizer, Beside("good day", tmp_path / "before.wav"), kinds, "decoder")
    assert told.text == ("good day",) and told.medium.shape == (1, 1, 600)
    codes = tokenizer.encode(torch.rand(1, 1, 2000))
    assert tokenizer.decode(codes, told, steps=1).shape == (1, 1, 2048)
    with pytest.raises(ValueError, match="reads nothing beside"):
        make_condition(tokenizer, Beside("good day"), tokenizer.encode_conditions, "encoder")
