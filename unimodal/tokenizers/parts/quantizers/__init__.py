"""Quantizers: vectors ⇄ integers, one idea a file. What vector-quantize-pytorch has is used from there."""

from collections.abc import Mapping

from unimodal.tokenizers.parts.quantizers.bernoulli import BernoulliQuantizer
from unimodal.tokenizers.parts.quantizers.binary_spherical import BinarySphericalQuantizer
from unimodal.tokenizers.parts.quantizers.factored import FactoredQuantizer, choose_factors
from unimodal.tokenizers.parts.quantizers.finite_scalar import FiniteScalarQuantizer, list_levels
from unimodal.tokenizers.parts.quantizers.index_backpropagation import IndexBackpropagationQuantizer
from unimodal.tokenizers.parts.quantizers.interface import Quantized, Quantizer
from unimodal.tokenizers.parts.quantizers.library_residual import LibraryResidualQuantizer
from unimodal.tokenizers.parts.quantizers.lookup_free import LookupFreeQuantizer
from unimodal.tokenizers.parts.quantizers.multi_scale import MultiScaleQuantizer
from unimodal.tokenizers.parts.quantizers.product import ProductQuantizer
from unimodal.tokenizers.parts.quantizers.projected import ProjectedQuantizer
from unimodal.tokenizers.parts.quantizers.residual import ResidualQuantizer
from unimodal.tokenizers.parts.quantizers.rounded import RoundedQuantizer
from unimodal.tokenizers.parts.quantizers.scalar_bins import ScalarBinQuantizer
from unimodal.tokenizers.parts.quantizers.shared_index import SharedIndexQuantizer
from unimodal.tokenizers.parts.quantizers.sim_vector import SimVectorQuantizer
from unimodal.tokenizers.parts.quantizers.specification import build_quantizer
from unimodal.tokenizers.parts.quantizers.split import SplitQuantizer
from unimodal.tokenizers.parts.quantizers.strided_residual import StridedResidualQuantizer
from unimodal.tokenizers.parts.quantizers.vector import VectorQuantizer

__all__ = [
    "QUANTIZERS",
    "BernoulliQuantizer",
    "BinarySphericalQuantizer",
    "FactoredQuantizer",
    "FiniteScalarQuantizer",
    "IndexBackpropagationQuantizer",
    "LibraryResidualQuantizer",
    "LookupFreeQuantizer",
    "MultiScaleQuantizer",
    "ProductQuantizer",
    "ProjectedQuantizer",
    "Quantized",
    "Quantizer",
    "ResidualQuantizer",
    "RoundedQuantizer",
    "ScalarBinQuantizer",
    "SharedIndexQuantizer",
    "SimVectorQuantizer",
    "SplitQuantizer",
    "StridedResidualQuantizer",
    "VectorQuantizer",
    "choose_factors",
    "list_levels",
    "make_quantizer",
]


def make_quantizer(spec: Mapping[str, object]) -> Quantizer:
    """A quantizer from settings: a kind of `QUANTIZERS` and the arguments of its class, such as ``{"kind":
    "multi_scale", "scales": [1, 2, 4], "book": {"kind": "vector", "codebook_size": 4096, "num_dims": 32}}``.

    Raises ValueError that names the setting that does not fit.
    """
    return build_quantizer(spec, QUANTIZERS)


QUANTIZERS: dict[str, type[Quantizer]] = {
    "bernoulli": BernoulliQuantizer,
    "binary_spherical": BinarySphericalQuantizer,
    "factored": FactoredQuantizer,
    "finite_scalar": FiniteScalarQuantizer,
    "index_backpropagation": IndexBackpropagationQuantizer,
    "library_residual": LibraryResidualQuantizer,
    "lookup_free": LookupFreeQuantizer,
    "multi_scale": MultiScaleQuantizer,
    "product": ProductQuantizer,
    "projected": ProjectedQuantizer,
    "residual": ResidualQuantizer,
    "rounded": RoundedQuantizer,
    "scalar_bins": ScalarBinQuantizer,
    "shared_index": SharedIndexQuantizer,
    "sim_vector": SimVectorQuantizer,
    "split": SplitQuantizer,
    "strided_residual": StridedResidualQuantizer,
    "vector": VectorQuantizer,
}
