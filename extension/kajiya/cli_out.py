"""What the commands print: tables and sentences for people, one JSON document for programs, and the exit status."""

import json
import os
import sys
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import typer

from kajiya.errors import (
    AccessError,
    Conflict,
    InvalidInput,
    JobFailed,
    KajiyaError,
    LimitReached,
    NotConfigured,
    NotFound,
    TooManyRequests,
    UnexpectedAnswer,
    Unreachable,
    WaitTimeout,
)
from kajiya.messages import message, preferred_language

# Exit statuses, as docs/cli.md lists them.
FAILED, USAGE, REFUSED, AWAY, TIMEOUT, INTERRUPTED = 1, 2, 3, 4, 5, 130

P = ParamSpec("P")
R = TypeVar("R")


def say(code: str, **params: Any) -> str:
    """A sentence in the reader's language."""
    return message(code, params, preferred_language())


def exit_status(error: KajiyaError) -> int:
    """The exit status that stands for an error."""
    match error:
        case JobFailed():
            return FAILED
        case WaitTimeout():
            return TIMEOUT
        case Unreachable() | NotConfigured() | UnexpectedAnswer():
            return AWAY
        case AccessError() | NotFound() | Conflict() | LimitReached() | TooManyRequests():
            return REFUSED
        case InvalidInput():
            return USAGE
        case _:
            return FAILED


def handled(command: Callable[P, R]) -> Callable[P, R]:
    """A command whose errors become one sentence (with --json the error body) and an exit status."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        as_json = bool(kwargs.get("as_json"))
        try:
            return command(*args, **kwargs)
        except KajiyaError as e:
            if as_json:
                document(e.body())
            else:
                note(e.sentence())
            raise typer.Exit(exit_status(e)) from None
        except BrokenPipeError:
            # `kajiya log | head`: the reader has enough. Nothing may be written any more, at exit either.
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    return run


def document(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")
    sys.stdout.flush()


def line(text: str = "") -> None:
    """A line on standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """A line for people on standard error, so that standard output holds only what was asked for."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows under headings: drawn to fit a terminal, in plain aligned columns of full length elsewhere."""
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for i, column in enumerate(columns):
            drawn.add_column(column, no_wrap=i == 0, overflow="fold")
        for row in rows:
            # Text, not markup: a name may hold brackets.
            drawn.add_row(*(Text(cell) for cell in row))
        Console(highlight=False).print(drawn)
        return
    for text in aligned([list(columns), *(list(r) for r in rows)]):
        line(text)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with columns below each other; East Asian characters count two."""
    widths = [max(_width(row[i]) for row in rows) for i in range(len(rows[0]))]
    pads = [[cell + " " * (w - _width(cell)) for cell, w in zip(row, widths, strict=True)] for row in rows]
    return ["  ".join(row).rstrip() for row in pads]


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text)
