"""The tar format, as bytes: written in one way only, and read strictly.

Headers are ustar (POSIX.1-1988) with pax records (POSIX.1-2001, https://pubs.opengroup.org/onlinepubs/9699919799/,
"pax") for what does not fit: long names, names that are not ASCII, sizes from 8 GiB. GNU's long names are read too.
Python's `tarfile` is not used: it allocates whatever size a pax header names, and its bytes differ between releases.
"""

from collections.abc import Callable
from dataclasses import dataclass

from kajiya.oci.errors import BlobDamaged, BlobTruncated, SparseFile, TooLarge

BLOCK = 512
END = bytes(2 * BLOCK)

FILE, HARD_LINK, SYMLINK, DIRECTORY = b"0", b"1", b"2", b"5"
_CHARACTER, _BLOCK_DEVICE, _FIFO, _CONTIGUOUS, _OLD_FILE = b"3", b"4", b"6", b"7", b"\0"
_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK, _GNU_SPARSE = b"x", b"g", b"L", b"K", b"S"

MAX_EXTENDED = 1 << 20
"""The most bytes that extended records of one entry may have."""

_OCTAL_SIZE_LIMIT = 1 << 33  # 8 GiB: eleven octal digits


@dataclass(frozen=True)
class Header:
    """One entry as the archive has it: the name as bytes, untouched."""

    path: bytes
    type: bytes
    mode: int
    size: int
    mtime: int
    target: bytes = b""
    uid: int = 0
    gid: int = 0


# --- writing
def padding(size: int) -> bytes:
    """What fills the last block of a file's content."""
    return bytes(-size % BLOCK)


def pack(header: Header) -> bytes:
    """The blocks before an entry's content; the same header always gives the same bytes."""
    records: list[tuple[bytes, bytes]] = []
    path, target, size = header.path, header.target, header.size
    if not _plain(path):
        records.append((b"path", path))
        path = _ascii(path)
    if not _plain(target):
        records.append((b"linkpath", target))
        target = _ascii(target)
    if size >= _OCTAL_SIZE_LIMIT:
        records.append((b"size", b"%d" % size))
        size = 0
    if any(not _is_utf8(value) for _, value in records):
        records.insert(0, (b"hdrcharset", b"BINARY"))
    out = b""
    if records:
        body = b"".join(_record(key, value) for key, value in records)
        out = _block(b"pax", _PAX, 0o644, len(body), header.mtime, b"", 0, 0) + body + padding(len(body))
    return out + _block(path, header.type, header.mode, size, header.mtime, target, header.uid, header.gid)


def _plain(name: bytes) -> bool:
    return len(name) <= 100 and all(32 <= c < 127 for c in name)


def _ascii(name: bytes) -> bytes:
    return bytes(c if 32 <= c < 127 else 95 for c in name[:100])


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _record(key: bytes, value: bytes) -> bytes:
    # The length counts its own digits.
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _block(name: bytes, kind: bytes, mode: int, size: int, mtime: int, target: bytes, uid: int, gid: int) -> bytes:
    head = b"%-100b%07o\0%07o\0%07o\0%011o\0%011o\0" % (b"", mode, uid, gid, size, mtime)
    head = name.ljust(100, b"\0") + head[100:]
    tail = kind + target.ljust(100, b"\0") + b"ustar\x0000" + bytes(32) + bytes(32) + b"%07o\0%07o\0" % (0, 0)
    block = (head + b"        " + tail).ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


