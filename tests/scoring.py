"""The likelihood of an answer from the logits before each of its ids: drawn row by row among what may come next."""

import torch

from unimodal.generation.grammar import Grammar
from unimodal.generation.request import GenerationConfig


def score_drawn(logits, vocabulary, prompt, answer, **request):
    """logits [A, V], answer [A] → log-probabilities [A]; every other row of the vocabulary is banned by hand."""
    grammar = Grammar(vocabulary, GenerationConfig(max_new_tokens=4000, **request), prompt)
    state, found = grammar.start(), []
    for own, row in zip(logits.float(), answer, strict=True):
        may = torch.zeros(len(own), dtype=torch.bool)
        for start, stop in grammar.list_allowed(state):
            may[start:stop] = True
        found.append(own.masked_fill(~may, -torch.inf).log_softmax(0)[row])
        grammar.advance(state, row)
    return torch.stack(found)
