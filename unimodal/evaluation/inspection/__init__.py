"""Looking inside a model: reports on what its tokens and heads do, each for any causal LM of transformers.

    from unimodal.evaluation.inspection import make_report
    from unimodal.evaluation.inspection.opened import open_model

    report = make_report("heads", open_model("nano"), InspectionInput())
    print(report.format())

A report is one file with a function `report_NAME(opened, given, tell)`; `REPORTS` names them. `opened.py` reads models
and prompts, `forward.py` records and changes what happens inside a forward, `report.py` prints, saves and draws.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unimodal.evaluation.inspection.opened import OpenedModel
    from unimodal.evaluation.inspection.report import InspectionInput, InspectionReport

__all__ = ["REPORTS", "make_report"]


def make_report(
    name: str, opened: OpenedModel, given: InspectionInput, tell: Callable[[str], None] = lambda text: None
) -> InspectionReport:
    """The report of this name. tell: called with what is being done.

    Raises ValueError, in one line, for an unknown name and for what the model or the input does not have.
    """
    if name not in REPORTS:
        raise ValueError(f"there is no report {name!r}; choose {', '.join(REPORTS)}")
    report: InspectionReport = getattr(importlib.import_module(REPORTS[name]), f"report_{name}")(opened, given, tell)
    return report


#: report → the module with its function
REPORTS = {
    "heads": "unimodal.evaluation.inspection.heads",
    "media": "unimodal.evaluation.inspection.media",
    "functions": "unimodal.evaluation.inspection.functions",
    "attribution": "unimodal.evaluation.inspection.attribution",
    "points": "unimodal.evaluation.inspection.points",
    "flow": "unimodal.evaluation.inspection.flow",
    "alignment": "unimodal.evaluation.inspection.alignment",
    "hidden": "unimodal.evaluation.inspection.hidden",
    "codes": "unimodal.evaluation.inspection.codes",
}
