"""Sizes in bytes, as people write and read them."""

import math

_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def parse_size(text: str | int) -> int:
    """Bytes of a size such as `2G`, `512M`, `1.5Gi`. Raises `ValueError`."""
    if isinstance(text, int):
        return text
    body = text.strip().removesuffix("B").removesuffix("i")
    unit = body[-1:].upper() if body[-1:].isalpha() else ""
    try:
        number = float(body[: len(body) - len(unit)])
        if unit in _UNITS and math.isfinite(number) and number >= 0:
            return int(number * _UNITS[unit])
    except ValueError:
        pass
    raise ValueError(f"{text!r} is no size such as 512M or 2G")


def show_size(n: float) -> str:
    """A size as people read it: `1.5 GiB`."""
    unit = "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(n) < 1024 or unit == "TiB":
            break
        n /= 1024
    return f"{n:.0f} {unit}" if unit == "B" or n == int(n) else f"{n:.1f} {unit}"
