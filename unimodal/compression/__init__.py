"""Fewer media tokens: methods that shorten what the decoder reads, or what its cache keeps.

    from unimodal.compression import METHODS, DivPrune

    with DivPrune(keep=0.25)(model):
        print(model.chat(["What is this?", Image(path="apple.png")]))

`METHODS` has every method by name. `method.py` says what a method is, `plan.py` what it is given and returns;
`running/` applies its plans. `docs/compression.md` has the table of the methods.
"""

from unimodal.compression.kv.adakv import AdaKV
from unimodal.compression.kv.biformer import BiFormer
from unimodal.compression.kv.dapq import DapQ
from unimodal.compression.kv.expected_attention import ExpectedAttention
from unimodal.compression.kv.fasa import FASA
from unimodal.compression.kv.h2o import H2O
from unimodal.compression.kv.keydiff import KeyDiff
from unimodal.compression.kv.keyformer import Keyformer
from unimodal.compression.kv.kivi import KIVI
from unimodal.compression.kv.knorm import Knorm
from unimodal.compression.kv.kvzip import KVzip
from unimodal.compression.kv.lagkv import LagKV
from unimodal.compression.kv.method import CacheCompressor
from unimodal.compression.kv.pyramidkv import PyramidKV
from unimodal.compression.kv.snapkv import SnapKV
from unimodal.compression.kv.still import STILL
from unimodal.compression.kv.streaming_llm import StreamingLLM
from unimodal.compression.kv.token_sparse import TokenSparseAttention
from unimodal.compression.kv.tokenselect import TokenSelect
from unimodal.compression.kv.tova import TOVA
from unimodal.compression.method import Compressor, Method
from unimodal.compression.plan import CompressionStats, KeptTokens, Plan, Span
from unimodal.compression.running.opening import estimate_kept, finds_work, open_methods
from unimodal.compression.running.session import CompressionSession, CompressionTarget
from unimodal.compression.tokens.acm import ACM
from unimodal.compression.tokens.atp import ATP
from unimodal.compression.tokens.cacovid import CaCoVID
from unimodal.compression.tokens.centerclip import CenterCLIP
from unimodal.compression.tokens.clca import CLCA
from unimodal.compression.tokens.coarse_to_fine import CoarseToFine
from unimodal.compression.tokens.code_merging import CodeMerging
from unimodal.compression.tokens.diffrate import DiffRate
from unimodal.compression.tokens.divprune import DivPrune
from unimodal.compression.tokens.document_correlation import DocumentCorrelation
from unimodal.compression.tokens.downsample import Downsample
from unimodal.compression.tokens.dtop import DToP
from unimodal.compression.tokens.explainability import Explainability
from unimodal.compression.tokens.fastv import FastV
from unimodal.compression.tokens.fit import FIT
from unimodal.compression.tokens.frugal_prompt import FrugalPrompt
from unimodal.compression.tokens.globalcom import GlobalCom
from unimodal.compression.tokens.horizon import InformationHorizon
from unimodal.compression.tokens.kmax import KMaX
from unimodal.compression.tokens.langdc import LangDC
from unimodal.compression.tokens.m3 import M3
from unimodal.compression.tokens.novelty import Novelty
from unimodal.compression.tokens.patch_summary import PatchSummary
from unimodal.compression.tokens.pmod import PMoD
from unimodal.compression.tokens.pooling import Pooling
from unimodal.compression.tokens.ppe import PPE
from unimodal.compression.tokens.prefix import Prefix
from unimodal.compression.tokens.prumerge import PruMerge
from unimodal.compression.tokens.pvc import PVC
from unimodal.compression.tokens.pyramiddrop import PyramidDrop
from unimodal.compression.tokens.random_tokens import RandomTokens
from unimodal.compression.tokens.sparsevlm import SparseVLM
from unimodal.compression.tokens.stride import Stride
from unimodal.compression.tokens.summary_query import SummaryQuery
from unimodal.compression.tokens.todre import ToDRE
from unimodal.compression.tokens.token_clustering import TokenClustering
from unimodal.compression.tokens.token_transforming import TokenTransforming
from unimodal.compression.tokens.tokenflex import TokenFLEX
from unimodal.compression.tokens.tokenpacker import TokenPacker
from unimodal.compression.tokens.tome import ToMe
from unimodal.compression.tokens.transprune import TransPrune
from unimodal.compression.tokens.vflowopt import VFlowOpt
from unimodal.compression.tokens.visionzip import VisionZip

__all__ = [
    "BASELINES",
    "METHODS",
    "CacheCompressor",
    "CompressionSession",
    "CompressionStats",
    "CompressionTarget",
    "Compressor",
    "KeptTokens",
    "Method",
    "Plan",
    "Span",
    "estimate_kept",
    "finds_work",
    "open_methods",
]

#: the methods that every table shows for comparison, at the same number of tokens
BASELINES = ("random", "stride", "pooling", "downsample")

METHODS: dict[str, type[Method]] = {
    "random": RandomTokens,
    "stride": Stride,
    "pooling": Pooling,
    "downsample": Downsample,
    "prefix": Prefix,
    "tome": ToMe,
    "diffrate": DiffRate,
    "token_transforming": TokenTransforming,
    "kmax": KMaX,
    "code_merging": CodeMerging,
    "token_clustering": TokenClustering,
    "divprune": DivPrune,
    "m3": M3,
    "tokenflex": TokenFLEX,
    "tokenpacker": TokenPacker,
    "patch_summary": PatchSummary,
    "fit": FIT,
    "fastv": FastV,
    "explainability": Explainability,
    "pmod": PMoD,
    "acm": ACM,
    "atp": ATP,
    "cacovid": CaCoVID,
    "langdc": LangDC,
    "transprune": TransPrune,
    "pyramiddrop": PyramidDrop,
    "frugal_prompt": FrugalPrompt,
    "sparsevlm": SparseVLM,
    "horizon": InformationHorizon,
    "dtop": DToP,
    "vflowopt": VFlowOpt,
    "todre": ToDRE,
    "visionzip": VisionZip,
    "prumerge": PruMerge,
    "summary_query": SummaryQuery,
    "clca": CLCA,
    "globalcom": GlobalCom,
    "coarse_to_fine": CoarseToFine,
    "document_correlation": DocumentCorrelation,
    "centerclip": CenterCLIP,
    "ppe": PPE,
    "pvc": PVC,
    "novelty": Novelty,
    "streaming_llm": StreamingLLM,
    "snapkv": SnapKV,
    "pyramidkv": PyramidKV,
    "adakv": AdaKV,
    "tova": TOVA,
    "h2o": H2O,
    "keyformer": Keyformer,
    "knorm": Knorm,
    "keydiff": KeyDiff,
    "lagkv": LagKV,
    "expected_attention": ExpectedAttention,
    "dapq": DapQ,
    "tokenselect": TokenSelect,
    "biformer": BiFormer,
    "kvzip": KVzip,
    "kivi": KIVI,
    "still": STILL,
    "fasa": FASA,
    "token_sparse": TokenSparseAttention,
}
