"""What three groups of authors call the weights of `parts/trunks/vqgan.py`.

- "llamagen" (LlamaGen, GigaTok): `conv_blocks.L.res.I`; both trunks count levels in the order in which they run.
- "taming" (taming-transformers, IBQ): `down.L.block.I` and `up.L.block.I`; level 0 is the finest in both.
- "magvit2" (Open-MAGVIT2, WeTok): as taming, with `mid_block.I`; a level's change of size has other names.
"""

from __future__ import annotations

from typing import Literal

from unimodal.tokenizers.parts.trunks.vqgan import ConvSettings

ConvNames = Literal["llamagen", "taming", "magvit2"]
Rules = tuple[tuple[str, str], ...]


def list_conv_rules(settings: ConvSettings, names: ConvNames) -> Rules:
    """The rules of a `KeyMap` for an `encoder` and a `decoder` of these settings."""
    double = "upsample.conv1" if settings.upsampling == "shuffle" else "upsample.conv"
    half = "downsample" if names == "magvit2" else "downsample.conv"
    if names == "llamagen":
        return (
            (r"(encoder|decoder)\.levels\.(\d+)\.blocks\.(.*)", r"\1.conv_blocks.\2.res.\3"),
            (r"(encoder|decoder)\.levels\.(\d+)\.attention\.(.*)", r"\1.conv_blocks.\2.attn.\3"),
            (r"encoder\.levels\.(\d+)\.resize\.(.*)", rf"encoder.conv_blocks.\1.{half}.\2"),
            (r"decoder\.levels\.(\d+)\.resize\.(.*)", rf"decoder.conv_blocks.\1.{double}.\2"),
            (r"decoder\.levels\.(\d+)\.adaptive\.(.*)", r"decoder.adaptive.\1.\2"),
            (r"(encoder|decoder)\.middle\.(.*)", r"\1.mid.\2"),
        )
    rules = [
        (r"encoder\.levels\.(\d+)\.blocks\.(.*)", r"encoder.down.\1.block.\2"),
        (r"encoder\.levels\.(\d+)\.attention\.(.*)", r"encoder.down.\1.attn.\2"),
        (r"encoder\.levels\.(\d+)\.resize\.(.*)", rf"encoder.down.\1.{half}.\2"),
    ]
    for level in range(len(settings.multipliers)):
        ours, theirs = rf"decoder\.levels\.{len(settings.multipliers) - 1 - level}\.", f"decoder.up.{level}."
        rules += [
            (ours + r"blocks\.(.*)", theirs + r"block.\1"),
            (ours + r"attention\.(.*)", theirs + r"attn.\1"),
            (ours + r"resize\.(.*)", theirs + double + r".\1"),
            (ours + r"adaptive\.(.*)", rf"decoder.adaptive.{level}.\1"),
        ]
    if names == "magvit2":
        return (*rules, (r"(encoder|decoder)\.middle\.(.*)", r"\1.mid_block.\2"))
    middle = ("block_1", "attn_1", "block_2") if settings.middle_attention else ("block_1", "block_2")
    for place, name in enumerate(middle):
        rules.append((rf"(encoder|decoder)\.middle\.{place}\.(.*)", rf"\1.mid.{name}.\2"))
    return tuple(rules)
