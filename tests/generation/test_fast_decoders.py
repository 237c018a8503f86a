"""Fast decoders: lossless ones write the plain loop's answers or follow its distribution; all keep the grammar."""

import pytest
import torch

from tests.campaigns import is_study
from unimodal.generation import DECODERS, make_decoder
from unimodal.generation.engine import Engine
from unimodal.generation.fast.draft_memory import DraftMemory
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import GREEDY, SamplingConfig
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

MODALITIES = ("text", "image", "audio", "video")
IDENTICAL = ("jacobi", "retrieval", "token-recycling")  # the same answers under sampling too
LOSSLESS = (*IDENTICAL, "sjd", "coupled-sjd")


def sampling(temperature, **more):
    config = GREEDY if temperature == 0 else SamplingConfig(temperature=temperature, **more)
    return dict.fromkeys(MODALITIES, config)


def mixed(ask, **common):
    """Pictures, a clip, speech of free length and text; with guidance, an interval, a negative prompt and without."""
    bare = tuple(ask())
    rows = [
        (ask([3, 4]), {"force": "image"}),
        (ask([5, 6, 8, 9, 10]), {"force": "video", "guidance": {"video": 2.0}, "unconditional": bare}),
        (ask([11]), {"allow": ("text",)}),
        (ask([12, 13]), {"force": "audio", "max_codes": {"audio": 20}}),
        (
            ask([3]),
            {
                "force": "image",
                "guidance": {"image": 1.5},
                "guidance_interval": {"image": (1, 4)},
                "unconditional": tuple(ask([14])),
            },
        ),
        (ask([2, 2]), {}),
    ]
    configs = [
        GenerationConfig(**{"max_new_tokens": 40, "seed": seed, **common, **changes})
        for seed, (_, changes) in enumerate(rows)
    ]
    return [prompt for prompt, _ in rows], configs


@pytest.fixture(params=["packed", "lean", "reference"])
def engine(request, model, vocabulary):
    if request.param == "packed":
        return Engine(model, vocabulary, weights="float32")
    return Engine(model, vocabulary, request.param, weights="model" if request.param == "lean" else "auto")


@pytest.mark.sweep
@pytest.mark.sliced
@pytest.mark.parametrize("name", LOSSLESS)
def test_greedy_answers_are_the_plain_loops(engine, ask, name):
    prompts, configs = mixed(ask, sampling=sampling(0))
    plain = engine.generate(prompts, configs)
    method = make_decoder(name)
    assert engine.generate(prompts, configs, method=method) == plain
    assert [engine.generate([p], c, method=method)[0] for p, c in zip(prompts, configs, strict=True)] == plain


@pytest.mark.sweep
@pytest.mark.sliced
@pytest.mark.parametrize("name", IDENTICAL)
@pytest.mark.parametrize("more", [{}, {"top_k": 9, "top_p": 0.9}], ids=["plain", "filtered"])
def test_with_the_noise_of_each_place_sampled_answers_are_the_plain_loops(engine, ask, name, more):
    prompts, configs = mixed(ask, sampling=sampling(0.8, **more))
    assert engine.generate(prompts, configs, method=make_decoder(name)) == engine.generate(prompts, configs)


@pytest.mark.sweep
@pytest.mark.sliced
@pytest.mark.parametrize("name", LOSSLESS)
def test_a_session_changes_nothing(engine, ask, name):
    prompts, configs = mixed(ask, sampling=sampling(0.0))
    session, method = engine.open_session(), make_decoder(name)
    plain = engine.generate(prompts, configs)
    for _ in range(2):
        assert engine.generate(prompts, configs, method=method, session=session) == plain
    assert engine.stats.cached_tokens > 0


@pytest.fixture(scope="module")
def small():
    """Pictures of three codes out of five: 125 possible answers, all of which can be counted."""
    return Vocabulary.build(
        6, [Block(name="image", modality="image", size=5)], [SpanLayout("image", [Segment("image", 3)])]
    )


@pytest.fixture(scope="module")
def small_model(small):
    from unimodal.model.build import NanoConfig, build_nano

    cfg = NanoConfig(
        hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=16, max_positions=32, init_std=0.4
    )
    return build_nano(small.size, cfg, pad_id=0, bos_id=1, eos_id=2, seed=4).eval()


