"""A model folder of ours, or an adapter on a base, as one stock Hugging Face folder.

    config.json generation_config.json model.safetensors | model-00001-of-…   the decoder, adapter and new rows merged
    tokenizer.json tokenizer_config.json chat_template.jinja                   as they were
    vocabulary.json processor_config.json image_tokenizer/ …                   as they were
    soft_prompt/                                                               a soft prompt, for peft and for us
    modeling_unimodal.py processing_unimodal.py                                for trust_remote_code=True only
    export.json                                                                what it was made from
    README.md, reports, samples, licences                                      as they were, where there are any

A converted Chameleon, Emu3 or Janus becomes the checkpoint of its own class again (`original.py`).

`AutoModelForCausalLM` and `AutoTokenizer` load it without any code of ours, and so does every server of that class: the
embedding table has exactly `config.vocab_size` rows and no token has a larger id. Nothing else is copied from the
source: no code, no pickle, no link that leads out of it.

A soft prompt is no weight of a stock class. It lies beside the model in peft's format, and a server that does not open
it runs the model without.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import yaml

from unimodal._version import __version__
from unimodal.export.new_folder import check_space, check_target, create_folder
from unimodal.export.original import write_original
from unimodal.export.remote_code import MODEL_MAP, PROCESSOR_CLASS, PROCESSOR_MAP, make_code_files
from unimodal.files import describe_error, is_hub_id, read_json, write_json
from unimodal.model.adapter import load_adapter, merge
from unimodal.model.adapter_files import BASE_FILE, is_adapter, read_adapter_record
from unimodal.model.base import load_base
from unimodal.model.continuous_media import CONTINUOUS_FILE
from unimodal.model.depth_decoder import DEPTH_FILE
from unimodal.model.fourier_head import FOURIER_FILE
from unimodal.model.image_head import HEAD_FILE
from unimodal.model.prompt_files import has_soft_prompt, read_soft_prompt, save_soft_prompt
from unimodal.model.soft_prompt import detach_soft_prompt
from unimodal.model.tokenformer import is_tokenformer
from unimodal.model.weight_files import PROMPT_FOLDER, check_weight_files, list_weight_files
from unimodal.model_folder.decoder import load_stock
from unimodal.model_folder.hashes import check_tokenizers
from unimodal.model_folder.layout import (
    CONFIG_FILE,
    GENERATION_FILE,
    INDEX,
    PROCESSOR_FILE,
    TEXT_FILES,
    VOCABULARY_FILE,
    list_special_ids,
    locate_tokenizer,
)
from unimodal.model_folder.settings import ProcessorConfig, read_processor
from unimodal.objectives.writing import SpanWriting
from unimodal.vocabulary import Vocabulary, read_vocabulary
from unimodal.vocabulary.adopted import AdoptedVocabulary

PRECISIONS = ("float32", "bfloat16", "float16")
if TYPE_CHECKING:
    from transformers import PreTrainedModel

EXPORT_FILE = "export.json"
#: what is copied besides: words, figures, samples and settings
COPIED = (
    ".md", ".txt", ".json", ".yaml", ".yml", ".png", ".jpg", ".jpeg", ".webp", ".gif", ".wav", ".flac", ".ogg", ".mp3",
    ".mp4", ".webm",
)  # fmt: skip
#: of the source's decoder or made anew
NOT_COPIED = (
    CONFIG_FILE, GENERATION_FILE, INDEX, PROCESSOR_FILE, EXPORT_FILE, BASE_FILE, "adapter_config.json", *TEXT_FILES,
    VOCABULARY_FILE,
)  # fmt: skip
_SIZE = re.compile(r"\d+(\.\d+)?\s?([KMGT]i?B)", re.IGNORECASE)


def export_model(
    source: Path,
    out: Path,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    force: bool = False,
    base: str | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> None:
    """Write the folder `out`, whole or not at all.

    dtype: of the weights, by default the stored one (float32 for a merged adapter). force: replace a model folder at
    `out`. base: where an adapter's base lies now, if it has moved.
    Raises ValueError, in one line and before anything is written, for a source that is incomplete or whose files do not
    belong together, and for an `out` that cannot be written.
    """
    if dtype is not None and dtype not in PRECISIONS:
        raise ValueError(f"precision {dtype!r} is unknown; choose {', '.join(PRECISIONS)}")
    if not _SIZE.fullmatch(max_shard_size) or not re.search("[1-9]", max_shard_size):
        raise ValueError(f"shard size {max_shard_size!r} is not a size; give one such as 5GB or 500MB")
    check_target(out, force)
    _check_apart(source, out)
    if is_tokenformer(source):
        raise ValueError(
            f"{source} is a TokenFormer, whose layers no stock causal LM has; it is not exported, nor to GGUF: use "
            "that folder as it is"
        )
    check_weight_files(list_weight_files(source))
    vocabulary = read_vocabulary(source / VOCABULARY_FILE)
    check_tokenizers(source, vocabulary)
    if (source / HEAD_FILE).is_file() and not isinstance(vocabulary, AdoptedVocabulary):
        raise ValueError(
            f"{source} scores pictures by a network of its own ({HEAD_FILE}), which no stock causal LM has; it is not "
            "exported: use or push that folder as it is"
        )
    if (source / CONTINUOUS_FILE).is_file():
        raise ValueError(
            f"{source} reads and writes vectors in place of codes ({CONTINUOUS_FILE}), which no stock causal LM does; "
            "it is not exported: use that folder as it is"
        )
    if (source / FOURIER_FILE).is_file():
        raise ValueError(
            f"{source} scores ordered codes by densities ({FOURIER_FILE}), which no stock causal LM has; it is not "
            "exported: use that folder as it is"
        )
    read = [layout.modality for layout in vocabulary.layouts if layout.features is not None]
    if read and not isinstance(vocabulary, AdoptedVocabulary):
        raise ValueError(
            f"{source} reads {read[0]}s through features of {read[0]}_reader, which no stock causal LM does; it is not "
            "exported: use that folder as it is, or export the model that the reader was made for"
        )
    _check_flat(source, vocabulary)
    check_writing(str(source), read_processor(source).writing)
    adapter = is_adapter(source)
    if base is not None and not adapter:
        raise ValueError(f"{source} is a whole model, it has no base; leave the base out")
    on_step("merging" if adapter else "reading")
    model = _merge_adapter(source, base) if adapter else load_stock(source, "auto")
    prompt = detach_soft_prompt(model) if adapter else read_soft_prompt(source) if has_soft_prompt(source) else None
    if isinstance(vocabulary, AdoptedVocabulary):
        if prompt is not None:
            raise ValueError(
                f"{source} has a soft prompt on a converted checkpoint, which its own class has no place for; use or "
                "push that folder as it is"
            )
        home = Path(base or read_adapter_record(source).base).expanduser() if adapter else source
        _check_apart(home, out)
        check_tokenizers(home, vocabulary)
        write_original(model, home, out, vocabulary, dtype, max_shard_size, force, on_step)
        return
    if dtype is not None:
        model.to(getattr(torch, dtype))
    check_rows(model, source / TEXT_FILES[0], vocabulary)
    files = dict(list_copied_files(source, vocabulary))
    num_bytes = sum(t.numel() * t.element_size() for t in model.parameters())  # tied tables count once
    check_space(out.parent, num_bytes + sum(path.stat().st_size for path in files.values()))
    on_step("writing")
    with create_folder(out, force) as new:
        for name, path in files.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, new / name)
        write_decoder(model, new, vocabulary, max_shard_size)
        if prompt is not None:
            save_soft_prompt(new, prompt, model, out.name)
        for name, text in make_code_files(type(model).__name__).items():
            (new / name).write_text(text, encoding="utf-8")
        _write_settings(
            source, new, vocabulary, int(model.config.max_position_embeddings), int(model.config.vocab_size)
        )
        write_json(new / EXPORT_FILE, _describe_descent(source, adapter, model))


def _check_flat(source: Path, vocabulary: Vocabulary) -> None:
    """Raises ValueError for a model with summed positions, of which a stock class holds only a part."""
    summed = [medium for medium in vocabulary.media if vocabulary.is_summed(medium)]
    if summed:
        raise ValueError(
            f"{source} reads and writes {' and '.join(summed)} with summed codes: a stock causal LM could hold its "
            f"layers and rows, but neither sums rows nor has the network that writes the codes ({DEPTH_FILE}); it is "
            f"not exported, nor to GGUF: use that folder as it is, or tune without summed={','.join(summed)}"
        )


def check_writing(name: str, writing: SpanWriting | None) -> None:
    """Raises ValueError for a model that writes media under a mask which no stock class has. name: of what is refused.

    One that learnt its codes token by token as well is exported; its `processor_config.json` still names the decoder.
    """
    if writing is not None and not writing.token_by_token:
        raise ValueError(
            f"{name}: a model that learnt its codes with {writing.objective} alone writes them by the decoder "
            f"{writing.decoder} under a mask of its own, and a stock class writes token by token, which it never "
            f"learnt; it is not exported, nor to GGUF: use that folder as it is, or {writing.remedy}"
        )


# ---- the decoder


def _merge_adapter(source: Path, base: str | None) -> PreTrainedModel:
    found = load_base(base) if base is not None else None
    model = merge(load_adapter(source, found)[0])
    return cast("PreTrainedModel", model.float().eval())


def check_rows(model: PreTrainedModel, tokenizer_file: Path, vocabulary: Vocabulary) -> None:
    """Raises ValueError unless tables, `config.vocab_size`, token ids and vocabulary agree.

    vLLM and llama.cpp need exactly `config.vocab_size` rows and no token beyond them. A token whose id is not its row
    in the vocabulary would be read as another code.
    """
    from tokenizers import Tokenizer

    rows = int(model.config.vocab_size)
    tables = {"embedding table": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    for name, table in tables.items():
        if table.weight.shape[0] != rows:
            raise ValueError(f"the {name} has {table.weight.shape[0]} rows but config.vocab_size is {rows}")
    if rows < vocabulary.size:
        raise ValueError(
            f"the decoder has {rows} rows but vocabulary.json {vocabulary.size}; they do not belong together"
        )
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise ValueError(f"{tokenizer_file} cannot be read ({error}); take it from the model again") from None
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= rows:
        raise ValueError(f"{tokenizer_file} has a token with id {largest}, but the decoder only {rows} rows")
    for row in range(vocabulary.text_size, vocabulary.size):
        found = tokenizer.token_to_id(vocabulary.make_token_string(row))
        if found not in (None, row):
            raise ValueError(f"{tokenizer_file}: {vocabulary.make_token_string(row)} is id {found}, not row {row}")


def write_decoder(model: PreTrainedModel, folder: Path, vocabulary: Vocabulary, max_shard_size: str) -> None:
    """Write config.json and the weights, in shards of at most `max_shard_size` ("5GB")."""
    from safetensors import SafetensorError
    from transformers.utils import logging

    config = model.config
    config.use_cache = True
    config.auto_map = dict(MODEL_MAP)
    for name, row in list_special_ids(vocabulary).items():
        setattr(config, name, row)
        setattr(model.generation_config, name, row)
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    except SafetensorError as error:
        raise ValueError(f"the weights cannot be written: {describe_error(error)}") from None


# ---- the other files


def list_copied_files(source: Path, vocabulary: Vocabulary) -> Iterator[tuple[str, Path]]:
    """(name in the export, file) of all files that are copied as they are. Raises ValueError for a missing one."""
    for name in (*TEXT_FILES, VOCABULARY_FILE):
        if not (source / name).is_file():
            raise ValueError(f"{source} is incomplete: {name} is missing; copy or download it again")
        yield name, source / name
    media = [locate_tokenizer(source, modality).name for modality in vocabulary.media]
    foreign = _find_foreign_folders(source, media)
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        top = name.split("/")[0]
        if not path.is_file() or top == PROMPT_FOLDER or any(part.startswith((".", "__")) for part in name.split("/")):
            continue
        weights = top in media and path.suffix == ".safetensors"
        wanted = weights or path.suffix.lower() in COPIED or path.name.upper() in ("LICENSE", "LICENCE", "NOTICE")
        if wanted and name not in NOT_COPIED and top not in foreign and not leads_out(path, source):
            yield name, path


def _find_foreign_folders(source: Path, media: list[str]) -> set[str]:
    """The names of tokenizer folders that the vocabulary does not use."""
    return {path.name for path in source.glob("*_tokenizer")} - set(media)


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a link points out of its folder. Links of the Hub's cache into its own blobs do not count."""
    real = path.resolve()
    places = [folder.resolve(), folder.absolute().parent.parent / "blobs"]
    return not any(real.is_relative_to(place) for place in places)


