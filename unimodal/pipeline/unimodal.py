"""The whole flow on one page: files and words in, files and words out.

    import unimodal
    from unimodal import Image

    model = unimodal.load()                                         # nano; or a folder, or a hub id
    [answer] = model.chat(["What is this?", Image(path="apple.png")])
    print(answer.text)
    model.generate("a red apple", to="image", seed=1).save("apple.png")

file → media → tokenizer → codes → vocabulary → sequence → decoder → sequence → vocabulary → codes → tokenizer → media

What a model is made of is in `parts.py`, what may be asked of it in `requests.py`.

Legend: B pictures, H and W height and width.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from unimodal.coder.outputs import MediaCodes, Output
from unimodal.coder.partial import PartialPictures
from unimodal.compression import CompressionSession, open_methods
from unimodal.generation.composition import exhaust, step_composition
from unimodal.generation.fast.protocol import FastDecoder
from unimodal.generation.request import CompressionEvent, OnCompressed, OnToken, TokenEvent
from unimodal.generation.search.base import SESSION_SIZE
from unimodal.generation.session import GenerationSession
from unimodal.model_folder.find import find_model
from unimodal.pipeline.composed import ComposedAnswer
from unimodal.pipeline.fast_decoders import make_fast_decoder, name_decoder
from unimodal.pipeline.parts import LoadedModel
from unimodal.pipeline.requests import Prepared, prepare
from unimodal.pipeline.search import make_search_answer, phrase_caption
from unimodal.pipeline.settings import MODELS_OWN, AnswerChanges, AnswerSettings
from unimodal.pipeline.speech import join_sounds
from unimodal.pipeline.speech_reading import make_speech_answer
from unimodal.pipeline.voices import find_voice_codes, give_voice
from unimodal.sequence.document import Document, Media, Part, Text, Turn

BATCH = 16  # requests that are answered together

OnProgress = Callable[[int, int], None]
OnPartial = Callable[[int, Output], None]


def load(
    model: str | os.PathLike[str] | None = None,
    device: str | None = None,
    on_step: Callable[[str], None] = lambda step: None,
    weights: str = "auto",
    compile: bool = False,
    kv: str = "model",
    draft_heads: str | os.PathLike[str] | None = None,
) -> Unimodal:
    """Loads the model in a folder or under a hub id; without a name, `$UNIMODAL_MODEL` or the nano of this checkout.

    Media tokenizers are checked by their hash now, and loaded when they are first needed. on_step: told what is being
    done. weights, compile, kv: how the engine decodes. "bfloat16", "int8" and "int4" weights are faster on a processor
    and lose a little; so does a "bfloat16" or "int8" cache (kv), which takes a half or a quarter of the memory.
    draft_heads: a folder of recipes/train_draft.py for the decoder "draft-heads", where it is not `draft_heads` in the
    model's own. Raises ValueError, in one line, for a model that is missing, incomplete or mixed up.
    """
    heads = None if draft_heads is None else Path(draft_heads)
    return Unimodal.from_folder(find_model(model), device, on_step, weights, compile, kv, heads)


class Unimodal(LoadedModel):
    """A loaded model that answers. `load` makes one.

    `chat`, `generate` and `answers` take the `AnswerSettings` of a request, and keywords that change single ones:
    `model.chat("Hello", temperature=0.7)`. All three take these callbacks: ``on_progress(requests done, of how many)``;
    ``on_token(event)`` for every new token, whose `row` is the number of the document; and ``on_partial(number of the
    document, coarse picture)`` while a picture is written; ``on_compressed(event)`` with what `compress` left of the
    prompt of document number `event.row`. A ``session`` of `engine.open_session()` remembers what was
    read, so that a conversation is read once.
    """

    @cached_property
    def _fast_decoders(self) -> dict[str, FastDecoder]:
        """The decoders made so far. What they learn from an answer changes only how fast later answers are written."""
        return {}

    # ---- one request

    def chat(
        self,
        parts: Iterable[Part | str] | str,
        history: Sequence[Turn] = (),
        settings: AnswerSettings = MODELS_OWN,
        *,
        session: GenerationSession | None = None,
        on_progress: OnProgress | None = None,
        on_token: OnToken | None = None,
        on_partial: OnPartial | None = None,
        on_compressed: OnCompressed | None = None,
        **changes: Unpack[AnswerChanges],
    ) -> list[Output]:
        """The answer to a user's turn of words and media: text, and media where the model puts them or `to` asks for
        them.

        Media without words are asked the trained question. history: earlier turns, with codes; `fit_history` of
        `requests.py` keeps those that the model is meant to see. What is left out of a file (moments of a film, its
        sound) is a warning. Raises ValueError for files that cannot be used and for requests that do not fit the model.
        """
        turn = self.user_turn(parts)
        for note in (note for part in turn.parts if isinstance(part, Media) for note in part.notes):
            warnings.warn(note, stacklevel=2)
        document = Document([*history, turn])
        prepared = [prepare(self, document, settings.replace(**changes))]
        return self._answer(prepared, None, session, on_progress, on_token, on_partial, on_compressed)[0]

    def generate(
        self,
        prompt: str,
        to: str | None = None,
        /,
        settings: AnswerSettings = MODELS_OWN,
        *,
        session: GenerationSession | None = None,
        on_progress: OnProgress | None = None,
        on_token: OnToken | None = None,
        on_partial: OnPartial | None = None,
        on_compressed: OnCompressed | None = None,
        **changes: Unpack[AnswerChanges],
    ) -> Output:
        """One picture, sound, clip or text for a prompt, which is put into the words that the model was trained on.

            generate("a red apple", to="image")        generate("good day", "audio", voice="slt")

        With `search`, several pictures are written, and the one is given that the model itself would most likely call
        by the prompt. Raises ValueError for a request that does not fit the model.
        """
        settings = settings.replace(**changes)
        settings = settings if to is None else settings.replace(to=to)
        if settings.to is None:
            raise ValueError("say what to make of the prompt: to='text' or one of the model's media")
        voice = find_voice_codes(self, settings.voice, settings.to)
        words = self._phrase_request(prompt, settings, voice)
        prepared = [prepare(self, Document([Turn("user", words)]), settings.replace(voice=None))]
        caption = self.wording.phrase_caption(prompt, settings.to)
        [outputs] = self._answer(prepared, caption, session, on_progress, on_token, on_partial, on_compressed)
        if settings.to == "text":
            return Output(Text(" ".join(output.text for output in outputs if output.text)))
        output = next(output for output in outputs if output.modality == settings.to)
        return output if voice is None else give_voice(self, output, voice)

    def _phrase_request(self, prompt: str, settings: AnswerSettings, voice: Tensor | None) -> str:
        """The words of a request. voice: of the tokenizer, which is not named in them."""
        assert settings.to is not None
        named = None if voice is not None or settings.voice is None else str(settings.voice)
        return self.wording.phrase_request(prompt, settings.to, named)

    def speak(
        self, text: str, settings: AnswerSettings = MODELS_OWN, **changes: Unpack[AnswerChanges]
    ) -> Iterator[Output]:
        """The sounds of a text, one utterance after the other, each as soon as it is ready.

        `generate(text, "audio")` gives them joined. Raises ValueError, before the first sound and with the count, for
        what cannot be said.
        """
        settings = settings.replace(**changes).replace(to="audio")
        voice = find_voice_codes(self, settings.voice, "audio")
        words = self._phrase_request(text, settings, voice)
        prepared = prepare(self, Document([Turn("user", words)]), settings.replace(voice=None))
        composed = self._find_composed(prepared, None)
        for output in self._speak_utterances(prepared, composed):
            yield output if voice is None or output.modality != "audio" else give_voice(self, output, voice)

    def _speak_utterances(self, prepared: Prepared, composed: ComposedAnswer | None) -> Iterator[Output]:
        if composed is None:
            yield from self._answer([prepared], None, None, None, None, None, None)[0]
            return
        told: list[int] = []
        steps = self._step_composed(prepared, composed, lambda event: told.append(event.id))
        while next(steps, steps) is None:
            yield from self._decode_spoken(told)
        yield from self._decode_spoken(told)

    def _decode_spoken(self, ids: list[int]) -> list[Output]:
        """Decodes the sounds of whole utterances, and empties `ids`."""
        [outputs] = self.decode_answers([ids]) if ids else [[]]
        ids.clear()
        return [output for output in outputs if output.modality == "audio"]

    def user_turn(self, parts: Iterable[Part | str] | str) -> Turn:
        """The user's turn with every file encoded; media without words are followed by the trained question."""
        given = [
            Text(part) if isinstance(part, str) else part for part in ([parts] if isinstance(parts, str) else parts)
        ]
        encoded = [self.coder.encode_part(part) for part in given]
        if not any(isinstance(part, Text) and part.text.strip() for part in encoded):
            if not encoded or isinstance(encoded[-1], Text):
                raise ValueError("there is nothing to answer; give words, a picture, a sound or a clip")
            encoded.append(Text(self.wording.ask(encoded[-1].modality)))
        return Turn("user", encoded)

    # ---- many requests

    def answers(
        self,
        documents: Sequence[Document],
        settings: AnswerSettings | Sequence[AnswerSettings] = MODELS_OWN,
        *,
        seeds: Sequence[int] | None = None,
        session: GenerationSession | None = None,
        on_progress: OnProgress | None = None,
        on_token: OnToken | None = None,
        on_partial: OnPartial | None = None,
        on_compressed: OnCompressed | None = None,
        **changes: Unpack[AnswerChanges],
    ) -> list[list[Output]]:
        """The answers to documents whose media have codes, in batches; none depends on its neighbours.

        settings: one for all documents, whose seed is the first document's, with 1 more for each further one; or one
        for each document. seeds: replace those. Raises ValueError, before anything is computed, for a request that does
        not fit the model.
        """
        each = _spread(settings, len(documents), seeds, changes)
        prepared = [prepare(self, document, own) for document, own in zip(documents, each, strict=True)]
        return self._answer(prepared, None, session, on_progress, on_token, on_partial, on_compressed)

    def _answer(
        self,
        requests: Sequence[Prepared],
        caption: str | None,
        session: GenerationSession | None,
        on_progress: OnProgress | None,
        on_token: OnToken | None,
        on_partial: OnPartial | None,
        on_compressed: OnCompressed | None,
    ) -> list[list[Output]]:
        """The answers to prepared requests.

        caption: what a search wants its picture called; None: the words of each request.
        """
        if session is not None and any(request.settings.methods for request in requests):
            raise ValueError("a session keeps whole caches and compress shortens them; leave one of them out")
        if any(request.settings.search is not None for request in requests):
            for name, given in (("session", session), ("on_partial", on_partial)):
                if given is not None:
                    raise ValueError(f"search does not go with {name}; leave one of them out")
        names = [name_decoder(self, request) for request in requests]
        composed = {number: self._find_composed(request, caption) for number, request in enumerate(requests)}
        listeners: list[OnToken] = [] if on_token is None else [on_token]
        if on_partial is not None:
            listeners.append(PartialPictures(self.coder, on_partial))
        found: dict[int, list[Output]] = {}
        alone: list[int] = []  # answers that are one row each
        for number in sorted(composed, key=lambda number: len(requests[number].prompt)):  # little padding in a batch
            answer = composed[number]
            if answer is None:
                alone.append(number)
                continue
            [outputs] = self.decode_answers([exhaust(self._step_composed(requests[number], answer, on_token, number))])
            found[number] = self._join_utterances(outputs) if requests[number].utterances else outputs
            if not requests[number].methods:
                _tell_kept(on_compressed, [number], (), requests)
            if on_progress is not None:
                on_progress(len(found), len(requests))
        for numbers in _group_alike({number: (names[number], requests[number].methods) for number in alone}):
            for start in range(0, len(numbers), BATCH):
                batch = numbers[start : start + BATCH]
                with open_methods(requests[numbers[0]].methods, self.engine) as sessions:
                    rows = self.engine.generate(
                        [requests[number].prompt for number in batch],
                        [requests[number].config for number in batch],
                        _listen(listeners, batch) if listeners else None,
                        self._find_decoder(names[numbers[0]]),
                        session,
                    )
                _tell_kept(on_compressed, batch, sessions, requests)
                found.update(zip(batch, self.decode_answers(rows), strict=True))
                if on_progress is not None:
                    on_progress(len(found), len(requests))
        return [found[number] for number in range(len(requests))]

    def _join_utterances(self, outputs: list[Output]) -> list[Output]:
        return join_sounds(outputs, self.coder.get_tokenizer("audio").segments)

    def _find_composed(self, request: Prepared, caption: str | None) -> ComposedAnswer | None:
        """The answer by a search: the one that a request asks for, or that of a model with a second reading of speech.

        None for an answer that is one row.
        """
        if request.settings.search is None:
            return make_speech_answer(self, request)
        return make_search_answer(self, request, phrase_caption(self, request) if caption is None else caption)

    def _step_composed(
        self, request: Prepared, answer: ComposedAnswer, on_token: OnToken | None, number: int = 0
    ) -> Generator[None, None, list[int]]:
        session = None if request.settings.search is None else self.engine.open_session(SESSION_SIZE)
        decoder = self._find_decoder(name_decoder(self, request))
        return step_composition(self.engine, answer.compose(on_token, number), decoder, session)

    def _find_decoder(self, name: str | None) -> FastDecoder | None:
        """The fast decoder of that name, made at first use; None for writing token by token."""
        if name is None:
            return None
        if name not in self._fast_decoders:
            self._fast_decoders[name] = make_fast_decoder(self, name)
        return self._fast_decoders[name]

    # ---- media without the decoder

    def tokenize(self, path: str | os.PathLike[str], start_s: float = 0.0, seconds: float | None = None) -> MediaCodes:
        """The codes of a picture, sound or film, or of a part of it. The content decides which of them a file is.

        What is left out of the file is a warning.
        """
        return self.coder.tokenize(Path(path), start_s, seconds, lambda note: warnings.warn(note, stacklevel=2))

    def detokenize(self, codes: MediaCodes) -> Output:
        """The inverse of `tokenize`, up to the loss of quantization."""
        return self.coder.detokenize(codes)

    def extract_picture_features(self, pictures: Tensor) -> Tensor:
        """Features [B, 1280] of pictures [B, 3, H, W] by the frozen trunk inside the image tokenizer.

        Raises ValueError for a tokenizer without a trunk.
        """
        tokenizer = self.coder.get_tokenizer("image")
        with torch.inference_mode():
            features = tokenizer.extract_features(pictures.to(self.coder.device))
        if features is None:
            raise ValueError(f"{type(tokenizer).__name__} has no frozen trunk to compare pictures by")
        return features.cpu()