@torch.inference_mode()
def distribution(model, vocabulary, prompt, bare, scale, temperature):
    """The probability of each of the 125 pictures, guided, from full forwards."""
    rows = vocabulary.get_block_range("image")
    start = vocabulary.get_start_id("image")
    chances = torch.ones(1, dtype=torch.float64)
    for length in range(3):
        spans = (
            torch.cartesian_prod(*[torch.arange(5)] * length).view(-1, length) if length else torch.zeros(1, 0).long()
        )
        logits = []
        for head in (prompt, bare):
            ids = torch.cat([torch.tensor([*head, start]).expand(len(spans), -1), spans + rows.start], 1)
            logits.append(model(ids).logits[:, -1, rows.start : rows.stop].double())
        guided = logits[1] + scale * (logits[0] - logits[1])
        chances = (chances[:, None] * (guided / temperature).softmax(1)).flatten()
    return chances


@pytest.mark.sweep
@pytest.mark.study
@pytest.mark.parametrize(
    "name",
    [
        "plain", "jacobi", "sjd", "coupled-sjd", "sjd, remembering", "coupled-sjd, remembering",
        "coupled-sjd, coupling=maximal", "sjd, initial=random", "sjd, initial=repeat", "sjd, initial=sample",
    ],
)  # fmt: skip
def test_sampled_pictures_follow_the_exact_distribution(small, small_model, name):
    """Chi-square over 500 guided pictures, 2,400 in a study, against the probabilities of all 125, rare ones pooled."""
    num, scale, temperature = 2400 if is_study() else 500, 1.7, 0.9
    bos, user, end, assistant = (
        small.get_control_id(n) for n in ("<|bos|>", "<|user|>", "<|end_of_turn|>", "<|assistant|>")
    )
    prompt, bare = [bos, user, 3, 4, end, assistant], [bos, user, end, assistant]
    engine = Engine(small_model, small)
    configs = [
        GenerationConfig(
            max_new_tokens=6,
            force="image",
            guidance={"image": scale},
            unconditional=tuple(bare),
            sampling={"image": SamplingConfig(temperature=temperature)},
            seed=seed,
        )
        for seed in range(num)
    ]
    kind, _, more = name.partition(", ")
    settings = dict([more.split("=")]) if "=" in more else {}
    method = None if name == "plain" else make_decoder(kind, window=3, **settings)
    if more == "remembering":  # some guesses for every context: what is likely must not become likelier
        rows, known = small.get_block_range("image"), torch.Generator().manual_seed(1)
        for picture in torch.randint(0, 5, (12, 3), generator=known):
            method.learn([end, assistant, small.get_start_id("image"), *(picture + rows.start).tolist()])
    answers = engine.generate([prompt] * num, configs, method=method)
    codes = torch.tensor([answer[1:4] for answer in answers]) - small.get_block_range("image").start
    counts = torch.bincount(codes @ torch.tensor([25, 5, 1]), minlength=125).double()
    expected = distribution(small_model, small, prompt, bare, scale, temperature) * num
    common = expected >= 5
    counts = torch.cat([counts[common], counts[~common].sum()[None]])
    expected = torch.cat([expected[common], expected[~common].sum()[None]])
    statistic = ((counts - expected).square() / expected).sum()
    p = torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2, dtype=torch.float64), statistic / 2)
    assert len(expected) > 12 and float(p) > 1e-3
    assert method is None or engine.stats.accepted > num // 10  # guesses were judged, not only drawn anew


@pytest.mark.sweep
@pytest.mark.sliced
@pytest.mark.parametrize("name", sorted(set(DECODERS) - {"draft-heads"}))  # they have a file of their own
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_no_decoder_breaks_the_grammar(model, vocabulary, ask, name, temperature):
    rasters = {"columns": {"image": 2, "video": 3}}
    settings = {"zipar": {**rasters, "window": 1}, "next-x": {**rasters, "size": 1, "steps": 2}}.get(name, {})
    prompts, configs = mixed(ask, sampling=sampling(temperature))
    answers = Engine(model, vocabulary).generate(prompts, configs, method=make_decoder(name, **settings))
    end = vocabulary.get_control_id("<|end_of_turn|>")
    for config, answer in zip(configs, answers, strict=True):
        assert answer[-1] == end and len(answer) <= config.max_new_tokens
        if config.force is not None:
            last = answer.index(vocabulary.get_end_id(config.force)) + 1
            assert vocabulary.decode_span(answer[:last])[0] == config.force


def test_jacobi_takes_fewer_passes_where_places_hardly_depend_on_each_other(make_model, vocabulary, ask):
    """A head that sees the position only through a weak attention: the fixed point is found in a few passes."""
    model = make_model(init_std=0.02)
    engine = Engine(model, vocabulary)
    config = GenerationConfig(max_new_tokens=60, force="audio", min_codes={"audio": 40}, max_codes={"audio": 40})
    plain = engine.generate([ask([3])], config)
    plain_forwards = engine.stats.forwards
    assert engine.generate([ask([3])], config, method=make_decoder("jacobi")) == plain
    assert engine.stats.forwards < plain_forwards / 3
    assert engine.stats.accepted > 20


