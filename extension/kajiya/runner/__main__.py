"""`python -m kajiya.runner ATTEMPT`: runs the notebook of an attempt's directory."""

import os
import sys
from pathlib import Path


def main(argv: list[str]) -> int:
    """Exit status: 0 succeeded, 1 notebook error, 2 could not start, 3 kernel died, 143 stopped."""
    if len(argv) != 2 or not Path(argv[1]).is_dir():
        print("Usage: python -m kajiya.runner ATTEMPT, where ATTEMPT is an attempt's directory.", file=sys.stderr)
        return 2
    from kajiya.runner.attempt import AttemptRun

    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    status = AttemptRun(Path(argv[1]).absolute(), log=sys.stdout).run()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    # All that matters is on the disk: the interpreter's own farewell would only cost time.
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
