"""Structured logs: one JSON object a line on standard error, with the request's id, and never with a secret."""

import json
import logging
import re
import sys
import time
import traceback
from contextvars import ContextVar
from typing import Any, TextIO

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request being answered; every line logged meanwhile carries it."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
_SECRETS = (
    re.compile(r"(?i)\b(authorization\s*[:=]\s*)?\b(token|bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(r"(?i)\b([\w-]*(?:token|secret|password|passwd|api[_-]?key|cookie))(\"?\s*[=:]\s*\"?)[^\s\"&,;]+"),
    re.compile(r"(://[^/\s:@]+):[^/\s@]+@"),
)


def redact(text: str) -> str:
    """A text without what looks like a token, a password or a secret in an address."""
    text = _SECRETS[0].sub(lambda m: f"{m.group(1) or ''}{m.group(2)} ***", text)
    text = _SECRETS[1].sub(r"\1\2***", text)
    return _SECRETS[2].sub(r"\1:***@", text)


class JsonLines(logging.Formatter):
    """A log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage())[:4000],
        }
        if (current := request_id.get()) is not None:
            line["request"] = current
        line |= {k: _plain(v) for k, v in vars(record).items() if k not in _STANDARD}
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = redact("".join(traceback.format_exception(*record.exc_info)))[-20_000:]
        return json.dumps(line, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | float) or value is None:
        return value
    return redact(str(value))[:2000]


def setup(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Sends every logger's lines through `JsonLines`; called once, by a process's main function."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("httpx", "httpcore", "alembic", "uvicorn.error", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
