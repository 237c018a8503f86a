"""Documents → rendered documents, on the fly or from shards, behind the one interface that mixtures and packing read.

    tokenize = CorpusTokenizer("model_cards/nano")  # of unimodal.corpus.tokenizer
    datasets = {"pets": DatasetConfig(path="pets.jsonl"), "talk": DatasetConfig(path="data/tokenized/talk")}
    mixture = open_mixture(datasets, tokenize, tokenize.hashes, seed=0)
    name, rendered = mixture.next()

A path with the manifest of token shards is opened as shards, any other as a dataset whose documents are tokenized when
they are asked for. `tokenize` maps a list of documents to as many `Rendered`, or `Skipped` with the reason.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from unimodal.data.datasets import BadRow, DatasetConfig, ImportedDataset, open_dataset
from unimodal.data.mixture import DocumentSet, Mixture
from unimodal.data.token_shards import MANIFEST, Skipped, TokenShards
from unimodal.sequence.document import Document
from unimodal.sequence.templates.own import Rendered
from unimodal.vocabulary import Vocabulary

Tokenize = Callable[[Sequence[Document]], list[Rendered | Skipped]]


class TokenizedDataset:
    """A dataset whose documents are tokenized when they are read; `documents[i]` is `Rendered`.

    A document that cannot be tokenized (a damaged picture, too many tokens) raises ValueError under
    `on_bad_row="fail"`. Under `"skip"` the next document takes its place, and the bad row is counted, listed and
    reported on stderr.
    """

    def __init__(self, dataset: ImportedDataset, tokenize: Tokenize) -> None:
        self.dataset, self.tokenize = dataset, tokenize
        self._bad: dict[int, BadRow] = {}

    @property
    def bad_rows(self) -> list[BadRow]:
        """The bad rows found at opening, and those met while reading so far."""
        return [*self.dataset.bad_rows, *self._bad.values()]

    @property
    def num_bad(self) -> int:
        return len(self.bad_rows)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Rendered:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        for step in range(len(self)):
            chosen = (index + step) % len(self)
            if chosen in self._bad:
                continue
            [made] = self.tokenize([self.dataset[chosen]])
            if isinstance(made, Rendered):
                return made
            bad = BadRow(self.dataset.describe_place(chosen), made.reason)
            if self.dataset.cfg.on_bad_row == "fail":
                raise ValueError(f"{bad}; mend it, or set on_bad_row to skip")
            self._bad[chosen] = bad
            print(f"skipped {bad}", file=sys.stderr, flush=True)
        raise ValueError(f"no document of {self.dataset.cfg.path} can be tokenized; the last bad row is {bad}")


def open_rendered(cfg: DatasetConfig, tokenize: Tokenize, hashes: Mapping[str, str]) -> DocumentSet:
    """Opens token shards or a dataset, whichever lies at the path. Raises ValueError for shards of other tokenizers."""
    if (Path(cfg.path) / MANIFEST).is_file():
        return TokenShards(cfg.path, hashes)
    return TokenizedDataset(open_dataset(cfg), tokenize)


def open_mixture(
    datasets: Mapping[str, DatasetConfig],
    tokenize: Tokenize,
    hashes: Mapping[str, str],
    seed: int = 0,
    rank: int = 0,
    num_ranks: int = 1,
) -> Mixture:
    """Mixes the datasets by their weights; those of weight 0 are not opened. ValueError if no weight is above 0."""
    used = {name: cfg for name, cfg in datasets.items() if cfg.weight > 0}
    if not used:
        raise ValueError(f"none of the datasets {', '.join(datasets) or '(none given)'} has a weight above 0")
    sets = {name: open_rendered(cfg, tokenize, hashes) for name, cfg in used.items()}
    return Mixture(sets, {name: cfg.weight for name, cfg in used.items()}, seed, rank, num_ranks)


def collect_hashes(vocabulary: Vocabulary) -> dict[str, str]:
    """What a manifest records: the sha256 of every block's tokenizer, of the text tokenizer and of the vocabulary."""
    hashes = {block.name: block.sha256 for block in vocabulary.blocks}
    layout = json.dumps(vocabulary.to_dict(), sort_keys=True).encode()
    return {"text": vocabulary.text_sha256, **hashes, "vocabulary": hashlib.sha256(layout).hexdigest()}
