"""A model under another text tokenizer: every stock base and a model of ours, loaded again as their own classes do."""

import json
import shutil

import pytest
import torch

from tests.tiny_bases import BASES, PADDED, TOKENIZER, make_base, save_base
from tests.tiny_model import tiny_folder, tiny_model
from tests.tuning.conftest import ENGLISH, GERMAN, make_tokenizer
from unimodal.model.base import load_base
from unimodal.model.depth_decoder import DepthSettings, add_depth_decoder, find_depth_decoder, take_depth_decoder
from unimodal.model_folder.decoder import load_decoder
from unimodal.model_folder.layout import VOCABULARY_FILE
from unimodal.pipeline import load
from unimodal.text.corpora import cut_pieces
from unimodal.text.hub_tokenizer import save_hub_tokenizer
from unimodal.text.reports.opened import OpenedTokenizer, open_tokenizer
from unimodal.text.tokenizer import TextTokenizer
from unimodal.tuning.transplant.measure import measure_text
from unimodal.tuning.transplant.special_tokens import keep_special_tokens, move_post_processor
from unimodal.tuning.transplant.transplant import open_base, plan_transplant, transplant
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary, read_vocabulary


def move(base, new, out, method="fvt", **options):
    opened = open_base(str(base))
    return transplant(opened, plan_transplant(opened, new), out, method, **options)


