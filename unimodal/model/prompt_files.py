"""Soft prompts as files, in peft's formats.

    soft_prompt/adapter_config.json        peft's: PROMPT_TUNING, or PREFIX_TUNING for a prompt with states in layers
    soft_prompt/adapter_model.safetensors  `prompt_embeddings` [P, D], or keys and values [P, L * 2 * K * W]
    soft_prompt/states.safetensors         of the latter: `vectors` [P, D] and `states` [F, P, D]

`peft.PeftModel.from_pretrained(base, folder / "soft_prompt")` opens both, and a soft prompt that peft trained is read
here. Keys and values are those that the model makes of the states, with all that is trained in it. peft trains these
themselves, and there are no states for them; so a prefix of peft's is refused.

Shapes: P tokens of the prompt, D width, L layers, F of them that are given states, K key/value heads, W their width.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unimodal.files import describe_error, read_json, write_bytes_atomically
from unimodal.model.base_check import find_cache_name
from unimodal.model.prefix import PrefixPrompt
from unimodal.model.prompt_settings import PromptSettings
from unimodal.model.soft_prompt import SoftPrompt, attach_soft_prompt, detach_soft_prompt, find_soft_prompt
from unimodal.model.weight_files import PROMPT_FOLDER

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

CONFIG_FILE, WEIGHTS_FILE, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors", "prompt_embeddings"
STATES_FILE = "states.safetensors"
WEIGHTS_PATH = f"{PROMPT_FOLDER}/{WEIGHTS_FILE}"  # in a model folder
_AGAIN = "copy or download it again"


def save_soft_prompt(
    folder: Path, prompt: SoftPrompt, model: PreTrainedModel, base: str, dtype: torch.dtype = torch.float32
) -> None:
    """Write a prompt into `folder`/soft_prompt, in peft's format.

    model: that the prompt is on, or was taken off. base: the name of the model that it belongs on, for peft.
    """
    from safetensors.torch import save

    place = folder / PROMPT_FOLDER
    place.mkdir(parents=True, exist_ok=True)
    vectors = prompt.compute_vectors().detach().to("cpu", dtype).contiguous()
    made, written = vectors, _make_config("PROMPT_TUNING", prompt, model, base, int(vectors.shape[1]))
    if prompt.first_layer is not None:
        held = compute_keys_and_values(model, prompt)  # [P, L, 2, K, W]
        made = held.flatten(1).to("cpu", dtype).contiguous()
        written = _make_config("PREFIX_TUNING", prompt, model, base, held[0, 0, 0].numel(), held.shape[3])
        states = {"vectors": vectors, "states": prompt.compute_states().detach().to("cpu", dtype).contiguous()}
        begins = prompt.begins if isinstance(prompt, PrefixPrompt) else prompt.first_layer
        write_bytes_atomically(place / STATES_FILE, save(states, metadata={"format": "pt", "begins": str(begins)}))
    write_bytes_atomically(place / WEIGHTS_FILE, save({WEIGHTS_NAME: made}, metadata={"format": "pt"}))
    written.save_pretrained(place)


def _make_config(
    kind: str, prompt: SoftPrompt, model: PreTrainedModel, base: str, width: int, num_heads: int | None = None
) -> PeftConfig:
    """peft's config of a prompt, or of a prefix whose keys have so many heads of `width` in all."""
    from peft import PrefixTuningConfig, PromptTuningConfig

    text = model.config.get_text_config()
    make = PromptTuningConfig if kind == "PROMPT_TUNING" else PrefixTuningConfig
    return make(
        task_type="CAUSAL_LM",
        num_virtual_tokens=len(prompt),
        token_dim=width,
        num_transformer_submodules=1,
        num_attention_heads=num_heads or int(text.num_attention_heads),
        num_layers=int(text.num_hidden_layers),
        base_model_name_or_path=base,
        inference_mode=True,
    )


@torch.no_grad()
def compute_keys_and_values(model: PreTrainedModel, prompt: SoftPrompt) -> Tensor:
    """What each layer of the model keeps of a prompt, [P, L, 2, K, W]. prompt: the model's own, or one for it.

    Raises ValueError for a model whose layers keep something else, or not all of one size.
    """
    from transformers import DynamicCache

    if find_soft_prompt(model) is not prompt:
        attach_soft_prompt(model, prompt)
        try:
            return compute_keys_and_values(model, prompt)
        finally:
            detach_soft_prompt(model)
    decoder, cache, training = model.get_decoder(), DynamicCache(), model.training
    ids = torch.tensor([list(prompt.ids)], device=decoder.device)
    model.eval()
    try:
        decoder(input_ids=ids, use_cache=True, **{find_cache_name(decoder): cache})
    finally:
        model.train(training)
    held = [[layer.keys[0], layer.values[0]] for layer in cache.layers]  # [K, P, W] each
    if len({part.shape for pair in held for part in pair}) != 1:
        raise ValueError(
            f"the layers of {type(model).__name__} keep keys and values of several sizes, and peft's prefix has one"
        )
    return torch.stack([torch.stack(pair) for pair in held]).permute(3, 0, 1, 2, 4)


def read_soft_prompt(folder: Path, or_itself: bool = False) -> SoftPrompt:
    """The prompt in `folder`/soft_prompt, or_itself: or else in `folder`, as peft leaves one.

    Raises ValueError, in one line, for anything else.
    """
    place = folder / PROMPT_FOLDER if not or_itself or (folder / PROMPT_FOLDER).is_dir() else folder
    if not (place / CONFIG_FILE).is_file():
        raise ValueError(f"{folder} has no soft prompt: {PROMPT_FOLDER}/{CONFIG_FILE} is missing")
    kind = read_json(place / CONFIG_FILE).get("peft_type")
    if kind == "PREFIX_TUNING":
        return _read_prefix(place)
    if kind != "PROMPT_TUNING":
        raise ValueError(f"{place} is an adapter of the kind {kind}, not PROMPT_TUNING or PREFIX_TUNING")
    vectors = _read_table(place / WEIGHTS_FILE, WEIGHTS_NAME, 2)
    return SoftPrompt(vectors)


def _read_prefix(place: Path) -> PrefixPrompt:
    from safetensors import safe_open

    if not (place / STATES_FILE).is_file():
        raise ValueError(
            f"{place} is a prefix of keys and values without {STATES_FILE}, as peft trains one; train it here, by "
            "prompt.prefix"
        )
    vectors, states = _read_table(place / STATES_FILE, "vectors", 2), _read_table(place / STATES_FILE, "states", 3)
    with safe_open(place / STATES_FILE, framework="pt") as file:
        begins = (file.metadata() or {}).get("begins", "")
    if not begins.isdecimal() or vectors.shape != states.shape[1:]:
        raise ValueError(f"{place / STATES_FILE} is not whole; {_AGAIN}")
    return PrefixPrompt(vectors, states, int(begins))


def _read_table(path: Path, name: str, num_dims: int) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path).get(name)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({describe_error(error, 120)}); {_AGAIN}") from None
    if found is None or found.dim() != num_dims or not len(found):
        raise ValueError(f"{path} has no table {name}; {_AGAIN}")
    if not bool(found.isfinite().all()):
        raise ValueError(f"{path} has values that are no numbers; {_AGAIN}")
    return found


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
