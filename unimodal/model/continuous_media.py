"""Continuous embeddings of a medium in a decoder, in and out, in place of codes.

Every position of such a span holds a vector of a latent tokenizer (`tokenizers.LatentTokenizer`). It is read through
one linear map, and predicted from the decoder's state one position earlier by a head, as in VL-GPT (arXiv 2312.09251),
whose decoder is trained by one autoregressive objective over words and such vectors. In the vocabulary the medium has
a block of one row, which says that a vector stands there.

    mse, cosine   a regression head: one linear layer. What is drawn is the mean, or the mean direction.
    flow          a small network that carries noise to the vector along straight lines, given the state: the diffusion
                  head of MAR (arXiv 2406.11838) with rectified flow (arXiv 2209.03003). What is drawn is a sample.

Heads see vectors that `fit` has standardised: each dimension of mean 0 and deviation 1 over the data.

Shapes: P positions, K width of a vector, D width of the decoder, W width of the flow's network.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from unimodal.config import Config
from unimodal.files import describe_error, write_bytes_atomically
from unimodal.model.rows import read_head_rows
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONTINUOUS_FILE = "continuous_media.safetensors"
NAME = "continuous_media"  # of the module on the model
_STD, _WAVES = 0.02, 64


class ContinuousSettings(Config):
    """medium: whose spans hold vectors. width: K of a vector. head: see above.

    layers, hidden: of the flow's network: residual blocks, and W. draws: the noises that one vector is learnt at in a
    step, of which MAR takes 4.
    """

    medium: str = "image"
    width: int = Field(ge=1)
    head: Literal["mse", "cosine", "flow"] = "flow"
    layers: int = Field(default=3, ge=1)
    hidden: int = Field(default=256, ge=2, multiple_of=2)
    draws: int = Field(default=4, ge=1)


class RegressionHead(nn.Module):
    """A linear layer to the vector, learnt by the mean squared error or by 1 - cosine."""

    def __init__(self, settings: ContinuousSettings, width: int) -> None:
        super().__init__()
        self.kind = settings.head
        self.linear = nn.Linear(width, settings.width)

    def compute_losses(self, states: Tensor, vectors: Tensor) -> Tensor:
        """states [P, D] and the vectors [P, K] that they are to predict → [P]."""
        found = self.linear(states)
        if self.kind == "cosine":
            return 1 - F.cosine_similarity(found, vectors, dim=-1)
        return (found - vectors).square().mean(-1)

    def draw(self, states: Tensor) -> Tensor:
        """states [P, D] → [P, K]; a direction gets the length that standardised vectors have on average."""
        found = self.linear(states)
        return F.normalize(found, dim=-1) * found.shape[-1] ** 0.5 if self.kind == "cosine" else found


class _FlowBlock(nn.Module):
    """A residual block whose input is shifted and scaled, and whose output is gated, by the condition."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.body = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 3 * hidden))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(condition).chunk(3, -1)
        return x + gate * self.body(self.norm(x) * (1 + scale) + shift)