@pytest.mark.sweep
@pytest.mark.parametrize("kind", BASES)
def test_every_base_keeps_its_layers_and_is_itself_under_its_own_tokenizer(kind, new, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tied = bool(list(BASES).index(kind) % 2)
    base = save_base(tmp_path / "base", make_base(kind, tied))
    before = load_base(base).model.eval()
    move(base, new, tmp_path / "moved")
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "moved").eval()
    kept = {name: value for name, value in before.state_dict().items()}
    found = after.state_dict()
    tables = [name for name, value in found.items() if value.shape != kept[name].shape]
    assert len({found[name].data_ptr() for name in tables if found[name].dim() == 2}) == (1 if tied else 2)
    assert all(len(found[name]) == after.config.vocab_size == new.text.size for name in tables)
    assert all(torch.equal(value, kept[name]) for name, value in found.items() if name not in tables)
    assert (after.get_output_embeddings().weight is after.get_input_embeddings().weight) is tied
    # a digit and a capital are one row in both: what the base looks up for them, and scores them by, is what it was
    line = "127ABC"
    here, there = open_tokenizer(base).encode(line), new.encode(line)
    assert AutoTokenizer.from_pretrained(tmp_path / "moved").encode(line, add_special_tokens=False) == there
    with torch.no_grad():
        logits = before(torch.tensor([here])).logits[0][:, here]
        torch.testing.assert_close(after(torch.tensor([there])).logits[0][:, there], logits, rtol=1e-4, atol=1e-4)
    moved = {name: getattr(after.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    spelled = open_tokenizer(base).spelled
    for name, row in moved.items():
        given = getattr(before.config, name)
        assert row is None if given is None else new.spelled[row] == spelled[given], name
    move(base, open_tokenizer(base), tmp_path / "same")
    same = AutoModelForCausalLM.from_pretrained(tmp_path / "same").eval()
    with torch.no_grad():
        whole = before(torch.tensor([here])).logits[..., : same.config.vocab_size]
        assert same.config.vocab_size == 45 < PADDED  # padded rows spell nothing
        torch.testing.assert_close(same(torch.tensor([here])).logits, whole, rtol=1e-5, atol=1e-5)


def test_a_model_of_ours_keeps_its_media_rows_and_its_settings(new, tmp_path):
    out = tmp_path / "moved"
    made = move(tiny_folder(), new, out, lines=GERMAN[:3])
    before, after = tiny_model(), load(out, device="cpu")
    old, moved = before.template.vocabulary, read_vocabulary(out / VOCABULARY_FILE)
    assert moved.text_size == new.text.size != old.text_size
    assert [block.label for block in moved.blocks] == [block.label for block in old.blocks]
    for side in ("get_input_embeddings", "get_output_embeddings"):
        there, here = (getattr(model.engine.model, side)().weight for model in (before, after))
        assert torch.equal(there[old.text_size : old.size], here[moved.text_size :]), side
    assert after.template.text.sha256 == new.text.sha256 == moved.text_sha256
    assert after.template.text.encode("die Datei") == new.encode("die Datei")
    # codes of every medium are written and read as before, at their new rows
    shift = moved.text_size - old.text_size
    for medium in old.media:
        span = old.encode_span(medium, [0] * old.get_layout(medium).min_steps)
        assert moved.encode_span(medium, [0] * old.get_layout(medium).min_steps) == [row + shift for row in span]
        with torch.no_grad():
            there = before.engine.model(torch.tensor([span])).logits[..., old.text_size : old.size]
            here = after.engine.model(torch.tensor([[row + shift for row in span]])).logits[..., moved.text_size :]
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)
    assert after.coder.sha256 == before.coder.sha256 and not (out / "README.md").exists()
    assert (out / "processor_config.json").read_text() == (tiny_folder() / "processor_config.json").read_text()
    sampling = [json.loads((folder / "generation_config.json").read_text()) for folder in (tiny_folder(), out)]
    assert sampling[0]["unimodal"] == sampling[1]["unimodal"]
    assert sampling[1]["eos_token_id"] == moved.get_control_id("<|end_of_turn|>")
    assert after.engine.model.config.eos_token_id == moved.get_control_id("<|end_of_turn|>")
    record = json.loads((out / "transplant.json").read_text())
    assert record["method"] == "fvt" and record["rows"]["copied"] == made.copied and str(tmp_path) not in str(record)
    assert record["after"]["tokens"] == made.after.tokens == len(new.encode("\n".join([*GERMAN[:3], ""])))


def test_a_model_with_summed_codes_keeps_the_network_that_writes_them(new, tmp_path):
    vocabulary = Vocabulary.build(
        45,
        [Block(name="audio", modality="audio", size=12, group=group, layout="summed") for group in range(2)],
        [SpanLayout("audio", [Segment("audio")])],
    )
    model = make_base("llama", True, vocab_size=vocabulary.size)
    add_depth_decoder(model, vocabulary, DepthSettings(num_layers=1, width=16))
    depth = take_depth_decoder(model)
    folder = tmp_path / "summed"
    model.save_pretrained(folder)
    depth.save(folder)
    vocabulary.save(folder / VOCABULARY_FILE)
    save_hub_tokenizer(folder, vocabulary, TextTokenizer(TOKENIZER))
    move(folder, new, tmp_path / "moved")
    moved = read_vocabulary(tmp_path / "moved" / VOCABULARY_FILE)
    assert moved.is_summed("audio") and moved.size == new.text.size + vocabulary.size - 45
    found = find_depth_decoder(load_decoder(tmp_path / "moved", moved)).state_dict()
    assert found.keys() == depth.state_dict().keys()
    assert all(torch.allclose(value, depth.state_dict()[name], atol=1e-2) for name, value in found.items())


def test_special_tokens_stay_under_their_names(new, tmp_path):
    """A chat base: its format, its start before every text and the ends of its turns are what they were."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = save_base(tmp_path / "base", make_base("llama", True))
    data = json.loads((base / "tokenizer.json").read_text())
    names = ["<|im_start|>", "<|im_end|>", "<s>"]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    data["added_tokens"] = [{"id": 45 + at, "content": name, **plain} for at, name in enumerate(names)]
    template = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    data["post_processor"] = {
        "type": "TemplateProcessing", "single": template, "pair": [*template, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [47], "tokens": ["<s>"]}},
    }  # fmt: skip
    (base / "tokenizer.json").write_text(json.dumps(data))
    chat = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|im_end|>",
                "pad_token": "[none]", "chat_template": chat, "model_max_length": 99,
                "added_tokens_decoder": {"45": {"content": "<|im_start|>"}}}  # fmt: skip
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "bos_token_id": 47, "eos_token_id": [46, 45]}))
    move(base, new, tmp_path / "moved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "moved")
    size = new.text.size
    assert tokenizer.convert_tokens_to_ids(names) == [size, size + 1, size + 2] and len(tokenizer) == size + 3
    assert tokenizer("die Datei")["input_ids"] == [size + 2, *new.encode("die Datei")]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.model_max_length) == ("<s>", "<|im_end|>", 99)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Datei"}], return_dict=False)
    assert ids == [size, *new.encode("Datei"), size + 1]
    old, moved = (AutoModelForCausalLM.from_pretrained(folder) for folder in (base, tmp_path / "moved"))
    assert torch.equal(moved.get_input_embeddings().weight[size:], old.get_input_embeddings().weight[45:48])
    assert moved.config.bos_token_id == size + 2 and moved.config.eos_token_id == [size + 1, size]
    # a tokenizer that has a token of that name keeps its place, with the base's row
    renamed = OpenedTokenizer({**new.data, "added_tokens": [{"id": size, "content": "<|im_end|>", **plain}]}, "named")
    move(base, renamed, tmp_path / "named")
    named = AutoModelForCausalLM.from_pretrained(tmp_path / "named")
    assert torch.equal(named.get_input_embeddings().weight[size], old.get_input_embeddings().weight[46])
    assert named.config.vocab_size == size + 3 and named.config.eos_token_id == [size, size + 1]


def test_what_stands_around_every_text_moves_too():
    rows = {"<s>": 7, "</s>": 9}
    roberta = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": True}
    moved = move_post_processor({"type": "Sequence", "processors": [{"type": "ByteLevel"}, roberta]}, rows)
    assert moved["processors"][1]["sep"] == ["</s>", 9] and moved["processors"][1]["cls"] == ["<s>", 7]
    assert move_post_processor(None, rows) is None
    with pytest.raises(ValueError, match="'Other', which is not known"):
        move_post_processor({"type": "Other"}, rows)
    with pytest.raises(ValueError, match="puts '<x>' around"):
        move_post_processor({**roberta, "sep": ["<x>", 1]}, rows)


def test_a_tokenizer_with_gaps_cannot_take_the_base_s_tokens(new, old):
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    base = {**old.data, "added_tokens": [{"id": old.text.size, "content": "<s>", **plain}]}
    with pytest.raises(ValueError, match="gaps between its rows"):
        keep_special_tokens(base, new.data, new.text.size + 5)


def test_pieces_hold_the_whole_text_and_are_short():
    lines = ["a" * 50, "öä" * 40, "short", ""]
    pieces = cut_pieces(lines, 64)
    assert "".join(pieces) == "\n".join([*lines, ""])
    assert all(0 < len(piece.encode()) <= 64 for piece in pieces)


def test_bits_are_those_of_the_model_for_each_piece(tmp_path):
    base = load_base(save_base(tmp_path / "base", make_base("llama", True)))
    tokenizer = open_tokenizer(tmp_path / "base")
    lines = ["ABC127" * 20, "XYZ", "127XY" * 20]
    found = measure_text(base.model, tokenizer, 1, lines)
    total = tokens = 0
    for piece in cut_pieces(lines, 158):
        ids = tokenizer.encode(piece)
        tokens += len(ids)
        with torch.no_grad():
            logits = base.model(torch.tensor([[1, *ids]])).logits[0, :-1].log_softmax(-1)
        total -= float(logits.gather(1, torch.tensor(ids)[:, None]).sum())
    assert found.bits == pytest.approx(total / torch.log(torch.tensor(2.0)).item() / found.num_bytes, rel=1e-5)
    assert found.tokens == tokens and found.num_bytes == len("\n".join([*lines, ""])) and found.interval > 0
    assert found.num_pieces == len(cut_pieces(lines, 158)) > 1
    free = measure_text(base.model, tokenizer, None, lines)
    assert free.bits > 0 and free.tokens == tokens
    assert found.compare(found) == (0, 0) and free.compare(found)[0] == pytest.approx(free.bits - found.bits)
    assert found.compare(measure_text(base.model, tokenizer, 1, lines[:1])) is None  # other pieces
    # the base's tokenizer has no row for small letters, and says nothing of them
    assert [measure_text(base.model, tokenizer, 1, [line]).num_spoilt for line in ("127", "127abc")] == [0, 1]


def test_a_donor_is_found_by_what_its_tokens_spell(new, tmp_path):
    from unimodal.tuning.transplant.inputs import read_donor_rows

    base = save_base(tmp_path / "base", make_base("llama", False))
    move(base, new, tmp_path / "donor")
    rows = read_donor_rows(str(tmp_path / "donor"), new)
    table = load_base(tmp_path / "donor").model
    assert torch.equal(rows["input"], table.get_input_embeddings().weight)
    assert torch.equal(rows["output"], table.get_output_embeddings().weight)
    with pytest.raises(ValueError, match="lacks .* of the .* tokens of german"):
        read_donor_rows(str(base), new)


def test_an_adapter_and_a_converted_checkpoint_are_refused(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "base.json").write_text("{}")
    with pytest.raises(ValueError, match="is an adapter; merge it by `unimodal export`"):
        open_base(str(adapter))
    folder = tmp_path / "converted"
    shutil.copytree(tiny_folder(), folder)
    stored = json.loads((folder / VOCABULARY_FILE).read_text())
    stored |= {"adopted": True, "text": {**stored["text"], "size": stored["size"]}}
    (folder / VOCABULARY_FILE).write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="converted checkpoint"):
        open_base(str(folder))
    (folder / VOCABULARY_FILE).unlink()
    with pytest.raises(ValueError, match="a model of ours without its vocabulary.json"):
        open_base(str(folder))


def test_other_kinds_of_tokenizers_are_moved_too(tmp_path):
    """A WordPiece, a Unigram and a SentencePiece tokenizer under a byte-level base, and a text through each."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = save_base(tmp_path / "base", make_base("llama", True))
    for kind, size in (("wordpiece", 600), ("unigram", 390), ("sentencepiece-bpe", 390), ("characters", None)):
        new = make_tokenizer(GERMAN + ENGLISH, size, kind)
        move(base, new, tmp_path / kind)
        ids = AutoTokenizer.from_pretrained(tmp_path / kind)("die Datei 12")["input_ids"]
        assert ids == new.encode("die Datei 12")
        assert AutoModelForCausalLM.from_pretrained(tmp_path / kind).config.vocab_size == new.text.size
