"""What continuous media, Fourier heads, sub-codes, readers and motion buy on a small model, in a minute or two each.

    python tools/study_mixed.py fourier subcodes      # one of STUDIES, or several; rows of docs/objectives.md

Pictures are emoji of `data/prepared` (`python tools/prepare_images.py`, `tools/prepare_clips.py`). What is measured is
printed as JSON and kept in `--out`/NAME.json. One processor thread, one seed.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import unimodal  # noqa: F401 (before transformers)
from unimodal.model.attention import set_attention
from unimodal.model.build import NanoConfig, build_nano
from unimodal.model.depth_decoder import DepthSettings, add_depth_decoder
from unimodal.model.fourier_head import FourierSettings, add_fourier_heads, find_scoring_head
from unimodal.model.motion_decoder import CrossFrameDecoder, MotionSettings
from unimodal.objectives.distributions import compute_logits
from unimodal.objectives.objective import Objective
from unimodal.objectives.packed import PackedLoss
from unimodal.objectives.smoothness import measure_smoothness
from unimodal.pipeline import load
from unimodal.sequence.document import Document, Turn
from unimodal.sequence.document import Image as Picture
from unimodal.tokenizers.nano.video import VideoTokenizer
from unimodal.tokenizers.parts.split_ids import split_ids
from unimodal.tokenizers.readers.come_vl import LayerMix
from unimodal.tuning.study import Figures, run_recipe, run_studies
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

ROOT = Path(__file__).resolve().parents[1]
LEVELS, CELLS = 64, 16


class Study:
    """The data, folders and sizes that the studies share."""

    def __init__(self, args: Namespace) -> None:
        self.model, self.out, self.data, self.steps = args.model, args.out, args.data, args.steps
        self.pictures = args.pictures

    def read_arrays(self, name: str) -> dict[str, np.ndarray]:
        with np.load(self.data / f"{name}.npz") as arrays:
            return {key: arrays[key] for key in ("pixels", "concept", "style", "frames") if key in arrays.files}

    def name_concepts(self) -> list[str]:
        return [str(concept["label"]) for concept in json.loads((self.data / "concepts.json").read_text())]

    def run_recipe(self, name: str, *settings: str) -> list[dict[str, float]]:
        """Run a recipe; its metrics."""
        run_recipe(ROOT / "recipes" / f"{name}.py", *settings)
        [run] = [one.partition("=")[2] for one in settings if one.startswith("run=")]
        return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]

    def clear(self, *names: str) -> list[Path]:
        folders = [self.out / name for name in names]
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        return folders


# ---- small decoders from nothing, on the grey levels of pictures


def read_levels(study: Study, num: int) -> Tensor:
    """Pictures as 4×4 cells of their mean grey, each one of 64 ordered levels: int64 [P, 16]."""
    pixels = torch.from_numpy(study.read_arrays("images")["pixels"])
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[:num]
    grey = pixels[order].float().mean(-1)[:, None]
    return (F.avg_pool2d(grey, 16).flatten(1) / 256 * LEVELS).long()


def train_small(
    study: Study, blocks: Sequence[Block], codes: Tensor, change: Callable[[torch.nn.Module, Vocabulary], None]
) -> tuple[Objective, Tensor, Tensor, int]:
    """A decoder of two layers trained on all but 400 of the codes [P, N] or [P, N, G] → (its objective, ids and further
    codes of the held-out ones, weights)."""
    vocabulary = Vocabulary.build(2, blocks, [SpanLayout("image", [Segment("image", codes.shape[1])])])
    control = vocabulary.get_control_id
    sizes = NanoConfig(
        hidden_size=96, num_layers=2, num_heads=3, num_kv_heads=3, intermediate_size=256, tie_embeddings=False
    )
    model = build_nano(
        vocabulary.size, sizes, pad_id=control("<|pad|>"), bos_id=control("<|bos|>"), eos_id=control("<|eos|>"), seed=0
    )
    change(model, vocabulary)
    set_attention(model)
    spans = [vocabulary.encode_span("image", one) for one in codes]
    folded = [vocabulary.positions.fold_array(np.array(one)) for one in spans]
    ids = torch.stack(
        [torch.tensor(one)[torch.from_numpy(first)] for one, (first, _) in zip(spans, folded, strict=True)]
    )
    further = torch.stack([torch.from_numpy(more) for _, more in folded])
    objective = PackedLoss(model, vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    places, generator = torch.arange(ids.shape[1]).expand(32, -1), torch.Generator().manual_seed(1)
    model.train()
    for _ in range(study.steps):
        some = torch.randint(0, len(ids) - 400, (32,), generator=generator)
        total, parts = objective(ids[some], ids[some], places, further[some] if further.shape[2] else None)
        optimizer.zero_grad()
        (total / parts["weight"]).backward()
        optimizer.step()
    model.eval()
    return objective, ids[-400:], further[-400:], sum(p.numel() for p in model.parameters())


@torch.no_grad()
def measure_nats(objective: Objective, ids: Tensor, further: Tensor) -> float:
    """Nats of the codes of held-out pictures, a picture."""
    places = torch.arange(ids.shape[1]).expand(len(ids), -1)
    _, parts = objective(ids, ids, places, further if further.shape[2] else None)
    return sum(summed for name, (summed, _) in parts["blocks"].items() if name.startswith("image")) / len(ids)


def study_fourier(study: Study) -> Figures:
    """64 ordered grey levels scored by a matrix and by a Fourier head, from few pictures."""
    codes, found = read_levels(study, study.pictures + 400), {}
    for frequencies in (0, 12, 32):

        def change(model: torch.nn.Module, vocabulary: Vocabulary, frequencies: int = frequencies) -> None:
            if frequencies:
                settings = FourierSettings(blocks=("image",), frequencies=frequencies, gamma=1e-6)
                add_fourier_heads(model, vocabulary, settings)

        block = Block(name="image", modality="image", size=LEVELS)
        objective, ids, further, _ = train_small(study, [block], codes, change)
        with torch.no_grad():
            states = (
                objective.model.get_decoder()(ids[:100], use_cache=False).last_hidden_state[:, :CELLS].flatten(0, 1)
            )
            rows = next(group.rows for group in objective.groups.groups if group.name == "image")
            p = compute_logits(objective.model, states, [rows]).softmax(1)
        assert find_scoring_head(objective.model) is not None
        found[f"{frequencies} frequencies" if frequencies else "matrix"] = {
            "nats_a_code": measure_nats(objective, ids, further) / CELLS,
            "smoothness": float(measure_smoothness(p).mean()),
        }
    return {"pictures": study.pictures, "held_out": 400, **found}


def study_subcodes(study: Study) -> Figures:
    """Codes of 12 bits, two neighbouring grey levels, as one code of 4,096 and as two sub-codes of 64."""
    levels = read_levels(study, study.pictures + 400)
    joint, found = levels[:, 0::2] + LEVELS * levels[:, 1::2], {}
    for name, kind in (("one code", None), ("two sub-codes", "parallel"), ("two, by a depth decoder", "transformer")):
        parts = split_ids(joint, (LEVELS, LEVELS))
        layout = "flat" if kind is None else "summed"
        sizes = [LEVELS**2] if kind is None else [LEVELS, LEVELS]
        blocks = [
            Block(name="image", modality="image", group=g, size=size, layout=layout) for g, size in enumerate(sizes)
        ]

        def change(model: torch.nn.Module, vocabulary: Vocabulary, kind: str | None = kind) -> None:
            if kind is not None:
                more = {} if kind == "parallel" else {"num_layers": 1}
                add_depth_decoder(model, vocabulary, DepthSettings(kind=kind, **more), 0)

        objective, ids, further, weights = train_small(study, blocks, joint if kind is None else parts, change)
        found[name] = {"nats_a_picture": measure_nats(objective, ids, further), "weights": weights}
    return {"pictures": study.pictures, "held_out": 400, **found}


# ---- nano


def write_rows(study: Study, name: str, num: int, draws: bool) -> tuple[Path, int]:
    """A file of rows over two styles, first those to learn from, then one for each of the last concepts: its path, and
    how many of the rows are held out."""
    arrays, names = study.read_arrays("images"), study.name_concepts()
    folder = study.out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    chosen = np.random.default_rng(0).permutation(len(names))[:num]
    rows: list[list[str]] = [[], []]
    for index in np.flatnonzero(np.isin(arrays["concept"], chosen)):
        concept, style = int(arrays["concept"][index]), str(arrays["style"][index])
        file = folder / f"{concept}_{style}.png"
        Image.fromarray(arrays["pixels"][index]).save(file)
        picture = {"type": "image", "path": file.name}
        ask = [picture, {"type": "text", "text": "What is this?"}]
        asked = [{"role": "user", "content": ask}, {"role": "assistant", "content": names[concept]}]
        drawn = [{"role": "user", "content": f"Draw {names[concept]}."}, {"role": "assistant", "content": [picture]}]
        held = style == "fluent3d" and concept % 3 == 0
        rows[held] += [json.dumps({"messages": one}) for one in ([asked, drawn] if draws else [asked])]
    (folder / "rows.jsonl").write_text("\n".join([*rows[0], *rows[1]]) + "\n")
    return folder / "rows.jsonl", len(rows[1])


def read_by(study: Study, name: str, encoders: str, *settings: str) -> Figures:
    """Nano reads pictures through these encoders: the loss of held-out names, and how many there are."""
    rows, held = write_rows(study, "reader_rows", study.pictures // 4, draws=False)
    out, run = study.clear(f"{name}_model", f"{name}_run")
    metrics = study.run_recipe(
        "train_reader", f"model={study.model}", f"encoders={encoders}", f"dataset.path={rows}", f"out={out}",
        f"run={run}", f"held_out={held}", "tokens_per_batch=1024", f"loop.steps={study.steps}", "loop.plot=false",
        "loop.learning_rate=0.003", f"loop.evaluate_every={study.steps}", "loop.warmup_steps=5", "loop.log_every=1",
        "loop.checkpoint_every_s=100000", *settings,
    )  # fmt: skip
    losses = [one["validation_loss"] for one in metrics if "validation_loss" in one]
    return {"held_out": held, "nats_a_token": losses[-1]}


def study_reader(study: Study) -> Figures:
    """Nano reads pictures by one matrix behind a frozen EfficientNet (LiMBeR)."""
    return read_by(study, "limber", "[lite0]")


def study_come_vl(study: Study) -> Figures:
    """And by two of them fused (CoME-VL), with the processor seconds that a step of one encoder's two orthogonal
    matrices takes, by both maps."""
    figures: Figures = {}
    for name in ("matrix_exp", "cayley"):
        mix, seconds = LayerMix(1280, 1, name), []
        for _ in range(2):
            began = time.process_time()
            mix(torch.randn(1, 4, 16, 1280)).square().sum().backward()
            seconds.append(time.process_time() - began)
        figures[f"seconds, {name}"] = round(min(seconds), 2)
    fusion = "fusion={hidden: 128, heads: 4, orthogonal: cayley}"
    return {**figures, **read_by(study, "come_vl", "[lite0, lite1]", fusion)}


def study_continuous(study: Study) -> Figures:
    """Nano learns to name and to draw 16 causal vectors a picture, of a small latent tokenizer made here."""
    rows, held = write_rows(study, "continuous_rows", study.pictures // 4, draws=True)
    [latents, run] = study.clear("latents", "latents_run")
    size = "{width: 96, num_layers: 2, num_heads: 3}"
    study.run_recipe(
        "train_tokenizer", "family=titok_latents", f"media={rows.parent}", f"out={latents}", f"run={run}",
        f"tokenizer={{image_size: 64, patch_size: 8, num_tokens: 16, token_width: 8, causal: true, encoder: {size}, "
        f"decoder: {size}}}", "sizes=[64]", f"loop.steps={study.steps * 3}", "loop.plot=false", "workers=0",
        "loop.learning_rate=0.001", "loop.checkpoint_every_s=100000",
    )  # fmt: skip
    found: Figures = {"held_out": held}
    for head in ("mse", "flow"):
        out, run = study.clear(f"continuous_{head}", f"continuous_{head}_run")
        metrics = study.run_recipe(
            "train_continuous", f"base={study.model}", f"tokenizer={latents}", f"dataset.path={rows}", f"out={out}",
            f"run={run}", f"held_out={held}", f"media.head={head}", "tokens_per_batch=1024", "loop.plot=false",
            f"loop.steps={study.steps}", f"loop.evaluate_every={study.steps}", "loop.log_every=1",
            "loop.warmup_steps=5", "loop.learning_rate=0.002", "loop.checkpoint_every_s=100000",
        )  # fmt: skip
        found[head] = {"first_and_last": [metrics[0].get(f"image_{head}"), metrics[-1].get(f"image_{head}")]}
    return found


def study_motion(study: Study) -> Figures:
    """What moves in the next half second of a clip, from nano's states at its frames: one frame, and three.

    The steps are the motion vectors of nano's clips, 64 of width 4 for the next four frames; they are judged by the
    frames that they move, beside the still frame and the real vectors.
    """
    model = load(study.model, device="cpu")
    tokenizer = model.coder.get_tokenizer("video")
    assert isinstance(tokenizer, VideoTokenizer)
    frames = torch.from_numpy(study.read_arrays("clips")["frames"]).permute(0, 4, 1, 2, 3)  # [P, 3, 9, 64, 64]
    moving = (frames[:, :, 5:].float() - frames[:, :, 4:5].float()).abs().mean((1, 2, 3, 4))
    clips = frames[moving.argsort(descending=True)[: study.pictures]].float() / 255
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(0))
    clips = clips[order]
    with torch.inference_mode():
        past = clips[:, :, 4]
        values = tokenizer.chunk_values(past, clips[:, :, 5:])[0].clone()  # [P, 64, 4]
        features = torch.stack([read_states(model, clips[:, :, at]) for at in (0, 2, 4)], 1)  # [P, 3, D]
    num = len(clips) - len(clips) // 4
    found: Figures = {"clips": num, "held_out": len(clips) - num}

    def judge(vectors: Tensor) -> list[float]:
        with torch.inference_mode():
            moved = tokenizer.decode_chunk(past[num:], vectors).clamp(0, 1)
        error = (moved - clips[num:, :, 5:]).square().mean((1, 2, 3, 4))
        return (-10 * error.log10()).tolist()

    still = (past[num:, :, None] - clips[num:, :, 5:]).square().mean((1, 2, 3, 4))
    found["psnr"] = {
        "still": statistics.mean((-10 * still.log10()).tolist()),
        "own": statistics.mean(judge(values[num:])),
    }
    for frames_before in (0, 2):
        torch.manual_seed(0)
        used = features[:, 2 - frames_before :].clone()
        settings = MotionSettings(past=frames_before, steps=64, width=4, hidden=96, layers=2, heads=4)
        decoder = CrossFrameDecoder(settings, used.shape[2])
        optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-3)
        for _ in range(study.steps):
            some = torch.randint(0, num, (16,))
            optimizer.zero_grad()
            decoder.compute_losses(used[some], values[some], draws=2).mean().backward()
            optimizer.step()
        noise = torch.randn(8 * (len(clips) - num), 64, 4, generator=torch.Generator().manual_seed(1))
        drawn = decoder.eval().draw(used[num:].repeat(8, 1, 1), noise, guidance=1.0).unflatten(0, (8, -1))
        psnr = found["psnr"]
        assert isinstance(psnr, dict)
        psnr[f"{frames_before + 1} frames"] = statistics.mean(judge(drawn[0]))
        psnr[f"{frames_before + 1} frames, mean of 8 draws"] = statistics.mean(judge(drawn.mean(0)))
    return found


def read_states(model: object, pictures: Tensor) -> Tensor:
    """Nano's last state at each picture, as it would read it in a question: [P, D]."""
    from unimodal.pipeline import Unimodal

    assert isinstance(model, Unimodal)
    tokenizer = model.coder.get_tokenizer("image")
    codes = torch.cat([tokenizer.encode(some).ids[..., 0] for some in pictures.split(32)])
    rendered = [
        model.template.render(Document([Turn("user", [Picture(codes=one.numpy())])]), add_generation_prompt=True).ids
        for one in codes
    ]
    ids = torch.from_numpy(np.stack(rendered))
    decoder = model.engine.model.get_decoder()
    return torch.cat([decoder(some, use_cache=False).last_hidden_state[:, -1] for some in ids.split(16)])


STUDIES: dict[str, Callable[[Study], Figures]] = {
    "fourier": study_fourier,
    "subcodes": study_subcodes,
    "reader": study_reader,
    "come_vl": study_come_vl,
    "continuous": study_continuous,
    "motion": study_motion,
}


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "prepared")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "runs" / "study_mixed")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--pictures", type=int, default=400, help="pictures, or clips, to learn from")


def main(arguments: Sequence[str] | None = None) -> None:
    run_studies(__doc__, STUDIES, Study, add_options, arguments)


if __name__ == "__main__":
    main()
