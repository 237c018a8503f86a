"""The comparison of speed runs every pair once: both do the same work, and a row names both and their ratios."""

import re

import pytest
import torch

from tools.bench_tokenizers import compare, list_network_duels, list_quantizer_duels

pytestmark = pytest.mark.sweep("tools at work")


def test_every_pair_is_run_in_turns_and_gives_a_row():
    with torch.inference_mode():
        for duel in [*list_quantizer_duels(batch=1, positions=4), *list_network_duels(real=False)]:
            ours, theirs = duel.ours(), duel.peer()
            if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
                assert ours.shape[:2] == theirs.shape[:2]  # positions of a batch, whatever the groups
            assert re.fullmatch(rf"\| {re.escape(duel.name)} (\| [\d.]+ ){{4}}\|", compare(duel, repeats=1))
