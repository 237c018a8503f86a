"""Pictures per minute of the engine beside `transformers.generate()`, side by side, each ingredient switched on in
turn.

    OMP_NUM_THREADS=2 python tools/bench_generation.py [--model model_cards/nano | --shape nano|135m] [--pictures 1]
    OMP_NUM_THREADS=2 python tools/bench_generation.py --passes --model model_cards/nano
    OMP_NUM_THREADS=2 python tools/bench_generation.py --growth [--model model_cards/nano | --shape nano|135m]
    python tools/bench_generation.py --device cuda [--growth] …      # `tools/bench_gpu.sh` has all rows of a GPU

Same weights, same prompt, same guidance, same sampling; the peer masks the head to the block with a slice, which is
faster than its `prefix_allowed_tokens_fn`. First the greedy ids of every lossless variant are compared with the peer's.
Then the variants take turns, and medians count: wall-clock, and processor time, which is what to read on a machine that
is not idle. For variants that change numbers (bfloat16, int8) or the answer (lossy decoders) the table says what is
lost: the mean change of the log-probability of the peer's greedy picture per code, and how many of its codes come out
the same.

    peer          transformers.generate() with guidance_scale: a second forward with its own cache each step
    reference     the engine over Hugging Face's forward: both branches in one batch, sliced head, grammar
    lean          + a preallocated cache and about twenty operations a layer
    packed        + fused projections, transposed float32 weights
    bfloat16      packed in half the bytes        int8, int4    packed in a quarter, in a seventh
    NAME          packed, or int8 with +int8, with the fast decoder of that name
    NAME+drafts   the sequences of MODEL/drafts.npz (`tools/make_drafts.py`) are in its memory before it begins

``weights GB/s`` is what the steps read of the layers' weights, and ``share`` its part of what this machine reads when
it does nothing else, which the first lines say, as whether packed steps are compiled code
(`unimodal/generation/native`) or torch's operators. On a GPU there are no 8 and 4 bits, and besides

    compiled      the lean step as one CUDA graph         half, compiled half     the model itself in bfloat16

No memory holds what was written in an earlier turn. ``--passes`` counts the forwards of the fast decoders beside the
plain loop's, for pictures, clips and speech, at three settings of the sampling; "again" is the second of two seeds,
after the first was written.

``--growth`` asks whether a token costs the same late in a long sequence as early: pictures are drawn behind prompts of
growing length, and the table has the time to the first token (the prompt's), the median time of a step (a token of
every row), the ratio to the shortest, what the keys and values that a step has to read weigh beside the weights, and
what the cache takes of memory: the prompts of all rows are the same, and so are those of their unconditional twins, so
each of the two is held once; ``--alone`` gives every row its own. A model with fewer positions than asked for is given
them to measure the time; what it would write there means nothing.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers

from unimodal.generation import DECODERS, make_decoder
from unimodal.generation.engine import Engine
from unimodal.generation.fast.protocol import FastDecoder
from unimodal.generation.kinds import CACHES, WEIGHTS
from unimodal.generation.native.build import load_native
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import GREEDY, SamplingConfig
from unimodal.model.build import NanoConfig, build_nano, count_parameters
from unimodal.model_folder.drafts import read_drafts
from unimodal.pipeline.fast_decoders import REMEMBERING
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary, read_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DRAFTED = "+drafts"
SHAPES = {  # width, layers, heads, key/value heads, MLP width, text rows
    "nano": (256, 7, 4, 4, 704, 4096),
    "135m": (576, 30, 9, 3, 1536, 49152),
}


@dataclass
class Bench:
    """A model, its vocabulary and one guided request for a picture."""

    model: PreTrainedModel
    vocabulary: Vocabulary
    prompt: list[int]
    bare: list[int]
    guidance: float
    sampling: SamplingConfig
    pictures: int
    drafts: list[list[int]]

    def __post_init__(self) -> None:
        self.layout = self.vocabulary.get_layout("image")
        self.num_codes = self.layout.fixed_steps
        self.places: list[range] = []  # the rows that each code of a picture may be
        for segment in self.layout.segments:
            self.places += [self.vocabulary.get_block_range(segment.block)] * (segment.count or 0)

    def make_config(self, sampling: SamplingConfig, seed: int = 0, **changes: object) -> GenerationConfig:
        return GenerationConfig(
            max_new_tokens=self.num_codes + 3,
            force="image",
            guidance={"image": self.guidance},
            unconditional=tuple(self.bare),
            sampling={"image": sampling},
            seed=seed,
            **changes,
        )

    def generate_by_peer(self, sampling: SamplingConfig, seed: int = 0) -> list[list[int]]:
        """`generate()` for the codes behind `<|image_start|>`."""
        torch.manual_seed(seed)
        start = self.vocabulary.get_start_id("image")
        device = next(self.model.parameters()).device
        prompt = torch.tensor([[*self.prompt, start]] * self.pictures, device=device)
        places, begin = self.places, prompt.shape[1]

        class Slice(transformers.LogitsProcessor):
            def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                rows = places[input_ids.shape[1] - begin]
                masked = torch.full_like(scores, -torch.inf)
                masked[:, rows.start : rows.stop] = scores[:, rows.start : rows.stop]
                return masked

        choice: dict[str, object] = {"do_sample": False}
        if sampling.temperature:
            choice = {"do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k or None}
        guided = self.guidance != 1.0
        out = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=self.num_codes,
            min_new_tokens=self.num_codes,
            guidance_scale=self.guidance if guided else None,
            negative_prompt_ids=torch.tensor([[*self.bare, start]] * self.pictures, device=device) if guided else None,
            logits_processor=transformers.LogitsProcessorList([Slice()]),
            use_cache=True,
            pad_token_id=self.vocabulary.get_control_id("<|pad|>"),
            eos_token_id=None,
            **choice,
        )
        return out[:, prompt.shape[1] :].tolist()

    def generate_by_engine(
        self, engine: Engine, sampling: SamplingConfig, fast: FastDecoder | None = None, seed: int = 0
    ) -> list[list[int]]:
        configs = [self.make_config(sampling, seed + number) for number in range(self.pictures)]
        answers = engine.generate([self.prompt] * self.pictures, configs, method=fast)
        return [answer[1 : 1 + self.num_codes] for answer in answers]

    def compute_log_likelihood(self, engine: Engine, codes: list[int]) -> float:
        """The mean log-probability of a code of a picture behind its prompt, unguided, over the whole vocabulary."""
        prompt = [*self.prompt, self.vocabulary.get_start_id("image")]
        return engine.compute_log_likelihood([prompt], [codes])[0] / len(codes)


def teach_decoder(name: str | None, drafts: list[list[int]]) -> FastDecoder | None:
    """A new fast decoder, or None for the plain loop; `NAME+drafts` knows these."""
    if name is None:
        return None
    fast = make_decoder(name.removesuffix(DRAFTED))
    for ids in drafts if name.endswith(DRAFTED) else ():
        fast.learn(ids)
    return fast


def fill_drafts(names: list[str], drafts: list[list[int]]) -> list[str]:
    """The names, each decoder that can remember followed by `NAME+drafts` where there are drafts."""
    return [one for name in names for one in (name, name + DRAFTED) if one == name or (drafts and name in REMEMBERING)]


def make_random_model(shape: str) -> tuple[PreTrainedModel, Vocabulary]:
    width, layers, heads, kv_heads, intermediate, text_rows = SHAPES[shape]
    blocks = [
        Block(name=n, modality=m, size=4096) for n, m in (("image", "image"), ("audio", "audio"), ("video", "video"))
    ]
    blocks.insert(0, Block(name="concepts", modality="image", size=1536))
    layout = [SpanLayout("image", [Segment("concepts", 4), Segment("image", 60, mark=False)])]
    vocabulary = Vocabulary.build(text_rows, blocks, layout)
    cfg = NanoConfig(
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        intermediate_size=intermediate,
        init_std=0.08 if shape == "nano" else 0.04,  # large enough that codes differ
    )
    return build_nano(vocabulary.size, cfg, pad_id=0, bos_id=1, eos_id=2, seed=0).eval(), vocabulary


def load_trained_model(folder: Path) -> tuple[PreTrainedModel, Vocabulary]:
    """The decoder of a model folder alone: its media tokenizers are not needed for speed."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), read_vocabulary(folder / "vocabulary.json")


