"""How a job shows itself: by a widget where a front end listens, as text everywhere else.

Widgets come from the entry point group `kajiya.display` (kajiya_lab fills it), so that nothing here imports them.
"""

import os
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, cast

GROUP = "kajiya.display"


def mimebundle(kind: str, thing: object, text: str) -> dict[str, Any] | tuple[dict[str, Any], dict[str, Any]]:
    """What a notebook's front end gets for a thing: always text, and a widget's view where one can live."""
    plain: dict[str, Any] = {"text/plain": text}
    if not front_end():
        return plain
    factory = find(kind)
    if factory is None:
        return plain
    try:
        bundle: Any = factory(thing)._repr_mimebundle_()
    except Exception as e:
        # Showing must never fail what it shows: the text stands in, and says why.
        return {"text/plain": f"{text}\n({type(e).__name__}: {e})"}
    data, metadata = cast(tuple[Any, Any], bundle) if isinstance(bundle, tuple) else (bundle, None)
    return {**(data or {}), **plain}, metadata or {}


def find(kind: str) -> Callable[[object], Any] | None:
    """The class that shows things of this kind, or None where no installed package has one that works."""
    for point in entry_points(group=GROUP, name=kind):
        try:
            return point.load()
        except ImportError:
            continue
    return None


def front_end() -> bool:
    """Whether this is a kernel that somebody may be looking at: not a script, not a terminal, not a job."""
    if os.environ.get("KAJIYA_JOB") or "IPython" not in sys.modules:
        return False
    from IPython.core.getipython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None
