"""How TiTok's authors name its weights and its settings (bytedance/1d-tokenizer, and One-D-Piece after it)."""

from __future__ import annotations

from collections.abc import Mapping

from unimodal.tokenizers.systems.key_map import KeyMap

_BLOCK = r"(encoder|decoder)(?:\.resampler)?\.blocks\.(\d+)\."
KEY_MAP = KeyMap(
    rules=(
        (_BLOCK + r"norm_attention\.(.*)", r"\1.transformer.\2.ln_1.\3"),
        (_BLOCK + r"attention\.(.*)", r"\1.transformer.\2.attn.\3"),
        (_BLOCK + r"norm_mlp\.(.*)", r"\1.transformer.\2.ln_2.\3"),
        (_BLOCK + r"up\.(.*)", r"\1.transformer.\2.mlp.c_fc.\3"),
        (_BLOCK + r"down\.(.*)", r"\1.transformer.\2.mlp.c_proj.\3"),
        (r"(encoder|decoder)(?:\.resampler)?\.norm_in\.(.*)", r"\1.ln_pre.\2"),
        (r"(encoder|decoder)(?:\.resampler)?\.norm_out\.(.*)", r"\1.ln_post.\2"),
        (r"encoder\.embedding\.project\.(.*)", r"encoder.patch_embed.\1"),
        (r"encoder\.embedding\.class_token", "encoder.class_embedding"),
        (r"encoder\.embedding\.positions\.table", "encoder.positional_embedding"),
        (r"encoder\.resampler\.queries", "latent_tokens"),
        (r"encoder\.resampler\.positions", "encoder.latent_token_positional_embedding"),
        (r"encoder\.out\.(.*)", r"encoder.conv_out.\1"),
        (r"decoder\.embed\.(.*)", r"decoder.decoder_embed.\1"),
        (r"decoder\.class_token", "decoder.class_embedding"),
        (r"decoder\.positions\.table", "decoder.positional_embedding"),
        (r"decoder\.token_positions", "decoder.latent_token_positional_embedding"),
        (r"decoder\.text\.project\.(.*)", r"decoder.text_guidance_proj.\1"),
        (r"decoder\.text\.positions", "decoder.text_guidance_positional_embedding"),
        (r"head\.(?:project|widen)\.(.*)", r"decoder.ffn.0.\1"),
        (r"head\.choose\.(.*)", r"decoder.ffn.2.\1"),
        (r"head\.refine\.(.*)", r"decoder.conv_out.\1"),
        (r"quantizer\.codebook", "quantize.embedding.weight"),
        (r"code_usage", "quantize.embed_prob"),
        (r"proxy_codes", "pixel_quantize.embedding.weight"),
        (r"proxy_decoder\.(.*)", r"pixel_decoder.\1"),
    ),
    ignored=(r"quantize\.embed_prob",),
)
#: width, layers and heads by the authors' names of sizes
SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}


def read_settings(fields: Mapping[str, object], latents: bool, text: bool) -> dict[str, object]:
    """Our settings from the authors' YAML or config.json. latents: of the variant with continuous tokens; text: of
    TA-TiTok, whose YAML need not say that it is. ValueError for a field that is missing or of another kind, naming it.
    """
    model = _take_section(_take_section(fields, "model"), "vq_model", "model.")
    kind = model.get("quantize_mode", "vq")
    if kind != ("vae" if latents else "vq"):
        what = "codes" if latents else "continuous tokens; load it with load_latents"
        raise ValueError(f"model.vq_model.quantize_mode is {kind!r}: this checkpoint has {what}")
    legacy, proxy = bool(model.get("is_legacy", True)), bool(model.get("finetune_decoder", True))
    if legacy and not proxy:
        raise ValueError(
            "finetune_decoder: False of a legacy TiTok is its first stage, whose decoder makes no pixels; "
            "name a checkpoint of its second stage"
        )
    if not legacy and proxy:
        raise ValueError("finetune_decoder: True goes with is_legacy: True; this config has neither a proxy nor pixels")
    patch = _take_number(model, "vit_enc_patch_size")
    if patch != _take_number(model, "vit_dec_patch_size"):
        raise ValueError("vit_enc_patch_size and vit_dec_patch_size differ; TiTok's two sides have the same patches")
    sizes = {}
    for side, name in (("encoder", "vit_enc_model_size"), ("decoder", "vit_dec_model_size")):
        if model.get(name) not in SIZES:
            raise ValueError(f"{name} is {model.get(name)!r}; TiTok's sizes are {', '.join(SIZES)}")
        sizes[side] = dict(zip(("width", "num_layers", "num_heads"), SIZES[str(model[name])], strict=True))
    image = _take_number(_take_section(_take_section(fields, "dataset"), "preprocessing", "dataset."), "crop_size")
    settings: dict[str, object] = {
        "image_size": image, "patch_size": patch, "num_tokens": _take_number(model, "num_latent_tokens"),
        "token_width": _take_number(model, "token_size"), "mixed": legacy, **sizes,
    }  # fmt: skip
    if text:
        settings["text"] = {"length": model.get("text_context_length", 77), "width": model.get("text_embed_dim", 768)}
    if latents:
        return settings
    if proxy:
        settings["proxy"] = {}
    if "strict_length_assertion" in model:
        settings["prefixes"] = "none" if model["strict_length_assertion"] else "uniform"
    return {
        **settings,
        "codebook_size": _take_number(model, "codebook_size"),
        "normalize": bool(model.get("use_l2_norm", False)),
        "commitment": model.get("commitment_cost", 0.25),
        "clustering": bool(model.get("clustering_vq", False)),
    }


def _take_section(fields: Mapping[str, object], name: str, within: str = "") -> Mapping[str, object]:
    section = fields.get(name)
    if not isinstance(section, Mapping):
        raise ValueError(f"the config has no section {within}{name}; it is not one of TiTok's")
    return section


def _take_number(fields: Mapping[str, object], name: str) -> int:
    number = fields.get(name)
    if not isinstance(number, int):
        raise ValueError(f"the config's {name} is {number!r}; a whole number is needed")
    return number