def make_request(vocabulary: Vocabulary, folder: Path | None) -> tuple[list[int], list[int]]:
    names = ("<|bos|>", "<|user|>", "<|end_of_turn|>", "<|assistant|>")
    bos, user, end, assistant = (vocabulary.get_control_id(name) for name in names)
    words = list(range(10, 18))
    if folder is not None:
        from unimodal.text.tokenizer import TextTokenizer

        words = list(TextTokenizer.load(folder).encode("Draw a red apple."))
    return [bos, user, *words, end, assistant], [bos, user, end, assistant]


BYTES = {"float32": 4, "bfloat16": 2, "int8": 17 / 16, "int4": 9 / 16}  # of a weight, with scales


def measure_reading(device: str, size: int = 100_000_000, repeats: int = 5) -> float:
    """Gigabytes a second that this machine reads, by torch's threads: the best of several sums over a large tensor."""
    size = size if device == "cpu" else 10 * size
    held, best = torch.ones(size, device=device), float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        float(held.sum())  # waits for a GPU
        best = min(best, time.perf_counter() - began)
    return 4 * size / best / 1e9


def measure_bandwidth(bench: Bench, seconds: float, bytes_per_weight: float) -> float:
    """Gigabytes of weights a second that the steps of a picture read."""
    layers = sum(p.numel() for p in bench.model.get_decoder().layers.parameters())
    return layers * bytes_per_weight * bench.num_codes / seconds / 1e9


