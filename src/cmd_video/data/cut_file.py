"""Files that end before their own structure says: what a download or a full disk cut off.

cut_short(Path("clip.webm"))                     # "ends after 70000 of the 90000 bytes that its header names", or None

Demuxers take some of these for whole and give the frames that are left.
"""

from pathlib import Path
from typing import BinaryIO

EBML, SEGMENT = 0x1A45DFA3, 0x18538067


def cut_short(path: Path) -> str | None:
    """How a RIFF (AVI, WebP), Matroska, MP4, GIF or PNG file shows that its end is missing; None where it does not.

    Raises:
        OSError: it cannot be read.
    """
    length = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        if head[:4] == b"RIFF":
            return _too_few(length, _riff_end(file))
        if head[:4] == EBML.to_bytes(4):
            return _too_few(length, _matroska_end(file))
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return _too_few(length, _boxes_end(file, length))
        if head[:4] == b"GIF8":
            return None if _tail(file, length, 64).rstrip(b"\0").endswith(b";") else "ends without GIF's trailer"
        if head[:8] == b"\x89PNG\r\n\x1a\n":
            return None if b"IEND" in _tail(file, length, 64) else "ends without PNG's last chunk"
    return None


def _too_few(length: int, named: int) -> str | None:
    return f"ends after {length} of the {named} bytes that its header names" if length < named else None


def _tail(file: BinaryIO, length: int, count: int) -> bytes:
    file.seek(max(0, length - count))
    return file.read()


def _riff_end(file: BinaryIO) -> int:
    """First byte behind the first chunk; AVI files of more than a gigabyte have several."""
    size = int.from_bytes(file.read(8)[4:], "little")
    return 0 if size == 0xFFFFFFFF else 8 + size


def _matroska_end(file: BinaryIO) -> int:
    """First byte behind the segment; 0 where its size is not known, as in a live stream."""
    for _ in range(4):
        kind, size = _ebml_number(file, keep_marker=True), _ebml_number(file, keep_marker=False)
        if kind is None or size is None:
            return 0
        if kind == SEGMENT:
            return file.tell() + size
        file.seek(size, 1)
    return 0


def _ebml_number(file: BinaryIO, keep_marker: bool) -> int | None:
    """An identifier or a size; None for an unknown size and at the end."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    width = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(width - 1))
    if keep_marker:
        return value
    value &= (1 << 7 * width) - 1
    return None if value == (1 << 7 * width) - 1 else value


def _boxes_end(file: BinaryIO, length: int) -> int:
    """First byte behind the last of MP4's outermost boxes."""
    place = 0
    while place + 8 <= length:
        file.seek(place)
        header = file.read(16)
        size = int.from_bytes(header[:4])
        if size == 1:
            size = int.from_bytes(header[8:16])
        if size < 8:  # 0: up to the end of the file
            return 0
        place += size
    return place