class FlowHead(nn.Module):
    """The velocity from a vector to noise, given the decoder's state and the time: 0 at the vector, 1 at the noise."""

    def __init__(self, settings: ContinuousSettings, width: int) -> None:
        super().__init__()
        hidden = settings.hidden
        self.draws, self.width = settings.draws, settings.width
        self.project_vector, self.project_state = nn.Linear(settings.width, hidden), nn.Linear(width, hidden)
        self.project_time = nn.Sequential(nn.Linear(2 * _WAVES, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.blocks = nn.ModuleList(_FlowBlock(hidden) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(hidden, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))
        self.out = nn.Linear(hidden, settings.width)
        for last in (*(block.modulation[1] for block in self.blocks), self.modulation[1], self.out):
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, noisy: Tensor, time: Tensor, states: Tensor) -> Tensor:
        """noisy [P, K] at time [P], and states [P, D] → velocities [P, K]."""
        waves = torch.exp(torch.arange(_WAVES, device=time.device) * (-math.log(10_000.0) / _WAVES))
        angles = 1000 * time[:, None].float() * waves
        embedded = torch.cat([angles.cos(), angles.sin()], -1).to(states.dtype)
        condition = self.project_time(embedded) + self.project_state(states)
        x = self.project_vector(noisy)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition).chunk(2, -1)
        velocity: Tensor = self.out(self.norm(x) * (1 + scale) + shift)
        return velocity

    def compute_losses(self, states: Tensor, vectors: Tensor) -> Tensor:
        """states [P, D] and the vectors [P, K] that they are to predict → [P], the mean over `draws` noises and times.

        Times are logit-normal (arXiv 2403.03206); noise and times are drawn from torch's own generator.
        """
        states, vectors = (one.repeat(self.draws, 1) for one in (states, vectors))
        noise = torch.randn_like(vectors)
        time = torch.randn(len(vectors), device=vectors.device, dtype=vectors.dtype).sigmoid()
        noisy = time[:, None] * noise + (1 - time[:, None]) * vectors
        error = (self(noisy, time, states) - (noise - vectors)).square().mean(-1)
        return error.view(self.draws, -1).mean(0)

    def draw(
        self, states: Tensor, noise: Tensor, steps: int, free: Tensor | None = None, guidance: float = 1.0
    ) -> Tensor:
        """noise [P, K] → vectors [P, K] in equal steps. free: states without the condition; the velocity goes guidance
        times as far from theirs (arXiv 2207.12598)."""
        x = noise
        for step in range(steps, 0, -1):
            time = x.new_full((len(x),), step / steps)
            velocity = self(x, time, states)
            if free is not None and guidance != 1.0:
                velocity = torch.lerp(self(x, time, free), velocity, guidance)
            x = x - velocity / steps
        return x


class ContinuousMedia(nn.Module):
    """The map into the decoder and the head out of it. width: D. row: the row that stands for a vector."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, settings: ContinuousSettings, width: int, row: int) -> None:
        super().__init__()
        self.settings, self.row = settings, row
        self.register_buffer("mean", torch.zeros(settings.width))
        self.register_buffer("deviation", torch.ones(settings.width))
        self.read_in = nn.Linear(settings.width, width)
        self.head = FlowHead(settings, width) if settings.head == "flow" else RegressionHead(settings, width)

    @torch.no_grad()
    def fit(self, vectors: Tensor) -> None:
        """Take mean and deviation from vectors [P, K] of the data. ValueError for none, and for another width."""
        if vectors.dim() != 2 or not len(vectors) or vectors.shape[1] != self.settings.width:
            raise ValueError(f"vectors {list(vectors.shape)} are given to fit; they are [P, {self.settings.width}]")
        self.mean.copy_(vectors.float().mean(0))
        self.deviation.copy_(vectors.float().std(0, correction=0).clamp_min(1e-6))

    def standardise(self, vectors: Tensor) -> Tensor:
        """Vectors [..., K] as the tokenizer gives them → as the map and the head see them."""
        return (vectors.to(self.mean) - self.mean) / self.deviation

    def embed(self, vectors: Tensor) -> Tensor:
        """Vectors [..., K] → what the decoder reads [..., D]."""
        embedded: Tensor = self.read_in(self.standardise(vectors))
        return embedded

    def compute_losses(self, states: Tensor, vectors: Tensor) -> Tensor:
        """The decoder's states [P, D] and the vectors [P, K] that come next → losses [P]."""
        states = states.to(self.mean.dtype)
        losses: Tensor = self.head.compute_losses(states, self.standardise(vectors))
        return losses

    def draw(
        self, states: Tensor, noise: Tensor, steps: int = 20, free: Tensor | None = None, guidance: float = 1.0
    ) -> Tensor:
        """states [P, D] → vectors [P, K] as the tokenizer gives them. noise [P, K], steps, free, guidance: of the flow.

        ValueError for guidance of a regression head.
        """
        states = states.to(self.mean.dtype)
        if isinstance(self.head, FlowHead):
            free = None if free is None else free.to(self.mean.dtype)
            drawn = self.head.draw(states, noise.to(self.mean), steps, free, guidance)
        elif guidance != 1.0:
            raise ValueError(f"guidance {guidance:g} goes between velocities, and a {self.settings.head} head has none")
        else:
            drawn = self.head.draw(states)
        return drawn * self.deviation + self.mean

    def save(self, folder: str | Path) -> None:
        """Write `continuous_media.safetensors`, whole or not at all."""
        from safetensors.torch import save

        state = {name: tensor.detach().float().cpu().contiguous() for name, tensor in self.state_dict().items()}
        metadata = {"format": "pt", "settings": self.settings.model_dump_json(), "row": str(self.row)}
        write_bytes_atomically(Path(folder) / CONTINUOUS_FILE, save(state, metadata=metadata))