def make_engines(model: PreTrainedModel, vocabulary: Vocabulary, device: str) -> dict[str, tuple[Engine, None, float]]:
    """The lossless and narrow variants of a device: their engine, no fast decoder, and bytes of a weight."""
    names = WEIGHTS if device == "cpu" else WEIGHTS[:2]
    narrow = {name: Engine(model, vocabulary, weights=name) for name in names}
    engines: dict[str, tuple[Engine, None, float]] = {
        "reference": (Engine(model, vocabulary, "reference"), None, 4),
        "lean": (Engine(model, vocabulary, "lean", weights="model"), None, 4),
        "packed": (narrow["float32"], None, 4),
        **{name: (narrow[name], None, BYTES[name]) for name in names[1:]},
    }
    if device != "cpu":
        half = copy.deepcopy(model).bfloat16()
        engines["compiled"] = (Engine(model, vocabulary, compile=True), None, 4)
        engines["half"] = (Engine(half, vocabulary, "lean", weights="model"), None, 2)
        engines["compiled half"] = (Engine(half, vocabulary, compile=True), None, 2)
    return engines


THINGS = {  # what `--passes` asks for
    "image": ("red apple", "house", "dog", "leaf", "smiling face", "car"),
    "video": ("beating heart", "red apple", "dog"),
    "audio": ("the cat sat on the mat", "a red apple", "good morning"),
}
SETTINGS = {
    "released": None,
    "greedy": GREEDY,
    "temperature 1": SamplingConfig(temperature=1.0),
}


def count_passes(bench: Bench, folder: Path, methods: list[str]) -> None:
    """Forwards by medium, sampling and fast decoder."""
    from unimodal.model_folder.settings import read_processor, read_sampling
    from unimodal.text.tokenizer import TextTokenizer

    vocabulary, words = bench.vocabulary, TextTokenizer.load(folder)
    engine = Engine(bench.model, vocabulary, weights="float32")
    wording, released, at = read_processor(folder).wording, read_sampling(folder), len(bench.bare) - 2
    print(f"{len(bench.drafts)} sequences are the drafts; means over the requests, guidance 1")
    print("medium  sampling         decoder             tokens  passes  fewer  guesses kept  same ids")
    for medium, things in THINGS.items():
        if medium not in vocabulary.media:
            continue
        asked = [words.encode(wording.phrase_request(thing, medium)) for thing in things]
        prompts = [[*bench.bare[:at], *ids, *bench.bare[at:]] for ids in asked]
        room = engine.max_positions - max(map(len, prompts))
        most = min(room, vocabulary.count_span_rows(medium, 256 if medium == "audio" else None) + 1)
        for setting, sampling in SETTINGS.items():
            if sampling is None:
                sampling = SamplingConfig.model_validate(released[medium].model_dump(exclude={"guidance"}))
            config = GenerationConfig(max_new_tokens=most, force=medium, sampling={medium: sampling}, seed=1)
            plain = [engine.generate([prompt], config)[0] for prompt in prompts]
            for name in (*fill_drafts(methods, bench.drafts), "retrieval, again"):
                forwards = drafted = accepted = same = tokens = 0
                for prompt, answer in zip(prompts, plain, strict=True):
                    fast = teach_decoder(name.removesuffix(", again"), bench.drafts)
                    if name.endswith("again"):
                        engine.generate([prompt], config.model_copy(update={"seed": 2}), method=fast)
                    [found] = engine.generate([prompt], config, method=fast)
                    same, tokens = same + (found == answer), tokens + len(found)
                    forwards += engine.stats.forwards
                    drafted, accepted = drafted + engine.stats.drafted, accepted + engine.stats.accepted
                num = len(prompts)
                print(
                    f"{medium:7s} {setting:16s} {name:20s} {tokens / num:5.0f} {forwards / num:7.1f}"
                    f" {tokens / forwards:6.2f} {accepted:6d} of {drafted:<5d} {same} of {num}",
                    flush=True,
                )


