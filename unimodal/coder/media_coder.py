"""Files ⇄ tensors ⇄ codes of one model: the two ends of the pipeline. A tokenizer is loaded when it is first needed.

Shapes: B batch, T samples or frames, H and W height and width, N codes, G groups. Media without a batch are a picture
[3, H, W] in [0, 1], a sound [T] in [-1, 1] and a clip [T, 3, H, W] in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unimodal.coder.batches import count_frames, group_by_size, read_medium, split_batch, stack_media
from unimodal.coder.beside import NOTHING_BESIDE, Beside, make_condition
from unimodal.coder.outputs import Grid3, MediaCodes, Output
from unimodal.files import quote_path
from unimodal.media.image import load_image, to_bytes
from unimodal.media.kind import detect_kind
from unimodal.media.limits import DEFAULT_LIMITS, MediaLimits
from unimodal.media.registry import MEDIA, ignore_note
from unimodal.model_folder.hashes import check_tokenizers
from unimodal.model_folder.layout import VOCABULARY_FILE, locate_reader, locate_tokenizer, read_positions
from unimodal.model_folder.settings import ProcessorConfig, read_processor
from unimodal.sequence.document import MEDIA_PARTS, Media, Part, Text
from unimodal.tokenizers import (
    Codes,
    MediaReader,
    MediaTokenizer,
    find_continued_medium,
    is_tokenizer,
    load_reader,
    load_tokenizer,
    read_tokenizer_config,
)
from unimodal.tokenizers.interface import Condition
from unimodal.vocabulary import Vocabulary, make_media_vocabulary, read_vocabulary


def load_coder(
    folder: Path, device: torch.device | str = "cpu", on_step: Callable[[str], None] = lambda step: None
) -> MediaCoder:
    """Loads the media side of a model folder, without its decoder; or one tokenizer from a folder of its own."""
    if is_tokenizer(folder):
        return _load_alone(folder, device, on_step)
    return MediaCoder(folder, read_vocabulary(folder / VOCABULARY_FILE), read_processor(folder), device, on_step)


def _load_alone(folder: Path, device: torch.device | str, on_step: Callable[[str], None]) -> MediaCoder:
    """The coder of one tokenizer; the tokenizer that it continues, if any, must lie beside it."""
    on_step("loading the tokenizer")
    begun = find_continued_medium(folder)
    continued = None if begun is None else load_tokenizer(locate_tokenizer(folder.parent, begun))
    tokenizers = [load_tokenizer(folder, continued), *([] if continued is None else [continued])]
    return MediaCoder(folder, make_media_vocabulary(tokenizers), ProcessorConfig(), device, on_step, tokenizers)


class MediaCoder:
    """The tokenizers of one model folder, and the way files are fitted to them."""

    def __init__(
        self,
        folder: Path,
        vocabulary: Vocabulary,
        processor: ProcessorConfig,
        device: torch.device | str = "cpu",
        on_step: Callable[[str], None] = lambda step: None,
        tokenizers: Sequence[MediaTokenizer] | None = None,
    ) -> None:
        """tokenizers: those of the vocabulary's media, if they do not lie in the model folder."""
        self.folder, self.vocabulary, self.processor, self.on_step = folder, vocabulary, processor, on_step
        self.device = torch.device(device)
        self.limits: MediaLimits = DEFAULT_LIMITS
        self._loaded = {tokenizer.modality: tokenizer.to(self.device) for tokenizer in tokenizers or ()}
        if tokenizers is None:
            self.sha256 = check_tokenizers(folder, vocabulary)
        else:
            self.sha256 = {name: tokenizer.sha256 for name, tokenizer in self._loaded.items()}
        #: of the folder's decoder; None for a folder of tokenizers alone
        self.positions = read_positions(folder) if tokenizers is None else None
        self._readers: dict[str, MediaReader] = {}

    def get_tokenizer(self, modality: str) -> MediaTokenizer:
        """The tokenizer of a medium, loaded at first use. Raises ValueError for a medium that the model does not
        have.
        """
        if modality not in self._loaded:
            self.vocabulary.get_layout(modality)
            folder = locate_tokenizer(self.folder, modality)
            begun = find_continued_medium(folder)
            continued = self.get_tokenizer(begun) if begun in self.vocabulary.media else None
            self.on_step(f"loading the {modality} tokenizer")
            self._loaded[modality] = load_tokenizer(folder, continued).to(self.device)
        return self._loaded[modality]

    def can_decode(self, modality: str) -> bool:
        """Whether codes can become a medium again: False for a tokenizer that only encodes. Reads no weights."""
        if modality in self._loaded:
            return self._loaded[modality].can_decode
        return read_tokenizer_config(locate_tokenizer(self.folder, modality)).can_decode

    def get_rate(self, modality: str) -> float | None:
        """Samples or frames a second; None for media without time."""
        return self.get_tokenizer(modality).rate

    def get_code_vectors(self) -> dict[str, Tensor]:
        """The vectors that codes become in their tokenizer: name of the block → float [size, K].

        Only for media whose main block, which has the name of the medium, is a single codebook.
        """
        found = {}
        for modality in self.vocabulary.media:
            tokenizer = self.get_tokenizer(modality)
            vectors = tokenizer.code_features(modality) if len(tokenizer.codebook_sizes) == 1 else None
            if vectors is not None:
                found[modality] = vectors
        return found

    # ---- files → tensors → codes

    def read(
        self,
        path: str | Path | bytes,
        modality: str,
        start_s: float = 0.0,
        seconds: float | None = None,
        tell: Callable[[str], None] = ignore_note,
    ) -> Tensor:
        """Reads a file, or its bytes, as the medium that the model sees: [3, S, S], [T] or [T, 3, S, S].

        start_s, seconds: the part of a sound or film to take. tell: called with a sentence, which names the file, for
        everything that is left out. Raises ValueError for a file that cannot be used.
        """
        self.vocabulary.get_layout(modality)
        name = quote_path(path) if not isinstance(path, bytes) else f"the {MEDIA[modality].noun}"
        tokenizer, fit = self.get_tokenizer(modality), self.processor.image_fit
        medium = read_medium(path, tokenizer, self.limits, fit, start_s, seconds, lambda note: tell(f"{name}: {note}"))
        if not medium.numel():
            raise ValueError(f"{name}: nothing lies in so short a part; take more seconds")
        return medium

    def encode(self, modality: str, media: Sequence[Tensor]) -> list[np.ndarray]:
        """Media of one modality → codes, each int64 [N] or [N, G]. Sounds and pictures may differ in size."""
        return [codes for codes, _ in self.encode_with_grids(modality, media)]

    def encode_with_grids(self, modality: str, media: Sequence[Tensor]) -> list[tuple[np.ndarray, Grid3 | None]]:
        """`encode`, each with the grid (t, h, w) of its codes; None if they form no grid."""
        found: dict[int, tuple[np.ndarray, Grid3 | None]] = {}
        for items in group_by_size(MEDIA[modality], media):
            codes = self.encode_batch(modality, [media[item] for item in items])
            for number, item in enumerate(items):
                row = codes.row(number).cpu().numpy()
                found[item] = (row[:, 0] if row.shape[1] == 1 else row, codes.grid)
        return [found[index] for index in range(len(media))]

    def encode_batch(self, modality: str, media: Sequence[Tensor], condition: Condition | None = None) -> Codes:
        """Media of one modality and one group (`group_by_size`) → their codes, in one batch. condition: what the
        encoder reads beside them."""
        batch, lengths = stack_media(MEDIA[modality], media)
        return self.get_tokenizer(modality).encode(
            batch.to(self.device), None if lengths is None else lengths.to(self.device), condition
        )

    def encode_part(self, part: Part) -> Part:
        """The part as the model reads it: with codes or, for a model that reads through features, with the bytes of its
        file.

        Raises ValueError for a file that cannot be used.
        """
        if isinstance(part, Text) or part.codes is not None:
            return part
        if self.vocabulary.get_layout(part.modality).features is not None:
            load_image(part.source, self.limits)
            return MEDIA_PARTS[part.modality](data=self.read_content(part))
        notes: list[str] = []
        [encoded] = self.encode_parts(part.modality, [self.read_part(part, notes.append)])
        return MEDIA_PARTS[part.modality](encoded.codes, grid=encoded.grid, notes=notes)

    def encode_parts(self, modality: str, media: Sequence[Tensor]) -> list[Media]:
        """Media of one modality as parts with codes, and with their grids for a model that writes grids."""
        return [
            MEDIA_PARTS[modality](codes=codes, grid=self._find_own_grid(modality, grid))
            for codes, grid in self.encode_with_grids(modality, media)
        ]

    def _find_own_grid(self, modality: str, grid: Grid3 | None) -> tuple[int, int] | None:
        """Rows and columns, for a model that writes them beside the codes; None for others."""
        return grid[1:] if grid is not None and self.vocabulary.get_layout(modality).grid is not None else None

    def read_part(self, part: Media, tell: Callable[[str], None] = ignore_note) -> Tensor:
        """The medium of a part without codes, as `read` gives it. Raises ValueError if it is longer than the model
        takes.
        """
        medium = self.read(part.source, part.modality, part.start_s, part.seconds, tell)
        self.check_length(medium, part)
        return medium

    def check_length(self, medium: Tensor, part: Media) -> None:
        """Raises ValueError, in one line, for a medium that is longer than the model can take."""
        most, rate = self.find_max_seconds(part.modality), self.get_rate(part.modality)
        if most is None or rate is None:
            return
        duration_s = count_frames(MEDIA[part.modality], medium) / rate
        if duration_s > most:
            raise ValueError(
                f"{quote_path(part.path or f'the {MEDIA[part.modality].noun}')} lasts {duration_s:.1f} s; this model "
                f"{'hears' if part.modality == 'audio' else 'takes'} at most {most:.4g} s: cut it"
            )

    def find_max_seconds(self, modality: str) -> float | None:
        """The longest medium that the model takes, in seconds: the limit in its folder, or what its decoder has
        positions for.

        None if nothing limits it: in a folder of tokenizers alone, and for a span of fixed length.
        """
        limit = self.processor.find_limits(modality).seconds
        if limit is not None:
            return limit
        layout, positions = self.vocabulary.get_layout(modality), self.positions
        steps_per_second = self.get_tokenizer(modality).tokens_per_second
        if layout.open_segment is None or positions is None or steps_per_second is None:
            return None
        around = self.vocabulary.count_span_positions(modality, 0)
        groups = self.vocabulary.count_span_positions(modality, 1) - around
        return max(0, positions - around) // groups / steps_per_second

    # ---- files → features

    def get_reader(self, modality: str) -> MediaReader:
        """The reader of a medium that the model reads through features, loaded at first use. ValueError if it does not
        fit.
        """
        if modality not in self._readers:
            self.on_step(f"loading the {modality} reader")
            folder = locate_reader(self.folder, modality)
            reader = load_reader(folder)
            span = self.vocabulary.get_layout(modality).features
            if span is None or reader.num_features != span.count:
                wanted = 0 if span is None else span.count
                raise ValueError(f"{folder} gives {reader.num_features} features, vocabulary.json has {wanted}")
            self._readers[modality] = reader.to(self.device)
        return self._readers[modality]

    @staticmethod
    def read_content(part: Media) -> bytes:
        """The bytes of a part's file. Raises ValueError for a file that cannot be read."""
        if isinstance(part.source, bytes):
            return part.source
        try:
            return Path(part.source).read_bytes()
        except OSError as error:
            raise ValueError(f"{quote_path(part.source)} cannot be read: {error.strerror or error}") from None

    def look(self, part: Media) -> Tensor:
        """The features [N, D] of a picture in a file, or of one whose codes the model wrote."""
        if part.codes is None:
            picture = load_image(part.source, self.limits)
        else:
            picture = to_bytes(self.decode(part.modality, [part.codes], [part.grid])[0])
        reader = self.get_reader(part.modality)
        return reader.read(reader.fit(picture)[None].to(self.device))[0]

    # ---- codes → tensors

    def decode(
        self,
        modality: str,
        codes: Sequence[np.ndarray],
        grids: Sequence[tuple[int, int] | None] | None = None,
        condition: Condition | None = None,
    ) -> list[Tensor]:
        """The inverse of `encode`, on the CPU: pictures, sounds of their true lengths, or clips.

        grids: rows and columns of each picture, for models that write them; these take no condition. condition: what
        the decoder reads beside the codes.
        """
        if grids is not None and any(grids):
            return [self._decode_in_grid(modality, row, grid) for row, grid in zip(codes, grids, strict=True)]
        rows = Codes.from_rows([torch.from_numpy(np.array(row)) for row in codes])
        decoded = self.get_tokenizer(modality).decode(rows.to(self.device), condition).float().cpu()
        return split_batch(MEDIA[modality], decoded, [len(row) for row in codes])

    def _decode_in_grid(self, modality: str, row: np.ndarray, grid: tuple[int, int] | None) -> Tensor:
        codes = Codes.from_rows([torch.from_numpy(np.array(row))], grid=None if grid is None else (1, *grid))
        return self.get_tokenizer(modality).decode(codes.to(self.device))[0].float().cpu()

    def decode_part(self, part: Part, condition: Condition | None = None) -> Output:
        if isinstance(part, Text):
            return Output(part)
        [medium] = self.decode(part.modality, [part.require_codes()], [part.grid], condition)
        return Output(part, medium, self.get_rate(part.modality))

    # ---- files ⇄ codes, without the decoder

    def tokenize(
        self,
        path: str | Path | bytes,
        start_s: float = 0.0,
        seconds: float | None = None,
        tell: Callable[[str], None] = ignore_note,
        beside: Beside = NOTHING_BESIDE,
    ) -> MediaCodes:
        """The codes of a file, or of its bytes. Its content decides which medium it is; for the arguments see `read`.
        beside: what the encoder reads beside the file.

        Raises ValueError for a file that cannot be used, and for what the encoder needs or does not read.
        """
        modality = detect_kind(path, self.limits)
        tokenizer = self.get_tokenizer(modality)
        condition = make_condition(tokenizer, beside, tokenizer.encode_conditions, "encoder")
        medium = self.read(path, modality, start_s, seconds, tell)
        codes = self.encode_batch(modality, [medium], condition)
        ids = codes.row(0).cpu().numpy()
        rate = self.get_rate(modality)
        return MediaCodes(
            modality,
            self.sha256[modality],
            ids[:, 0] if ids.shape[1] == 1 else ids,
            codes.grid,
            None if rate is None else count_frames(MEDIA[modality], medium) / rate,
        )

    def detokenize(self, codes: MediaCodes, beside: Beside = NOTHING_BESIDE) -> Output:
        """The medium that codes stand for. beside: what the decoder reads beside them.

        Raises ValueError if another tokenizer made them, and for what the decoder needs or does not read.
        """
        if codes.tokenizer_sha256 != self.sha256.get(codes.modality):
            raise ValueError(
                f"the codes were made by the {codes.modality} tokenizer {codes.tokenizer_sha256} but this model has "
                f"{self.sha256.get(codes.modality)}; use the model that made them"
            )
        grid = self._find_own_grid(codes.modality, codes.grid)
        tokenizer = self.get_tokenizer(codes.modality)
        condition = make_condition(tokenizer, beside, tokenizer.decode_conditions, "decoder")
        output = self.decode_part(MEDIA_PARTS[codes.modality](codes=codes.codes, grid=grid), condition)
        if MEDIA[codes.modality].padded and codes.seconds is not None and output.rate is not None:
            assert output.media is not None
            axis, most = MEDIA[codes.modality].axes.index("t"), max(1, round(codes.seconds * output.rate))
            whole = output.media.shape[axis]
            return Output(output.part, output.media.narrow(axis, 0, min(most, whole)), output.rate)
        return output
