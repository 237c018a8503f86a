"""Trains nano, a stock Llama of 10 to 20 M parameters, from scratch on the joint vocabulary of text, pictures, clips
and sounds.

    python recipes/train_nano.py recipes/configs/nano.yaml [--set loop.steps=200] [--dry-run]

Reads the codes of recipes/encode_media.py; writes checkpoints and metrics under ``run`` and at the end the weights with
the text tokenizer and the vocabulary manifest to ``out``. ``weights`` says which tasks are mixed, and how often each
(`unimodal/data/encoded_tasks.py`): every medium named and made, scenes asked about, drawn and talked about.
``tokenizers`` names the folder of each medium's tokenizer, of any family. A training of several parts names the run or
the model of the part before in ``initial``, which may have had fewer media. Interrupt it when you like; the same
command goes on.

Shapes: V rows, D width.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from unimodal.config import MAY_CHANGE, Config
from unimodal.data import encoded_media, sources
from unimodal.data.encoded_tasks import CODE_FILES, SPEECH_TASKS, open_for_texts, open_tasks
from unimodal.data.mixture import Batches, Mixture
from unimodal.data.order import make_generator
from unimodal.files import write_bytes_atomically, write_text_atomically
from unimodal.model.attention import Packing, register_attention, set_attention
from unimodal.model.build import NanoConfig, build_nano, count_parameters
from unimodal.model.few_levels import round_weights
from unimodal.model.structured_rows import add_structure, load_rows, remove_structure
from unimodal.model_folder.layout import locate_tokenizer
from unimodal.objectives.ctc import (
    compute_ctc_loss,
    find_spoken_answers,
    find_spoken_block,
    find_spoken_requests,
)
from unimodal.objectives.next_token import HeadGroups, compute_cross_entropy, shift_labels
from unimodal.sequence.packing import PackedBatch
from unimodal.sequence.short_pictures import find_last_rows, leave_out
from unimodal.sequence.templates.own import Rendered, Template
from unimodal.text.hub_tokenizer import save_hub_tokenizer
from unimodal.text.tokenizer import TextTokenizer, train_text_tokenizer
from unimodal.tokenizers import MediaTokenizer
from unimodal.tokenizers.nano.video import VideoTokenizer, VideoTokenizerConfig
from unimodal.tokenizers.registry import find_continued_medium, load_tokenizer
from unimodal.training.checkpoint import load_checkpoint
from unimodal.training.command import Flags, run_training
from unimodal.training.identity import describe_resume, describe_settings, hash_files, hash_json, hash_weights
from unimodal.training.loop import Trainer
from unimodal.training.settings import LoopConfig
from unimodal.tuning.rows import describe_codes
from unimodal.vocabulary import Vocabulary, make_media_vocabulary, read_vocabulary
from unimodal.vocabulary.match import match_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MEDIA = ("image", "audio", "video")
#: what says what the media show, in the folder of the data
WORDS = ("concepts.json", "speech/utterances.json", "sounds/sounds.json", "scenes/scenes.jsonl", "scenes/moves.jsonl")


class NanoRecipe(Config):
    data: Annotated[Path, MAY_CHANGE] = Path("data/prepared")
    models: Annotated[Path, MAY_CHANGE] = Path("data/models")
    run: Annotated[Path, MAY_CHANGE] = Path("data/runs/nano")
    out: Annotated[Path, MAY_CHANGE] = Path("data/models/nano")
    #: medium → folder of its tokenizer, where it is not `models`/MEDIUM_tokenizer
    tokenizers: Annotated[dict[str, Path], MAY_CHANGE] = {}
    #: a run or a finished model to begin from: its text tokenizer and weights, no optimizer; a model may lack media
    initial: Annotated[Path | None, MAY_CHANGE] = None
    text_pieces: int = 1024
    decoder: NanoConfig = NanoConfig(hidden_size=256, num_layers=7, num_heads=4, num_kv_heads=4, intermediate_size=704)
    loop: LoopConfig = LoopConfig(
        steps=2500, learning_rate=2e-3, final_learning_rate=5e-5, warmup_steps=50, log_every=20, betas=(0.9, 0.98),
        optimizer="muon", precision="bfloat16",
    )  # fmt: skip
    tokens_per_step: int = 3072
    planned_documents: int = 80_000  # before the same documents come again in another order
    balance: float = 0.5  # 0: every item equally often, 1: every group of concepts
    default_style: str = "noto"  # what is drawn when no style is asked for
    text_dropout: float = 0.1  # share of wishes without their words, for guidance
    #: share of the pictures to be named of which only the codes before the last segment are shown: where codes are
    #: ordered these say what it is, and more pictures are seen at the same cost
    short_pictures: float = 0.0
    ctc_weight: float = 0.3  # weight of the loss that reads the transcript at the audio codes (objectives/ctc.py)
    speaking_ctc_weight: float = 0.0  # weight of the same loss at the codes of spoken answers
    ctc_block: str = ""  # the block whose codes say what is spoken; by default the first one of any length
    weight_levels: int = 0  # of the saved weights on either side of 0; 0 keeps half precision
    text_weight: float = 2.0  # of a text label relative to a media code, since answers in words are short
    max_speech_codes: int = 160  # longer utterances and sounds are left out (31.25 codes a second)
    weights: dict[str, float] = {  # share of documents; tasks without a weight are left out
        "image_to_name": 0.24,
        "text_to_image": 0.2,
        "text_to_styled_image": 0.1,
        "audio_to_text": 0.2,
        "text_to_audio": 0.18,
        "video_to_name": 0.03,
        "text_to_video": 0.05,
    }


SpeechTask = sources.SpeechToText | sources.TextToSpeech


class Documents:
    """A source with its plan, rendered when asked: ``documents[i]`` is the i-th of the plan."""

    def __init__(self, source: sources.Source, count: int, template: Template, cfg: NanoRecipe):
        self.source, self.template = source, template
        self.plan = sources.plan_draws(source, count, cfg.balance, cfg.loop.seed)
        self.text_dropout = cfg.text_dropout if source.name.startswith("text_to") else 0.0
        self.short_pictures = cfg.short_pictures if source.name == "image_to_name" else 0.0
        self.last_rows = find_last_rows(template.vocabulary) if self.short_pictures else range(0)
        self.seed = cfg.loop.seed

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Rendered:
        item, draw = (int(number) for number in self.plan[index])
        document = self.source.make_document(item, draw)
        if make_generator(self.seed, "drop", self.source.name, item, draw).random() < self.text_dropout:
            document = document.drop_text()
        rendered = self.template.render(document)
        if make_generator(self.seed, "shorten", self.source.name, item, draw).random() < self.short_pictures:
            rendered = leave_out(rendered, self.last_rows)
        return rendered


def collect_row_features(vocabulary: Vocabulary, tokenizers: Mapping[str, MediaTokenizer]) -> dict[range, Tensor]:
    """The features that rows of media begin with: prototypes, thumbnails and levels, by block."""
    found = {block.rows: describe_codes(tokenizers[block.modality], block) for block in vocabulary.blocks}
    return {rows: features for rows, features in found.items() if features is not None}


def collect_row_words(
    vocabulary: Vocabulary, pictures: encoded_media.EncodedConcepts, tokenizer: MediaTokenizer, text: TextTokenizer
) -> dict[range, list[list[int]]]:
    """The text rows of the name of each code that stands for a known thing: a prototype, a look, a labelled thing."""
    named = sources.name_known(pictures, vocabulary, tokenizer.exemplar_blocks, tokenizer.code_names)
    return {
        vocabulary.get_block_range(block): [text.encode(f" {words}") for words in names]
        for block, names in named.items()
    }


def list_training_texts(all_sources: list[sources.Source], most: int = 30_000) -> Iterator[str]:
    """The texts that the text tokenizer is trained on: those of the first two draws of at most so many items each."""
    for source in all_sources:
        for item in range(0, len(source), -(-len(source) // most)):
            for draw in range(2):
                yield from (turn.text for turn in source.make_document(item, draw).turns if turn.text)


def open_tokenizers(cfg: NanoRecipe) -> dict[str, MediaTokenizer]:
    """The tokenizer of each medium that has a folder. Raises ValueError for a folder that is named and not there."""
    found: dict[str, MediaTokenizer] = {}
    for medium in MEDIA:
        folder = cfg.tokenizers.get(medium, locate_tokenizer(cfg.models, medium))
        if folder.exists() or medium in cfg.tokenizers:
            continued = find_continued_medium(folder)
            found[medium] = load_tokenizer(folder, None if continued is None else found.get(continued))
    if not found:
        raise ValueError(f"there is no tokenizer in {cfg.models}; train one, or name its folder in `tokenizers`")
    image = found.get("image")
    if "video" not in found and image is not None and image.picture_size is not None:
        with suppress(ValueError):  # pictures that cannot begin a clip
            # clips come later; their rows are laid out now
            found["video"] = VideoTokenizer(VideoTokenizerConfig(image_size=image.picture_size[0]), image)
    return found


def map_codes_to_words(
    speech: encoded_media.EncodedSpeech, vocabulary: Vocabulary, audio: range, text: TextTokenizer
) -> Callable[[Tensor], Tensor | None]:
    """From the rows of an utterance that lie in `audio` to the ids of its words, None for rows that are no utterance.

    audio: the block of `find_spoken_block`.
    """
    known = {}
    for item in range(len(speech)):
        rows = np.array(vocabulary.encode_span("audio", speech.get_codes(item)))
        known[rows[(rows >= audio.start) & (rows < audio.stop)].astype(np.int64).tobytes()] = item

    def read_words(rows: Tensor) -> Tensor | None:
        item = known.get(rows.numpy().tobytes())
        return None if item is None else torch.tensor(text.encode(f" {speech.get_text(item)}"))

    return read_words


def make_tensors(batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor]:
    """→ ids, labels, position ids, each int64 [B, N]."""
    return tuple(
        torch.from_numpy(np.ascontiguousarray(a)).long() for a in (batch.ids, batch.labels, batch.position_ids)
    )  # type: ignore[return-value]


def begin_from(backbone: PreTrainedModel, folder: Path, vocabulary: Vocabulary) -> int:
    """The weights of an earlier run, or of a finished model; → the steps made so far, those of the parts before it too;
    0 of a model of other rows.

    A model with other media gives the rows of its text, of its controls and of the blocks that both have.
    """
    earlier = load_checkpoint(folder)
    if earlier is not None:
        backbone.load_state_dict(earlier["model"])
        return int(earlier["step"]) + read_initial_steps(folder)
    if not (folder / "model.safetensors").is_file():
        raise ValueError(f"{folder} holds no checkpoint and no model to begin from; train it first or drop `initial`")
    from safetensors.torch import load_file

    state = {name.removeprefix("model."): t.float() for name, t in load_file(folder / "model.safetensors").items()}
    embedding, rows = backbone.get_input_embeddings(), state.pop("embed_tokens.weight")
    theirs = read_vocabulary(folder / "vocabulary.json")
    if rows.shape[1] != embedding.weight.shape[1]:
        raise ValueError(f"the model in {folder} has rows of width {rows.shape[1]}; give its own sizes")
    load_rows(embedding, take_rows(embedding.weight.detach().clone(), rows, vocabulary, theirs))
    found = backbone.load_state_dict(state, strict=False)
    if found.unexpected_keys or any("embed_tokens" not in name for name in found.missing_keys):
        raise ValueError(f"the model in {folder} has other layers than these settings; give its own sizes")
    recipe = folder / "recipe.json"
    if theirs.to_dict() != vocabulary.to_dict() or not recipe.is_file():
        return 0
    return int(json.loads(recipe.read_text())["config"]["loop"]["steps"]) + read_initial_steps(folder)


def read_initial_steps(folder: Path) -> int:
    """The steps that the parts before a run or a model had made, as its record has them; 0 without one."""
    recipe = folder / "recipe.json"
    return int(json.loads(recipe.read_text()).get("initial_steps", 0)) if recipe.is_file() else 0


def take_rows(fresh: Tensor, rows: Tensor, ours: Vocabulary, theirs: Vocabulary) -> Tensor:
    """Rows [V, D] of our vocabulary, begun anew, with those of another model's rows that mean the same."""
    for mine, other in match_rows(ours, theirs):
        fresh[mine.start : mine.stop] = rows[other.start : other.stop]
    return fresh


