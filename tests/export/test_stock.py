"""`unimodal export`: the same model as a stock folder, whole or not at all."""

import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.tiny_model import tiny_folder, tiny_model
from unimodal.cli.app import main
from unimodal.export import stock
from unimodal.export.stock import export_model
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import GREEDY
from unimodal.model.adapter import load_adapter
from unimodal.model_folder.find import find_model
from unimodal.pipeline import load
from unimodal.sequence.document import Document
from unimodal.vocabulary import read_vocabulary

pytestmark = pytest.mark.sweep("exports")


ROOT = Path(__file__).resolve().parents[2]


def command(*words):
    """`unimodal …` in this process → its exit status."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(tiny_folder(), tmp_path / "copy")
    return tmp_path / "copy"


# ---- the same model


@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_adapter_has_the_same_logits_and_greedy_ids_in_stock_classes(adapters, tied, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    export_model(adapters[tied], tmp_path / "out")
    before, vocabulary = load_adapter(adapters[tied])
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(after) is LlamaForCausalLM and after.dtype == torch.float32
    assert after.config.tie_word_embeddings is tied
    assert (after.lm_head.weight is after.model.embed_tokens.weight) is tied
    ids = torch.randint(vocabulary.size, (2, 40), generator=torch.Generator().manual_seed(1))
    before, after = before.double(), after.double()  # the weights are compared, and not how a processor rounds
    with torch.no_grad():
        one, two = before(ids).logits, after(ids).logits
    assert one.shape == two.shape == (2, 40, vocabulary.size)
    torch.testing.assert_close(one, two, atol=1e-5, rtol=0)

    prompt = AutoTokenizer.from_pretrained(tmp_path / "out").apply_chat_template(
        [{"role": "user", "content": "what is this?"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    greedy = [
        model.generate(
            prompt, do_sample=False, max_new_tokens=24, eos_token_id=None, pad_token_id=0, suppress_tokens=[]
        )[0].tolist()
        for model in (before.eval(), after)
    ]
    assert greedy[0] == greedy[1] and len(set(greedy[0][prompt.shape[1] :])) > 3


def test_a_text_answer_of_a_stock_engine_is_ours(adapters, tmp_path):
    """No code, control or reserved row, which this random model would write often; and the ids are the engine's."""
    from transformers import AutoModelForCausalLM

    export_model(adapters[True], tmp_path / "out")
    stock_model, own = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), load(tmp_path / "out", device="cpu")
    vocabulary, changed = own.vocabulary, 0
    for question in ("what is this?", "a blue car", "the old man"):
        prompt = own.template.render(Document((own.user_turn(question),)), add_generation_prompt=True).ids.tolist()
        answer = own.engine.generate(
            [prompt], GenerationConfig(max_new_tokens=16, allow=("text",), sampling={"text": GREEDY})
        )[0]
        ids, options = torch.tensor([prompt]), {"do_sample": False, "max_new_tokens": 16}
        found = stock_model.generate(ids, **options)[0, len(prompt) :].tolist()
        assert all(vocabulary.is_text(row) or row == vocabulary.get_control_id("<|end_of_turn|>") for row in found)
        assert found[: len(answer) - 1] == answer[:-1], "ours writes its end within the limit"
        free = stock_model.generate(ids, **options, suppress_tokens=[])[0, len(prompt) :].tolist()
        changed += free != found
    assert changed, "without the list it would write codes"


@pytest.mark.parametrize("tied", [True, False])
def test_the_pipeline_draws_and_says_the_same_after_the_export(adapters, tied, tmp_path):
    export_model(adapters[tied], tmp_path / "out")
    one, two = load(adapters[tied], device="cpu"), load(tmp_path / "out", device="cpu")
    drawn = [model.generate("a red apple", to="image", temperature=0) for model in (one, two)]
    assert drawn[0].part == drawn[1].part
    assert torch.equal(drawn[0].media, drawn[1].media)
    said = [model.chat([drawn[0].part, "what is this?"], to="text") for model in (one, two)]
    assert said[0] == said[1]


