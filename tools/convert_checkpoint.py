"""Makes a unimodal model folder of a Chameleon, Emu3 or Janus checkpoint of transformers, or a folder of tokenizers.

    python tools/convert_checkpoint.py emu3 Emu3-community/Emu3-Gen-hf data/models/emu3 [--grid 90x90]
    python tools/convert_checkpoint.py chameleon facebook/chameleon-7b data/models/chameleon [--decoder vqgan.ckpt]
    python tools/convert_checkpoint.py janus deepseek-community/Janus-Pro-1B data/models/janus
    python tools/convert_checkpoint.py authors data/models/tokenizer data/models/released [--pickle]
    python tools/convert_checkpoint.py tokenizers data/media --image data/models/my_tokenizer \\
        --audio mimi=kyutai/mimi [--text HuggingFaceTB/SmolLM2-135M] [--set audio.num_codebooks=8]

A source is a folder or a hub id with safetensors. A model folder keeps the checkpoint's weights, ids, tokenizer files
and sequence format; `unimodal.pipeline.load` reads it. What each checkpoint gives:

- emu3: pictures of any shape read, pictures of `--grid` rows × columns of codes drawn. The decoder becomes a Llama.
- chameleon: pictures read, and drawn with the `decoder` of the original vqgan.ckpt. The decoder keeps its class. The
  image tokenizer's codebook is put in the order of the vocabulary's image rows.
- janus: pictures read, and drawn. The picture embeddings of drawing are worked out once and become rows of a stock
  Llama; the picture head is kept as `image_head.safetensors`, and what pictures are read with as `image_reader/`.

`tokenizers` makes what `--set media=FOLDER` of the fine-tuning recipes takes: media tokenizers, each from its folder or
from a checkpoint of a pretrained family or of a released system (`unimodal tokenizers list`), and the vocabulary of
their blocks. `--set MEDIUM.NAME=VALUE` is a setting of `pretrained.load`, such as `image.config=titok-l32`,
`image.pickle=true`, `image.torchscript=true`, `image.file=NAME`, `image.companion=FOLDER`. Pictures of another shape
are padded, or as `--fit` says. With `--text` the folder has text rows too, and `recipes/tokenize_dataset.py --set
model=FOLDER` reads it.

`authors` is the way back: a tokenizer of a published system, trained here, as a checkpoint under its authors' names;
`--as-janus` writes a LlamaGen VQ as the `JanusVQVAE` of transformers.

`unimodal export` makes a model folder the checkpoint of its class again; what it needs for that lies in `original/`.

The folder appears whole or not at all; one that exists and is not empty is left alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch
from safetensors.torch import save_file

from unimodal.config import apply_override
from unimodal.export.original import REST_FILE
from unimodal.files import join_lines
from unimodal.media.registry import MEDIA, load_plugins
from unimodal.model.image_head import ImageHead
from unimodal.model.weight_files import ORIGINAL
from unimodal.model_folder.layout import PROCESSOR_FILE, locate_reader, locate_tokenizer
from unimodal.model_folder.settings import MediumSettings, ProcessorConfig
from unimodal.model_folder.wording import Wording
from unimodal.sequence.document import Document, Image, Text, Turn
from unimodal.sequence.templates.open import open_template
from unimodal.text.tokenizer import TextTokenizer
from unimodal.tokenizers import (
    MediaTokenizer,
    find_continued_medium,
    hash_stored,
    is_tokenizer,
    load_tokenizer,
    pretrained,
)
from unimodal.tokenizers.interface import FitMode
from unimodal.tokenizers.pretrained.base import check_kind, list_checkpoint_weights, load_reference
from unimodal.tokenizers.pretrained.janus import JanusReader
from unimodal.tokenizers.pretrained.write_authors import write_authors_checkpoint, write_janus_checkpoint
from unimodal.vocabulary import Block, Control, Segment, SpanLayout, make_media_vocabulary, read_vocabulary
from unimodal.vocabulary.adopted import TEXT_FILES, AdoptedVocabulary
from unimodal.vocabulary.grid import GridMarks
from unimodal.vocabulary.layout import FeatureSpan

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

EMU3_SYSTEM = "You are a helpful assistant."
EMU3_CODE = re.compile(r"<\|visual token (\d+)\|>")
EMU3_AREA, EMU3_PIXELS = 720 * 720, 8  # of a picture that Emu3's processor asks for, and of the side of a code
JANUS_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
JANUS_REST = ("model.generation_embeddings.", "model.generation_aligner.")  # they become rows of the Llama
ASKED = Wording(questions={"image": "What is this?"})  # of a picture that comes without words


# ---- what the three have in common


class Source:
    """A checkpoint of transformers in a folder: its tokenizer and the rows of the tokens that have a meaning."""

    def __init__(self, folder: Path, kind: str, what: str) -> None:
        check_kind(folder, (kind,), what)
        list_checkpoint_weights(folder)
        if not (folder / "tokenizer.json").is_file():
            raise ValueError(f"{folder} has no tokenizer.json; take the whole checkpoint, in transformers' format")
        self.folder, self.what = folder, what
        from transformers import PreTrainedTokenizerFast

        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)

    def find_row(self, token: str | None) -> int:
        """The row of a special token. ValueError where the tokenizer has none."""
        found = None if token is None else self.tokenizer.get_vocab().get(token)
        if found is None:
            raise ValueError(f"{self.folder}: the tokenizer has no token {token}; it is not {self.what}'s")
        return int(found)

    def find_named_row(self, name: str, default: str) -> int:
        """The row of a token that the tokenizer names (`boi_token`, …), or of the one that the release has."""
        return self.find_row(getattr(self.tokenizer, name, None) or default)

    def make_block(self, rows: Mapping[int, int], sha256: str, num_codes: int) -> Block:
        """The image block. rows: code → row, in code order, or in any order where the codebook follows."""
        ordered = sorted(rows.values())
        if len(ordered) != num_codes or sorted(rows) != list(range(num_codes)):
            raise ValueError(f"{self.folder} names {len(rows)} image tokens, its image tokenizer has {num_codes} codes")
        if ordered != list(range(ordered[0], ordered[0] + num_codes)):
            raise ValueError(f"{self.folder}: the image tokens are not rows that follow each other")
        return Block(name="image", modality="image", start=ordered[0], size=num_codes, sha256=sha256)


def finish(
    new: Path,
    source: Source,
    template: str,
    num_rows: int,
    controls: Mapping[str, int],
    block: Block,
    layout: SpanLayout,
    processor: ProcessorConfig,
    sampling: Mapping[str, MediumSettings],
) -> None:
    """Everything but the decoder and the image tokenizer, which are there already."""
    (new / ORIGINAL).mkdir(exist_ok=True)
    for path in sorted(source.folder.iterdir()):
        if path.is_file() and path.suffix in (".json", ".jinja", ".txt") and not path.name.endswith(".index.json"):
            shutil.copyfile(path, (new if path.name in TEXT_FILES else new / ORIGINAL) / path.name)
    text = TextTokenizer.load(new, block.rows)
    reserved = {*text.reserved_ids, *range(text.size, num_rows), *(layout.grid.marks if layout.grid else ())}
    vocabulary = AdoptedVocabulary(
        num_rows, [Control(f"<|{name}|>", row) for name, row in controls.items()], [block], [layout],
        reserved, text.sha256,
    )  # fmt: skip
    vocabulary.save(new / "vocabulary.json")
    write_json(new / PROCESSOR_FILE, processor.model_dump(mode="json"))
    write_json(
        new / "generation_config.json",
        {
            "bos_token_id": controls["bos"],
            "eos_token_id": controls["end_of_turn"],
            "pad_token_id": controls["pad"],
            "unimodal": {name: settings.model_dump() for name, settings in sampling.items()},
        },
    )
    open_template(template, read_vocabulary(new / "vocabulary.json"), new)  # what was written can be read


def write_json(path: Path, data: Mapping[str, object]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_words(new: Path, source: Source, template: str, document: Document, to: str | None, expected: str) -> None:
    """ValueError unless our format and the checkpoint's own tokenizer write a sample prompt in the same rows."""
    ours = open_template(template, read_vocabulary(new / "vocabulary.json"), new)
    found = ours.render(document, add_generation_prompt=True, to=to).ids.tolist()
    wanted = source.tokenizer(expected, add_special_tokens=False)["input_ids"]
    if found != wanted:
        raise ValueError(
            f"{source.folder}: its tokenizer encodes text between special tokens in a way of its own "
            f"({wanted[:12]}… and not {found[:12]}…), which is not supported"
        )


