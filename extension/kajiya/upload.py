"""A submit as it travels: one multipart body made piece by piece, so that large files are never held in memory."""

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from kajiya.errors import FilesChanged, FilesMissing

CHUNK = 256 * 1024


class Upload:
    """The body of one submit. Iterate it as often as needed: every retry reads the files again.

    Parts are `spec` (JSON), `notebook` and any number of `files`, whose filename is the relative path.
    """

    def __init__(
        self,
        spec: bytes,
        notebook: tuple[str, bytes],
        files: Mapping[str, Path],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._boundary = secrets.token_hex(16)
        self._progress = progress
        name, content = notebook
        self._parts: list[tuple[bytes, bytes | Path, int]] = [
            (self._head("spec", None, "application/json"), spec, len(spec)),
            (self._head("notebook", name, "application/x-ipynb+json"), content, len(content)),
        ]
        for path, file in files.items():
            try:
                size = file.stat().st_size
            except OSError as e:
                raise FilesMissing(path=str(file), problem=e.strerror or "it can't be read") from None
            self._parts.append((self._head("files", path, "application/octet-stream"), file, size))
        self._tail = f"--{self._boundary}--\r\n".encode()

    def _head(self, name: str, filename: str | None, kind: str) -> bytes:
        # Quoted-string of RFC 2183, in UTF-8 (RFC 7578, 4.2). Percent-escapes, which some clients write instead, can't
        # be told from a name that holds a percent sign.
        file = "" if filename is None else '; filename="' + filename.replace("\\", "\\\\").replace('"', '\\"') + '"'
        return (
            f'--{self._boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\nContent-Type: {kind}\r\n\r\n'
        ).encode("utf-8", "surrogateescape")

    @property
    def headers(self) -> dict[str, str]:
        """The headers that go with the body."""
        length = sum(len(head) + size + 2 for head, _, size in self._parts) + len(self._tail)
        return {
            "Content-Type": f"multipart/form-data; boundary={self._boundary}",
            "Content-Length": str(length),
        }

    def __iter__(self) -> Iterator[bytes]:
        total = sum(size for _, _, size in self._parts)
        sent = 0
        for head, content, size in self._parts:
            yield head
            for chunk in [content] if isinstance(content, bytes) else _read(content, size):
                yield chunk
                sent += len(chunk)
                if self._progress is not None:
                    self._progress(sent, total)
            yield b"\r\n"
        yield self._tail


def _read(file: Path, size: int) -> Iterator[bytes]:
    left = size
    try:
        with file.open("rb") as source:
            while left:
                chunk = source.read(min(CHUNK, left))
                if not chunk:
                    raise FilesChanged(path=str(file))
                left -= len(chunk)
                yield chunk
            if os.fstat(source.fileno()).st_size != size:
                raise FilesChanged(path=str(file))
    except OSError as e:
        raise FilesMissing(path=str(file), problem=e.strerror or "it can't be read") from None
