"""The way back: a tokenizer of a published system as a checkpoint under its authors' names.

model.safetensors         the weights, as the authors' code names them
config.json, config.yaml  the authors' settings, of families whose form is known (`write_authors_config`)
unimodal.json             our settings, by which `pretrained.load(NAME, FOLDER)` reads the folder again
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

from unimodal.files import write_json
from unimodal.tokenizers.parts.quantizers.vector import VectorQuantizer
from unimodal.tokenizers.pretrained.published import OWN_SETTINGS, PUBLISHED
from unimodal.tokenizers.registry import find_class
from unimodal.tokenizers.systems.base import SystemModule
from unimodal.tokenizers.systems.key_map import KeyMap, rename_to_authors
from unimodal.tokenizers.systems.vqgan import VqganTokenizer

WEIGHTS = "model.safetensors"
#: how a pickled file of authors is called → the dictionary within it that holds the weights
PICKLED_ROOTS = {".ckpt": "state_dict", ".pt": "model", ".pth": "model"}


def write_authors_checkpoint(folder: Path, out: Path, pickle: bool = False) -> str:
    """Writes the tokenizer in `folder` into the folder `out`; returns the name by which `pretrained.load` reads it.

    pickle: a pickled file as the authors released theirs, in place of safetensors; their own scripts read it. Raises
    ValueError for a tokenizer of a family without such names.
    """
    kind = find_class(folder)
    if not issubclass(kind, SystemModule):
        known = ", ".join(dict.fromkeys(row.family for row in PUBLISHED.values()))
        raise ValueError(f"{folder} is a {kind.__name__}, of no authors' checkpoint; these families are: {known}")
    tokenizer = kind.load(folder)
    names = [name for name, row in PUBLISHED.items() if row.family == tokenizer.config.family]
    if not names:
        raise ValueError(f"{folder}: nobody released weights of the family {tokenizer.config.family}; use it as it is")
    state = {name: tensor.detach().clone() for name, tensor in tokenizer.collect_authors_state().items()}
    out.mkdir(parents=True, exist_ok=True)
    if pickle:
        file, content = _shape_pickle(names[0], state)
        torch.save(content, out / file)
    else:
        save_file(state, out / WEIGHTS, metadata={"format": "pt"})
    fields = tokenizer.write_authors_config()
    if fields is not None:
        write_json(out / "config.json", fields)
    write_json(out / OWN_SETTINGS, tokenizer.config.model_dump(mode="json"))
    return names[0]


def _shape_pickle(name: str, state: dict[str, torch.Tensor]) -> tuple[str, dict[str, object]]:
    """The name of the released file, and the weights as they lie within it."""
    row = PUBLISHED[name]
    file = Path(row.file or "pytorch_model.bin")
    if file.suffix == ".safetensors":
        file = Path("pytorch_model.bin")
    content: dict[str, object] = {row.prefix + key: tensor for key, tensor in state.items()}
    root = PICKLED_ROOTS.get(file.suffix)
    nested = (root,) if root in row.roots else row.roots if root is not None else ()
    for inner in reversed(nested):
        content = {inner: content}
    return file.name, content


# ---- a class of transformers


def write_janus_checkpoint(folder: Path, out: Path) -> None:
    """Writes a LlamaGen VQ as the `JanusVQVAE` of transformers, with the same codes and pictures.

    Its codebook is written with vectors of length 1, since that class compares pictures with them as they are.
    Raises ValueError for another system, and for settings that the class does not have.
    """
    from transformers.models.janus.configuration_janus import JanusVQVAEConfig
    from transformers.models.janus.modeling_janus import JanusVQVAE

    kind = find_class(folder)
    if not issubclass(kind, VqganTokenizer):
        raise ValueError(f"{folder} is a {kind.__name__}; JanusVQVAE is a LlamaGen VQ")
    tokenizer = kind.load(folder)
    config, quantizer = tokenizer.config, tokenizer.quantizer
    if not isinstance(quantizer, VectorQuantizer) or not config.quantizer.get("normalize_codes"):
        raise ValueError(f"{folder}: JanusVQVAE has one codebook of vectors of length 1, as LlamaGen has")
    settings = JanusVQVAEConfig(
        embed_dim=quantizer.num_dims,
        num_embeddings=quantizer.codebook_sizes[0],
        latent_channels=config.latent_width,
        base_channels=config.width,
        channel_multiplier=list(config.multipliers),
        num_res_blocks=config.num_blocks,
        num_patches=config.image_size // config.factor,
    )
    state = {rename_to_authors(name, JANUS_NAMES): tensor for name, tensor in tokenizer.state_dict().items()}
    state["quantize.embedding.weight"] = normalize(state["quantize.embedding.weight"], dim=-1)
    if config.num_norm_groups != JANUS_NORM_GROUPS:
        raise ValueError(f"JanusVQVAE normalises in {JANUS_NORM_GROUPS} groups, {folder} in {config.num_norm_groups}")
    model = JanusVQVAE(settings)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"{folder} has settings that JanusVQVAE does not have: {reason}") from None
    model.save_pretrained(out)


JANUS_NORM_GROUPS = 32
#: our names → those of `JanusVQVAE`, whose trunks count levels in the order in which they run
JANUS_NAMES = KeyMap(
    rules=(
        (r"encoder\.levels\.(\d+)\.blocks\.(.*)", r"encoder.down.\1.block.\2"),
        (r"encoder\.levels\.(\d+)\.attention\.(.*)", r"encoder.down.\1.attn.\2"),
        (r"encoder\.levels\.(\d+)\.resize\.(.*)", r"encoder.down.\1.downsample.conv.\2"),
        (r"decoder\.levels\.(\d+)\.blocks\.(.*)", r"decoder.up.\1.block.\2"),
        (r"decoder\.levels\.(\d+)\.attention\.(.*)", r"decoder.up.\1.attn.\2"),
        (r"decoder\.levels\.(\d+)\.resize\.(.*)", r"decoder.up.\1.upsample.conv.\2"),
        (r"(encoder|decoder)\.middle\.0\.(.*)", r"\1.mid.block_1.\2"),
        (r"(encoder|decoder)\.middle\.1\.(.*)", r"\1.mid.attn_1.\2"),
        (r"(encoder|decoder)\.middle\.2\.(.*)", r"\1.mid.block_2.\2"),
        (r"quantizer\.codebook", "quantize.embedding.weight"),
    )
)
