"""Paths of SVG drawings as a medium, and a tokenizer without weights: a code for each command and one for each point on
a grid (IconShop, arXiv 2304.14400).

A drawing is float [T, 7]: a command (1 move, 2 line, 3 curve, 4 close; 0 is padding), then x and y of two control
points and of the end, on a grid of SIDE columns and rows. What a command does not have is 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unimodal.files import write_text_atomically
from unimodal.media.files import MediaSource, open_source
from unimodal.media.limits import MediaLimits
from unimodal.media.registry import FileTarget, Medium, register
from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, MediaTokenizer
from unimodal.tokenizers.registry import register as register_tokenizer
from unimodal.tokenizers.stored import TokenizerConfig

SIDE = 64
COMMANDS = "MLCZ"
NUM_POINTS = (1, 1, 3, 0)  # of each command
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_WORD = re.compile(rf"[A-Za-z]|{_NUMBER.pattern}")
_PATH = re.compile(r"<path\b[^>]*?\sd\s*=\s*([\"'])(.*?)\1", re.DOTALL)
_VIEW = re.compile(r"<svg\b[^>]*?\sviewBox\s*=\s*[\"']([^\"']*)[\"']", re.DOTALL)
_SIZE = re.compile(r"<svg\b[^>]*?\swidth\s*=\s*[\"']([\d.]+)[^>]*?\sheight\s*=\s*[\"']([\d.]+)", re.DOTALL)
_OTHERS = re.compile(r"<(rect|circle|ellipse|line|polyline|polygon|text|image|use)\b")


# ---- files


def is_drawing(head: bytes) -> bool:
    return b"<svg" in head or head.lstrip().startswith(b"<?xml")


def load_drawing(source: MediaSource, target: FileTarget, limits: MediaLimits) -> Tensor:
    """The paths of a drawing, float [T, 7], on the grid. What is left out is told. Raises ValueError for a file without
    paths and for commands and transforms that have to be flattened first."""
    with open_source(source, limits.max_bytes) as opened:
        text, name = opened.read(0, opened.num_bytes).decode("utf-8", "replace"), opened.name
    if re.search(r"\stransform\s*=", text):
        raise ValueError(f"{name} has transforms; flatten them in an editor and export it again")
    left, top, width, height = _read_view(text, name)
    others = sorted(set(_OTHERS.findall(text)))
    if others:
        target.tell(f"only paths of {name} are read; left out are {', '.join(others)}")
    rows: list[list[float]] = []
    for _, data in _PATH.findall(text):
        try:
            rows += list(_follow_path(data))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if not rows:
        raise ValueError(f"{name} holds no path with commands; export it again")
    drawing = torch.tensor(rows)
    scale = (SIDE - 1) / torch.tensor([width, height] * 3)
    points = ((drawing[:, 1:] - torch.tensor([left, top] * 3)) * scale).round().clamp(0, SIDE - 1)
    used = torch.tensor([[0] * 6, [0] * 4 + [1] * 2, [0] * 4 + [1] * 2, [1] * 6, [0] * 6])[drawing[:, 0].long()]
    return torch.cat([drawing[:, :1], points * used], 1)


def _read_view(text: str, name: str) -> tuple[float, float, float, float]:
    """Left, top, width and height of what is drawn. ValueError where the file does not say."""
    view, size = _VIEW.search(text), _SIZE.search(text)
    numbers = [float(word) for word in _NUMBER.findall(view[1])] if view else []
    if not view and size:
        numbers = [0.0, 0.0, float(size[1]), float(size[2])]
    if len(numbers) != 4 or min(numbers[2:]) <= 0:
        raise ValueError(f"{name} says no viewBox; export it with one")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def _follow_path(data: str) -> Iterator[list[float]]:
    """The commands of `d="…"` as rows of numbers, relative ones and those along an axis made absolute lines. ValueError
    for arcs and smooth or quadratic curves, and for a path that is cut off."""
    words = _WORD.findall(data)
    x = y = start_x = start_y = 0.0
    command, at = "", 0
    while at < len(words):
        if words[at].isalpha():
            command, at = words[at], at + 1
        kind = command.upper()
        sizes = {"M": 2, "L": 2, "H": 1, "V": 1, "C": 6, "Z": 0}
        if kind not in sizes:
            raise ValueError(f"paths of the commands M, L, H, V, C and Z are read; got {command or words[at]!r}")
        taken = words[at : at + sizes[kind]]
        if len(taken) < sizes[kind] or any(word.isalpha() for word in taken):
            raise ValueError(f"a path is cut off after {command}; export it again")
        at += sizes[kind]
        numbers = [float(word) for word in taken]
        if command.islower():
            numbers = [n + (y if kind == "V" or (kind != "H" and i % 2) else x) for i, n in enumerate(numbers)]
        if kind == "Z":
            x, y = start_x, start_y
            yield [4.0, *[0.0] * 6]
            command = ""  # numbers behind it have no command
            continue
        if kind == "C":
            x, y = numbers[4:]
            yield [3.0, *numbers]
            continue
        x, y = (numbers[0], y) if kind == "H" else (x, numbers[0]) if kind == "V" else (numbers[0], numbers[1])
        yield [1.0 if kind == "M" else 2.0, 0.0, 0.0, 0.0, 0.0, x, y]
        if kind == "M":
            start_x, start_y = x, y
            command = "l" if command == "m" else "L"  # further pairs are lines


def save_drawing(drawing: Tensor, path: str | Path, rate: float | None) -> None:
    words = []
    for command, *points in drawing.round().int().tolist():
        if command:
            used = points[6 - 2 * NUM_POINTS[command - 1] :]
            words.append(COMMANDS[command - 1] + " ".join(map(str, used)))
    view = f'viewBox="0 0 {SIDE - 1} {SIDE - 1}"'
    write_text_atomically(path, f'<svg xmlns="http://www.w3.org/2000/svg" {view}><path d="{"".join(words)}"/></svg>\n')


# ---- codes


class PathConfig(TokenizerConfig):
    family: Literal["svg_paths"] = "svg_paths"
    side: int = SIDE


class PathTokenizer(MediaTokenizer):
    """Drawings ⇄ codes: 0 to 3 are the commands, then 4 + side · row + column of a point. ``encode``: [B, 7, T]."""

    modality: ClassVar[str] = "svg"
    config_class: ClassVar[type[PathConfig]] = PathConfig
    config: PathConfig

    def __init__(self, config: PathConfig):
        super().__init__(config)
        self.codebook_sizes = (len(COMMANDS) + config.side**2,)
        self.segments = ((self.modality, None),)
        self.register_buffer("side", torch.tensor(config.side))

    def list_codes(self, drawing: Tensor) -> Tensor:
        """float [T, 7] → int64 [N]. ValueError for an empty drawing and for points outside of the grid."""
        ids: list[int] = []
        for command, *points in drawing.round().int().tolist():
            if not 0 <= command <= len(COMMANDS) or not 0 <= min(points) <= max(points) < self.config.side:
                raise ValueError(f"points lie on a grid of {self.config.side} columns and rows; got {points}")
            if command:
                used = points[6 - 2 * NUM_POINTS[command - 1] :]
                pairs = zip(used[0::2], used[1::2], strict=True)
                ids += [command - 1, *(len(COMMANDS) + x + self.config.side * y for x, y in pairs)]
        if not ids:
            raise ValueError("there is a drawing without commands; leave it out")
        return torch.tensor(ids)

    def draw_codes(self, ids: list[int]) -> Tensor:
        """Codes → float [T, 7]. Points that no command waits for, and a command that lacks some, are left out."""
        rows: list[list[float]] = []
        command = -1
        points: list[float] = []
        for code in ids:
            if code < len(COMMANDS):
                command, points = code, []
            elif command >= 0:
                y, x = divmod(code - len(COMMANDS), self.config.side)
                points += [float(x), float(y)]
            if command >= 0 and len(points) == 2 * NUM_POINTS[command]:
                rows.append([command + 1.0, *[0.0] * (6 - len(points)), *points])
                command = -1
        return torch.tensor(rows or [[0.0] * 7])

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        ends = [x.shape[2]] * len(x) if lengths is None else lengths.tolist()
        rows = [self.list_codes(each[:, :end].T) for each, end in zip(x, ends, strict=True)]
        return Codes.from_rows([row.to(x.device) for row in rows], order="time")

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        rows = [self.draw_codes(codes.row(index)[:, 0].tolist()) for index in range(len(codes))]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).transpose(1, 2).to(codes.ids.device)

    def code_features(self, block: str, group: int = 0) -> Tensor | None:
        """Which command it is, and the place of a point."""
        if block not in self.block_sizes or group:
            return None
        commands = torch.cat([torch.eye(len(COMMANDS)), torch.zeros(len(COMMANDS), 2)], 1)
        places = torch.arange(self.config.side**2)
        points = torch.stack([places % self.config.side, places // self.config.side], 1) / self.config.side
        return torch.cat([commands, torch.cat([torch.zeros(len(points), len(COMMANDS)), points], 1)])


register(
    Medium(
        name="svg",
        noun="drawing",
        suffixes=(".svg",),
        formats=("SVG",),
        sent_as=(".svg", "image/svg+xml"),
        ask="sketch",
        axes="tc",
        padded=True,
        recognise=f"{__name__}:is_drawing",
        load=f"{__name__}:load_drawing",
        save=f"{__name__}:save_drawing",
    )
)
register_tokenizer(PathTokenizer)
