"""A pretrained base with new rows and LoRA: what is trained, what merging and saving keep, and what is refused.

The bases are random Llama and Qwen3 models of a few thousand parameters, saved as ordinary Hugging Face folders.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from unimodal.model.adapter import load_adapter, merge, save_adapter
from unimodal.model.attention import Packing
from unimodal.model.base import hash_base, load_base
from unimodal.model.build import build_model
from unimodal.model.lora import LoraSettings, find_lora_layers
from unimodal.model.rows import get_new_rows
from unimodal.objectives.next_token import HeadGroups, compute_sliced_cross_entropy
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

ROWS, PADDED = 45, 48  # real tokens of the base, and the rows of its table
TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": None, "post_processor": None, "decoder": None,
    "model": {"type": "BPE", "vocab": {chr(48 + i): i for i in range(ROWS)}, "merges": []},
}  # fmt: skip
LORA = LoraSettings(rank=3)


def vocabulary_for(text_size: int = PADDED) -> Vocabulary:
    blocks = [Block(name="image", modality="image", size=16), Block(name="audio", modality="audio", size=12)]
    layouts = [SpanLayout("image", [Segment("image", 4)]), SpanLayout("audio", [Segment("audio")])]
    return Vocabulary.build(text_size, blocks, layouts)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    """folder(family, tied): a base with a padded table, saved once."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    made: dict[tuple[str, bool], Path] = {}

    def folder(family: str = "llama", tied: bool = True) -> Path:
        if (family, tied) not in made:
            sizes = dict(
                vocab_size=PADDED, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2, tie_word_embeddings=tied,
                pad_token_id=None, bos_token_id=1, eos_token_id=2,
            )  # fmt: skip
            torch.manual_seed(len(made))
            if family == "llama":
                model = LlamaForCausalLM(LlamaConfig(**sizes))
            else:
                model = Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=8))
            with torch.no_grad():  # rows beyond the tokenizer's are padding
                model.get_input_embeddings().weight[ROWS:] = 0
                model.get_output_embeddings().weight[ROWS:] = 0
            path = tmp_path_factory.mktemp(f"{family}-{tied}")
            model.save_pretrained(path)
            (path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
            made[family, tied] = path
        return made[family, tied]

    return folder


def one_batch(vocabulary: Vocabulary, seed: int = 0) -> torch.Tensor:
    """Two documents of text, a picture and a sound, as ids [1, N]."""
    g = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    for _ in range(2):
        ids += torch.randint(0, ROWS, (5,), generator=g).tolist()
        ids += vocabulary.encode_span("image", torch.randint(0, 16, (4,), generator=g))
        ids += vocabulary.encode_span("audio", torch.randint(0, 12, (6,), generator=g))
    return torch.tensor(ids)[None]


def train(model, vocabulary, steps=3, lr=0.1):
    groups = HeadGroups.from_vocabulary(vocabulary)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    model.train()
    for step in range(steps):
        ids = one_batch(vocabulary, step)
        optimizer.zero_grad()
        compute_sliced_cross_entropy(
            model, ids, ids, groups, position_ids=torch.arange(ids.shape[1])[None]
        ).mean.backward()
        optimizer.step()
    return model.eval()


VARIANTS = [
    ("llama", True, LORA),
    ("llama", False, LORA.model_copy(update={"rslora": True, "alpha": 5.0})),
    ("llama", True, LORA.model_copy(update={"dora": True})),
    ("qwen3", True, LORA.model_copy(update={"targets": "attention"})),
    ("qwen3", False, LORA.model_copy(update={"dora": True, "rslora": True, "targets": ("q_proj", "down_proj")})),
    ("llama", False, None),
]


@pytest.mark.parametrize(("family", "tied", "lora"), VARIANTS)
def test_adapter_equals_merged_equals_saved_and_reloaded(base_folder, tmp_path, family, tied, lora):
    from transformers import AutoModelForCausalLM

    vocabulary = vocabulary_for()
    model = build_model(base_folder(family, tied), vocabulary, lora)
    assert bool(find_lora_layers(model)) is (lora is not None)
    train(model, vocabulary)
    ids = one_batch(vocabulary, 9)
    with torch.no_grad():
        expected = model(ids).logits
        assert expected.shape[-1] == vocabulary.size
        save_adapter(tmp_path / "adapter", model, str(base_folder(family, tied)), vocabulary)
        again, saved_vocabulary = load_adapter(tmp_path / "adapter")
        torch.testing.assert_close(again(ids).logits, expected, rtol=0, atol=1e-5)
        assert saved_vocabulary.to_dict() == vocabulary.to_dict()
        merge(model)
        torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-5)
        model.save_pretrained(tmp_path / "merged")
        stock = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(stock(ids).logits, expected, rtol=0, atol=1e-5)
    assert type(stock).__name__ == {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}[family]
    assert not any("lora" in name or "new_rows" in name for name in stock.state_dict())
    assert not (tmp_path / "adapter" / "model.safetensors").exists(), "the base is named, not copied"


