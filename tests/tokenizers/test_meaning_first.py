"""The picture tokenizer whose first codes say what is shown: the closed fit, prefixes, and what training remembers."""

import numpy as np
import pytest
import torch

from unimodal.tokenizers import load_tokenizer
from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.nano.image import ImageTokenizer
from unimodal.tokenizers.nano.image_config import ImageTokenizerConfig
from unimodal.tokenizers.parts.known_things import KnownThings
from unimodal.tokenizers.parts.meaning_levels import MeaningLevels

STYLES = 3


def build_small(**changes):
    torch.manual_seed(0)
    return build_tokenizer({**read_system("meaning-first-64").choose_settings(small=True), **changes}).eval()


def make_things(count, styles=STYLES, noise=0.2):
    """Features [count, styles, 40] ≥ 0 of things in styles: a thing's own part, a style's own, and noise."""
    generator = torch.Generator().manual_seed(0)
    things, looks = torch.randn(count, 1, 40, generator=generator), torch.randn(1, styles, 40, generator=generator)
    more = torch.randn(count, styles, 40, generator=generator)
    return (things + 2 * looks + noise * more + 6).clamp_min(0).square()


def test_levels_tell_things_apart_that_were_never_fitted_and_are_equally_frequent():
    features = make_things(160)
    levels = MeaningLevels(40, 6, (4, 4))
    fitted = features[:120].flatten(0, 1)
    levels.fit(fitted, torch.arange(120).repeat_interleave(STYLES))
    counts = torch.bincount(levels(fitted)[:, 0] % 4, minlength=4)
    assert counts.sum() == len(fitted) and int(counts.max() - counts.min()) <= 2
    unseen = [levels.to_values(levels(features[120:, style])).flatten(1) for style in range(STYLES)]
    named = torch.cdist(unseen[0], unseen[1]).argmin(1) == torch.arange(40)
    assert named.float().mean() > 0.8
    with pytest.raises(ValueError, match="need more than 12 labels; there are 10"):
        levels.fit(features[:10, 0], torch.arange(10))


