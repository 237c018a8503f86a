import pytest

from tests.tiny_bases import TOKENIZER, make_base
from unimodal.evaluation.inspection.opened import OpenedModel, open_base
from unimodal.model.base import LoadedBase

WORDS = "0A1B2C3D4E5F6G7H8I9J0K1L2M3N"  # each character is a token of the tiny bases


@pytest.fixture(scope="session")
def open_tiny():
    """A tiny random base of a type of transformers, opened; each is made once."""
    made: dict[str, OpenedModel] = {}

    def open_kind(kind: str, **settings: object) -> OpenedModel:
        key = f"{kind} {settings}"
        if key not in made:
            made[key] = open_base(LoadedBase(kind, make_base(kind, None, **settings), TOKENIZER))
        return made[key]

    return open_kind