def measure_growth(
    bench: Bench, contexts: list[int], batches: list[int], weights: str, kv: str, alone: bool = False
) -> None:
    """Time of a step and memory by the length of the sequence, with and without guidance."""
    model, vocabulary = bench.model, bench.vocabulary
    own = model.config.max_position_embeddings
    if max(contexts) > own:
        print(f"the model has {own} positions; {max(contexts)} are given to it here, for the time only")
        model.config.max_position_embeddings = max(contexts)
    engine = (
        Engine(model, vocabulary, "reference")
        if weights == "reference"
        else Engine(model, vocabulary, compile=True)
        if weights == "compiled"
        else Engine(model, vocabulary, weights=weights, kv=kv)
    )
    layers = model.get_decoder().layers
    weight_bytes = sum(p.numel() for p in layers.parameters()) * BYTES.get(weights, 4)
    head = layers[0].self_attn
    width = head.head_dim
    each = {"bfloat16": 2, "int8": 1 + 2 / width}.get(kv, 4)
    entry_bytes = len(layers) * (head.k_proj.out_features + head.v_proj.out_features) * each  # of one token of a stream
    print(
        f"weights {weights}: {weight_bytes / 1e6:.1f} MB; keys and values of a token, {kv}: {entry_bytes / 1e3:.1f} kB"
    )
    print("batch guidance  positions  first ms  ms a step    ratio  processor ms    ratio  MB read    ratio    KV MB")
    spare = bench.num_codes + 3
    filler = len(bench.prompt) - len(bench.bare)
    for batch in batches:
        for guidance in (1.0, bench.guidance):
            first: list[float] = []
            for context in sorted(contexts):
                words = [10 + number % 50 for number in range(context - spare - len(bench.bare))]
                at = len(bench.bare) - 2
                prompt = [*bench.bare[:at], *words, *bench.bare[at:]]
                bare = [
                    *bench.bare[:at],
                    *words[filler:],
                    *bench.bare[at:],
                ]  # as long as a long chat without its last words
                config = GenerationConfig(
                    max_new_tokens=spare,
                    force="image",
                    guidance={"image": guidance},
                    unconditional=tuple(bare),
                    sampling={"image": bench.sampling},
                )
                wall: list[float] = []
                worked: list[float] = []

                def tick(event: object, wall: list[float] = wall, worked: list[float] = worked) -> None:
                    if event.row == 0 and event.modality == "image":
                        wall.append(time.perf_counter())
                        worked.append(time.process_time())

                prompts, configs = [prompt] * batch, [config] * batch
                if alone:  # another word at the beginning of each
                    prompts = [[*prompt[:at], 10 + row, *prompt[at + 1 :]] for row in range(batch)]
                    bares = [(*bare[:at], 10 + row, *bare[at + 1 :]) for row in range(batch)]
                    configs = [config.model_copy(update={"unconditional": own}) for own in bares]
                began = time.perf_counter()
                engine.generate(prompts, configs, on_token=tick)
                steps = [[b - a for a, b in zip(t, t[1:], strict=False)] for t in (wall, worked)]
                # the first tokens are read with the start of the span
                medians = [1e3 * statistics.median(step[4:-1]) for step in steps]
                streams = batch * (1 if guidance == 1.0 else 2)
                medians.append((weight_bytes + streams * context * entry_bytes) / 1e6)
                first = first or medians
                ratios = [value / base for value, base in zip(medians, first, strict=True)]
                line = f"{batch:5d} {guidance:8g} {context:10d} {1e3 * (wall[0] - began):9.1f}"
                for value, ratio, width in zip(medians, ratios, (10, 13, 8), strict=True):
                    line += f" {value:{width}.2f} {ratio:8.2f}"
                print(f"{line} {engine.decoder.num_bytes / 1e6:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None, help="a model folder; otherwise random weights of --shape")
    parser.add_argument("--shape", choices=SHAPES, default="nano")
    parser.add_argument("--pictures", type=int, default=1, help="how many are drawn together")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-k", type=int, default=200)
    parser.add_argument(
        "--decoders",
        nargs="*",
        default=["jacobi", "sjd", "coupled-sjd", "gsd", "retrieval"],
        choices=[name for name in DECODERS if name != "draft-heads"],  # recipes/train_draft.py measures those
    )
    parser.add_argument("--passes", action="store_true", help="forwards by medium, sampling and decoder")
    parser.add_argument("--growth", action="store_true", help="the time of a step by the length of the sequence")
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 512, 1024, 2048, 4096])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument(
        "--weights", default="float32", choices=("model", "reference", "compiled", *WEIGHTS), help="of --growth"
    )
    parser.add_argument("--alone", action="store_true", help="of --growth: no two rows have a prompt in common")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--kv", default="model", choices=CACHES, help="of --growth")
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    model, vocabulary = load_trained_model(args.model) if args.model else make_random_model(args.shape)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA GPU is found here")
    model.config.use_cache = True
    model.to(args.device)
    prompt, bare = make_request(vocabulary, args.model)
    sampling = SamplingConfig(temperature=args.temperature, top_k=args.top_k)
    drafts = read_drafts(args.model) if args.model else []
    bench = Bench(model, vocabulary, prompt, bare, args.guidance, sampling, args.pictures, drafts)
    print(
        f"{args.model or args.shape + ' shape, random weights'}: {count_parameters(model) / 1e6:.1f} M parameters, "
        f"{bench.num_codes} codes a picture, {args.pictures} at a time, guidance {args.guidance:g}"
    )
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, python {platform.python_version()}, "
        f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    )
    native, reason = load_native() if args.device == "cpu" else (None, torch.cuda.get_device_name())
    reading = measure_reading(args.device)
    print(f"this machine reads {reading:.1f} GB/s; packed steps by", end=" ")
    print("torch's operators: " + reason if native is None else "compiled code")
    if args.passes:
        if args.model is None:
            parser.error("--passes needs --model: random weights have nothing to guess")
        count_passes(bench, args.model, args.decoders)
        return
    if args.growth:
        measure_growth(bench, args.contexts, args.batches, args.weights, args.kv, args.alone)
        return
    engines: dict[str, tuple[Engine, str | None, float]] = {**make_engines(model, vocabulary, args.device)}
    packed = engines["packed"][0]
    for name in fill_drafts(args.decoders, drafts):
        engines[name] = (packed, name, 4)
        if "int8" in engines:
            engines[f"{name}+int8"] = (engines["int8"][0], name, BYTES["int8"])
    names = ["peer", *engines]
    times: dict[str, list[float]] = {name: [] for name in names}
    processor: dict[str, list[float]] = {name: [] for name in names}
    forwards: dict[str, list[int]] = {name: [] for name in names}
    for turn in range(args.repeats + 1):
        for name in names:
            run: Callable[[int], object] = partial(bench.generate_by_peer, sampling)
            if name in engines:
                engine, method, _ = engines[name]
                run = partial(bench.generate_by_engine, engine, sampling, teach_decoder(method, drafts))
            began, worked = time.perf_counter(), time.process_time()
            run(turn)
            if turn:
                times[name].append(time.perf_counter() - began)
                processor[name].append(time.process_time() - worked)
                forwards[name].append(engines[name][0].stats.forwards if name in engines else bench.num_codes)
        print(f"turn {turn} of {args.repeats}", file=sys.stderr)
    greedy = bench.generate_by_peer(GREEDY)
    likelihood = bench.compute_log_likelihood(packed, greedy[0])
    base, base_worked = statistics.median(times["peer"]), statistics.median(processor["peer"])
    print(f"{'':23s} s/batch  pictures/min   x peer  processor s  x peer", end="")
    print("  passes  weights GB/s  share  greedy ids       log-probability a code")
    for name, values in times.items():
        median = statistics.median(values)
        line = f"{name:23s} {median:7.3f} {60 * args.pictures / median:13.1f} {base / median:8.2f}"
        worked = statistics.median(processor[name])
        line += f" {worked:12.3f} {base_worked / worked:7.2f} {statistics.median(forwards[name]):7.0f}"
        if name in engines:
            engine, method, size = engines[name]
            found = bench.generate_by_engine(engine, GREEDY, teach_decoder(method, drafts))
            same = sum(a == b for x, y in zip(found, greedy, strict=True) for a, b in zip(x, y, strict=True))
            change = bench.compute_log_likelihood(engine, greedy[0]) - likelihood
            passes = statistics.median(forwards[name]) / bench.num_codes
            achieved = measure_bandwidth(bench, median, size) * passes
            line += f" {achieved:13.1f} {100 * achieved / reading:5.1f}%"
            line += f"  {'identical' if found == greedy else f'{same} of {bench.num_codes * args.pictures}':12s}"
            line += f" {likelihood:10.4f} {change:+.4f}"
        print(line)


if __name__ == "__main__":
    main()
