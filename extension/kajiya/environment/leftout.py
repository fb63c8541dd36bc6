"""What never goes into a layer: secrets, caches, what a running kernel left, and what is no file."""

import os
import re
from typing import NamedTuple

SECRET, CACHE, RUNTIME, SPECIAL, MOUNTED, OUTSIDE = "secret", "cache", "runtime", "special", "mounted", "outside"

QUIET = ""
"""The reason of what is left out without being named: everybody knows it can be made again."""


class Leftout(NamedTuple):
    """A path below the environment that is left out, and why: one of the words of this module."""

    path: str
    why: str


_SECRET_NAMES = frozenset(
    (".netrc", "_netrc", ".pypirc", ".git-credentials", ".pgpass", ".my.cnf", ".vault-token", ".dockercfg")
) | frozenset(
    (".env", "kaggle.json", "credentials.json", "jupyter_cookie_secret", "notebook_secret", ".python_history")
)
_SECRET_FOLDERS = frozenset((".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker", ".huggingface"))
_CACHE_FOLDERS = frozenset(
    [".cache", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints", ".hypothesis", ".git"]
)
_KEY_NAME = re.compile(r"id_(rsa|dsa|ecdsa|ed25519)(_sk)?|.*\.(key|pem|p8|pk8|crt|cer)", re.IGNORECASE)
_KEY_STORE = re.compile(r".*\.(p12|pfx|jks|keystore|ppk|kdbx)", re.IGNORECASE)
_KEY_CONTENT = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----|PuTTY-User-Key-File")
# Configuration that may name an index with a password, as `https://name:password@host/` or as an entry of its own.
_CONFIG_NAMES = frozenset(("pip.conf", "pip.ini", "uv.toml", ".npmrc", ".yarnrc.yml", ".condarc", "pydistutils.cfg"))
_CREDENTIALS = re.compile(
    rb"[a-z][a-z0-9+.-]*://[^/\s\"'@]*:[^/\s\"'@]+@|^\s*[\"']?(?:password|.*auth_?token|token|_auth)[\"']?\s*[=:]",
    re.IGNORECASE | re.MULTILINE,
)
_LARGEST_SNIFFED = 4 << 20
_CACHE_TAG = b"Signature: 8a477f597d28d172789f06886806bc55"  # https://bford.info/cachedir/


def judge(top: str, path: str, name: str, size: int) -> str | None:
    """Why a file is left out, or None if it is not. Only files whose names are suspicious are opened."""
    if name.startswith(("jpserver-", "nbserver-")):
        return RUNTIME
    if name.endswith((".py", ".so", ".h", ".txt", ".json", ".pyi")) and name not in _SECRET_NAMES:
        return None  # nearly all files, quickly
    if name in _SECRET_NAMES or _KEY_STORE.fullmatch(name):
        return SECRET
    if name in _CONFIG_NAMES:
        return SECRET if _holds(top, path, size, _CREDENTIALS) else None
    # Certificates are public and needed (certifi's list is a .pem): only what holds a private key is a secret.
    if _KEY_NAME.fullmatch(name):
        return SECRET if _holds(top, path, size, _KEY_CONTENT) else None
    if path == ".lock":  # uv's own mutex, there after any installation
        return QUIET
    return None


def judge_folder(top: str, path: str, name: str) -> str | None:
    """Why a folder is left out with all that is in it, or None."""
    if name == "__pycache__":
        return QUIET
    if name in _SECRET_FOLDERS or path.endswith(".config/gcloud"):
        return SECRET
    if name in _CACHE_FOLDERS:
        return CACHE
    if name == "runtime" and path.endswith("share/jupyter/runtime"):
        return RUNTIME
    return None


def is_tagged_cache(place: str) -> bool:
    """Whether a file CACHEDIR.TAG marks its folder as a cache."""
    return _read(place, len(_CACHE_TAG)) == _CACHE_TAG


def _holds(top: str, path: str, size: int, pattern: "re.Pattern[bytes]") -> bool:
    if size > _LARGEST_SNIFFED:
        return False
    return bool(pattern.search(_read(f"{top}/{path}", _LARGEST_SNIFFED)))


def _read(place: str, most: int) -> bytes:
    try:
        fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""  # the walk says later what can't be read
    try:
        with os.fdopen(fd, "rb") as file:
            return file.read(most)
    except OSError:
        return b""
