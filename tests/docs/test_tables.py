"""The tables of the pages have a row for everything that the code has by name, and say of it what the code says."""

import dataclasses
import re
from importlib import import_module
from pathlib import Path

import pytest
import typer

from tests.tiny_bases import BASES, MORE_BASES, REFUSED
from unimodal.cli.app import app
from unimodal.cli.text import KINDS, TRANSPLANTS
from unimodal.compression import BASELINES, METHODS, Method
from unimodal.data.datasets import DatasetConfig
from unimodal.data.importers import IMPORTERS
from unimodal.generation import DECODERS
from unimodal.generation.search import SEARCHES
from unimodal.model.front_ends import FRONT_ENDS
from unimodal.pipeline.settings import AnswerSettings
from unimodal.released import RELEASES
from unimodal.training.identity import list_free_settings
from unimodal.tuning.transplant.methods import METHODS as MOVED_BY

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def read_table(page: str, first: str) -> dict[str, dict[str, str]]:
    """The one table of a page whose first column is headed `first`: name of a row, without backticks → its cells."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    [start] = [number for number, line in enumerate(lines) if line.startswith(f"| {first} |")]
    heads = split_row(lines[start])
    table: dict[str, dict[str, str]] = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = split_row(line)
        assert len(cells) == len(heads), f"{page}: {line}"
        name = cells[0].strip("`")
        assert name not in table, f"{page} has two rows of {name}"
        table[name] = dict(zip(heads, cells, strict=True))
    return table


def split_row(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def find_class(place: tuple[str, str]) -> type:
    module, name = place
    return getattr(import_module(module), name)


def test_every_fast_decoder_has_its_row():
    assert list(read_table("decoding.md", "decoder")) == list(DECODERS)


@pytest.mark.parametrize("name", DECODERS)
def test_a_row_says_of_a_fast_decoder_what_its_file_says(name):
    row, kind = read_table("decoding.md", "decoder")[name], find_class(DECODERS[name])
    assert row["lossless"].split(":")[0] == ("yes" if kind.lossless else "no")
    assert row["serves"] == kind.serves
    head = (import_module(DECODERS[name][0]).__doc__ or "").splitlines()[0:3]
    assert f"arXiv:{row['paper (arXiv)']}" in " ".join(head)


def test_every_search_has_its_row_with_its_settings():
    table = read_table("decoding.md", "search")
    assert list(table) == list(SEARCHES)
    for name, place in SEARCHES.items():
        settings = ", ".join(f"`{field.name}={field.default}`" for field in dataclasses.fields(find_class(place)))
        assert table[name]["settings and defaults"] == settings


def test_every_compression_method_has_its_row():
    rows = read_table("compression.md", "method")
    said = {name: (row["class"], row["paper"], row["acts on"]) for name, row in rows.items()}
    for name, kind in METHODS.items():
        assert said.pop(name) == (
            f"`{kind.__name__}`",
            kind.paper or ("baseline" if name in BASELINES else "ours"),
            kind.acts_on,
        )
    assert not said


def test_the_settings_that_all_compression_methods_share():
    shared = {field.name for field in dataclasses.fields(Method)}
    rows = read_table("compression.md", "setting")
    assert set(rows) == shared
    assert float(rows["keep"]["default"]) == Method.keep and rows["positions"]["default"] == f'`"{Method.positions}"`'


def test_every_setting_of_an_answer_has_its_row():
    said = {name: row["default"].strip("`") for name, row in read_table("python.md", "setting").items()}
    assert said == {field.name: str(field.default) for field in dataclasses.fields(AnswerSettings)}


@pytest.mark.parametrize(("command", "page"), [("serve", "serving.md"), ("export", "export.md")])
def test_every_option_of_a_command_has_its_row(command, page):
    parameters = typer.main.get_command(app).commands[command].params
    options = {one.opts[0]: str(one.default) for one in parameters if one.param_type_name == "option"}
    for name in ("--help", "--out"):  # of every command; said in the text
        options.pop(name, None)
    said = {name: row["default"].strip("`") for name, row in read_table(page, "option").items()}
    assert said == options


def test_every_kind_of_text_tokenizer_has_its_row():
    assert tuple(read_table("text.md", "kind")) == KINDS


def test_every_way_to_move_a_tokenizer_and_every_front_end_has_its_row():
    table = read_table("text.md", "method")
    assert list(table) == list(TRANSPLANTS)
    for name, options in TRANSPLANTS.items():
        assert all(option in table[name]["it needs"] for option in options), name
    assert {name: row["rows of shared tokens"] == "copied" for name, row in table.items()} == {
        name: method.copies for name, method in MOVED_BY.items()
    }
    assert list(read_table("text.md", "front end")) == list(FRONT_ENDS)


def test_every_importer_has_its_row():
    assert list(read_table("training.md", "format")) == list(IMPORTERS)


def test_every_family_that_can_be_converted_has_its_row():
    source = (ROOT / "tools" / "convert_checkpoint.py").read_text(encoding="utf-8")
    assert set(read_table("checkpoints.md", "family")) == set(re.findall(r"^def convert_(\w+)\(", source, re.M))


def test_every_release_that_needs_something_else_has_its_row():
    table = read_table("checkpoints.md", "release")
    for release in RELEASES:
        if release.kind is not None and release.copy is None:
            continue  # transformers' own: it is converted as it is
        [row] = [
            cells
            for name, cells in table.items()
            if set(release.name.split(" or ")) & set(re.findall(r"[\w.-]+", name))
        ]
        answer = row["would a copy in transformers' format do?"]
        assert f"`{release.copy}`" in answer if release.copy else answer.startswith("no: ")


def test_every_method_is_on_the_page_of_methods():
    """By the number of its paper, so that a name in another spelling is found."""
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    for table, column in (("decoding.md", "decoder"),):
        for name, row in read_table(table, column).items():
            papers = re.findall(r"\d{4}\.\d{5}", row["paper (arXiv)"])
            assert papers and all(paper in text for paper in papers), name
    for name, kind in METHODS.items():
        papers = re.findall(r"\d{4}\.\d{5}", kind.paper)
        assert all(paper in text for paper in papers) and (papers or name in text), name


def test_the_settings_that_a_resumed_run_may_change():
    from recipes.finetune_full import FullRecipe
    from recipes.finetune_lora import LoraRecipe
    from recipes.pretrain import PretrainRecipe

    free = {name for recipe in (LoraRecipe, FullRecipe, PretrainRecipe) for name in list_free_settings(recipe)}
    free |= {f"corpus.datasets.*.{name}" for name in list_free_settings(DatasetConfig)}
    listed = [name.strip(" `") for cell in read_table("training.md", "may change") for name in cell.split(",")]
    assert sorted(listed) == sorted(free)


def test_the_page_names_the_bases_that_are_tested_and_those_that_are_refused():
    refused = read_table("training.md", "type")
    assert {name: row["refused because"] for name, row in refused.items()} == {
        name: reason for name, (_, reason) in REFUSED.items()
    }
    [named] = re.findall(
        r"for these types:\n\n(.*?)\.\n", (DOCS / "training.md").read_text(encoding="utf-8"), re.DOTALL
    )
    first, second = (re.findall("`([a-z0-9_]+)`", part) for part in named.split("and in `make study`"))
    assert first == list(BASES) and second == list(MORE_BASES)
