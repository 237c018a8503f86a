"""Makes the corpus of smol: pictures, clips, speech and text as token shards in the vocabulary behind SmolLM2's rows.

    python recipes/prepare_smol.py [recipes/configs/smol_data.yaml] [--set documents.image_to_name=2000]

Reads the prepared data and the codes of recipes/encode_media.py, which are those of the tokenizers in ``media``.
Writes to ``out`` a folder of shards for each source and ``row_words.json``: for every code that stands for something
that has a name, the words whose rows its row is initialised from. So that the base keeps what it knows, it answers
questions about everyday things first, and is trained on its own answers (sequence-level distillation, arXiv 1606.07947,
with the model as its own teacher), on definitions and on pages of novels.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from unimodal.coder.media_coder import MediaCoder
from unimodal.config import Config
from unimodal.data import encoded_media, plain_text, sources
from unimodal.data.encoded_tasks import open_tasks
from unimodal.data.order import make_generator
from unimodal.data.token_shards import write_token_shards
from unimodal.data.tokenized import collect_hashes
from unimodal.files import write_text_atomically
from unimodal.model.base import SMOLLM2, LoadedBase, load_base
from unimodal.sequence.document import Document, Turn
from unimodal.sequence.short_pictures import find_last_rows, leave_out
from unimodal.sequence.templates.own import Rendered, Template
from unimodal.text.tokenizer import TextTokenizer
from unimodal.training.command import run_recipe
from unimodal.tuning.vocabulary import make_template, open_media

ABOUT = ("What is {a}?", "Tell me about {a}.", 'Write a sentence with the words "{name}".', "What is {a} good for?")
QUESTIONS = (
    "What is the capital of France?", "What is the capital of Japan?", "What is the capital of Italy?",
    "What is the capital of Egypt?", "What is the capital of Canada?", "How many days are in a week?",
    "How many legs does a spider have?", "What color is the sky?", "What do bees make?", "What is the largest ocean?",
    "Who wrote Romeo and Juliet?", "What is two plus three?", "Why do leaves fall in autumn?", "Hello, how are you?",
    "Who are you?", "What can you do?", "Tell me a short joke.", "Give me a tip for a good night's sleep.",
    "How do I boil an egg?", "What is water made of?", "Name three fruits.", "Name three animals that live in the sea.",
    "What is the opposite of hot?", "Translate \"good morning\" into French.", "What is the moon?",
)  # fmt: skip


TEXT_SOURCES = ("definitions", "novels")


class SmolData(Config):
    base: str = SMOLLM2
    media: Path = Path("model_cards/nano")
    data: Path = Path("data/prepared")
    raw: Path = Path("data/raw")
    out: Path = Path("data/prepared/smol")
    balance: float = 0.5  # 0: every item equally often, 1: every group of concepts
    seed: int = 0
    max_speech_codes: int = 110  # longer utterances are left out (31.25 codes a second; 56.25 of nano 2's tokenizer)
    #: share of the pictures to be named that are shown by their first codes alone (unimodal/sequence/short_pictures.py)
    short_pictures: float = 0.0
    answers: int = 800  # questions that the base answers
    answer_tokens: int = 48
    batch: int = 16
    threads: int = 0
    documents: dict[str, int] = {  # drawn of each source: the tasks of unimodal/data/encoded_tasks.py, and of text
        "image_to_name": 12000,
        "text_to_image": 8000,
        "text_to_styled_image": 4000,
        "audio_to_text": 4000,
        "text_to_audio": 4000,
        "video_to_name": 1000,
        "text_to_video": 1000,
        "definitions": 4000,
        "novels": 2000,
    }


def open_media_sources(cfg: SmolData, media: MediaCoder) -> dict[str, sources.Source]:
    """The sources of nano's tasks, with nano's wording, of codes that the model's own tokenizers made."""
    names = [name for name, count in cfg.documents.items() if count and name not in TEXT_SOURCES]
    return open_tasks(cfg.data, names, media.sha256, max_audio_codes=cfg.max_speech_codes)


def make_questions(cfg: SmolData, labels: Sequence[str]) -> list[str]:
    draws = make_generator(cfg.seed, "questions")
    asked = list(QUESTIONS)
    for label in sorted(labels, key=lambda _: draws.random()):
        if len(asked) >= cfg.answers:
            break
        asked.append(sources.pick(draws, ABOUT).format(a=sources.add_article(label), name=label))
    return asked[: cfg.answers]


