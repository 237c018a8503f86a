"""Training speed and memory against TRL's SFTTrainer: the same model, documents, precision and LoRA, on this machine.

    python tools/bench_training.py                       # ragged glosses and novels, SmolLM2, LoRA
    python tools/bench_training.py --precision bfloat16 --repeats 5
    python tools/bench_training.py --rows 16 --precision bfloat16 --peak-tflops 989   # a GPU: its MFU too
    python tools/bench_training.py --profile             # where a step of ours spends its time, by kind of work

Both see the same text documents (WordNet glosses and paragraphs of Austen, whose lengths differ a hundredfold) as full
sequences to predict, the same number of tokens in a step on average, and train LoRA of one rank on all linear layers.
TRL runs in three ways, so that the comparison is with its best: padded in random order (its default), padded with
documents of like length together, and packed. Its sampler begins an epoch of the second with the longest documents, so
it is measured on batches that lie evenly between the longest and the shortest of an epoch. What is timed is a step
from batch to new weights; loading of data is not. A token of a document's text counts once; padding and markers (of
ours there are more) never do. Memory is the most that was resident after the first step, the weights among it.

Each measurement is a process of its own, in turn, and medians are printed with their spread, then how much faster and
smaller ours is. `pip install trl` first, into an environment of its own if you like; without it only our own side is
measured. Model FLOPs utilisation (PaLM, arXiv 2204.02311) counts 6 for each trained parameter and token and 4 for each
frozen one, whose gradient is not computed, the head's among them and embeddings not, and no attention.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

SIDES = ("ours", "trl padded", "trl grouped", "trl packed")
#: kind of work → what the names of its operators begin with, the first that fits
KINDS = {
    "products with weights": ("aten::mm", "aten::addmm", "aten::bmm", "mkldnn::", "aten::matmul"),
    "attention": ("aten::_scaled_dot", "aten::_flash", "aten::_softmax"),
    "loss": ("aten::_log_softmax", "aten::nll", "aten::logsumexp", "aten::exp", "aten::log", "aten::gather"),
    "optimizer": ("aten::_fused", "aten::_foreach", "aten::lerp", "aten::addcdiv", "aten::addcmul", "aten::sqrt"),
    "copies": (
        "aten::copy_",
        "aten::cat",
        "aten::index",
        "aten::fill_",
        "aten::zero_",
        "aten::clone",
        "aten::embedding",
    ),
}


def make_ragged_documents(data: Path, count: int, seed: int = 0) -> list[str]:
    """Real text of very different lengths: dictionary glosses and paragraphs of novels."""
    from unimodal.data import plain_text

    glosses = [meaning for _, meaning in plain_text.read_definitions(data / "raw")]
    paragraphs = plain_text.read_paragraphs(data / "raw", shortest=350)
    chance = random.Random(seed)
    return [chance.choice(paragraphs if chance.random() < 0.3 else glosses) for _ in range(count)]


def run_ours(args: argparse.Namespace, texts: list[str]) -> dict[str, float]:
    import torch

    from unimodal.model.base import load_base
    from unimodal.model.build import build_model
    from unimodal.model.lora import LoraSettings
    from unimodal.objectives.packed import PackedLoss
    from unimodal.sequence.document import Document, Turn
    from unimodal.sequence.packing import pack, stack
    from unimodal.tuning.loss import to_tensors
    from unimodal.tuning.vocabulary import make_joint_template

    base = load_base(args.base)
    template = make_joint_template(base, None)
    model = build_model(base, template.vocabulary, LoraSettings(rank=args.rank))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = PackedLoss(model.to(device), template.vocabulary).train()
    rendered = [template.render(Document([Turn("assistant", text)])) for text in texts]
    rows = pack(rendered, args.length, template.vocabulary.get_control_id("<|pad|>"), too_long="truncate")
    random.Random(0).shuffle(rows)  # they come sorted by their longest document
    if len(rows) < (args.steps + 1) * args.rows:
        raise SystemExit(f"{len(rows)} rows are too few for {args.steps + 1} steps of {args.rows}")
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    seconds, tokens = [], []
    profiler = torch.profiler.profile() if args.profile else None
    for step in range(args.steps + 1):
        batch = stack(rows[step * args.rows : (step + 1) * args.rows])
        if profiler is not None and step == 1:
            profiler.start()
        began = time.monotonic()
        with torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bfloat16"):
            total, found = module(*to_tensors(batch, device))
        (total / found["weight"]).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - began)
        tokens.append(int((batch.ids < template.vocabulary.text_size).sum()))
        if step == 0:
            _forget_peak()
    if profiler is not None:
        profiler.stop()
        print(report_profile({e.key: float(e.self_cpu_time_total) for e in profiler.key_averages()}))
    return _make_result(seconds[1:], tokens[1:], module)


def report_profile(microseconds: Mapping[str, float]) -> str:
    """The share of each kind of work in the time of all operators, and the three operators of it that take most."""
    kinds: dict[str, dict[str, float]] = {kind: {} for kind in (*KINDS, "sums, norms, rotations and all else")}
    for name, time_us in microseconds.items():
        kind = next((kind for kind, starts in KINDS.items() if name.startswith(starts)), [*kinds][-1])
        kinds[kind][name] = time_us
    total = sum(microseconds.values())
    lines = []
    for kind, found in sorted(kinds.items(), key=lambda pair: -sum(pair[1].values())):
        most = sorted(found, key=lambda name: -found[name])[:3]
        told = ", ".join(f"{name.removeprefix('aten::')} {found[name] / total:.1%}" for name in most)
        lines.append(f"{kind:<36} {sum(found.values()) / total:6.1%}   {told}")
    return "\n".join(lines)


def run_trl(args: argparse.Namespace, texts: list[str], way: str) -> dict[str, float]:
    from unimodal.model.base import load_base  # first: it lets transformers be imported beside a CPU build of torch

    import datasets  # isort: skip
    import peft  # isort: skip
    import torch  # isort: skip
    import trl  # isort: skip
    from transformers import PreTrainedTokenizerFast, TrainerCallback  # isort: skip

    base = load_base(args.base)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(json.dumps(base.tokenizer))
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
        end = base.model.config.eos_token_id
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end[0] if isinstance(end, list) else end)
        tokenizer.pad_token = tokenizer.eos_token
        seconds: list[float] = []
        tokens: list[int] = []

        class Watch(TrainerCallback):
            def on_step_begin(self, *_, **__):
                self.began = time.monotonic()

            def on_step_end(self, *_, **__):
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                seconds.append(time.monotonic() - self.began)
                if len(seconds) == 1:
                    _forget_peak()

        packing = way == "packed"
        lengths = sorted(min(len(tokenizer(text).input_ids) + 1, args.length) for text in texts)
        mean = sum(lengths) / len(lengths)
        # padded: as many documents in a step as hold the tokens of ours; packed: as many rows
        batch_size = args.rows if packing else max(1, round(args.rows * args.length / mean))
        config = trl.SFTConfig(
            output_dir=folder, max_steps=args.steps + 1, per_device_train_batch_size=batch_size, packing=packing,
            max_length=args.length, report_to="none", bf16=args.precision == "bfloat16", logging_steps=1000,
            save_strategy="no", dataset_text_field="text", learning_rate=1e-4, gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(), disable_tqdm=True, dataloader_drop_last=False,
            train_sampling_strategy="group_by_length" if way == "grouped" else "random", warmup_steps=0,
        )  # fmt: skip
        trainer = trl.SFTTrainer(
            model=base.model, args=config, processing_class=tokenizer, callbacks=[Watch()],
            train_dataset=datasets.Dataset.from_dict({"text": texts}),
            peft_config=peft.LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear"),
        )  # fmt: skip
        if way == "grouped":
            order = spread_batches(list(trainer._get_train_sampler()), trainer.train_dataset, batch_size, args.steps)
            trainer._get_train_sampler = lambda *_: order
        inner = trainer.compute_loss

        def count_tokens(model, inputs, *rest, **options):
            tokens.append(int((inputs["input_ids"] != tokenizer.eos_token_id).sum()))  # which is its padding too
            return inner(model, inputs, *rest, **options)

        trainer.compute_loss = count_tokens
        trainer.train()
    return _make_result(seconds[1:], tokens[1:], trainer.model)


def spread_batches(
    order: list[int], dataset: Sequence[Mapping[str, Sequence[int]]], batch_size: int, steps: int
) -> list[int]:
    """Documents of steps + 1 whole batches of an epoch: by their longest document, evenly from long to short.

    The first, which is not measured, is the middle one; the others come in random order.
    """
    lengths = [len(ids) for ids in dataset["input_ids"]]
    batches = [order[i : i + batch_size] for i in range(0, len(order) - batch_size + 1, batch_size)]
    if len(batches) < steps:
        raise SystemExit(f"an epoch has {len(batches)} batches, which is too few for {steps} steps")
    batches.sort(key=lambda batch: -max(lengths[i] for i in batch))
    chosen = [batches[int((i + 0.5) * len(batches) / steps)] for i in range(steps)]
    random.Random(0).shuffle(chosen)
    return [i for batch in (batches[len(batches) // 2], *chosen) for i in batch]


def _forget_peak() -> None:
    """The peak from here on: reading and converting a base takes more than a step, and the same for all."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def _read_peak_bytes() -> int:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def count_flops_per_token(model: nn.Module) -> float:
    """Of the products with weights, forward and backward: 6 for each trained parameter, 4 for each frozen one."""
    from torch import nn

    tables = {p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    head = next(m for name, m in model.named_modules() if name.endswith("lm_head")).parameters()
    tables -= set(head)  # a tied table is the head's weight: there it is multiplied
    return sum((6 if p.requires_grad else 4) * p.numel() for p in model.parameters() if p not in tables)


def _make_result(seconds: list[float], tokens: list[int], model: nn.Module) -> dict[str, float]:
    return {
        "tokens_per_second": sum(tokens) / sum(seconds),
        "peak_gib": _read_peak_bytes() / 2**30,
        "flops_per_token": count_flops_per_token(model),
    }


def list_versions() -> str:
    import importlib.metadata as metadata

    found = []
    for name in ("unimodal", "torch", "transformers", "peft", "trl"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            import unimodal

            found.append(f"{name} {unimodal.__version__}" if name == "unimodal" else f"no {name}")
    return ", ".join(found)


def report(found: dict[str, list[dict[str, float]]], peak_tflops: float | None) -> str:
    """Medians with their spread, and ours against each other side."""
    columns = f"{'tokens/s':>9} {'least':>9} {'most':>9} {'peak GiB':>9} {'speed':>7} {'memory':>7}"
    lines = [f"{'':<12} {columns}{'     MFU' if peak_tflops else ''}   (speed, memory: ours against it)"]

    def find_middle(side: str, name: str) -> float:
        return statistics.median(result[name] for result in found[side])

    for side, results in found.items():
        if not results:
            continue
        speeds = [result["tokens_per_second"] for result in results]
        speed, peak = find_middle(side, "tokens_per_second"), find_middle(side, "peak_gib")
        line = f"{side:<12} {speed:9.1f} {min(speeds):9.1f} {max(speeds):9.1f} {peak:9.2f}"
        if found.get("ours"):
            faster = f"{find_middle('ours', 'tokens_per_second') / speed:.2f}×"
            line += f" {faster:>7} {find_middle('ours', 'peak_gib') / peak:6.2f}×"
        if peak_tflops:
            line += f" {speed * find_middle(side, 'flops_per_token') / (peak_tflops * 1e12):7.1%}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--steps", type=int, default=8, help="measured; one more comes first")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rows", type=int, default=2, help="packed rows of a step")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--peak-tflops", type=float, help="what the device can do in this precision: prints MFU")
    parser.add_argument(
        "--profile", action="store_true", help="where our own step spends its time; nothing is compared"
    )
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.profile:
        print(f"{list_versions()}; {args.precision}, {args.steps} steps of {args.rows} × {args.length} tokens")
        run_ours(args, make_ragged_documents(args.data, 200 * args.rows * (args.steps + 1)))
        return
    if args.side:
        texts = make_ragged_documents(args.data, 200 * args.rows * (args.steps + 1))
        result = run_ours(args, texts) if args.side == "ours" else run_trl(args, texts, args.side.removeprefix("trl "))
        print("RESULT " + json.dumps(result))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(args.repeats):
        for side in SIDES:
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            done = subprocess.run(command, capture_output=True, text=True)
            line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
            if line is None:
                said = [line for line in done.stderr.split("\n") if line.strip() and "\r" not in line] or ["no output"]
                print(f"{side}: not measured (exit {done.returncode}: {said[-1][:160]})", file=sys.stderr)
                continue
            found[side].append(json.loads(line.removeprefix("RESULT ")))
            print(f"{side}: {found[side][-1]}", file=sys.stderr, flush=True)
    print(f"{list_versions()}; {args.precision}, medians of {args.repeats} runs of {args.steps} steps")
    print(report(found, args.peak_tflops))


if __name__ == "__main__":
    main()
