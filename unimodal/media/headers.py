"""What a file is and how large it says it is, from its header alone: nothing is decoded here.

Sources: the format specifications (PNG ISO/IEC 15948, JPEG T.81, GIF89a, the WebP container, RIFF WAVE, Ogg RFC 3533,
ISO base media file format 14496-12, EBML RFC 8794).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from unimodal.media.files import Opened
from unimodal.media.registry import MEDIA, find_function, join_names

# name of the content → kind; "other" is recognised only so that a message can say what the file really is
KINDS = {
    "PNG picture": "image",
    "JPEG picture": "image",
    "GIF picture": "image",
    "WebP picture": "image",
    "BMP picture": "image",
    "TIFF picture": "image",
    "AVIF picture": "image",
    "HEIC picture": "image",
    "animated GIF": "video",
    "animated PNG": "video",
    "animated WebP": "video",
    "list of frames": "video",
    "MP4 or MOV file": "video",
    "WebM or Matroska file": "video",
    "AVI film": "video",
    "MPEG transport stream": "video",
    "WAV sound": "audio",
    "FLAC sound": "audio",
    "Ogg sound": "audio",
    "MP3 sound": "audio",
    "AAC sound": "audio",
    "AIFF sound": "audio",
    "AU sound": "audio",
    "CAF sound": "audio",
}
# starts of formats whose headers their decoders read themselves
_STARTS = (
    (b"BM", "BMP picture"),
    (b"II*\0", "TIFF picture"),
    (b"MM\0*", "TIFF picture"),
    (b".snd", "AU sound"),
    (b"caff", "CAF sound"),
    (b"\xff\xf1", "AAC sound"),
    (b"\xff\xf9", "AAC sound"),
)
# starts that say what an unsupported file is, and what to do with it
_OTHERS = (
    (b"\0\0\1\0", "icon", "convert it to PNG"),
    (b"%PDF", "PDF document", "export a page as PNG"),
    (b"PK\3\4", "ZIP archive", "unpack it and name one file"),
    (b"\x1f\x8b", "gzip archive", "unpack it first"),
    (b"\x1aFLV", "FLV film", "convert it to MP4"),
    (b"FLV\1", "FLV film", "convert it to MP4"),
    (b"\0\0\1\xba", "MPEG film", "convert it to MP4"),
    (b"\x30\x26\xb2\x75", "Windows Media file", "convert it to MP4 or WAV"),
    (b"#!AMR", "AMR sound", "convert it to WAV"),
)
FRAMES_FOLDER = "frames/"  # of a film that `frames.py` packs
_MAX_PARTS = 100_000  # frames, chunks, boxes or segments that a header walk visits at most
_BRANDS = {  # of ISO base media files that hold a picture
    b"heic": "HEIC picture",
    b"heix": "HEIC picture",
    b"mif1": "HEIC picture",
    b"avif": "AVIF picture",
}
STREAM_SIZES = (0, 2_000_000_000)  # of a WAV's samples where the writer did not know it; 2 GiB - 4 KiB and more too


def choose_frame_ms(declared_ms: float) -> float:
    """How long a frame of an animated picture is shown: as in browsers, 10 ms and less mean 100 ms."""
    return declared_ms if declared_ms > 10 else 100.0


@dataclass(frozen=True)
class Content:
    """What a file holds. Sizes and times are None if the header does not tell."""

    name: str  # a key of KINDS, or what an unsupported file is
    kind: str  # the name of a medium, or "other"
    advice: str = ""  # what to do with an unsupported file
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    duration_s: float | None = None
    truncated: bool = False  # the header promises more bytes than there are
    streamed: bool = False  # the writer did not know the length, and the header says so

    @property
    def described(self) -> str:
        """The name with its article."""
        return add_article(self.name)


def add_article(name: str) -> str:
    """`an MP3 sound`, `a picture`."""
    vowel = name[0] in "aeioAEIO" or name.startswith(("MP", "FLV", "SVG"))  # as it is pronounced
    return f"{'an' if vowel else 'a'} {name}"


def read_content(opened: Opened) -> Content:
    """Recognise a file by its first bytes and read what its header says. Never raises for a damaged file."""
    head = opened.read(0, 64)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return _read_png(opened, head)
    if head.startswith(b"\xff\xd8\xff"):
        return _read_jpeg(opened)
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return _read_gif(opened)
    if head.startswith((b"RIFF", b"RF64", b"RIFX")):
        return _read_riff(opened, head)
    if head.startswith(b"fLaC"):  # its number of samples, 36 bits, is 0 where the writer did not know it
        return _make_known("FLAC sound", streamed=len(head) >= 26 and not (head[21] & 15 or any(head[22:26])))
    if head.startswith(b"OggS"):
        return _read_ogg(opened)
    if head[4:8] == b"ftyp" or head[4:8] in (b"moov", b"mdat", b"free", b"wide", b"skip"):
        return _read_mp4(opened, head)
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return _read_matroska(opened)
    for medium in MEDIA.values():
        if medium.recognise is not None and find_function(medium.recognise)(head):
            return Content(medium.noun, medium.name)
    if head.startswith(b"FORM") and head[8:12] in (b"AIFF", b"AIFC"):
        return _make_known("AIFF sound")
    if head.startswith(b"G") and opened.read(188, 1) == b"G" and opened.read(376, 1) in (b"G", b""):
        return _make_known("MPEG transport stream")
    if head.startswith(b"PK\3\4") and head[30:].startswith(FRAMES_FOLDER.encode()):  # behind a ZIP member's header
        return _make_known("list of frames")
    for start, name in _STARTS:
        if head.startswith(start):
            return _make_known(name)
    for start, name, advice in _OTHERS:
        if head.startswith(start):
            return Content(name, "other", advice)
    if head.startswith(b"ID3") or is_mp3_frame(head):
        return _make_known("MP3 sound")
    return _describe_unknown(opened)


def advise_formats() -> str:
    """Advice for an unsupported file: every format that is read."""
    return f"use {join_names(name for medium in MEDIA.values() for name in medium.formats)}"


def _make_known(name: str, **fields: object) -> Content:
    return Content(name, KINDS[name], **fields)  # type: ignore[arg-type]


def _describe_unknown(opened: Opened) -> Content:
    sample = opened.read(0, 4096)
    if not any(sample):
        return Content("file of zero bytes", "other", "copy or export it again")
    try:
        text = sample.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(sample) - 4:  # not merely a character cut by the sample's end
            return Content("file of unknown type", "other")
        text = sample[: error.start].decode("utf-8")
    if not text or any(ord(c) < 32 and c not in "\t\n\r\f\x1b" for c in text):
        return Content("file of unknown type", "other")
    start = text.lstrip("\ufeff \t\r\n")[:512].lower()
    if "<svg" in start:
        return Content("SVG drawing", "other", "convert it to PNG")
    if start.startswith(("<!doctype html", "<html")):
        return Content("web page", "other", "download the picture, sound or film itself")
    return Content("text file", "other")


def is_mp3_frame(head: bytes) -> bool:
    """An MPEG audio layer III frame header: 11 sync bits, then fields none of which has its reserved value."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return False
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    return version != 1 and layer == 1 and head[2] >> 4 not in (0, 15) and head[2] >> 2 & 3 != 3


