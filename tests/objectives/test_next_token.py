"""The sliced loss is the full loss with the softmax restricted to what the grammar allows: values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from unimodal.objectives.next_token import IGNORE, HeadGroup, HeadGroups, compute_sliced_cross_entropy, shift_labels
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary


@pytest.fixture
def batch(vocabulary):
    """Two rows: packed [text image | audio] and [video text]; part of the first text is not scored."""
    span = vocabulary.encode_span
    first = [3, 4, 5, *span("image", [0, 15, 7, 7]), 6]
    second = [8, *span("audio", [1, 2, 11]), 9]
    third = [1, *span("video", [3, 2, 1, 0, 7, 6, 5, 0, 1, 2]), 2]
    length = max(len(first) + len(second), len(third))
    pad = vocabulary.get_control_id("<|pad|>")

    def row(*documents):
        ids = [token for document in documents for token in document]
        positions = [i for document in documents for i in range(len(document))]
        rest = length - len(ids)
        return ids + [pad] * rest, positions + list(range(rest)), ids + [IGNORE] * rest

    rows = [row(first, second), row(third)]
    ids, positions, labels = (torch.tensor([r[i] for r in rows]) for i in range(3))
    labels[0, :2] = IGNORE
    return ids, positions, labels


def reference(model, vocabulary, ids, positions, labels, z_loss=0.0, weights=None):
    """Full logits, a loop over positions, and the rule in words."""
    logits = model(ids, position_ids=positions).logits
    text = list(range(vocabulary.control_range.stop))
    end = vocabulary.get_end_id("audio")
    total, weight = 0.0, 0.0
    for b in range(ids.shape[0]):
        for n in range(ids.shape[1] - 1):
            label = int(labels[b, n + 1])
            if label == IGNORE or positions[b, n + 1] == 0:
                continue
            block, before = vocabulary.find_block(label), vocabulary.find_block(int(ids[b, n]))
            name = block.name if block else "text"
            if label == end and before is not None and before.name == "audio":
                name = "audio"
            rows = text if name == "text" else list(vocabulary.get_block_range(name))
            rows = rows + ([end] if name == "audio" else [])
            allowed = logits[b, n, rows]
            factor = 1.0 if weights is None else weights.get(name, 1.0)
            loss = (
                F.cross_entropy(allowed[None], torch.tensor([rows.index(label)])) + z_loss * allowed.logsumexp(0) ** 2
            )
            total, weight = total + factor * loss, weight + factor
    return total, weight


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("z_loss", "weights"), [(0.0, None), (0.01, {"image": 2.0, "text": 0.5, "audio": 0.0})])
def test_equals_the_full_computation_in_value_and_gradient(make_model, vocabulary, batch, tied, z_loss, weights):
    ids, positions, labels = batch
    model, twin = (make_model(tie_embeddings=tied).double() for _ in range(2))
    groups = HeadGroups.from_vocabulary(vocabulary)
    loss = compute_sliced_cross_entropy(
        model, ids, labels, groups, position_ids=positions, z_loss=z_loss, modality_weights=weights
    )
    total, weight = reference(twin, vocabulary, ids, positions, labels, z_loss, weights)
    torch.testing.assert_close(loss.total, total)
    assert loss.weight == pytest.approx(weight)
    loss.mean.backward()
    (total / weight).backward()
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_counts_and_sums_per_block(make_model, vocabulary, batch):
    ids, positions, labels = batch
    loss = compute_sliced_cross_entropy(
        make_model(), ids, labels, HeadGroups.from_vocabulary(vocabulary), position_ids=positions
    )
    counts = {name: count for name, (_, count) in loss.per_block.items()}
    # text: of the first document 5, the start, the end and 6 (3 is first, 4 not scored); of the second the start and 9;
    # of the third the start, two frame marks, the end and 2. audio: 3 codes and the decision to stop.
    assert counts == {"text": 4 + 2 + 5, "image": 4 + 4, "audio": 4, "video": 6}
    assert loss.count == sum(counts.values()) == loss.weight
    assert float(loss.total.detach()) == pytest.approx(sum(total for total, _ in loss.per_block.values()), rel=1e-6)


def test_rows_outside_the_softmax_get_no_gradient_from_the_head(make_model, vocabulary):
    """A batch of one image span: rows of other blocks are neither inputs nor alternatives."""
    model = make_model(tie_embeddings=False)
    ids = torch.tensor([[3, *vocabulary.encode_span("image", [0, 1, 2, 3])]])
    labels = ids.clone()
    labels[0, -1] = labels[0, 1] = IGNORE
    compute_sliced_cross_entropy(model, ids, labels, HeadGroups.from_vocabulary(vocabulary)).mean.backward()
    touched = model.lm_head.weight.grad.abs().sum(1) > 0
    assert touched.nonzero().flatten().tolist() == list(vocabulary.get_block_range("image"))


def test_a_batch_without_labels_gives_zero_gradients(make_model, vocabulary):
    model = make_model()
    ids = torch.arange(6)[None]
    loss = compute_sliced_cross_entropy(
        model, ids, torch.full_like(ids, IGNORE), HeadGroups.from_vocabulary(vocabulary)
    )
    loss.mean.backward()
    assert loss.count == 0 and float(loss.total.detach()) == 0.0
    assert float(model.model.layers[0].mlp.up_proj.weight.grad.abs().max()) == 0.0


def test_shift_drops_the_first_token_of_every_document():
    labels = torch.tensor([[1, 2, 3, 4, 5]])
    positions = torch.tensor([[0, 1, 0, 1, 2]])
    assert shift_labels(labels, positions).tolist() == [[2, IGNORE, 4, 5, IGNORE]]
    assert shift_labels(labels, None).tolist() == [[2, 3, 4, 5, IGNORE]]


def test_free_segments_with_groups_leave_only_after_their_last_group():
    vocabulary = Vocabulary.build(
        4,
        [Block(name="audio", modality="audio", group=g, size=3) for g in range(2)]
        + [Block(name="tail", modality="audio", group=g, size=2) for g in range(2)],
        [SpanLayout("audio", [Segment("audio"), Segment("tail", 1)])],
    )
    groups = HeadGroups.from_vocabulary(vocabulary)
    first, second = (vocabulary.get_block_range("audio", g) for g in range(2))
    frame, end = vocabulary.get_control_id("<|frame|>"), vocabulary.get_end_id("audio")
    targets = torch.tensor([first[1], second[2], frame, frame, end])
    before = torch.tensor([3, first[1], second[2], first[0], vocabulary.get_block_range("tail", 1)[0]])
    group, index = groups.assign(targets, before)
    assert [groups.groups[g].name for g in group] == ["audio", "audio.1", "audio", "text", "text"]
    assert index.tolist() == [1, 2, 3, frame, end]


def test_labels_outside_the_vocabulary_are_refused(make_model, vocabulary):
    groups = HeadGroups.from_vocabulary(vocabulary)
    ids = torch.arange(4)[None]
    labels = ids.clone()
    labels[0, 2] = vocabulary.size
    with pytest.raises(ValueError, match="outside the vocabulary"):
        compute_sliced_cross_entropy(make_model(), ids, labels, groups)
    gap = HeadGroups([HeadGroup("text", "text", range(0, 2))], vocabulary.size)
    with pytest.raises(ValueError, match="belongs to no block"):
        compute_sliced_cross_entropy(make_model(), ids, ids, gap)
