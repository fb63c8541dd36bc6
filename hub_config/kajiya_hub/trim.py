"""What a process of the stack does first: leave out an import that costs 0.9 s of CPU and is never used."""

import sys


def trim() -> None:
    """Makes `rfc3987_syntax` an import that fails, which jsonschema expects: only the check of IRIs is left out."""
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
