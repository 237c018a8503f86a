"""Send a tuned model to the Hub: exported whole and then pushed, as `unimodal export` and `unimodal push` do."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from unimodal.config import Config
from unimodal.export.card import Statement
from unimodal.export.hub import check_repository, find_token, plan_push, push
from unimodal.export.licences import check_licences
from unimodal.export.stock import check_writing, export_model
from unimodal.objectives.writing import SpanWriting


class PushSettings(Config):
    """The repository of the finished model, and what its card must say."""

    repo: str  # owner/name
    license: str  # such as apache-2.0
    data: str = ""  # what it was trained on, in words
    dataset: tuple[str, ...] = ()  # or the datasets of the Hub
    private: bool = False
    accept_licence: tuple[str, ...] = ()  # of a tokenizer's released weights, where it forbids commercial use


def check_push(
    cfg: PushSettings | None,
    media: Path | None = None,
    summed: Sequence[str] = (),
    fourier: bool = False,
    writing: SpanWriting | None = None,
) -> None:
    """Raises ValueError, before the training, for a wrong name or licence, unnamed data or a missing token; for
    tokenizers in the folder `media` whose weights' licence forbids commercial use and is not accepted; and for
    `summed` media, Fourier heads and a `writing` that is not token by token, since such a model is not exported."""
    if cfg is None:
        return
    check_writing("push", writing)
    if summed:
        raise ValueError(
            "push sends a model of a stock class, which has no network to write summed codes; leave push or summed out"
        )
    if fourier:
        raise ValueError("push sends a model of a stock class, which has no Fourier heads; leave push or fourier out")
    check_repository(cfg.repo)
    if cfg.license.strip().lower() in ("", "unknown", "other"):
        raise ValueError(f"push.license is {cfg.license!r}, which says nothing; give one such as apache-2.0")
    if not cfg.data and not cfg.dataset:
        raise ValueError("push: say what the model was trained on, in push.data or as push.dataset=[owner/name]")
    if media is not None:
        check_licences(media, cfg.accept_licence)
    find_token(cfg.repo)


def push_tuned(folder: Path, cfg: PushSettings) -> None:
    """Export the model in `folder`, with an adapter merged into its base, push it, and print its address on stderr.

    `folder` is not changed. Raises ValueError, in one line, if it cannot be exported or the Hub refuses it.
    """
    with tempfile.TemporaryDirectory(prefix="unimodal-push-") as temporary:
        whole = Path(temporary) / folder.name
        try:
            export_model(folder, whole)
            planned = plan_push(
                whole, cfg.repo, Statement(cfg.license, cfg.dataset, cfg.data or None), None, cfg.accept_licence
            )
            address = push(planned, cfg.repo, cfg.private, on_step=_say)
        except ValueError as error:
            raise ValueError(
                f"the model is in {folder} but not on the Hub: {error}; `unimodal export` and `unimodal push` do it"
            ) from None
    _say(f"pushed to {address}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
