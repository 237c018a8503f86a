"""The model card: what the folder's files say, and the licence and the data, which only its maker can say.

An existing card keeps its words and its metadata; missing metadata are added. Without one the card is written from
`card.md.jinja`. Figures come from the reports of `unimodal evaluate` in the folder. They also go to `.eval_results/`,
in the form that the Hub reads (https://huggingface.co/docs/hub/eval-results).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import yaml

from unimodal.export.licences import HEADING, describe_licences
from unimodal.export.stock import EXPORT_FILE
from unimodal.files import describe_error, read_json
from unimodal.media.registry import MEDIA
from unimodal.model_folder.find import describe_model
from unimodal.model_folder.layout import CONFIG_FILE, VOCABULARY_FILE, locate_tokenizer
from unimodal.vocabulary import read_vocabulary

TEMPLATE = Path(__file__).with_name("card.md.jinja")
CARD, EVAL_RESULTS = "README.md", ".eval_results"
TASKS = {
    "image": ("image-to-text", "text-to-image"),
    "audio": ("automatic-speech-recognition", "text-to-speech"),
    "video": ("video-to-text", "text-to-video"),
}
WORDS = {"text": "text", "image": "pictures", "audio": "sound", "video": "video"}
_DATA_HEADING = re.compile(r"^#{1,6}[^\n]*\bdata(sets?)?\b[^\n]*\n+(?!#)\s*\S", re.IGNORECASE | re.MULTILINE)
_PICTURES, _SAMPLES = (".png", ".jpg", ".jpeg", ".webp", ".gif"), (".wav", ".flac", ".mp3", ".ogg", ".mp4", ".webm")


@dataclass(frozen=True)
class Statement:
    """What the maker says: the licence (the Hub's identifier), training datasets (hub ids), and the data in words."""

    license: str | None = None
    datasets: Sequence[str] = ()
    data: str | None = None

    def __post_init__(self) -> None:  # blanks say nothing
        object.__setattr__(self, "license", (self.license or "").strip() or None)
        object.__setattr__(self, "datasets", [name.strip() for name in self.datasets if name.strip()])
        object.__setattr__(self, "data", (self.data or "").strip() or None)


NOTHING = Statement()


class CardMetadata(TypedDict, total=False):
    """The entries of a card's YAML block that are written here; their names are the Hub's."""

    license: str
    library_name: str
    pipeline_tag: str
    base_model: str
    base_model_relation: str
    datasets: list[str]
    tags: list[str]


def make_card(folder: Path, repo: str, statement: Statement = NOTHING) -> str:
    """The text of README.md for this folder as the repository `repo`.

    Raises ValueError, in one line that says what to add, if the licence or the data are not stated; and for a licence
    other than the card's, and a card that cannot be read.
    """
    from huggingface_hub import ModelCard

    path = folder / CARD
    card = None
    if path.is_file():
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                text = file.read()
            card = ModelCard(text if text.startswith("---") else f"---\n{{}}\n---\n{text}")
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{path}: its metadata cannot be read: {describe_error(error, 160)}") from None
    data = card.data if card is not None else None
    known = {name: getattr(data, name, None) for name in ("license", "license_name", "datasets")}
    known = {name: value.strip() if isinstance(value, str) else value for name, value in known.items()}
    _check(path, known, card.text if card is not None else "", statement)
    metadata = _collect_metadata(folder, statement)
    if card is None:
        return _fill_template(folder, repo, metadata, statement)
    for name, value in metadata.items():
        if not getattr(card.data, name, None):
            setattr(card.data, name, value)
    licences = describe_licences(folder)
    if licences and HEADING not in card.text:
        card.text = f"{card.text.rstrip()}\n\n{licences}\n"
    if statement.data and not _DATA_HEADING.search(card.text):
        card.text = f"{card.text.rstrip()}\n\n## Data\n\n{statement.data}\n"
    return str(card)


def _check(path: Path, known: Mapping[str, object], text: str, statement: Statement) -> None:
    if known["license"] and statement.license and known["license"] != statement.license:
        raise ValueError(
            f"{path} says license: {known['license']}, not {statement.license}; change the card or leave it out"
        )
    missing = []
    license = known["license"] or statement.license
    if not license:
        missing.append("a licence (`license:` in the card, or --license apache-2.0)")
    elif license in ("unknown", "other") and not known["license_name"]:
        missing.append(f"the licence's name (`license_name:` and `license_link:` in the card; {license} says nothing)")
    if not (known["datasets"] or statement.datasets or statement.data or _DATA_HEADING.search(text)):
        missing.append(
            'what it was trained on (a "## Data" section or `datasets:` in the card, or --dataset owner/name or '
            '--data "…")'
        )
    if missing:
        raise ValueError(f"nothing is published without {' and '.join(missing)}")


def _collect_metadata(folder: Path, statement: Statement) -> CardMetadata:
    """The entries of the card's YAML block, in order, without empty ones."""
    record = _read_if_there(folder / EXPORT_FILE)
    vocabulary = read_vocabulary(folder / VOCABULARY_FILE)
    media, is_flat = vocabulary.media, vocabulary.positions.is_flat
    base = record.get("base_model")
    found: CardMetadata = {"library_name": "transformers" if is_flat else "unimodal", "pipeline_tag": "any-to-any"}
    if statement.license:
        found = {"license": statement.license, **found}
    if base:
        found["base_model"] = str(base)
        if relation := record.get("base_model_relation"):
            found["base_model_relation"] = str(relation)
    if statement.datasets:
        found["datasets"] = list(statement.datasets)
    found["tags"] = ["unimodal", *(task for name in media for task in TASKS.get(name, ()))]
    return found


def _fill_template(folder: Path, repo: str, metadata: CardMetadata, statement: Statement) -> str:
    from huggingface_hub import ModelCard, ModelCardData

    config, vocabulary = read_json(folder / CONFIG_FILE), read_vocabulary(folder / VOCABULARY_FILE)
    codecs = [_describe_codec(folder, name) for name in vocabulary.media]
    data = [statement.data or ""]
    data += [f"- [{name}](https://huggingface.co/datasets/{name})" for name in statement.datasets]
    card = ModelCard.from_template(
        ModelCardData(**metadata),
        template_path=str(TEMPLATE),
        repo=repo,
        title=repo.rpartition("/")[2],
        architecture=describe_model(folder).architecture,
        millions=f"{count_stored(folder) / 1e6:,.1f}",
        rows=f"{config.get('vocab_size', vocabulary.size):,}",
        media=_join_names(vocabulary.media),
        media_names=vocabulary.media,
        summed=_join_names([name for name in vocabulary.media if vocabulary.is_summed(name)]),
        modalities=_join_names(("text", *vocabulary.media)),
        base=metadata.get("base_model"),
        samples=list(_list_samples(folder)),
        figures=[
            (suite, name, f"{value:g}")
            for suite, values in collect_figures(folder).items()
            for name, value in flatten_figures(values)
        ],
        data="\n".join(line for line in data if line),
        licences=describe_licences(folder),
        codecs="; ".join(codecs) or "there are none, it is text only",
    )
    return str(card).rstrip() + "\n"


def count_stored(folder: Path) -> int:
    """The number of values in the decoder's weight files, read from their headers."""
    count = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                size = 1
                for length in tensor["shape"]:
                    size *= length
                count += size
    return count


def _describe_codec(folder: Path, modality: str) -> str:
    """A medium's tokenizer in words: "image by `vq`, 64×64 pixels"."""
    config = _read_if_there(locate_tokenizer(folder, modality) / CONFIG_FILE)
    named = {"image_size": "{0}×{0} pixels", "num_frames": "{0} frames", "fps": "{0} a second"}
    named["sample_rate_hz"] = "{0:,} samples a second"
    facts = [words.format(config[name]) for name, words in named.items() if name in config]
    return f"{modality} by `{config.get('family', '?')}`" + (f", {', '.join(facts)}" if facts else "")


def _list_samples(folder: Path) -> Iterator[tuple[str, bool]]:
    """(file, whether it is a picture) of the gallery and of `samples/`."""
    for path in [*sorted(folder.glob("gallery.*")), *sorted((folder / "samples").glob("*"))]:
        if path.suffix.lower() in (*_PICTURES, *_SAMPLES):
            yield path.relative_to(folder).as_posix(), path.suffix.lower() in _PICTURES


# ---- figures


def collect_figures(folder: Path) -> dict[str, dict[str, object]]:
    """Suite → its figures, from all reports of `unimodal evaluate` in the folder."""
    return {name: values for report in _read_reports(folder) for name, values in report.suites.items()}


@dataclass(frozen=True)
class _Report:
    """The part of a report of `unimodal evaluate` that a card needs."""

    suites: dict[str, dict[str, object]]
    seed: object
    limit: object


def _read_reports(folder: Path) -> Iterator[_Report]:
    for path in sorted(folder.glob("report*.json")):
        report = read_json(path)
        suites = report.get("suites")
        found = suites.items() if isinstance(suites, dict) else ()  # another file of such a name has none
        kept = {str(name): values for name, values in found if isinstance(values, dict)}
        yield _Report(kept, report.get("seed"), report.get("limit"))


def flatten_figures(figures: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, float]]:
    """(name, number) of every figure; the names of nested ones are joined by dots."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from flatten_figures(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


def make_eval_results(folder: Path, dataset: str) -> dict[str, str]:
    """File name → YAML for `.eval_results/`: a file for each suite, with a task for each of its figures.

    dataset: hub id of the evaluation data or of their description.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    settings = {}
    for report in _read_reports(folder):
        for suite in report.suites:
            settings[suite] = f"unimodal evaluate, seed {report.seed}, limit {report.limit}"
    files = {}
    for suite, values in collect_figures(folder).items():
        entries = [
            EvalResultEntry(dataset_id=dataset, task_id=f"{suite}.{name}", value=value, notes=settings[suite])
            for name, value in flatten_figures(values)
        ]
        if entries:
            text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
            files[f"{EVAL_RESULTS}/{re.sub(r'[^A-Za-z0-9_-]', '_', suite)}.yaml"] = text
    return files


def _join_names(names: Sequence[str]) -> str:
    """The media in one phrase: `pictures, sound and video`."""
    words = [WORDS.get(name) or f"{MEDIA[name].noun}s" for name in names]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


def _read_if_there(path: Path) -> dict[str, object]:
    """The JSON object in a file; {} if there is none."""
    return read_json(path) if path.is_file() else {}
