"""What a run is made of: which settings are compared, what a difference says, weights and files by their content."""

from pathlib import Path
from typing import Annotated

import pytest
import torch
from torch import nn

from tests.training.test_loop import trainer
from unimodal.config import MAY_CHANGE, Config
from unimodal.training.checkpoint import set_aside
from unimodal.training.identity import (
    check_identity,
    describe_resume,
    describe_settings,
    hash_files,
    hash_weights,
    list_free_settings,
    write_identity,
)
from unimodal.training.loop import Trainer
from unimodal.training.settings import LoopConfig


class Part(Config):
    size: int = 3
    where: Annotated[str, MAY_CHANGE] = "here"


class Whole(Config):
    parts: tuple[Part, ...] = (Part(), Part(size=4))
    only: Part | None = None
    loop: LoopConfig = LoopConfig()
    rates: dict[str, float] = {"a": 0.5}


def test_settings_that_decide_nothing_are_left_out() -> None:
    found = describe_settings(Whole())
    assert found["parts.0.size"] == "3" and found["parts.1.size"] == "4" and found["only"] == "null"
    assert found["rates"] == '{"a": 0.5}' and found["loop.learning_rate"] == "0.001"
    assert not {name for name in found if name.endswith(("where", "steps", "log_every")) and "warmup" not in name}
    assert "loop.learning_rate" not in describe_settings(Whole(), leave_out=["loop"])
    assert describe_settings(Whole(only=Part(where="there")))["only.size"] == "3"


def test_every_setting_of_the_loop_is_compared_or_may_change() -> None:
    compared = {name.removeprefix("loop.") for name in describe_settings(Whole()) if name.startswith("loop.")}
    assert compared.isdisjoint(list_free_settings(LoopConfig))
    assert compared | set(list_free_settings(LoopConfig)) == set(LoopConfig.model_fields)


def test_a_difference_names_old_and_new_and_not_too_many(tmp_path: Path) -> None:
    write_identity(tmp_path, {"lora.alpha": "8.0", "base weights": "12ab", "gone": "1"})
    check_identity(tmp_path, {"gone": "1", "base weights": "12ab", "lora.alpha": "8.0"})
    with pytest.raises(ValueError, match=r"lora.alpha 8.0 → 16.0; gone 1 → \(none\); more \(none\) → 2\. ") as error:
        check_identity(tmp_path, {"lora.alpha": "16.0", "base weights": "12ab", "more": "2"})
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="and 5 more"):
        check_identity(tmp_path, {f"new{number}": "" for number in range(7)})


def test_weights_and_files_are_known_by_their_content(tmp_path: Path) -> None:
    first, same = nn.Linear(3, 2), nn.Linear(3, 2)
    same.load_state_dict(first.state_dict())
    assert hash_weights(first) == hash_weights(same)
    with torch.no_grad():
        same.weight[1, 2] += 1e-6
    assert hash_weights(first) != hash_weights(same)
    assert hash_weights(nn.Linear(2, 1).bfloat16()) != hash_weights(nn.Linear(2, 1).half())
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("x")
    assert hash_files([tmp_path / "a"]) == hash_files([tmp_path / "b"]) != hash_files([tmp_path / "none"])


def test_a_checkpoint_that_does_not_say_what_it_was_made_of_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, steps=2).run()
    with pytest.raises(ValueError, match=r"no run.json that says what it was made of; begin anew with --restart"):
        trainer(tmp_path, steps=2, identity={})


def test_a_finished_run_says_so_and_goes_on_with_more_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path, steps=3, identity={"seed": "0"}).run()
    capsys.readouterr()
    for steps in (3, 2):
        again = trainer(tmp_path, steps=steps, identity={"seed": "0"})
        again.run()
        assert again.step == 3 and f"at step 3 and steps is {steps}; nothing is trained" in capsys.readouterr().err
    more = trainer(tmp_path, steps=5, identity={"seed": "0"})
    more.run()
    assert more.step == 5 and "resumed" in capsys.readouterr().err
    anew = trainer(tmp_path, steps=1, identity={"seed": "1"}, restart=True)
    anew.run()
    assert anew.step == 1 and len((tmp_path / "earlier-1" / "metrics.jsonl").read_text().splitlines()) == 5
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_other_accumulation_on_as_many_ranks_is_another_run(tmp_path: Path) -> None:
    trainer(tmp_path, steps=2, identity={}).run()
    with pytest.raises(ValueError, match=r"loop\.accumulation 1 → 3\. .* --restart"):
        trainer(tmp_path, steps=3, identity={}, accumulation=3).run()


def test_what_is_set_aside_is_never_overwritten(tmp_path: Path) -> None:
    assert set_aside(tmp_path) is None
    for number in (1, 2):
        (tmp_path / "last.pt").write_text(str(number))
        (tmp_path / "tokenizers").mkdir(exist_ok=True)
        assert set_aside(tmp_path) == tmp_path / f"earlier-{number}"
        assert (tmp_path / f"earlier-{number}" / "last.pt").read_text() == str(number)
    assert (tmp_path / "tokenizers").is_dir()


def test_lines_of_a_run_without_a_checkpoint_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 9.0}\n{"step": 7, "loss": 9.0}\n')
    trainer(tmp_path, steps=2).run()
    assert "9.0" not in (tmp_path / "metrics.jsonl").read_text()


def test_the_best_weights_of_another_run_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(b"of another run")
    run = trainer(tmp_path, steps=1)
    run.run()
    assert not run.use_best()


def test_validations_without_anything_to_validate_on_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to validate on"):
        Trainer(nn.Linear(1, 1), None, None, LoopConfig(evaluate_every=2), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="set evaluate_every"):
        LoopConfig(patience=2)


def test_a_dry_run_says_what_would_become_of_the_run_that_is_there(tmp_path: Path) -> None:
    made_of = {"seed": "1", "data 0:x": "9 documents"}
    assert "would begin anew" in describe_resume(tmp_path, made_of)
    trainer(tmp_path, steps=1, identity=made_of).run()
    assert describe_resume(tmp_path, made_of) == f"would resume {tmp_path}"
    known = {"seed": "1"}
    assert describe_resume(tmp_path, known, unknown=("data ",)).endswith("if its data are the same")
    said = describe_resume(tmp_path, {"seed": "2"}, unknown=("data ",))
    assert said.startswith("would not resume: ") and "seed 1 → 2" in said and "data" not in said
    assert "--restart would move it aside" in describe_resume(tmp_path, {"seed": "2"}, restart=True)


def test_a_run_whose_checkpoint_is_gone_says_that_it_begins_anew(tmp_path: Path, capsys) -> None:
    trainer(tmp_path, steps=1, identity={"seed": "1"}).run()
    assert "begins anew" not in capsys.readouterr().err
    (tmp_path / "last.pt").unlink()
    trainer(tmp_path, steps=1, identity={"seed": "1"}).run()
    assert "holds run.json but no checkpoint; nothing is resumed, the run begins anew" in capsys.readouterr().err
