"""What no tokenizer takes is refused in one line that names it, by every published system: lengths where there are
none, other sizes, other channels, too few frames. Nothing of it reaches a user as an error of torch."""

import pytest
import torch

from tests.tokenizers.small_systems import build_small, list_kinds
from tests.tokenizers.test_published_systems import make_media
from unimodal.tokenizers.codes import Codes, Latents
from unimodal.tokenizers.conditions import ConditionMaker
from unimodal.tokenizers.interface import LatentTokenizer


def encode(tokenizer, x, lengths=None):
    conditions = ConditionMaker(tokenizer)
    condition = None
    if conditions.read_features is not None and "features" in conditions.encode_kinds:
        condition = conditions.make_of_texts(["a cat"] * len(x), x.device)
    coded = tokenizer.encode(x, lengths, condition)
    return coded.values if isinstance(tokenizer, LatentTokenizer) else coded.ids


def reconstruct(tokenizer, x):
    conditions = ConditionMaker(tokenizer)
    captions = ["a cat"] * len(x) if conditions.reads_text else None
    if tokenizer.reconstructs:
        tokenizer.reconstruct(x, None, conditions.make(x, captions))
    else:
        tokenizer.training_loss(x)


def list_lengths(x):
    """Lengths of two items of which the second is shorter, from the longest that it might have."""
    return [torch.tensor([x.shape[2], short]) for short in range(x.shape[2] - 1, 0, -1)]


HONOURED = ("moto", "cosmos-dv")  # of those that may refuse lengths, systems that take some


@pytest.mark.sweep
@pytest.mark.parametrize("name", list_kinds())
@torch.no_grad()
def test_lengths_are_honoured_or_refused(name):
    tokenizer = build_small(name)
    x = make_media(tokenizer)
    lengths = list_lengths(x)[: 1 if tokenizer.modality == "audio" else None]
    refusals = 0
    for short in lengths:
        try:
            found = encode(tokenizer, x, short)
        except ValueError as error:
            refusals += 1
            assert "\n" not in str(error)
            continue
        alone = encode(tokenizer, x[1:, :, : short[1]])
        assert torch.equal(found[1, : alone.shape[1]], alone[0])
    if tokenizer.modality not in ("audio", "video"):
        assert refusals == len(lengths)
    if name.startswith(HONOURED):
        assert refusals < len(lengths)


def test_some_systems_are_held_to_take_lengths():
    assert all(any(name.startswith(start) for name in list_kinds()) for start in HONOURED)


def spoil(tokenizer, x):
    """Media that may not be taken: what they are → media."""
    found = {
        "no batch": x[0],
        "a dimension too many": x[None],
        "five channels": torch.cat([x, x, x], 1)[:, :5] if x.shape[1] == 3 else torch.cat([x] * 5, 1),
    }
    if tokenizer.modality == "audio":
        return found
    unit = 1
    found |= {
        "one pixel": x[..., :1, :1],
        "one pixel more": torch.cat([x, x[..., :1]], -1),
        "three pixels less": x[..., :-3, :],
        "a corner": x[..., :unit, :],
    }
    if tokenizer.modality == "video":
        found |= {"one frame": x[:, :, :1], "one frame less": x[:, :, :-1], "a picture": x[:, :, 0]}
    return found


@pytest.mark.sweep
@pytest.mark.parametrize("name", list_kinds())
@torch.no_grad()
def test_other_sizes_channels_and_frames_are_one_line_or_codes(name):
    tokenizer = build_small(name)
    for what, x in spoil(tokenizer, make_media(tokenizer)).items():
        for call in (encode, reconstruct):
            try:
                call(tokenizer, x)
            except ValueError as error:
                message = str(error)
                assert "\n" not in message and len(message) > 20, (what, message)
            except Exception as error:
                pytest.fail(f"{call.__name__} of {what} {list(x.shape)}: {type(error).__name__}: {str(error)[:120]}")
            else:
                assert what not in ("no batch", "a dimension too many", "five channels"), f"{what} is taken"


@pytest.mark.sweep
@pytest.mark.parametrize("name", list_kinds())
@torch.no_grad()
def test_another_number_of_codes_is_one_line_or_media(name):
    tokenizer = build_small(name)
    if not tokenizer.can_decode:
        return
    conditions, x = ConditionMaker(tokenizer), make_media(tokenizer)
    made = conditions.make(x, ["a cat"] * len(x) if conditions.reads_text else None)
    coded = tokenizer.encode(x, None, conditions.choose(made, conditions.encode_kinds))
    condition = conditions.choose(made, conditions.decode_kinds)
    for count in (1, coded.mask.shape[1] - 1, coded.mask.shape[1] + 1):
        for grid in (None, coded.grid):
            if isinstance(coded, Latents):
                values, mask = coded.values.repeat(1, 2, 1)[:, :count], coded.mask.repeat(1, 2)[:, :count]
                changed = Latents(values, mask, grid, coded.order)
            else:
                changed = Codes.from_rows([row.repeat(2, 1)[:count] for row in coded.ids], grid, coded.order)
            try:
                found = tokenizer.decode(changed, condition)
            except ValueError as error:
                assert "\n" not in str(error) and len(str(error)) > 20
            except Exception as error:
                pytest.fail(f"{count} codes in grid {grid}: {type(error).__name__}: {str(error)[:120]}")
            else:
                assert len(found) == len(x) and torch.isfinite(found).all()
