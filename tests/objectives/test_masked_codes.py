"""Masked codes: what is hidden and seen, the loss by hand, and a model so trained that draws in few passes."""

import dataclasses
import math

import pytest
import torch

from unimodal.generation.engine import Engine
from unimodal.generation.fast.masked_parallel import MaskedParallel
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import GREEDY
from unimodal.objectives.masked_codes import MaskedCodeConfig, MaskedCodes, hide_codes
from unimodal.objectives.next_token import IGNORE, HeadGroups
from unimodal.objectives.objective import number_documents
from unimodal.objectives.spans import check_sees_ahead, choose_spans, find_runs, number_blocks
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary


@pytest.fixture
def documents(vocabulary):
    """(ids, labels): a picture that is asked for, a clip of three runs, and a picture that is only read."""
    span = vocabulary.encode_span
    picture, clip = list(span("image", [0, 15, 7, 7])), list(span("video", [3, 2, 1, 0, 7, 6, 5, 0, 1, 2]))
    return [
        ([1, 3, 4, *picture, 6], [IGNORE] * 3 + [*picture, 6]),
        ([1, 5, *clip, 2], [IGNORE] * 2 + [*clip, 2]),
        ([1, *picture, 5, 9, 2], [IGNORE] * (1 + len(picture)) + [5, 9, 2]),
    ]


def arrange(rows):
    """Documents one behind the other in rows → ids, labels and positions, [B, N]."""
    length = max(sum(len(ids) for ids, _ in row) for row in rows)
    ids, labels, positions = (torch.zeros(len(rows), length, dtype=torch.int64) for _ in range(3))
    labels.fill_(IGNORE)
    for number, row in enumerate(rows):
        at = 0
        for own, learnt in row:
            end = at + len(own)
            ids[number, at:end], labels[number, at:end] = torch.tensor(own), torch.tensor(learnt)
            positions[number, at:end] = torch.arange(len(own))
            at = end
        positions[number, at:] = torch.arange(length - at)
    return ids, labels, positions


def test_one_run_of_a_document_is_masked_by_the_cosine_of_a_uniform_number(vocabulary, documents):
    ids, labels, positions = arrange([documents])
    rows = number_blocks(HeadGroups.from_vocabulary(vocabulary), vocabulary)
    runs, own = find_runs(labels, positions, rows), number_documents(positions).view(1, -1)
    lengths = [int((runs == run).sum()) for run in range(1, int(runs.max()) + 1)]
    assert lengths == [4, 4, 3, 3] and not runs[own == 2].any()
    picked, shares = torch.zeros(5), []
    for salt in range(400):
        first, second = choose_spans(ids, labels, positions, rows, salt=salt)
        assert bool((own[0, first.places] == 0).all()) and bool((own[0, second.places] == 1).all())
        picked[runs[0, second.places].unique()] += 1
        shares.append(int(hide_codes(first, "cosine").sum()))
    assert picked[2:] / 400 == pytest.approx(torch.tensor([0.4, 0.3, 0.3]), abs=0.1)
    expected = [  # the share of r for which int(4 · cos(π/2 · r)), at least 1, is k
        1 - 2 / math.pi * math.acos(2 / 4),
        2 / math.pi * (math.acos(2 / 4) - math.acos(3 / 4)),
        2 / math.pi * math.acos(3 / 4),
    ]
    for k, share in zip((1, 2, 3), expected, strict=True):
        assert shares.count(k) / 400 == pytest.approx(share, abs=0.09)
    found = [choose_spans(ids, labels, positions, rows, 0.25, salt) for salt in range(300)]
    half = [any(int(own[0, span.places[0]]) == 0 for span in spans) for spans in found]
    assert sum(map(int, half)) / 300 == pytest.approx(0.25, abs=0.1)


def test_enat_hides_a_beta_share(vocabulary, documents):
    """Beta(12, 3): mean 0.8, standard deviation 0.1."""
    span = choose_spans(*arrange([documents[:1]]), HeadGroups.from_vocabulary(vocabulary).group_of_row)[0]
    many = [dataclasses.replace(span, places=torch.arange(1000)) for _ in range(400)]
    shares = torch.tensor([int(hide_codes(one, "enat").sum()) / 1000 for one in many])
    assert float(shares.mean()) == pytest.approx(0.8, abs=0.02) and float(shares.std()) == pytest.approx(0.1, abs=0.015)


def test_codes_of_a_free_number_and_of_several_books_are_learnt_one_after_the_other():
    vocabulary = Vocabulary.build(
        20,
        [
            Block(name="sound", modality="audio", size=6),
            Block(name="speech", modality="video", size=4, group=0),
            Block(name="speech", modality="video", size=4, group=1),
            Block(name="image", modality="image", size=5),
        ],
        [
            SpanLayout("audio", [Segment("sound")]),
            SpanLayout("video", [Segment("speech", 3)]),
            SpanLayout("image", [Segment("image", 2)]),
        ],
    )
    rows = number_blocks(HeadGroups.from_vocabulary(vocabulary), vocabulary)
    codes = [row for row in range(vocabulary.size) if rows[row] > 0]
    assert codes == list(vocabulary.get_block_range("image"))


