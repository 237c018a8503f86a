"""What a published system is in figures: its codes, their bits, its parameters, and what proves it.

The network is built on the meta device, without storage.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from unimodal.tokenizers.configs.registry import PublishedSystem, build_tokenizer
from unimodal.tokenizers.interface import LatentTokenizer, MediaModule, MediaTokenizer

PARTS = "unimodal.tokenizers.parts."


@dataclass(frozen=True)
class SystemFacts:
    """modality, size: the medium, and what the published size takes. codes: how many of which. bits: of an item, or of
    a second of sound; None of latents. ratio: bits of the raw medium (8 a channel, 16 a sample) to these. parameters:
    of the whole network. parts: the files of `unimodal/tokenizers/parts` that it is made of. small: whether no source
    gives the published size, so that all this is of the small form."""

    modality: str
    size: str
    codes: str
    bits: float | None
    ratio: float | None
    parameters: int
    parts: tuple[str, ...]
    small: bool


def collect_facts(system: PublishedSystem) -> SystemFacts:
    """The facts of a system's published size, or of its small form where there is none."""
    small = system.tokenizer is None
    with torch.device("meta"):
        module = build_tokenizer(system.choose_settings(small))
    bits = count_bits(module) if isinstance(module, MediaTokenizer) else None
    raw = count_raw_bits(module)
    return SystemFacts(
        module.modality,
        describe_size(module),
        " + ".join(describe_codes(module)),
        bits,
        raw / bits if raw and bits else None,
        sum(parameter.numel() for parameter in module.parameters()),
        tuple(list_parts(module)),
        small,
    )


def describe_size(module: MediaModule) -> str:
    """`256×256`, `17 × 256×256`, `16,000 Hz`."""
    if module.sample_rate_hz is not None:
        return f"{module.sample_rate_hz:,} Hz"
    size = "any" if module.picture_size is None else "{1}×{0}".format(*module.picture_size)
    return f"{module.num_frames} × {size}" if module.num_frames else size


def describe_codes(module: MediaModule) -> Iterator[str]:
    """`256 of 16,384`, `256 × 2 of 512`; of latents `32 of 16 values`; a second's where an item has any number."""
    if isinstance(module, LatentTokenizer):
        yield f"{module.tokens_per_item or 'any number'} latents of {module.width}"
    if not isinstance(module, MediaTokenizer):
        return
    for (block, count), times in Counter(module.segments).items():
        sizes = module.group_sizes(block)
        number = "any number" if count is None else f"{count * times:,}"
        if count is None and module.tokens_per_second is not None:
            number = f"{module.tokens_per_second:g} a second"
        if len(set(sizes)) == 1:
            yield f"{number}{f' × {len(sizes)}' if len(sizes) > 1 else ''} of {sizes[0]:,}"
        else:
            yield f"{number} of {' and '.join(f'{size:,}' for size in sizes)}"


def describe_trained(module: MediaTokenizer | LatentTokenizer, system: str | None = None) -> str:
    """One line: what is trained, and what becomes of a file. system: its name, in place of the family's."""
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    if isinstance(module, LatentTokenizer):
        gives = f"latents of width {module.width}"
    else:
        counts, second = [count for _, count in module.segments], module.tokens_per_second
        known = [count for count in counts if count is not None]
        number = (
            f"{sum(known):,}" if known else f"{second:g} a second" if second is not None else "more the larger it is"
        )
        some = " or more" if 0 < len(known) < len(counts) else ""
        sizes = [f"{size:,}" for size in dict.fromkeys(module.block_sizes.values())]
        gives = f"codes ({number}{some}) of {' and '.join(sizes)} values"
        groups = len(module.codebook_sizes)
        gives += f", {groups} at each position" if groups > 1 else ""
    name = system or module.config.family
    return f"{name}: {module.modality}, {trained:,} trained parameters; a file becomes {gives}"


def count_bits(tokenizer: MediaTokenizer) -> float | None:
    """The bits of an item's codes, or of a second's; None where neither has a number."""
    if any(count is None for _, count in tokenizer.segments):
        if tokenizer.tokens_per_second is None:
            return None
        return tokenizer.tokens_per_second * sum(math.log2(size) for size in tokenizer.codebook_sizes)
    return sum(
        (count or 0) * sum(math.log2(size) for size in tokenizer.group_sizes(block))
        for block, count in tokenizer.segments
    )


def count_raw_bits(module: MediaModule) -> float | None:
    """Bits of the raw medium: three channels of 8 a pixel, one a pixel of a mask, 16 a sample for a second; None where
    no size is known."""
    if module.sample_rate_hz is not None:
        return 16.0 * module.sample_rate_hz
    if module.picture_size is None:
        return None
    return (
        (1.0 if module.modality == "mask" else 24.0)
        * module.picture_size[0]
        * module.picture_size[1]
        * (module.num_frames or 1)
    )


def list_parts(module: nn.Module) -> list[str]:
    """The files of `parts` whose classes a network has, `quantizers/vector`, sorted."""
    places = {type(part).__module__ for part in module.modules()}
    return sorted(place.removeprefix(PARTS).replace(".", "/") for place in places if place.startswith(PARTS))


def list_proofs(system: PublishedSystem) -> list[str]:
    """How a system was compared with its authors': reference files of their code, counts of parameters, a property."""
    counts = {count.mark for count in system.parameters}
    marks = {"C": "counted on the authors' class", "D": "derived", "P": "published"}
    proofs = [f"reference file {name}" for name in system.reference]
    proofs += [f"parameters {marks[mark]}" for mark in ("C", "D", "P") if mark in counts]
    return proofs + ([f"property: {system.property}"] if system.property else [])
