"""Training speed and memory against TRL's SFTTrainer: the same model, documents, precision and LoRA, on this machine.

    python tools/bench_training.py                       # ragged glosses and novels, SmolLM2, LoRA
    python tools/bench_training.py --steps 8 --repeats 3 --precision bfloat16

Both see the same text documents (WordNet glosses and paragraphs of Austen, whose lengths differ a hundredfold) as full
sequences to predict, the same number of tokens in a step at most, and train LoRA of one rank on all linear layers. Each
measurement runs in a process of its own, so that peak memory is its own; the two take turns, and medians are printed.
A token counts once, padding never. TRL runs twice: with its own packing (which needs flash attention to keep documents
apart; on a CPU they leak) and padded. `pip install trl` first; without it only our own side is measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIDES = ("ours", "trl padded", "trl packed")


def ragged_documents(data: Path, count: int, seed: int = 0) -> list[str]:
    """Real text of very different lengths: dictionary glosses and paragraphs of novels."""
    import random

    from unimodal.data import plain_text

    glosses = [meaning for _, meaning in plain_text.definitions(data / "raw")]
    paragraphs = plain_text.paragraphs(data / "raw", shortest=350)
    chance = random.Random(seed)
    return [chance.choice(paragraphs if chance.random() < 0.3 else glosses) for _ in range(count)]


def run_ours(args: argparse.Namespace, texts: list[str]) -> dict[str, float]:
    import torch

    from unimodal.model.base import load_base
    from unimodal.model.build import build_model
    from unimodal.model.lora import LoraSettings
    from unimodal.model.packed_loss import PackedLoss
    from unimodal.pipeline_batches import tensors_of
    from unimodal.pipeline_tuning import joint_template
    from unimodal.sequence.document import Document, Turn
    from unimodal.sequence.packing import pack, stack

    base = load_base(args.base)
    template = joint_template(base, None)
    model = build_model(base, template.vocabulary, LoraSettings(rank=args.rank))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = PackedLoss(model.to(device), template.vocabulary).train()
    rendered = [template.render(Document([Turn("assistant", text)])) for text in texts]
    rows = pack(rendered, args.length, template.vocabulary.control_id("<|pad|>"), too_long="truncate")
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    seconds, tokens = [], []
    for step in range(args.steps + 1):
        batch = stack(rows[step * args.rows : (step + 1) * args.rows])
        began = time.monotonic()
        with torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bfloat16"):
            total, found = module(*tensors_of(batch, device))
        (total / found["weight"]).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - began)
        tokens.append(int((batch.segment_ids > 0).sum()))
    return _result(seconds[1:], tokens[1:])


def run_trl(args: argparse.Namespace, texts: list[str], packing: bool) -> dict[str, float]:
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
        tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
        seconds: list[float] = []
        tokens: list[int] = []

        class Watch(TrainerCallback):
            def on_step_begin(self, *_, **__):
                self.began = time.monotonic()

            def on_step_end(self, *_, **__):
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                seconds.append(time.monotonic() - self.began)

        lengths = sorted(min(len(tokenizer(text).input_ids) + 1, args.length) for text in texts)
        mean = sum(lengths) / len(lengths)
        # padded: as many documents in a step as hold the tokens of ours; packed: as many rows
        batch_size = args.rows if packing else max(1, round(args.rows * args.length / mean))
        config = trl.SFTConfig(
            output_dir=folder, max_steps=args.steps + 1, per_device_train_batch_size=batch_size, packing=packing,
            max_length=args.length, report_to="none", bf16=args.precision == "bfloat16", logging_steps=1000,
            save_strategy="no", dataset_text_field="text", learning_rate=1e-4, gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(), disable_tqdm=True, dataloader_drop_last=False,
        )  # fmt: skip
        trainer = trl.SFTTrainer(
            model=base.model, args=config, processing_class=tokenizer, callbacks=[Watch()],
            train_dataset=datasets.Dataset.from_dict({"text": texts}),
            peft_config=peft.LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear"),
        )  # fmt: skip
        inner = trainer.compute_loss

        def counted(model, inputs, *rest, **options):
            mask = inputs.get("attention_mask")
            tokens.append(int(mask.sum()) if mask is not None else inputs["input_ids"].numel())
            return inner(model, inputs, *rest, **options)

        trainer.compute_loss = counted
        trainer.train()
    return _result(seconds[1:], tokens[1:])


def _result(seconds: list[float], tokens: list[int]) -> dict[str, float]:
    import torch

    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"tokens_per_second": sum(tokens) / sum(seconds), "peak_gib": peak / 2**30}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--steps", type=int, default=4, help="measured; one more comes first")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rows", type=int, default=2, help="packed rows of a step")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        texts = ragged_documents(args.data, 400 * args.rows * max(1, args.steps // 4))
        result = run_ours(args, texts) if args.side == "ours" else run_trl(args, texts, args.side == "trl packed")
        print("RESULT " + json.dumps(result))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(args.repeats):
        for side in SIDES:
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            done = subprocess.run(command, capture_output=True, text=True)
            line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
            if line is None:
                reason = done.stderr.strip().splitlines()[-1:] or ["no output"]
                print(f"{side}: not measured ({reason[0][:160]})", file=sys.stderr)
                continue
            found[side].append(json.loads(line.removeprefix("RESULT ")))
            print(f"{side}: {found[side][-1]}", file=sys.stderr, flush=True)
    print(f"{'':<12} {'tokens/s':>9} {'peak GiB':>9}   medians of {args.repeats}, {args.precision}")
    for side, results in found.items():
        if results:
            speed = statistics.median(r["tokens_per_second"] for r in results)
            peak = statistics.median(r["peak_gib"] for r in results)
            print(f"{side:<12} {speed:9.1f} {peak:9.2f}")


if __name__ == "__main__":
    main()
