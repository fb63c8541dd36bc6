"""Passwords: scrypt with a salt each (RFC 7914), compared in constant time."""

import base64
import hashlib
import hmac
import os

SHORTEST, LONGEST = 10, 1024
LOG_N, R, P = 15, 8, 1  # 32 MiB and about 0.1 s for each try


def problem(password: str, name: str) -> str | None:
    """The code of the sentence that says why a password can't be chosen, or None."""
    if len(password) < SHORTEST:
        return "signin.password_short"
    if len(password) > LONGEST:
        return "signin.password_long"
    if password.casefold().strip() == name.casefold() or len(set(password)) < 4:
        return "signin.password_easy"
    return None


def store(password: str) -> str:
    """What is kept of a password; parameters, salt and digest."""
    salt = os.urandom(16)
    return f"scrypt${LOG_N}${R}${P}${_text(salt)}${_text(_digest(password, salt, LOG_N, R, P))}"


def matches(password: str, stored: str | None) -> bool:
    """Whether it is the password; takes as long where there is none, so that names can't be found out by the clock."""
    scheme, log_n, r, p, salt, digest = (stored or NOBODY).split("$")
    if scheme != "scrypt" or len(password) > LONGEST:
        return False
    found = _digest(password, base64.b64decode(salt), int(log_n), int(r), int(p))
    return hmac.compare_digest(found, base64.b64decode(digest)) and stored is not None


def _digest(password: str, salt: bytes, log_n: int, r: int, p: int) -> bytes:
    secret = password.encode("utf-8", "surrogatepass")
    return hashlib.scrypt(secret, salt=salt, n=1 << log_n, r=r, p=p, maxmem=256 << 20, dklen=32)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


NOBODY = f"scrypt${LOG_N}${R}${P}${_text(bytes(16))}${_text(bytes(32))}"
