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

from unimodal.coder.features import FeatureMemory
from unimodal.coder.media_coder import MediaCoder
from unimodal.coder.outputs import MediaCodes, Output
from unimodal.coder.partial import PartialPictures
from unimodal.generation.engine import Engine, GenerationConfig, TokenEvent
from unimodal.generation.fast.speculation import FastDecoder
from unimodal.generation.sampling import SamplingConfig
from unimodal.generation.session import Session
from unimodal.model_folder.decoder import load_decoder
from unimodal.model_folder.drafts import decoder_for
from unimodal.model_folder.find import (
    MediumSettings,
    find_model,
    read_processor,
    read_sampling,
)
from unimodal.model_folder.wording import Wording
from unimodal.pipeline.search import CaptionVerifier, search
from unimodal.pipeline.speech_reading import own_way
from unimodal.sequence.document import Document, Part, Text, Turn
from unimodal.sequence.templates.open import open_template
from unimodal.sequence.templates.own import Rendered, Template
from unimodal.vocabulary import read_vocabulary

__all__ = ["MediaCodes", "Output", "Unimodal", "load"]

MIN_TEXT_TOKENS, MAX_TEXT_TOKENS = 16, 96
MAX_NEW_TOKENS = 400
BATCH = 16


def load(
    model: str | os.PathLike[str] | None = None,
    device: str | None = None,
    on_step: Callable[[str], None] = lambda step: None,
    weights: str = "auto",
    compile: bool = False,
) -> Unimodal:
    """The model in a folder or under a hub id; without a name `$UNIMODAL_MODEL` or the nano of this checkout.

    Media tokenizers are checked by their hash now and loaded when they are first needed. `on_step` is told what is
    being done. `weights` and `compile` are how the engine decodes: "int8" and "bfloat16" are faster on a processor and
    lose a little. Raises ValueError, in one line, for a model that is missing, incomplete or mixed up.
    """
    folder = find_model(model)
    on_step("loading the model")
    vocabulary = read_vocabulary(folder / "vocabulary.json")
    processor = read_processor(folder)
    template = open_template(processor.template, vocabulary, folder)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    coder = MediaCoder(folder, vocabulary, processor, device, on_step)
    decoder, sampling = load_decoder(folder, vocabulary).to(device), read_sampling(folder)
    return Unimodal(folder, decoder, template, coder, sampling, weights, compile)


