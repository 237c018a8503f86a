"""How FlexTok's authors name its weights and settings (apple/ml-flextok).

A checkpoint is two dictionaries of modules whose names and order are in its own config, which the repository does not
hold. `enc_register_module` and `dec_nested_dropout` are named in its code; the others follow a description of the
released config by others and are an assumption, as are `separate_modulation` and the kinds of positions. The arguments
of the modules are those of its code.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from unimodal.tokenizers.parts.kl_vae import list_vae_rules
from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.key_map import KeyMap

_ENCODER, _DECODER = "encoder.module_dict.enc_", "decoder.module_dict.dec_"
KEY_MAP = KeyMap(
    rules=(
        (r"encoder\.patches\.project\.(.*)", _ENCODER + r"patch_emb.patch_proj.\1"),
        (r"encoder\.patches\.positions", _ENCODER + "posemb_module.posembs"),
        (r"encoder\.registers", _ENCODER + "register_module.registers"),
        (r"encoder\.blocks\.(.*)", _ENCODER + r"transformer.blocks.\1"),
        (r"encoder\.out\.(.*)", _ENCODER + r"to_latents.proj.\1"),
        (r"decoder\.tokens\.(.*)", _DECODER + r"from_latents.proj.\1"),
        (r"decoder\.token_positions", _DECODER + "registers_posemb_module.posembs"),
        (r"decoder\.dropped", _DECODER + "nested_dropout.dropout_mask_token"),
        (r"decoder\.null", _DECODER + "latent_dropout.nullcond"),
        (r"decoder\.patches\.project\.(.*)", _DECODER + r"noise_patch_emb.patch_proj.\1"),
        (r"decoder\.patches\.positions", _DECODER + "patches_posemb_module.posembs"),
        (r"decoder\.time\.first\.(.*)", _DECODER + r"time_embedder.mlp.0.\1"),
        (r"decoder\.time\.second\.(.*)", _DECODER + r"time_embedder.mlp.2.\1"),
        (r"decoder\.blocks\.(\d+)\.modulation\.layer\.(.*)", _DECODER + r"transformer.blocks.\1.adaLN_modulation.1.\2"),
        (r"decoder\.blocks\.(.*)", _DECODER + r"transformer.blocks.\1"),
        (r"decoder\.modulation\.layer\.(.*)", _DECODER + r"to_patches.adaLN_modulation.1.\1"),
        (r"decoder\.out\.(.*)", _DECODER + r"to_patches.proj.\1"),
        *list_vae_rules("vae", "vae.vae"),
    )
)
_VAE_ATTENTION = (".mid_block.attentions.0.to_", ".weight")


def reshape_attention(weights: Mapping[str, Tensor], square: bool) -> dict[str, Tensor]:
    """The weights; those of the VAE's attention as matrices [C, C] (theirs, `square`) or as 1×1 convolutions (ours)."""
    start, end = _VAE_ATTENTION
    shaped = dict(weights)
    for name, tensor in weights.items():
        if start in name and name.endswith(end):
            shaped[name] = tensor.flatten(1) if square else tensor.reshape(*tensor.shape[:2], 1, 1)
    return shaped


def read_flextok_settings(fields: Mapping[str, object]) -> dict[str, object]:
    """Our settings from a config of the authors' modules. ValueError for a config that is none of FlexTok's."""
    found = AuthorsFields(fields).open("config")
    encoder, decoder = found.open("encoder", "module_dict"), found.open("decoder", "module_dict")
    if not encoder.has("enc_transformer") or not decoder.has("dec_transformer"):
        raise ValueError("the config has no encoder.module_dict.enc_transformer; it is not one of FlexTok's")
    read, write = encoder.open("enc_transformer"), decoder.open("dec_transformer")
    patches, registers = encoder.open("enc_patch_emb"), encoder.open("enc_register_module")
    vae, grid = found.open("vae"), encoder.open("enc_posemb_module").take_integers("max_sizes", (16, 16))
    patch, channels = patches.take_integers("patch_sizes", (2, 2)), patches.take_integer("channels_in", 16)
    if len(set(patch)) != 1 or len(grid) != 2:
        raise ValueError(f"patch_sizes {patch} and max_sizes {grid} are not square patches of a picture")
    time = decoder.open("dec_time_embedder")
    settings: dict[str, object] = {
        "channels": channels,
        "patch_size": patch[0],
        "largest_grid": grid,
        "num_tokens": registers.take_integer("n_max", 256),
        "levels": found.open("regularizer").take_integers("levels", (8, 8, 8, 5, 5, 5)),
        "encoder": {"width": read.take_integer("dim", 768), "num_layers": read.take_integer("depth", 12)},
        "decoder": {"width": write.take_integer("dim", 768), "num_layers": write.take_integer("depth", 12)},
        "head_width": read.take_integer("head_dim", 64),
        "separate_modulation": write.take_integer("adaLN_expansion", 1) > 1,
        "num_waves": time.take_integer("frequency_embedding_size", 256),
        "max_time": time.take_number("max_timestep", 1000.0),
    }
    if found.has("vae"):
        settings["vae"] = {
            "channels": vae.take_integer("latent_channels", 16), "scale": vae.take_number("scaling_factor", 1.0)
        }  # fmt: skip
        return {**settings, "image_size": grid[0] * patch[0] * 8}
    return {**settings, "medium": "maps", "image_size": grid[0] * patch[0]}