# --- reading
class Reader:
    """Entries of a tar stream, one after the other; `read(n)` gives n bytes, fewer only at the end.

    Content that is not read is passed over. Raises `BlobTruncated`, `BlobDamaged`, `SparseFile`, `TooLarge`.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._left = 0
        self._pad = 0

    def next(self) -> Header | None:
        """The next entry, or None after the last."""
        self._pass_over()
        extended: dict[bytes, bytes] = {}
        while True:
            block = self._exactly(BLOCK)
            if block == bytes(BLOCK):
                if self._exactly(BLOCK) != bytes(BLOCK):
                    raise BlobDamaged(problem="the archive has one empty block in its middle")
                return None
            header = _parse(block)
            if header.type in (_PAX, _GNU_NAME, _GNU_LINK, _PAX_GLOBAL):
                extended |= self._extended(header)
                continue
            if header.type == _GNU_SPARSE or any(key.startswith(b"GNU.sparse") for key in extended):
                raise SparseFile(path=show(extended.get(b"path", header.path)))
            header = _with(header, extended)
            has_content = header.type not in (HARD_LINK, SYMLINK, DIRECTORY, _CHARACTER, _BLOCK_DEVICE, _FIFO)
            if header.size and not has_content:
                raise BlobDamaged(problem=f"{show(header.path)} has content, which its type can't have")
            self._left = header.size
            self._pad = -header.size % BLOCK
            return header

    def content(self, most: int) -> bytes:
        """Up to `most` bytes of the present entry's content; nothing once it is read."""
        wanted = min(most, self._left)
        if not wanted:
            return b""
        data = self._exactly(wanted)
        self._left -= wanted
        return data

    def _pass_over(self) -> None:
        while self.content(1 << 20):
            pass
        self._exactly(self._pad)
        self._pad = 0

    def _exactly(self, count: int) -> bytes:
        data = self._read(count)
        if len(data) != count:
            raise BlobTruncated()
        return data

    def _extended(self, header: Header) -> dict[bytes, bytes]:
        if header.size > MAX_EXTENDED:
            raise TooLarge(what="an extended header", limit=MAX_EXTENDED)
        body = self._exactly(header.size)
        self._exactly(-header.size % BLOCK)
        if header.type == _GNU_NAME:
            return {b"path": body.split(b"\0", 1)[0]}
        if header.type == _GNU_LINK:
            return {b"linkpath": body.split(b"\0", 1)[0]}
        # Global records (git archives have a comment there) say nothing that we would follow.
        return _records(body) if header.type == _PAX else {}


def show(name: bytes) -> str:
    """A name for a person: what is not UTF-8 is escaped."""
    return name.decode("utf-8", "backslashreplace")


def _records(body: bytes) -> dict[bytes, bytes]:
    out: dict[bytes, bytes] = {}
    while body:
        digits, space, _ = body.partition(b" ")
        if not space or not digits.isdigit() or len(digits) > 8:
            raise BlobDamaged(problem="an extended header has no length")
        length = int(digits)
        record = body[len(digits) + 1 : length]
        key, equals, value = record.partition(b"=")
        if length > len(body) or not equals or not value.endswith(b"\n") or not key:
            raise BlobDamaged(problem="an extended header is cut or has no value")
        out[key] = value[:-1]
        body = body[length:]
    return out


def _parse(block: bytes) -> Header:
    stored = _number(block[148:156], "checksum")
    if sum(block[:148]) + 32 * 8 + sum(block[156:]) != stored:
        raise BlobDamaged(problem="a header's checksum is wrong")
    path = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].split(b"\0", 1)[0]):
        path = prefix + b"/" + path
    kind = block[156:157]
    if kind in (_OLD_FILE, _CONTIGUOUS):
        kind = DIRECTORY if path.endswith(b"/") else FILE
    return Header(
        path=path,
        type=kind,
        mode=_number(block[100:108], "mode"),
        size=_number(block[124:136], "size"),
        mtime=_number(block[136:148], "time"),
        target=block[157:257].split(b"\0", 1)[0],
        uid=_number(block[108:116], "uid"),
        gid=_number(block[116:124], "gid"),
    )


def _number(field: bytes, what: str) -> int:
    if field[0] & 0x80:  # GNU's base-256, for sizes and times that octal digits can't hold
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if field[0] & 0x40 or value >= 1 << 63:
            raise BlobDamaged(problem=f"a header's {what} is negative or too large")
        return value
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise BlobDamaged(problem=f"a header's {what} is no number")
    return int(digits, 8)


def _with(header: Header, extended: dict[bytes, bytes]) -> Header:
    size = header.size
    if b"size" in extended:
        if not extended[b"size"].isdigit() or len(extended[b"size"]) > 19:
            raise BlobDamaged(problem="a header's size is no number")
        size = int(extended[b"size"])
    path = extended.get(b"path", header.path)
    target = extended.get(b"linkpath", header.target)
    return Header(path, header.type, header.mode, size, header.mtime, target, header.uid, header.gid)