def test_a_whole_model_keeps_its_precision_and_its_values(tmp_path):
    export_model(tiny_folder(), tmp_path / "stored")
    export_model(tiny_folder(), tmp_path / "wide", dtype="float32")
    source = load_file(tiny_folder() / "model.safetensors")
    stored, wide = (load_file(tmp_path / name / "model.safetensors") for name in ("stored", "wide"))
    assert source.keys() == stored.keys() == wide.keys()
    for name, tensor in source.items():
        assert stored[name].dtype == torch.float16 and torch.equal(stored[name], tensor)
        assert wide[name].dtype == torch.float32 and torch.equal(wide[name], tensor.float())
    assert json.loads((tmp_path / "stored" / "config.json").read_text())["dtype"] == "float16"
    again = load(tmp_path / "stored", device="cpu").generate("a red apple", to="image", seed=3)
    assert again.part == tiny_model().generate("a red apple", to="image", seed=3).part


def test_shards_are_as_small_as_asked_and_load(tmp_path):
    export_model(tiny_folder(), tmp_path / "out", max_shard_size="30KB")
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 2 and not (tmp_path / "out" / "model.safetensors").exists()
    for path in shards:
        with safe_open(path, "pt") as file:  # a tensor larger than a shard has one to itself
            assert path.stat().st_size < 31_000 or len(list(file.keys())) == 1
    model = load(tmp_path / "out", device="cpu")
    expected = tiny_model().generate("a blue car", to="image", seed=2)
    assert model.generate("a blue car", to="image", seed=2).part == expected.part
    shards[1].unlink()
    with pytest.raises(ValueError, match=rf"incomplete: {shards[1].name} missing"):
        find_model(tmp_path / "out")


def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path):
    export_model(tiny_folder(), tmp_path / "out", max_shard_size="30KB")
    path = tmp_path / "out" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = "../secret.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="names ../secret.safetensors"):
        find_model(tmp_path / "out")


def test_an_export_can_be_exported_again(exported, tmp_path):
    export_model(exported, tmp_path / "again")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "modeling_unimodal.py", "processor_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes(), name


# ---- rows, ids and what else servers want


