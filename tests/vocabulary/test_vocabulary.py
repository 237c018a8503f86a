"""Rows, spans and the manifest: every row round-trips, and what cannot be read back is refused."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.campaigns import examples
from unimodal.vocabulary import CONTROLS, Block, Segment, SpanLayout, Vocabulary, make_standard_layouts, read_vocabulary

IMAGE_HASH, AUDIO_HASH, VIDEO_HASH = "1" * 64, "2" * 64, "3" * 64


def build(text_size: int = 300, **kwargs) -> Vocabulary:
    blocks = [
        Block(name="image", modality="image", size=4096, sha256=IMAGE_HASH),
        Block(name="audio", modality="audio", size=1000, sha256=AUDIO_HASH),
        Block(name="video", modality="video", size=4096, sha256=VIDEO_HASH),
    ]
    return Vocabulary.build(text_size, blocks, **kwargs)


def grouped() -> Vocabulary:
    """Two groups for audio, of different sizes; a video in which a segment has any length and one has no mark."""
    blocks = [
        Block(name="image", modality="image", size=16),
        Block(name="audio", modality="audio", group=0, size=8),
        Block(name="audio", modality="audio", group=1, size=5),
        Block(name="video", modality="video", size=4),
    ]
    layouts = [
        SpanLayout("image", [Segment("image", 4)]),
        SpanLayout("audio", [Segment("audio")]),
        SpanLayout(
            "video", [Segment("video", 1), Segment("image", 3, mark=False), Segment("video"), Segment("image", 2)]
        ),
    ]
    return Vocabulary.build(10, blocks, layouts)


@pytest.mark.parametrize("vocabulary", [build(), grouped()], ids=["standard", "grouped"])
def test_every_row_belongs_to_exactly_one_thing(vocabulary):
    text = vocabulary.text_size
    assert [control.id for control in vocabulary.controls] == list(range(text, text + len(CONTROLS)))
    strings = set()
    next_row = text + len(CONTROLS)
    for block in vocabulary.blocks:
        assert vocabulary.get_block_range(block.name, block.group) == range(next_row, next_row + block.size)
        for code, row in enumerate(block.rows):
            assert vocabulary.find_block(row) is block and row - block.start == code
            strings.add(vocabulary.make_token_string(row))
        next_row = block.rows.stop
    assert next_row == vocabulary.size
    for control in vocabulary.controls:
        assert vocabulary.find_block(control.id) is None
        assert vocabulary.make_token_string(control.id) == control.name
        assert vocabulary.get_control_id(control.name) == vocabulary.get_control_id(control.name[2:-2]) == control.id
        strings.add(control.name)
    assert all(vocabulary.find_block(row) is None and vocabulary.is_text(row) for row in range(text))
    assert len(strings) == vocabulary.size - text
    assert set(vocabulary.list_token_strings()) == strings


def test_media_strings_have_one_width_per_block():
    vocabulary = build()
    assert vocabulary.make_token_string(vocabulary.get_block_range("image")[3]) == "<|image_0003|>"
    for block in vocabulary.blocks:
        assert {len(block.make_token_string(code)) for code in range(block.size)} == {len(f"<|{block.label}_0000|>")}
    wide = Vocabulary.build(5, [Block(name="image", modality="image", size=65_536)])
    first, last = wide.get_block_range("image")[0], wide.get_block_range("image")[-1]
    assert (wide.make_token_string(first), wide.make_token_string(last)) == ("<|image_00000|>", "<|image_65535|>")


def test_every_code_of_every_block_round_trips_through_a_span():
    vocabulary = build()
    for begin in range(0, 4096, 64):
        codes = np.arange(begin, begin + 64)
        modality, back = vocabulary.decode_span(vocabulary.encode_span("image", codes))
        assert modality == "image" and back.dtype == np.int64 and (back == codes).all()
        film = np.concatenate([codes, 4095 - codes, codes])
        modality, back = vocabulary.decode_span(vocabulary.encode_span("video", film))
        assert modality == "video" and (back == film).all()
    modality, back = vocabulary.decode_span(vocabulary.encode_span("audio", np.arange(1000)))
    assert modality == "audio" and (back == np.arange(1000)).all()


def test_spans_are_laid_out_as_documented():
    vocabulary = build()
    c = vocabulary.get_control_id
    image, video = vocabulary.get_block_range("image"), vocabulary.get_block_range("video")
    rows = vocabulary.encode_span("video", [7] * 64 + [8] * 64 + [9] * 64)
    expected = [c("video_start"), *[image[7]] * 64, c("frame"), *[video[8]] * 64]
    expected += [c("frame"), *[video[9]] * 64, c("video_end")]
    assert rows == expected and len(rows) == vocabulary.count_span_rows("video") == 196
    assert vocabulary.encode_span("image", torch.full((64,), 7))[1:-1] == [image[7]] * 64
    assert vocabulary.count_span_rows("audio") == 3 and vocabulary.count_span_rows("audio", 50) == 52


@examples(50)
@given(steps=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
def test_groups_and_free_segments_round_trip(steps, seed):
    vocabulary, rng = grouped(), np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, 8, steps), rng.integers(0, 5, steps)], axis=1)  # [N, 2]
    rows = vocabulary.encode_span("audio", codes)
    assert [vocabulary.find_block(row).group for row in rows[1:-1]] == [0, 1] * steps
    assert len(rows) == vocabulary.count_span_rows("audio", steps)
    modality, back = vocabulary.decode_span(rows)
    assert modality == "audio" and (back == codes).all()
    parts = [(4, 1), (16, 3), (4, steps), (16, 2)]
    film = np.concatenate([rng.integers(0, size, count) for size, count in parts])
    rows = vocabulary.encode_span("video", film)
    marks = [index for index, row in enumerate(rows) if row == vocabulary.get_control_id("frame")]
    assert marks == [5, 6 + steps] and len(rows) == vocabulary.count_span_rows("video", len(film))
    modality, back = vocabulary.decode_span(rows)
    assert modality == "video" and (back == film).all()


@pytest.mark.parametrize(
    ("modality", "codes", "message"),
    [
        ("image", [0] * 63, "63 codes; this model uses exactly 64"),
        ("image", [0] * 63 + [4096], "code 4096 is outside 0..4095"),
        ("image", [0] * 63 + [-1], "code -1 is outside"),
        ("audio", [], "0 codes; this model needs at least 1"),
        ("audio", [1000], "code 1000 is outside 0..999"),
        ("audio", [0.5], "must be integers"),
        ("audio", [[1, 2]], "expected [N, 1]"),
        ("smell", [1], "no 'smell' span; it has image, audio, video"),
    ],
)
def test_wrong_codes_are_refused_by_name(modality, codes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build().encode_span(modality, codes)


def test_only_whole_spans_are_decoded():
    vocabulary = build()
    good = vocabulary.encode_span("video", [1] * 192)
    swapped = good.copy()
    swapped[3] = vocabulary.get_block_range("video")[1]
    unmarked = good.copy()
    unmarked[65] = unmarked[64]
    for rows in ([], good[1:], good[:-1], good[:5] + good[6:], [*good, good[-1]], swapped, unmarked, [5, 6]):
        with pytest.raises(ValueError):
            vocabulary.decode_span(rows)


def test_manifest_round_trips(tmp_path):
    for vocabulary in (build(text_reserved=[3, 299], text_sha256="t" * 64), grouped()):
        vocabulary.save(tmp_path / "model" / "vocabulary.json")
        assert read_vocabulary(tmp_path / "model" / "vocabulary.json") == vocabulary
        assert [path.name for path in (tmp_path / "model").iterdir()] == ["vocabulary.json"]


def test_a_swapped_tokenizer_names_both_hashes(tmp_path):
    path = tmp_path / "vocabulary.json"
    build(text_sha256="4" * 64).save(path)
    same = {"image": IMAGE_HASH, "audio": AUDIO_HASH, "video": VIDEO_HASH, "text": "4" * 64}
    assert read_vocabulary(path, same) == build(text_sha256="4" * 64)
    for name, expected in same.items():
        with pytest.raises(ValueError) as error:
            read_vocabulary(path, {**same, name: "f" * 64})
        message = str(error.value)
        assert "f" * 64 in message and expected in message and name in message and "\n" not in message
    with pytest.raises(ValueError, match="no block named 'smell'"):
        read_vocabulary(path, {"smell": "0"})


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.update(format=99),
        lambda d: d.update(size=1),
        lambda d: d["blocks"][1].update(start=3),
        lambda d: d["blocks"][0].update(size=4097),
        lambda d: d["controls"][0].update(name="<|smell|>"),
        lambda d: d["controls"].pop(),
        lambda d: d["blocks"][0].update(colour="red"),
        lambda d: d.pop("layouts"),
        lambda d: d["layouts"][0]["segments"][0].update(block="smell"),
        lambda d: d["text"].update(size="many"),
    ],
)
def test_a_damaged_manifest_is_one_clear_line(tmp_path, damage):
    data = build().to_dict()
    damage(data)
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="vocabulary.json: ") as error:
        read_vocabulary(path)
    assert "\n" not in str(error.value)


def test_files_that_are_no_manifest(tmp_path):
    for content in (b"", b"[]", b"\x00\xff", b'{"format": 1', b"3"):
        (tmp_path / "vocabulary.json").write_bytes(content)
        with pytest.raises(ValueError, match="vocabulary.json"):
            read_vocabulary(tmp_path / "vocabulary.json")
    with pytest.raises(ValueError, match="no such file"):
        read_vocabulary(tmp_path / "missing.json")


def test_layouts_that_cannot_be_read_back_are_refused():
    image = Block(name="image", modality="image", size=8)
    two = [Block(name="audio", modality="audio", group=g, size=8) for g in (0, 1)]
    for blocks, layouts in [
        ([image], [SpanLayout("video", [Segment("image"), Segment("image")])]),
        ([image], [SpanLayout("video", [Segment("image"), Segment("image", 1, mark=False)])]),
        ([image], [SpanLayout("image", [])]),
        ([image], [SpanLayout("image", [Segment("image", 0)])]),
        ([image], [SpanLayout("image", [Segment("image", 1)])] * 2),
        ([image], [SpanLayout("text", [Segment("image", 1)])]),
        ([image, *two], [SpanLayout("video", [Segment("image", 1), Segment("audio", 1)])]),
        ([image, image], []),
        ([two[1]], []),
        ([Block(name="a|b", modality="image", size=8)], []),
        ([Block(name="text", modality="text", size=8)], []),
        ([Block(name="image", modality="image", size=2**16 + 1)], []),
    ]:
        with pytest.raises(ValueError):
            Vocabulary.build(5, blocks, layouts)


def test_text_ranges_are_cut_at_reserved_rows():
    vocabulary = build(10, text_reserved=[0, 4, 5, 9])
    assert vocabulary.text_ranges == (range(1, 4), range(6, 9))
    assert build(10).text_ranges == (range(10),)
    with pytest.raises(ValueError, match="reserved"):
        build(10, text_reserved=[10])


def test_media_without_a_block_have_no_span():
    blocks = [Block(name="image", modality="image", size=8), Block(name="audio", modality="audio", size=8)]
    assert Vocabulary.build(5, blocks).media == ("image", "audio")
    assert Vocabulary.build(5, []).media == ()
    assert [layout.modality for layout in make_standard_layouts()] == ["image", "audio", "video"]


def test_importing_the_vocabulary_stays_light():
    import subprocess
    import sys

    code = "import sys, unimodal.vocabulary; print([m for m in ('torch', 'transformers', 'av') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
