"""Soft prompts: trained vectors that stand before every document, while the base stays as it is.

Prompt tuning (arXiv 2104.08691): P vectors of the width of the decoder's inputs are read as the first P tokens of every
document, and they alone are trained, or they beside LoRA and new rows. They are inputs, so they are not scaled as rows
of a table that scales what it looks up (Gemma's), which is also how peft has them.

A prompt has ids of its own, negative ones, which no vocabulary, feature or padding has. `PromptedEmbedding` in the
place of the embedding table looks them up. So packing, caches, sessions, batches and decoders read a prompt as they
read any token: training puts `prompt.ids` before each document (`sequence/cutting.py`), the engine before each prompt.
An id that stands for nothing is out of every table's range, and fails there.

    soft_prompt/adapter_config.json        peft's, PROMPT_TUNING
    soft_prompt/adapter_model.safetensors  `prompt_embeddings` [P, D]

`peft.PeftModel.from_pretrained(base, folder / "soft_prompt")` opens it, and a prompt that peft trained is read here.

Shapes: B rows, N tokens, P tokens of the prompt, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from unimodal.config import Config
from unimodal.files import describe_error, read_json, write_bytes_atomically
from unimodal.model.feature_rows import FeatureRows
from unimodal.model.private_gradients import PrivacySettings, PrivateGradients
from unimodal.model.weight_files import PROMPT_FOLDER

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

CONFIG_FILE, WEIGHTS_FILE, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors", "prompt_embeddings"
WEIGHTS_PATH = f"{PROMPT_FOLDER}/{WEIGHTS_FILE}"  # in a model folder
FIRST_ID = -(1 << 32)  # of the ids of a prompt; far from -1 and -100, which mean nothing and no label
_AGAIN = "copy or download it again"


class ContextSettings(Config):
    """Examples to begin as. path: a dataset of any format that `corpus.datasets` takes."""

    path: Path
    format: str | None = None
    examples: int = Field(default=4, ge=1)  # the first of it
    epsilon: float = Field(default=0.1, gt=0)
    format_epsilon: float = Field(default=0.1, gt=0)


class PromptSettings(Config):
    """A soft prompt and what it begins as.

    One of `text`, `source` and `context`, or rows of the base's table.
    """

    length: int = Field(default=20, ge=1, le=4096)  # of a context: as many tokens as it has
    #: repeated or cut to `length`
    text: str | None = Field(default=None, min_length=1)
    #: a folder with a prompt of the same width: an adapter of ours, an export, or one that peft wrote
    source: Path | None = None
    #: examples, which stay near what they were (`context_prompt.py`)
    context: ContextSettings | None = None
    #: hide each document that it is tuned on (`private_gradients.py`)
    private: PrivacySettings | None = None

    @model_validator(mode="after")
    def _check_start(self) -> PromptSettings:
        given = [name for name in ("text", "source", "context") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"a prompt begins as one thing, and {' and '.join(given)} are given; leave one of them out"
            )
        if self.context is not None and "length" in self.model_fields_set:
            raise ValueError("a prompt of examples is as long as they are; leave length out")
        return self


class SoftPrompt(nn.Module):
    """The trained vectors [P, D] of a prompt, in float32."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(start.detach().float().clone())
        self.private: PrivateGradients | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def ids(self) -> range:
        """The ids that stand for the prompt."""
        return range(FIRST_ID, FIRST_ID + len(self))

    def compute_vectors(self) -> Tensor:
        """What is read in the place of the ids, [P, D]."""
        return self.vectors


class PromptedEmbedding(nn.Module):
    """An embedding table, and before it the ids of a prompt: ids [B, N] → [B, N, D]."""

    def __init__(self, base: nn.Module, prompt: SoftPrompt) -> None:
        super().__init__()
        self.base, self.prompt = base, prompt

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def num_embeddings(self) -> int:
        return int(self.base.num_embeddings)

    def forward(self, ids: Tensor) -> Tensor:
        prompted = ids < 0
        x = self.base(ids.masked_fill(prompted, 0))
        places = (ids - FIRST_ID).clamp(0, len(self.prompt) - 1)
        vectors = self.prompt.compute_vectors()[places]  # [B, N, D]
        if self.prompt.private is not None and vectors.requires_grad:
            self.prompt.private.watch(vectors, prompted, ids == FIRST_ID)
        return torch.where(prompted[..., None], vectors.to(x.dtype), x)


def find_soft_prompt(model: PreTrainedModel) -> SoftPrompt | None:
    """The soft prompt of a model; None where it has none."""
    table = model.get_input_embeddings()
    while isinstance(table, FeatureRows):
        table = table.base
    return table.prompt if isinstance(table, PromptedEmbedding) else None


@contextmanager
def use_prompt(model: PreTrainedModel, prompt: SoftPrompt) -> Iterator[None]:
    """Read another prompt in the place of the model's own while the context is open; for one thread at a time."""
    table = model.get_input_embeddings()
    while isinstance(table, FeatureRows):
        table = table.base
    assert isinstance(table, PromptedEmbedding)
    own, table.prompt = table.prompt, prompt
    try:
        yield
    finally:
        table.prompt = own


def list_prompt_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """The ids that every document of this model begins with; none for a model without a soft prompt."""
    prompt = find_soft_prompt(model)
    return () if prompt is None else tuple(prompt.ids)


