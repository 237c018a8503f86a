"""Trains the audio tokenizer of nano from scratch: first the codes and the mel decoder, then the waveform head.

    python recipes/train_audio_tokenizer.py recipes/configs/audio_tokenizer.yaml [--set codec.steps=200] [--dry-run]

Reads data/prepared/speech (tools/make_speech.py); writes checkpoints and metrics under ``run`` and the finished
tokenizer to ``out``. Interrupt it when you like; the same command goes on. The tokenizer with the Griffin-Lim head is
written as soon as the codes are trained: the head changes no code.

Shapes: B batch, T samples, M mel bands, F frames, N codes, K quantized dimensions, L characters.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import TypedDict

from unimodal.config import MAY_CHANGE, Config
from unimodal.files import read_json_as, write_text_atomically
from unimodal.tokenizers.nano.audio import AudioTokenizer, AudioTokenizerConfig
from unimodal.tokenizers.nano.audio_head import IstftHead, MaskedConvNeXt
from unimodal.tokenizers.nano.audio_losses import SpectralLoss, WaveDiscriminator, compute_adversarial_losses
from unimodal.training.checkpoint import State
from unimodal.training.command import Flags, run_training
from unimodal.training.identity import describe_resume, describe_settings, hash_files, hash_weights
from unimodal.training.loop import Trainer
from unimodal.training.settings import LoopConfig

#: what only the second stage reads
HEAD_SETTINGS = (
    "head", "train_head", "tokenizer.head", "head_crop_codes", "head_context_codes", "adversarial_weight",
    "adversarial_from", "adversarial_items", "cycle_weight", "cycle_margin_codes",
)  # fmt: skip
CHARACTERS = " 'abcdefghijklmnopqrstuvwxyz"  # id 0 is CTC's blank


class AudioTokenizerRecipe(Config):
    data: Annotated[Path, MAY_CHANGE] = Path("data/prepared/speech")
    run: Annotated[Path, MAY_CHANGE] = Path("data/runs/audio_tokenizer")
    out: Annotated[Path, MAY_CHANGE] = Path("data/models/audio_tokenizer")
    #: a finished tokenizer whose codes must stay: only its decoder is trained on
    keep_encoder: Annotated[Path | None, MAY_CHANGE] = None
    tokenizer: AudioTokenizerConfig = AudioTokenizerConfig()
    codec: LoopConfig = LoopConfig(
        steps=6000, learning_rate=1.5e-3, ema_decay=0.998, optimizer="muon", precision="bfloat16", threads=1
    )
    head: LoopConfig = LoopConfig(
        steps=6000, learning_rate=8e-4, ema_decay=0.998, optimizer="muon", precision="bfloat16", threads=1,
        weight_decay=0.01,
    )  # fmt: skip
    batch_size: int = 12
    max_seconds: float = 4.0  # longer utterances are cut, and not spelled
    ctc_weight: float = 0.4
    reader_width: int = 192
    reader_dilations: tuple[int, ...] = (
        1,
    )  # one block each; few, so that a code says which sound it is without its neighbours
    codec_is_final: bool = False  # `keep_encoder` stays whole: only the head is trained
    train_head: bool = True
    head_crop_codes: int = 32
    head_context_codes: int = (
        16  # codes on both sides of a crop that are coded too, so that the codec sees what it sees in use
    )
    adversarial_weight: float = 1.0  # 0 leaves the discriminators out
    adversarial_from: int = 1500  # step
    adversarial_items: int = 6  # of a batch; the discriminators cost more than the head
    cycle_weight: float = 5.0  # weight of the difference between the codes of the made sound and those it was made from
    cycle_margin_codes: int = 4  # codes left out at each end of a crop, where the encoder lacks the sound beside it


class Utterance(TypedDict):
    """An entry of utterances.json: what is said, by whom, and which samples of audio.int16 it is."""

    id: str | int
    text: str
    voice: str
    split: str
    start: int
    num_samples: int


class Speech:
    """The packed corpus: samples in a memory map, texts, voices and splits in memory."""

    def __init__(self, folder: Path, spelled: bool = True):
        """spelled: the texts are spelled from the codes. Raises ValueError for a corpus this recipe cannot train on."""
        for name in ("utterances.json", "audio.int16"):
            if not (folder / name).is_file():
                raise ValueError(f"{folder / name} is missing; make it with `python tools/make_speech.py`")
        fix = "an entry is {id, text, voice, split, start, num_samples}"
        self.folder, self.spelled = folder, spelled
        self.utterances = read_json_as(list[Utterance], folder / "utterances.json", fix)
        self.samples = np.memmap(folder / "audio.int16", dtype=np.int16, mode="r")
        for utterance in self.utterances:
            self._check(utterance, spelled)
        if not self.list_rows("train"):
            raise ValueError(f"{folder / 'utterances.json'} has no utterance whose split is 'train'")

    def _check(self, utterance: Utterance, spelled: bool) -> None:
        """ValueError for an utterance outside the file of samples, and for a text that cannot be spelled."""
        name, start, count = utterance["id"], utterance["start"], utterance["num_samples"]
        if start < 0 or count < 1 or start + count > len(self.samples):
            raise ValueError(
                f"{self.folder / 'audio.int16'} has {len(self.samples):,} samples, but utterance {name!r} is samples "
                f"{start:,} to {start + count:,}; pack the speech again"
            )
        unknown = sorted({*utterance["text"]} - {*CHARACTERS})
        if spelled and utterance["split"] == "train" and unknown:
            raise ValueError(
                f"utterance {name!r} holds {unknown[0]!r}, which is not among the characters that are spelled: a to z, "
                "space and apostrophe; write its text so, or give --set ctc_weight=0, which spells nothing"
            )

    def spell(self, row: int) -> list[int]:
        """The ids of an utterance's characters."""
        return [CHARACTERS.index(character) + 1 for character in self.utterances[row]["text"]]

    def list_rows(self, split: str) -> list[int]:
        return [row for row, utterance in enumerate(self.utterances) if utterance["split"] == split]

    def compute_fingerprint(self) -> str:
        """A short hash of the samples, texts, voices and splits."""
        return hash_files([self.folder / "utterances.json", self.folder / "audio.int16"])

    def read_wave(self, row: int) -> Tensor:
        """float32 [T] in [-1, 1]."""
        start, count = self.utterances[row]["start"], self.utterances[row]["num_samples"]
        return torch.from_numpy(self.samples[start : start + count].astype(np.float32)) / 32768


