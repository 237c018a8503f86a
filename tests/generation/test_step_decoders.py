"""Every decoder keeps the contract of `StepDecoder`: the hidden states of the stock forward, whatever becomes of its
streams."""

import pytest
import torch

from unimodal.generation.decoders.compiled_decoder import CompiledDecoder
from unimodal.generation.decoders.lean_decoder import LeanDecoder
from unimodal.generation.decoders.lean_layers import LeanLayers
from unimodal.generation.decoders.packed_decoder import PackedDecoder
from unimodal.generation.decoders.packed_layers import PackedLayers
from unimodal.generation.decoders.reference_decoder import ReferenceDecoder
from unimodal.generation.decoders.slot_decoders import LeanSlots, ReferenceSlots, make_slots
from unimodal.generation.decoders.step_decoder import CachedPrefix

SLOTS = {
    "lean slots": lambda model: LeanSlots(LeanLayers(model), 128),
    "packed slots": lambda model: LeanSlots(PackedLayers(model), 128),
    "reference slots": ReferenceSlots,
}
KINDS = {
    "reference": ReferenceDecoder,
    "lean": LeanDecoder,
    "packed": PackedDecoder,
    "fixed shapes": lambda model: CompiledDecoder(model, backend=None),
    **SLOTS,
}
PROMPTS = [[3, 4, 5, 6, 7], [8, 9], [1], [2, 3, 4, 5, 6]]

pytestmark = pytest.mark.parametrize("kind", KINDS)


@torch.inference_mode()
def read_alone(model, text):
    """The stock forward's last hidden state [E] of one text, without cache, batch or padding."""
    return model.get_decoder()(input_ids=torch.tensor([text]), use_cache=False).last_hidden_state[0, -1]


def assert_ends(model, hidden, texts):
    """hidden [S, E] are the last states of these texts, to 1e-5."""
    expected = torch.stack([read_alone(model, text) for text in texts])
    torch.testing.assert_close(hidden, expected, rtol=1e-5, atol=1e-5)


def draw(num_streams, num_new, seed=0):
    return torch.randint(0, 30, (num_streams, num_new), generator=torch.Generator().manual_seed(seed))


def append(texts, new):
    return [[*text, *row] for text, row in zip(texts, new.tolist(), strict=True)]


@pytest.mark.sweep
@pytest.mark.sliced
@pytest.mark.parametrize(
    "changes",
    [{}, {"num_kv_heads": 4}, {"num_kv_heads": 1}, {"tie_embeddings": False, "rope_theta": 500.0}],
    ids=["grouped", "full", "one", "theta"],
)
@torch.inference_mode()
def test_steps_of_any_size_give_the_stock_forward(make_model, kind, changes):
    """Left padding, steps of one token and of several, streams dropped on the way; and without any padding."""
    model = make_model(**changes)
    for prompts in (PROMPTS, [[3, 4, 5]] * 2):
        decoder, texts = KINDS[kind](model), [list(prompt) for prompt in prompts]
        hidden = decoder.prefill(prompts, 0, 32)
        assert decoder.num_computed == max(map(len, prompts))
        for seed, num_new in enumerate((1, 3, 1, 2)):
            assert_ends(model, hidden, texts)
            if num_new == 3 and len(texts) > 2:
                decoder.keep([0, 2])
                texts = [texts[0], texts[2]]
            new = draw(len(texts), num_new, seed)
            texts = append(texts, new)
            hidden = decoder.step(new)
            assert [decoder.count_read(stream) for stream in range(len(texts))] == list(map(len, texts))


@torch.inference_mode()
def test_all_states_of_a_step(model, kind):
    decoder, new = KINDS[kind](model), draw(4, 3)
    decoder.prefill(PROMPTS, 0, 32)
    every = decoder.step(new, every=True)  # [S, P, E]
    for number in range(3):
        assert_ends(model, every[:, number], append(PROMPTS, new[:, : number + 1]))


@torch.inference_mode()
def test_streams_are_put_in_another_order_and_copied(model, kind):
    """As a beam search does it: some go, some are there twice."""
    decoder = KINDS[kind](model)
    decoder.prefill(PROMPTS, 0, 32)
    texts = PROMPTS
    for order in ([2, 0, 0, 3, 1, 2], [5, 3, 4], [1, 1, 0, 2]):
        decoder.keep(order)
        new = draw(len(order), 1, len(order))
        texts = append([texts[stream] for stream in order], new)
        assert_ends(model, decoder.step(new), texts)


@torch.inference_mode()
def test_streams_that_remain_take_no_more_room_than_they_need(model, kind):
    """Room for 12 tokens: when a stream of 9 has gone, one of 2 that was flush with it still gets 10 more."""
    decoder = KINDS[kind](model)
    decoder.prefill([[3, 4, 5, 6, 7, 8, 9, 1, 2], [8, 9]], 0, 12)
    decoder.keep([1])
    texts = [[8, 9]]
    for number in range(5):
        new = draw(1, 2, number)
        texts = append(texts, new)
        assert_ends(model, decoder.step(new), texts)
        if kind == "reference":
            assert decoder.length == len(texts[0])