def test_any_prefix_decodes_and_a_longer_one_is_nearer_after_a_little_training():
    tokenizer = build_small(prefix_share=0.7).train()
    x = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.interpolate(x, 32, mode="bilinear")
    optimizer = torch.optim.Adam([p for p in tokenizer.parameters() if p.requires_grad], 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss, _ = tokenizer.training_loss(x)
        loss.backward()
        optimizer.step()
    tokenizer.eval()
    codes = tokenizer.encode(x)
    assert codes.counts == [8] * 8
    errors = [
        float((tokenizer.decode(Codes(codes.ids[:, :n], codes.mask[:, :n])) - x).square().mean()) for n in (1, 4, 8)
    ]
    assert errors == sorted(errors, reverse=True)
    with pytest.raises(ValueError, match="8 codes or a prefix of them"):
        tokenizer.decode(Codes(codes.ids, torch.arange(8).expand(8, 8) > 0))


def test_the_vectors_of_codes_are_their_levels_and_scalars():
    tokenizer = build_small()
    assert tokenizer.code_levels == {"semantic": (2, 2), "image": (4, 4)}
    assert tokenizer.code_features("semantic").tolist() == [[-1, -1], [1, -1], [-1, 1], [1, 1]]
    assert tokenizer.code_features("image").shape == (16, 2)


def test_the_fit_is_of_labels_and_training_makes_the_codes_of_a_picture_once(monkeypatch):
    tokenizer = build_small()
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(6, 3, 32, 32, generator=generator)
    with pytest.raises(ValueError, match="no pictures with labels"):
        tokenizer.fit_to_labels([])
    tokenizer.fit_to_labels((picture, f"thing {index}") for index, picture in enumerate(pictures))
    assert float(tokenizer.meaning.projection.abs().sum()) > 0
    told = [*tokenizer.trunk.parameters(), *tokenizer.trunk.buffers(), *tokenizer.meaning.buffers()]
    assert all(torch.equal(value, value.half().to(value.dtype)) for value in told)  # codes are those after a load
    counted, encode = [], tokenizer.encode_meaning
    monkeypatch.setattr(tokenizer, "encode_meaning", lambda x: counted.append(len(x)) or encode(x))
    other = torch.rand(1, 3, 32, 32, generator=generator)
    mixed = torch.cat([pictures[:2], pictures[:1].flip(-1), other])
    ids = tokenizer.train().recall_meaning(mixed)
    assert torch.equal(ids, tokenizer.recall_meaning(mixed)) and torch.equal(ids[0], ids[2]) and counted == [1]


def test_ids_of_known_things_are_the_nearest_means_and_are_not_drawn(tmp_path):
    features = make_things(120, noise=0.8)
    known, labels = KnownThings(40, 120, 30), torch.arange(120).repeat_interleave(STYLES)
    known.fit(features.flatten(0, 1), labels, 1.0)
    places = known.project(features.flatten(0, 1))
    centres = torch.stack([places[labels == label].mean(0) for label in range(120)])
    angles = torch.nn.functional.cosine_similarity(places[:, None], centres[None], dim=-1)
    assert torch.equal(known(features.flatten(0, 1), 3), angles.argsort(1, descending=True)[:, :3])
    assert float((known(features.flatten(0, 1), 1)[:, 0] == labels).float().mean()) > 0.9
    with pytest.raises(ValueError, match="30 directions of known things need more than 30 labels; there are 20"):
        KnownThings(40, 20, 30).fit(features[:20, 0], torch.arange(20), 1.0)

    tokenizer = build_small(num_known=2, known_dims=4, num_pixel=4)
    x = torch.rand(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x = (x + x.flip(-1)) / 2  # the fit sees one of a picture and its mirror image
    assert tokenizer.encode(x).ids[:, :4].eq(0).all()
    tokenizer.fit_to_labels((picture, f"thing {index}") for index, picture in enumerate(x))
    codes = tokenizer.encode(x)
    assert codes.ids.shape == (7, 8, 1) and tokenizer.tokens_per_item == 8
    assert codes.ids[:, 0, 0].tolist() == [*range(7)]  # each is the only picture of its thing
    assert tokenizer.code_names == {"known": tuple(f"thing {index}" for index in range(7))}
    assert tokenizer.block_sizes == {"known": 7, "semantic": 4, "image": 16}
    assert tokenizer.code_features("known").shape == (7, 4)
    other = codes.ids.clone()
    other[:, :2] = 6 - other[:, :2]
    assert torch.equal(tokenizer.decode(Codes(other, codes.mask)), tokenizer.decode(codes))
    tokenizer.round_to_half().save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.sha256 == tokenizer.sha256 and torch.equal(again.encode(x).ids, codes.ids)
    trained = tokenizer.train().reconstruct(x)
    assert torch.equal(trained.ids[:, :4], codes.ids[:, :4])  # what training remembers
    plain = build_small()
    assert tokenizer.take_weights(plain) > 50
    assert torch.equal(tokenizer.decoder.mixing, plain.decoder.mixing[:, :6])
    assert torch.equal(tokenizer.semantic_in, plain.semantic_in)
    with pytest.raises(ValueError, match="num_known is 3, and there are 2 labels"):
        build_small(num_known=3, num_semantic=1, semantic_levels=[2], known_dims=1).fit_to_labels(
            (picture, str(index)) for index, picture in enumerate(x[:2])
        )


def test_it_begins_from_the_first_nano(tmp_path):
    first = ImageTokenizer(ImageTokenizerConfig(num_prototypes=2, num_looks=2, look_components=2))
    tokenizer = build_tokenizer({"family": "meaning_first"})
    taken = tokenizer.take_weights(first)
    assert taken > 100
    assert torch.equal(tokenizer.encoder.mixing, first.encoder.mixing[:54])
    assert torch.equal(tokenizer.decoder.mixing[:, 10:], first.decoder.mixing[:, 4:58])
    assert np.array_equal(tokenizer.trunk["lite0"].stem.weight.numpy(), first.trunk.stem.weight.numpy())
    other = build_tokenizer({"family": "meaning_first", "trunks": ["lite0"], "num_semantic": 8, "num_pixel": 56})
    other.take_weights(tokenizer)  # 54 of its 56 pixel codes
    both = tokenizer.extract_features(torch.rand(1, 3, 32, 32))
    assert both.shape == (1, 2560) and bool((both >= 0).all())
    assert torch.equal(other.decoder.mixing[:, 8:62], tokenizer.decoder.mixing[:, 10:])
    assert torch.equal(other.encoder.down.weight, tokenizer.encoder.down.weight)
    with pytest.raises(ValueError, match="trunk_stages is 2"):
        build_small().fill_trunk("efficientnet")