def list_suppressed_rows(vocabulary: Vocabulary, num_rows: int) -> list[int]:
    """The rows that no text answer of ours contains: all but plain text and the end of the turn.

    A stock engine does not know our grammar. With these rows suppressed it writes text only, no codes between words.
    """
    written = {row for rows in vocabulary.text_ranges for row in rows} | {vocabulary.get_control_id("<|end_of_turn|>")}
    return [row for row in range(num_rows) if row not in written]


def _write_settings(source: Path, new: Path, vocabulary: Vocabulary, max_positions: int, num_rows: int) -> None:
    path = source / GENERATION_FILE
    own = read_json(path).get("unimodal", {}) if path.is_file() else {}
    processor = read_processor(source)
    longest = _count_longest_answer(vocabulary, processor, max_positions)
    generation = {
        **list_special_ids(vocabulary),
        "max_new_tokens": longest,
        "suppress_tokens": list_suppressed_rows(vocabulary, num_rows),
        "unimodal": own,
    }
    write_json(new / GENERATION_FILE, generation)
    settings = processor.model_dump(mode="json")
    write_json(new / PROCESSOR_FILE, {**settings, "processor_class": PROCESSOR_CLASS, "auto_map": PROCESSOR_MAP})
    for path in (new / "recipe.yaml", new / "recipe.json"):
        if path.is_file():
            _cut_places(path)
    for path in new.glob(f"*_tokenizer/{CONFIG_FILE}"):
        if Path(str(read_json(path).get("origin") or "")).is_absolute():
            _cut_places(path)


