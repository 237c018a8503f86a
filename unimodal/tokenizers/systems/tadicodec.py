"""TaDiCodec (arXiv 2508.16790): speech ⇄ 6.25 codes a second of 14 bits, decoded with the help of its text.

A transformer reads log-mel frames, which are averaged down eight to one and become signs on a sphere. A flow draws the
mel back from the codes, behind the text as a prefix and, if there is one, a prompt: the sound that the first codes
stand for, which tells the voice. A vocoder turns the mel into sound.

- A sound that is no whole number of codes is filled up with silence. The authors stretch its frames over one code less
  instead (`published=True`), which then decode to a shorter sound.
- Guidance mixes the guided velocity with itself at the spread of the plain one. The authors measure the spread of the
  whole batch, so that what an item becomes depends on the others; here it is each item's own (`published=True`:
  theirs, for items of one length). They also give only what follows the prompt.
- Frames behind a text stand at other positions than without; the flow without a condition has no text.

Shapes: B batch, T samples, F mel frames, M bands, N codes, D width, P text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from unimodal.files import write_bytes_atomically
from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.heads.forward_flow import draw_forward_step, rescale_guided, sample_forward
from unimodal.tokenizers.parts.mel import AmplitudeMel
from unimodal.tokenizers.parts.quantizers.binary_spherical import BinarySphericalQuantizer
from unimodal.tokenizers.parts.trunks.prefix_llama import PrefixLlama
from unimodal.tokenizers.parts.trunks.vocos import VocosDecoder, VocosSettings
from unimodal.tokenizers.rows import group_by_size
from unimodal.tokenizers.sounds import check_sounds, join_waves, pad_samples
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig
from unimodal.tokenizers.systems.key_map import KeyMap
from unimodal.tokenizers.systems.sound import SoundConfig, SoundTokenizer

TEXT_TOKENIZER = "text_tokenizer.json"


class TaDiCodecConfig(SoundConfig):
    """mel_mean, mel_variance: of the bands in training. text: how a text becomes tokens, by its UTF-8 bytes or by the
    `text_tokenizer.json` of the folder (`use_text_tokenizer`); text_size: of its table, 0 for a decoder without text.
    code_drop, prompt_drop: how often training leaves out the codes, and the prompt. steps, guidance: of the walk, where
    the caller names none; guidance_rescale: the share of the velocity that is scaled back."""

    family: Literal["tadicodec"] = "tadicodec"
    sample_rate_hz: int = Field(default=24000, gt=0)
    num_mels: int = Field(default=128, ge=1)
    window_size: int = Field(default=1920, ge=2)
    hop: int = Field(default=480, ge=1)
    low_hz: float = 0.0
    high_hz: float = 12000.0
    mel_mean: float = -4.92
    mel_variance: float = Field(default=8.14, gt=0)
    width: int = Field(default=1024, ge=2)
    encoder_layers: int = Field(default=8, ge=1)
    decoder_layers: int = Field(default=16, ge=1)
    num_heads: int = Field(default=16, ge=1)
    frames_per_code: int = Field(default=8, ge=1)
    num_bits: int = Field(default=14, ge=1, le=16)
    text: Literal["tokenizer", "bytes"] = "tokenizer"
    text_size: int = Field(default=32100, ge=0)
    vocoder: VocosSettings = VocosSettings(
        channels_in=128, width=1024, inner_width=4096, num_layers=30, window_size=1920, hop=480, padding="same"
    )
    sigma: float = 1e-5
    code_drop: float = Field(default=0.2, ge=0, le=1)
    prompt_drop: float = Field(default=0.2, ge=0, le=1)
    steps: int = Field(default=32, ge=1)
    guidance: float = Field(default=2.0, ge=0)
    guidance_rescale: float = Field(default=0.75, ge=0, le=1)

    @model_validator(mode="after")
    def check_vocoder(self) -> Self:
        """ValueError for a vocoder of other frames, and for a table too small for bytes."""
        if (self.vocoder.channels_in, self.vocoder.hop, self.vocoder.padding) != (self.num_mels, self.hop, "same"):
            raise ValueError(f'the vocoder takes {self.num_mels} bands every {self.hop} samples, with padding "same"')
        if self.text == "bytes" and 0 < self.text_size < 256:
            raise ValueError(f"a text of bytes needs a text_size of 256; got {self.text_size}")
        return self


class TaDiCodecTokenizer(SoundTokenizer):
    """``decode`` takes ``Condition(text=…, medium=…)``: the text of each whole item, prompt included, and the prompt,
    float [B, 1, T'], of whole mel frames (what is over is cut off)."""

    config_class: ClassVar[type[TokenizerConfig]] = TaDiCodecConfig
    config: TaDiCodecConfig
    decode_conditions = frozenset({"text", "medium"})
    optional_conditions = frozenset({"text", "medium"})
    decode_settings = frozenset({"noise", "steps", "guidance"})
    quantizer: BinarySphericalQuantizer

    def __init__(self, config: TaDiCodecConfig):
        super().__init__(config)
        sizes = (config.width, config.encoder_layers, config.num_heads)
        self.mel = AmplitudeMel(
            config.sample_rate_hz, config.window_size, config.hop, config.num_mels, config.low_hz, config.high_hz
        )
        self.encoder = PrefixLlama(config.num_mels, *sizes)
        self.decoder = PrefixLlama(
            config.num_mels,
            config.width,
            config.decoder_layers,
            config.num_heads,
            config.num_mels,
            reads_text=config.text_size > 0,
        )
        self.text_emb = nn.Embedding(config.text_size, config.width) if config.text_size else None
        self.vq_in_linear = nn.Linear(config.width, config.num_bits)
        self.vq_out_linear = nn.Linear(config.num_bits, config.width)
        self.quantizer = BinarySphericalQuantizer(
            (config.num_bits,), commitment=0.0, entropy_bits=(1,) * config.num_bits
        )
        self.vocoder = VocosDecoder(config.vocoder)
        self.text_tokenizer: Tokenizer | None = None
        self.describe((2**config.num_bits,), config.hop * config.frames_per_code, config.sample_rate_hz)

    # ---- sound to codes

    def measure_mel(self, x: Tensor) -> Tensor:
        """x: [B, 1, T] → normalized log-mel [B, F, M]."""
        return (self.mel(x[:, 0]) - self.config.mel_mean) / self.config.mel_variance**0.5

    def encode_mel(self, mel: Tensor, mask: Tensor | None = None) -> Tensor:
        """mel: [B, F, M], mask: bool [B, F] → latents of length 1, [B, F / frames_per_code (less a rest), bits]."""
        features = self.encoder(mel, mask).transpose(1, 2)
        shorter = interpolate(features, size=mel.shape[1] // self.config.frames_per_code, mode="linear")
        return normalize(self.vq_in_linear(shorter.transpose(1, 2)), dim=-1)

    def pad_equal(self, x: Tensor, published: bool) -> Tensor:
        size = self.samples_per_code
        return pad_samples(x, size if published else -(-x.shape[-1] // size) * size)

    def encode_equal(self, x: Tensor) -> Tensor:
        return self.quantizer(self.encode_mel(self.measure_mel(x))).ids

    # ---- codes to sound

    def widen(self, values: Tensor) -> Tensor:
        """Rows of codes [B, N, bits] → the flow's condition [B, F, D]."""
        wide = self.vq_out_linear(values).transpose(1, 2)
        return interpolate(wide, scale_factor=self.config.frames_per_code, mode="linear").transpose(1, 2)

    def sample_mel(
        self,
        ids: Tensor,
        noise: Tensor,
        text_ids: Tensor | None = None,
        prompt: Tensor | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        whole_batch: bool = False,
    ) -> Tensor:
        """ids: int64 [B, N, 1], noise: [B, F, M] → the mel behind the prompt, [B, F - F', M].

        text_ids: int64 [B, P]. prompt: [B, F', M], the mel of the first frames; what follows begins with the first
        noise. guidance: 1 turns it off. whole_batch: measure the spread that guidance gives back over all items.
        """
        config = self.config
        scale = config.guidance if guidance is None else guidance
        condition = self.widen(self.quantizer.look_up(ids))
        known = noise[:, :0] if prompt is None else prompt
        text = None if text_ids is None or self.text_emb is None else self.text_emb(text_ids)

        def measure(x: Tensor, time: Tensor) -> Tensor:
            frames = torch.cat([known, x], 1)
            plain = self.decoder(frames, time=time, condition=condition, prefix=text)[:, known.shape[1] :]
            if scale == 1:
                return plain
            free = self.decoder(frames, time=time, condition=torch.zeros_like(condition))[:, known.shape[1] :]
            guided = free + scale * (plain - free)
            return rescale_guided(guided, plain, config.guidance_rescale, whole_batch)

        count = condition.shape[1] - known.shape[1]
        return sample_forward(measure, noise[:, :count], config.steps if steps is None else steps, midpoints=True)

    def read_text(self, text: str) -> list[int]:
        """The tokens of a text. ValueError where the tokenizer that reads it is not here, or there is no table."""
        if self.text_emb is None:
            raise ValueError("this TaDiCodec was made without text; leave text out")
        if self.config.text == "bytes":
            return list(text.encode())
        if self.text_tokenizer is None:
            raise ValueError(
                "this TaDiCodec reads text by a tokenizer that is not here: use_text_tokenizer(FOLDER), the folder "
                "text_tokenizer of its release"
            )
        ids: list[int] = self.text_tokenizer.encode(text, add_special_tokens=False).ids
        if ids and max(ids) >= self.config.text_size:
            raise ValueError(f"the text tokenizer gives {max(ids)}; this TaDiCodec has {self.config.text_size} tokens")
        return ids

    def noise_shape(self, num_positions: int) -> tuple[int, ...]:
        return num_positions * self.config.frames_per_code, self.config.num_mels

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        assert options.noise is not None
        told = options.condition or Condition()
        prompt = None
        if told.medium is not None:
            check_sounds(told.medium)
            if told.medium.shape[-1] <= self.mel.margin:
                raise ValueError(f"a prompt has more than {self.mel.margin} samples; got {told.medium.shape[-1]}")
            prompt = self.measure_mel(told.medium)
            if prompt.shape[1] > min(codes.counts) * self.config.frames_per_code:
                raise ValueError("the prompt is longer than the codes, whose first ones stand for it")
        texts = [[]] * len(codes) if told.text is None else [self.read_text(text) for text in told.text]
        groups = group_by_size(zip(codes.counts, map(len, texts), strict=True))
        if options.published and len(groups) > 1:
            raise ValueError("published=True decodes a batch as one: give items and texts of one length")
        waves: dict[int, Tensor] = {}
        for (count, length), items in groups.items():
            ids = torch.stack([codes.row(item) for item in items])
            text_ids = torch.tensor([texts[item] for item in items], device=ids.device) if length else None
            noise = options.noise[items, : count * self.config.frames_per_code]
            known = None if prompt is None else prompt[items]
            mel = self.sample_mel(ids, noise, text_ids, known, options.steps, options.guidance, options.published)
            mel = mel if known is None or options.published else torch.cat([known, mel], 1)
            waves.update(zip(items, self.vocoder(mel.transpose(1, 2)), strict=True))
        lengths = [waves[item].shape[-1] for item in range(len(codes))]
        return join_waves([waves[item] for item in range(len(codes))], lengths, max(lengths))

    # ---- training

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """decoded: the sound of the mel that one step of the flow points at. loss: the flow's, over the frames behind
        a prompt of random length, and the quantizer's."""
        check_sounds(x)
        config, num = self.config, len(x)
        padded = self.pad_equal(x, False)
        mel = self.measure_mel(padded)
        hops = torch.full((num,), mel.shape[1]) if lengths is None else -(-lengths.cpu() // config.hop)
        places = torch.arange(mel.shape[1])
        real = (places < hops[:, None]).to(x.device)  # [B, F]
        made = self.quantizer(self.encode_mel(mel, real))
        drawn = torch.rand(3, num, generator=generator)
        longest = torch.where(drawn[0] < config.prompt_drop, 0.0, 0.4 * drawn[1]) * hops
        longest = torch.minimum(longest, hops - 1)  # a frame at least is learned, also of the shortest sound
        target = (places >= longest[:, None]).to(x.device) & real
        step = draw_forward_step(mel, config.sigma, generator)
        noisy = torch.where(target[..., None], step.noisy, mel)
        told = self.widen(made.values)
        if self.training:
            told = told * (drawn[2] >= config.code_drop).to(told)[:, None, None]
        text, text_mask = self._embed_texts(condition, x.device)
        velocity = self.decoder(noisy, real, step.time, told, text, text_mask)
        flow = (velocity - step.target).square()[target].mean()
        estimate = noisy + (1 - step.time)[:, None, None] * velocity * target[..., None]
        decoded = self.vocoder(estimate.transpose(1, 2))[..., : x.shape[-1]]
        loss = flow + made.loss
        mask = real[:, :: mel.shape[1] // made.ids.shape[1]]
        return Reconstruction(decoded, loss, made.ids, {"flow": float(flow.detach())}, {"mel": mel}, mask)

    def _embed_texts(self, condition: Condition | None, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        if condition is None or condition.text is None or self.text_emb is None:
            return None, None
        # padding stands before a shorter text, which so is as near to the frames as it is alone
        rows = [torch.tensor(self.read_text(text)[::-1], dtype=torch.int64) for text in condition.text]
        texts = Codes.from_rows(rows)
        return self.text_emb(texts.ids[..., 0].flip(1).to(device)), texts.mask.flip(1).to(device)

    def training_loss(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, dict[str, float]]:
        """The loss of ``reconstruct``, and how far the mel of the vocoder's sound is from the mel that it was given."""
        made = self.reconstruct(x, lengths)
        mel = made.features["mel"].detach()
        spectral = (self.measure_mel(self.vocoder(mel.transpose(1, 2))) - mel).abs().mean()
        return made.loss + spectral, {**made.numbers, "vocoder": float(spectral.detach())}

    # ---- the text's tokenizer

    def use_text_tokenizer(self, source: str | Path) -> Self:
        """Reads texts by a tokenizer.json, or the one in a folder. ValueError where there is none."""
        path = Path(source)
        path = path / "tokenizer.json" if path.is_dir() else path
        try:
            self.text_tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare exceptions
            raise ValueError(f"{path} is no tokenizer.json ({error}); name the file or its folder") from None
        return self

    def save(self, folder: str | Path, in_8_bits: tuple[str, ...] = ()) -> None:
        super().save(folder, in_8_bits)
        if self.text_tokenizer is not None:
            write_bytes_atomically(Path(folder) / TEXT_TOKENIZER, self.text_tokenizer.to_str().encode())

    def load_weights(self, folder: str | Path) -> Self:
        path = Path(folder) / TEXT_TOKENIZER
        if path.is_file():
            self.use_text_tokenizer(path)
        return super().load_weights(folder)

    # ---- the authors' files

    key_map: ClassVar[KeyMap] = KeyMap(
        rules=(
            (r"vocoder\.backbone\.blocks\.(.*)", r"vocoder.backbone.convnext.\1"),
            (r"(vocoder\..*)", r"\1"),
            (r"(.*)", r"tadicodec.\1"),
        ),
        ignored=(r"tadicodec\.bsq\.(group_)?basis", r"tadicodec\.repa_mlp\..*", r"mel_model\..*"),
    )

    @classmethod
    def from_authors(cls, weights: Mapping[str, Tensor], config: SystemConfig, source: str = "the checkpoint") -> Self:
        """weights: of their model.safetensors and its vocoder; the names of the first may begin with `tadicodec.`."""
        known = ("tadicodec.", "vocoder.", "mel_model.")
        full = {name if name.startswith(known) else f"tadicodec.{name}": tensor for name, tensor in weights.items()}
        return super().from_authors(full, config, source)

    def collect_authors_state(self) -> dict[str, Tensor]:
        bits = torch.arange(self.config.num_bits - 1, -1, -1)
        basis = {"tadicodec.bsq.basis": 2**bits, "tadicodec.bsq.group_basis": torch.ones(1, dtype=torch.int64)}
        return {**super().collect_authors_state(), **basis}

    @classmethod
    def lacks_companion(cls, weights: Mapping[str, Tensor]) -> bool:
        return not any(name.startswith("vocoder.") for name in weights)

    @classmethod
    def add_companion(cls, weights: Mapping[str, Tensor], companion: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """companion: the safetensors of the folder `vocoder`."""
        return {**weights, **{f"vocoder.{name}": tensor for name, tensor in companion.items()}}

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> TaDiCodecConfig:
        """Their config.json without its comments, or the parts `tadicodec`, `mel` and `vocos` of it."""
        plain, top = TaDiCodecConfig(), AuthorsFields(fields)
        own, mel, vocos = top.open("model", "tadicodec"), top.open("preprocess").open("mel"), top.open("model", "vocos")
        if own.take_text("vq_type", "bsq") != "bsq":
            raise ValueError(f"only their binary spherical codes are read; got vq_type {own.take_text('vq_type', '')}")
        hop, mels = mel.take_integer("hop_size", plain.hop), mel.take_integer("num_mels", plain.num_mels)
        stats = top.open("preprocess")
        return TaDiCodecConfig(
            sample_rate_hz=mel.take_integer("sampling_rate", mel.take_integer("sample_rate", plain.sample_rate_hz)),
            num_mels=mels,
            window_size=mel.take_integer("n_fft", plain.window_size),
            hop=hop,
            low_hz=mel.take_number("fmin", plain.low_hz),
            high_hz=mel.take_number("fmax", plain.high_hz),
            mel_mean=stats.take_number("mel_mean", plain.mel_mean),
            mel_variance=stats.take_number("mel_var", plain.mel_variance),
            width=own.take_integer("hidden_size", plain.width),
            encoder_layers=own.take_integer("encoder_num_layers", plain.encoder_layers),
            decoder_layers=own.take_integer("decoder_num_layers", plain.decoder_layers),
            num_heads=own.take_integer("num_heads", plain.num_heads),
            frames_per_code=own.take_integer("down_sample_factor", plain.frames_per_code),
            num_bits=own.take_integer("vq_emb_dim", plain.num_bits),
            text_size=own.take_integer("text_vocab_size", plain.text_size) * own.take_flag("use_text_cond", True),
            sigma=own.take_number("sigma", plain.sigma),
            vocoder=VocosSettings(
                channels_in=vocos.take_integer("input_channels", mels),
                width=vocos.take_integer("dim", plain.vocoder.width),
                inner_width=vocos.take_integer("intermediate_dim", plain.vocoder.inner_width),
                num_layers=vocos.take_integer("num_layers", plain.vocoder.num_layers),
                window_size=vocos.take_integer("n_fft", plain.vocoder.window_size),
                hop=vocos.take_integer("hop_size", hop),
                padding="same",
            ),
        )
