"""Sources make the documents they promise: right codes with right words, splits kept apart, the same every time."""

import json
from collections import Counter

import numpy as np
import pytest

from unimodal.data.encoded_media import (
    EncodedConcepts,
    EncodedSpeech,
    load_clips,
    load_pictures,
    load_speech,
    make_code_point_key,
)
from unimodal.data.mixture import Batches, Mixture
from unimodal.data.sources import MediaToName, NameToMedia, SpeechToText, TextToSpeech, add_article, plan_draws
from unimodal.data.token_shards import write_token_shards
from unimodal.sequence.document import Document, Video
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

STYLES = ("noto", "fluent3d", "twemoji")
LABELS = ["red apple", "grinning face", "Santa Claus", "dog", "cat", "owl", "elephant", "bus"]


@pytest.fixture
def prepared(tmp_path):
    """Eight concepts in three styles, the last two held out; five clips; four utterances in two splits."""
    concepts = []
    for number, label in enumerate(LABELS):
        group = "animals" if number in (3, 4, 5, 6) else "things"
        split = "heldout" if number >= 6 else "train"
        entry = {"id": number, "key": f"1f{number:03}", "family": f"1f{number:03}", "label": label}
        concepts.append({**entry, "tags": ["word", f"tag{number}"], "group": group, "split": split})
    (tmp_path / "concepts.json").write_text(json.dumps(concepts))
    concept = np.repeat(np.arange(8, dtype=np.int32), 3)
    pixels = np.zeros((24, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "images.npz", pixels=pixels, concept=concept, style=np.array(STYLES * 8))
    clip_concept = np.array([7, 1, 3, 5, 6], np.int32)
    np.savez(tmp_path / "clips.npz", frames=np.zeros((5, 9, 4, 4, 3), np.uint8), concept=clip_concept)
    utterances = [
        {"id": row, "text": text, "voice": voice, "split": split, "start": 0, "num_samples": 1}
        for row, (text, voice, split) in enumerate(
            [
                ("hello there", "slt", "train"),
                ("one two", "joe", "train"),
                ("not seen", "slt", "test"),
                ("long one", "slt", "train"),
            ]
        )
    ]
    (tmp_path / "utterances.json").write_text(json.dumps(utterances))
    offsets = np.array([0, 3, 5, 9, 29])
    np.savez(tmp_path / "codes.npz", codes=np.arange(29, dtype=np.int16), offsets=offsets)
    return tmp_path


def picture_codes(views: int = 3) -> np.ndarray:
    """Codes int16 [24, V, 6] that tell the picture and the view."""
    return (np.arange(24)[:, None, None] * 10 + np.arange(views)[None, :, None] + np.zeros(6, int)).astype(np.int16)


def words(document: Document, role: str) -> str:
    return " ".join(turn.text for turn in document.turns if turn.role == role)


def media_of(document: Document, role: str) -> list:
    return [part for turn in document.turns if turn.role == role for part in turn.parts if hasattr(part, "codes")]


def test_picture_to_name_asks_about_the_picture_and_answers_with_its_words(prepared):
    pictures = load_pictures(prepared, picture_codes())
    assert len(pictures) == 12  # six training concepts in two training styles
    source = MediaToName(pictures)
    answers, questions, views = Counter(), set(), set()
    for item in range(len(source)):
        for draw in range(30):
            document = source.make_document(item, draw)
            (picture,) = media_of(document, "user")
            number, view = divmod(int(picture.codes[0]), 10)
            assert (picture.codes == picture.codes[0]).all() and view == draw % 3
            concept, style = divmod(number, 3)
            assert (
                concept == pictures.get_concept(item).id < 6 and STYLES[style] == pictures.get_style(item) != "twemoji"
            )
            answer = words(document, "assistant")
            assert answer == LABELS[concept] or set(answer.split(", ")) <= {"word", f"tag{concept}"}
            assert not media_of(document, "assistant")
            answers[answer == LABELS[concept]] += 1
            questions.add(words(document, "user"))
            views.add(view)
    assert 0.1 < answers[False] / answers.total() < 0.3  # tag_share
    assert len(questions) > 15 and views == {0, 1, 2}


def test_text_to_picture_answers_with_the_first_view_of_what_was_asked(prepared):
    pictures = load_pictures(prepared, picture_codes())
    source = NameToMedia(pictures)
    with_style = 0
    for item in range(len(source)):
        for draw in range(20):
            document = source.make_document(item, draw)
            (picture,) = media_of(document, "assistant")
            concept = pictures.get_concept(item)
            assert int(picture.codes[0]) % 10 == 0 and int(picture.codes[0]) // 30 == concept.id
            wish = words(document, "user").lower()
            assert concept.label.lower() in wish or "word" in wish or f"tag{concept.id}" in wish
            own, other = ("noto", " 3d") if pictures.get_style(item) == "noto" else (" 3d", "noto")
            assert other not in wish
            with_style += own in wish
            assert not media_of(document, "user") and "{" not in wish
    assert 0.35 < with_style / (20 * len(source)) < 0.65
    views = {int(media_of(NameToMedia(pictures, target_views=2).make_document(0, draw), "assistant")[0].codes[0]) % 10
             for draw in range(6)}  # fmt: skip
    assert views == {0, 1}


def test_held_out_concepts_and_the_evaluation_style_never_enter_training(prepared):
    train = load_pictures(prepared, picture_codes())
    assert {train.get_concept(item).split for item in range(len(train))} == {"train"}
    assert {train.get_style(item) for item in range(len(train))} == {"noto", "fluent3d"}
    heldout = load_pictures(prepared, picture_codes(), split="heldout", styles=STYLES)
    assert {heldout.get_concept(item).id for item in range(len(heldout))} == {6, 7} and len(heldout) == 6
    with pytest.raises(ValueError, match="'twemoji' is for evaluation only"):
        load_pictures(prepared, picture_codes(), styles=STYLES)
    unseen_style = load_pictures(prepared, picture_codes(), split="heldout", styles=["twemoji"])
    assert {unseen_style.get_style(item) for item in range(len(unseen_style))} == {"twemoji"}
    clips = load_clips(prepared, np.zeros((5, 192), np.int16))
    assert [clips.get_concept(item).id for item in range(len(clips))] == [1, 3, 5]


def test_clips_are_videos(prepared):
    codes = np.arange(5 * 192).reshape(5, 192).astype(np.int16)
    clips = load_clips(prepared, codes)
    asked, wished = MediaToName(clips), NameToMedia(clips)
    assert (asked.name, wished.name) == ("video_to_name", "text_to_video")
    for item, row in enumerate([1, 2, 3]):
        assert media_of(asked.make_document(item), "user") == [Video(codes=codes[row])]
        assert media_of(wished.make_document(item), "assistant") == [Video(codes=codes[row])]


def test_speech_goes_both_ways_with_its_own_words_and_codes(prepared):
    speech = load_speech(prepared, max_codes=10)
    assert [speech.get_text(item) for item in range(len(speech))] == [
        "hello there",
        "one two",
    ]  # the long one is left out
    voiced = 0
    for item, codes in enumerate([[0, 1, 2], [3, 4]]):
        for draw in range(40):
            heard = SpeechToText(speech).make_document(item, draw)
            assert media_of(heard, "user")[0].codes.tolist() == codes
            assert words(heard, "assistant") == speech.get_text(item)
            spoken = TextToSpeech(speech).make_document(item, draw)
            assert media_of(spoken, "assistant")[0].codes.tolist() == codes
            request = words(spoken, "user")
            assert request.endswith(speech.get_text(item)) and "{" not in request
            other = {"slt": "joe", "joe": "slt"}[speech.get_voice(item)]
            assert other not in request
            voiced += speech.get_voice(item) in request
    assert 0.3 < voiced / 80 < 0.7
    assert [speech.get_text(0) for speech in [load_speech(prepared, split="test")]] == ["not seen"]


def test_documents_are_a_function_of_item_and_draw(prepared):
    def source(seed):
        return MediaToName(load_pictures(prepared, picture_codes()), seed=seed)

    left, right = source(0), source(0)
    right.make_document(3, 5)
    assert [left.make_document(i, d) for i in range(4) for d in range(4)] == [
        right.make_document(i, d) for i in range(4) for d in range(4)
    ]
    assert [left.make_document(0, d) for d in range(20)] != [source(1).make_document(0, d) for d in range(20)]
    # the wording itself is fixed too: a change of the generator would change every trained model's data
    assert words(left.make_document(0, 0), "user") == words(source(0).make_document(0, 0), "user")


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_documents", [1, 7, 100, 1000])
def test_a_plan_keeps_the_shares(prepared, balance, num_documents):
    source = MediaToName(load_pictures(prepared, picture_codes()))
    made = plan_draws(source, num_documents, balance)
    assert made.shape == (num_documents, 2)
    items = Counter(made[:, 0].tolist())
    sizes = Counter(source.get_group(item) for item in range(len(source)))
    assert dict(sizes) == {"things": 6, "animals": 6} or sum(sizes.values()) == 12
    weights = {item: sizes[source.get_group(item)] ** -balance for item in range(len(source))}
    for item in range(len(source)):
        quota = num_documents * weights[item] / sum(weights.values())
        assert abs(items[item] - quota) < 1
        assert sorted(made[made[:, 0] == item, 1]) == list(range(items[item]))  # draws 0, 1, 2, …
    assert (plan_draws(source, num_documents, balance) == made).all()


def test_balance_lifts_rare_groups():
    class Uneven:
        name = "uneven"

        def __len__(self):
            return 100

        def get_group(self, item):
            return "rare" if item < 4 else "common"

    def rare(balance):
        return int((plan_draws(Uneven(), 1000, balance)[:, 0] < 4).sum())

    assert rare(0.0) == 40 and rare(1.0) == 500
    assert abs(rare(0.5) - 1000 * 2 / (2 + 96**0.5)) <= 4


def test_user_mistakes(prepared, tmp_path):
    with pytest.raises(ValueError, match="do not belong to 24 items"):
        load_pictures(prepared, picture_codes()[:23])
    with pytest.raises(ValueError, match="missing; make it with `python tools/prepare_images.py`"):
        load_pictures(tmp_path / "nowhere", picture_codes())
    with pytest.raises(ValueError, match="do not belong to 3 utterances"):
        EncodedSpeech(np.zeros(9), np.array([0, 9]), [{}] * 3)
    pictures = load_pictures(prepared, picture_codes())
    with pytest.raises(ValueError, match="balance is 2"):
        plan_draws(MediaToName(pictures), 5, balance=2)
    with pytest.raises(ValueError, match="target_views is 0"):
        NameToMedia(pictures, target_views=0)
    empty = EncodedConcepts(np.zeros((0, 4)), np.zeros(0, int), [])
    with pytest.raises(ValueError, match="has no items in this split"):
        plan_draws(MediaToName(empty), 5)


def test_articles_and_keys():
    assert add_article("red apple") == "a red apple" and add_article("elephant") == "an elephant"
    assert add_article("glass of milk") == "a glass of milk" and add_article("bus") == "a bus"
    assert add_article("face with rolling eyes") == "a face with rolling eyes"
    for plain in ("Santa Claus", "clinking glasses", "ON! arrow"):
        assert add_article(plain) == plain
    assert make_code_point_key("A9-FE0F") == "00a9" and make_code_point_key("0023-fe0f-20e3") == "0023-20e3"
    assert make_code_point_key("1F468-200D-2695-FE0F") == "1f468-200d-2695"


def test_from_sources_to_batches(prepared, tmp_path):
    """The whole way: documents → rendered shards → mixture → packed batches that parse back to the same documents."""
    from unimodal.sequence.templates.own import Template
    from unimodal.text.tokenizer import TextTokenizer, train_text_tokenizer
    from unimodal.vocabulary import Block, Vocabulary

    sources = [make(load_pictures(prepared, picture_codes())) for make in (MediaToName, NameToMedia)]
    sources += [make(load_speech(prepared)) for make in (SpeechToText, TextToSpeech)]
    plans = {source.name: plan_draws(source, 40) for source in sources}
    texts = [words(source.make_document(i, d), role) for source in sources for i, d in plans[source.name]
             for role in ("user", "assistant")]  # fmt: skip
    train_text_tokenizer([text for text in texts if text], 380, tmp_path / "text")
    text = TextTokenizer.load(tmp_path / "text")
    blocks = [Block(name=name, modality=name, size=300) for name in ("image", "audio")]
    from unimodal.vocabulary import Segment, SpanLayout

    layouts = [SpanLayout("image", [Segment("image", 6)]), SpanLayout("audio", [Segment("audio", None)])]
    template = Template(Vocabulary.build(text.size, blocks, layouts), text)
    sets = {}
    for source in sources:
        rows = plans[source.name]
        sets[source.name] = write_token_shards(
            tmp_path / source.name,
            lambda index, source=source, rows=rows: template.render(source.make_document(*rows[index].tolist())),
            len(rows),
            template.vocabulary.size,
            {"text": text.sha256},
            documents_per_shard=16,
        )
    batches = Batches(Mixture(sets, seed=0), 128, 512, template.vocabulary.get_control_id("<|pad|>"))
    wanted = {source.make_document(*row.tolist()).canonicalize() for source in sources for row in plans[source.name]}
    num_seen = 0
    for _ in range(3):
        batch = batches.next_batch()
        for row, segments in zip(batch.ids, batch.segment_ids, strict=True):
            for segment in range(1, segments.max() + 1):
                assert template.parse(row[segments == segment]) in wanted
                num_seen += 1
    assert num_seen > 10


def test_codes_are_named_in_their_order():
    """Prototypes by concept, looks by picture: the rows of a vocabulary begin as these words."""
    from unimodal.data.encoded_media import Concept, EncodedConcepts
    from unimodal.data.sources import list_labels, name_codes

    concepts = [
        Concept(id=n, key=str(n), family=str(n), label=name, tags=(), group="g", split=split)
        for n, (name, split) in enumerate((("Red Apple", "train"), ("boat", "heldout"), ("cat", "train")))
    ]
    shown, styles = np.array([2, 0, 1, 0]), np.array(["noto", "fluent3d", "noto", "noto"])
    pictures = EncodedConcepts(np.zeros((4, 5), dtype=int), shown, concepts, styles)
    names = ("first", "second", "rest")
    blocks = [Block(name=name, modality="image", size=8) for name in names]
    layout = [SpanLayout("image", [Segment("first", 2), Segment("second", 1), Segment("rest", 2)])]
    vocabulary = Vocabulary.build(100, blocks, layout)
    assert list_labels(pictures) == ["cat", "red apple"]
    assert name_codes(pictures, vocabulary) == {
        "first": ["red apple", "cat"],
        "second": ["cat noto", "red apple 3d", "red apple noto"],
    }
    oil = EncodedConcepts(np.zeros((1, 5), dtype=int), [0], concepts, np.array(["oil"]), styles=["oil"])
    with pytest.raises(ValueError, match="style 'oil' is unknown; use noto, fluent3d"):
        name_codes(oil, vocabulary)


def test_rows_of_labelled_things_begin_as_their_names():
    """A tokenizer whose codes stand for labels: the name of each concept with that key, in the order of the codes."""
    from types import SimpleNamespace

    from recipes.train_nano import collect_row_words
    from unimodal.data.encoded_media import Concept, EncodedConcepts

    concepts = [
        Concept(id=n, key=key, family=key, label=label, tags=(), group="g", split="train")
        for n, (key, label) in enumerate((("1f34e", "Red Apple"), ("26f5", "boat")))
    ]
    pictures = EncodedConcepts(np.zeros((2, 5), dtype=int), np.arange(2), concepts, np.array(["noto", "noto"]))
    blocks = [Block(name="known", modality="image", size=3), Block(name="rest", modality="image", size=8)]
    vocabulary = Vocabulary.build(100, blocks, [SpanLayout("image", [Segment("known", 2), Segment("rest", 3)])])
    text = SimpleNamespace(encode=lambda words: words)
    tokenizer = SimpleNamespace(exemplar_blocks=frozenset(), code_names={"known": ("26f5", "1f34e", "zebra")})
    assert collect_row_words(vocabulary, pictures, tokenizer, text) == {
        vocabulary.get_block_range("known"): [" boat", " red apple", " zebra"]
    }
    tokenizer.code_names = {"known": ()}  # not fitted
    assert collect_row_words(vocabulary, pictures, tokenizer, text) == {}