@pytest.mark.sweep("campaigns of the engine")
def test_coupled_noise_accepts_more_than_fresh_noise(model, vocabulary, ask):
    """The published point of the coupling, over 40 clips of the same model."""
    configs = [
        GenerationConfig(max_new_tokens=60, force="audio", min_codes={"audio": 40}, max_codes={"audio": 40}, seed=seed)
        for seed in range(40)
    ]
    accepted = {}
    for name in ("sjd", "coupled-sjd"):
        engine = Engine(model, vocabulary)
        engine.generate([ask([3])] * 40, configs, method=make_decoder(name))
        accepted[name] = engine.stats.accepted / engine.stats.drafted
    assert accepted["coupled-sjd"] > 1.05 * accepted["sjd"]


def test_what_was_written_before_is_drafted_and_nothing_is_changed(model, vocabulary, ask):
    """A memory of the answer: as many passes as windows. One of others: no more than the plain loop."""
    engine = Engine(model, vocabulary)
    config = GenerationConfig(
        max_new_tokens=60, force="audio", min_codes={"audio": 40}, max_codes={"audio": 40}, seed=3, sampling=sampling(1)
    )
    plain, forwards = engine.generate([ask([3])], config), engine.stats.forwards
    method = make_decoder("retrieval", window=9)
    assert engine.generate([ask([3])], config, method=method) == plain  # it learns as it goes
    assert engine.stats.forwards <= forwards + 1
    assert engine.generate([ask([3])], config, method=method) == plain
    assert engine.stats.forwards < forwards / 3 and engine.stats.accepted > 25
    told = make_decoder("retrieval", window=9)
    told.learn(plain[0])
    assert engine.generate([ask([3])], config, method=told) == plain and engine.stats.forwards < forwards / 3
    wrong = make_decoder("retrieval")
    wrong.learn([vocabulary.size - 1 - number % 7 for number in range(60)] + [token ^ 1 for token in plain[0]])
    assert engine.generate([ask([3])], config, method=wrong) == plain and engine.stats.forwards <= forwards + 1


def test_the_memory_forgets_the_oldest_and_prefers_the_newest():
    memory = DraftMemory(context=2, most=3)
    memory.learn([1, 2, 3, 4])
    memory.learn([1, 2, 5])
    assert memory.successors == {(2, 3): 4, (1, 2): 5}
    memory.learn([6, 7, 8, 9])
    assert memory.successors == {(1, 2): 5, (6, 7): 8, (7, 8): 9}
    with pytest.raises(ValueError, match="context is 17; it is a number of tokens between 1 and 16"):
        DraftMemory(context=17)
    with pytest.raises(ValueError, match="context is 0"):
        DraftMemory(context=0)


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["sjd", "coupled-sjd", "gsd"])
def test_a_window_begins_with_what_is_remembered(model, vocabulary, ask, name):
    """Greedy: in a few passes with a memory of the answer, unchanged by a wrong one; memories are shared by rows."""
    engine = Engine(model, vocabulary)
    config = GenerationConfig(
        max_new_tokens=60, force="audio", min_codes={"audio": 40}, max_codes={"audio": 40}, sampling=sampling(0)
    )
    plain, forwards = engine.generate([ask([3])], config), engine.stats.forwards
    told = make_decoder(name, window=9)
    told.learn(plain[0])
    assert engine.generate([ask([3])] * 2, config, method=told) == plain * 2 and engine.stats.forwards < forwards / 3
    begun = make_decoder(name, window=9, memory=DraftMemory(context=2))  # empty: it learns as it goes
    engine.generate([ask([3])], config, method=begun)
    assert engine.generate([ask([3])], config, method=begun) == plain and engine.stats.forwards < forwards / 3
    wrong = make_decoder(name)
    wrong.learn([token ^ 1 for token in plain[0]] + [7] * 20)
    assert engine.generate([ask([3])], config, method=wrong) == plain and engine.stats.forwards <= forwards + 1


