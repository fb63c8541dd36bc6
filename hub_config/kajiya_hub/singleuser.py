"""A user's server: `python -m kajiya_hub.singleuser`; JupyterHub's own, with the idle rule of the chosen profile."""

from kajiya_hub.trim import trim

trim()

import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Mapping  # noqa: E402


def idle_arguments(environment: Mapping[str, str]) -> list[str]:
    """Jupyter's options for the minutes in KAJIYA_IDLE_MINUTES; none where the profile has no idle rule.

    A kernel or terminal that did nothing for so long is ended, open in a browser or not; one that runs a cell is not.
    A server in which nothing was done for so long, and where none of them is left, ends itself.
    """
    minutes = environment.get("KAJIYA_IDLE_MINUTES", "")
    if not minutes.isdecimal() or int(minutes) < 1:
        return []
    seconds = int(minutes) * 60
    return [
        f"--MappingKernelManager.cull_idle_timeout={seconds}",
        "--MappingKernelManager.cull_interval=60",
        "--MappingKernelManager.cull_connected=True",
        "--MappingKernelManager.cull_busy=False",
        f"--TerminalManager.cull_inactive_timeout={seconds}",
        "--TerminalManager.cull_interval=60",
        f"--ServerApp.shutdown_no_activity_timeout={seconds}",
    ]


# JupyterHub's own would let a token that was revoked, or whose user signed out, work here for five minutes more.
REMEMBER = "--HubOAuth.cache_max_age=10"


def main() -> None:
    """Runs the server until it is ended."""
    from jupyterhub.singleuser import main as run

    sys.argv[1:] = [REMEMBER, *idle_arguments(os.environ), *sys.argv[1:]]
    run()


if __name__ == "__main__":
    main()
