"""An adapter on a base of another family than Llama, exported: the same logits in its stock class, the same answers."""

import pytest
import torch

from tests.campaigns import is_study
from tests.tiny_bases import BASES, make_base
from tests.tiny_model import SENTENCES
from unimodal.config import Config
from unimodal.export.stock import export_model
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import GREEDY
from unimodal.model.adapter import load_adapter
from unimodal.model.base import load_base
from unimodal.model.build import build_model
from unimodal.model.lora import LoraSettings
from unimodal.pipeline import load
from unimodal.sequence.document import Document
from unimodal.text.tokenizer import train_text_tokenizer
from unimodal.tuning.save import save_tuned
from unimodal.tuning.vocabulary import make_joint_template, open_media

pytestmark = pytest.mark.sweep("exports")


#: `make study` exports all of them
CHOSEN = tuple(BASES) if is_study() else ("gemma2", "gpt2", "granite")


@pytest.mark.study
@pytest.mark.parametrize("kind", CHOSEN)
def test_an_export_has_the_logits_and_answers_of_its_base_with_the_adapter(kind, media_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    text = train_text_tokenizer(SENTENCES, 420, tmp_path / "base")
    make_base(kind, None, vocab_size=text.size + 4, max_position_embeddings=512).save_pretrained(tmp_path / "base")
    base, media = load_base(tmp_path / "base"), open_media(media_folder)
    template = make_joint_template(base, media)
    model = build_model(base, template.vocabulary, LoraSettings(rank=2), initialiser="mean")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    save_tuned(tmp_path / "adapter", model, str(tmp_path / "base"), template, media, Config())
    export_model(tmp_path / "adapter", tmp_path / "out")
    before, vocabulary = load_adapter(tmp_path / "adapter")
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(after) is type(base.model)
    ids = torch.randint(vocabulary.size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = before(ids).logits
        torch.testing.assert_close(after(ids).logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    one, two = load(tmp_path / "adapter", device="cpu"), load(tmp_path / "out", device="cpu")
    prompt = one.template.render(Document((one.user_turn("a red apple"),)), add_generation_prompt=True).ids.tolist()
    greedy = dict.fromkeys(("text", "image"), GREEDY)
    for config in (
        GenerationConfig(max_new_tokens=72, force="image", max_text_tokens=2, sampling=greedy),
        GenerationConfig(max_new_tokens=8, allow=("text",), min_text_tokens=7, sampling=greedy),
    ):
        [answer] = one.engine.generate([prompt], config)
        assert two.engine.generate([prompt], config) == [answer]
    stock = after.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=7)[0, len(prompt) :].tolist()
    end = vocabulary.get_control_id("<|end_of_turn|>")
    assert end in stock or stock == answer[:7], "a stock engine says what ours says"