class Unimodal:
    """A decoder with its template and media tokenizers. `load` makes one."""

    def __init__(
        self,
        folder: Path,
        decoder: Any,
        template: Template,
        coder: MediaCoder,
        sampling: dict[str, MediumSettings] | None = None,
        weights: str = "auto",
        compile: bool = False,
    ) -> None:
        self.folder, self.decoder, self.template, self.coder = folder, decoder, template, coder
        self.vocabulary, self.processor = template.vocabulary, coder.processor
        own = {name: MediumSettings() for name in self.vocabulary.media} | (sampling or {})
        self.sampling = {"text": MediumSettings(temperature=0.0)} | own
        reads = any(self.reads_features(modality) for modality in self.vocabulary.media)
        self.features = FeatureMemory(decoder, coder) if reads else None
        self.engine = Engine(decoder, self.vocabulary, weights=weights, compile=compile)
        self.writable = tuple(name for name in self.vocabulary.media if coder.can_decode(name))
        self._methods: dict[str, FastDecoder] = {}
        self.max_positions = int(decoder.config.max_position_embeddings)

    def reads_features(self, modality: str) -> bool:
        """Whether this medium is read through continuous features and not through its codes."""
        return modality in self.vocabulary.media and self.vocabulary.layout(modality).features is not None

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

    def generate(
        self,
        prompt: str,
        to: str,
        seed: int = 0,
        voice: str | None = None,
        search: str | None = None,
        search_settings: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Output:
        """One picture, sound, clip or text for a prompt: `generate("a red apple", to="image")`.

        search: "best-of-n", "beam" or "lookahead" writes several and gives the one whose picture the model itself would
        call by the prompt; `search_settings` are theirs (`n`, `beams`, `expand`, `stages`). For `settings` see
        `answers`.
        """
        document = Document([Turn("user", self.wording.request(prompt, to, voice))])
        if search is not None:
            return self._searched(document, prompt, to, seed, search, search_settings or {}, settings)
        outputs = self.answers([document], to=to, seeds=[seed], **settings)[0]
        if to == "text":
            return Output(Text(" ".join(output.text for output in outputs if output.text)))
        return next(output for output in outputs if output.modality == to)

    def _searched(
        self,
        document: Document,
        caption: str,
        to: str,
        seed: int,
        method: str,
        search_settings: dict[str, Any],
        settings: dict[str, Any],
    ) -> Output:
        if to == "text":
            raise ValueError("search chooses between media; leave it out for text")
        self.vocabulary.layout(to)
        used = {"guidance", "temperature", "tokens", "negative", "guidance_interval", "on_token"}
        unused = sorted(name for name, value in settings.items() if value is not None and name not in used)
        if unused:
            raise ValueError(f"search does not go with {', '.join(unused)}; leave one of them out")
        prompt = self._prompt(document, to)
        scales = self._settings(to, settings.get("guidance"), settings.get("temperature"))
        shape = {name: settings.get(name) for name in ("negative", "guidance_interval")}
        config = self._config(document, len(prompt), to, seed, scales, settings.get("tokens"), **shape)
        verifier = CaptionVerifier(self, to, self.wording.caption(caption, to))
        found = search(self, prompt, config, method, verifier, **search_settings)
        return next(output for output in self._outputs([found.answer])[0] if output.modality == to)

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
        negative: str | None = None,
        guidance_interval: tuple[int, int] | None = None,
        decoder: str | None = None,
        session: Session | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        on_token: Callable[[TokenEvent], None] | None = None,
        on_partial: Callable[[int, Output], None] | None = None,
    ) -> list[list[Output]]:
        """The answers to documents whose media have codes, in batches; none depends on its neighbours in a batch.

        to: the medium that each answer must hold, "text" for words only, None for what the model chooses. guidance,
        temperature: of the medium asked for (all media without `to`), in place of the model's own. negative: what the
        media should not look like; guidance moves away from it (by default from no words at all). guidance_interval:
        guide only the code steps [first, last) of a span. decoder: a fast decoder by name
        (`unimodal.generation.DECODERS`), or "plain": token by token, transcripts and speech too, which else are chosen
        by the model's second reading of speech where it has one (`pipeline_reading.py`). session: of
        `engine.session()`, remembers what was read. tokens: at most so many new tokens. on_progress is told (requests
        done, of how many), on_token each new token, on_partial (number of the document, coarse picture) while a picture
        is written. Raises ValueError, before anything is computed, for a request that does not fit the model.
        """
        if to is not None and to != "text":
            self.vocabulary.layout(to)
            if to not in self.writable:
                raise ValueError(f"this model reads {to}s but has no decoder to make one with; ask it for text")
        prompts = [self._prompt(document, to) for document in documents]
        seeds = list(seeds) if seeds is not None else list(range(len(documents)))
        settings = self._settings(to, guidance, temperature)
        configs = [
            self._config(document, len(prompt), to, seed, settings, tokens, negative, guidance_interval)
            for document, prompt, seed in zip(documents, prompts, seeds, strict=True)
        ]
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # little padding in a batch
        found: dict[int, list[Output]] = {}
        if decoder is None:
            ways = {index: own_way(self, documents[index], prompts[index], configs[index]) for index in order}
            for index, answered in [(i, way) for i, way in ways.items() if way is not None]:
                order.remove(index)
                found[index] = self._outputs([answered(on_token, index)])[0]
                if on_progress is not None:
                    on_progress(len(found), len(documents))
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            watch = on_token
            if on_partial is not None:
                partial = PartialPictures(self.coder, on_partial, batch)
                watch = _both(on_token, partial)
            rows = self.engine.generate(
                [prompts[i] for i in batch], [configs[i] for i in batch], watch, self._method(decoder), session
            )
            found.update(zip(batch, self._outputs(rows), strict=True))
            if on_progress is not None:
                on_progress(len(found), len(documents))
        return [found[index] for index in range(len(documents))]

    def room(self, document: Document) -> int:
        """New tokens that fit behind a document."""
        return self.max_positions - len(self.template.render(self._begun(document), add_generation_prompt=True))

    def answer_length(self, to: str | None) -> int:
        """Tokens that must be free for an answer: a whole span of the medium asked for, or some words."""
        return MIN_TEXT_TOKENS if to in (None, "text") else self.vocabulary.span_length(to) + 1

    def _begun(self, document: Document, to: str | None = None) -> Document:
        """The document with the model's own system turn, where it has one and the document has none."""
        return document if to in self.vocabulary.media else document.with_system(self.processor.system)

    def _prompt(self, document: Document, to: str | None) -> list[int]:
        """The ids [N] of a document and the mark that opens the answer. Raises ValueError if no answer fits behind."""
        prompt = self.template.render(self._begun(document, to), add_generation_prompt=True, to=to)
        most = self.max_positions - self.answer_length(to)
        if len(prompt) > most:
            words = sum(len(part.text.split()) for part in document.parts if isinstance(part, Text))
            raise ValueError(
                f"the prompt is too long: {words:,} words and its media are {len(prompt):,} tokens, and this model "
                f"reads at most {most:,} before its answer; shorten it"
            )
        return self.read(prompt)

    def read(self, rendered: Rendered) -> list[int]:
        """The ids [N] of a rendered prompt; where media are read through features, those of the features."""
        return rendered.ids.tolist() if self.features is None else self.features.prompt(rendered)

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
        negative: str | None = None,
        guidance_interval: tuple[int, int] | None = None,
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
        writable = self.writable if to is None else (to,)
        unconditional: list[int] | None = None
        if any(scales.get(name, 1.0) != 1.0 for name in writable):
            other = None if negative is None else document.with_text(self._unwanted(negative, to))
            unconditional = self.read(self.template.unconditional(document, other, to))
        elif negative is not None:
            raise ValueError("a negative prompt works through guidance, which is 1 here; raise the guidance")
        return GenerationConfig(
            max_new_tokens=tokens or min(longest, room),
            force=to,
            allow=("text", *self.writable) if to is None else None,
            max_text_tokens=MAX_TEXT_TOKENS,
            seed=seed,
            sampling=sampling,
            guidance=scales,
            guidance_interval={name: guidance_interval for name in writable} if guidance_interval else {},
            unconditional=None if unconditional is None else tuple(unconditional),
            max_codes=max_codes,
        )

    def _unwanted(self, negative: str, to: str | None) -> str:
        """A negative prompt in the words that a request is put in."""
        return self.wording.request(negative, to) if to in self.vocabulary.media else negative

    def _method(self, name: str | None) -> FastDecoder | None:
        """The fast decoder of that name; made once, so that one that learns goes on learning."""
        if name is None or name == "plain":
            return None
        if name not in self._methods:
            self._methods[name] = decoder_for(self, name)
        return self._methods[name]

    def _outputs(self, rows: Sequence[Sequence[int]]) -> list[list[Output]]:
        """Generated rows → parts, media decoded with all of one modality at once."""
        answers = [self.template.parse_answer(row) for row in rows]
        decoded: dict[int, Output] = {}
        for modality in self.vocabulary.media:
            parts = [part for answer in answers for part in answer if not isinstance(part, Text)]
            parts = [part for part in parts if part.modality == modality]
            if parts:
                media = self.coder.decode(modality, [part.codes for part in parts], [part.grid for part in parts])
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


def _both(first: Callable[[TokenEvent], None] | None, second: Callable[[TokenEvent], None]) -> Any:
    """One callback that calls the two."""

    def on_token(event: TokenEvent) -> None:
        if first is not None:
            first(event)
        second(event)

    return on_token
