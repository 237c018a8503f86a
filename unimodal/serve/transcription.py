"""`/v1/audio/transcriptions`: a sound → its words, as JSON, plain text, or one subtitle over the whole sound.

The model does not say when a word was spoken, so subtitles and `verbose_json` have one segment, from the first to the
last second of what was heard.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from starlette.responses import JSONResponse, PlainTextResponse, Response

from unimodal.coder.batches import count_frames
from unimodal.media.registry import MEDIA
from unimodal.pipeline.settings import AnswerSettings
from unimodal.sequence.document import Media, Text
from unimodal.serve.bodies import TranscriptionRequest, parse_form
from unimodal.serve.media_endpoints import WholeAnswer, answer_turn, check_medium, read_form
from unimodal.serve.protocol import ApiError
from unimodal.serve.service import Exchange, Service

NOTES_HEADER = "X-Notes"  # of answers that are no JSON


async def transcribe(exchange: Exchange) -> Response:
    service = exchange.service
    check_medium(service, "audio", "hears")
    data, fields = await read_form(exchange)
    asked = parse_form(TranscriptionRequest, fields)
    service.check_model(asked.model)
    if not data:
        raise ApiError(400, "the file is empty", "invalid_media", "file")
    part = await service.media.make_part("audio", data, "file", asked.start or 0.0, asked.seconds)
    settings = AnswerSettings(to="text", temperature=asked.temperature)
    answer = await answer_turn(
        service, [part, Text(service.model.wording.ask("audio"))], settings, prompt="file", to="model"
    )
    notes = part.notes if isinstance(part, Media) else ()
    headers = {NOTES_HEADER: _write_header(notes)} if notes else {}
    text = answer.reader.text
    if asked.response_format == "text":
        return PlainTextResponse(text + "\n", headers=headers)
    if asked.response_format == "json":
        return JSONResponse({"text": text, "usage": _count_tokens(answer), **({"notes": notes} if notes else {})})
    start_s = asked.start or 0.0
    end_s = start_s + await _measure(service, data, asked)
    if asked.response_format == "verbose_json":
        return JSONResponse(_describe(answer, start_s, end_s, asked.temperature or 0.0, notes))
    if asked.response_format == "srt":
        return PlainTextResponse(
            f"1\n{_write_time(start_s, ',')} --> {_write_time(end_s, ',')}\n{text}\n", headers=headers
        )
    told = "".join(f"NOTE {note}\n\n" for note in notes)
    cue = f"{_write_time(start_s, '.')} --> {_write_time(end_s, '.')}\n{text}\n"
    return PlainTextResponse(f"WEBVTT\n\n{told}{cue}", headers=headers, media_type="text/vtt")


async def _measure(service: Service, data: bytes, asked: TranscriptionRequest) -> float:
    """How many seconds were heard."""
    sound = await service.media.read("audio", data, "file", start_s=asked.start or 0.0, seconds=asked.seconds)
    return count_frames(MEDIA["audio"], sound) / float(service.model.coder.get_rate("audio") or 1)


def _count_tokens(answer: WholeAnswer) -> dict[str, object]:
    counts = {"input_tokens": answer.num_in, "output_tokens": answer.num_out}
    return {"type": "tokens", **counts, "total_tokens": answer.num_in + answer.num_out}


def _describe(
    answer: WholeAnswer, start_s: float, end_s: float, temperature: float, notes: Sequence[str]
) -> dict[str, object]:
    """A transcript with what is known about it; what the model does not tell is null, and its language "unknown"."""
    text = answer.reader.text
    spelled = text.encode()
    segment = {
        "id": 0,
        "seek": 0,
        "start": start_s,
        "end": end_s,
        "text": text,
        "tokens": [row for row in answer.ids if row < answer.reader.model.vocabulary.text_size],
        "temperature": temperature,
        "avg_logprob": None,
        "compression_ratio": len(spelled) / len(zlib.compress(spelled)),
        "no_speech_prob": None,
    }
    return {
        "task": "transcribe",
        "language": "unknown",
        "duration": end_s - start_s,
        "text": text,
        "segments": [segment],
        "usage": {"type": "duration", "seconds": end_s - start_s},
        **({"notes": notes} if notes else {}),
    }


def _write_time(seconds: float, point: str) -> str:
    """`00:01:02,345`."""
    whole = round(seconds * 1000)
    return f"{whole // 3_600_000:02}:{whole // 60_000 % 60:02}:{whole // 1000 % 60:02}{point}{whole % 1000:03}"


def _write_header(notes: Sequence[str]) -> str:
    """Sentences as the value of a header, which is ASCII on one line."""
    return " ".join("; ".join(notes).split()).encode("ascii", "backslashreplace").decode("ascii")