def save_decoder(model: PreTrainedModel, folder: Path, levels: int = 0) -> None:
    """``config.json``, ``generation_config.json`` and half-precision ``model.safetensors`` of a stock Llama."""
    from safetensors.torch import save

    state = {name: round_weights(t.detach(), levels).contiguous() for name, t in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(folder / "model.safetensors", save(state, metadata={"format": "pt"}))
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.dtype = torch.float16
    model.config.use_cache = True
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


def run(cfg: NanoRecipe, flags: Flags) -> None:
    if cfg.loop.threads:
        torch.set_num_threads(cfg.loop.threads)
    tokenizers = open_tokenizers(cfg)
    hashes = {medium: tokenizer.sha256 for medium, tokenizer in tokenizers.items()}
    names = [name for name, weight in cfg.weights.items() if weight]
    all_sources = open_tasks(cfg.data, names, hashes, cfg.default_style, cfg.max_speech_codes)
    known = cfg.run if (cfg.run / "tokenizer.json").exists() and not flags.restart else cfg.initial
    if known is not None:
        text = TextTokenizer.load(known)
        write_text_atomically(cfg.run / "tokenizer.json", (known / "tokenizer.json").read_text())
    else:
        # of every task, since a later part may have those that this one leaves out
        text = train_text_tokenizer([*list_training_texts(open_for_texts(cfg.data))], cfg.text_pieces, cfg.run)
    vocabulary = make_media_vocabulary(tokenizers.values(), text.size, text_reserved=(), text_sha256=text.sha256)
    template = Template(vocabulary, text)
    shares = {name: cfg.weights[name] for name in all_sources}
    sets = {
        name: Documents(
            source,
            max(1000, int(cfg.planned_documents * shares[name] * 1.2)),
            template,
            cfg,
        )
        for name, source in all_sources.items()
    }
    pad = vocabulary.get_control_id("<|pad|>")
    mixture = Mixture(sets, shares, seed=cfg.loop.seed)
    batches = Batches(mixture, cfg.tokens_per_step, cfg.tokens_per_step, pad, "pack", batches_per_window=8)
    bos, end = vocabulary.get_control_id("<|bos|>"), vocabulary.get_control_id("<|end_of_turn|>")
    model = build_nano(vocabulary.size, cfg.decoder, pad_id=pad, bos_id=bos, eos_id=end, seed=cfg.loop.seed)
    print(f"{count_parameters(model) / 1e6:.1f} M parameters, {vocabulary.size} rows", file=sys.stderr)
    for name, documents in sets.items():
        example = documents[0]
        print(f"{name}: {len(documents.source)} items, e.g. {len(example)} tokens", file=sys.stderr)
    data_files = [cfg.data / file for file, tasks in CODE_FILES.items() if not all_sources.keys().isdisjoint(tasks)]
    identity = describe_settings(cfg) | {
        "codes": hash_files(data_files),
        "concepts and texts": hash_files([path for path in map(cfg.data.joinpath, WORDS) if path.is_file()]),
        "text tokenizer": text.sha256[:16],
        "vocabulary": hash_json(vocabulary.to_dict()),
    }
    if flags.dry_run:
        return print(describe_resume(cfg.run, identity, flags.restart, ("initial",)), file=sys.stderr)
    cfg.run.mkdir(parents=True, exist_ok=True)
    vocabulary.save(cfg.run / "vocabulary.json")
    register_attention()
    set_attention(model, "varlen")
    embedding = model.get_input_embeddings()
    naming = all_sources.get("image_to_name")
    # prototypes, looks and labelled things stand for what is known, and their rows for the words of these
    words = {}
    if isinstance(naming, sources.MediaToName):
        words = collect_row_words(vocabulary, naming.media, tokenizers["image"], text)
    add_structure(embedding, collect_row_features(vocabulary, tokenizers), words=words, seed=cfg.loop.seed)
    backbone = model.get_decoder()
    groups = HeadGroups.from_vocabulary(vocabulary)
    text_rows = range(text.size)
    classes = torch.tensor([*text_rows, pad])  # the padding row is the blank
    spoken = [task for name in SPEECH_TASKS if isinstance(task := all_sources.get(name), SpeechTask)]
    reads = bool(spoken) and bool(cfg.ctc_weight or cfg.speaking_ctc_weight)
    audio_rows = find_spoken_block(vocabulary, cfg.ctc_block) if reads else range(0)
    words_of = map_codes_to_words(spoken[0].speech, vocabulary, audio_rows, text) if reads else None

    def loss(batch: PackedBatch, step: int) -> tuple[Tensor, dict[str, float]]:
        ids, labels, positions = make_tensors(batch)
        with parametrize.cached():
            hidden = backbone(
                input_ids=ids, position_ids=positions, use_cache=False, packing=Packing.from_position_ids(positions)
            )
            result = compute_cross_entropy(
                hidden.last_hidden_state, ids, shift_labels(labels, positions), embedding, groups,
                modality_weights={"text": cfg.text_weight},
            )  # fmt: skip
            total, utterances = result.mean, {}
            if words_of is not None and cfg.ctc_weight:
                found = find_spoken_answers(ids, labels, positions, audio_rows, text_rows)
                flat = ids.reshape(-1)  # sounds that are named are no utterances
                heard = [(places, told) for places, told in found if words_of(flat[places]) is not None]
                utterances["ctc"] = (cfg.ctc_weight, heard)
            if words_of is not None and cfg.speaking_ctc_weight:
                said = find_spoken_requests(ids, labels, positions, audio_rows, words_of)
                utterances["ctc_speaking"] = (cfg.speaking_ctc_weight, said)
            numbers = {f"loss_{name}": part / count for name, (part, count) in result.per_block.items() if count}
            for name, (weight, read) in utterances.items():
                reading = compute_ctc_loss(hidden.last_hidden_state, [embedding.weight[classes]], read)
                if reading is not None:
                    total = total + weight * reading
                    numbers[name] = float(reading.detach())
        return total, numbers

    initial_steps = 0
    if cfg.initial is not None:
        initial_steps = begin_from(backbone, cfg.initial, vocabulary)
        identity["initial"] = hash_weights(backbone)
    trainer = Trainer(backbone, batches, loss, cfg.loop, cfg.run, identity=identity, restart=flags.restart)
    trainer.run()
    trainer.use_ema()
    remove_structure(embedding)
    model.lm_head.weight = embedding.weight
    save_decoder(model, cfg.out, cfg.weight_levels)
    save_hub_tokenizer(cfg.out, vocabulary, text, model_max_length=cfg.decoder.max_positions)
    vocabulary.save(cfg.out / "vocabulary.json")
    of_data = {str(p.relative_to(cfg.data)): hashlib.sha256(p.read_bytes()).hexdigest() for p in data_files}
    earlier = cfg.initial / "recipe.json" if cfg.initial else None
    record = {
        "config": cfg.model_dump(mode="json"), "initial_steps": initial_steps, "data_sha256": of_data,
        "epochs": mixture.count_epochs(),
        "initial_recipe": json.loads(earlier.read_text()) if earlier and earlier.is_file() else None,
    }  # fmt: skip
    for folder in (cfg.run, cfg.out):  # a later stage that begins from either tells of this one
        write_text_atomically(folder / "recipe.json", json.dumps(record, indent=2) + "\n")
    print(f"wrote {cfg.out}", file=sys.stderr)


if __name__ == "__main__":
    run_training(NanoRecipe, run)
