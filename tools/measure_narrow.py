"""What narrow weights and narrow caches cost: nats a token of a model's own answers, beside the exact model.

    python tools/measure_narrow.py [--model model_cards/nano] [--rows 12] [--weights bfloat16 int8 int4] [--kv int8]

The exact engine (float32) draws answers at temperature 1, media and text in turn. Each kind then gives the
log-probability of the same ids over the whole vocabulary. The mean of exact minus narrow estimates the divergence
KL(exact, narrow) of one token; its standard error is over answers. 0 would be no loss. ``likeliest`` is the share of
tokens on which the likeliest row of both is the same one.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

import unimodal  # noqa: F401 - before transformers
from unimodal.generation.decoders.flush_streams import stack_positions
from unimodal.generation.engine import Engine
from unimodal.generation.kinds import CACHES, WEIGHTS
from unimodal.generation.likelihood import list_allowed_rows
from unimodal.generation.request import GenerationConfig
from unimodal.model.adapter import merge
from unimodal.model_folder.decoder import load_decoder
from unimodal.model_folder.settings import read_processor
from unimodal.text.tokenizer import TextTokenizer
from unimodal.vocabulary import read_vocabulary

THINGS = ("red apple", "owl", "blue car", "green tree", "dancing cat", "house", "yellow flower", "sailing boat", "moon")


def draw_answers(engine: Engine, folder: Path, rows: int) -> list[tuple[str, list[int], list[int]]]:
    """(medium, prompt, answer) of each row."""
    vocabulary, words = engine.vocabulary, TextTokenizer.load(folder)
    wording = read_processor(folder).wording
    bos, user, end, assistant = (
        vocabulary.get_control_id(name) for name in ("<|bos|>", "<|user|>", "<|end_of_turn|>", "<|assistant|>")
    )
    kinds, found = (*vocabulary.media, "text"), []
    for seed in range(rows):
        medium, thing = kinds[seed % len(kinds)], THINGS[seed % len(THINGS)]
        asked = f"what is a {thing}?" if medium == "text" else wording.phrase_request(thing, medium)
        prompt = [bos, user, *words.encode(asked), end, assistant]
        room = engine.max_positions - len(prompt)
        most = 64
        if medium != "text":
            own = vocabulary.get_layout(medium).fixed_steps  # None for a medium of any length
            most = min(room, vocabulary.count_span_rows(medium, None if own else 128) + 1)
        config = GenerationConfig(
            max_new_tokens=most, force=None if medium == "text" else medium, allow=(medium,), seed=seed
        )
        found.append((medium, prompt, engine.generate([prompt], config)[0]))
    return found


@torch.inference_mode()
def score(engine: Engine, prompt: Sequence[int], answer: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probability of each id of an answer, and the likeliest row there, of those that may come; both [N]."""
    engine.refresh_head()
    ids = [*prompt, *answer]
    engine.decoder.prefill([ids[:1]], engine.pad_id, len(ids))
    states = engine.decoder.step(stack_positions([ids[1:-1]], engine.device), every=True)[0][-len(answer) :]
    logs, likeliest = torch.zeros(len(answer)), torch.zeros(len(answer), dtype=torch.int64)
    for at, rows in enumerate(list_allowed_rows(engine.vocabulary, prompt, answer)):
        may = engine.head.select(rows)
        own = engine.head.compute_logits(states[at : at + 1], may)[0].float().log_softmax(0)
        logs[at], likeliest[at] = own[int((may.ids == answer[at]).int().argmax())], may.ids[own.argmax()]
    return logs, likeliest


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("model_cards/nano"))
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--weights", nargs="*", default=WEIGHTS[1:], choices=WEIGHTS)
    parser.add_argument("--kv", nargs="*", default=CACHES[1:], choices=CACHES)
    options = parser.parse_args(arguments)
    vocabulary = read_vocabulary(options.model / "vocabulary.json")
    model = load_decoder(options.model, vocabulary)
    if (options.model / "adapter_config.json").is_file():
        model = merge(model)  # packed copies are of plain weights
    exact = Engine(model, vocabulary, weights="float32")
    answers = draw_answers(exact, options.model, options.rows)
    expected = [score(exact, prompt, answer) for _, prompt, answer in answers]
    num = sum(len(answer) for _, _, answer in answers)
    print(f"{options.model}: {len(answers)} answers, {num} tokens, torch {torch.__version__}")
    print("weights   kv        medium  answers  nats a token (± s.e.)  likeliest")
    for weights, kv in [*((weights, "model") for weights in options.weights), *(("float32", kv) for kv in options.kv)]:
        engine = Engine(model, vocabulary, weights=weights, kv=kv)
        found = [score(engine, prompt, answer) for _, prompt, answer in answers]
        for medium in (*vocabulary.media, "text", "all"):
            lost, same = [], []
            for (own, _, _), (before, top), (after, other) in zip(answers, expected, found, strict=True):
                if medium in (own, "all"):
                    lost.append(float((before - after).mean()))
                    same.append(float((top == other).float().mean()))
            if not lost:
                continue
            error = statistics.stdev(lost) / len(lost) ** 0.5 if len(lost) > 1 else float("nan")
            line = f"{weights:9s} {kv:9s} {medium:7s} {len(lost):7d}  {statistics.mean(lost):+.5f} ± {error:.5f}"
            print(f"{line}      {statistics.mean(same):6.1%}", flush=True)


if __name__ == "__main__":
    main()
