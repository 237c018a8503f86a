"""How TiTok's authors name its weights and its settings (bytedance/1d-tokenizer, and One-D-Piece after it)."""

from __future__ import annotations

from collections.abc import Mapping

from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.key_map import KeyMap
from unimodal.tokenizers.text_settings import CLIP_TEXT

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


def read_titok_settings(fields: Mapping[str, object], latents: bool, text: bool) -> dict[str, object]:
    """Our settings from the authors' YAML or config.json. latents: of the variant with continuous tokens; text: of
    TA-TiTok, whose YAML need not say that it is. ValueError for a field that is missing or of another kind, naming it.
    """
    model = AuthorsFields(fields).open("model", "vq_model")
    if not model.has("num_latent_tokens"):
        raise ValueError("the config has no model.vq_model.num_latent_tokens; it is not one of TiTok's")
    kind = model.take_text("quantize_mode", "vq")
    if kind != ("vae" if latents else "vq"):
        what = "codes; load it with load" if latents else "continuous tokens; load it with load_latents"
        raise ValueError(f"model.vq_model.quantize_mode is {kind!r}: this checkpoint has {what}")
    legacy, proxy = model.take_flag("is_legacy", True), model.take_flag("finetune_decoder", True)
    if legacy and not proxy:
        raise ValueError(
            "finetune_decoder: False of a legacy TiTok is its first stage, whose decoder makes no pixels; "
            "name a checkpoint of its second stage"
        )
    if proxy and not legacy:
        raise ValueError("finetune_decoder: True goes with is_legacy: True; the decoder of this config makes pixels")
    patch = take_required(model, "vit_enc_patch_size")
    if patch != take_required(model, "vit_dec_patch_size"):
        raise ValueError("vit_enc_patch_size and vit_dec_patch_size differ; both sides have the same patches here")
    settings: dict[str, object] = {
        "image_size": take_required(AuthorsFields(fields).open("dataset", "preprocessing"), "crop_size"),
        "patch_size": patch,
        "num_tokens": take_required(model, "num_latent_tokens"),
        "token_width": take_required(model, "token_size"),
        "encoder": _read_size(model, "vit_enc_model_size"),
        "decoder": _read_size(model, "vit_dec_model_size"),
        "mixed": legacy,
    }
    if text:
        length, width = model.take_integer("text_context_length", 77), model.take_integer("text_embed_dim", 768)
        settings["text"] = {"length": length, "width": width, "network": CLIP_TEXT}
    if latents:
        return settings
    if proxy:
        settings["proxy"] = {}
    if not model.take_flag("strict_length_assertion", True):
        settings["prefixes"] = "uniform"
    return {
        **settings,
        "codebook_size": take_required(model, "codebook_size"),
        "normalize": model.take_flag("use_l2_norm", False),
        "commitment": model.take_number("commitment_cost", 0.25),
        "clustering": model.take_flag("clustering_vq", False),
    }


def take_required(fields: AuthorsFields, name: str) -> int:
    """A whole number from 1 on that has to be there. ValueError, naming it, otherwise."""
    number = fields.take_integer(name, 0)
    if number < 1:
        raise ValueError(f"the authors' config has no {fields.place}{name} where a whole number belongs")
    return number


def _read_size(model: AuthorsFields, name: str) -> dict[str, int]:
    size = model.take_text(name, "")
    if size not in SIZES:
        raise ValueError(f"the authors' config has {name} {size!r}; TiTok's sizes are {', '.join(SIZES)}")
    return dict(zip(("width", "num_layers", "num_heads"), SIZES[size], strict=True))