class SpeechBatches:
    """Endless batches of clips of similar length; voices are drawn in proportion to (number of clips)^0.7.

    A batch is a dict: ``x`` [B, T] as heard (gain, speed, some noise), ``clean`` [B, T] without the noise,
    ``lengths`` [B], ``text`` [ΣL] character ids and ``text_lengths`` [B] (0 where an utterance was cut).
    """

    def __init__(
        self, speech: Speech, rows: list[int], batch_size: int, max_seconds: float, seed: int, augment: bool = True
    ):
        self.speech, self.rows, self.batch_size, self.augment = speech, rows, batch_size, augment
        self.spelled = speech.spelled
        self.max_samples = int(max_seconds * 16_000)
        voices = [speech.utterances[row]["voice"] for row in rows]
        counts = {voice: voices.count(voice) for voice in set(voices)}
        self.weights = torch.tensor([counts[voice] ** -0.3 for voice in voices])
        self.generator = torch.Generator().manual_seed(seed)
        self.queue: list[list[int]] = []

    def draw_uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def next_rows(self) -> list[int]:
        if not self.queue:
            count = min(8 * self.batch_size, len(self.rows))
            drawn = torch.multinomial(self.weights, count, generator=self.generator).tolist()
            drawn.sort(key=lambda index: self.speech.utterances[self.rows[index]]["num_samples"])
            batches = [drawn[first : first + self.batch_size] for first in range(0, len(drawn), self.batch_size)]
            order = torch.randperm(len(batches), generator=self.generator).tolist()
            self.queue = [batches[index] for index in order]
        return [self.rows[index] for index in self.queue.pop()]

    def next_batch(self) -> dict[str, Tensor]:
        waves, texts = [], []
        for row in self.next_rows():
            wave = self.speech.read_wave(row)
            if self.augment:
                if self.draw_uniform(0, 1) < 0.4:  # speed and pitch together: more voices than there are
                    factor = self.draw_uniform(0.9, 1.12)
                    wave = nn.functional.interpolate(wave[None, None], scale_factor=factor, mode="linear")[0, 0]
                wave = wave * 10 ** self.draw_uniform(-0.3, 0.04)
                wave = nn.functional.pad(wave, (int(self.draw_uniform(0, 512)), 0))  # any phase of the code grid
            texts.append(self.speech.spell(row) if self.spelled and len(wave) <= self.max_samples else [])
            waves.append(wave[: self.max_samples])
        clean = nn.utils.rnn.pad_sequence(waves, batch_first=True)
        noisy = clean
        if self.augment:
            level = 10 ** (-2.5 - 1.5 * torch.rand(len(clean), 1, generator=self.generator))
            level *= torch.rand(len(clean), 1, generator=self.generator) < 0.2
            noisy = clean + level * clean.abs().amax(1, keepdim=True) * torch.randn(
                clean.shape, generator=self.generator
            )
        return {
            "x": noisy,
            "clean": clean,
            "lengths": torch.tensor([len(wave) for wave in waves]),
            "text": torch.tensor([character for text in texts for character in text], dtype=torch.long),
            "text_lengths": torch.tensor([len(text) for text in texts]),
        }

    def state_dict(self) -> State:
        return {"generator": self.generator.get_state(), "queue": [list(batch) for batch in self.queue]}

    def load_state_dict(self, state: State) -> None:
        self.generator.set_state(state["generator"])
        self.queue = [list(batch) for batch in state["queue"] if max(batch) < len(self.rows)]