def build_stock_llama(config: LlamaConfig, state: Mapping[str, torch.Tensor], num_rows: int) -> LlamaForCausalLM:
    """A `LlamaForCausalLM` with these weights, in their own precision."""
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "attention_bias", "mlp_bias",
        "head_dim", "bos_token_id", "eos_token_id", "pad_token_id",
    )  # fmt: skip
    settings = {name: getattr(config, name) for name in fields if getattr(config, name, None) is not None}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=num_rows, tie_word_embeddings=False, **settings))
    found = model.load_state_dict(dict(state), strict=False, assign=True)
    if found.missing_keys:
        raise ValueError(f"the checkpoint lacks the weights {', '.join(found.missing_keys[:3])}; take all of it")
    return model


def load_whole(name: str, folder: Path) -> PreTrainedModel:
    """A model of transformers with all its weights, in the precision that they are stored in."""
    import transformers

    return load_reference(getattr(transformers, name), folder, dtype="auto")


def save_decoder(model: PreTrainedModel, new: Path) -> None:
    model.config.use_cache = True
    model.save_pretrained(new, max_shard_size="1000GB")  # one file, as a model folder has it


def list_parts(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {f"model.{name.removeprefix(prefix)}": value for name, value in state.items() if name.startswith(prefix)}


# ---- Emu3


def convert_emu3(folder: Path, new: Path, grid: tuple[int, int] | None = None) -> None:
    source = Source(folder, "emu3", "Emu3")
    image = pretrained.load("emu3", folder, image_size=None)
    model = load_whole("Emu3ForConditionalGeneration", folder)
    config = model.config.text_config
    names = model.config.vocabulary_map or source.tokenizer.get_vocab()
    found = {int(match[1]): row for name, row in names.items() if (match := EMU3_CODE.fullmatch(name))}
    if grid is None:
        side = round(EMU3_AREA**0.5 / EMU3_PIXELS)
        grid = (side, side)
    text = TextTokenizer.load(folder, found.values())
    digits, times = [text.encode(str(digit)) for digit in range(10)], text.encode("*")
    sizes = [(1, 1), (9, 10), (11, 11), (64, 128), (90, 90), (100, 100), grid]
    spelled = [[row for sign in f"{h}*{w}" for row in (times if sign == "*" else digits[int(sign)])] for h, w in sizes]
    if any(text.encode(f"{h}*{w}") != rows for (h, w), rows in zip(sizes, spelled, strict=True)):
        raise ValueError(
            f"{folder}: the tokenizer does not write the size of a picture digit by digit; it is not Emu3's"
        )
    marks = GridMarks(
        digits=tuple(rows[0] for rows in digits),
        times=times[0],
        open=source.find_named_row("image_wrapper_token", "<|image token|>"),
        end_of_row=source.find_row("<|extra_200|>"),
        end_of_grid=source.find_named_row("eof_token", "<|extra_201|>"),
        grid=grid,
    )
    controls = {
        "image_start": source.find_named_row("boi_token", "<|image start|>"),
        "image_end": source.find_named_row("eoi_token", "<|image end|>"),
        "bos": source.find_named_row("bos_token", "<|extra_203|>"),
        "end_of_turn": source.find_named_row("eos_token", "<|extra_204|>"),
        "eos": source.find_named_row("eos_token", "<|extra_204|>"),
        "pad": source.find_named_row("pad_token", "<|endoftext|>"),
    }
    room = config.max_position_embeddings
    if marks.count_rows(grid) + 2 > room:
        raise ValueError(f"a picture of {grid[0]}x{grid[1]} codes does not fit Emu3's {room} positions; lower --grid")
    state = model.state_dict()
    weights = {**list_parts(state, "model.text_model."), "lm_head.weight": state["lm_head.weight"]}
    save_decoder(build_stock_llama(config, weights, config.vocab_size), new)
    image.save(locate_tokenizer(new, "image"))
    block = source.make_block(found, hash_stored(locate_tokenizer(new, "image")), image.codebook_sizes[0])
    if [found[code] for code in range(block.size)] != list(block.rows):
        raise ValueError(f"{folder}: the visual tokens are not in the order of their codes; it is not Emu3's")
    layout = SpanLayout("image", [Segment("image", grid[0] * grid[1])], marks)
    wording = Wording(questions={"image": "Please describe the image."})
    processor = ProcessorConfig(template="emu3", system=EMU3_SYSTEM, wording=wording)
    sampling = {"image": MediumSettings(top_k=2048, guidance=3.0)}
    finish(new, source, "emu3", config.vocab_size, controls, block, layout, processor, sampling)
    asked = Document([Turn("system", EMU3_SYSTEM), Turn("user", "What is 10 and 3?")])
    bos = source.tokenizer.bos_token
    check_words(
        new, source, "emu3", asked, None, f"{bos}{EMU3_SYSTEM} USER: What is 10 and 3? ASSISTANT:"
    )  # fmt: skip


# ---- Chameleon


def convert_chameleon(folder: Path, new: Path, decoder: Path | None = None) -> None:
    from transformers.models.chameleon.modeling_chameleon import ChameleonImageVocabularyMapping

    source = Source(folder, "chameleon", "Chameleon")
    image = pretrained.load("chameleon", folder, decoder=decoder)
    model = load_whole("ChameleonForConditionalGeneration", folder)
    config = model.config
    if not config.vocabulary_map:
        raise ValueError(f"{folder}/config.json has no vocabulary_map, which says what rows are image codes")
    found = {code: row for row, code in ChameleonImageVocabularyMapping(config.vocabulary_map).bpe2img.items()}
    block = source.make_block(found, "", image.codebook_sizes[0])
    code_of = {row: code for code, row in found.items()}
    order = torch.tensor([code_of[row] for row in block.rows])
    with torch.no_grad():  # code c of ours is the row start + c
        table = image.network.quantize.embedding.weight
        table.copy_(table[order].clone())
    image.save(locate_tokenizer(new, "image"))
    block = source.make_block(found, hash_stored(locate_tokenizer(new, "image")), block.size)
    controls = {
        "image_start": source.find_named_row("boi_token", "<racm3:break>"),
        "image_end": source.find_named_row("eoi_token", "<eoss>"),
        "assistant": source.find_named_row("sep_token", "<reserved08706>"),
        "bos": source.find_named_row("bos_token", "<s>"),
        "end_of_turn": source.find_named_row("eos_token", "</s>"),
        "eos": source.find_named_row("eos_token", "</s>"),
        "pad": source.find_named_row("pad_token", "<pad>"),
    }
    save_decoder(model, new)
    layout = SpanLayout("image", [Segment("image", image.tokens_per_item)])
    processor = ProcessorConfig(template="chameleon", wording=ASKED)
    sampling = {"image": MediumSettings(temperature=0.7, top_p=0.9, guidance=3.0)}
    finish(new, source, "chameleon", config.vocab_size, controls, block, layout, processor, sampling)
    bos, sep = source.tokenizer.bos_token, source.tokenizer.convert_ids_to_tokens(controls["assistant"])
    asked = Document([Turn("user", "What is 10 and 3?")])
    check_words(new, source, "chameleon", asked, None, f"{bos}What is 10 and 3?{sep}")


# ---- Janus


def convert_janus(folder: Path, new: Path) -> None:
    source = Source(folder, "janus", "Janus")
    image = pretrained.load("janus", folder)
    model = load_whole("JanusForConditionalGeneration", folder)
    config, inner = model.config.text_config, model.model
    if config.model_type != "llama":
        raise ValueError(f"{folder} is a Janus around {config.model_type!r}; only Llama is supported")
    state = model.state_dict()
    embeddings = state["model.language_model.embed_tokens.weight"]
    text_rows, num_codes = len(embeddings), image.codebook_sizes[0]
    with torch.no_grad():  # what the model is fed when it has drawn code c, once for all
        aligner = inner.generation_aligner.float()
        drawn = aligner(inner.generation_embeddings.weight.float()).to(embeddings.dtype)  # [codes, D]
    weights = list_parts(state, "model.language_model.")
    weights["model.embed_tokens.weight"] = torch.cat([embeddings, drawn])
    head = state["lm_head.weight"]
    weights["lm_head.weight"] = torch.cat([head, torch.zeros_like(drawn)])
    decoder = build_stock_llama(config, weights, text_rows + num_codes)
    gate = inner.generation_head
    activation = model.config.vq_config.hidden_act
    rest = {name: tensor for name, tensor in state.items() if name.startswith(JANUS_REST)}
    (new / ORIGINAL).mkdir()
    save_file(rest, new / ORIGINAL / REST_FILE, metadata={"format": "pt"})
    ImageHead(decoder.get_output_embeddings(), text_rows, gate.proj_out, activation, gate.vision_head).save(new)
    save_decoder(decoder, new)
    image.save(locate_tokenizer(new, "image"))
    sha256 = hash_stored(locate_tokenizer(new, "image"))
    block = Block(name="image", modality="image", start=text_rows, size=num_codes, sha256=sha256)
    controls = {
        "image_start": source.find_named_row("boi_token", "<begin_of_image>"),
        "image_end": source.find_named_row("eoi_token", "<end_of_image>"),
        "user": source.find_row("<|User|>"),
        "assistant": source.find_row("<|Assistant|>"),
        "bos": source.find_named_row("bos_token", "<｜begin▁of▁sentence｜>"),
        "end_of_turn": source.find_named_row("eos_token", "<｜end▁of▁sentence｜>"),
        "eos": source.find_named_row("eos_token", "<｜end▁of▁sentence｜>"),
        "pad": source.find_named_row("pad_token", "<｜▁pad▁｜>"),
    }
    reader = JanusReader.from_model(inner, folder)
    if reader.width != config.hidden_size:
        raise ValueError(f"{folder}: its picture features are {reader.width} wide, its decoder {config.hidden_size}")
    reader.save(locate_reader(new, "image"))
    placeholder = source.find_named_row("image_token", "<image_placeholder>")
    features = FeatureSpan(placeholder, reader.num_features, hash_stored(locate_reader(new, "image")))
    layout = SpanLayout("image", [Segment("image", image.tokens_per_item)], features=features)
    processor = ProcessorConfig(template="janus", system=JANUS_SYSTEM, wording=ASKED)
    sampling = {"image": MediumSettings(guidance=5.0)}
    finish(new, source, "janus", text_rows + num_codes, controls, block, layout, processor, sampling)
    question = [Image(codes=[0] * image.tokens_per_item), Text("What is 10 and 3?")]
    asked = Document([Turn("system", JANUS_SYSTEM), Turn("user", question)])
    name = source.tokenizer.convert_ids_to_tokens
    seen = [controls["image_start"], *[placeholder] * reader.num_features, controls["image_end"]]
    shown = f"<|User|>: {''.join(map(name, seen))}\nWhat is 10 and 3?"
    check_words(
        new, source, "janus", asked, None, f"{name(controls['bos'])}{JANUS_SYSTEM}\n\n{shown}\n\n<|Assistant|>:"
    )  # fmt: skip


# ---- tokenizers alone


def make_tokenizers(
    opened: Mapping[str, tuple[MediaTokenizer, Path | None]], new: Path, text: str | None, fit: FitMode
) -> None:
    """The tokenizers, the vocabulary of their blocks in that order, and the text rows of `text`.

    opened: medium → its tokenizer and, where it is saved already, its folder. fit: how a picture of another shape
    becomes one of the tokenizer's size.
    """
    tokenizers = [tokenizer for tokenizer, _ in opened.values()]
    for modality, (tokenizer, folder) in opened.items():
        if folder is None:
            tokenizer.save(locate_tokenizer(new, modality))
        else:
            shutil.copytree(folder, locate_tokenizer(new, modality))
    if text is None:
        make_media_vocabulary(tokenizers).save(new / "vocabulary.json")
    else:
        from unimodal.text.hub_tokenizer import save_hub_tokenizer

        words = TextTokenizer.load(pretrained.find(text))
        vocabulary = make_media_vocabulary(tokenizers, words.size, words.reserved_ids, words.sha256)
        vocabulary.save(new / "vocabulary.json")
        save_hub_tokenizer(new, vocabulary, words)
    write_json(new / PROCESSOR_FILE, ProcessorConfig(image_fit=fit).model_dump(mode="json"))


def open_tokenizer(
    modality: str,
    named: str,
    others: Mapping[str, tuple[MediaTokenizer, Path | None]],
    settings: Mapping[str, object],
) -> tuple[MediaTokenizer, Path | None]:
    """The tokenizer that `--image NAMED` means, and its folder: of a saved one, or None of a checkpoint family=source.

    others: those before it, of which it may continue one. settings: of `pretrained.load`. Raises ValueError for one of
    another medium, for one of latents, and for settings of a saved one.
    """
    family, equals, source = named.partition("=")
    if not equals and not is_tokenizer(Path(named)):
        raise ValueError(
            f"--{modality} {named!r}: name the folder of a tokenizer, or write family=source, such as mimi=kyutai/mimi"
        )
    if settings and not equals:
        raise ValueError(f"{named} is a saved tokenizer with its own settings; leave --set {modality}.… out")
    if equals:
        tokenizer = pretrained.load(family, source, **settings)
    else:
        begun = find_continued_medium(named)
        tokenizer = load_tokenizer(named, others[begun][0] if begun in others else None)
    if tokenizer.modality != modality:
        raise ValueError(f"{family if equals else named} is a tokenizer of {tokenizer.modality}, not of {modality}")
    return tokenizer, None if equals else Path(named)


def read_settings(overrides: Sequence[str], given: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """Medium → its settings, from `MEDIUM.NAME=VALUE`. ValueError for a medium whose tokenizer is not named."""
    found: dict[str, object] = {}
    for override in overrides:
        apply_override(found, override)
    settings: dict[str, dict[str, object]] = {}
    for medium, values in found.items():
        if medium not in given or not isinstance(values, dict):
            raise ValueError(f"--set {medium}: write MEDIUM.NAME=VALUE, where --MEDIUM is given, too")
        settings[medium] = values
    return settings


# ---- the command


def write_whole_or_nothing(out: Path, make: Callable[[Path], None]) -> None:
    """Calls `make(folder)` with a new folder beside `out`, which becomes `out` once it is finished."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty; name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        make(new)
        for path in new.rglob("*"):
            if path.is_file():
                path.chmod(0o644)  # safetensors' own files are for the owner alone
        if out.exists():
            out.rmdir()
        os.replace(new, out)


def find_grid(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise ValueError(f"--grid {text!r} is no grid; write rows x columns, such as 90x90")
    return GridMarks.check((int(match[1]), int(match[2])))


def run(options: argparse.Namespace) -> None:
    if options.kind == "tokenizers":
        given = {name: getattr(options, name) for name in MEDIA if getattr(options, name)}
        if not given:
            raise ValueError("name at least one tokenizer, such as --audio mimi=kyutai/mimi")
        settings = read_settings(options.overrides, given)
        opened: dict[str, tuple[MediaTokenizer, Path | None]] = {}
        for name, named in given.items():
            opened[name] = open_tokenizer(name, named, opened, settings.get(name, {}))
        write_whole_or_nothing(options.out, lambda new: make_tokenizers(opened, new, options.text, options.fit))
        return
    if options.kind == "authors":
        write = write_janus_checkpoint if options.as_janus else partial(write_authors_checkpoint, pickle=options.pickle)
        write_whole_or_nothing(options.out, lambda new: write(options.source, new))
        return
    own: dict[str, object] = {}
    if options.kind == "emu3" and options.grid:
        own["grid"] = find_grid(options.grid)
    if options.kind == "chameleon":
        own["decoder"] = options.decoder
    convert = {"emu3": convert_emu3, "chameleon": convert_chameleon, "janus": convert_janus}[options.kind]
    folder = pretrained.find(options.source)
    write_whole_or_nothing(options.out, lambda new: convert(folder, new, **own))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command line asks for, of every registered medium."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in ("emu3", "chameleon", "janus"):
        one = kinds.add_parser(kind)
        one.add_argument("source", help="a folder or a hub id")
        one.add_argument("out", type=Path)
        if kind == "emu3":
            one.add_argument("--grid", help="rows x columns of codes of a picture that is drawn; 90x90 by default")
        if kind == "chameleon":
            one.add_argument("--decoder", type=Path, help="the original vqgan.ckpt, to draw pictures")
    back = kinds.add_parser("authors")
    back.add_argument("source", type=Path, help="the folder of a tokenizer of a published system")
    back.add_argument("out", type=Path)
    back.add_argument("--pickle", action="store_true", help="a pickled file, as the authors released theirs")
    back.add_argument("--as-janus", action="store_true", help="of a LlamaGen VQ: transformers' JanusVQVAE")
    media = kinds.add_parser("tokenizers")
    media.add_argument("out", type=Path)
    for modality in MEDIA:
        media.add_argument(f"--{modality}", metavar="FOLDER", help="a saved tokenizer, or FAMILY=SOURCE")
    media.add_argument(
        "--set", action="append", default=[], metavar="MEDIUM.NAME=VALUE", dest="overrides",
        help="a setting of a checkpoint; may be repeated",
    )  # fmt: skip
    media.add_argument(
        "--fit", choices=get_args(FitMode), default="pad", help="how pictures of another shape get the tokenizer's size"
    )
    media.add_argument("--text", metavar="SOURCE", help="a folder or hub id with the tokenizer.json of text rows")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        load_plugins()
        options = parse_arguments(arguments)
        run(options)
    except (ValueError, OSError) as error:
        print(f"error: {join_lines(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    print(options.out)


if __name__ == "__main__":
    main()
