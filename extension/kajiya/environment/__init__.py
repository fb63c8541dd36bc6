"""An owner's environment: made by uv from one base, named, in the home."""

from collections.abc import Callable

from kajiya.types import Reason

Progress = Callable[[Reason], None]
"""Is told what goes on, by code and parameters; the caller says it in the reader's language."""


def silent(_: Reason) -> None:
    """A progress callback for those who do not look."""