class CharacterReader(nn.Module):
    """Spells the transcript from the codes, in training only: values [B, N, K] → log-probabilities [B, N, L + 1]."""

    def __init__(self, num_dims: int, width: int, dilations: tuple[int, ...]):
        super().__init__()
        self.stem = nn.Linear(num_dims, width)
        self.blocks = nn.ModuleList(MaskedConvNeXt(width, 3, dilation=dilation) for dilation in dilations)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, len(CHARACTERS) + 1)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        h = self.stem(values).transpose(1, 2) * mask
        for block in self.blocks:
            h = block(h, mask)
        return self.out(self.norm(h.transpose(1, 2))).log_softmax(-1)


class Codec(nn.Module):
    """What the first stage trains: encoder, decoder and reader."""

    def __init__(self, cfg: AudioTokenizerRecipe):
        super().__init__()
        plain = cfg.tokenizer.model_copy(update={"head": "griffin_lim"})
        self.tokenizer = AudioTokenizer(plain)
        self.reader = CharacterReader(self.tokenizer.quantizer.num_dims, cfg.reader_width, cfg.reader_dilations)
        self.ctc_weight = cfg.ctc_weight

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        """Mean absolute error of the log-mel over real frames, and the CTC loss a character."""
        log_mel, mask = self.tokenizer.frames(batch["x"], batch["lengths"])
        target, _ = self.tokenizer.frames(batch["clean"], batch["lengths"])
        values, ids = self.tokenizer.quantize(log_mel, mask)
        rebuilt = self.tokenizer.decoder(values, mask)
        frame_mask = mask.repeat_interleave(2, dim=-1)
        error = ((rebuilt - target).abs() * frame_mask).sum() / (frame_mask.sum() * target.shape[1])
        numbers = {"mel": float(error.detach()), "used": float(ids[mask[:, 0] > 0].unique().numel())}
        loss = error
        if self.ctc_weight and int(batch["text_lengths"].sum()):
            log_probs = self.reader(values, mask).transpose(0, 1)  # [N, B, L + 1]
            ctc = (
                nn.functional.ctc_loss(
                    log_probs,
                    batch["text"],
                    mask[:, 0].sum(1).long(),
                    batch["text_lengths"],
                    reduction="sum",
                    zero_infinity=True,
                )
                / batch["text_lengths"].sum()
            )
            loss = loss + self.ctc_weight * ctc
            numbers["ctc"] = float(ctc.detach())
        return loss, numbers


