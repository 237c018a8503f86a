"""LoRA on converted checkpoints: recipes/finetune_lora.py, the tuned folder, its answers and its export."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image as Picture

from tests import tiny_checkpoints
from tests.recipes.test_finetune_lora import recipe
from tools import convert_checkpoint
from unimodal.cli import app as cli
from unimodal.model.adapter import load_adapter
from unimodal.model.base import load_base
from unimodal.model.build import build_model
from unimodal.model.image_head import ImageHead
from unimodal.model.lora import LoraSettings
from unimodal.objectives.next_token import HeadGroups, compute_sliced_cross_entropy
from unimodal.pipeline import load
from unimodal.pipeline.requests import prepare
from unimodal.pipeline.settings import AnswerSettings
from unimodal.sequence.document import Document, Image, Turn
from unimodal.tuning.vocabulary import make_feature_memory, make_joint_template, open_media

CLASSES = {
    "emu3": "Emu3ForConditionalGeneration",
    "chameleon": "ChameleonForConditionalGeneration",
    "janus": "JanusForConditionalGeneration",
}


def prompt_of(model, document, to=None):
    """The ids that the engine is given."""
    return prepare(model, document, AnswerSettings(to=to)).prompt


@pytest.fixture(scope="module", params=list(CLASSES))
def converted(request, tmp_path_factory):
    return converted_of(request.param, tmp_path_factory)


_made = {}


def converted_of(kind, tmp_path_factory):
    """(kind, its converted folder)"""
    if kind not in _made:
        folder = tmp_path_factory.mktemp(kind)
        getattr(tiny_checkpoints, kind)(folder / "source")
        options = ["--grid", "4x4"] if kind == "emu3" else []
        convert_checkpoint.main([kind, str(folder / "source"), str(folder / "converted"), *options])
        _made[kind] = folder / "converted"
    return kind, _made[kind]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures asked about, and one asked for."""
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Picture.fromarray(noise).save(folder / f"{number}.png")
        picture = {"type": "image", "path": f"{number}.png"}
        words = [{"role": "user", "content": [picture, {"type": "text", "text": "What is this?"}]},
                 {"role": "assistant", "content": ["a cat", "a car", "a house", "a tree"][number]}]  # fmt: skip
        drawn = [{"role": "user", "content": "a blue car"}, {"role": "assistant", "content": [picture]}]
        lines += [json.dumps({"messages": words}), json.dumps({"messages": drawn})]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "data.jsonl"


def settings_of(folder, data, tmp_path):
    return [
        f"base={folder}", f"media={folder}", f"out={tmp_path}/out", f"run={tmp_path}/run",
        f"corpus={{datasets: [{{path: {data}}}], codes: {tmp_path}/codes, length: 256, tokens_per_batch: 512, "
        "batches_per_window: 2, validation_share: 0.25}",
        "lora.rank=4", "loop.steps=12", "loop.warmup_steps=1", "loop.log_every=2", "loop.evaluate_every=6",
        "loop.learning_rate=3e-3",
    ]  # fmt: skip


def command(*words):
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in words])
    return stopped.value.code or 0


def logits_of(model, ids):
    with torch.inference_mode():
        hidden = model.get_decoder()(input_ids=torch.tensor([ids])).last_hidden_state
        return model.get_output_embeddings()(hidden)[0]


@pytest.mark.sweep
def test_it_trains_and_is_read_answered_from_and_exported(converted, data, tmp_path, capsys):
    kind, folder = converted
    recipe("finetune_lora", *settings_of(folder, data, tmp_path))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"base.json", "adapter_model.safetensors", "vocabulary.json", "tokenizer.json", "image_tokenizer"} <= names
    assert "new_rows.safetensors" not in names and ("image_reader" in names) == (kind == "janus")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < 0.98 * losses[0] and {"loss_text", "loss_image"} <= {name for r in records for name in r}

    tuned, base = load(tmp_path / "out", device="cpu"), load(folder, device="cpu")
    picture = Image(path=str(data.parent / "0.png"))
    document = Document([tuned.user_turn([picture, "What is this?"])])
    ids, before = prompt_of(tuned, document, "text"), prompt_of(base, document, "text")
    assert ids == before
    found = logits_of(tuned.decoder, ids)
    assert (found - logits_of(base.decoder, before)).abs().max() > 0.01
    again = load(tmp_path / "out", device="cpu")
    assert (found - logits_of(again.decoder, prompt_of(again, document, "text"))).abs().max() == 0

    capsys.readouterr()
    ask = ["chat", "What is this?", "--image", data.parent / "0.png", "--to", "text", "--tokens", "8"]
    assert command(*ask, "--model", tmp_path / "out") == 0
    assert capsys.readouterr().out.strip() == tuned.answers([document], to="text", tokens=8)[0][0].text.strip()
    if kind != "chameleon":  # it came without its decoder
        assert tuned.generate("a blue car", to="image", guidance=1.0).media.dim() == 3

    assert command("export", tmp_path / "out", "--out", tmp_path / "exported") == 0
    stock = getattr(transformers, CLASSES[kind]).from_pretrained(tmp_path / "exported").eval()
    prompt = prompt_of(tuned, Document([Turn("user", "What is a cat?")]), "text")
    with torch.inference_mode():
        expected = stock(input_ids=torch.tensor([prompt])).logits[0]
    ours, block = logits_of(tuned.decoder, prompt), tuned.vocabulary.get_block_range("image")
    outside = [row for row in range(expected.shape[1]) if row not in block]
    assert (ours[:, outside] - expected[:, outside]).abs().max() < 1e-5


