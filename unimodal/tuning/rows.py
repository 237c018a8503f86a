"""What new rows begin from: words, codebook vectors, and the rows of a model that was trained before.

Shapes: V rows, R new rows, F features of a row, D width.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from unimodal.coder.media_coder import MediaCoder
from unimodal.files import read_json
from unimodal.media.registry import MEDIA
from unimodal.model.initialisers import Donor
from unimodal.model.structured_rows import encode_levels
from unimodal.model_folder.layout import VOCABULARY_FILE
from unimodal.sequence.templates.own import Template
from unimodal.text.tokenizer import TextTokenizer
from unimodal.tokenizers import MediaTokenizer
from unimodal.tokenizers.parts.quantizers import list_levels
from unimodal.vocabulary import Block, Vocabulary, read_vocabulary

#: what each control means, in words that any base knows; its row begins at their mean
CONTROL_WORDS = {
    "<|image_start|>": " image:", "<|image_end|>": " end of image", "<|audio_start|>": " sound:",
    "<|audio_end|>": " end of sound", "<|video_start|>": " video:", "<|video_end|>": " end of video",
    "<|frame|>": " next frame", "<|bos|>": " start", "<|eos|>": " end", "<|system|>": " system:", "<|user|>": " user:",
    "<|assistant|>": " assistant:", "<|end_of_turn|>": "\n\n", "<|pad|>": " nothing",
}  # fmt: skip


def describe_controls(template: Template) -> dict[int, list[int]]:
    """The words that each control begins from: row of the control → text rows.

    A control whose words a tokenizer has no tokens for, such as line breaks, is left out.
    """
    words = dict(CONTROL_WORDS)
    for medium in MEDIA.values():
        words.setdefault(f"<|{medium.name}_start|>", f" {medium.noun}:")
        words.setdefault(f"<|{medium.name}_end|>", f" end of {medium.noun}")
    found = {control.id: template.text.encode(words[control.name]) for control in template.vocabulary.controls}
    return {row: ids for row, ids in found.items() if ids}


def read_row_words(path: Path, template: Template) -> dict[int, list[int]]:
    """The words that codes begin from, in a JSON file {block: [words of code 0, of code 1, …]}: row → text rows.

    Raises ValueError, in one line, for a file of another shape and for a block that does not fit the vocabulary.
    """
    listed = read_json(path)
    blocks = {block.label: block for block in template.vocabulary.blocks}
    found: dict[int, list[int]] = {}
    for name, words in listed.items():
        if name not in blocks:
            raise ValueError(f"{path} names the block {name!r}; the vocabulary has {', '.join(blocks) or 'none'}")
        if not isinstance(words, list) or len(words) != blocks[name].size or not all(isinstance(w, str) for w in words):
            raise ValueError(f"{path}: {name} needs a list of {blocks[name].size} texts, one for each code")
        found |= {blocks[name].start + code: template.text.encode(f" {text}") for code, text in enumerate(words)}
    return found


def collect_block_features(
    vocabulary: Vocabulary, media: MediaCoder | None, named: Collection[int] = ()
) -> dict[range, Tensor]:
    """Features of the codes of each block whose tokenizer has them: rows of the block → [R, F]; see `describe_codes`.

    Blocks of exemplars are left out. named: rows that begin from words; their blocks are left out too.
    """
    features: dict[range, Tensor] = {}
    for modality in vocabulary.media if media else ():
        assert media is not None
        tokenizer = media.get_tokenizer(modality)
        for block in vocabulary.blocks:
            if block.modality != modality or block.start in named or block.name in tokenizer.exemplar_blocks:
                continue
            described = describe_codes(tokenizer, block)
            if described is not None:
                features[block.rows] = described
    return features


def describe_codes(tokenizer: MediaTokenizer, block: Block) -> Tensor | None:
    """Features of each code of a block, float [size, F], or None if its tokenizer has none.

    The one-hot levels of a scalar quantizer's codes, or else their vectors in the codebook.
    """
    levels = tokenizer.code_levels.get(block.name)
    if levels is not None and block.group == 0:
        return encode_levels(list_levels(levels), levels)
    return tokenizer.code_features(block.name, block.group)


def collect_shared_features(vocabulary: Vocabulary, media: MediaCoder | None) -> dict[range, Tensor]:
    """`collect_block_features`, and the features of blocks of exemplars: rows of the block → [R, F]."""
    features = collect_block_features(vocabulary, media)
    for block in vocabulary.blocks:
        if media is not None and block.name in media.get_tokenizer(block.modality).exemplar_blocks:
            described = describe_codes(media.get_tokenizer(block.modality), block)
            if described is not None:
                features[block.rows] = described
    return features


def read_donor(folder: Path, template: Template) -> dict[str, Donor]:
    """A trained model of ours as donor of the rows of the same blocks and controls: side ("input", "output") → Donor.

    Its anchors are the text pieces that both text tokenizers have.
    """
    from safetensors.torch import load_file

    vocabulary, text = template.vocabulary, template.text
    theirs, their_text = read_vocabulary(folder / VOCABULARY_FILE), TextTokenizer.load(folder)
    state = load_file(folder / "model.safetensors")
    tables = {"input": state["model.embed_tokens.weight"], "output": state.get("lm_head.weight")}
    source = torch.full((vocabulary.size - vocabulary.text_size,), -1)
    for control in vocabulary.controls:
        if theirs.has_control(control.name):
            source[control.id - vocabulary.text_size] = theirs.get_control_id(control.name)
    blocks = {block.label: block for block in theirs.blocks}
    for block in vocabulary.blocks:
        same = blocks.get(block.label)
        if same is not None and same.size == block.size and same.sha256 == block.sha256:
            start = block.start - vocabulary.text_size
            source[start : start + block.size] = torch.arange(same.start, same.start + same.size)
    reserved = {*their_text.reserved_ids}
    anchors = []
    for row in range(their_text.size):
        piece = "" if row in reserved else their_text.decode([row])
        ids = text.encode(piece) if piece.strip() and "\ufffd" not in piece else []
        if len(ids) == 1:
            anchors.append((row, ids[0]))
    here = torch.tensor([row for row, _ in anchors])
    there = torch.tensor([row for _, row in anchors])
    donors = {}
    for side, table in tables.items():
        table = (tables["input"] if table is None else table).float()
        rows = table[source.clamp_min(0)].masked_fill((source < 0)[:, None], float("nan"))
        donors[side] = Donor(rows, table[here], there)
    return donors
