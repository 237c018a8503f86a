"""The image tokenizer of ``nano``: a 64×64 picture ⇄ 64 codes: what it is, which known picture it looks like, and the
rest how it looks, coarse to fine.

The first ``num_semantic`` codes name the nearest prototypes, nearest first, of a frozen image trunk's features
(EfficientNet-lite0) after a linear discriminant projection that ignores the drawing style. A frozen trunk as in SEED
(arXiv 2307.08041), semantic and pixel vocabularies side by side as in DualToken (arXiv 2503.14324). They mean the
same in every style, so a language model reads what it sees, and decides what to draw before how. One more code is the
nearest of the training pictures by a principal-component thumbnail: vector quantization of whole pictures, whose code
vector gives the decoder a first guess. The other codes are finite-scalar-quantized outputs of a convolutional and
transformer encoder; one decoder reads all codes and returns the pixels.

The codes are ordered: in training the tail is replaced by a mask token (prefix policy of FlexTok, arXiv 2502.13967,
with a length drawn for every picture; One-D-Piece, arXiv 2501.10064), so any prefix decodes to a coarser picture. The
8×8 grid of features meets the pixel codes through learned mixings over positions that start as a cosine transform,
lowest frequencies first.

Shapes: B batch, N codes, P grid positions, S semantic codes, D width, K quantized dimensions, C prototypes, L
discriminant dimensions, E looks (exemplars), A principal components, U thumbnail pixels.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from unimodal.tokenizers.interface import Codes, MediaTokenizer
from unimodal.tokenizers.nano.efficientnet import NUM_FEATURES, EfficientNetLite0
from unimodal.tokenizers.parts.quantizers import FiniteScalarQuantizer
from unimodal.tokenizers.parts.trunks import ResidualConv, TransformerBlock
from unimodal.tokenizers.stored import TokenizerConfig


class ImageTokenizerConfig(TokenizerConfig):
    family: Literal["semantic_pixel_fsq"] = "semantic_pixel_fsq"
    image_size: int = 64
    levels: tuple[int, ...] = (8, 8, 8, 8)
    num_semantic: int = 3
    num_prototypes: int = 0  # the size of the semantic codebook; set when it is fitted
    num_looks: int = 0  # the size of the codebook of whole pictures; set when it is fitted
    look_components: int = 320
    look_patch: int = 3  # thumbnail pixels a side of one of the grid's cells
    semantic_dims: int = 256
    trunk_size: int = 128  # pixels a side at which the frozen trunk sees the picture
    conv_channels: int = 96
    width: int = 192
    num_heads: int = 3
    encoder_layers: int = 2
    decoder_layers: int = 4
    conv_blocks: int = 2  # residual blocks at 16×16, each side

    @property
    def grid(self) -> int:
        return self.image_size // 8

    @property
    def num_pixel(self) -> int:
        return self.grid**2 - self.num_semantic - 1


def cosine_basis(grid: int) -> Tensor:
    """The two-dimensional cosine transform of a grid×grid raster: orthonormal float [P, P], lowest frequency first."""
    place = torch.arange(grid)
    line = torch.cos(torch.pi / grid * (place[None] + 0.5) * place[:, None]) * (2 / grid) ** 0.5  # [frequency, place]
    line[0] *= 0.5**0.5
    basis = torch.einsum("ay,bx->abyx", line, line).reshape(grid * grid, grid * grid)
    frequency = (place[:, None].square() + place[None].square()).flatten()
    return basis[torch.argsort(frequency, stable=True)]


class SemanticBranch(nn.Module):
    """Frozen-trunk features [B, 1280] → the S nearest of C prototypes. Fitted in closed form, never trained by
    gradient."""

    def __init__(self, config: ImageTokenizerConfig):
        super().__init__()
        self.num_codes = config.num_semantic
        self.register_buffer("mean", torch.zeros(NUM_FEATURES))
        self.register_buffer("projection", torch.zeros(NUM_FEATURES, config.semantic_dims))
        self.register_buffer("prototypes", torch.zeros(config.num_prototypes, config.semantic_dims))

    def project(self, features: Tensor) -> Tensor:
        """features: [B, 1280] ≥ 0 → unit vectors [B, L]. The square root tames features that fire rarely but
        strongly."""
        rooted = nn.functional.normalize(features.clamp_min(0).sqrt(), dim=-1)
        return nn.functional.normalize((rooted - self.mean) @ self.projection, dim=-1)

    def forward(self, features: Tensor) -> Tensor:
        """features: [B, 1280] → ids int64 [B, S], nearest first."""
        return self.nearest(features, self.num_codes)

    def nearest(self, features: Tensor, count: int) -> Tensor:
        """features: [B, 1280] → the nearest ``count`` prototypes, ids int64 [B, count]."""
        return (self.project(features) @ self.prototypes.T).topk(count, dim=-1).indices

    def values(self, ids: Tensor) -> Tensor:
        """ids: int64 [B, S] → prototypes [B, S, L]."""
        return self.prototypes[ids]

    @torch.no_grad()
    def fit(self, features: Tensor, labels: Tensor, shrinkage: float = 0.3) -> None:
        """Linear discriminants and one prototype a label.

        features: [M, V, 1280] of M pictures in V views; labels: int64 [M] in [0, C), every one of them present.
        ``shrinkage`` adds that share of the mean within-label variance to every direction (regularised LDA, Friedman
        1989).
        """
        rooted = nn.functional.normalize(features.float().clamp_min(0).sqrt(), dim=-1)
        num_labels = int(labels.max()) + 1
        sums = torch.zeros(num_labels, NUM_FEATURES).index_add_(0, labels, rooted.mean(1))
        centres = sums / torch.bincount(labels, minlength=num_labels).unsqueeze(1)  # [C, 1280]
        self.mean.copy_(centres.mean(0))
        within = (rooted - centres[labels].unsqueeze(1)).flatten(0, 1)
        between = centres - self.mean
        covariance = within.T @ within / len(within)
        covariance += shrinkage * covariance.diagonal().mean() * torch.eye(NUM_FEATURES)
        factor = torch.linalg.cholesky(covariance.double())
        half = torch.linalg.solve_triangular(factor, (between.T @ between / num_labels).double(), upper=False)
        whitened = torch.linalg.solve_triangular(factor, half.T, upper=False)
        directions = torch.linalg.eigh((whitened + whitened.T) / 2).eigenvectors.flip(-1)[:, : self.projection.shape[1]]
        projection = torch.linalg.solve_triangular(factor.T, directions, upper=True).float()
        self.projection.copy_(projection / projection.abs().max())  # one scale, so that half precision holds it
        self.prototypes.copy_(nn.functional.normalize((centres - self.mean) @ self.projection, dim=-1))


class LookBranch(nn.Module):
    """A picture [B, 3, 64, 64] → the nearest of E known pictures by the principal components of a thumbnail. Fitted in
    closed form, never trained by gradient."""

    def __init__(self, config: ImageTokenizerConfig):
        super().__init__()
        self.grid, self.patch = config.grid, config.look_patch
        num_pixels = 3 * (self.grid * self.patch) ** 2
        self.register_buffer("mean", torch.zeros(num_pixels))
        self.register_buffer("basis", torch.zeros(config.look_components, num_pixels))  # [A, U]
        self.register_buffer("table", torch.zeros(config.num_looks, config.look_components))  # [E, A]

    def thumbnail(self, x: Tensor) -> Tensor:
        """x: [B, 3, 64, 64] in [0, 1] → [B, U] in [-1, 1], by cell of the grid, then channel, row and column."""
        side = self.grid * self.patch
        small = nn.functional.interpolate(x.float(), size=(side, side), mode="area") * 2 - 1
        return nn.functional.pixel_unshuffle(small, self.patch).flatten(2).transpose(1, 2).flatten(1)

    def components(self, x: Tensor) -> Tensor:
        """x: [B, 3, 64, 64] → [B, A]."""
        with torch.autocast(x.device.type, enabled=False):
            return (self.thumbnail(x) - self.mean) @ self.basis.T

    def nearest(self, x: Tensor, count: int) -> Tensor:
        """x: [B, 3, 64, 64] → ids int64 [B, count], nearest first."""
        return torch.cdist(self.components(x), self.table).topk(count, dim=-1, largest=False).indices

    def values(self, ids: Tensor) -> Tensor:
        """ids: int64 [B] → thumbnails by cell [B, P, U / P]."""
        with torch.autocast(ids.device.type, enabled=False):
            return (self.table[ids] @ self.basis + self.mean).unflatten(1, (self.grid**2, -1))

    @torch.no_grad()
    def fit(self, pictures: Tensor) -> None:
        """pictures: [E, 3, 64, 64] in [0, 1], one for each look."""
        thumbnails = torch.cat([self.thumbnail(part) for part in pictures.split(512)])  # [E, U]
        self.mean.copy_(thumbnails.mean(0))
        centred = thumbnails - self.mean
        vectors = torch.linalg.eigh((centred.T @ centred).double()).eigenvectors.flip(-1)  # [U, U]
        self.basis.copy_(vectors[:, : len(self.basis)].T.float())
        self.table.copy_(centred @ self.basis.T)


class ImageTokenizer(MediaTokenizer):
    """See the module's page. ``encode``: float [B, 3, 64, 64] in [0, 1] → Codes [B, 64, 1]."""

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = ImageTokenizerConfig
    config: ImageTokenizerConfig

    def __init__(self, config: ImageTokenizerConfig):
        super().__init__(config)
        grid, width, channels = config.grid, config.width, config.conv_channels
        num_positions = grid * grid
        self.tokens_per_item = num_positions
        self.trunk = EfficientNetLite0().requires_grad_(False)
        self.semantic = SemanticBranch(config)
        self.look = LookBranch(config)
        self.quantizer = FiniteScalarQuantizer(config.levels)
        self.codebook_sizes = (self.quantizer.codebook_size,)
        self.ordered = True
        self.segments = (("semantic", config.num_semantic), ("look", 1), ("image", config.num_pixel))
        self.block_sizes = {
            "semantic": config.num_prototypes, "look": config.num_looks, "image": self.quantizer.codebook_size,
        }  # fmt: skip
        dims = self.quantizer.num_dims
        basis = cosine_basis(grid)  # [P, P]

        def blocks(count: int) -> nn.Sequential:
            return nn.Sequential(*(TransformerBlock(width, config.num_heads) for _ in range(count)))

        self.encoder_in = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, channels, 3, padding=1),
            *(ResidualConv(channels) for _ in range(config.conv_blocks)),
        )
        self.encoder_down = nn.Conv2d(channels, width, 2, stride=2)
        self.encoder_positions = nn.Parameter(torch.randn(num_positions, width) * 0.02)
        self.encoder_blocks = blocks(config.encoder_layers - 1)
        self.encoder_mixing = nn.Parameter(basis[: config.num_pixel].clone())  # [N - S - 1, P]
        self.encoder_code_positions = nn.Parameter(torch.randn(config.num_pixel, width) * 0.02)
        self.encoder_code_blocks = blocks(1)
        self.encoder_out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dims))

        self.semantic_in = nn.Linear(config.semantic_dims, width)
        self.semantic_looks = nn.Parameter(torch.randn(config.num_prototypes, width) * 0.02)  # what one looks like
        self.look_in = nn.Linear(3 * config.look_patch**2, width)
        self.look_code = nn.Parameter(torch.randn(width) * 0.02)
        self.pixel_in = nn.Linear(dims, width)
        self.dropped_code = nn.Parameter(torch.randn(width) * 0.02)
        self.decoder_code_positions = nn.Parameter(torch.randn(num_positions, width) * 0.02)
        self.decoder_code_blocks = blocks(1)
        # the first codes share the lowest frequencies with the first pixel codes; learning does the rest
        num_first = num_positions - config.num_pixel
        self.decoder_mixing = nn.Parameter(torch.cat([basis[:num_first], basis[: config.num_pixel]]).T.clone())
        self.decoder_positions = nn.Parameter(torch.randn(num_positions, width) * 0.02)
        self.decoder_blocks = blocks(config.decoder_layers - 1)
        self.decoder_up = nn.Sequential(nn.Conv2d(width, channels * 4, 1), nn.PixelShuffle(2))
        self.decoder_out = nn.Sequential(
            *(ResidualConv(channels) for _ in range(config.conv_blocks)),
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, 48, 3, padding=1),
            nn.PixelShuffle(4),
        )

    # -- pieces used in training ------------------------------------------------------------------------------------
    def trunk_features(self, x: Tensor) -> Tensor:
        """x: [B, 3, H, W] in [0, 1] → frozen features [B, 1280]."""
        size = self.config.trunk_size
        with torch.no_grad():
            return self.trunk(nn.functional.interpolate(x, size=(size, size), mode="bilinear", antialias=True))

    def pixel_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [B, 3, 64, 64] in [0, 1] → (values [B, N - S - 1, K] with straight-through gradient, ids int64)."""
        h = self.encoder_down(self.encoder_in(x * 2 - 1)).flatten(2).transpose(1, 2)  # [B, P, D]
        h = self.encoder_mixing @ self.encoder_blocks(h + self.encoder_positions)  # [B, N - S - 1, D]
        return self.quantizer(self.encoder_out(self.encoder_code_blocks(h + self.encoder_code_positions)))

    def decode_values(self, semantic: Tensor, look: Tensor, pixel: Tensor, kept: Tensor | None = None) -> Tensor:
        """semantic ids: [B, S], look ids: [B], pixel values: [B, N - S - 1, K] → [B, 3, 64, 64], unclamped.

        kept: bool [B, N], False where a code is not known; None if all are.
        """
        meaning = self.semantic_in(self.semantic.values(semantic)) + self.semantic_looks[semantic]
        code = self.look_code.to(meaning.dtype).expand(len(meaning), 1, -1)
        guess = self.look_in(self.look.values(look))  # [B, P, D]
        h = torch.cat([meaning, code, self.pixel_in(pixel)], dim=1)  # [B, N, D]
        if kept is not None:
            h = torch.where(kept.unsqueeze(-1), h, self.dropped_code.to(h.dtype))
            guess = guess * kept[:, self.config.num_semantic, None, None]
        h = self.decoder_code_blocks(h + self.decoder_code_positions)
        h = self.decoder_blocks(self.decoder_mixing @ h + guess + self.decoder_positions)
        grid = self.config.grid
        h = h.transpose(1, 2).reshape(len(h), -1, grid, grid)
        return self.decoder_out(self.decoder_up(h)) * 0.5 + 0.5

    # -- the contract -----------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def encode(self, x: Tensor, lengths: Tensor | None = None) -> Codes:
        size = self.config.image_size
        if x.dim() != 4 or x.shape[1] != 3 or tuple(x.shape[2:]) != (size, size):
            raise ValueError(f"the image tokenizer takes [B, 3, {size}, {size}] in [0, 1]; got {tuple(x.shape)}")
        _, pixel_ids = self.pixel_values(x)
        ids = torch.cat([self.semantic(self.trunk_features(x)), self.look.nearest(x, 1), pixel_ids], dim=1)
        return Codes(
            ids.unsqueeze(-1),
            torch.ones_like(ids, dtype=torch.bool),
            (1, self.config.grid, self.config.grid),
            "semantic+look+coarse_to_fine",
        )

    @torch.inference_mode()
    def decode(self, codes: Codes) -> Tensor:
        """Codes [B, n ≤ N, 1] → [B, 3, 64, 64]; a prefix of the codes gives a coarser picture."""
        ids, num, num_semantic = codes.ids[..., 0], self.tokens_per_item, self.config.num_semantic
        assert num is not None
        kept = codes.mask
        if ids.shape[1] > num or not bool(kept[:, :1].all()) or bool((kept[:, 1:] > kept[:, :-1]).any()):
            raise ValueError(f"a picture is {num} codes or a prefix of them; got {kept.sum(1).tolist()}")
        missing = num - ids.shape[1]
        ids, kept = nn.functional.pad(ids, (0, missing)), nn.functional.pad(kept, (0, missing))
        ids = torch.where(kept, ids, torch.zeros_like(ids))
        semantic, look, pixel = ids.split([num_semantic, 1, num - num_semantic - 1], dim=1)
        for name, part in (("semantic", semantic), ("look", look), ("image", pixel)):
            if bool(((part < 0) | (part >= self.block_sizes[name])).any()):
                raise ValueError(
                    f"{name} codes must lie in [0, {self.block_sizes[name]}); got {int(part.min())}…{int(part.max())}"
                )
        return self.decode_values(semantic, look[:, 0], self.quantizer.values(pixel), kept).clamp(0, 1)