@pytest.mark.parametrize("tied", [True, False])
def test_rows_equal_vocab_size_and_no_token_lies_beyond(adapters, tied, tmp_path):
    from transformers import AutoTokenizer

    export_model(adapters[tied], tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    vocabulary = read_vocabulary(tmp_path / "out" / "vocabulary.json")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        names = set(file.keys())
        tables = [n for n in ("model.embed_tokens.weight", "lm_head.weight") if n in names]
        rows = {file.get_slice(name).get_shape()[0] for name in tables}
        assert not any("lora" in name or "new_rows" in name for name in names)
    assert len(tables) == (1 if tied else 2)
    assert rows == {config["vocab_size"]} == {vocabulary.size}
    assert config["architectures"] == ["LlamaForCausalLM"] and config["model_type"] == "llama"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert max(tokenizer.get_vocab().values()) < config["vocab_size"]
    assert tokenizer.convert_tokens_to_ids("<|image_0003|>") == vocabulary.get_block_range("image")[3]
    assert config["eos_token_id"] == tokenizer.eos_token_id == vocabulary.get_control_id("<|end_of_turn|>")


def test_text_has_the_bases_ids(adapters, tmp_path):
    """What llama.cpp tells a pre-tokenizer by: the ids of a fixed text, whatever rows are added behind."""
    from transformers import AutoTokenizer

    export_model(adapters[True], tmp_path / "out")
    base = json.loads((adapters[True] / "base.json").read_text())["base"]
    probe = "\n \n\t 🚀 (normal) 3 33 333 áé 我想 ```` I've 'll don't ./_=  -- what is this?"
    ids = [
        AutoTokenizer.from_pretrained(name).encode(probe, add_special_tokens=False) for name in (base, tmp_path / "out")
    ]
    assert ids[0] == ids[1] and len(ids[0]) > 20


def test_a_token_beyond_the_rows_or_on_another_row_is_refused(copy, tmp_path):
    path = copy / "tokenizer.json"
    data = json.loads(path.read_text())
    last = data["added_tokens"][-1]
    path.write_text(json.dumps({**data, "added_tokens": [*data["added_tokens"], {**last, "id": last["id"] + 1,
                                                                                "content": "<|more|>"}]}))  # fmt: skip
    with pytest.raises(
        ValueError, match=rf"token with id {last['id'] + 1}, but the decoder only {last['id'] + 1} rows"
    ):
        export_model(copy, tmp_path / "out")
    added = [dict(token) for token in data["added_tokens"]]
    added[-1]["content"], added[-2]["content"] = added[-2]["content"], added[-1]["content"]
    path.write_text(json.dumps({**data, "added_tokens": added}))
    with pytest.raises(ValueError, match=r"is id \d+, not row \d+"):
        export_model(copy, tmp_path / "out")


def test_a_swapped_tokenizer_is_refused(copy, tmp_path):
    path = copy / "audio_tokenizer" / "model.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(path).items()}, path)
    with pytest.raises(ValueError, match="audio"):
        export_model(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- what is copied


def test_card_reports_and_samples_come_along_and_nothing_else_does(copy, tmp_path):
    (copy / "README.md").write_text("# mine\n")
    (copy / "report.json").write_text("{}")
    (copy / "LICENSE").write_text("free")
    (copy / "samples").mkdir()
    (copy / "samples" / "a.png").write_bytes(b"\x89PNG")
    (copy / "run.py").write_text("print('never')")
    (copy / ".git").mkdir()
    (copy / ".git" / "config.json").write_text("{}")
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (copy / "settings.json").symlink_to(secret)
    recipe = {"base": "/somebody/private/models/base", "out": "data/out", "loop": {"folder": ["/a/b"]}}
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    export_model(copy, tmp_path / "out")
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"README.md", "report.json", "LICENSE", "samples/a.png", "image_tokenizer/model.safetensors",
            "chat_template.jinja", "export.json"} <= names  # fmt: skip
    assert not {"run.py", ".git/config.json", "settings.json"} & names
    assert {name for name in names if name.endswith(".py")} == {"modeling_unimodal.py", "processing_unimodal.py"}
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text()) == {
        "base": "base", "out": "data/out", "loop": {"folder": ["b"]},
    }  # fmt: skip


def test_the_base_is_named_only_by_a_hub_id(adapters, tmp_path):
    export_model(adapters[True], tmp_path / "a")
    assert "base_model" not in json.loads((tmp_path / "a" / "export.json").read_text())
    shutil.copytree(adapters[True], tmp_path / "adapter")
    record = json.loads((tmp_path / "adapter" / "base.json").read_text())
    (tmp_path / "adapter" / "base.json").write_text(json.dumps({**record, "base": "owner/base-model"}))
    export_model(tmp_path / "adapter", tmp_path / "b", base=record["base"])
    named = json.loads((tmp_path / "b" / "export.json").read_text())
    assert (named["base_model"], named["base_model_relation"]) == ("owner/base-model", "finetune")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(one[name], two[name]) for name in one)


# ---- whole or not at all


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_stops_the_writing_leaves_nothing_behind(error, tmp_path, monkeypatch, capsys):
    def stop(model, folder, *_):
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    (tmp_path / "place").mkdir()
    monkeypatch.setattr(stock, "write_decoder", stop)
    status = command("export", tiny_folder(), "--out", tmp_path / "place" / "out")
    assert status == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert list((tmp_path / "place").iterdir()) == []
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == ("interrupted" if status == 130 else "unimodal: [Errno 28] No space left on device")


