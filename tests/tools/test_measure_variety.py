"""The tool that measures drawings: what a setting changes, and a search, which are the suite's own."""

import pytest

from tools import measure_variety
from unimodal.model_folder.settings import MediumSettings

OWN = MediumSettings(temperature=0.5, top_k=50)


def test_a_setting_changes_the_sampling_and_may_name_a_search():
    assert measure_variety.read_setting(OWN, "") == (OWN, None)
    sampling, search = measure_variety.read_setting(OWN, "temperature=0.9,search=best-of-n,n=4")
    assert sampling == OWN.model_copy(update={"temperature": 0.9}) and search == ("best-of-n", {"n": 4})
    with pytest.raises(ValueError, match="beams"):
        measure_variety.read_setting(OWN, "beams=2")


def test_every_setting_is_a_line_of_the_suite(monkeypatch, capsys):
    asked = []

    class Drawer:
        sampling = {"image": OWN}

    def run(model, data, limit, seed, report, search):
        asked.append((model.sampling["image"].temperature, limit, seed, search))
        share = {"percent": 50.0, "low": 40.0, "high": 60.0}
        return {"different_of_10": {"mean": 7.0, "interval": 1.0}, "visible_of_10": {"mean": 6.0, "interval": 1.0},
                "copies": share, "among_5": share, "by_classifier": share}  # fmt: skip

    monkeypatch.setattr(measure_variety, "load", lambda *_, **__: Drawer())
    monkeypatch.setattr(measure_variety, "run", run)
    measure_variety.main(["--prompts", "3", "--seed", "5", "--settings", "temperature=0.9,search=best-of-n,n=4"])
    assert asked == [(0.5, 3, 5, None), (0.9, 3, 5, ("best-of-n", {"n": 4}))]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("own: different_of_10 7.0 ± 1.0") and "among_5 50.0% [40.0, 60.0]" in lines[1]