def attach_soft_prompt(model: PreTrainedModel, prompt: SoftPrompt) -> SoftPrompt:
    """Put a trainable prompt on a model, in place. Call it after the last change of the model's rows.

    Raises ValueError for a model that has one, for another width, and for a prompt that fills all positions.
    """
    table = model.get_input_embeddings()
    if find_soft_prompt(model) is not None:
        raise ValueError("this model already has a soft prompt")
    width, most = int(prompt.vectors.shape[1]), int(model.config.max_position_embeddings)
    if prompt.vectors.dim() != 2 or width != find_width(model):
        raise ValueError(f"the soft prompt has vectors of width {width}, but the base reads {find_width(model)}")
    if len(prompt) + 2 > most:
        raise ValueError(f"a soft prompt of {len(prompt)} tokens leaves no room in the base's {most} positions")
    model.set_input_embeddings(PromptedEmbedding(table, prompt.to(_find_plain_table(model).weight.device)))
    return prompt


def detach_soft_prompt(model: PreTrainedModel) -> SoftPrompt | None:
    """Take the prompt off a model, in place, and return it; None where it has none."""
    table = model.get_input_embeddings()
    if not isinstance(table, PromptedEmbedding):
        return None
    model.set_input_embeddings(table.base)
    return table.prompt


def find_width(model: PreTrainedModel) -> int:
    """The width D of what the decoder reads."""
    return int(_find_plain_table(model).weight.shape[1])


def _find_plain_table(model: PreTrainedModel) -> nn.Embedding:
    table = model.get_input_embeddings()
    while not isinstance(table, nn.Embedding):
        table = table.base
    return table


@torch.no_grad()
def draw_prompt(model: PreTrainedModel, length: int, words: Sequence[int] = (), seed: int = 0) -> SoftPrompt:
    """A prompt of `length` tokens that begins as what the model reads for these words, or for rows drawn at random.

    words: rows of the vocabulary, repeated or cut to the length, as peft does.
    """
    table = model.get_input_embeddings()
    if words:
        rows = [words[place % len(words)] for place in range(length)]
    else:
        num = _find_plain_table(model).num_embeddings
        rows = torch.randint(0, num, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return SoftPrompt(table(torch.tensor([rows], device=next(model.parameters()).device))[0])


def save_soft_prompt(
    folder: Path, prompt: SoftPrompt, config: PreTrainedConfig, base: str, dtype: torch.dtype = torch.float32
) -> None:
    """Write a prompt into `folder`/soft_prompt, in peft's format.

    config, base: the config and the name of the model that it belongs on.
    """
    from peft import PromptTuningConfig
    from safetensors.torch import save

    place = folder / PROMPT_FOLDER
    place.mkdir(parents=True, exist_ok=True)
    vectors = prompt.compute_vectors().detach().to("cpu", dtype).contiguous()
    write_bytes_atomically(place / WEIGHTS_FILE, save({WEIGHTS_NAME: vectors}, metadata={"format": "pt"}))
    text = config.get_text_config()
    PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=len(prompt),
        token_dim=int(vectors.shape[1]),
        num_transformer_submodules=1,
        num_attention_heads=int(text.num_attention_heads),
        num_layers=int(text.num_hidden_layers),
        base_model_name_or_path=base,
        inference_mode=True,
    ).save_pretrained(place)


def read_soft_prompt(folder: Path, or_itself: bool = False) -> SoftPrompt:
    """The prompt in `folder`/soft_prompt, or_itself: or else in `folder`, as peft leaves one.

    Raises ValueError, in one line, for anything else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    place = folder / PROMPT_FOLDER if not or_itself or (folder / PROMPT_FOLDER).is_dir() else folder
    if not (place / CONFIG_FILE).is_file():
        raise ValueError(f"{folder} has no soft prompt: {PROMPT_FOLDER}/{CONFIG_FILE} is missing")
    kind = read_json(place / CONFIG_FILE).get("peft_type")
    if kind != "PROMPT_TUNING":
        raise ValueError(f"{place} is an adapter of the kind {kind}, not PROMPT_TUNING")
    try:
        vectors = load_file(place / WEIGHTS_FILE).get(WEIGHTS_NAME)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{place / WEIGHTS_FILE} cannot be read ({describe_error(error, 120)}); {_AGAIN}") from None
    if vectors is None or vectors.dim() != 2 or not len(vectors):
        raise ValueError(f"{place / WEIGHTS_FILE} has no table {WEIGHTS_NAME}; {_AGAIN}")
    if not bool(vectors.isfinite().all()):
        raise ValueError(f"{place / WEIGHTS_FILE} has values that are no numbers; {_AGAIN}")
    return SoftPrompt(vectors)


def has_soft_prompt(folder: Path) -> bool:
    """Whether a model's folder holds a soft prompt."""
    return (folder / PROMPT_FOLDER / CONFIG_FILE).is_file()


def list_prompt_files(prompt: PromptSettings | None, base: str) -> dict[str, Path | None]:
    """The files that a prompt begins as, by name, for the identity of a run. base: its folder or hub id."""
    if has_soft_prompt(Path(base)):
        return {"prompt of the base": Path(base) / PROMPT_FOLDER / WEIGHTS_FILE}
    if prompt is None or prompt.source is None:
        return {"prompt.context": prompt.context.path} if prompt is not None and prompt.context is not None else {}
    place = prompt.source / PROMPT_FOLDER if (prompt.source / PROMPT_FOLDER).is_dir() else prompt.source
    return {"prompt.source": place / WEIGHTS_FILE}
