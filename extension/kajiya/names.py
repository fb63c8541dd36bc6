"""Names of users, made fit for folders and Unix accounts without two users ever meeting in one."""

import hashlib
import re

_PLAIN = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
_LONGEST = 25  # with the account's prefix, the 32 characters that Linux allows an account
ACCOUNT_PREFIX = "kajiya-"


def slug(name: str) -> str:
    """A folder's name for a user's: a plain name stays as it is, any other gets a digest; never equal for two names.

    At most 25 of `a-z 0-9 -`, begins with a letter.
    """
    if len(name) <= _LONGEST and _PLAIN.fullmatch(name):
        return name
    # A plain name holds no double hyphen, so no plain name equals one with a digest.
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    readable = re.sub(r"[^a-z0-9]+", "-", name[:100].lower()).strip("-")[:10].strip("-")
    if not readable or not readable[0].isalpha():
        readable = f"u-{readable}"[:10].strip("-") if readable else "u"
    return f"{readable}--{digest}"


def account(name: str) -> str:
    """The Unix account of a user, at most 32 characters."""
    return ACCOUNT_PREFIX + slug(name)


def safe_environment_name(name: str) -> bool:
    """Whether a name may name an environment: it becomes a folder."""
    return len(name) <= 63 and re.fullmatch(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?", name) is not None


def safe_snapshot_name(name: str) -> bool:
    """Whether a name may name a snapshot: 1 to 63 printable characters that can't be taken for a path or a digest."""
    if not 1 <= len(name) <= 63 or not name.isprintable() or name != name.strip() or "/" in name:
        return False
    return not name.startswith((".", "-", "sha256:"))