@pytest.mark.sweep
@torch.inference_mode()
def test_streams_may_become_longer_than_was_said(model, kind):
    """The memory that was taken is no limit: it grows."""
    if kind in SLOTS:
        pytest.skip("slots take their own memory")
    decoder, texts = KINDS[kind](model), PROMPTS
    decoder.prefill(PROMPTS, 0, 6)
    for number in range(70):  # beyond what is rounded up too
        new = draw(4, 1, number)
        texts = append(texts, new)
        hidden = decoder.step(new)
    assert_ends(model, hidden, texts)


@torch.inference_mode()
def test_what_was_read_is_not_read_again(model, kind):
    """Prefixes of unequal lengths, one prompt without any; and a stream's own export is the text it has read."""
    earlier, decoder = KINDS[kind](model), KINDS[kind](model)
    earlier.prefill(PROMPTS, 0, 32)
    new = draw(4, 2)
    earlier.step(new)
    texts = append(PROMPTS, new)
    caches = [earlier.export(stream) for stream in range(4)]
    prompts = [[*texts[0], 5], [8, 9, 7], [4, 4], [*texts[3][:6], 9]]
    prefixes = [CachedPrefix(caches[0], 7), CachedPrefix(caches[1], 2), None, CachedPrefix(caches[3], 6)]
    assert_ends(model, decoder.prefill(prompts, 0, 32, prefixes), prompts)
    assert decoder.num_computed == 2  # the prompt without a prefix
    more = draw(4, 1, seed=1)
    assert_ends(model, decoder.step(more), append(prompts, more))


@pytest.mark.sweep
@torch.inference_mode()
def test_tokens_see_what_they_are_told_and_stand_where_they_are_told(model, kind):
    """A tree of guesses: two branches behind the first new token, each blind to the other."""
    decoder, new = KINDS[kind](model), draw(4, 4)
    decoder.prefill(PROMPTS, 0, 32)
    branches = [[0], [0, 1], [0, 2], [0, 2, 3]]  # what each new token sees, itself last
    visible = torch.zeros(1, 4, 4, dtype=torch.bool)
    for number, seen in enumerate(branches):
        visible[0, number, seen] = True
    offsets = torch.tensor([[len(seen) - 1 for seen in branches]] * 4)
    every = decoder.step(new, offsets, visible, every=True)
    for number, seen in enumerate(branches):
        assert_ends(model, every[:, number], append(PROMPTS, new[:, seen]))
    earlier = torch.cat([torch.ones(4, 1, 4, dtype=torch.bool), visible.new_ones(4, 1, 1)], 2)
    decoder.commit([[0, 2, 3]] * 4, 4)
    last = draw(4, 1, seed=1)
    found = decoder.step(
        last, torch.zeros(4, 1, dtype=torch.int64), earlier
    )  # the latest 4 and itself: all it would see
    assert_ends(model, found, append(PROMPTS, torch.cat([new[:, [0, 2, 3]], last], 1)))


@torch.inference_mode()
def test_keeping_some_of_the_tokens_read_is_reading_only_those(model, kind):
    """Another number of tokens, not always the first, stays in each stream; then steps, drops and commits again."""
    decoder = KINDS[kind](model)
    decoder.prefill(PROMPTS, 0, 40)
    texts = PROMPTS
    for seed, kept in enumerate(([[0, 1, 2, 3, 4], [1, 3], [], [2]], [[], [0, 4], [1], [0, 1, 2]])):
        new = draw(4, 5, seed)
        # tokens that stay must not have seen those that go: each sees the prompt, itself and what stays before it
        visible = torch.eye(5, dtype=torch.bool).repeat(4, 1, 1)
        offsets = torch.zeros(4, 5, dtype=torch.int64)
        for stream, numbers in enumerate(kept):
            for place, number in enumerate(numbers):
                offsets[stream, number] = place
                visible[stream, number, numbers[: place + 1]] = True
        decoder.step(new, offsets, visible, every=True)
        decoder.commit(kept, 5)
        texts = [[*text, *new[stream, kept[stream]].tolist()] for stream, text in enumerate(texts)]
        assert [decoder.count_read(stream) for stream in range(4)] == list(map(len, texts))
        more = draw(4, 1, seed + 9)
        texts = append(texts, more)
        assert_ends(model, decoder.step(more), texts)
    decoder.keep([1, 2])
    more = draw(2, 1, 20)
    assert_ends(model, decoder.step(more), append(texts[1:3], more))


@pytest.mark.sweep
@torch.inference_mode()
def test_streams_join_those_that_are_there(model, kind):
    decoder = KINDS[kind](model)
    decoder = decoder if kind in SLOTS else make_slots(decoder, 128)  # every other one has a form that can be joined
    assert_ends(model, decoder.join(PROMPTS[:2], 0, [20, 20]), PROMPTS[:2])
    new = draw(2, 3)
    texts = append(PROMPTS[:2], new)
    decoder.step(new)
    assert_ends(model, decoder.join(PROMPTS[2:], 0, [9, 40]), PROMPTS[2:])
    texts += PROMPTS[2:]
    decoder.keep([0, 2, 3])
    texts = [texts[0], texts[2], texts[3]]
    assert_ends(model, decoder.join([[7, 7]], 0, [20]), [[7, 7]])
    texts.append([7, 7])
    for seed in range(3):
        new = draw(4, 1, seed)
        texts = append(texts, new)
        assert_ends(model, decoder.step(new), texts)
    decoder.keep([])
    assert_ends(model, decoder.join(PROMPTS, 0, [20] * 4), PROMPTS)
