"""What a model that is being tuned says, draws and knows, at every validation: `watch` of the tuning recipes.

    watch: {suites: {picture_naming: 32}, ask: [{words: "Draw a red apple.", to: image}, {files: [cat.png]}]}

Each look is a folder of the run, `watched/STEP`, with the answers as files and `look.json`: the figures, and what was
answered to what. The first look is of the model before it is trained.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator
from transformers import PreTrainedModel

from unimodal.coder.media_coder import MediaCoder
from unimodal.config import Config
from unimodal.files import write_json
from unimodal.media.kind import detect_kind
from unimodal.media.registry import find_medium
from unimodal.model_folder.settings import read_processor, read_sampling
from unimodal.pipeline import Output, Unimodal
from unimodal.sequence.document import Part, make_part
from unimodal.sequence.templates.own import Template
from unimodal.training.checkpoint import has_checkpoint
from unimodal.training.distributed import Parallel
from unimodal.training.settings import LoopConfig
from unimodal.training.watching import Watched, look

#: (name of a suite, model, prepared data, items at most, seed) → its figures, as `unimodal.evaluation.run_suite`
RunSuite = Callable[[str, Unimodal, Path, int | None, int], Mapping[str, object]]


class WatchedRequest(Config):
    """A question. to: the medium of the answer; None leaves it to the model."""

    words: str = ""
    files: tuple[Path, ...] = ()
    to: str | None = None

    @model_validator(mode="after")
    def _check(self) -> WatchedRequest:
        if not self.words and not self.files:
            raise ValueError("a request that is watched has neither words nor files; give one of them")
        missing = [path for path in self.files if not path.is_file()]
        if missing:
            raise ValueError(f"{missing[0]}: no such file to ask about")
        return self


class WatchConfig(Config):
    """What is looked at every `loop.evaluate_every` steps. suites: those of `unimodal evaluate`, each with the most
    items to try; data: what they read. ask: what is asked, its answers written by `seed`."""

    suites: dict[str, Annotated[int, Field(ge=1)]] = {}
    data: Path = Path("data/prepared")
    ask: tuple[WatchedRequest, ...] = ()
    seed: int = 0


class Watcher:
    """A `Watch` of the model of a tuning recipe.

    tokenizers: the folder that `save_tokenizers` writes. folder: of the looks. run_suite: measures a suite of that
    name.
    """

    def __init__(
        self,
        settings: WatchConfig,
        model: PreTrainedModel,
        template: Template,
        tokenizers: Path,
        folder: Path,
        run_suite: RunSuite,
    ) -> None:
        self.settings, self.model, self.template = settings, model, template
        self.tokenizers, self.folder, self.run_suite = tokenizers, folder, run_suite

    @cached_property
    def _loaded(self) -> Unimodal:
        """The model as it answers, over the very weights that are trained."""
        vocabulary, device = self.template.vocabulary, next(self.model.parameters()).device
        coder = MediaCoder(self.tokenizers, vocabulary, read_processor(self.tokenizers), device)
        sampling = read_sampling(self.tokenizers)
        return Unimodal(self.tokenizers, self.model, self.template, coder, sampling, weights="model")

    def __call__(self, step: int) -> Watched:
        use_cache, self.model.config.use_cache = self.model.config.use_cache, True
        try:
            return self._look(step)
        finally:
            self.model.config.use_cache = use_cache

    def _look(self, step: int) -> Watched:
        folder = self.folder / f"{step:07d}"
        folder.mkdir(parents=True, exist_ok=True)
        figures: dict[str, float] = {}
        for name, limit in self.settings.suites.items():
            found = self.run_suite(name, self._loaded, self.settings.data, limit, self.settings.seed)
            figures |= {f"{name}.{key}": value for key, value in list_numbers(found).items()}
        files: dict[str, dict[str, Path]] = {"image": {}, "audio": {}}
        told = []
        for number, request in enumerate(self.settings.ask):
            parts = []
            for place, output in enumerate(self._answer(request)):
                path = self._save(output, folder, f"{number}" if place == 0 else f"{number}-{place}")
                parts.append({"text": output.text} if path is None else {"file": path.name})
                if path is not None and output.modality in files:
                    files[output.modality][f"watched/{path.stem}"] = path
            asked = {"words": request.words, "files": list(map(str, request.files)), "to": request.to}
            told.append({"asked": asked, "answer": parts})
        write_json(folder / "look.json", {"step": step, "figures": figures, "answers": told})
        return Watched(figures, files["image"], files["audio"])

    def _answer(self, request: WatchedRequest) -> Sequence[Output]:
        parts: list[Part | str] = [make_part(detect_kind(path), path=str(path)) for path in request.files]
        if request.words:
            parts.append(request.words)
        return self._loaded.chat(parts, to=request.to, seed=self.settings.seed)

    @staticmethod
    def _save(output: Output, folder: Path, name: str) -> Path | None:
        """The file of a medium; None for a text, which `look.json` holds."""
        if output.modality == "text":
            return None
        path = folder / f"{name}{find_medium(output.modality).saved_suffixes[0]}"
        output.save(path)
        return path


def list_numbers(figures: Mapping[str, object]) -> dict[str, float]:
    """The numbers of nested figures by their dotted names; examples and other texts are left out."""
    found: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{key}": number for key, number in list_numbers(value).items()}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = float(value)
    return found


def make_watcher(
    settings: WatchConfig | None,
    loop: LoopConfig,
    model: PreTrainedModel,
    template: Template,
    run: Path,
    run_suite: RunSuite,
    reads_features: bool = False,
) -> Watcher | None:
    """The watcher of a run; None where nothing is watched. reads_features: whether media are read as features.

    Raises ValueError where nothing would ever be looked at, and for a model that cannot be watched.
    """
    if settings is None:
        return None
    if not settings.suites and not settings.ask:
        raise ValueError("watch has neither suites nor requests to ask; give one of them, or leave watch out")
    if not loop.evaluate_every:
        raise ValueError("watch looks at the model every loop.evaluate_every steps, which is 0; set it")
    if reads_features:
        raise ValueError("a model that reads media as features is not watched while it is trained; leave watch out")
    return Watcher(settings, model, template, run / "tokenizers", run / "watched", run_suite)


def look_before(watcher: Watcher | None, loop: LoopConfig, run: Path, parallel: Parallel) -> None:
    """A look at the model before a new run, so that what cannot be measured is told before hours of training: raises
    ValueError for it, and for a figure that is to be best and is not measured."""
    if watcher is None or not parallel.is_main or has_checkpoint(run):
        return
    figures = look(watcher, watcher.model, 0, (), Parallel())
    if not loop.best_by.startswith("validation_") and loop.best_by not in figures:
        there = ", ".join(figures) or "none: watch.suites is empty"
        raise ValueError(f"loop.best_by is {loop.best_by!r}, which is not measured; there are {there}")
    shown = "  ".join(f"{name} {value:g}" for name, value in figures.items())
    print(f"before training: {shown or 'the answers'} in {watcher.folder / '0000000'}", file=sys.stderr, flush=True)
