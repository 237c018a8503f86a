"""A loaded model that is asked: `load` reads a model folder, `Unimodal` answers documents under `AnswerSettings`."""

from unimodal.coder.outputs import MediaCodes, Output
from unimodal.pipeline.settings import AnswerSettings
from unimodal.pipeline.unimodal import Unimodal, load

__all__ = ["AnswerSettings", "MediaCodes", "Output", "Unimodal", "load"]
