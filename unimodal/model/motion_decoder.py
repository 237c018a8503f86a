"""From a decoder's states at several frames to what comes next: CronusVLA's cross-frame decoder (arXiv 2506.19816).

A language model is run on every frame by itself; its state at the frame's last token is the frame's motion feature.
The features of the M frames before and of the newest one are a chunk, to which a small transformer over the next T
steps attends while it removes noise from them: actions of a robot, or latent motions (Moto, arXiv 2412.04445) between
this frame and the next ones. Features of past frames can be kept, so that a step costs one frame.

As in the authors' code: the newest feature becomes `parts` vectors, a past one is one; blocks of self-attention,
cross-attention and an MLP, each behind a norm without weights; noise is predicted on the squared-cosine schedule of 100
steps (arXiv 2102.09672), drawn by DDIM (arXiv 2010.02502) in 10, with guidance against a learnt absent chunk.

Shapes: B samples, M past frames, D width of the language model, T steps, A numbers of a step, H width, C conditions.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from unimodal.config import Config
from unimodal.files import describe_error, write_bytes_atomically

MOTION_FILE = "motion_decoder.safetensors"
NUM_NOISES = 100
_WAVES = 128


class MotionSettings(Config):
    """past: M. steps: T. width: A. hidden, layers, heads: of the transformer; the authors' S has 384, 6 and 4. parts:
    vectors of the newest feature. dropout: share of the samples that learn without a chunk."""

    past: int = Field(default=3, ge=0)
    steps: int = Field(default=1, ge=1)
    width: int = Field(ge=1)
    hidden: int = Field(default=384, ge=2, multiple_of=2)
    layers: int = Field(default=6, ge=1)
    heads: int = Field(default=4, ge=1)
    parts: int = Field(default=6, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)


class _Attention(nn.Module):
    """Attention of x to y, or to itself, with biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value, self.out = (
            nn.Linear(width, size) for size in (width, 2 * width, width)
        )  # fmt: skip

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.key_value(y).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6, elementwise_affine=False) for _ in range(3))
        self.own, self.cross = _Attention(width, heads), _Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, chunk: Tensor) -> Tensor:
        y = self.norms[0](x)
        x = x + self.own(y, y)
        x = x + self.cross(self.norms[1](x), chunk)
        return x + self.mlp(self.norms[2](x))


