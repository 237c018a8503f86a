"""TiTok and what follows from it: a picture as a short row of tokens that queries read from it.

TiTok (arXiv 2406.07550), with codes (`TiTokTokenizer`) or continuous tokens (`TiTokLatents`); TA-TiTok (2501.07730),
whose decoder reads the caption; One-D-Piece (2501.10064), any prefix of whose codes decodes.

Shapes: B batch, N tokens, T width of a token, D width, h/w rows and columns of patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from unimodal.tokenizers.codes import Codes, Latents
from unimodal.tokenizers.interface import CodingOptions, Condition, MediaTokenizer
from unimodal.tokenizers.parts.codebook_clustering import pull_unused_codes
from unimodal.tokenizers.parts.heads.pixels import CodeLogitHead, PatchHead
from unimodal.tokenizers.parts.prefix import PrefixPolicy, make_prefix_mask
from unimodal.tokenizers.parts.quantizers import VectorQuantizer
from unimodal.tokenizers.parts.quantizers.bernoulli import BernoulliQuantizer
from unimodal.tokenizers.parts.quantizers.interface import Quantizer
from unimodal.tokenizers.parts.query_networks import QueryDecoder, QueryEncoder
from unimodal.tokenizers.parts.trunks.blocks import TransformerSize
from unimodal.tokenizers.parts.trunks.maskgit import MaskgitDecoder
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemLatents, SystemModule, SystemTokenizer
from unimodal.tokenizers.systems.key_map import KeyMap
from unimodal.tokenizers.systems.titok_names import KEY_MAP, read_titok_settings
from unimodal.tokenizers.text_settings import CLIP_TEXT, TextSettings


class ProxySettings(BaseModel):
    """The MaskGIT-VQGAN whose codes the first TiTok predicts, and whose decoder makes the pixels of them.

    num_codes and depth: of its codebook. channels, multipliers, num_blocks, num_groups: see `MaskgitDecoder`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    num_codes: int = 1024
    depth: int = 256
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_blocks: int = 2
    num_groups: int = 32


class QueryTokenConfig(SystemConfig):
    """What TiTok's kin with codes and with latents share.

    token_width: T. mixed: see `QueryEncoder`. text: what the decoder reads, None where it reads none; text_in_encoder:
    the encoder reads it too (TexTok). mixer: what mixes the tokens, in both networks, which are more than a grid.
    """

    image_size: int = Field(default=256, ge=1)
    patch_size: int = Field(default=16, ge=1)
    num_tokens: int = Field(ge=1)
    token_width: int = Field(ge=1)
    encoder: TransformerSize
    decoder: TransformerSize
    mixed: bool = False
    text: TextSettings | None = None
    text_in_encoder: bool = False
    mixer: Literal["attention", "ponet"] = "attention"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size // self.patch_size, self.image_size // self.patch_size

    @model_validator(mode="after")
    def check_sizes(self) -> Self:
        """ValueError for a picture that patches do not fill, heads that do not divide, an encoder without its text."""
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not whole patches of patch_size {self.patch_size}")
        for name, size in (("encoder", self.encoder), ("decoder", self.decoder)):
            if size.width % size.num_heads:
                raise ValueError(f"{name}: {size.num_heads} heads do not divide a width of {size.width}")
        if self.text_in_encoder and self.text is None:
            raise ValueError("text_in_encoder needs the settings of text")
        if self.mixer != "attention" and self.text is not None:
            raise ValueError(f"reading text needs attention; leave text or the mixer {self.mixer} out")
        return self


class TiTokConfig(QueryTokenConfig):
    """bits: each token is so many bits, in groups, in place of a code of codebook_size (Instella). redundant: so many
    copies of the last queries give tokens behind the others, so that training drops those less often (ReToK).
    normalize: vectors and codes have length 1. clustering: in training unused codes are pulled to the data. proxy:
    the decoder predicts codes of a MaskGIT-VQGAN; None where it makes pixels itself.
    prefixes: in training the tail of the tokens is dropped, "uniform" to a length for each picture, "batch" to one for
    all (as One-D-Piece's authors do); a prefix of the codes then decodes.
    """

    family: str = "titok"
    codebook_size: int = Field(default=4096, ge=2)
    bits: tuple[int, ...] = ()
    redundant: int = Field(default=0, ge=0)
    normalize: bool = False
    commitment: float = 0.25
    clustering: bool = False
    proxy: ProxySettings | None = None
    prefixes: Literal["none", "uniform", "batch"] = "none"

    @model_validator(mode="after")
    def check_proxy(self) -> Self:
        """ValueError where the proxy's decoder makes pictures of another size, and for settings of codes with bits."""
        size = type(self).model_fields["codebook_size"].default
        if self.bits and (self.normalize or self.clustering or self.codebook_size != size):
            raise ValueError("bits take the place of a codebook; leave codebook_size, normalize and clustering out")
        if self.redundant and self.prefixes == "none":
            raise ValueError("redundant tokens are those that prefixes drop first; set prefixes too")
        if self.proxy is not None and 2 ** (len(self.proxy.multipliers) - 1) != self.patch_size:
            raise ValueError(
                f"proxy: {len(self.proxy.multipliers)} multipliers make pixels of patches of "
                f"{2 ** (len(self.proxy.multipliers) - 1)}; patch_size is {self.patch_size}"
            )
        return self


