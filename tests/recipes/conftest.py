"""A base model, a media model folder and a picture dataset, all tiny and made by the tests, for the tuning recipes."""

import json

import pytest
import torch

from tests.tiny_model import MAX_AUDIO_CODES, MAX_AUDIO_S, NANO_WORDING, SENTENCES, tiny_tokenizers


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """A random Llama with a trained text tokenizer and a table padded beyond it, as a Hugging Face folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from unimodal.text.tokenizer import train_text_tokenizer

    folder = tmp_path_factory.mktemp("tiny_base")
    text = train_text_tokenizer(SENTENCES, 420, folder)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=text.size + 4, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, pad_token_id=None,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def media_folder(tmp_path_factory):
    """A model folder whose tokenizers are tiny; the spans follow from what the tokenizers say of themselves."""
    from unimodal.model.build import NanoConfig, build_nano
    from unimodal.model_folder.settings import MediumLimits, ProcessorConfig
    from unimodal.model_folder.write import save_model
    from unimodal.text.tokenizer import train_text_tokenizer
    from unimodal.vocabulary import make_media_vocabulary

    folder = tmp_path_factory.mktemp("media")
    torch.manual_seed(0)
    text = train_text_tokenizer(SENTENCES, 420, folder / "text")
    tokenizers = tiny_tokenizers()
    vocabulary = make_media_vocabulary(tokenizers.values(), text.size, text.reserved_ids, text.sha256)
    sizes = NanoConfig(hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=2, intermediate_size=48)
    control = vocabulary.get_control_id
    decoder = build_nano(
        vocabulary.size, sizes, pad_id=control("<|pad|>"), bos_id=control("<|bos|>"), eos_id=control("<|end_of_turn|>")
    )
    processor = ProcessorConfig(
        limits={"audio": MediumLimits(seconds=MAX_AUDIO_S, codes=MAX_AUDIO_CODES)}, wording=NANO_WORDING
    )
    save_model(folder / "model", decoder, vocabulary, text, tokenizers, processor)
    return folder / "model"


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Twelve pictures of one colour, asked about and asked for, in the layout of TRL."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for number in range(12):
        Image.new("RGB", (64, 64), (20 * number, 255 - 20 * number, 120)).save(folder / f"{number}.png")
        word = ("red apple", "blue car", "green tree")[number % 3]
        picture = {"type": "image", "path": f"{number}.png"}
        turns = (
            [{"role": "user", "content": [picture, {"type": "text", "text": "what is this?"}]},
             {"role": "assistant", "content": f"a {word}"}],
            [{"role": "user", "content": f"draw a {word}."}, {"role": "assistant", "content": [picture]}],
        )  # fmt: skip
        lines += [json.dumps({"messages": turn}) for turn in turns]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "data.jsonl"