def _read_png(opened: Opened, head: bytes) -> Content:
    """Walk the chunks: size, and for an animated PNG the number of frames and how long they are shown."""
    if len(head) < 24:
        return _make_known("PNG picture", truncated=True)
    width, height = struct.unpack(">II", head[16:24])
    num_frames, duration_s, offset = 0, 0.0, 8
    for _ in range(_MAX_PARTS):
        chunk = opened.read(offset, 34)
        if len(chunk) < 12:
            break
        if chunk[4:8] == b"fcTL" and len(chunk) == 34:
            num_frames += 1
            delay, unit = struct.unpack(">HH", chunk[28:32])
            duration_s += choose_frame_ms(1000 * delay / (unit or 100)) / 1000
        elif chunk[4:8] == b"IEND" or (chunk[4:8] == b"IDAT" and not num_frames and not _is_apng(opened)):
            break
        offset += 12 + int.from_bytes(chunk[:4], "big")
    if num_frames < 2:
        return _make_known("PNG picture", width=width, height=height)
    size = {"width": width, "height": height, "num_frames": num_frames, "duration_s": duration_s}
    return _make_known("animated PNG", **size)


def _is_apng(opened: Opened) -> bool:
    """Whether an animation's control chunk stands before the picture, as it must."""
    start = opened.read(0, 4096)
    return b"acTL" in start[: start.find(b"IDAT")] if b"IDAT" in start else b"acTL" in start