def train_codec(cfg: AudioTokenizerRecipe, speech: Speech, restart: bool) -> AudioTokenizer:
    torch.manual_seed(cfg.codec.seed)
    if cfg.codec_is_final:
        if cfg.keep_encoder is None:
            raise ValueError("codec_is_final needs keep_encoder, the folder of the finished tokenizer")
        finished = AudioTokenizer.load(cfg.keep_encoder)
        if finished.config.model_copy(update={"head": cfg.tokenizer.head}) != cfg.tokenizer:
            raise ValueError(f"{cfg.keep_encoder} was made with other tokenizer settings; give the same")
        return finished
    codec = Codec(cfg)
    if cfg.keep_encoder:
        finished = AudioTokenizer.load(cfg.keep_encoder)
        if finished.config.mel_floor != cfg.tokenizer.mel_floor:
            raise ValueError(f"{cfg.keep_encoder} needs --set tokenizer.mel_floor={finished.config.mel_floor}")
        codec.tokenizer.encoder.load_state_dict(finished.encoder.state_dict())
        codec.tokenizer.decoder.load_state_dict(finished.decoder.state_dict())
        codec.tokenizer.encoder.requires_grad_(False)
        codec.reader.requires_grad_(False)
        codec.ctc_weight = 0.0
    batches = SpeechBatches(speech, speech.list_rows("train"), cfg.batch_size, cfg.max_seconds, cfg.codec.seed)
    identity = describe_settings(cfg, leave_out=HEAD_SETTINGS) | {"speech": speech.compute_fingerprint()}
    if cfg.keep_encoder:
        identity["keep_encoder"] = hash_weights(finished)
    folder = cfg.run / "codec"
    trainer = Trainer(codec, batches, codec.loss, cfg.codec, folder, identity=identity, restart=restart)
    trainer.run()
    trainer.use_ema()
    return codec.tokenizer.eval()