# ---- on a model


def find_continuous_media(model: nn.Module) -> ContinuousMedia | None:
    """The continuous media of a causal LM; None for one without."""
    found = dict(model.named_children()).get(NAME)
    assert found is None or isinstance(found, ContinuousMedia)
    return found


def find_vector_row(vocabulary: Vocabulary, medium: str) -> int:
    """The row that stands for a vector of this medium. ValueError for a medium with codes, or of unknown length."""
    blocks = [block for block in vocabulary.blocks if block.modality == medium]
    if len(blocks) != 1 or blocks[0].size != 1:
        raise ValueError(
            f"{medium} of this vocabulary has {sum(block.size for block in blocks)} codes; continuous {medium}s have "
            "one block of one row"
        )
    if vocabulary.get_layout(medium).open_segment is not None:
        raise ValueError(f"spans of {medium} have any length here; continuous ones have a fixed number of vectors")
    return blocks[0].start


def add_continuous_media(
    model: PreTrainedModel, vocabulary: Vocabulary, settings: ContinuousSettings, seed: int = 0
) -> ContinuousMedia:
    """Give a causal LM the map and the head, in float32; a vector is read at first as one of the model's rows in size.

    Add it after LoRA and the attention, which act on the whole model. ValueError for a medium that has codes.
    """
    row = find_vector_row(vocabulary, settings.medium)
    table = model.get_input_embeddings()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        made = ContinuousMedia(settings, _find_width(model), row)
        text = table(torch.arange(min(vocabulary.text_size, 4096), device=model.device)).float().cpu()
        made.read_in.weight.normal_(std=float(text.std()) / settings.width**0.5)
        made.read_in.bias.copy_(text.mean(0))
    model.add_module(NAME, made.to(model.device))
    return made


def take_continuous_media(model: nn.Module) -> ContinuousMedia | None:
    """Take the map and the head off a causal LM, which then is one of its stock class; None if it had none."""
    found = find_continuous_media(model)
    if found is not None:
        del model._modules[NAME]
    return found


def attach_continuous_media(
    model: PreTrainedModel, folder: str | Path, vocabulary: Vocabulary, dtype: torch.dtype | None = None
) -> None:
    """Put the map and the head of a model folder, if it has them, on its causal LM.

    dtype: by default that of the model's head. ValueError, in one line, for a damaged file and for one of another
    model.
    """
    path = Path(folder) / CONTINUOUS_FILE
    if not path.is_file():
        return
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            settings = ContinuousSettings.model_validate_json(metadata["settings"])
            row = int(metadata["row"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        made = ContinuousMedia(settings, len(state["read_in.weight"]), row)
        made.load_state_dict(state)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged ({describe_error(error)}); copy or download it again") from None
    if len(state["read_in.weight"]) != _find_width(model) or row != find_vector_row(vocabulary, settings.medium):
        raise ValueError(
            f"{path} reads vectors at row {row} into a width of {len(state['read_in.weight'])}, but this decoder has "
            f"width {_find_width(model)}; they do not belong together"
        )
    parameter = next(model.get_output_embeddings().parameters())
    model.add_module(NAME, made.to(parameter.device, dtype or parameter.dtype))


def _find_width(model: PreTrainedModel) -> int:
    """The width of the states that a causal LM's head scores, and of its rows."""
    return int(read_head_rows(model.get_output_embeddings(), range(1)).shape[1])
