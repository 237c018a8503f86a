"""Draft heads: the plain loop's answers whatever they guess, few passes where they are right, the authors' rules."""

import pytest
import torch
import torch.nn.functional as F

from tests.generation.test_fast_decoders import mixed, sampling
from unimodal.generation import make_decoder
from unimodal.generation.engine import Engine
from unimodal.generation.fast.draft_heads import DraftHeadDecoder
from unimodal.generation.fast.trees import build_chain, build_tree, follow_tree, make_tree_draft
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import SamplingConfig
from unimodal.model.draft_heads import DraftHeads, DraftHeadSettings, DraftPass, copy_head_rows, make_draft_heads

KINDS = {
    "future": DraftHeadSettings(num_ahead=4, num_states=3, num_layers=2),
    "future, one state": DraftHeadSettings(num_ahead=3, num_states=1, num_vectors=2, width=24),
    "medusa": DraftHeadSettings(kind="medusa", num_ahead=3),
    "medusa, own rows": DraftHeadSettings(kind="medusa", num_ahead=2, num_layers=2, own_rows=True),
}


def random_heads(settings, model, seed=0):
    """Heads that guess at random, as large weights do."""
    torch.manual_seed(seed)
    heads = make_draft_heads(settings, model.config.hidden_size, model.config.vocab_size)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return heads.eval().requires_grad_(False)


def decoder(settings, model, **more):
    heads = settings if isinstance(settings, DraftHeads) else random_heads(settings, model)
    return make_decoder("draft-heads", heads=heads, embed=model.get_input_embeddings(), **more)