@torch.inference_mode()
def answer_by_base(base: LoadedBase, asked: Sequence[str], cfg: SmolData) -> list[str]:
    """The base's own greedy answers, in its own chat format, cut at the end of a sentence; "" where none ends."""
    text = TextTokenizer(base.tokenizer)
    special = {token["content"]: token["id"] for token in base.tokenizer["added_tokens"]}
    start, stop = special["<|im_start|>"], special["<|im_end|>"]
    prompts = [
        [start, *text.encode(f"user\n{question}"), stop, *text.encode("\n"), start, *text.encode("assistant\n")]
        for question in asked
    ]
    found = []
    for first in range(0, len(prompts), cfg.batch):
        batch = prompts[first : first + cfg.batch]
        longest = max(map(len, batch))
        ids = torch.tensor([[stop] * (longest - len(p)) + p for p in batch])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in batch])
        written = base.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=cfg.answer_tokens, do_sample=False, use_cache=True,
            eos_token_id=stop, pad_token_id=stop,
        )[:, longest:].tolist()  # fmt: skip
        for row in written:
            ended = stop in row
            answer = text.decode(row[: row.index(stop)] if ended else row).strip()
            last = len(answer) if ended else max(answer.rfind(mark) for mark in ".!?") + 1
            found.append(answer[:last].strip())
        print(f"the base has answered {len(found)} of {len(asked)}", file=sys.stderr, flush=True)
    return found


def make_text_documents(cfg: SmolData, base: LoadedBase, labels: Sequence[str]) -> dict[str, list[Document]]:
    """Documents of chat, definitions and novels; passages of novels are cut in two, the second part is the answer."""
    kept = cfg.out / "answers.json"
    asked = make_questions(cfg, labels)
    if not kept.is_file() or list(json.loads(kept.read_text())) != asked:
        pairs = dict(zip(asked, answer_by_base(base, asked, cfg), strict=True))
        write_text_atomically(kept, json.dumps(pairs, indent=1, ensure_ascii=False) + "\n")
    answers = json.loads(kept.read_text())
    chat = [Document([Turn("user", q), Turn("assistant", a)]) for q, a in answers.items() if a]
    draws = make_generator(cfg.seed, "text")
    meanings = plain_text.read_definitions(cfg.raw)
    told = [
        Document([Turn("user", f'What does "{word}" mean?'), Turn("assistant", meaning)])
        for word, meaning in (sources.pick(draws, meanings) for _ in range(cfg.documents["definitions"]))
    ]
    novels = []
    pages = plain_text.read_paragraphs(cfg.raw)
    for _ in range(cfg.documents["novels"]):
        words = sources.pick(draws, pages).split()[:110]
        cut = 4 + int(draws.random() * 12)
        novels.append(
            Document([Turn("user", "Continue: " + " ".join(words[:cut])), Turn("assistant", " ".join(words[cut:]))])
        )
    return {"chat": chat, "definitions": told, "novels": novels}


def write(cfg: SmolData, template: Template, name: str, documents: list[Document]) -> None:
    short = cfg.short_pictures if name == "image_to_name" else 0.0
    last_rows = find_last_rows(template.vocabulary) if short else range(0)

    def make(number: int) -> Rendered:
        rendered = template.render(documents[number])
        return (
            leave_out(rendered, last_rows) if make_generator(cfg.seed, "shorten", number).random() < short else rendered
        )

    record = {"seed": cfg.seed, "balance": cfg.balance, "source": name, "short_pictures": short}
    hashes = collect_hashes(template.vocabulary)
    shards = write_token_shards(cfg.out / name, make, len(documents), template.vocabulary.size, hashes, record)
    assert shards is not None
    tokens = sum(len(shards[i]) for i in range(0, len(shards), 50)) * 50 / 1e3
    print(f"{name}: {len(shards)} documents, about {tokens:,.0f} thousand tokens", file=sys.stderr, flush=True)


def run(cfg: SmolData, dry_run: bool) -> None:
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    base = load_base(cfg.base, "bfloat16")
    media = open_media(cfg.media)
    assert media is not None
    template = make_template(TextTokenizer(base.tokenizer), base.num_rows, media)
    listed, image = open_media_sources(cfg, media), media.get_tokenizer("image")
    codes = encoded_media.read_codes(cfg.data / "image_codes.npz", image.sha256)["codes"]
    pictures = encoded_media.load_pictures(cfg.data, codes)
    words = sources.name_known(pictures, template.vocabulary, image.exemplar_blocks, image.code_names)
    if dry_run:
        for name, source in listed.items():
            print(f"{name}: {len(source)} items, e.g. {len(template.render(source.make_document(0)))} tokens")
        return
    cfg.out.mkdir(parents=True, exist_ok=True)
    write_text_atomically(cfg.out / "row_words.json", json.dumps(words, ensure_ascii=False) + "\n")
    for name, source in listed.items():
        plan = sources.plan_draws(source, cfg.documents[name], cfg.balance, cfg.seed)
        write(cfg, template, name, [source.make_document(int(item), int(draw)) for item, draw in plan])
    for name, documents in make_text_documents(cfg, base, sources.list_labels(pictures)).items():
        write(cfg, template, name, documents)


if __name__ == "__main__":
    run_recipe(SmolData, run)