@pytest.mark.sweep
def test_dry_run_says_what_would_be_done(converted, data, tmp_path, capsys):
    kind, folder = converted
    recipe("finetune_lora", *settings_of(folder, data, tmp_path), flags=["--dry-run"])
    out = capsys.readouterr().out
    for word in ("vocabulary:", "image (image)", "parameters:", "its first row: <|bos|>", "× image]", "one step: loss"):
        assert word in out, word
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sweep
@pytest.mark.parametrize("kind", list(CLASSES))
def test_the_loss_is_that_of_the_whole_head(kind, tmp_path_factory):
    """Text scored among all rows that are no codes, codes among the codes, in whatever order the rows lie."""
    _, folder = converted_of(kind, tmp_path_factory)
    base = load_base(folder)
    template = make_joint_template(base, open_media(folder))
    vocabulary = template.vocabulary
    model = build_model(base, vocabulary, LoraSettings(rank=2), attention="sdpa")
    block = vocabulary.get_block_range("image")
    count = vocabulary.get_layout("image").fixed_steps
    drawn = Image(codes=[3 * code % 64 for code in range(count)], grid=(4, 4) if kind == "emu3" else None)
    documents = [
        Document([Turn("user", "a house"), Turn("assistant", [drawn])]),
        Document([Turn("user", "a"), Turn("assistant", "a cat")]),
    ]
    for one in map(template.render, documents):
        ids, labels = torch.from_numpy(one.ids)[None], torch.from_numpy(one.labels)[None]
        found = compute_sliced_cross_entropy(model, ids, labels, HeadGroups.from_vocabulary(vocabulary))
        with torch.no_grad():
            hidden = model.get_decoder()(input_ids=ids).last_hidden_state
            logits = model.get_output_embeddings()(hidden)[0, :-1]
        targets = labels[0, 1:]
        codes = torch.zeros(logits.shape[1], dtype=torch.bool)
        codes[block.start : block.stop] = True
        total, learnt = 0.0, 0
        for row, target in zip(logits, targets.tolist(), strict=True):
            if target >= 0:
                allowed = codes if target in block else ~codes
                total -= float(row.masked_fill(~allowed, -torch.inf).log_softmax(0)[target])
                learnt += 1
        assert found.count == learnt and abs(float(found.total.detach()) - total) < 1e-3 * learnt
        found.total.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_what_is_trained_on_are_the_prompts_of_a_chat(data, tmp_path, tmp_path_factory):
    """Janus: the system's words before a chat and not before a drawing, and pictures that are seen each time anew."""
    from unimodal.corpus.corpus import Corpus, CorpusConfig
    from unimodal.data.datasets import DatasetConfig

    _, folder = converted_of("janus", tmp_path_factory)
    base, media = load_base(folder), open_media(folder)
    template = make_joint_template(base, media)
    cfg = CorpusConfig(datasets=[DatasetConfig(path=str(data))], length=256, condition_dropout=0.0)
    model = build_model(base, template.vocabulary, LoraSettings(rank=2))
    assert isinstance(model.get_output_embeddings(), ImageHead)
    corpus = Corpus(cfg, template, media, keep_codes=False, features=make_feature_memory(model, template, media))
    assert corpus.encode() == 4  # the pictures to draw; those to look at have no codes
    [documents] = corpus.sets.values()
    chat = load(folder, device="cpu")
    asked = Document([chat.user_turn([Image(path=str(data.parent / "0.png")), "What is this?"])])
    rendered = documents[0]
    prompt = prompt_of(chat, asked, "text")
    size = template.vocabulary.size
    known = [row if row < size else None for row in rendered.ids[: len(prompt)].tolist()]
    assert known == [row if row < size else None for row in prompt] and None in known
    answer = chat.template.render(Document([Turn("user", "a"), Turn("assistant", "a cat")]))
    assert rendered.labels[len(prompt) :].tolist() == answer.labels[answer.labels >= 0].tolist()
    with torch.inference_mode():
        found = model.get_input_embeddings()(torch.from_numpy(rendered.ids)[None])[0, : len(prompt)]
        expected = chat.decoder.get_input_embeddings()(torch.tensor([prompt]))[0]
    assert torch.equal(found, expected)
    drawing = documents[1].ids[: len(prompt_of(chat, Document([Turn("user", "a blue car")]), "image"))]
    assert drawing.tolist() == prompt_of(chat, Document([Turn("user", "a blue car")]), "image")


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["media=model_cards/nano"], "is a converted checkpoint with tokenizers of its own; set media="),
        (["media=null"], "is a converted checkpoint with tokenizers of its own; set media="),
        (["lora=null"], "nothing would be trained"),
    ],
)
def test_mistakes_are_one_line(data, tmp_path, tmp_path_factory, capsys, change, message):
    _, folder = converted_of("emu3", tmp_path_factory)
    settings = [one for one in settings_of(folder, data, tmp_path) if not one.startswith("lora.rank")]
    with pytest.raises(SystemExit) as stopped:
        recipe("finetune_lora", *settings, *change)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not (tmp_path / "out").exists()


