"""With Unix accounts: whether other accounts can run what this one installed."""

import os
import stat
import sys
from pathlib import Path

import kajiya
from kajiya.environment.base import interpreter
from kajiya.errors import SetupError


class NotOpenToAccounts(SetupError):
    """A folder on the way to something that every account needs is closed to others."""

    code = "accounts.closed"


def check(data: Path) -> None:
    """Whether other accounts may reach Kajiya, its interpreter and the homes. Raises `NotOpenToAccounts`."""
    for needed in (Path(sys.prefix), Path(kajiya.__file__).parent, Path(interpreter()), data):
        closed = closed_folder(needed)
        if closed is not None:
            raise NotOpenToAccounts(folder=closed, needed=needed)


def closed_folder(path: Path) -> Path | None:
    """The first folder on the way to a path that others may not enter, or None."""
    real = Path(os.path.realpath(path))
    for folder in [*reversed(real.parents), real]:
        if not folder.stat().st_mode & stat.S_IXOTH:
            return folder
    return None
