"""Streams of codes ⇄ one span: nothing is lost, and the order is the published one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.campaigns import examples
from unimodal.tokenizers import Codes, ConcatenatedStreams, InterleavedStreams
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary


def test_snac_is_laid_out_as_orpheus_writes_it():
    """Seven codes a frame, 0 1 2 2 1 2 2, in seven blocks of 4,096: 28,672 audio tokens."""
    snac = InterleavedStreams((1, 2, 4))
    assert [stream for stream, _, _ in snac.places] == [0, 1, 2, 2, 1, 2, 2]
    assert [step for _, step, _ in snac.places] == [0, 0, 0, 1, 1, 2, 3]
    assert sum(snac.sizes([(4096,)] * 3)) == 28_672


def test_var_has_680_positions_and_tokenflow_561():
    var = ConcatenatedStreams(tuple((1, side, side) for side in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)))
    assert sum(var.lengths) == 680
    assert sum(ConcatenatedStreams(tuple((1, s, s) for s in (1, 2, 4, 6, 8, 10, 12, 14))).lengths) == 561


@examples(60)
@given(data=st.data())
def test_interleaved_streams_come_back_from_a_span(data):
    num = data.draw(st.integers(1, 4))
    rates = data.draw(st.lists(st.integers(1, 6), min_size=num, max_size=num).map(tuple))
    groups = data.draw(st.lists(st.integers(1, 3), min_size=num, max_size=num).map(tuple))
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    layout = InterleavedStreams(rates, groups)
    sizes = [tuple(7 + stream + group for group in range(count)) for stream, count in enumerate(groups)]
    noise = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    streams = []
    for rate, of_stream in zip(rates, sizes, strict=True):
        kept = mask.repeat_interleave(rate, dim=1)
        drawn = [torch.randint(size, kept.shape, generator=noise) for size in of_stream]
        streams.append(Codes(torch.where(kept[..., None], torch.stack(drawn, -1), 0), kept))
    joined = layout.join(streams)
    assert joined.ids.shape == (len(lengths), max(lengths), layout.num_groups)
    for before, after in zip(streams, layout.split(joined), strict=True):
        assert torch.equal(before.ids, after.ids) and torch.equal(before.mask, after.mask)

    joined_sizes = layout.sizes(sizes)
    blocks = [Block(name="audio", modality="audio", group=g, size=size) for g, size in enumerate(joined_sizes)]
    vocabulary = Vocabulary.build(1, blocks, [SpanLayout("audio", [Segment("audio")])])
    for row in range(len(lengths)):
        span = vocabulary.encode_span("audio", joined.row(row).squeeze(-1) if len(blocks) == 1 else joined.row(row))
        assert len(span) == 2 + lengths[row] * layout.num_groups
        read = torch.from_numpy(vocabulary.decode_span(span)[1])
        assert torch.equal(read.reshape(lengths[row], -1), joined.row(row))


@examples(40)
@given(
    sides=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    groups=st.integers(1, 3),
    whole=st.lists(st.integers(1, 4), min_size=1, max_size=3),
)
def test_scales_come_back_and_so_do_prefixes_of_whole_scales(sides, groups, whole):
    layout = ConcatenatedStreams(tuple((1, side, side) for side in sides))
    known = [min(count, len(sides)) for count in whole]  # scales of each item
    streams = []
    for number, length in enumerate(layout.lengths[: max(known)]):
        mask = torch.tensor([number < count for count in known])[:, None].expand(-1, length)
        ids = torch.randint(50, (len(known), length, groups))
        streams.append(Codes(torch.where(mask[..., None], ids, 0), mask))
    joined = layout.join(streams)
    back = layout.split(joined)
    assert [part.grid for part in back] == list(layout.grids[: max(known)])
    for before, after in zip(streams, back, strict=True):
        assert torch.equal(before.ids, after.ids) and torch.equal(before.mask, after.mask)


def test_streams_that_do_not_fit_are_one_line():
    layout = InterleavedStreams((1, 2))
    one = Codes.whole(torch.zeros(1, 3, dtype=torch.int64))
    for streams, said in (
        ([one], "there are 2 streams; got 1"),
        ([one, one], "stream 1 has .* a multiple of 2"),
        ([one, Codes.whole(torch.zeros(1, 4, dtype=torch.int64))], "the same whole frames in every stream"),
        ([one, Codes.whole(torch.zeros(1, 6, 2, dtype=torch.int64))], "needs 1 groups"),
        ([one, Codes(torch.zeros(1, 6, 1, dtype=torch.int64), torch.arange(6)[None] < 5)], "the same whole frames"),
    ):
        with pytest.raises(ValueError, match=said):
            layout.join(streams)
    with pytest.raises(ValueError, match="have 3 codes a frame; got 1"):
        layout.split(one)
    with pytest.raises(ValueError, match="a rate and groups above 0"):
        InterleavedStreams((0, 2))
    scales = ConcatenatedStreams(((1, 1, 1), (1, 2, 2)))
    gap = [Codes(torch.zeros(1, n, 1, dtype=torch.int64), torch.full((1, n), n == 4)) for n in (1, 4)]
    with pytest.raises(ValueError, match="only lack its last streams"):
        scales.join(gap)
    with pytest.raises(ValueError, match="the streams have"):
        scales.join([one])
