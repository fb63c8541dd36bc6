"""A multipart body as its parts come, in constant memory: nothing is kept but what the reader of a part asks for."""

import re
from collections import deque
from collections.abc import Iterable, Iterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from kajiya.errors import InvalidRequest

HEADER_BYTES = 64 * 1024
HEADERS = 16


class Part:
    """One part: its field name, its file name if it has one, and its content, to be read once and in turn."""

    def __init__(self, name: str, filename: str | None, chunks: Iterator[bytes]) -> None:
        self.name = name
        self.filename = filename
        self.chunks = chunks

    def read(self, limit: int) -> bytes:
        """The whole content. Raises `InvalidRequest` where it is longer than `limit` bytes."""
        out = bytearray()
        for chunk in self.chunks:
            out += chunk
            if len(out) > limit:
                raise InvalidRequest(field=self.name or "part", problem="too_long")
        return bytes(out)


def boundary_of(content_type: str | None) -> bytes:
    """The boundary of a multipart/form-data body. Raises `InvalidRequest`."""
    kind, options = parse_options_header(content_type or "")
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= 70:  # RFC 2046, 5.1.1
        raise InvalidRequest(field="Content-Type", problem="no_multipart")
    return boundary


def parts(body: Iterable[bytes], boundary: bytes) -> Iterator[Part]:
    """The parts of a body, one after the other; what the reader of a part leaves unread is passed over.

    Raises `InvalidRequest` where the body is no multipart body or breaks off.
    """
    return _Reader(body, boundary).parts()


class _Reader:
    def __init__(self, body: Iterable[bytes], boundary: bytes) -> None:
        self._body = iter(body)
        self._events: deque[tuple[str, bytes]] = deque()
        note = self._events.append
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": lambda: note(("begin", b"")),
                "on_header_field": lambda data, start, end: note(("field", data[start:end])),
                "on_header_value": lambda data, start, end: note(("value", data[start:end])),
                "on_header_end": lambda: note(("header", b"")),
                "on_headers_finished": lambda: note(("headers", b"")),
                "on_part_data": lambda data, start, end: note(("data", data[start:end])),
                "on_part_end": lambda: note(("end", b"")),
                "on_end": lambda: note(("done", b"")),
            },
            max_header_count=HEADERS,
            max_header_size=HEADER_BYTES,
        )

    def _next(self) -> tuple[str, bytes]:
        while not self._events:
            chunk = next(self._body, None)
            if chunk is None:
                raise InvalidRequest(field="body", problem="broken_off")
            try:
                self._parser.write(chunk)
            except FormParserError as e:
                raise InvalidRequest(field="body", problem="no_multipart") from e
        return self._events.popleft()

    def parts(self) -> Iterator[Part]:
        while True:
            kind, _ = self._next()
            if kind == "done":
                return
            name, filename = self._headers()
            content = self._content()
            yield Part(name, filename, content)
            for _ in content:
                pass

    def _headers(self) -> tuple[str, str | None]:
        field, value, disposition = b"", b"", b""
        while True:
            kind, data = self._next()
            if kind == "field":
                field += data
            elif kind == "value":
                value += data
            elif kind == "header":
                if field.lower() == b"content-disposition":
                    disposition = value
                field, value = b"", b""
            elif kind == "headers":
                break
        return _parameter(disposition, b"name") or "", _parameter(disposition, b"filename")

    def _content(self) -> Iterator[bytes]:
        while True:
            kind, data = self._next()
            if kind == "data":
                yield data
            elif kind == "end":
                return


_PARAMETER = re.compile(rb';[ \t]*([a-z]+)=(?:"((?:[^"\\]|\\.)*)"|([^;" \t]*))', re.IGNORECASE | re.DOTALL)


def _parameter(disposition: bytes, name: bytes) -> str | None:
    """A parameter of a Content-Disposition; the library's reader would take the folders off a name with backslashes."""
    for key, quoted, token in _PARAMETER.findall(disposition):
        if key.lower() == name:
            value: bytes = re.sub(rb'\\(["\\])', rb"\1", quoted) or token
            # Names are UTF-8 (RFC 7578, 5.1); what is none becomes lone surrogates, which no path may hold.
            return value.decode("utf-8", "surrogateescape")
    return None
