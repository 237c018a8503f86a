"""One request: the settings of an answer, and the one translator of them into what the engine is asked.

    settings = AnswerSettings(to="image", seed=1, temperature=0.9)
    prepared = prepare(model, Document([Turn("user", "Draw a red apple.")]), settings)
    [ids] = model.engine.generate([prepared.prompt], prepared.config)

`Unimodal`, the server's rows, the transformers classes, search and the terminal chat all come through here, so a
setting means the same wherever it is given. `fit_history` chooses which earlier turns a model is shown.

Numbers of tokens are positions of the sequence, of which one may hold several codes (`vocabulary/positions.py`).

Legend: N tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unimodal.compression import Method, finds_work
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import SamplingConfig
from unimodal.pipeline.compression import check_methods
from unimodal.pipeline.parts import LoadedModel
from unimodal.pipeline.settings import MODELS_OWN, AnswerSettings
from unimodal.pipeline.speech import list_utterances
from unimodal.sequence.document import Document, Text, Turn
from unimodal.sequence.templates.own import Rendered

MIN_TEXT_TOKENS = 16  # must be free for an answer in words
MAX_TEXT_TOKENS = 96  # of an answer in words, unless a request says otherwise
MAX_NEW_TOKENS = 400  # of an answer that may hold anything
UTTERANCE_SEED_BITS = 40  # between the seeds of two utterances of a request, which leaves room for those of drafts


class UnfitRequestError(ValueError):
    """A request that does not fit the model; `field` is the setting at fault, or "prompt"."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


class PromptTooLongError(UnfitRequestError):
    """A prompt that leaves the model no room for its answer."""

    def __init__(self, num_tokens: int, num_media_tokens: int, num_media: int, most: int) -> None:
        """num_tokens: of the prompt, media included. most: tokens that the model can read before an answer."""
        media = f"{num_media} medium" if num_media == 1 else f"{num_media} media"
        counted = f", {num_media_tokens:,} of them for {media}" if num_media else ""
        super().__init__(
            f"the prompt is too long: it is {num_tokens:,} tokens{counted}, and this model reads at most {most:,} "
            f"before its answer; shorten it",
            "prompt",
        )


@dataclass(frozen=True)
class Prepared:
    """A request that fits the model: what was asked, and what the engine is asked for it.

    utterances: all of them, of speech that is said in several; `prompt` and `config` are then those of the first.
    """

    document: Document
    settings: AnswerSettings
    prompt: list[int]  # [N], up to the mark that opens the answer
    config: GenerationConfig
    methods: tuple[Method, ...] = ()  # that shorten the prompt
    utterances: tuple[Prepared, ...] = ()


# ---- settings → what the engine is asked


def prepare(model: LoadedModel, document: Document, settings: AnswerSettings) -> Prepared:
    """Translates a request into what the engine is asked, for a document whose media have codes.

    Raises UnfitRequestError, in one line, for what does not fit the model: a medium that it does not write, a prompt
    that is too long, more tokens than there is room for.
    """
    for name in list_media(model, settings):
        if name not in model.writable:
            message = f"this model reads {name}s but has no decoder to make one with; ask it for text"
            raise UnfitRequestError(message, "to")
    spoken = list_utterances(model, document, settings.to)
    if len(spoken) > 1:
        each = tuple(
            _prepare_rendered(model, one, settings.replace(seed=settings.seed + (number << UTTERANCE_SEED_BITS)))
            for number, one in enumerate(spoken)
        )
        return dataclasses.replace(each[0], document=document, utterances=each)
    return _prepare_rendered(model, spoken[0] if spoken else document, settings)


def _prepare_rendered(model: LoadedModel, document: Document, settings: AnswerSettings) -> Prepared:
    rendered = render_prompt(model, document, settings.to)
    most = model.max_positions - count_answer_tokens(model, settings.to)
    positions = model.vocabulary.positions
    length = positions.count(rendered.ids)
    if length > most:
        media = [part for part in document.parts if not isinstance(part, Text)]
        of_media = positions.count(rendered.ids[rendered.modality > 0])
        raise PromptTooLongError(length, of_media, len(media), most)
    return prepare_prompt(model, document, model.read(rendered), settings)


