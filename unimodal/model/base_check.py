"""Check what a base must do to be built on, by running a few tokens through it.

Causal LMs of transformers differ in their forward: some take positions from the mask alone, keep a state in place of
keys and values, drop keyword arguments or scale their logits. What training and decoding rely on is therefore checked
on the model itself when it is loaded, and a base that does otherwise is refused in one line:

    rows         one embedding table, which at most scales its rows, and one Linear head of as many rows
    logits       the head's products, scaled or capped as `unimodal.model.logits` reads it from the config
    documents    two documents packed in one row, with position ids that restart, are read as each is alone
    cache        tokens read in two steps behind left padding give the states of one step, from keys and values alone
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unimodal.model.attention import VARLEN, try_attention
from unimodal.model.comparison import find_tolerance, measure_difference
from unimodal.model.logits import read_logit_rule
from unimodal.model.rows import find_embedding_scale

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_base(model: PreTrainedModel) -> None:
    """Raises ValueError, with the reason in a few words, for a causal LM that cannot be built on."""
    _check_tables(model)
    _check_settings(model)
    with torch.inference_mode():
        try:
            _check_forwards(model)
        except (AttributeError, AssertionError, LookupError, RuntimeError, TypeError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"its decoder cannot be run with positions and a cache of ours ({first[:120]})") from None


def find_cache_name(backbone: nn.Module) -> str:
    """The argument of a decoder's forward that takes the cache; transformers renamed it in 5.24."""
    return "cache" if "cache" in inspect.signature(type(backbone).forward).parameters else "past_key_values"


def _check_tables(model: PreTrainedModel) -> None:
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(table, nn.Embedding):
        raise ValueError("it has no embedding table of its own")
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
        raise ValueError(f"its head is a {type(head).__name__}, not a Linear layer")
    if table.num_embeddings != head.out_features:
        raise ValueError(f"its tables have {table.num_embeddings} and {head.out_features} rows; they must agree")
    find_embedding_scale(table)


def _check_settings(model: PreTrainedModel) -> None:
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    settings = model.config.to_dict()
    if settings.get("is_encoder_decoder") or model.get_decoder() is model:
        raise ValueError("it is not a decoder with a head")
    try:
        positions = int(model.config.max_position_embeddings)
        layers = DynamicCache(config=model.config).layers
    except (AttributeError, TypeError, KeyError):
        raise ValueError("its config does not say how many positions and layers it has") from None
    if positions < 1:
        raise ValueError(f"its config says that it has {positions} positions")
    for layer in layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise ValueError(f"it keeps a state that is not keys and values ({type(layer).__name__})")


def _check_forwards(model: PreTrainedModel) -> None:
    """Read the documents a b c and a b d alone, packed in one row, and in two steps behind padding."""
    from transformers.cache_utils import DynamicCache

    weight, limit = model.get_input_embeddings().weight, find_tolerance(model)
    backbone, device = model.get_decoder(), weight.device
    a, b, c, d = 3, 1, 2, 0  # unlike any positions
    alone = torch.tensor([[a, b, c]], device=device)
    places = torch.arange(3, device=device)[None]
    was_training = model.training
    model.eval()
    try:
        expected, logits = _run_whole(model, alone, places)
        rule, head = read_logit_rule(model), model.get_output_embeddings()
        if measure_difference(rule.apply(head(expected)), logits) > limit:
            raise ValueError("its logits are not its head's products, scaled or capped as its config says")
        other = backbone(input_ids=torch.tensor([[a, b, d]], device=device), position_ids=places, use_cache=False)
        if measure_difference(other.last_hidden_state[:, :2], expected[:, :2]) > limit:
            raise ValueError("its tokens see those behind them")
        own = model.config._attn_implementation
        packs = try_attention(model, own) or try_attention(model, VARLEN)
        model.set_attn_implementation(own)
        if not packs:
            raise ValueError("the documents that are packed in one row see each other")
        shorter = torch.tensor([[a, b], [a, a]], device=device)  # the second stream is a alone, behind a pad
        seen = torch.tensor([[1, 1, 1], [0, 1, 1]], device=device)
        steps = torch.tensor([[0, 1, 2], [0, 0, 1]], device=device)
        name, cache = find_cache_name(backbone), DynamicCache(config=model.config)
        for ids, rows in ((shorter, slice(0, 2)), (torch.tensor([[c], [b]], device=device), slice(2, 3))):
            output = backbone(
                input_ids=ids,
                attention_mask=seen[:, : rows.stop],
                position_ids=steps[:, rows],
                use_cache=True,
                **{name: cache},
            )
        last = output.last_hidden_state[:, -1]  # [2, D] of a b c and of a b
        if measure_difference(last, expected[0, [2, 1]]) > limit:
            raise ValueError("what it reads in two steps behind padding is not what it reads at once")
    finally:
        model.train(was_training)


def _run_whole(model: PreTrainedModel, ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The states that the head is given, [B, N, D], and the model's logits, [B, N, V], for ids and positions [B, N]."""
    table, fed = model.get_input_embeddings(), []  # fed: the inputs of the head
    looked_up: list[Tensor] = []  # the inputs of other embedding tables

    def record_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        looked_up.extend(inputs[:1])

    handles = [model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0]))]
    others = (m for m in model.modules() if isinstance(m, nn.Embedding) and m is not table)
    handles += [other.register_forward_pre_hook(record_input) for other in others]
    try:
        output = model(input_ids=ids, position_ids=positions, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if any(torch.equal(seen, ids) for seen in looked_up):
        raise ValueError("it looks its tokens up in a second table, which new rows would lack")
    states = model.get_decoder()(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    if not fed or fed[0].shape != states.shape:
        raise ValueError("its head is not fed what its decoder returns")
    return states, output.logits
