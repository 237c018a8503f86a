"""A tour of a released model, what `make demo` runs: it describes a picture, draws one, writes down speech, speaks,
describes a clip and makes one.

    python recipes/demo.py [--model model_cards/nano] [--out gallery] [--seed 0]

Everything that is read and made goes into a gallery folder with an index.html. What the model is shown lies in the
`samples` folder of the model: any pictures, sounds and clips. A kind that has no sample is skipped with a line.
"""

from __future__ import annotations

import argparse
import html
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from unimodal.files import join_lines

if TYPE_CHECKING:
    from unimodal.pipeline import Output, Unimodal

ROOT = Path(__file__).resolve().parents[1]
MAX_SAMPLES = 6
DRAW = ("a red apple", "a cat", "a house", "a sunflower", "a rocket", "a smiling face with sunglasses")
SAY = ("this is a small model", "the sun is in the garden")
FILM = ("a beating heart", "a rocket", "a dancing person")
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #222 }
.row { display: flex; flex-wrap: wrap; gap: 1.5rem } figure { margin: 0; width: 12rem }
figure img { width: 12rem; height: 12rem; image-rendering: pixelated; border: 1px solid #ddd }
figure.sound { width: 25rem } figure.sound img { width: 25rem; height: 8rem } audio { width: 100% }
figcaption { font-size: .9rem }
"""


@dataclass
class Gallery:
    """The folder and the page that shows what is in it."""

    folder: Path
    sections: list[str] = field(default_factory=list)
    _figures: list[str] = field(default_factory=list)

    def begin(self, title: str) -> None:
        self._figures = []
        self.sections.append(f"<h2>{html.escape(title)}</h2>")

    def show(self, picture: str, caption: str, sound: str | None = None) -> None:
        player = f'<audio controls src="{html.escape(sound)}"></audio>' if sound else ""
        self._figures.append(
            f'<figure{" class=sound" if sound else ""}><img src="{html.escape(picture)}" alt="">{player}'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )

    def end(self, note: str = "") -> None:
        body = "\n".join(self._figures) or f"<p>{html.escape(note)}</p>"
        self.sections.append(f'<div class="row">\n{body}\n</div>')

    def write(self, model: str) -> Path:
        from unimodal.files import write_text_atomically

        title = f"What {model} does"
        page = f'<!doctype html>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n'
        page += f"<h1>{html.escape(title)}</h1>\n" + "\n".join(self.sections) + "\n"
        write_text_atomically(self.folder / "index.html", page)
        return self.folder / "index.html"


class Tour:
    def __init__(self, model: Unimodal, gallery: Gallery, samples: Path, seed: int) -> None:
        self.model, self.gallery, self.seed = model, gallery, seed
        self.samples = _sort_by_kind(samples)

    def describe(self, kind: str, title: str) -> None:
        """Asks the model about every sample of a kind."""
        from unimodal.sequence.document import MEDIA_PARTS, Document

        files = self.samples.get(kind, [])[:MAX_SAMPLES]
        if kind not in self.model.vocabulary.media or not files:
            self._skip(title, f"there is no {kind} in the model's samples")
            return
        turns = [self.model.user_turn([MEDIA_PARTS[kind](path=str(path))]) for path in files]
        answers = self.model.answers([Document([turn]) for turn in turns], to="text")
        self._write_title(title)
        for path, answer in zip(files, answers, strict=True):
            words = " ".join(output.text for output in answer).strip() or "(no words)"
            name = self._keep_file(path)
            self.gallery.show(*self._draw_frame(kind, name, f"{path.stem}: {words}"))
            print(f"  {path.name}: {words}", flush=True)
        self.gallery.end()

    def make(self, kind: str, title: str, prompts: tuple[str, ...], suffix: str) -> None:
        """Makes one medium for every prompt."""
        if kind not in self.model.vocabulary.media:
            self._skip(title, f"this model makes no {kind}")
            return
        self._write_title(title)
        for number, prompt in enumerate(prompts, start=1):
            started_s = time.monotonic()
            output: Output = self.model.generate(prompt, kind, seed=self.seed + number)
            name = f"made-{kind}-{number}{suffix}"
            output.save(self.gallery.folder / name)
            self.gallery.show(*self._draw_frame(kind, name, prompt))
            print(f"  {prompt}: {name} ({time.monotonic() - started_s:.1f} s)", flush=True)
        self.gallery.end()

    def _draw_frame(self, kind: str, name: str, caption: str) -> tuple[str, str, str | None]:
        """What the page shows of a file in the gallery: itself, its frames as a GIF, or its spectrogram."""
        path = self.gallery.folder / name
        if kind == "audio":
            from unimodal.media.audio import load_audio
            from unimodal.media.image import save_image
            from unimodal.media.preview import draw_spectrogram

            picture = f"{path.stem}-spectrogram.png"
            save_image(draw_spectrogram(load_audio(path), 16_000), self.gallery.folder / picture)
            return picture, caption, name
        if kind == "video" and path.suffix not in (".gif", ".webp"):
            from unimodal.media.video import load_video, save_video

            picture = f"{path.stem}.gif"
            save_video(load_video(path, 8), self.gallery.folder / picture, 8)
            return picture, caption, None
        return name, caption, None

    def _keep_file(self, path: Path) -> str:
        name = f"shown-{path.name}"
        shutil.copyfile(path, self.gallery.folder / name)
        return name

    def _write_title(self, title: str) -> None:
        print(title, flush=True)
        self.gallery.begin(title)

    def _skip(self, title: str, reason: str) -> None:
        self._write_title(title)
        print(f"  skipped: {reason}", flush=True)
        self.gallery.end(f"Skipped: {reason}.")


def _sort_by_kind(folder: Path) -> dict[str, list[Path]]:
    """The media in a folder by what they hold; other files (a list of sources, say) are left alone."""
    from unimodal.media.kind import detect_kind

    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_file() and not path.name.startswith("."):
            try:
                found.setdefault(detect_kind(path), []).append(path)
            except ValueError:
                continue
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="a model folder or hub id; by default the nano that is here")
    parser.add_argument("--out", type=Path, default=ROOT / "gallery", help="the gallery folder")
    parser.add_argument("--samples", type=Path, default=None, help="media to show; by default the model's own samples")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        run_tour(args.model, args.out, args.samples, args.seed)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        print(f"demo: {join_lines(str(error))}", file=sys.stderr)
        return 2
    return 0


def run_tour(name: str | None, out: Path, samples: Path | None, seed: int) -> None:
    from unimodal.cli.progress import Reporter
    from unimodal.model_folder.find import find_model

    folder = find_model(name)
    if samples is not None and not samples.is_dir():
        raise ValueError(f"--samples {samples}: no such folder")
    out.mkdir(parents=True, exist_ok=True)
    with Reporter() as report:
        report("starting")
        from unimodal.pipeline import load

        model = load(folder, on_step=report)
    gallery = Gallery(out)
    guide = Tour(model, gallery, samples or folder / "samples", seed)
    steps: list[Callable[[], None]] = [
        lambda: guide.describe("image", "It describes pictures"),
        lambda: guide.make("image", "It draws", DRAW, ".png"),
        lambda: guide.describe("audio", "It writes down what is said"),
        lambda: guide.make("audio", "It speaks", SAY, ".wav"),
        lambda: guide.describe("video", "It describes clips"),
        lambda: guide.make("video", "It makes clips", FILM, ".gif"),
    ]
    for step in steps:
        step()
    print(f"The gallery lies in {gallery.write(folder.name)}")


if __name__ == "__main__":
    sys.exit(main())