def _spread(
    settings: AnswerSettings | Sequence[AnswerSettings],
    num: int,
    seeds: Sequence[int] | None,
    changes: AnswerChanges,
) -> list[AnswerSettings]:
    """The settings of each of `num` documents. Raises ValueError for another number of settings or seeds."""
    if isinstance(settings, AnswerSettings):
        shared = settings.replace(**changes)
        each = [shared.replace(seed=shared.seed + number) for number in range(num)]
    else:
        each = [one.replace(**changes) for one in settings]
    for name, given in (("settings", each), ("seeds", seeds)):
        if given is not None and len(given) != num:
            raise ValueError(f"{num} documents came with {len(given)} {name}; give one for each")
    return each if seeds is None else [one.replace(seed=seed) for one, seed in zip(each, seeds, strict=True)]


def _group_alike(keys: Mapping[int, object]) -> list[list[int]]:
    """Numbers by equal keys, in their order."""
    groups: list[tuple[object, list[int]]] = []
    for number, key in keys.items():
        found = next((numbers for other, numbers in groups if other == key), None)
        if found is None:
            groups.append((key, [number]))
        else:
            found.append(number)
    return [numbers for _, numbers in groups]


def _tell_kept(
    on_compressed: OnCompressed | None,
    batch: Sequence[int],
    sessions: Sequence[CompressionSession],
    requests: Sequence[Prepared],
) -> None:
    """Tells what was left of every prompt that should be compressed, of those too that had nothing to compress."""
    for place, number in enumerate(batch):
        if on_compressed is not None and requests[number].settings.methods:
            whole = len(requests[number].prompt)
            num, kept = sessions[0].rows[place] if sessions else (whole, whole)
            on_compressed(CompressionEvent(number, num, kept))


def _listen(listeners: Sequence[OnToken], batch: Sequence[int]) -> Callable[[TokenEvent], None]:
    """Tells every listener the tokens of a batch, with the number of the document as the row."""

    def on_token(event: TokenEvent) -> None:
        told = dataclasses.replace(event, row=batch[event.row])
        for listener in listeners:
            listener(told)

    return on_token