class TiTokLatentsConfig(QueryTokenConfig):
    """kl_weight: of the divergence from a standard normal. causal: a token sees no later one (VL-GPT, 2312.09251)."""

    family: str = "titok_latents"
    kl_weight: float = 1e-6
    causal: bool = False


class QueryTokenNetworks(SystemModule):
    """The networks, and what decoding in codes and in latents shares."""

    modality: ClassVar[str] = "image"
    key_map: ClassVar[KeyMap] = KEY_MAP
    #: whether the authors' checkpoints of the family have a decoder that reads text; their configs do not say
    reads_text: ClassVar[bool] = False
    config: QueryTokenConfig
    head: PatchHead | CodeLogitHead
    picture_size: tuple[int, int] | None
    tokens_per_item: int | None

    def build_networks(self, encoder_out: int, redundant: int = 0, causal: bool = False) -> None:
        """encoder_out: what the encoder gives a token. redundant: tokens behind those of the codes."""
        config, num, pools = self.config, self.config.num_tokens + redundant, self.config.mixer == "ponet"
        self.encoder = QueryEncoder(
            config.encoder, config.patch_size, config.grid, num, encoder_out, config.mixed,
            config.text if config.text_in_encoder else None, mask="causal" if causal else "full", copies=redundant,
            pools=pools,
        )  # fmt: skip
        self.decoder = QueryDecoder(config.decoder, config.grid, num, config.token_width, config.text, pools=pools)
        self.picture_size = (config.image_size, config.image_size)
        self.tokens_per_item = config.num_tokens
        self.text_settings = config.text
        self.decode_conditions = frozenset() if config.text is None else frozenset({"features"})
        self.encode_conditions = self.decode_conditions if config.text_in_encoder else frozenset()

    def name_text_network(self, network: str) -> None:
        if self.config.text is not None:
            self.text_settings = self.config.text.model_copy(update={"network": network})
            self.config = self.config.model_copy(update={"text": self.text_settings})

    def encode_tokens(
        self, x: Tensor, condition: Condition | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """x: float [B, 3, H, W] in [0, 1] → float [B, N, T], before quantization. ValueError for another size."""
        self.check_pictures(x)
        return self.encoder(x, condition, generator)

    def check_pictures(self, x: Tensor) -> None:
        """ValueError unless x is [B, 3, H, W] of the config's size."""
        size = self.config.image_size
        if x.dim() != 4 or tuple(x.shape[1:]) != (3, size, size):
            raise ValueError(f"{self.config.family} takes [B, 3, {size}, {size}] in [0, 1]; got {tuple(x.shape)}")

    def decode_tokens(self, tokens: Tensor, kept: Tensor | None = None, condition: Condition | None = None) -> Tensor:
        """tokens: float [B, n ≤ N, T], kept: bool [B, n] → pictures [B, 3, H, W], not clamped."""
        return self.head(self.decoder(tokens, kept, condition), self.config.grid)

    def drop_text(self, condition: Condition | None, batch: int, generator: torch.Generator | None) -> Condition | None:
        """In training the text of a share of the items is masked away."""
        text, features = self.config.text, None if condition is None else condition.features
        if text is None or features is None or condition is None or not text.dropout or not self.training:
            return condition
        mask = condition.features_mask
        mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device) if mask is None else mask
        keep = torch.rand(batch, 1, generator=generator).to(mask.device) >= text.dropout
        return Condition(features=features, features_mask=mask & keep)


