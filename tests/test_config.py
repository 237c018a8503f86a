"""Settings: defaults ← YAML ← `--set`, errors that name the key and the fix, file writes that are whole or absent."""

from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tests.campaigns import examples
from unimodal.config import Config, load_config, save_config


class Optimizer(Config):
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    decay: float = Field(0.0, ge=0.0)


class Source(Config):
    path: Path
    weight: float = 1.0


class Train(Config):
    steps: int = 100
    name: str = "nano"
    kind: Literal["fsq", "vq"] = "fsq"
    resume: bool = False
    optimizer: Optimizer = Optimizer(lr=3e-4, betas=(0.8, 0.9))
    second: Optimizer | None = None
    sources: list[Source] = []
    model_width: int = 64  # a field that begins with model_ is fine


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text)
    return path


def test_defaults_then_file_then_overrides(tmp_path):
    path = write(tmp_path, "steps: 7\noptimizer:\n  lr: 1e-2\n")
    assert load_config(Train) == Train()
    assert load_config(Train, path).steps == 7
    config = load_config(Train, path, ["steps=8", "optimizer.decay=0.1", "resume=true"])
    assert (config.steps, config.optimizer.lr, config.optimizer.decay, config.resume) == (8, 0.01, 0.1, True)


def test_a_partial_section_keeps_its_owners_defaults_not_its_classs():
    config = load_config(Train, None, ["optimizer.decay=0.5"])
    assert config.optimizer == Optimizer(lr=3e-4, betas=(0.8, 0.9), decay=0.5)
    assert load_config(Train, None, ["second.decay=0.5"]).second == Optimizer(decay=0.5)  # its default is None


def test_partial_sections_merge_at_every_depth():
    class Outer(Config):
        train: Train = Train(steps=5, optimizer=Optimizer(lr=0.5, decay=0.25))

    config = load_config(Outer, None, ["train.optimizer.lr=0.75"])
    assert config.train.steps == 5
    assert config.train.optimizer == Optimizer(lr=0.75, decay=0.25)


def test_an_empty_file_and_an_empty_section_mean_the_defaults(tmp_path):
    assert load_config(Train, write(tmp_path, "# nothing yet\n")) == Train()
    assert load_config(Train, write(tmp_path, "optimizer:\n  # lr: 1.0\nsecond:\n")) == Train()


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("optimizer.lr=1e-4", "optimizer.lr", 1e-4),  # YAML 1.1 reads 1e-4 as a string
        ("optimizer.betas=[0.5, 0.6]", "optimizer.betas", (0.5, 0.6)),
        ("name=123", "name", "123"),
        ("name=a=b", "name", "a=b"),
        ("second={lr: 2}", "second", Optimizer(lr=2.0)),
        ("second=null", "second", None),
        ("sources=[{path: a/b}]", "sources", [Source(path=Path("a/b"))]),
    ],
)
def test_override_values_are_yaml(override, field, value):
    found = load_config(Train, None, [override])
    for part in field.split("."):
        found = getattr(found, part)
    assert found == value


def test_a_number_addresses_an_item_of_a_list(tmp_path):
    path = write(tmp_path, "sources: [{path: a}, {path: b}]")
    config = load_config(Train, path, ["sources.1.weight=3"])
    assert [source.weight for source in config.sources] == [1.0, 3.0]
    with pytest.raises(ValueError, match="sources is a list of 2"):
        load_config(Train, path, ["sources.2.weight=3"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["step=3"], ["unknown key 'step'", "did you mean 'steps'"]),
        (["optimizer.lrr=3"], ["unknown key 'optimizer.lrr'", "'lr'"]),
        (["lr=3"], ["unknown key 'lr'", "'optimizer.lr'"]),  # the right name in the wrong place
        (["zzz=3"], ["unknown key 'zzz'", "known keys: steps, name"]),
        (["sources=[{path: a, wieght: 2}]"], ["'sources.0.wieght'", "'weight'"]),
        (["sources=[{weight: 2}]"], ["sources.0.path is not set"]),
        (["second.dekay=1"], ["'second.dekay'", "'decay'"]),
        (["steps=many"], ["steps='many'", "integer"]),
        (["kind=vqq"], ["kind='vqq'", "fsq"]),
        (["optimizer.decay=-1"], ["optimizer.decay=-1", "greater than or equal to 0"]),
        (["steps"], ["KEY=VALUE"]),
        (["=3"], ["KEY=VALUE"]),
        (["optimizer..lr=3"], ["KEY=VALUE"]),
        (["name=[unclosed"], ["not valid YAML"]),
        (["steps=1", "steps.more=2"], ["steps is 1, not a section"]),
    ],
)
def test_a_users_mistake_is_one_line_that_names_the_key_and_the_fix(overrides, words):
    with pytest.raises(ValueError) as caught:
        load_config(Train, None, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert not isinstance(caught.value, ValidationError)  # whose text is several lines
    for word in words:
        assert word in message


def test_every_mistake_is_named_at_once():
    with pytest.raises(ValueError, match=r"steps='x'.*kind='y'.*unknown key 'nam'"):
        load_config(Train, None, ["steps=x", "kind=y", "nam=z"])


def test_a_section_may_be_a_plain_pydantic_model():
    class Plain(BaseModel):
        model_config = ConfigDict(extra="forbid")
        rate: float = 1.0
        optimizer: Optimizer = Optimizer(lr=0.125)

    class Outer(Config):
        plain: Plain = Plain(rate=2.0)

    config = load_config(Outer, None, ["plain.optimizer.decay=0.5"])
    assert config.plain == Plain(rate=2.0, optimizer=Optimizer(lr=0.125, decay=0.5))
    with pytest.raises(ValueError, match="unknown key 'plain.rat'; did you mean 'rate'"):
        load_config(Outer, None, ["plain.rat=1"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"steps: 1\nsteps: 2\n", "given twice"),
        (b"- 1\n- 2\n", "key: value"),
        (b"steps: [1\n", "not valid YAML"),
        (b"name: \xff\xfe\n", "not UTF-8"),
        (b"stepps: 1\n", "did you mean 'steps'"),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path, content, words):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_config(Train, path)
    assert words in str(caught.value) and "bad.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere.yaml cannot be read: No such file"):
        load_config(Train, tmp_path / "nowhere.yaml")
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        load_config(Train, tmp_path)


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Train().steps = 3