class HeadTraining(nn.Module):
    """What the second stage trains: the inverse-STFT head on decoded mels of the frozen codec (and its
    discriminator)."""

    def __init__(self, cfg: AudioTokenizerRecipe, codec: AudioTokenizer):
        super().__init__()
        self.frozen = [codec.requires_grad_(False)]  # in a list: neither trained nor saved here
        full = AudioTokenizer(cfg.tokenizer.model_copy(update={"head": "istft"}))
        assert isinstance(full.head, IstftHead)
        self.head = full.head
        self.spectral = SpectralLoss(codec.config.sample_rate_hz)
        self.discriminator = WaveDiscriminator() if cfg.adversarial_weight else None
        self.cfg = cfg

    def cut_crops(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """→ (decoded log-mel [B, M, F], the samples it stands for [B, T], its codes' values [B, N, K]) of a random crop
        of each clip."""
        codec = self.frozen[0]
        size = codec.samples_per_code
        crop = min(self.cfg.head_crop_codes, int(batch["lengths"].max()) // size)
        firsts, contexts = [], []
        for wave, length in zip(batch["clean"], batch["lengths"].tolist(), strict=True):
            first = int(torch.randint(max(length // size - crop, 0) + 1, ()))
            start = max(0, first - self.cfg.head_context_codes)
            contexts.append(wave[start * size : (first + crop + self.cfg.head_context_codes) * size])
            firsts.append(first - start)
        x = nn.utils.rnn.pad_sequence(contexts, batch_first=True)
        with torch.no_grad():
            log_mel, mask = codec.frames(x, torch.tensor([len(context) for context in contexts]))
            values, _ = codec.quantize(log_mel, mask)
            rebuilt = codec.decoder(values, mask)
        x = nn.functional.pad(x, (0, mask.shape[-1] * size - x.shape[1]))
        mels = [mel[:, 2 * first : 2 * (first + crop)] for mel, first in zip(rebuilt, firsts, strict=True)]
        waves = [wave[first * size : (first + crop) * size] for wave, first in zip(x, firsts, strict=True)]
        coded = [value[first : first + crop] for value, first in zip(values, firsts, strict=True)]
        return torch.stack(mels), torch.stack(waves), torch.stack(coded)

    def compare_codes(self, made: Tensor, coded: Tensor) -> Tensor:
        """The difference between the codes of the made sound [B, T] and the codes [B, N, K] it was made from.

        The idempotence loss of arXiv 2410.11025: a sound may seem natural to a discriminator and still be wrong.
        """
        codec, margin = self.frozen[0], self.cfg.cycle_margin_codes
        read, _ = codec.quantize(*codec.frames(made.float(), None))
        return (read - coded)[:, margin : coded.shape[1] - margin].abs().mean()

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        log_mel, wave, coded = self.cut_crops(batch)
        made = self.head(log_mel, torch.ones(len(log_mel), 1, log_mel.shape[-1]))
        loss, numbers = self.spectral(made, wave)
        if self.cfg.cycle_weight and coded.shape[1] > 2 * self.cfg.cycle_margin_codes:
            cycle = self.compare_codes(made, coded)
            loss = loss + self.cfg.cycle_weight * cycle
            numbers["cycle"] = float(cycle.detach())
        if self.discriminator is not None and step >= self.cfg.adversarial_from:
            few = self.cfg.adversarial_items
            generator, discriminator, more = compute_adversarial_losses(
                self.discriminator, made[:few].float(), wave[:few]
            )
            loss = loss + self.cfg.adversarial_weight * generator + discriminator
            numbers |= more
        return loss, numbers


def train_head(cfg: AudioTokenizerRecipe, speech: Speech, codec: AudioTokenizer, restart: bool) -> AudioTokenizer:
    """The codec with an inverse-STFT head; encoder, quantizer and decoder stay what they are."""
    torch.manual_seed(cfg.head.seed)
    stage = HeadTraining(cfg, codec)
    batches = SpeechBatches(speech, speech.list_rows("train"), cfg.batch_size, cfg.max_seconds, cfg.head.seed + 1)
    identity = describe_settings(cfg, leave_out=["codec"])
    identity |= {"speech": speech.compute_fingerprint(), "codec weights": hash_weights(codec)}
    trainer = Trainer(stage, batches, stage.loss, cfg.head, cfg.run / "head", identity=identity, restart=restart)
    trainer.run()
    trainer.use_ema()
    full = AudioTokenizer(cfg.tokenizer.model_copy(update={"head": "istft"}))
    full.encoder.load_state_dict(codec.encoder.state_dict())
    full.decoder.load_state_dict(codec.decoder.state_dict())
    full.head.load_state_dict(stage.head.state_dict())
    return full.eval()


def export(cfg: AudioTokenizerRecipe, tokenizer: AudioTokenizer) -> AudioTokenizer:
    """Writes the tokenizer folder and a record of what made it; returns the tokenizer as it is on disk, rounded."""
    tokenizer.save(cfg.out, in_8_bits=("head.blocks.",))
    tokenizer = AudioTokenizer.load(cfg.out)
    hashes = {}
    for name in ("utterances.json", "audio.int16"):
        with (cfg.data / name).open("rb") as stream:
            hashes[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    record = {"config": cfg.model_dump(mode="json"), "data_sha256": hashes, "weights_sha256": tokenizer.sha256}
    write_text_atomically(cfg.out / "recipe.json", json.dumps(record, indent=2) + "\n")
    print(f"wrote {cfg.out}", file=sys.stderr, flush=True)
    return tokenizer


def run(cfg: AudioTokenizerRecipe, flags: Flags) -> None:
    speech = Speech(cfg.data, spelled=cfg.ctc_weight > 0 and cfg.keep_encoder is None)
    hours = sum(speech.utterances[row]["num_samples"] for row in speech.list_rows("train")) / 16_000 / 3600
    sizes = {
        name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in Codec(cfg).tokenizer.named_children()
    }
    print(f"{hours:.2f} h of training speech; millions of parameters: {sizes}", file=sys.stderr)
    if flags.dry_run:
        fingerprint = {"speech": speech.compute_fingerprint()}
        codec, head = describe_settings(cfg, HEAD_SETTINGS), describe_settings(cfg, ["codec"])
        for name, settings in (("codec", codec), ("head", head)):
            unknown = ("keep_encoder", "codec weights")
            print(describe_resume(cfg.run / name, settings | fingerprint, flags.restart, unknown), file=sys.stderr)
        return
    tokenizer = train_codec(cfg, speech, flags.restart)
    tokenizer = export(cfg, tokenizer)
    if cfg.train_head:
        tokenizer = export(cfg, train_head(cfg, speech, tokenizer, flags.restart))


if __name__ == "__main__":
    run_training(AudioTokenizerRecipe, run)
