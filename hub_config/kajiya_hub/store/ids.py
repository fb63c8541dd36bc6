"""Job ids: sortable by time, safe in DNS names, file names and URLs."""

import secrets
import time

# Crockford's base 32 in lower case (https://www.crockford.com/base32.html): no i, l, o, u, so none is misread.
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
LENGTH = 16


def _encode(n: int, length: int) -> str:
    out = ""
    for _ in range(length):
        n, rest = divmod(n, 32)
        out = ALPHABET[rest] + out
    return out


def time_prefix(seconds: float) -> str:
    """The first ten characters of an id made at that UTC time; ids made earlier sort before it."""
    return "j" + _encode(max(0, int(seconds * 1000)) % 32**9, 9)


def new_id(now: float | None = None) -> str:
    """A new job id: `j`, nine characters of the time in milliseconds, six random ones."""
    return time_prefix(time.time() if now is None else now) + _encode(secrets.randbits(30), 6)


def is_id(text: str) -> bool:
    """Whether the text has the form of a job id; anything else never reaches a path or a query."""
    return len(text) == LENGTH and text[0] == "j" and all(c in ALPHABET for c in text[1:])