@pytest.mark.parametrize("tied", [True, False])
def test_rows_in_8_bits_are_within_half_a_step_of_their_row(base_folder, tmp_path, tied):
    vocabulary = vocabulary_for()
    model = train(build_model(base_folder("llama", tied), vocabulary, LORA), vocabulary)
    sizes = {}
    for name, levels in (("whole", 0), ("small", 127)):
        save_adapter(tmp_path / name, model, str(base_folder("llama", tied)), vocabulary, row_levels=levels)
        sizes[name] = (tmp_path / name / "new_rows.safetensors").stat().st_size
    assert sizes["small"] < 0.5 * sizes["whole"]
    again, _ = load_adapter(tmp_path / "small")
    assert set(get_new_rows(again)) == set(get_new_rows(model))
    for side, table in get_new_rows(model).items():
        step = table.detach().abs().amax(1, keepdim=True) / 127
        assert bool(((get_new_rows(again)[side] - table).abs() <= 0.501 * step).all())
        assert float((get_new_rows(again)[side] - table).detach().abs().max()) > 0


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [LORA, None])
def test_every_new_row_gets_a_gradient_on_both_sides_and_the_base_none(base_folder, tied, lora):
    vocabulary = vocabulary_for()
    model = build_model(base_folder("llama", tied), vocabulary, lora)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    ids = torch.cat([torch.arange(PADDED, vocabulary.size), torch.tensor([0])])[None]  # every new row, read and scored
    groups = HeadGroups.from_vocabulary(vocabulary)
    compute_sliced_cross_entropy(model, ids, ids, groups).mean.backward()
    sides = get_new_rows(model)
    assert set(sides) == ({"input"} if tied else {"input", "output"})
    for side, rows in sides.items():
        assert len(rows) == vocabulary.size - PADDED
        assert bool((rows.grad.abs().sum(1) > 0).all()), f"{side} rows without a gradient"
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in n or "new_rows" in n for n in trained)
    train(model, vocabulary)
    for name, parameter in model.named_parameters():
        assert name not in frozen or torch.equal(parameter, frozen[name]), name


def test_new_rows_begin_behind_the_padded_rows_and_leave_the_base_as_it_was(base_folder):
    vocabulary = vocabulary_for()
    stock = load_base(base_folder()).model.eval()
    ids = torch.randint(0, ROWS, (2, 9))
    expected = stock(ids).logits
    model = build_model(base_folder(), vocabulary, LORA).eval()  # an untrained adapter changes nothing
    torch.testing.assert_close(model(ids).logits[..., :PADDED], expected, rtol=0, atol=1e-6)
    assert vocabulary.control_range.start == PADDED
    with pytest.raises(ValueError, match="has 45 text rows but .* has 48, padded ones included"):
        build_model(base_folder(), vocabulary_for(ROWS))


def test_packed_documents_give_what_they_give_alone(base_folder):
    vocabulary = vocabulary_for()
    model = train(build_model(base_folder("qwen3"), vocabulary, LORA), vocabulary)
    documents = [one_batch(vocabulary, seed)[:, : 9 + 4 * seed] for seed in range(3)]
    positions = torch.cat([torch.arange(d.shape[1]) for d in documents])[None]
    packed = torch.cat(documents, 1)
    with torch.no_grad():
        out = model(packed, position_ids=positions, packing=Packing.from_position_ids(positions)).logits
        alone = torch.cat([model(d).logits for d in documents], 1)
    torch.testing.assert_close(out, alone, rtol=0, atol=1e-5)


def test_full_tuning_trains_base_and_new_rows(base_folder):
    vocabulary = vocabulary_for()
    model = build_model(base_folder("llama", False), vocabulary, freeze_base=False)
    assert all(p.requires_grad for p in model.parameters())
    before = {n: p.clone() for n, p in model.named_parameters()}
    train(model, vocabulary)
    same = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    assert same == []
    with pytest.raises(ValueError, match="exclude each other"):
        build_model(base_folder(), vocabulary, LORA, freeze_base=False)


