"""Random vision-language models of transformers of a few thousand weights, and prompts with pictures for them."""

from dataclasses import dataclass

import torch
import transformers

PICTURE, CLIP, BEGIN, END, PAD = 90, 91, 92, 93, 0
TEXT = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.3, "pad_token_id": PAD,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def make_text(kind, **more):
    return {"model_type": kind, **TEXT, **more}


def make_config(name):
    """The config of a tiny model of a class."""
    ids = {"image_token_id": PICTURE, "pad_token_id": PAD, "tie_word_embeddings": False}
    if name in ("Qwen2VL", "Qwen2_5_VL"):
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
        vision = {"depth": 1, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_heads": 2}
        if name == "Qwen2VL":
            vision |= {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
        else:
            vision |= {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32, "window_size": 16,
                       "fullatt_block_indexes": [0]}  # fmt: skip
        text = {**TEXT, "num_hidden_layers": 3, "rope_parameters": rope}
        return getattr(transformers, f"{name}Config")(
            text_config=text, vision_config=vision, video_token_id=CLIP, vision_start_token_id=BEGIN,
            vision_end_token_id=END, **ids,
        )  # fmt: skip
    if name == "Llava":
        vision = {"model_type": "clip_vision_model", **SMALL, "image_size": 16, "patch_size": 4}
        return transformers.LlavaConfig(
            text_config=make_text("llama"), vision_config=vision, image_seq_length=16,
            vision_feature_select_strategy="default", **ids,
        )  # fmt: skip
    if name == "LlavaOnevision":
        vision = {"model_type": "siglip_vision_model", **SMALL, "image_size": 16, "patch_size": 4}
        return transformers.LlavaOnevisionConfig(
            text_config=make_text("qwen2"), vision_config=vision, video_token_id=CLIP,
            image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]], vision_feature_select_strategy="full", **ids,
        )  # fmt: skip
    if name == "InternVL":
        vision = {**SMALL, "image_size": [16, 16], "patch_size": [4, 4], "use_absolute_position_embeddings": True}
        return transformers.InternVLConfig(
            text_config=make_text("qwen2"), vision_config=vision, image_seq_length=4, downsample_ratio=0.5, **ids
        )
    assert name == "Gemma3"
    vision = {"model_type": "siglip_vision_model", **SMALL, "image_size": 16, "patch_size": 4}
    kinds = ["sliding_attention", "full_attention"]
    text = {**TEXT, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 12, "layer_types": kinds}
    return transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=16, boi_token_index=BEGIN, eoi_token_index=END,
        image_token_index=PICTURE, **ids,
    )  # fmt: skip


NAMES = ("Qwen2VL", "Qwen2_5_VL", "Llava", "LlavaOnevision", "InternVL", "Gemma3")


def make_model(name):
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(make_config(name)).eval()
    model.generation_config.eos_token_id = None
    return model


@dataclass
class Picture:
    """A picture, or with `frames` above 1 a clip, of one of two sizes."""

    seed: int
    wide: bool = False
    frames: int = 1


def count_tokens(name, picture):
    """How many tokens a medium takes in a prompt."""
    if name.startswith("Qwen"):
        return picture.frames * (6 if picture.wide else 4) if name == "Qwen2VL" else picture.frames * 4
    if name == "LlavaOnevision":
        return picture.frames * 4 + 1 if picture.frames > 1 else 16 + 4 * 16 + 8  # the whole, its crops, ends of lines
    return {"Llava": 16, "InternVL": 4, "Gemma3": 16}[name]


def make_inputs(name, rows):
    """The arguments of a forward: rows of ids and pictures, padded on the left."""
    draws, ids, media = torch.Generator().manual_seed(0), [], []
    for row in rows:
        tokens = []
        for part in row:
            if isinstance(part, Picture):
                kind = PICTURE if part.frames == 1 else CLIP
                tokens += [BEGIN, *[kind] * count_tokens(name, part), END]
                media.append(part)
            else:
                tokens.append(part)
        ids.append(tokens)
    longest = max(map(len, ids))
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in ids])
    given = {"input_ids": ids, "attention_mask": mask}
    pictures, clips = [p for p in media if p.frames == 1], [p for p in media if p.frames > 1]

    def draw(part, *shape):
        return torch.randn(*shape, generator=draws.manual_seed(part.seed))

    if name.startswith("Qwen"):
        given["mm_token_type_ids"] = (ids == PICTURE).long() + 2 * (ids == CLIP).long()
        for parts, pixels, medium in ((pictures, "pixel_values", "image"), (clips, "pixel_values_videos", "video")):
            if parts:
                grids = [(p.frames, 4, 6 if p.wide and name == "Qwen2VL" else 4) for p in parts]
                given[f"{medium}_grid_thw"] = torch.tensor(grids)
                patches = [draw(p, t * h * w, 3 * 2 * 16) for p, (t, h, w) in zip(parts, grids, strict=True)]
                given[pixels] = torch.cat(patches)
    elif name == "LlavaOnevision":
        if pictures:
            given["image_sizes"] = torch.tensor([[32, 32] for _ in pictures])
            given["pixel_values"] = torch.stack([draw(p, 5, 3, 16, 16) for p in pictures])
        if clips:
            given["pixel_values_videos"] = torch.stack([draw(p, p.frames, 3, 16, 16) for p in clips])
    elif pictures:
        given["pixel_values"] = torch.stack([draw(p, 3, 16, 16) for p in pictures])
        if name == "Gemma3":
            given["token_type_ids"] = (ids == PICTURE).long()
    return given
