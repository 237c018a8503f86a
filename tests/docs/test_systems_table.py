"""The table of published tokenizers says of each what its YAML file and its network say."""

import pytest

from tests.docs.test_tables import read_table
from tools.write_systems_table import HEADS, describe_system, describe_text
from unimodal.tokenizers.configs.registry import list_systems, read_system

ROWS = read_table("tokenizers.md", HEADS[0])
ADVICE = "python tools/write_systems_table.py"


def test_every_published_system_has_its_row():
    assert list(ROWS) == list_systems(), ADVICE


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_what_the_yaml_file_says(name):
    said = describe_text(read_system(name))
    assert {head: ROWS[name][head] for head in said} == said, ADVICE


def test_a_row_says_what_the_network_is(campaign):
    names = list(ROWS)
    for number, rng in enumerate(campaign(slice=2, whole=len(names))):
        name = names[number] if len(names) <= number + 1 else rng.choice(names)
        assert ROWS[name] == describe_system(read_system(name)), (name, ADVICE)
