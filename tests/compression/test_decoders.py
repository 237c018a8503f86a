"""Every stock decoder of the suite's table: accepted ones equal their own forward, the rest is refused in one line."""

import pytest
import torch

from tests.compression.conftest import STEPS
from tests.tiny_bases import BASES, MORE_BASES, WINDOW, make_base
from unimodal.compression import METHODS

#: not run: parts of Llama's are missing, or the forward does more
NEEDS = "compression needs a decoder like Llama's"
LACKING = (
    "phi", "gpt2", "gpt_neox", "falcon", "opt", "gpt_bigcode", "gptj", "codegen", "persimmon", "nanochat", "doge",
    "biogpt", "ctrl", "lfm2", "mamba", "bloom", "bert", "gemma4_text",
)  # fmt: skip
#: run, but not by methods that look into the attention: it is not one call over the keys that the cache holds
CLOSED = ("diffllama", "minicpm3")
#: the method, its rule for positions, and whether it looks into the attention
METHODS_TRIED = [
    ("stride", "compacted", False), ("transprune", "kept", True), ("snapkv", "compacted", True), ("dapq", "kept", True),
    ("h2o", "compacted", True), ("fasa", "kept", True), ("token_sparse", "kept", True), ("ppe", "kept", False),
    ("expected_attention", "compacted", True), ("adakv", "compacted", True), ("kvzip", "kept", True),
    ("kivi", "kept", True),
]  # fmt: skip


@pytest.fixture(scope="module")
def bases(vocabulary):
    """A random base of a type, and what it says to the prompts; made once."""
    made = {}

    def get(kind):
        if kind not in made:
            more = {"vocab_size_per_layer_input": vocabulary.size} if kind == "gemma4_text" else {}
            made[kind] = make_base(kind, None, vocab_size=vocabulary.size, **more)
        return made[kind]

    return get


def read_alone(base, row, steps=STEPS):
    """Logits behind a row and behind each step, through the base's own cache."""
    ids = torch.tensor([row])
    out = base(ids, use_cache=True)
    found = [out.logits[0, -1]]
    for step in steps:
        held = out["cache"] if "cache" in out else out["past_key_values"]
        named = {"cache" if "cache" in out else "past_key_values": held}
        out = base(torch.tensor([[step]]), use_cache=True, **named)
        found.append(out.logits[0, -1])
    return torch.stack(found)


@pytest.mark.parametrize("name", ["dapq", "snapkv"])
@torch.no_grad()
def test_tables_may_have_one_value_for_both_of_a_pair(bases, vocabulary, prompt, span, name):
    """Those of GPT-OSS do, and are half as wide as what they turn."""
    base, row = bases("gpt_oss"), prompt([3], span("image", 1), [5])
    expected = read_alone(base, row)
    with METHODS[name](1.0)(base, vocabulary):
        torch.testing.assert_close(read_alone(base, row), expected, rtol=0, atol=2e-4)
    with METHODS[name](0.15)(base, vocabulary):
        assert torch.isfinite(read_alone(base, row)).all()


def describe(kind, method):
    return {"kind": kind if kind in BASES else "more", "method": method[0]}


@pytest.mark.sweep
@pytest.mark.sliced(by=describe)
@pytest.mark.parametrize("method", METHODS_TRIED, ids=lambda method: method[0])
@pytest.mark.parametrize("kind", [kind for kind in (*BASES, *MORE_BASES, "gpt_oss") if kind not in LACKING])
@torch.no_grad()
def test_a_base_is_run_as_its_own_forward_runs_it(kind, method, bases, vocabulary, prompt, span):
    """Keeping everything changes nothing, past a window too; keeping less works in a batch of padded rows."""
    name, positions, looks = method
    base, rows = bases(kind), [prompt([3], span("image", 1), [5]), prompt(span("image", 2), [5, 6, 7])]
    assert len(rows[0]) > WINDOW
    opened = METHODS[name](1.0, positions=positions)
    if kind in CLOSED and looks:
        with (
            pytest.raises(ValueError, match="attends to other keys than its cache holds") as error,
            opened(base, vocabulary),
        ):
            pass
        assert "\n" not in str(error.value)
        return
    expected = read_alone(base, rows[0])
    with opened(base, vocabulary):
        torch.testing.assert_close(read_alone(base, rows[0]), expected, rtol=0, atol=2e-4)
    longest = max(map(len, rows))
    pads = torch.tensor([longest - len(row) for row in rows])[:, None]
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    keep = (
        0.15 if name in ("adakv", "dapq", "kvzip", "transprune") else 0.4
    )  # these drop first what is past a window, which changes nothing
    with METHODS[name](keep, positions=positions)(base, vocabulary):
        places = torch.arange(longest)
        together = base(
            ids, attention_mask=(places >= pads).long(), position_ids=(places - pads).clamp(min=0), use_cache=False
        ).logits[:, -1]
        alone = read_alone(base, rows[0])
    torch.testing.assert_close(together[0], alone[0], rtol=0, atol=2e-3)
    assert torch.isfinite(alone).all() and not torch.allclose(alone, expected, atol=1e-3)


@pytest.mark.sweep
@pytest.mark.parametrize("kind", LACKING)
def test_other_bases_are_refused_in_one_line(kind, bases, vocabulary):
    with pytest.raises(ValueError) as error, METHODS["stride"](0.5)(bases(kind), vocabulary):
        pass
    assert "\n" not in str(error.value) and "compression needs" in str(error.value)
    assert "forward" not in vars(bases(kind).get_decoder())
