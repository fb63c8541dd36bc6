"""Server-sent events, as the HTML standard lays them out (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One event of a stream; `id` is empty where the event carried none. A comment gives a message named `ping`."""

    name: str
    data: str
    id: str = ""


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines of a byte stream. Only CR, LF and CRLF end a line: JSON may hold the other separators Unicode knows."""
    rest = b""
    for chunk in chunks:
        rest += chunk
        # A CR at the very end may be half of a CRLF: it waits for the next chunk.
        held = rest.endswith(b"\r")
        parts = (rest[:-1] if held else rest).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        rest = parts.pop() + (b"\r" if held else b"")
        for part in parts:
            yield part.decode("utf-8", "replace")


def messages(chunks: Iterable[bytes]) -> Iterator[Message]:
    """The events of a byte stream; one cut off by the end of the stream is dropped, as the standard says."""
    name, id = "", ""
    data: list[str] = []
    for line in lines(chunks):
        if not line:
            if data:
                yield Message(name or "message", "\n".join(data), id)
            name, data, id = "", [], ""
            continue
        if line.startswith(":"):
            yield Message("ping", line[1:].strip())
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif field == "id" and "\0" not in value:
            id = value
