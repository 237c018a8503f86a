"""Documents → rendered: a batch is what its documents are alone, a bad one hurts no other, texts stay texts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_model import MAX_AUDIO_S, tiny_folder, tiny_model
from unimodal.corpus.tokenizer import CorpusTokenizer
from unimodal.data.datasets import DatasetConfig, open_dataset
from unimodal.data.mixture import Batches
from unimodal.data.token_shards import Skipped, TokenShards, write_token_shards
from unimodal.data.tokenized import TokenizedDataset, open_mixture, open_rendered
from unimodal.media.audio import save_audio
from unimodal.media.image import save_image
from unimodal.media.video import save_video
from unimodal.sequence.document import Audio, Document, Image, Text, Turn, Video
from unimodal.sequence.templates.own import IGNORE
from unimodal.vocabulary import make_media_vocabulary

NANO = Path(__file__).resolve().parents[2] / "model_cards" / "nano"


@pytest.fixture(scope="module")
def tokenize():
    return CorpusTokenizer(tiny_folder())


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    torch.manual_seed(0)
    for name in ("a.png", "b.png"):
        save_image(torch.rand(3, 30, 20), folder / name)
    save_audio(torch.rand(4_000) - 0.5, folder / "short.wav", 16_000)
    save_audio(torch.rand(9_000) - 0.5, folder / "long.wav", 16_000)
    save_audio(torch.rand(int(16_000 * MAX_AUDIO_S) + 4_000) - 0.5, folder / "too_long.wav", 16_000)
    save_video(torch.rand(4, 3, 16, 16), folder / "v.gif", 8)
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:200])
    return folder


def document(*parts, answer="yes"):
    return Document([Turn("user", parts), Turn("assistant", answer)])


def same(left, right):
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in ("ids", "labels", "modality"))


@pytest.fixture
def several(media):
    def path(name):
        return str(media / name)

    return [
        document(Image(path=path("a.png")), Text("what is this?")),
        document(Audio(path=path("short.wav")), Image(path=path("b.png")), Audio(path=path("long.wav"))),
        document(Text("no media")),
        document(Image(data=(media / "a.png").read_bytes()), Text("what is this?")),
        document(Video(path=path("v.gif")), Image(codes=[1] * 64), Image(path=path("b.png")), answer="a clip"),
    ]


def test_a_batch_is_what_its_documents_are_alone(tokenize, several):
    together = tokenize(several)
    for made, alone in zip(together, several, strict=True):
        assert same(made, tokenize([alone])[0])
    assert same(together[0], together[3])  # a path and its bytes


def test_codes_are_those_of_the_pipeline_and_stand_in_their_places(tokenize, several, media):
    model = tiny_model()
    for made, given in zip(tokenize(several), several, strict=True):
        coded = Document(
            Turn(turn.role, [model.coder.encode_part(part) for part in turn.parts]) for turn in given.turns
        )
        assert same(made, model.template.render(coded))
        assert tokenize.template.parse(made.ids) == coded.canonicalize()


def test_a_bad_document_hurts_no_other(tokenize, several, media):
    bad = {
        1: (document(Image(path=str(media / "broken.png"))), "broken.png is a PNG picture"),
        3: (document(Image(path=str(media / "a.png")), Audio(path=str(media / "too_long.wav"))), "lasts 2.2 s"),
        4: (document(Image(codes=[99_999] * 64)), "image code 99999 is outside|semantic code|outside"),
        5: (document(Audio(path=str(media / "a.png"))), "pass it as image"),
        7: (document(Image(path=str(media / "gone.png"))), "no such file"),
    }
    mixed = list(several)
    for place, (wrong, _) in bad.items():
        mixed.insert(place, wrong)
    made = tokenize(mixed)
    assert [place for place, one in enumerate(made) if isinstance(one, Skipped)] == sorted(bad)
    for place, (_, message) in bad.items():
        assert any(part in made[place].reason for part in message.split("|")), made[place].reason
    whole = [one for one in made if not isinstance(one, Skipped)]
    assert all(same(left, right) for left, right in zip(whole, tokenize(several), strict=True))


def test_text_that_spells_tokens_gives_text_rows_only(tokenize):
    for text in ("<|image_0003|>", "<|image_start|><|image_end|>", "<|user|>", "<|end_of_turn|>", "<|semantic_0001|>"):
        [made] = tokenize([document(Text(text), answer=text)])
        assert not made.modality.any()
        control = [row for row in made.ids.tolist() if not tokenize.vocabulary.is_text(row)]
        assert len(control) == 5  # bos, user, end, assistant, end
        assert tokenize.template.parse(made.ids).turns[1].text == text


def test_documents_over_the_limit_are_skipped_and_said_so(several):
    tokenize = CorpusTokenizer(tiny_folder(), max_tokens=20)
    lengths = [len(made) for made in CorpusTokenizer(tiny_folder())(several)]
    for made, length in zip(tokenize(several), lengths, strict=True):
        assert isinstance(made, Skipped) == (length > 20)
        if isinstance(made, Skipped):
            assert made.reason == f"the document has {length:,} tokens, over max_tokens 20"


def test_a_broken_tokenizer_is_no_bad_row(tmp_path, several):
    """It would skip every row in silence."""
    shutil.copytree(tiny_folder(), tmp_path / "model")
    config = tmp_path / "model" / "image_tokenizer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"width": 24}))
    tokenize = CorpusTokenizer(tmp_path / "model")
    with pytest.raises(ValueError, match="image_tokenizer"):
        tokenize(several)


def test_a_folder_of_media_alone_says_how_it_gets_text(tmp_path):
    make_media_vocabulary([]).save(tmp_path / "vocabulary.json")
    with pytest.raises(ValueError, match="no text rows; make it anew with --text"):
        CorpusTokenizer(tmp_path)


def test_a_folder_without_the_decoder_will_do(tmp_path, several):
    shutil.copytree(tiny_folder(), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    assert same(CorpusTokenizer(tmp_path / "model")(several)[0], CorpusTokenizer(tiny_folder())(several)[0])


def test_the_released_model_folder_tokenizes_speech():
    tokenize = CorpusTokenizer(NANO)
    [made] = tokenize([document(Audio(path=str(NANO / "samples" / "speech.wav")), Text("what is said?"))])
    assert (made.modality == 3 - 1).sum() > 20 and made.labels[made.modality == 2].max() == IGNORE
    assert set(tokenize.hashes) >= {"text", "vocabulary", "image", "audio", "video"}
    assert all(len(value) == 64 for value in tokenize.hashes.values())


# ---- on the fly and from shards


@pytest.fixture
def rows(tmp_path, media):
    """Six rows; number 2 has a damaged picture, which only decoding finds."""
    names = ["a.png", "b.png", "broken.png", "a.png", "b.png", "a.png"]
    lines = [{"image": name, "text": f"picture {number}"} for number, name in enumerate(names)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return DatasetConfig(path=str(tmp_path / "rows.jsonl"), media_root=media, on_bad_row="skip")


def shards_of(dataset, tokenize, folder):
    def make(index):
        return tokenize([dataset[index]])[0]

    return write_token_shards(
        folder, make, len(dataset), tokenize.vocabulary.size, tokenize.hashes, documents_per_shard=2
    )


def test_shards_hold_what_the_fly_gives(tokenize, rows, tmp_path, capsys):
    dataset = open_dataset(rows)
    fly, shards = TokenizedDataset(dataset, tokenize), shards_of(dataset, tokenize, tmp_path / "shards")
    assert len(fly) == 6 and len(shards) == 5  # one has no document in the shards, and a stand-in on the fly
    usable = [0, 1, 3, 4, 5]
    assert all(same(fly[index], shards[place]) for place, index in enumerate(usable))
    assert fly.num_bad == 0
    assert same(fly[2], fly[3]) and same(fly[2], fly[3])
    assert [row.where.rpartition(" ")[2] for row in fly.bad_rows] == ["3"] and "broken.png" in fly.bad_rows[0].reason
    assert capsys.readouterr().err.count("rows.jsonl line 3") == 1
    assert len(shards.skipped) == 1 and "broken.png" in shards.skipped[0]
    with pytest.raises(IndexError):
        fly[6]


def test_on_the_fly_a_bad_row_may_be_fatal(tokenize, rows):
    fly = TokenizedDataset(open_dataset(rows.model_copy(update={"on_bad_row": "fail"})), tokenize)
    assert len(fly[1]) and len(fly[3])
    with pytest.raises(ValueError, match=r"rows.jsonl line 3: .*broken.png .*; mend it, or set on_bad_row to skip"):
        fly[2]


def test_one_call_opens_both_and_mixes_by_weight(tokenize, rows, tmp_path):
    shards_of(open_dataset(rows), tokenize, tmp_path / "shards")
    configs = {
        "fly": rows.model_copy(update={"weight": 1.0}),
        "shards": DatasetConfig(path=str(tmp_path / "shards"), weight=3.0),
        "unused": DatasetConfig(path="not/there.jsonl", weight=0.0),
    }
    assert isinstance(open_rendered(configs["fly"], tokenize, tokenize.hashes), TokenizedDataset)
    assert isinstance(open_rendered(configs["shards"], tokenize, tokenize.hashes), TokenShards)
    mixture = open_mixture(configs, tokenize, tokenize.hashes, seed=1)
    assert mixture.shares == {"fly": 0.25, "shards": 0.75}
    names = [mixture.next()[0] for _ in range(80)]
    assert 8 <= names.count("fly") <= 32
    batches = Batches(mixture, length=256, tokens_per_batch=512, pad_id=0)
    assert batches.next_batch().ids.shape == (2, 256)  # Rendered documents that pack
    with pytest.raises(ValueError, match="none of the datasets unused has a weight above 0"):
        open_mixture({"unused": configs["unused"]}, tokenize, tokenize.hashes)


@pytest.mark.parametrize("name", ["image", "text", "vocabulary"])
def test_shards_of_another_tokenizer_or_vocabulary_are_refused(tokenize, rows, tmp_path, name):
    shards_of(open_dataset(rows), tokenize, tmp_path / "shards")
    with pytest.raises(ValueError, match=f"holds codes of {name} tokenizer .* but 00 is here"):
        open_rendered(DatasetConfig(path=str(tmp_path / "shards")), tokenize, tokenize.hashes | {name: "00"})
