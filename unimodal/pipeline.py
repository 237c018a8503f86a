"""The whole flow on one page: files and words in, files and words out.

    from unimodal.pipeline import load
    from unimodal.sequence.document import Image

    model = load()                                                  # nano; or a folder, or a hub id
    [answer] = model.chat(["What is this?", Image(path="apple.png")])
    print(answer.text)
    model.generate("a red apple", to="image", seed=1).save("apple.png")

file → media → tokenizer → codes → vocabulary → sequence → decoder → sequence → vocabulary → codes → tokenizer → media

Legend: B requests, N tokens, H and W height and width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unimodal.generation.engine import Engine, GenerationConfig, TokenEvent
from unimodal.generation.sampling import SamplingConfig
from unimodal.model.adapter import is_adapter, load_adapter
from unimodal.pipeline_folder import (
    MediumSettings,
    find_model,
    read_json,
    read_processor,
    read_sampling,
)
from unimodal.pipeline_media import MediaCoder, MediaCodes, Output
from unimodal.pipeline_wording import Wording
from unimodal.sequence.document import Document, Part, Text, Turn
from unimodal.sequence.template import Template
from unimodal.sequence.text_tokenizer import TextTokenizer
from unimodal.vocabulary import Vocabulary

__all__ = ["MediaCodes", "Output", "Unimodal", "load"]

MIN_TEXT_TOKENS, MAX_TEXT_TOKENS = 16, 96
MAX_NEW_TOKENS = 400
BATCH = 16


def load(
    model: str | os.PathLike[str] | None = None,
    device: str | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Unimodal:
    """The model in a folder or under a hub id; without a name `$UNIMODAL_MODEL` or the nano of this checkout.

    Media tokenizers are checked by their hash now and loaded when they are first needed. `on_step` is told what is
    being done. Raises ValueError, in one line, for a model that is missing, incomplete or mixed up.
    """
    folder = find_model(model)
    on_step("loading the model")
    vocabulary = Vocabulary.load(folder / "vocabulary.json")
    template = Template(vocabulary, TextTokenizer.load(folder))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    coder = MediaCoder(folder, vocabulary, read_processor(folder), device, on_step)
    return Unimodal(folder, _load_decoder(folder, vocabulary).to(device), template, coder, read_sampling(folder))


def _load_decoder(folder: Path, vocabulary: Vocabulary) -> Any:
    """The stock Hugging Face causal LM that config.json names, or an adapter on the base it names, in float32."""
    if is_adapter(folder):
        return load_adapter(folder)[0]
    import transformers
    from safetensors import SafetensorError

    config = read_json(folder / "config.json")
    architecture = str((config.get("architectures") or ["none"])[0])
    decoder_class = getattr(transformers, architecture, None) if architecture.endswith("ForCausalLM") else None
    if decoder_class is None:
        raise ValueError(f"{folder}/config.json names the architecture {architecture}; it must be a causal LM")
    if config.get("vocab_size", 0) < vocabulary.size:
        raise ValueError(
            f"{folder}: the decoder has {config.get('vocab_size')} rows but vocabulary.json {vocabulary.size}; "
            "they do not belong together"
        )
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        decoder, found = decoder_class.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"the decoder in {folder} cannot be loaded: {' '.join(str(error).split())[:200]}") from None
    if found["missing_keys"]:
        names = ", ".join(sorted(found["missing_keys"])[:3])
        raise ValueError(f"{folder}/model.safetensors lacks {names}; copy or download it again")
    return decoder.eval()


class Unimodal:
    """A decoder with its template and media tokenizers. `load` makes one."""

    def __init__(
        self,
        folder: Path,
        decoder: Any,
        template: Template,
        coder: MediaCoder,
        sampling: dict[str, MediumSettings] | None = None,
    ) -> None:
        self.folder, self.decoder, self.template, self.coder = folder, decoder, template, coder
        self.vocabulary, self.processor = template.vocabulary, coder.processor
        own = {name: MediumSettings() for name in self.vocabulary.media} | (sampling or {})
        self.sampling = {"text": MediumSettings(temperature=0.0)} | own
        self.engine = Engine(decoder, self.vocabulary)
        self.max_positions = int(decoder.config.max_position_embeddings)

    @property
    def wording(self) -> Wording:
        return self.processor.wording

    # ---- one request

    def chat(
        self,
        parts: Iterable[Part | str] | str,
        history: Sequence[Turn] = (),
        to: str | None = None,
        **settings: Any,
    ) -> list[Output]:
        """The answer to a user's turn of words and media: text, and media where the model puts them or `to` asks.

        Media without words are asked the trained question. `history` are earlier turns, with codes. For `settings`
        see `answers`. Raises ValueError for files that cannot be used and for requests that do not fit the model.
        """
        turn = self.user_turn(parts)
        return self.answers([Document([*history, turn])], to=to, **{"seeds": [0], **settings})[0]

    def generate(self, prompt: str, to: str, seed: int = 0, voice: str | None = None, **settings: Any) -> Output:
        """One picture, sound, clip or text for a prompt: `generate("a red apple", to="image")`."""
        request = self.wording.request(prompt, to, voice)
        outputs = self.answers([Document([Turn("user", request)])], to=to, seeds=[seed], **settings)[0]
        if to == "text":
            return Output(Text(" ".join(output.text for output in outputs if output.text)))
        return next(output for output in outputs if output.modality == to)

    def user_turn(self, parts: Iterable[Part | str] | str) -> Turn:
        """The user's turn with every file encoded; media without words get the trained question behind them."""
        given = [
            Text(part) if isinstance(part, str) else part for part in ([parts] if isinstance(parts, str) else parts)
        ]
        encoded = [self.coder.encode_part(part) for part in given]
        if not any(isinstance(part, Text) and part.text.strip() for part in encoded):
            if not encoded or isinstance(encoded[-1], Text):
                raise ValueError("there is nothing to answer; give words, a picture, a sound or a clip")
            encoded.append(Text(self.wording.question(encoded[-1].modality)))
        return Turn("user", encoded)

    # ---- many requests

    def answers(
        self,
        documents: Sequence[Document],
        to: str | None = None,
        seeds: Sequence[int] | None = None,
        guidance: float | None = None,
        temperature: float | None = None,
        tokens: int | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        on_token: Callable[[TokenEvent], None] | None = None,
    ) -> list[list[Output]]:
        """The answers to documents whose media have codes, in batches; none depends on its neighbours in a batch.

        to: the medium that each answer must hold, "text" for words only, None for what the model chooses.
        guidance, temperature: of the medium asked for (all media without `to`), in place of the model's own.
        tokens: at most so many new tokens. on_progress is told (requests done, of how many), on_token each new token.
        Raises ValueError, before anything is computed, for a request that does not fit the model.
        """
        if to is not None and to != "text":
            self.vocabulary.layout(to)
        prompts = [self._prompt(document, to) for document in documents]
        seeds = list(seeds) if seeds is not None else list(range(len(documents)))
        settings = self._settings(to, guidance, temperature)
        configs = [
            self._config(document, len(prompt), to, seed, settings, tokens)
            for document, prompt, seed in zip(documents, prompts, seeds, strict=True)
        ]
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # little padding in a batch
        found: dict[int, list[Output]] = {}
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            rows = self.engine.generate([prompts[i] for i in batch], [configs[i] for i in batch], on_token)
            found.update(zip(batch, self._outputs(rows), strict=True))
            if on_progress is not None:
                on_progress(len(found), len(order))
        return [found[index] for index in range(len(documents))]

    def room(self, document: Document) -> int:
        """New tokens that fit behind a document."""
        return self.max_positions - len(self.template.render(document, add_generation_prompt=True))

    def answer_length(self, to: str | None) -> int:
        """Tokens that must be free for an answer: a whole span of the medium asked for, or some words."""
        return MIN_TEXT_TOKENS if to in (None, "text") else self.vocabulary.span_length(to) + 1

    def _prompt(self, document: Document, to: str | None) -> list[int]:
        """The ids [N] of a document and the mark that opens the answer. Raises ValueError if no answer fits behind."""
        prompt = self.template.render(document, add_generation_prompt=True).ids.tolist()
        most = self.max_positions - self.answer_length(to)
        if len(prompt) > most:
            words = sum(len(part.text.split()) for part in document.parts if isinstance(part, Text))
            raise ValueError(
                f"the prompt is too long: {words:,} words and its media are {len(prompt):,} tokens, and this model "
                f"reads at most {most:,} before its answer; shorten it"
            )
        return prompt

    def _settings(
        self, to: str | None, guidance: float | None, temperature: float | None
    ) -> tuple[dict[str, SamplingConfig], dict[str, float]]:
        """Sampling and guidance by modality: the model's own, changed for what is asked for."""
        for name, value in (("guidance", guidance), ("temperature", temperature)):
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} {value} is not usable; give a number from 0 on")
        asked = self.vocabulary.media if to is None else (to,)
        sampling, scales = {}, {}
        for name, own in self.sampling.items():
            warmth = own.temperature if temperature is None or name not in asked else temperature
            sampling[name] = SamplingConfig(temperature=warmth, top_k=own.top_k, top_p=own.top_p)
            if name != "text":
                scales[name] = own.guidance if guidance is None or name not in asked else guidance
        return sampling, scales

    def _config(
        self,
        document: Document,
        prompt_length: int,
        to: str | None,
        seed: int,
        settings: tuple[dict[str, SamplingConfig], dict[str, float]],
        tokens: int | None,
    ) -> GenerationConfig:
        sampling, scales = settings
        max_codes = {"audio": self.processor.max_audio_codes} if "audio" in self.vocabulary.media else {}
        room = self.max_positions - prompt_length
        if to is None or to == "text":
            longest = MAX_NEW_TOKENS if to is None else MAX_TEXT_TOKENS
        else:
            longest = self.vocabulary.span_length(to, max_codes.get(to)) + 1
            if tokens is not None and tokens < self.answer_length(to):
                raise ValueError(f"{tokens} tokens are too few: {to} takes at least {self.answer_length(to)}; raise it")
        if tokens is not None and not 1 <= tokens <= room:
            raise ValueError(f"{tokens} new tokens do not fit; this prompt leaves room for 1 to {room}")
        writable = self.vocabulary.media if to is None else (to,)
        unconditional = None
        if any(scales.get(name, 1.0) != 1.0 for name in writable):
            unconditional = self.template.render(document.without_text(), add_generation_prompt=True).ids.tolist()
        return GenerationConfig(
            max_new_tokens=tokens or min(longest, room),
            force=to,
            max_text_tokens=MAX_TEXT_TOKENS,
            seed=seed,
            sampling=sampling,
            guidance=scales,
            unconditional=unconditional and tuple(unconditional),
            max_codes=max_codes,
        )

    def _outputs(self, rows: Sequence[Sequence[int]]) -> list[list[Output]]:
        """Generated rows → parts, media decoded with all of one modality at once."""
        answers = [self.template.parse_answer(row) for row in rows]
        decoded: dict[int, Output] = {}
        for modality in self.vocabulary.media:
            parts = [part for answer in answers for part in answer if not isinstance(part, Text)]
            parts = [part for part in parts if part.modality == modality]
            if parts:
                media = self.coder.decode(modality, [part.codes for part in parts])
                rate = self.coder.rate(modality)
                decoded.update({id(p): Output(p, medium, rate) for p, medium in zip(parts, media, strict=True)})
        return [[decoded.get(id(part)) or Output(part) for part in answer] for answer in answers]

    # ---- media without the decoder

    def tokenize(self, path: str | os.PathLike[str]) -> MediaCodes:
        """The codes of a picture, sound or film; its content decides which it is."""
        return self.coder.tokenize(Path(path))

    def detokenize(self, codes: MediaCodes) -> Output:
        """The inverse of `tokenize`, up to the loss of quantization."""
        return self.coder.detokenize(codes)

    def picture_features(self, pictures: Tensor) -> Tensor:
        """Features [B, 1280] of pictures [B, 3, H, W] by the frozen trunk inside the image tokenizer."""
        tokenizer = self.coder.tokenizer("image")
        if not hasattr(tokenizer, "trunk_features"):
            raise ValueError(f"{type(tokenizer).__name__} has no frozen trunk to compare pictures by")
        with torch.inference_mode():
            return tokenizer.trunk_features(pictures.to(self.coder.device)).cpu()