def _read_jpeg(opened: Opened) -> Content:
    """Walk the markers up to the start-of-frame segment, which holds the size."""
    offset = 2
    for _ in range(_MAX_PARTS):
        segment = opened.read(offset, 9)
        if len(segment) < 9 or segment[0] != 0xFF:
            return _make_known("JPEG picture", truncated=len(segment) < 9)
        marker = segment[1]
        if marker == 0xFF or marker == 1 or 0xD0 <= marker <= 0xD8:  # fill byte, or a marker without a body
            offset += 1 if marker == 0xFF else 2
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", segment[5:9])
            return _make_known("JPEG picture", width=width, height=height)
        if marker in (0xD9, 0xDA):  # end of image or start of scan
            break
        offset += 2 + int.from_bytes(segment[2:4], "big")
    return Content("JPEG file without a picture size", "other", "export it again")


def _read_gif(opened: Opened) -> Content:
    """Walk the blocks: number of frames, duration (a zero delay plays as 0.1 s) and whether the trailer is there."""
    head = opened.read(0, 13)
    if len(head) < 13:
        return _make_known("GIF picture", truncated=True)
    width, height = struct.unpack("<HH", head[6:10])
    offset = 13 + _count_gif_table_bytes(head[10])
    num_frames, duration_cs, delay_cs = 0, 0.0, 0
    truncated = True
    while num_frames < _MAX_PARTS:
        block = opened.read(offset, 10)
        if block[:1] == b"\x3b":
            truncated = False
            break
        if block[:1] == b"\x21" and len(block) >= 6:
            if block[1] == 0xF9:  # graphic control extension
                delay_cs = int.from_bytes(block[4:6], "little")
            after = _skip_gif_blocks(opened, offset + 2)
        elif block[:1] == b"\x2c" and len(block) == 10:
            after = _skip_gif_blocks(opened, offset + 10 + _count_gif_table_bytes(block[9]) + 1)
            if after is not None:
                left, top, frame_width, frame_height = struct.unpack("<HHHH", block[1:9])
                width, height = max(width, left + frame_width), max(height, top + frame_height)
                num_frames += 1
                duration_cs += choose_frame_ms(10 * delay_cs) / 10
                delay_cs = 0
        else:
            truncated = len(block) < 10
            break
        if after is None:
            break
        offset = after
    name = "animated GIF" if num_frames > 1 else "GIF picture"
    size = {"width": width, "height": height, "num_frames": num_frames, "duration_s": duration_cs / 100}
    return _make_known(name, truncated=truncated, **size)


def _count_gif_table_bytes(flags: int) -> int:
    return 3 * (2 << (flags & 7)) if flags & 0x80 else 0


def _skip_gif_blocks(opened: Opened, offset: int) -> int | None:
    """The offset after a chain of sub-blocks; None if the file ends within it."""
    opened.stream.seek(offset)
    while True:
        size = opened.stream.read(1)
        if not size:
            return None
        if size == b"\0":
            return opened.stream.tell()
        if len(opened.stream.read(size[0])) < size[0]:
            return None


def _read_riff(opened: Opened, head: bytes) -> Content:
    form = head[8:12]
    if form == b"WEBP":
        return _read_webp(opened, head)
    if form == b"AVI ":
        return _make_known("AVI film")
    if form != b"WAVE":
        return Content("RIFF file of unknown type", "other")
    truncated = True
    for offset, name, size in _list_riff_chunks(opened, "big" if head.startswith(b"RIFX") else "little"):
        if name == b"data":
            unknown = size in STREAM_SIZES or size >= 0x7FFFF000  # written to a pipe, or RF64
            truncated = not unknown and offset + 8 + size > opened.num_bytes
            return _make_known("WAV sound", truncated=truncated, streamed=unknown and not head.startswith(b"RF64"))
    return _make_known("WAV sound", truncated=truncated)