def test_a_base_that_has_the_rows_already_gets_no_new_ones(base_folder, tmp_path):
    vocabulary = vocabulary_for()
    merged = merge(train(build_model(base_folder(), vocabulary, LORA), vocabulary))
    merged.save_pretrained(tmp_path / "ours")
    (tmp_path / "ours" / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    model = train(build_model(tmp_path / "ours", vocabulary, LORA), vocabulary)
    ids = one_batch(vocabulary, 4)
    expected = model(ids).logits
    save_adapter(tmp_path / "more", model, str(tmp_path / "ours"), vocabulary)
    torch.testing.assert_close(load_adapter(tmp_path / "more")[0](ids).logits, expected, rtol=0, atol=1e-5)
    assert not (tmp_path / "more" / "new_rows.safetensors").exists()


def test_the_half_precision_base_keeps_trained_parts_in_float32(base_folder):
    vocabulary = vocabulary_for()
    model = build_model(base_folder("llama", False), vocabulary, LORA, precision="bfloat16")
    kinds = {(p.requires_grad, p.dtype) for p in model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    train(model, vocabulary, steps=1)


def test_peft_reads_the_adapter_files(base_folder, tmp_path):
    """The LoRA part is an ordinary peft adapter of the base."""
    peft = pytest.importorskip("peft")
    vocabulary = vocabulary_for()
    model = train(build_model(base_folder(), vocabulary, LORA), vocabulary)
    save_adapter(tmp_path, model, str(base_folder()), vocabulary)
    other = peft.PeftModel.from_pretrained(load_base(base_folder()).model, tmp_path).eval()
    ids = torch.randint(0, ROWS, (1, 8))
    torch.testing.assert_close(other(ids).logits, model(ids).logits[..., :PADDED], rtol=0, atol=1e-5)


def test_what_does_not_belong_together_is_refused_in_one_line(base_folder, tmp_path):
    vocabulary = vocabulary_for()
    model = build_model(base_folder(), vocabulary, LORA)
    save_adapter(tmp_path, model, str(base_folder()), vocabulary)
    with pytest.raises(ValueError, match=r"^[^\n]*was trained on the base with table [^\n]*check_base=False$"):
        load_adapter(tmp_path, load_base(base_folder("qwen3")))  # another table
    rows = vocabulary.size - PADDED
    vocabulary_smaller = Vocabulary.build(PADDED, vocabulary.blocks[:1])
    vocabulary_smaller.save(tmp_path / "vocabulary.json")
    with pytest.raises(ValueError, match=f"{rows} new rows but vocabulary.json has {rows - 12}"):
        load_adapter(tmp_path)
    vocabulary.save(tmp_path / "vocabulary.json")
    data = (tmp_path / "new_rows.safetensors").read_bytes()
    (tmp_path / "new_rows.safetensors").write_bytes(save({"output": torch.zeros(rows, 4)}))
    with pytest.raises(ValueError, match=r"^[^\n]*new_rows.safetensors has no input rows[^\n]*$"):
        load_adapter(tmp_path)
    (tmp_path / "new_rows.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="new_rows.safetensors cannot be read"):
        load_adapter(tmp_path)
    with pytest.raises(ValueError, match="base.json is missing"):
        load_adapter(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/folder", "no such folder, and not a hub id"),
        ("./missing", "no such folder, and not a hub id"),
    ],
)
def test_a_base_that_is_not_there(name, message):
    with pytest.raises(ValueError, match=message):
        load_base(name)


def test_an_empty_folder_an_unknown_target_and_a_missing_extra(base_folder, tmp_path):
    with pytest.raises(ValueError, match="no config.json and 0 GGUF files"):
        load_base(tmp_path)
    with pytest.raises(ValueError, match="no linear layer q_prj; use down_proj, .*q_proj"):
        build_model(base_folder(), vocabulary_for(), LoraSettings(targets=("q_prj",)))
    with pytest.raises(ValueError, match="initialiser 'zero' is unknown; use covariance"):
        build_model(base_folder(), vocabulary_for(), LORA, initialiser="zero")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match=r"pip install unimodal\[quantized\]"):
            load_base(base_folder(), eight_bit=True)


def test_the_hash_tells_bases_apart_and_not_their_rows(base_folder):
    model = load_base(base_folder()).model
    before = hash_base(model)
    assert before != hash_base(load_base(base_folder("qwen3")).model)
    assert hash_base(build_model(base_folder(), vocabulary_for(), LORA)) == before