@pytest.mark.parametrize(("own_place", "asymmetric"), [(False, False), (True, False), (True, True)])
def test_the_loss_is_that_of_each_document_by_hand(make_model, vocabulary, documents, own_place, asymmetric):
    """Every hidden code by a forward of its document alone, and the words before it as ever; packed or not."""
    model = make_model()
    objective = MaskedCodes(model.train(), vocabulary, own=MaskedCodeConfig(own_place=own_place, asymmetric=asymmetric))
    torch.manual_seed(3)
    salt = int(torch.randint(2**62, ()))
    groups, pad = objective.groups, vocabulary.get_control_id("<|pad|>")
    expected, count = 0.0, 0
    for own_ids, own_labels in documents:
        ids, labels, positions = arrange([[(own_ids, own_labels)]])
        spans = choose_spans(ids, labels, positions, objective.group_of_row, salt=salt)
        seen, hidden = torch.ones(len(own_ids), len(own_ids), dtype=torch.bool).tril(), torch.zeros_like(ids) > 0
        inside = torch.cat([span.places for span in spans]) if spans else torch.zeros(0).long()
        for span in spans:
            hidden[0, inside] = hide_codes(span, "cosine")
        seen[inside[:, None], inside] = True
        if asymmetric:
            for one in inside.tolist():
                for other in inside.tolist():
                    seen[one, other] = bool(hidden[0, one]) or not hidden[0, other]
        read = torch.where(hidden, pad, ids)
        with torch.no_grad():
            logits = model(read, attention_mask=seen[None, None], use_cache=False).logits[0]
        last = int(inside[0]) if len(inside) else len(own_ids)  # behind it only hidden codes are learnt
        for place in range(1, len(own_ids)):
            if own_labels[place] == IGNORE or (place >= last and not hidden[0, place]):
                continue
            at = place if own_place and hidden[0, place] else place - 1
            [group], _ = groups.assign(ids[0, place : place + 1], ids[0, place - 1 : place])
            spec = groups.groups[int(group)]
            legal = [row for piece in spec.pieces for row in piece] + list(spec.exits)
            expected += float(logits[at, legal].logsumexp(0) - logits[at, own_ids[place]])
            count += 1
    for rows in ([[one] for one in documents], [documents]):
        torch.manual_seed(3)
        total, parts = objective(*arrange(rows))
        assert float(total.detach()) == pytest.approx(expected, rel=1e-4) and parts["weight"] == count
        assert sum(num for _, num in parts["blocks"].values()) == count
    total.backward()


@pytest.mark.sweep("small trainings")
@pytest.mark.parametrize("own_place", [False, True])
def test_a_model_so_trained_draws_a_picture_in_two_passes(make_model, vocabulary, own_place):
    torch.manual_seed(0)
    model = make_model(seed=1, num_layers=1)
    objective = MaskedCodes(model.train(), vocabulary, own=MaskedCodeConfig(own_place=own_place))
    control = vocabulary.get_control_id
    prompts = [[control("<|bos|>"), control("<|user|>"), word, control("<|assistant|>")] for word in (3, 4, 5, 6)]
    pictures = torch.randint(0, 16, (4, 4), generator=torch.Generator().manual_seed(2)).tolist()
    rows = []
    for prompt, picture in zip(prompts, pictures, strict=True):
        span = [*vocabulary.encode_span("image", picture), control("<|end_of_turn|>")]
        rows.append([([*prompt, *span], [IGNORE] * len(prompt) + span)])
    batch = arrange(rows)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        total, parts = objective(*batch)
        (total / parts["weight"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    engine = Engine(model.eval(), vocabulary)
    config = GenerationConfig(max_new_tokens=9, force="image", sampling={"image": GREEDY})
    method = MaskedParallel(passes=2, sees_ahead=True, own_place=own_place)
    answers = engine.generate(prompts, config, method=method)
    assert engine.stats.forwards == 1 + 2  # the prompts, and two passes
    found = [
        vocabulary.decode_span(answer[: answer.index(vocabulary.get_end_id("image")) + 1])[1] for answer in answers
    ]
    assert [list(map(int, codes)) for codes in found] == pictures


def test_what_cannot_be_masked_is_one_line(make_model, vocabulary):
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def causal_only(module, query, key, value, attention_mask, **kwargs):
        return sdpa_attention_forward(module, query, key, value, None, **{**kwargs, "is_causal": True})

    AttentionInterface.register("causal_only", causal_only)
    AttentionMaskInterface.register("causal_only", sdpa_mask)
    model = make_model()
    check_sees_ahead(model)
    model.set_attn_implementation("causal_only")
    with pytest.raises(ValueError, match="with attention 'causal_only' sees the past only; set attention: sdpa, or"):
        MaskedCodes(model, vocabulary)
    with pytest.raises(ValueError, match="mask_id is 9999; it is one of the 70 rows"):
        MaskedCodes(make_model(), vocabulary, own=MaskedCodeConfig(mask_id=9999))
    for wrong in ({"share": 0}, {"schedule": "square"}):
        with pytest.raises(ValueError):
            MaskedCodeConfig(**wrong)