def prepare_prompt(
    model: LoadedModel, document: Document, prompt: list[int], settings: AnswerSettings, begun: Sequence[int] = ()
) -> Prepared:
    """`prepare` for a document that is rendered already, as the ids [N] of a prompt.

    begun: the last ids of the prompt, if they begin an answer that the document does not hold.
    """
    list_media(model, settings)
    methods = _find_methods(model, prompt, settings)
    if settings.voice is not None:
        raise ValueError(
            f"the voice {str(settings.voice)[:40]!r} belongs into the words of a request; use generate, or write them"
        )
    to, room = settings.to, model.max_positions - model.vocabulary.positions.count(prompt)
    max_codes = {name: most for name, most in model.processor.max_codes.items() if name in model.vocabulary.media}
    num_new = _count_new_tokens(model, settings, room, max_codes)
    words = settings.text_tokens
    guidance = _choose_guidance(model, settings)
    guided = (to,) if to is not None else settings.allow or model.writable  # what may be written
    guided = tuple(name for name in guided if name in model.vocabulary.media)
    unconditional: tuple[int, ...] | None = None
    if any(guidance.get(name, 1.0) != 1.0 for name in guided):
        other = None if settings.negative is None else document.replace_text(_phrase_negative(model, settings))
        unconditional = (*model.read(model.template.render_unconditional(document, other, to)), *begun)
    elif settings.negative is not None:
        message = "a negative prompt works through guidance, which is 1 here; raise the guidance"
        raise UnfitRequestError(message, "negative")
    interval = settings.guidance_interval
    config = GenerationConfig(
        max_new_tokens=num_new,
        force=to,
        allow=tuple(settings.allow or ("text", *model.writable)) if to is None else None,
        max_text_tokens=MAX_TEXT_TOKENS if words is None else max(1, min(words, num_new - 1)),
        seed=settings.seed,
        sampling=_choose_sampling(model, settings),
        guidance=guidance,
        guidance_interval={} if interval is None else dict.fromkeys(guided, interval),
        unconditional=unconditional,
        max_codes=max_codes,
    )
    return Prepared(document, settings, prompt, config, methods)


def _find_methods(model: LoadedModel, prompt: list[int], settings: AnswerSettings) -> tuple[Method, ...]:
    """The methods that shorten this prompt; none for one without anything to shorten.

    Raises UnfitRequestError for what the model, or methods beside each other, do not allow.
    """
    try:
        methods = check_methods(model, settings.methods)
    except ValueError as error:
        raise UnfitRequestError(str(error), "compress") from None
    return methods if finds_work(prompt, methods, model.vocabulary) else ()


def list_media(model: LoadedModel, settings: AnswerSettings) -> list[str]:
    """The media that a request names. Raises ValueError for one that the model does not have."""
    named = [name for name in settings.allow or (settings.to,) if name not in (None, "text")]
    for name in named:
        model.vocabulary.get_layout(name)
    return named


def render_prompt(model: LoadedModel, document: Document, to: str | None = None) -> Rendered:
    """A document followed by the mark that opens the answer, of length N."""
    whole = model.add_system_turn(document, to)
    return model.template.render(whole, add_generation_prompt=True, to=to)