def _count_longest_answer(vocabulary: Vocabulary, processor: ProcessorConfig, max_positions: int) -> int:
    """The most tokens that an answer may need: transformers' default of 256 would cut a large picture."""
    lengths = [256]
    for layout in vocabulary.layouts:
        steps = processor.max_codes.get(layout.modality)
        if layout.open_segment is not None and steps is None:
            return max_positions
        lengths.append(vocabulary.count_span_rows(layout.modality, steps) + 1)
    return max(lengths)


def _cut_places(path: Path) -> None:
    """Cut absolute paths in a recorded recipe to their last name, since an export may be published."""

    def cut(value: object) -> object:
        if isinstance(value, dict):
            return {key: cut(item) for key, item in value.items()}
        if isinstance(value, list):
            return [cut(item) for item in value]
        return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        write_json(path, cast("dict[str, object]", cut(json.loads(text))))
    else:
        path.write_text(yaml.safe_dump(cut(yaml.safe_load(text)), sort_keys=False, allow_unicode=True, width=120))


def _describe_descent(source: Path, adapter: bool, model: PreTrainedModel) -> dict[str, object]:
    """The content of export.json: format, precision, and the base, which is named by a hub id and never by a path."""
    record: dict[str, object] = {"format": 1, "unimodal": __version__, "dtype": str(model.dtype).removeprefix("torch.")}
    if adapter:
        base = read_adapter_record(source)
        if is_hub_id(base.base) and not Path(base.base).exists():
            record["base_model"] = base.base
        record |= {"base_model_relation": "finetune", "base_sha256": base.base_sha256}
    else:
        earlier = source / EXPORT_FILE
        kept = read_json(earlier) if earlier.is_file() else {}
        record |= {name: kept[name] for name in ("base_model", "base_model_relation", "base_sha256") if name in kept}
    return record


def _check_apart(source: Path, out: Path) -> None:
    first, second = source.resolve(), out.resolve()
    if first == second or first.is_relative_to(second) or second.is_relative_to(first):
        raise ValueError(f"{out} and the model {source} lie in each other; write to another folder")
