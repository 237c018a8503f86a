"""What prompts have in common is read once and held once, and every answer is what it is without that."""

import itertools

import pytest
import torch

from tests.generation.test_base_table import LAYERS, list_layers
from tests.tiny_bases import make_base
from unimodal.generation.continuous import ContinuousBatch
from unimodal.generation.decoders.lean_decoder import LeanDecoder
from unimodal.generation.decoders.paged_cache import BLOCK
from unimodal.generation.decoders.shared_prompts import count_common, split_prompts
from unimodal.generation.decoders.slot_decoders import LeanSlots
from unimodal.generation.decoders.step_decoder import CachedPrefix
from unimodal.generation.engine import Engine
from unimodal.generation.kinds import CACHES
from unimodal.generation.request import GenerationConfig, GenerationRequest


def draw(length, seed):
    return torch.randint(3, 45, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


SYSTEM, PICTURE = draw(130, 1), draw(90, 2)
PROMPTS = [
    [*SYSTEM, *PICTURE, 5, 6],
    [*SYSTEM, *PICTURE, 7],
    [*SYSTEM, *draw(20, 3)],
    draw(100, 4),
    [*SYSTEM, *PICTURE, 5, 6],  # the same prompt again
    [9],
    SYSTEM[:100],
]


def list_stretches(tree):
    for stretch in tree:
        yield stretch
        yield from list_stretches(stretch.parts)


@pytest.mark.parametrize("least", [1, 16, 64, 1000])
def test_stretches_put_together_are_the_prompts(least):
    prompts = [tuple(prompt) for prompt in PROMPTS if prompt is not PROMPTS[4]]
    tree = split_prompts(prompts, range(len(prompts)), 0, least)
    read = {member: [] for member in range(len(prompts))}
    for stretch in list_stretches(tree):
        assert stretch.end > stretch.begin and (stretch.parts or len(stretch.members) == 1)
        assert len(stretch.members) == 1 or stretch.end - stretch.begin >= least
        for member in stretch.members:
            assert len(read[member]) == stretch.begin
            read[member] += prompts[stretch.members[0]][stretch.begin : stretch.end]
    assert [tuple(read[member]) for member in range(len(prompts))] == prompts
    lengths = sum(map(len, prompts))
    num_read = sum(stretch.end - stretch.begin for stretch in list_stretches(tree))
    assert num_read == lengths if least == 1000 else num_read < lengths - 3 * 90


def test_common_beginnings_are_counted():
    for first, second in itertools.product((0, 1, 63, 64, 65, 128, 150), repeat=2):
        assert count_common([1] * first, [1] * second) == min(first, second)
        assert count_common([1] * first + [2], [1] * second + [3]) == min(first, second)


def run_steps(decoder, hidden, num):
    """The states behind the prompts, of steps, guesses of which some are kept, and rows that go and are copied."""
    found = [hidden]
    for number in range(num):
        count = len(hidden)
        new = torch.randint(3, 45, (count, 1 + 3 * (number % 3 == 1)), generator=torch.Generator().manual_seed(number))
        found.append(decoder.step(new, every=True))
        if number % 3 == 1:
            decoder.commit([[0, 1][: 1 + stream % 2] for stream in range(count)], 4)
        if number == num // 2:
            decoder.keep([0, 2, 2, *range(3, count)])
    return found


@pytest.mark.sweep
@pytest.mark.sliced
@pytest.mark.parametrize("layers", list_layers())
@pytest.mark.parametrize("slots", [False, True])
@pytest.mark.parametrize("kv", CACHES)
@pytest.mark.parametrize("kind", ["llama", "gemma2", "mistral"])
@torch.inference_mode()
def test_states_are_those_of_prompts_that_share_nothing(kind, kv, slots, layers, monkeypatch):
    """To the last bit where a row does not depend on its batch, which holds of compiled steps."""
    model = make_base(kind, None, max_position_embeddings=512)
    own = LAYERS[layers](model, kv=kv) if layers == "lean" else LAYERS[layers](model, "float32", kv)
    found, read, used = [], [], []
    for shares in (True, False):
        decoder = LeanSlots(own, 512) if slots else LeanDecoder(own)
        decoder.shares = shares
        hidden = decoder.join(PROMPTS, 0, [260] * 7) if slots else decoder.prefill(PROMPTS, 0, 260)
        read.append(decoder.num_read)
        used.append(decoder.cached.num_bytes_used)
        found.append(run_steps(decoder, hidden, 7))
    for mine, alone in zip(*found, strict=True):
        if layers == "native":
            assert torch.equal(mine, alone)
        elif kv != "int8":  # where a last bit may round to another step
            torch.testing.assert_close(mine, alone, rtol=2e-5, atol=2e-5) if kv == "model" else None
    assert read == [99 + 1 + 51 + 121 + 2 + 1 + 100 + 1, sum(map(len, PROMPTS))]
    assert used[0] < used[1] or (kind == "mistral" and used[0] <= used[1])


@pytest.mark.parametrize("passed", [0, 80])
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
@torch.inference_mode()
def test_who_joins_later_shares_with_who_is_there(kind, passed):
    """And goes on when that one has gone; under windows only where theirs have not passed on."""
    model = make_base(kind, None, max_position_embeddings=512)
    make = LAYERS["packed"]
    slots = LeanSlots(make(model, "float32"), 512)
    slots.join([PROMPTS[0]], 0, [320])
    assert slots.num_read == 222
    alone = slots.cached.num_bytes_used
    for number in range(passed):
        slots.step(torch.tensor([[number % 40]]))
    hidden = slots.join([PROMPTS[1], [8] * 70], 0, [300, 80])
    assert slots.num_read == 70 + (221 if kind == "gemma2" and passed else 1)
    new = torch.tensor([[4], [5], [6]])
    slots.step(new)
    slots.keep([1])
    expected = LeanDecoder(make(model, "float32"))
    torch.testing.assert_close(hidden[:1], expected.prefill([PROMPTS[1]], 0, 300), rtol=2e-5, atol=2e-5)
    expected.step(new[1:2])
    for number in range(3):
        token = torch.tensor([[number + 7]])
        torch.testing.assert_close(slots.step(token), expected.step(token), rtol=2e-5, atol=2e-5)
    assert slots.cached.num_bytes_used <= alone


@torch.inference_mode()
def test_copies_of_a_stream_are_made_when_they_are_written(model):
    decoder = LeanDecoder(model)
    decoder.prefill([[5] * 70], 0, 71)
    [paged] = decoder.cached.caches
    assert paged.num_used == 2
    decoder.keep([0] * 4)
    assert paged.num_used == 2
    decoder.step(torch.tensor([[1], [2], [3], [4]]))
    assert paged.num_used == 1 + 4
    decoder.keep([3])
    assert paged.num_used == 2 and decoder.cached.num_bytes_used == decoder.cached.weigh([2])


@pytest.mark.parametrize("kv", CACHES)
@pytest.mark.parametrize("weights", ["model", "float32"])
def test_guided_rows_of_one_prompt_answer_as_without_sharing(make_model, vocabulary, ask, kv, weights):
    """Several pictures of one prompt, with their unconditional twins: in the engine, and in a batch that they join one
    by one."""
    model = make_model(max_positions=512)
    prompt, bare = ask([3 + n % 4 for n in range(150)]), ask([4] * 90)
    sampling = GenerationConfig(max_new_tokens=12, force="image", guidance={"image": 3.0}, unconditional=tuple(bare))
    configs = [sampling.model_copy(update={"seed": seed}) for seed in range(4)]
    answers, sizes = [], []
    for shares in (True, False):
        engine = Engine(model, vocabulary, "lean", weights=weights, kv=kv)
        engine.decoder.shares = shares
        answers.append(engine.generate([prompt] * 4, configs))
        sizes.append(engine.decoder.cached.num_bytes)
        batch = ContinuousBatch(engine)
        batch.run.slots.shares = shares
        done = {}
        for config in configs:
            batch.admit([GenerationRequest(prompt, config)])
            done.update({one.key: one.answer for one in batch.advance_rows()})
        assert batch.run.slots.num_read == (2 if shares else len(prompt) + len(bare))
        while len(batch):
            done.update({one.key: one.answer for one in batch.advance_rows()})
        answers.append([done[key] for key in sorted(done)])
    assert answers[0] == answers[1] == answers[2] == answers[3]
    assert len({tuple(answer) for answer in answers[0]}) > 1
    # 166 tokens of each stream: three blocks; of further rows those behind the whole ones of 154 and 94; and nobody's
    assert 25 * sizes[0] == (3 + 3 * 1 + 3 + 3 * 2 + 1) * sizes[1]


@torch.inference_mode()
def test_prefixes_of_one_copy_are_one(model):
    """Two prompts that go on from one earlier stream, at unequal places."""
    earlier, decoder = LeanDecoder(model), LeanDecoder(model)
    earlier.prefill([[5] * 90], 0, 100)
    cache = earlier.export(0)
    prompts = [[*[5] * 90, 7], [*[5] * 80, 6, 6], [*[5] * 80, 6, 6]]
    hidden = decoder.prefill(prompts, 0, 110, [CachedPrefix(cache, num) for num in (90, 80, 80)])
    assert decoder.num_read == 3 and decoder.num_computed == 2
    for prompt, state in zip(prompts, hidden, strict=True):
        expected = model.get_decoder()(input_ids=torch.tensor([prompt]), use_cache=False).last_hidden_state[0, -1]
        torch.testing.assert_close(state, expected, rtol=1e-5, atol=1e-5)
    assert decoder.cached.caches[0].num_used * BLOCK < 3 * 110 + BLOCK


@torch.inference_mode()
def test_rows_that_were_read_together_find_the_blocks_of_their_answers(make_model):
    """Their blocks are taken behind the last piece of their prompts, of which a table was made."""
    model = make_model(max_positions=512)
    prompts = [[*SYSTEM[:100], 5], [*SYSTEM[:100], 6]]
    states = []
    for shares in (True, False):
        decoder = LeanDecoder(model)
        decoder.shares = shares
        states.append([decoder.prefill([[token % 40 for token in prompt] for prompt in prompts], 0, 240)])
        for number in range(4):
            new = torch.randint(1, 40, (2, 30), generator=torch.Generator().manual_seed(number))
            states[-1].append(decoder.step(new, every=True))
        assert decoder.num_read == (102 if shares else 202)
    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-5)
