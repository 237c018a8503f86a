"""A prompt of a pretrained model in fewer positions: its tokens merged as the batch at hand suggests (Feher, Vulić and
Minixhofer 2024, "Retrofitting Large Language Models with Dynamic Tokenization", arXiv:2411.18553).

As in byte-pair encoding, but over the prompts of one batch and over their tokens: the most frequent pair of neighbours
within a word becomes one unit, so many times. The decoder reads a unit at one position, by a row that is made for it;
what it writes behind the prompt are its own tokens. The paper's rows come from a hypernetwork; by default a unit's row
here is the mean of its tokens' rows, and `embed` takes any other, such as that of a hypernetwork
(`tools/bench_merging.py --hypernetwork`). A word is here a run of letters with what its first token has before it.

Shapes: N positions, D width, V rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from unimodal.model.rows import find_embedding_scale
from unimodal.text.reports.opened import OpenedTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Unit = tuple[int, ...]


def merge_tokens(
    prompts: Sequence[Sequence[int]], tokenizer: OpenedTokenizer, num_merges: int | None = None
) -> list[list[Unit]]:
    """Prompts of token rows as units of one or more of them, which joined are the prompts.

    num_merges: how often the most frequent pair of all prompts is merged; None until every word is one unit. Of pairs
    that are as frequent, the one that stands first.
    """
    texts = {row: piece.decode("utf-8", "replace") for row, piece in tokenizer.spelled.items()}
    merged: list[list[Unit]] = [[(row,) for row in prompt] for prompt in prompts]

    def goes_on(left: Unit, right: Unit) -> bool:
        return texts.get(left[-1], "")[-1:].isalpha() and texts.get(right[0], "")[:1].isalpha()

    done = 0
    while num_merges is None or done < num_merges:
        pairs = Counter(
            pair for prompt in merged for pair in zip(prompt, prompt[1:], strict=False) if goes_on(*pair)
        )  # fmt: skip
        if not pairs:
            break
        chosen = max(pairs, key=pairs.__getitem__)  # the first of the most frequent
        merged = [_join(prompt, chosen) for prompt in merged]
        done += 1
    return merged


def _join(prompt: list[Unit], pair: tuple[Unit, Unit]) -> list[Unit]:
    """A prompt with every such pair as one unit, from the left."""
    found: list[Unit] = []
    at = 0
    while at < len(prompt):
        if at + 1 < len(prompt) and (prompt[at], prompt[at + 1]) == pair:
            found.append(prompt[at] + prompt[at + 1])
            at += 2
        else:
            found.append(prompt[at])
            at += 1
    return found


class MergedPrompts:
    """A stock causal LM that reads prompts of units and scores its own tokens behind them."""

    def __init__(self, model: PreTrainedModel, embed: Callable[[Sequence[Unit]], Tensor] | None = None) -> None:
        """embed: units → their rows [N, D], of the base's table's size; by default the means of their tokens' rows."""
        self.model = model
        self._embed = embed or self._average
        self._scale = find_embedding_scale(model.get_input_embeddings())

    def _average(self, units: Sequence[Unit]) -> Tensor:
        table = self.model.get_input_embeddings().weight
        return torch.stack([table[list(unit)].mean(0) for unit in units])

    @torch.no_grad()
    def score(self, prompt: Sequence[Unit], answer: Sequence[int]) -> float:
        """The cost of an answer of one token or more behind a prompt of one unit or more, in nats."""
        if not prompt or not answer:
            raise ValueError("a prompt and an answer have at least one token each")
        units = [*prompt, *((row,) for row in answer[:-1])]
        rows = self._embed(units) * self._scale
        logits = self.model(inputs_embeds=rows[None], use_cache=False).logits[0, len(prompt) - 1 :].float()
        return float(cross_entropy(logits, torch.tensor(list(answer), device=logits.device), reduction="sum"))