def _read_webp(opened: Opened, head: bytes) -> Content:
    truncated = 8 + int.from_bytes(head[4:8], "little") > opened.num_bytes
    width = height = None
    animated, num_frames, duration_ms = False, 0, 0.0
    for offset, name, _ in _list_riff_chunks(opened, "little"):
        body = opened.read(offset + 8, 16)
        if name == b"VP8X" and len(body) >= 10:
            animated = bool(body[0] & 2)
            width, height = int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
        elif name == b"VP8L" and width is None and len(body) >= 5:
            bits = int.from_bytes(body[1:5], "little")
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        elif name == b"VP8 " and width is None and len(body) >= 10:
            width, height = (value & 0x3FFF for value in struct.unpack("<HH", body[6:10]))
        elif name == b"ANMF" and len(body) >= 15:
            num_frames += 1
            duration_ms += choose_frame_ms(int.from_bytes(body[12:15], "little"))
    if not animated:
        return _make_known("WebP picture", width=width, height=height, truncated=truncated, num_frames=1)
    size = {"width": width, "height": height, "num_frames": num_frames, "duration_s": duration_ms / 1000}
    return _make_known("animated WebP", truncated=truncated, **size)


def _list_riff_chunks(opened: Opened, order: str) -> list[tuple[int, bytes, int]]:
    """(offset, name, size) of each chunk with a complete header."""
    chunks: list[tuple[int, bytes, int]] = []
    offset = 12
    while len(chunks) < _MAX_PARTS and len(chunk := opened.read(offset, 8)) == 8:
        size = int.from_bytes(chunk[4:], order)  # type: ignore[arg-type]
        chunks.append((offset, chunk[:4], size))
        offset += 8 + size + size % 2
    return chunks


def _read_ogg(opened: Opened) -> Content:
    head = opened.read(0, 512)
    if b"\x80theora" in head:
        return Content("Ogg film", "other", "convert it to MP4")
    tail_offset = max(0, opened.num_bytes - 65536 - 512)  # a page has at most 65,307 bytes
    tail = opened.read(tail_offset, 65536 + 512)
    page = tail[tail.rfind(b"OggS") :]
    num_segments = page[26] if len(page) > 26 else 0
    truncated = len(page) < 27 + num_segments or len(page) < 27 + num_segments + sum(page[27 : 27 + num_segments])
    return _make_known("Ogg sound", truncated=truncated)


def _read_mp4(opened: Opened, head: bytes) -> Content:
    """Walk the top-level boxes: each must end within the file."""
    if head[4:8] == b"ftyp" and head[8:12] in _BRANDS:
        return _make_known(_BRANDS[head[8:12]])
    offset = 0
    for _ in range(_MAX_PARTS):
        if len(box := opened.read(offset, 16)) < 8:
            break
        size = int.from_bytes(box[:4], "big")
        if size == 1 and len(box) == 16:
            size = int.from_bytes(box[8:16], "big")
        if size == 0:  # to the end of the file
            offset = opened.num_bytes
            break
        if size < 8:
            break
        offset += size
    return _make_known("MP4 or MOV file", truncated=offset > opened.num_bytes)


def _read_matroska(opened: Opened) -> Content:
    """The EBML header, then the segment, whose size (unless unknown, as in a live recording) must be in the file."""
    offset = 4
    _, length, size = _read_ebml_size(opened, offset)
    offset += length + (size or 0)
    if opened.read(offset, 4) != b"\x18\x53\x80\x67":
        return _make_known("WebM or Matroska file", truncated=True)
    _, length, size = _read_ebml_size(opened, offset + 4)
    end = None if size is None else offset + 4 + length + size
    return _make_known("WebM or Matroska file", truncated=end is not None and end > opened.num_bytes)


def _read_ebml_size(opened: Opened, offset: int) -> tuple[int, int, int | None]:
    """A variable-length size: (offset, its own length in bytes, value); None for a value of all ones: unknown."""
    first = opened.read(offset, 1)
    if not first or first[0] == 0:
        return offset, 1, 0
    length = 9 - first[0].bit_length()
    value = int.from_bytes(opened.read(offset, length), "big") & ((1 << 7 * length) - 1)
    return offset, length, None if value == (1 << 7 * length) - 1 else value
