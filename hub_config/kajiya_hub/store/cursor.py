"""Where a page of a list ended, as an opaque word that is checked when it comes back. Pure."""

import base64
import binascii
import hashlib
import json
from typing import Any

from kajiya.errors import InvalidRequest
from kajiya_hub.store.ids import is_id


def _fingerprint(filters: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(filters, sort_keys=True, default=str).encode()).hexdigest()[:12]


def make(last: str, filters: dict[str, Any]) -> str:
    """The cursor after the job `last` in the list that these filters give."""
    return base64.urlsafe_b64encode(f"1{_fingerprint(filters)}{last}".encode()).decode().rstrip("=")


def read(cursor: str, filters: dict[str, Any]) -> str:
    """The job after which to go on. Raises `InvalidRequest` for a cursor of another list, or none of ours."""
    try:
        word = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        word = ""
    version, fingerprint, last = word[:1], word[1:13], word[13:]
    if version != "1" or fingerprint != _fingerprint(filters) or not is_id(last):
        raise InvalidRequest(field="cursor", problem="it is no cursor of this list")
    return last