@pytest.mark.sweep("campaigns of the engine")
def test_groups_accept_at_least_what_single_tokens_do(model, vocabulary, ask):
    """GSD without neighbours is coupled SJD; with neighbours it keeps more guesses."""
    configs = [GenerationConfig(max_new_tokens=60, force="audio", max_codes={"audio": 40}, seed=s) for s in range(20)]
    prompts, kept = [ask([3])] * 20, {}

    def run(name, **settings):
        engine = Engine(model, vocabulary)
        answers = engine.generate(prompts, configs, method=make_decoder(name, **settings))
        kept[name + str(settings)] = engine.stats.accepted / engine.stats.drafted
        return answers

    assert run("gsd", neighbours=0) == run("coupled-sjd")
    run("gsd")
    assert kept["gsd{}"] > kept["coupled-sjd{}"]
    codes = torch.eye(12)  # all code vectors further apart than max_distance: every token is alone
    assert run("gsd", metric="codebook", code_vectors={"audio": codes}) == run("coupled-sjd")


def test_zipar_is_the_plain_loop_with_a_whole_row_as_window_and_faster_below(model, vocabulary, ask):
    engine = Engine(model, vocabulary)
    configs = [
        GenerationConfig(
            max_new_tokens=40,
            force="image",
            seed=seed,
            guidance={"image": 1.5},
            unconditional=ask(),
            sampling=sampling(0.7),
        )
        for seed in range(4)
    ]
    prompts = [ask([3]), ask([4, 5]), ask([6]), ask([9, 9, 9])]
    plain, forwards = engine.generate(prompts, configs), engine.stats.forwards
    assert engine.generate(prompts, configs, method=make_decoder("zipar", window=2, columns={"image": 2})) == plain
    engine.generate(prompts, configs, method=make_decoder("zipar", window=1, columns={"image": 2}))
    assert engine.stats.forwards == forwards - 2  # 3 rows of 2: the second and third start one step earlier each


def test_zipar_refuses_what_has_no_rows(model, vocabulary, ask):
    engine, config = Engine(model, vocabulary), GenerationConfig(max_new_tokens=40, force="image")
    with pytest.raises(ValueError, match="codes of block 'image' are not in raster order"):
        engine.generate([ask([3])], config, method=make_decoder("zipar"))
    with pytest.raises(ValueError, match="6 codes, which 4 columns do not divide"):
        engine.generate([ask([3])], config, method=make_decoder("zipar", columns={"image": 4}))


def test_masked_decoding_takes_a_fixed_number_of_passes(model, vocabulary, ask):
    engine = Engine(model, vocabulary)
    config = GenerationConfig(max_new_tokens=40, force="image", sampling=sampling(0))
    engine.generate([ask([3])], config, method=make_decoder("masked", passes=3))
    assert engine.stats.forwards <= 1 + 3


def test_token_recycling_repeats_a_text_in_fewer_passes(model, vocabulary, ask):
    engine, method = Engine(model, vocabulary), make_decoder("token-recycling")
    config = GenerationConfig(max_new_tokens=60, allow=("text",), min_text_tokens=50, sampling=sampling(0))
    plain, forwards = engine.generate([ask([3])], config), engine.stats.forwards
    for _ in range(2):
        assert engine.generate([ask([3])], config, method=method) == plain
    assert engine.stats.forwards < forwards / 2
    taught = make_decoder("token-recycling")
    taught.learn(plain[0])
    assert engine.generate([ask([3])], config, method=taught) == plain


def test_the_tree_holds_parents_first_and_the_likeliest_paths():
    from unimodal.generation.fast.token_recycling import build_tree

    nodes = build_tree(80, 8, 6)
    assert len(nodes) == 80 and max(depth for *_, depth in nodes) <= 6
    for index, (parent, rank, depth) in enumerate(nodes):
        assert parent < index and 0 <= rank < 8
        assert depth == 1 + (0 if parent < 0 else nodes[parent][2])
    assert nodes[0] == (-1, 0, 1) and len({(parent, rank) for parent, rank, _ in nodes}) == 80


def test_an_unknown_decoder_names_those_that_there_are():
    with pytest.raises(ValueError, match="decoder 'fast' is unknown; choose jacobi, sjd, coupled-sjd"):
        make_decoder("fast")


def test_events_stops_and_pauses_work_in_stretches(model, vocabulary, ask):
    engine, method = Engine(model, vocabulary), make_decoder("jacobi")
    prompts, configs = mixed(ask, sampling=sampling(0))
    events = []
    answers = engine.generate(prompts, configs, on_token=events.append, method=method)
    for row, answer in enumerate(answers):
        mine = [event for event in events if event.row == row]
        assert [event.id for event in mine] == answer
        assert [event.index for event in mine] == list(range(len(answer)))
    paused = [config.model_copy(update={"pause": 5}) for config in configs]
    for chosen in (None, method):
        cut = engine.generate(prompts, paused, method=chosen)
        assert cut == [answer[:5] for answer in answers]