def test_a_disk_that_takes_no_more_leaves_nothing_behind(commands, tmp_path):
    """A real limit of the system on the size of files, hit while the weights are written."""
    size = (tiny_folder() / "model.safetensors").stat().st_size
    program = "import resource, sys; from unimodal.cli.app import main; "
    program += "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2); main(sys.argv[2:])"
    words = [str(size // 2), "export", str(tiny_folder()), "--out", str(tmp_path / "out")]
    done = commands.run([sys.executable, "-c", program, *words], env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("unimodal: ") and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_told_before_anything_is_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "place").mkdir()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert command("export", tiny_folder(), "--out", tmp_path / "place" / "out") == 2
    assert "GB are to be written" in capsys.readouterr().err and list((tmp_path / "place").iterdir()) == []


def test_a_folder_that_holds_something_is_kept(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    assert command("export", tiny_folder(), "--out", out) == 0  # an empty one gives way
    (out / "mine.txt").write_text("mine")
    assert command("export", tiny_folder(), "--out", out) == 2
    assert "not empty" in capsys.readouterr().err and (out / "mine.txt").exists()
    assert command("export", tiny_folder(), "--out", out, "--force") == 0
    assert not (out / "mine.txt").exists() and [path.name for path in tmp_path.iterdir()] == ["out"]
    other = tmp_path / "photographs"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    assert command("export", tiny_folder(), "--out", other, "--force") == 2
    assert "not an exported model" in capsys.readouterr().err and (other / "mine.txt").exists()


def test_a_failed_replacement_keeps_the_old_folder(tmp_path, monkeypatch):
    export_model(tiny_folder(), tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()

    def stop(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(stock, "_describe_descent", stop)
    with pytest.raises(OSError, match="Input/output"):
        export_model(tiny_folder(), tmp_path / "out", dtype="float32", force=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "{tmp}/a/b"], "there is no folder"),
        (["--out", "{tmp}/out", "--dtype", "float8"], "precision 'float8' is unknown"),
        (["--out", "{tmp}/out", "--max-shard-size", "many"], "shard size 'many' is not a size"),
        (["--out", "{tmp}/out", "--max-shard-size", "0.0GB"], "shard size '0.0GB' is not a size"),
        (["--out", "{tmp}/out", "--base", "x/y"], "it has no base"),
        (["--out", "{model}/out"], "lie in each other"),
    ],
)
def test_mistakes_are_one_line_and_status_2(words, message, tmp_path, capsys):
    words = [word.format(tmp=tmp_path, model=tiny_folder()) for word in words]
    assert command("export", tiny_folder(), *words) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("unimodal: ") and message in last
    assert list(tmp_path.iterdir()) == []


def test_a_head_that_no_stock_model_has_is_refused(copy, tmp_path, capsys):
    """Without it the pictures of a converted Janus would be scored by rows of zeros."""
    (copy / "image_head.safetensors").write_bytes((copy / "model.safetensors").read_bytes())
    assert command("export", copy, "--out", tmp_path / "out") == 2
    assert "which no stock causal LM has; it is not exported" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---- pickles


class Bomb:
    def __reduce__(self):
        return (os.mkdir, (os.environ["BOMB"],))


@pytest.mark.sliced
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "image_tokenizer/model.safetensors",
                                  "audio_tokenizer/extra.pt"])  # fmt: skip
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_is_refused_by_name_and_never_opened(copy, tmp_path, monkeypatch, capsys, name, kind):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    if kind == "pickle":
        (copy / name).write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save({"weight": Bomb()}, copy / name)
    for words in (["export", copy, "--out", tmp_path / "out"], ["chat", "hello", "--model", copy],
                  ["push", copy, "me/model", "--dry-run"]):  # fmt: skip
        assert command(*words) == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("unimodal: ") and name in last and "is a pickle" in last
    with pytest.raises(ValueError, match="is a pickle"):
        load(copy, device="cpu")
    assert not (tmp_path / "exploded").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff" * 64, (10**9).to_bytes(8, "little") + b"{}"])
def test_what_is_not_safetensors_is_named(copy, data):
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        find_model(copy)


def test_code_in_a_folder_is_not_run(exported, tmp_path, monkeypatch):
    """Ours never, transformers' only when it is told to trust the folder."""
    from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer

    folder = tmp_path / "evil"
    shutil.copytree(exported, folder)
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    for name in ("modeling_unimodal.py", "processing_unimodal.py"):
        (folder / name).write_text("import os\nos.mkdir(os.environ['BOMB'])\n")
    load(folder, device="cpu").generate("a red apple", to="image")
    export_model(folder, tmp_path / "out")
    AutoModelForCausalLM.from_pretrained(folder)
    AutoTokenizer.from_pretrained(folder)
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    assert not (tmp_path / "exploded").exists()