@pytest.mark.sweep
@pytest.mark.sliced
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["packed", "lean", "reference"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("children", [1, 3])
def test_answers_are_the_plain_loops_whatever_is_guessed(model, vocabulary, ask, kind, engine, temperature, children):
    """Pictures, clips, speech and text, guided and not, greedy and sampled; together and each alone."""
    weights = {"packed": "float32", "lean": "model", "reference": "auto"}[engine]
    engine = Engine(model, vocabulary, "auto" if engine == "packed" else engine, weights=weights)
    prompts, configs = mixed(ask, sampling=sampling(temperature))
    plain, method = engine.generate(prompts, configs), decoder(KINDS[kind], model, children=children)
    assert engine.generate(prompts, configs, method=method) == plain
    assert engine.stats.drafted > 100
    assert [engine.generate([p], c, method=method)[0] for p, c in zip(prompts, configs, strict=True)] == plain
    session = engine.open_session()
    assert [engine.generate(prompts, configs, method=method, session=session) for _ in range(2)] == [plain] * 2


class Oracle(DraftHeads):
    """Heads that know an answer. `future` in kind: they see the tokens between."""

    def __init__(self, model, prompt, answer, num_ahead=5):
        super().__init__(DraftHeadSettings(num_ahead=num_ahead), model.config.hidden_size)
        with torch.inference_mode():
            self.hidden = model.get_decoder()(torch.tensor([[*prompt, *answer]])).last_hidden_state[0]

    def begin(self, states):
        at = int((self.hidden - states[0, -1]).norm(dim=1).argmin())
        return _OraclePass(self, at)


class _OraclePass(DraftPass):
    def __init__(self, oracle, at):
        self.oracle, self.at = oracle, at

    def read(self, embedded):
        self.at += 1
        return self.oracle.hidden[min(self.at, len(self.oracle.hidden) - 1)][None]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_heads_that_guess_right_take_few_passes(model, vocabulary, ask, temperature):
    """The model's own states at the tokens to come: every guess is right, under sampling too."""
    engine, prompt = Engine(model, vocabulary), ask([3])
    config = GenerationConfig(
        max_new_tokens=60, force="audio", min_codes={"audio": 40}, max_codes={"audio": 40}, seed=3,
        sampling=sampling(temperature),
    )  # fmt: skip
    [plain] = engine.generate([prompt], config)
    method = decoder(Oracle(model, prompt, plain), model, children=1)
    assert engine.generate([prompt], config, method=method) == [plain]
    # the prompt; then a span start and 40 codes by 6 a pass, and the tokens behind them
    assert engine.stats.forwards <= 1 + 7 + 2 and engine.stats.accepted >= 33


def test_a_tree_is_read_as_each_of_its_paths(model, vocabulary, ask):
    """Every node's state is that of a forward over its ancestors alone."""
    engine, nodes = Engine(model, vocabulary), [(-1, 3), (-1, 4), (0, 5), (1, 5), (2, 6)]
    prompt = ask([3, 4, 5])

    class Spy(DraftHeadDecoder):
        def propose(self, row):
            self.tree = nodes
            return make_tree_draft(row, nodes)

        def verify(self, row, draft, logits):
            assert draft.depths == [0, 1, 1, 2, 2, 3] and draft.wanted[0] == len(row.waiting) - 1
            self.found[:] = [logits, row.candidates.ids]
            return super().verify(row, draft, logits)

    spy = Spy(heads=random_heads(KINDS["medusa"], model), embed=model.get_input_embeddings())
    spy.found = found = []
    spy.start_request = lambda: spy
    config = GenerationConfig(max_new_tokens=9, allow=("text",), sampling=sampling(0.0), pause=2)
    [answer] = engine.generate([prompt], config, method=spy)
    paths = [[], [3], [4], [3, 5], [4, 5], [3, 5, 6]]
    with torch.inference_mode():
        for logits, path in zip(found[0], paths, strict=True):
            own = model(torch.tensor([[*prompt, answer[0], *path]])).logits[0, -1, found[1]]
            free = torch.isfinite(logits)
            torch.testing.assert_close(logits[free], own[free], atol=1e-4, rtol=1e-4)


def test_shapes_of_trees():
    assert build_chain(1, 3) == ((-1, 0, 1), (0, 0, 2), (1, 0, 3))
    assert build_chain(2, 2) == ((-1, 0, 1), (-1, 1, 1), (0, 0, 2), (0, 1, 2))
    tree = build_tree(12, 3, 4)
    assert len(tree) == 12 and all(parent < node for node, (parent, _, _) in enumerate(tree))
    row = type("Row", (), {"waiting": [9, 9]})()
    nodes = [(-1, 5), (-1, 6), (1, 7), (1, 8)]
    assert follow_tree(row, nodes, [6, 0, 8, 0, 4]) == ([6, 8, 4], [3, 5])
    assert follow_tree(row, nodes, [1, 0, 8, 0, 4]) == ([1], [])


def test_medusa_heads_are_the_authors():
    """h + SiLU(W h + b), W and b zero at first, behind rows that begin as the model's."""
    torch.manual_seed(0)
    heads = random_heads(DraftHeadSettings(kind="medusa", num_ahead=2, num_layers=2), TINY)
    states, embedded = torch.randn(3, 1, 16), torch.randn(3, 2, 16)
    found = heads(states, torch.ones(3, 1, dtype=torch.bool), embedded)
    for place in range(2):
        x = states[:, 0]
        for block in heads.blocks[place]:
            x = x + F.silu(x @ block.weight.T + block.bias)
        torch.testing.assert_close(found[:, place], x)
    passing = heads.begin(states)
    for place in range(2):
        torch.testing.assert_close(passing.read(embedded[:, place]), found[:, place])
    fresh = make_draft_heads(DraftHeadSettings(kind="medusa", num_ahead=2), 16)
    torch.testing.assert_close(fresh(states, torch.ones(3, 1, dtype=torch.bool), embedded)[:, 1], states[:, 0])


TINY = type("Tiny", (), {"config": type("Sizes", (), {"hidden_size": 16, "vocab_size": 20})})


def test_rows_of_their_own_begin_as_the_models(model):
    settings = DraftHeadSettings(kind="medusa", num_ahead=2, own_rows=True)
    heads = make_draft_heads(settings, model.config.hidden_size, model.config.vocab_size)
    copy_head_rows(heads, model)
    for place in range(2):
        assert torch.equal(heads.get_head(place).weight, model.get_output_embeddings().weight)
    shared = make_draft_heads(DraftHeadSettings(kind="medusa"), model.config.hidden_size)
    copy_head_rows(shared, model)
    assert shared.get_head(0) is None


@pytest.mark.parametrize("num", [1, 2, 3])
def test_the_small_decoder_reads_token_by_token_what_it_reads_at_once(num):
    """With fewer states than it may read, too: those that are missing change nothing."""
    heads = random_heads(DraftHeadSettings(num_ahead=4, num_states=3, num_layers=2, num_vectors=2), TINY)
    states, embedded = torch.randn(5, 3, 16), torch.randn(5, 4, 16)
    seen = torch.zeros(5, 3, dtype=torch.bool)
    seen[:, 3 - num :] = True
    whole, passing = heads(states, seen, embedded), heads.begin(states[:, 3 - num :])
    for place in range(4):
        torch.testing.assert_close(passing.read(embedded[:, place]), whole[:, place], atol=1e-5, rtol=1e-4)
    hidden = torch.where(seen[..., None], states, 99.0)
    torch.testing.assert_close(heads(hidden, seen, embedded), whole)
    later = embedded.clone()
    later[:, 2:] = 7.0
    torch.testing.assert_close(heads(states, seen, later)[:, :2], whole[:, :2])


def test_typical_acceptance_is_the_authors_rule(model, vocabulary, ask):
    """A guess is kept if its probability exceeds min(0.09, 0.3 · exp(-H)); the longest path, then the likeliest."""
    method = decoder(KINDS["medusa"], model, acceptance="typical")
    assert not method.lossless and decoder(KINDS["medusa"], model).lossless
    method.tree = nodes = [(-1, 2), (-1, 3), (0, 1), (0, 4), (1, 0), (3, 5)]
    paths = {-1: []}
    for node, (parent, _) in enumerate(nodes):
        paths[node] = [*paths[parent], node]
    found = type("Candidates", (), {"find_index": staticmethod(int)})
    row, right, lengths = type("Row", (), {"waiting": [8], "candidates": found}), list(range(10, 17)), set()
    for seed in range(30):
        p = torch.randn(7, 9, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(1)
        kept = []
        for path in paths.values():
            at, likely = -1, 0.0
            for node in path:
                q = p[1 + at]
                bound = min(0.09, 0.3 * float((q * (q + 1e-5).log()).sum().exp()))
                if q[nodes[node][1]] <= bound:
                    break
                likely, at = likely + float(q[nodes[node][1]].log()), node
            else:
                kept.append((len(path), likely, path))
        best = max(kept)[2]
        tokens, read = method._follow_typical(row, p, right)
        assert read == [1 + node for node in best]
        assert tokens == [*(nodes[node][1] for node in best), right[1 + best[-1]] if best else right[0]]
        lengths.add(len(best))
    assert lengths >= {0, 1, 2}
    config = GenerationConfig(max_new_tokens=40, force="image", sampling={"image": SamplingConfig(temperature=0.7)})
    answer = Engine(model, vocabulary).generate([ask([3])], config, method=method)[0]
    assert vocabulary.decode_span(answer[: answer.index(vocabulary.get_end_id("image")) + 1])[0] == "image"


def test_what_cannot_be_is_one_line(model, vocabulary, ask):
    config = GenerationConfig(max_new_tokens=40, force="image")
    with pytest.raises(ValueError, match=r"needs heads trained for the model.*recipes/train_draft\.py"):
        Engine(model, vocabulary).generate([ask([3])], config, method=make_decoder("draft-heads"))
    with pytest.raises(ValueError, match="give embed="):
        make_decoder("draft-heads", heads=random_heads(KINDS["medusa"], model))
    with pytest.raises(ValueError, match="children is 0"):
        decoder(KINDS["medusa"], model, children=0)
    with pytest.raises(ValueError, match="acceptance 'lax' is unknown"):
        decoder(KINDS["medusa"], model, acceptance="lax")
    with pytest.raises(ValueError, match="num_states is of kind future, and the kind is medusa"):
        DraftHeadSettings(kind="medusa", num_states=4)
    with pytest.raises(ValueError, match="own_rows is of kind medusa"):
        DraftHeadSettings(own_rows=True)