class CrossFrameDecoder(nn.Module):
    """The cross-frame decoder. width: D. Raises ValueError for heads and parts that do not divide."""

    signal: Tensor

    def __init__(self, settings: MotionSettings, width: int) -> None:
        super().__init__()
        hidden, parts = settings.hidden, settings.parts
        if hidden % settings.heads:
            raise ValueError(f"{settings.heads} heads do not divide a width of {hidden}")
        if width < parts:
            raise ValueError(f"a state of width {width} does not become {parts} parts; lower parts")
        self.settings, self.width = settings, width
        self.register_buffer("signal", make_schedule(), persistent=False)  # [100]
        self.embed_step = nn.Linear(settings.width, hidden)
        self.embed_time = nn.Sequential(nn.Linear(2 * _WAVES, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.embed_past = nn.Linear(width, hidden)
        self.split_newest = nn.Sequential(nn.Linear(width, parts * (width // parts)), nn.GELU())
        self.embed_newest = nn.Linear(width // parts, hidden)
        self.absent = nn.Parameter(torch.empty(settings.past + 1, width))
        self.places = nn.Parameter(hidden**-0.5 * torch.randn(settings.steps + 1, hidden))
        self.chunk_places = nn.Parameter(hidden**-0.5 * torch.randn(settings.past + parts, hidden))
        self.blocks = nn.ModuleList(_Block(hidden, settings.heads) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(hidden, eps=1e-6, elementwise_affine=False)
        self.out = nn.Linear(hidden, settings.width)
        self._draw_weights()

    @torch.no_grad()
    def _draw_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        first, last = self.embed_time[0], self.embed_time[2]
        split = self.split_newest[0]
        for layer in (self.embed_step, self.embed_past, self.embed_newest, first, last, split):
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.normal_(self.absent, std=0.02)
        nn.init.zeros_(self.out.weight)

    def read_chunk(self, features: Tensor) -> Tensor:
        """Motion features [B, M + 1, D], the newest last → what the steps attend to, [B, M + parts, H]."""
        past = self.embed_past(features[:, :-1])
        newest = self.embed_newest(self.split_newest(features[:, -1]).unflatten(-1, (self.settings.parts, -1)))
        return torch.cat([past, newest], 1) + self.chunk_places

    def forward(self, noisy: Tensor, time: Tensor, features: Tensor) -> Tensor:
        """noisy [B, T, A] at noise step int64 [B], 0 to 99, and features [B, M + 1, D] → the noise in it [B, T, A]."""
        waves = torch.exp(torch.arange(_WAVES, device=time.device) * (-math.log(10_000.0) / _WAVES))
        angles = time[:, None].float() * waves
        t = self.embed_time(torch.cat([angles.cos(), angles.sin()], -1).to(noisy.dtype))
        x = torch.cat([t[:, None], self.embed_step(noisy)], 1) + self.places
        chunk = self.read_chunk(features)
        for block in self.blocks:
            x = block(x, chunk)
        noise: Tensor = self.out(self.norm(x))[:, 1:]
        return noise

    def compute_losses(self, features: Tensor, steps: Tensor, draws: int = 4) -> Tensor:
        """features [B, M + 1, D] and the steps [B, T, A] that follow → [B], the mean over so many noises.

        Noise, times and the chunks that are dropped in training are drawn from torch's own generator.
        """
        features, steps = (one.repeat(draws, 1, 1) for one in (features, steps))
        noise = torch.randn_like(steps)
        time = torch.randint(0, NUM_NOISES, (len(steps),), device=steps.device)
        if self.training and self.settings.dropout:
            drop = torch.rand(len(steps), device=steps.device) < self.settings.dropout
            features = torch.where(drop[:, None, None], self.absent.to(features.dtype), features)
        signal = self.signal[time][:, None, None].to(steps.dtype)
        noisy = signal.sqrt() * steps + (1 - signal).sqrt() * noise
        return (self(noisy, time, features) - noise).square().mean((1, 2)).view(draws, -1).mean(0)

    @torch.no_grad()
    def draw(self, features: Tensor, noise: Tensor, passes: int = 10, guidance: float = 1.5) -> Tensor:
        """features [B, M + 1, D] and normal noise [B, T, A] → steps [B, T, A].

        passes: of DDIM without noise of its own, over every 100 / passes-th step; it has to divide 100. guidance: how
        far the noise goes beyond that of the absent chunk; 1 turns it off. ValueError for other passes.
        """
        if passes < 1 or NUM_NOISES % passes:
            raise ValueError(f"passes is {passes}; it has to divide {NUM_NOISES}")
        x, times = noise, list(range(0, NUM_NOISES, NUM_NOISES // passes))
        absent = self.absent.to(features.dtype).expand_as(features)
        for number in reversed(range(passes)):
            time = torch.full((len(x),), times[number], device=x.device)
            found = self(x, time, features)
            if guidance != 1.0:
                found = torch.lerp(self(x, time, absent), found, guidance)
            now = self.signal[times[number]]
            before = self.signal[times[number - 1]] if number else torch.ones_like(now)
            clean = (x - (1 - now).sqrt() * found) / now.sqrt()
            x = before.sqrt() * clean + (1 - before).sqrt() * found
        return x

    def save(self, folder: str | Path) -> None:
        """Write `motion_decoder.safetensors`, whole or not at all."""
        from safetensors.torch import save

        state = {name: tensor.detach().float().cpu().contiguous() for name, tensor in self.state_dict().items()}
        metadata = {"format": "pt", "settings": self.settings.model_dump_json(), "width": str(self.width)}
        write_bytes_atomically(Path(folder) / MOTION_FILE, save(state, metadata=metadata))


def load_motion_decoder(folder: str | Path) -> CrossFrameDecoder:
    """What `CrossFrameDecoder.save` wrote. ValueError, in one line, for a file that is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / MOTION_FILE
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        made = CrossFrameDecoder(MotionSettings.model_validate_json(metadata["settings"]), int(metadata["width"]))
        made.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read ({describe_error(error)}); copy or train it again") from None
    return made.eval()


def make_schedule() -> Tensor:
    """How much of the signal is left at each of the 100 noise steps, float32 [100]: the product of 1 - β."""

    def left(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - left((i + 1) / NUM_NOISES) / left(i / NUM_NOISES), 0.999) for i in range(NUM_NOISES)]
    return (1 - torch.tensor(betas, dtype=torch.float64)).cumprod(0).float()