class TiTokTokenizer(QueryTokenNetworks, SystemTokenizer):
    """Pictures ⇄ N codes. ``encode``: float [B, 3, H, W] in [0, 1] → Codes [B, N, 1]."""

    config_class: ClassVar[type[TiTokConfig]] = TiTokConfig
    config: TiTokConfig

    def __init__(self, config: TiTokConfig):
        super().__init__(config)
        self.build_networks(config.token_width, config.redundant)
        self.quantizer: Quantizer
        if config.bits:
            self.quantizer = BernoulliQuantizer(config.bits, config.token_width)
        else:
            self.quantizer = VectorQuantizer(
                config.codebook_size,
                config.token_width,
                "euclidean",
                config.normalize,
                config.normalize,
                commitment=config.commitment,
            )
        if config.clustering:
            self.code_usage: Tensor
            self.register_buffer("code_usage", torch.zeros(config.codebook_size))
        proxy = config.proxy
        if proxy is None:
            self.head = PatchHead(config.decoder.width, config.patch_size)
        else:
            self.head = CodeLogitHead(config.decoder.width, proxy.num_codes)
            self.proxy_codes = nn.Parameter(torch.empty(proxy.num_codes, proxy.depth).uniform_(-1, 1))
            self.proxy_decoder = MaskgitDecoder(
                proxy.depth, proxy.channels, proxy.multipliers, proxy.num_blocks, proxy.num_groups
            )
        self.codebook_sizes = self.quantizer.codebook_sizes
        self.segments = ((self.modality, config.num_tokens),)
        self.ordered = config.prefixes != "none"

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> TiTokConfig:
        """From the YAML or config.json of TiTok, One-D-Piece or, where the family reads text, TA-TiTok. ValueError for
        what is not there, and for a checkpoint of the first stage, whose decoder makes no pixels."""
        return cls.config_class.model_validate(read_titok_settings(fields, latents=False, text=cls.reads_text))

    def decode_tokens(self, tokens: Tensor, kept: Tensor | None = None, condition: Condition | None = None) -> Tensor:
        made = super().decode_tokens(tokens, kept, condition)
        return made if self.config.proxy is None else self.draw_proxy(made)

    def predict_proxy(self, tokens: Tensor, kept: Tensor | None = None, condition: Condition | None = None) -> Tensor:
        """The decoder's logits over the codes of the proxy, [B, K, h, w]: what TiTok's first stage trains by."""
        return super().decode_tokens(tokens, kept, condition)

    def copy_decoder(self, teacher: MediaTokenizer) -> None:
        """What 1d-tokenizer's second stage begins from: codebook and decoder of the MaskGIT-VQGAN."""
        if self.config.proxy is None:
            return super().copy_decoder(teacher)
        parts = dict(teacher.named_children())
        codes, decoder = parts.get("quantizer"), parts.get("decoder")
        if not isinstance(codes, VectorQuantizer) or not isinstance(decoder, MaskgitDecoder):
            family = teacher.config.family
            raise ValueError(
                f"copy_decoder is of a MaskGIT VQGAN and the teacher is a {family}; leave copy_decoder out"
            )
        given = {"proxy_codes": codes.codebook, **{f"proxy_decoder.{n}": w for n, w in decoder.state_dict().items()}}
        shapes = {name: weight.shape for name, weight in given.items()}
        own = {name: weight for name, weight in self.state_dict().items() if name.startswith("proxy_")}
        odd = sorted(
            name for name in own.keys() | shapes.keys() if name not in own or shapes.get(name) != own[name].shape
        )
        if odd:
            raise ValueError(
                f"the teacher's decoder has other sizes than tokenizer.proxy ({odd[0]}, {len(odd)} in all); set its "
                "depth, channels, multipliers, num_blocks and num_groups to the teacher's, or leave copy_decoder out"
            )
        for name, weight in own.items():
            weight.copy_(given[name].detach())

    def draw_proxy(self, logits: Tensor) -> Tensor:
        """Logits over the codes of the proxy, [B, K, h, w] → pictures [B, 3, H, W], not clamped."""
        return self.proxy_decoder(torch.einsum("bkhw,kd->bdhw", logits.softmax(1), self.proxy_codes))

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """features: `tokens` [B, N, T], and of one with a proxy `proxy`, the logits over its codes [B, h·w, K]."""
        condition = self.drop_text(condition, len(x), generator)
        z = self.encode_tokens(x, condition, generator)
        quantized = self.quantizer(z)
        if self.config.clustering and self.training and isinstance(self.quantizer, VectorQuantizer):
            vectors = z.detach().flatten(0, 1).float()
            pull_unused_codes(self.quantizer.codebook.data, self.code_usage, vectors, quantized.ids.flatten())
        if self.training:
            kept = self.draw_prefixes(len(x), generator)
        else:
            kept = make_prefix_mask(torch.full((len(x),), self.config.num_tokens, device=z.device), z.shape[1])
            kept = kept if self.config.redundant else None
        features = {"tokens": quantized.values}
        if self.config.proxy is None:
            decoded = self.decode_tokens(quantized.values, kept, condition)
        else:
            logits = self.predict_proxy(quantized.values, kept, condition)
            decoded, features["proxy"] = self.draw_proxy(logits), logits.flatten(2).transpose(1, 2)
        return Reconstruction(decoded, quantized.loss, quantized.ids, quantized.numbers, features)

    def draw_prefixes(self, batch: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Which tokens are kept, bool [B, N], from 1 to all; None where none is dropped."""
        policy = PrefixPolicy(
            "none" if self.config.prefixes == "none" else "uniform", shared=self.config.prefixes == "batch"
        )
        num = self.config.num_tokens + self.config.redundant
        lengths = policy.draw(batch, num, generator)
        return None if lengths is None else make_prefix_mask(lengths.to(self.decoder.mask_token.device), num)

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        tokens = self.encode_tokens(x, options.condition)[:, : self.config.num_tokens]
        return Codes.whole(self.quantizer(tokens).ids, order="queries")

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        num, fewest = self.config.num_tokens, 1 if self.ordered else self.config.num_tokens
        if not all(fewest <= count <= num for count in codes.counts):
            taken = f"1 to {num}" if self.ordered else f"{num}"
            raise ValueError(f"a picture of {self.config.family} is {taken} codes; got {codes.counts}")
        kept = None if bool(codes.mask.all()) else codes.mask
        return self.decode_tokens(self.quantizer.look_up(codes.ids), kept, options.condition).clamp(0, 1)


class TiTokLatents(QueryTokenNetworks, SystemLatents):
    """Pictures ⇄ N continuous tokens of width T. ``encode`` gives the mean of each, training draws around it."""

    config_class: ClassVar[type[TiTokLatentsConfig]] = TiTokLatentsConfig
    config: TiTokLatentsConfig

    def __init__(self, config: TiTokLatentsConfig):
        super().__init__(config)
        self.build_networks(2 * config.token_width, causal=config.causal)
        self.head = PatchHead(config.decoder.width, config.patch_size)
        self.width = config.token_width

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> TiTokLatentsConfig:
        """From a YAML or config.json with quantize_mode: vae. ValueError for another."""
        return cls.config_class.model_validate(read_titok_settings(fields, latents=True, text=cls.reads_text))

    def encode_distribution(
        self, x: Tensor, condition: Condition | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """x: float [B, 3, H, W] → mean and log-variance (in [-30, 20]) of each token, float [B, N, T] each."""
        mean, log_variance = self.encode_tokens(x, condition, generator).float().chunk(2, dim=-1)
        return mean, log_variance.clamp(-30, 20)

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        condition = self.drop_text(condition, len(x), generator)
        mean, log_variance = self.encode_distribution(x, condition, generator)
        tokens = mean
        if self.training:
            tokens = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator).to(mean)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum((1, 2)).mean()
        decoded = self.decode_tokens(tokens, None, condition)
        numbers = {"divergence": float(divergence.detach())}
        return Reconstruction(decoded, self.config.kl_weight * divergence, None, numbers, {"tokens": tokens})

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Latents:
        mean = self.encode_distribution(x, options.condition)[0]
        return Latents(mean, torch.ones(mean.shape[:2], dtype=torch.bool, device=mean.device), order="queries")

    def decode_batch(self, coded: Latents, options: CodingOptions) -> Tensor:
        if any(count != self.config.num_tokens for count in coded.counts) or coded.values.shape[2] != self.width:
            raise ValueError(
                f"a picture of {self.config.family} is {self.config.num_tokens} tokens of width {self.width}; got "
                f"{coded.counts} of width {coded.values.shape[2]}"
            )
        return self.decode_tokens(coded.values, None, options.condition).clamp(0, 1)


class TATiTokConfig(TiTokConfig):
    """TA-TiTok's: the decoder reads the caption by default as CLIP ViT-L/14-336 gives it, 77 vectors of width 768 after
    its last norm."""

    family: str = "tatitok"
    text: TextSettings | None = TextSettings(network=CLIP_TEXT)


class TATiTokLatentsConfig(TiTokLatentsConfig):
    """The same with continuous tokens."""

    family: str = "tatitok_latents"
    text: TextSettings | None = TextSettings(network=CLIP_TEXT)


class TATiTokTokenizer(TiTokTokenizer):
    """TA-TiTok (arXiv 2501.07730) with codes."""

    config_class: ClassVar[type[TiTokConfig]] = TATiTokConfig
    reads_text: ClassVar[bool] = True


class TATiTokLatents(TiTokLatents):
    """TA-TiTok with continuous tokens."""

    config_class: ClassVar[type[TiTokLatentsConfig]] = TATiTokLatentsConfig
    reads_text: ClassVar[bool] = True
