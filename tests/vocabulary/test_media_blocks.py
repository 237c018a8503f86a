"""One rule from what tokenizers say of their codes to the blocks and spans of a vocabulary."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from unimodal.vocabulary import lay_out_media, make_media_vocabulary, read_vocabulary

CARDS = Path(__file__).resolve().parents[2] / "model_cards"


@dataclass
class Coding:
    """Plain declarations: a vocabulary needs no tokenizer."""

    modality: str
    segments: tuple[tuple[str, int | None], ...]
    sizes: dict[str, tuple[int, ...]]
    continues: str | None = None
    frame_marks: bool = False
    sha256: str = "abc"

    def group_sizes(self, block: str) -> tuple[int, ...]:
        return self.sizes[block]


PICTURE = Coding("image", (("what", 2), ("image", 6)), {"what": (9,), "image": (16,)})
SOUND = Coding("audio", (("audio", None),), {"audio": (32, 64)})
CLIP = Coding("video", (*PICTURE.segments, ("video", 4), ("video", 4)), {"video": (8,)}, "image", True)


def test_the_released_vocabulary_follows_from_its_tokenizers():
    from unimodal.tokenizers import load_tokenizer

    for model in ("nano", "smol"):
        folder = CARDS / model
        image = load_tokenizer(folder / "image_tokenizer")
        sound = load_tokenizer(folder / "audio_tokenizer")
        clip = load_tokenizer(folder / "video_tokenizer", image)
        released = read_vocabulary(folder / "vocabulary.json")
        text = json.loads((folder / "vocabulary.json").read_text())["text"]
        found = make_media_vocabulary([image, sound, clip], text["size"], text["reserved"], text["sha256"])
        assert found == released


def test_groups_are_blocks_and_marks_stand_where_they_are_declared():
    blocks, layouts = lay_out_media([PICTURE, SOUND, CLIP])
    assert [(b.label, b.modality, b.size) for b in blocks] == [
        ("what", "image", 9), ("image", "image", 16), ("audio", "audio", 32), ("audio.1", "audio", 64),
        ("video", "video", 8),
    ]  # fmt: skip
    image, audio, video = layouts
    assert [s.mark for s in image.segments] == [False, False]
    assert [(s.block, s.count, s.mark) for s in audio.segments] == [("audio", None, True)]
    assert [s.mark for s in video.segments] == [False, False, True, True]
    assert video.segments[:2] == image.segments
    other_order, _ = lay_out_media([CLIP, PICTURE])
    assert [b.label for b in other_order] == ["video", "what", "image"]


def test_every_span_comes_back():
    vocabulary = make_media_vocabulary([PICTURE, SOUND])
    assert vocabulary.text_reserved == (0,)
    codes = [[1, 2], [31, 63], [0, 0]]
    assert vocabulary.decode_span(vocabulary.encode_span("audio", codes))[1].tolist() == codes


@pytest.mark.parametrize(
    ("tokenizers", "said"),
    [
        ([SOUND, SOUND], "two tokenizers of audio"),
        ([CLIP], "continues that of image, which is not given"),
        ([PICTURE, Coding("video", (("video", 4),), {"video": (8,)}, "image")], "do not begin with those of image"),
        ([PICTURE, Coding("video", (("image", 6),), {"image": (16,)})], "two tokenizers have a block 'image'"),
    ],
)
def test_declarations_that_do_not_fit_are_one_line(tokenizers, said):
    with pytest.raises(ValueError, match=said):
        lay_out_media(tokenizers)
