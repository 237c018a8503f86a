"""A loaded model that is asked: `load` reads a model folder, `Unimodal` answers documents."""

from unimodal.coder.outputs import MediaCodes, Output
from unimodal.pipeline.unimodal import Unimodal, load

__all__ = ["MediaCodes", "Output", "Unimodal", "load"]