SETTINGS = st.builds(
    Train,
    steps=st.integers(),
    name=st.text(),
    optimizer=st.builds(Optimizer, lr=st.floats(allow_nan=False, allow_infinity=False)),
    second=st.none() | st.builds(Optimizer, decay=st.floats(0, 1)),
    sources=st.lists(st.builds(Source, path=st.just(Path("a/b")), weight=st.floats(0, 9)), max_size=3),
)


@given(config=SETTINGS)
@examples(20)  # each one waits for the disk
def test_saved_settings_load_as_the_same_object(tmp_path_factory, config):
    path = tmp_path_factory.getbasetemp() / "saved" / "config.yaml"
    save_config(config, path)
    assert load_config(Train, path) == config


def test_saved_settings_are_resolved_and_in_order(tmp_path):
    path = tmp_path / "config.yaml"
    save_config(load_config(Train, None, ["steps=3"]), path)
    lines = path.read_text().splitlines()
    assert lines[0] == "steps: 3"
    assert lines.index("optimizer:") < lines.index("model_width: 64")
    assert "  lr: 0.0003" in lines


def test_of_settings_that_exclude_each_other_one_takes_the_place_of_the_others_default(tmp_path):
    class Loop(Config):
        exclusive = (("steps", "epochs"),)
        steps: int = 0
        epochs: int = 0

    class Recipe(Config):
        loop: Loop = Loop(steps=500)

    assert load_config(Recipe).loop.steps == 500
    assert load_config(Recipe, None, ["loop.epochs=2"]).loop == Loop(epochs=2)
    assert load_config(Recipe, None, ["loop.steps=3"]).loop.steps == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loop.max_steps=3", "--set: unknown key 'loop.max_steps'; it is loop.steps here"),
        ("loop.steps=-2", "--set: loop: steps and all that: -2"),
        ("loop.names=red", "--set: loop.names='red': give a list: [red]"),
        (
            "loops=[{steps: a}]",
            "--set: loops.0.steps='a': Input should be a valid integer, unable to parse string as an integer",
        ),
    ],
)
def test_messages_say_what_is_wrong_and_no_more(override, message):
    class Loop(Config):
        called_elsewhere = {"max_steps": "loop.steps"}
        steps: int = 1
        names: tuple[str, ...] = ()

        @model_validator(mode="after")
        def _check(self):
            if self.steps < 0:
                raise ValueError(f"steps and all that: {self.steps}")
            return self

    class Recipe(Config):
        loop: Loop = Loop()
        loops: tuple[Loop, ...] = Field(default=(Loop(),), min_length=1)

    with pytest.raises(ValueError) as caught:
        load_config(Recipe, None, [override])
    assert str(caught.value) == message


class Weighted(Config):
    weight: float = 1.0
    given: float | None = None
    several: tuple[float, ...] = ()
    named: dict[str, float] = {}
    inner: Optimizer = Optimizer()


@pytest.mark.parametrize("key", ["weight={}", "given={}", "several=[1,{}]", "named.a={}", "inner.lr={}"])
@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_numbers_are_finite(key, value):
    with pytest.raises(ValueError, match="finite number") as caught:
        load_config(Weighted, overrides=[key.format(value)])
    assert "\n" not in str(caught.value)