def test_one_softmax_over_words_and_codes_is_not_janus_way(data, tmp_path, tmp_path_factory, capsys):
    _, folder = converted_of("janus", tmp_path_factory)
    with pytest.raises(SystemExit):
        recipe("finetune_lora", *settings_of(folder, data, tmp_path), "loss.softmax=joint")
    assert "scores words and codes by different networks" in capsys.readouterr().err


def test_full_training_is_refused(data, tmp_path, tmp_path_factory, capsys):
    _, folder = converted_of("emu3", tmp_path_factory)
    settings = [one for one in settings_of(folder, data, tmp_path) if not one.startswith("lora")]
    with pytest.raises(SystemExit):
        recipe("finetune_full", *settings)
    assert "tune it by LoRA with recipes/finetune_lora.py" in capsys.readouterr().err


def test_an_adapter_that_lost_its_base_says_so(data, tmp_path, tmp_path_factory):
    from unimodal.config import Config
    from unimodal.tuning.save import save_tuned

    _, folder = converted_of("janus", tmp_path_factory)
    base, media = load_base(folder), open_media(folder)
    template = make_joint_template(base, media)
    model = build_model(base, template.vocabulary, LoraSettings(rank=2))
    save_tuned(tmp_path / "out", model, str(tmp_path / "gone"), template, media, Config())
    with pytest.raises(ValueError, match="no such folder"):
        load_adapter(tmp_path / "out")
    assert command("export", tmp_path / "out", "--out", tmp_path / "exported", "--base", folder) == 0


def test_tokenizers_of_a_converted_model_for_another_language_model(tiny_base, tmp_path, tmp_path_factory):
    """Its pictures are read by their codes there, in our own format."""
    from unimodal.config import Config
    from unimodal.tuning.save import save_tuned

    _, folder = converted_of("janus", tmp_path_factory)
    base, media = load_base(tiny_base), open_media(folder)
    template = make_joint_template(base, media)
    model = build_model(base, template.vocabulary, LoraSettings(rank=2), initialiser="mean")
    save_tuned(tmp_path / "out", model, str(tiny_base), template, media, Config())
    tuned = load(tmp_path / "out", device="cpu")
    assert tuned.processor.template == "unimodal" and tuned.features is None and not tuned.processor.system
    noise = np.random.default_rng(1).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Picture.fromarray(noise).save(tmp_path / "a.png")
    assert tuned.chat([Image(path=str(tmp_path / "a.png")), "What is this?"], to="text", tokens=4)
    _, emu3 = converted_of("emu3", tmp_path_factory)
    with pytest.raises(ValueError, match="have any number of codes"):
        make_joint_template(load_base(tiny_base), open_media(emu3))


def test_token_shards_hold_what_is_tokens(data, tmp_path_factory):
    from unimodal.corpus.tokenizer import CorpusTokenizer
    from unimodal.data.token_shards import Skipped

    _, folder = converted_of("janus", tmp_path_factory)
    picture = Image(path=str(data.parent / "0.png"))
    looked = Document([Turn("user", [picture]), Turn("assistant", "a cat")])
    drawn = Document([Turn("user", "a blue car"), Turn("assistant", [picture])])
    told = Document([Turn("user", "What is a cat?"), Turn("assistant", "a cat")])
    first, second, third = CorpusTokenizer(folder)([looked, drawn, told])
    assert isinstance(first, Skipped) and "reads through features, which are no tokens" in first.reason
    chat = load(folder, device="cpu")
    for rendered, document, to in ((second, drawn, "image"), (third, told, "text")):
        prompt = prompt_of(chat, Document(document.turns[:1]), to)
        assert rendered.ids[: len(prompt)].tolist() == prompt
        assert rendered.labels[len(prompt) :].tolist() == rendered.ids[len(prompt) :].tolist()