def _count_new_tokens(model: LoadedModel, settings: AnswerSettings, room: int, max_codes: Mapping[str, int]) -> int:
    """The most tokens that the answer may have. Raises ValueError for a number that does not fit."""
    to, tokens, words = settings.to, settings.tokens, settings.text_tokens
    if to in (None, "text"):
        longest = MAX_TEXT_TOKENS if words is None else words + 1
        longest = max(longest, MAX_NEW_TOKENS) if to is None else longest
    elif model.vocabulary.get_layout(to).open_segment is not None and to not in max_codes:
        longest = room  # nothing else ends it
    else:
        longest = model.vocabulary.count_span_positions(to, max_codes.get(to)) + 1
    if tokens is None:
        return min(longest, room)
    tokens = min(tokens, room) if settings.shorten else tokens
    if to not in (None, "text") and tokens < count_answer_tokens(model, to):
        least = count_answer_tokens(model, to)
        raise UnfitRequestError(f"{tokens} tokens are too few: {to} takes at least {least}; raise it", "tokens")
    if not 1 <= tokens <= room:
        message = f"{tokens} new tokens do not fit; this prompt leaves room for 1 to {room}"
        raise UnfitRequestError(message, "tokens")
    return tokens


def _choose_sampling(model: LoadedModel, settings: AnswerSettings) -> dict[str, SamplingConfig]:
    """Sampling by modality: the model's own, with the request's changes."""
    changed = (settings.to,) if settings.to is not None else settings.allow or model.vocabulary.media
    found = {}
    for name, own in model.sampling.items():
        values = own.model_dump(exclude={"guidance"})
        if name in changed:
            asked = {key: getattr(settings, key) for key in ("temperature", "top_k", "top_p")}
            values |= {key: value for key, value in asked.items() if value is not None}
            if settings.temperature is not None:
                values["first_codes"] = 0  # one temperature, for all codes
        found[name] = SamplingConfig.model_validate(values)
    return found


def _choose_guidance(model: LoadedModel, settings: AnswerSettings) -> dict[str, float]:
    """Guidance by medium: the model's own, with the request's changes."""
    changed = (settings.to,) if settings.to is not None else settings.allow or model.vocabulary.media
    return {
        name: own.guidance if settings.guidance is None or name not in changed else settings.guidance
        for name, own in model.sampling.items()
        if name != "text"
    }


def _phrase_negative(model: LoadedModel, settings: AnswerSettings) -> str:
    """A negative prompt in the words in which requests are put."""
    assert settings.negative is not None
    if settings.to in model.vocabulary.media:
        return model.wording.phrase_request(settings.negative, str(settings.to))
    return settings.negative


# ---- how much of a conversation a model is shown


def fit_history(model: LoadedModel, turns: Sequence[Turn], settings: AnswerSettings = MODELS_OWN) -> Document:
    """Keeps, of a conversation, what the model is shown.

    These are the words of the system, the last exchange, which is to be answered, and as many exchanges before it as
    the model was trained to see (`history_turns`) and has room for. An exchange begins where the user speaks after
    someone else; the oldest are dropped first, as a whole. Room is kept for the shortest answer, or for `tokens` if
    they are given and may not be shortened. The result may still be too long; `prepare` then says so.
    """
    first = next((number for number, turn in enumerate(turns) if turn.role != "system"), len(turns))
    head, rest = turns[:first], turns[first:]
    begins = {n for n, turn in enumerate(rest) if turn.role == "user" and (n == 0 or rest[n - 1].role != "user")}
    starts = sorted({0, *begins})
    limit = model.processor.history_turns
    if limit is not None:
        starts = starts[-(limit + 1) :]
    needed = count_answer_tokens(model, settings.to)
    if settings.tokens is not None and not settings.shorten:
        needed = max(needed, settings.tokens)
    for start in starts:
        document = Document([*head, *rest[start:]])
        if start == starts[-1] or count_room(model, document, settings.to) >= needed:
            break
    return document


def count_room(model: LoadedModel, document: Document, to: str | None = None) -> int:
    """The number of new tokens that fit behind a document."""
    return model.max_positions - model.vocabulary.positions.count(render_prompt(model, document, to).ids)


def count_answer_tokens(model: LoadedModel, to: str | None) -> int:
    """Tokens that must be free for an answer: a whole span of the medium asked for, or a few words."""
    return MIN_TEXT_TOKENS if to in (None, "text") else model.vocabulary.count_span_positions(to) + 1
