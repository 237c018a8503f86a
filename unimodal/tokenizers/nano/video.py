"""The video tokenizer of ``nano``, joint with a picture tokenizer of any kind and causal in time.

The first frame is coded as a picture: its codes *are* picture codes, so what a language model learns of pictures holds
for clips (Emu3, arXiv 2409.18869, shares one codebook in the same way). Every later chunk of four frames becomes 64
motion codes, encoded and decoded given the last frame decoded so far (as VideoFlexTok chunks a clip, and as Moto's
latent motion tokens, arXiv 2412.04445, describe change rather than content). A chunk never looks at a later one, so
clips of any number of chunks encode and decode as a stream.

Shapes: B batch, T frames, F frames a chunk, P grid positions, I codes of a picture, N codes, D width, K quantized
dimensions, M chunks.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition, MediaTokenizer
from unimodal.tokenizers.parts.quantizers import FiniteScalarQuantizer
from unimodal.tokenizers.parts.trunks.blocks import ResidualConv, TransformerBlock
from unimodal.tokenizers.registry import load_tokenizer
from unimodal.tokenizers.stored import TokenizerConfig, read_config
from unimodal.tokenizers.systems.base import ReconstructingModule, Reconstruction

PATCH = 8


class VideoTokenizerConfig(TokenizerConfig):
    family: Literal["causal_motion_fsq"] = "causal_motion_fsq"
    image_size: int = 64
    frames_per_chunk: int = 4
    num_chunks: int = 2  # what nano's vocabulary lays out; encode and decode take any number
    fps: float = 8.0
    levels: tuple[int, ...] = (8, 8, 8, 8)
    width: int = 192
    num_heads: int = 6
    encoder_layers: int = 3
    decoder_layers: int = 4
    conv_channels: int = 64
    image_tokenizer_sha256: str = ""  # the image tokenizer whose frames it continues

    @property
    def num_frames(self) -> int:
        return 1 + self.num_chunks * self.frames_per_chunk


class VideoTokenizer(MediaTokenizer, ReconstructingModule):
    """nano's clips: the first frame's picture codes, then 64 codes of motion for every four frames.

    ``encode``: float [B, 3, 1 + M·F, 64, 64] in [0, 1] → Codes [B, I + 64·M, 1]. Holds, but does not store, the picture
    tokenizer, which is frozen: one of square pictures of `image_size` pixels, of as many codes each and one group.
    """

    modality: ClassVar[str] = "video"
    continues: ClassVar[str | None] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = VideoTokenizerConfig
    config: VideoTokenizerConfig

    def __init__(self, config: VideoTokenizerConfig, image_tokenizer: MediaTokenizer):
        """Raises ValueError for a picture tokenizer of another size, or whose codes cannot begin a clip."""
        size, own = config.image_size, image_tokenizer.picture_size
        if own != (size, size):
            theirs = "any size" if own is None else "{}×{} pixels".format(*own)
            raise ValueError(f"video frames of {size}×{size} pixels do not fit a picture tokenizer of {theirs}")
        num_first = image_tokenizer.tokens_per_item
        if image_tokenizer.modality != "image" or num_first is None or len(image_tokenizer.codebook_sizes) > 1:
            family = image_tokenizer.config.family
            raise ValueError(f"clips continue pictures of as many codes each, in one group; those of {family} are not")
        if not config.image_tokenizer_sha256:
            config = config.model_copy(update={"image_tokenizer_sha256": image_tokenizer.sha256})
        super().__init__(config)
        self._image = [image_tokenizer]  # in a list: not a submodule, so not in the state dict
        self.num_first = num_first
        width, frames = config.width, config.frames_per_chunk
        self.num_positions = (config.image_size // PATCH) ** 2
        self.quantizer = FiniteScalarQuantizer(config.levels)
        self.codebook_sizes = (self.quantizer.codebook_size,)
        self.tokens_per_item = num_first + self.num_positions * config.num_chunks
        self.segments = (*image_tokenizer.segments, *[("video", self.num_positions)] * config.num_chunks)
        self.block_sizes = {**image_tokenizer.block_sizes, "video": self.quantizer.codebook_size}
        self.frame_marks = True
        self.frames_per_second, self.num_frames = config.fps, config.num_frames
        self.picture_size = image_tokenizer.picture_size
        self.code_levels = {"video": self.quantizer.levels}
        dims = self.quantizer.num_dims

        self.frames_in = nn.Linear(frames * 3 * PATCH**2, width)
        self.past_in = nn.Linear(3 * PATCH**2, width)
        self.encoder_positions = nn.Parameter(torch.randn(self.num_positions, width) * 0.02)
        self.encoder_blocks = nn.Sequential(
            *(TransformerBlock(width, config.num_heads) for _ in range(config.encoder_layers))
        )
        self.encoder_out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dims))

        self.codes_in = nn.Linear(dims, width)
        self.decoder_past_in = nn.Linear(3 * PATCH**2, width)
        self.decoder_positions = nn.Parameter(torch.randn(self.num_positions, width) * 0.02)
        self.decoder_blocks = nn.Sequential(
            *(TransformerBlock(width, config.num_heads) for _ in range(config.decoder_layers))
        )
        channels = config.conv_channels
        self.decoder_up = nn.Sequential(nn.Conv2d(width, channels * 4, 1), nn.PixelShuffle(2), ResidualConv(channels))
        self.decoder_out = nn.Conv2d(channels, frames * 48, 3, padding=1)
        nn.init.zeros_(self.decoder_out.weight)  # the untrained decoder repeats the past frame
        nn.init.zeros_(self.decoder_out.bias)

    @property
    def image_tokenizer(self) -> MediaTokenizer:
        return self._image[0]

    # -- one chunk --------------------------------------------------------------------------------------------------
    def chunk_values(self, past: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """past: [B, 3, 64, 64], frames: [B, 3, F, 64, 64] → (values [B, P, K], ids int64 [B, P])."""
        h = self.frames_in(_patches(frames - past.unsqueeze(2))) + self.past_in(
            _patches(past.unsqueeze(2))
        )  # [B, P, D]
        return self.quantizer.quantize(self.encoder_out(self.encoder_blocks(h + self.encoder_positions)))

    def decode_chunk(self, past: Tensor, values: Tensor) -> Tensor:
        """past: [B, 3, 64, 64], values: [B, P, K] → frames [B, 3, F, 64, 64], unclamped."""
        h = self.codes_in(values) + self.decoder_past_in(_patches(past.unsqueeze(2))) + self.decoder_positions
        h = self.decoder_blocks(h)
        grid = self.config.image_size // PATCH
        h = self.decoder_out(self.decoder_up(h.transpose(1, 2).reshape(len(h), -1, grid, grid)))
        change = nn.functional.pixel_shuffle(h, 4).unflatten(1, (3, self.config.frames_per_chunk))  # [B, 3, F, 64, 64]
        return past.unsqueeze(2) + change

    # -- the contract -----------------------------------------------------------------------------------------------
    def code_features(self, block: str, group: int = 0) -> Tensor | None:
        """What the quantizer turns motion codes into, [size, K]; those of the first frame are the picture
        tokenizer's."""
        if block == "video" and group == 0:
            return self.quantizer.make_table()
        return self.image_tokenizer.code_features(block, group)

    def count_frames(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Real frames of each clip, int64 [B]. ValueError where clips or lengths are not 1 + a multiple of F."""
        size, per_chunk = self.config.image_size, self.config.frames_per_chunk
        if x.dim() != 5 or x.shape[1] != 3 or tuple(x.shape[3:]) != (size, size) or (x.shape[2] - 1) % per_chunk:
            raise ValueError(
                f"the video tokenizer takes [B, 3, 1 + a multiple of {per_chunk}, {size}, {size}]; got {tuple(x.shape)}"
            )
        frames = torch.full((len(x),), x.shape[2]) if lengths is None else lengths
        if bool(((frames < 1) | (frames > x.shape[2]) | ((frames - 1) % per_chunk != 0)).any()):
            raise ValueError(
                f"each length must be 1 + a multiple of {per_chunk}, at most {x.shape[2]}; got {frames.tolist()}"
            )
        return frames

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """Each chunk follows what the chunk before it was decoded to; the first frame is the frozen tokenizer's."""
        frames, per_chunk = self.count_frames(x, lengths), self.config.frames_per_chunk
        with torch.no_grad():
            first = self.image_tokenizer.encode(x[:, :, 0])
            past = self.image_tokenizer.decode(first).clone()  # not of inference mode
        ids, decoded = [first.ids[..., 0]], [past.unsqueeze(2)]
        for start in range(1, x.shape[2], per_chunk):
            values, chunk_ids = self.chunk_values(past, x[:, :, start : start + per_chunk])
            decoded.append(self.decode_chunk(past, values))
            past = decoded[-1][:, :, -1].clamp(0, 1)
            ids.append(chunk_ids)
        real = self.num_first + self.num_positions * ((frames - 1) // per_chunk)  # [B]
        all_ids = torch.cat(ids, dim=1)
        mask = torch.arange(all_ids.shape[1], device=x.device)[None] < real.to(x.device)[:, None]
        ids_of_all = (all_ids * mask).unsqueeze(-1)
        return Reconstruction(torch.cat(decoded, dim=2), x.new_zeros(()), ids_of_all, mask=mask)

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        """lengths: int64 [B] real frames of each clip, each 1 + a multiple of F."""
        made, side = self.reconstruct(x, lengths), self.config.image_size // PATCH
        assert made.ids is not None and made.mask is not None
        chunks = (made.ids.shape[1] - self.num_first) // self.num_positions
        grid = (1 + chunks, side, side) if self.num_first == self.num_positions else None
        return Codes(made.ids, made.mask, grid, "time+raster")

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        """Codes [B, I + 64·M, 1] → [B, 3, 1 + M·F, 64, 64]; a shorter clip of the batch holds its last frame."""
        ids, begin, num = codes.ids[..., 0], self.num_first, self.num_positions
        counts = torch.tensor([ids.shape[1], *codes.counts])
        if bool(((counts < begin) | ((counts - begin) % num != 0)).any()):
            told = f"a multiple of {num}" if begin == num else f"{begin} and a multiple of {num}"
            raise ValueError(f"a clip is {told} codes; got {codes.counts}")
        motion = ids[:, begin:]
        if bool(((motion < 0) | (motion >= self.block_sizes["video"])).any()):
            raise ValueError(
                f"video codes must lie in [0, {self.block_sizes['video']}); got {int(motion.min())}…{int(motion.max())}"
            )
        first = Codes(codes.ids[:, :begin], codes.mask[:, :begin])
        past = self.image_tokenizer.decode(first)
        frames = [past.unsqueeze(2)]
        for start in range(begin, ids.shape[1], num):
            chunk = self.decode_chunk(past, self.quantizer.to_values(ids[:, start : start + num])).clamp(0, 1)
            held = ~codes.mask[:, start, None, None, None, None]
            chunk = torch.where(held, past.unsqueeze(2).expand_as(chunk), chunk)
            frames.append(chunk)
            past = chunk[:, :, -1]
        return torch.cat(frames, dim=2)

    @classmethod
    def load(cls, folder: str | Path, continued: MediaTokenizer | None = None) -> VideoTokenizer:
        """Reads what ``save`` wrote. continued: the picture tokenizer, by default that in ``../image_tokenizer``.

        Raises ValueError for another picture tokenizer than the one whose frames it continues.
        """
        folder = Path(folder)
        config = read_config(VideoTokenizerConfig, folder)
        image = load_tokenizer(folder.parent / "image_tokenizer") if continued is None else continued
        wanted = config.image_tokenizer_sha256
        if wanted and wanted != image.sha256:
            raise ValueError(
                f"{folder} continues the image tokenizer {wanted[:12]}…, but the one given is {image.sha256[:12]}…"
            )
        return cls(config, image).load_weights(folder)


def _patches(x: Tensor) -> Tensor:
    """[B, 3, T, H, W] in [0, 1] → [B, (H/8)(W/8), T·3·64] in about [-1, 1]."""
    batch, channels, frames, height, width = x.shape
    x = (x * 2).reshape(batch, channels * frames, height // PATCH, PATCH, width // PATCH, PATCH)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, (height // PATCH) * (width // PATCH), -1)
