"""The Hub's process: `python -m kajiya_hub.hub`; JupyterHub, which waits for no service when it starts."""

from kajiya_hub.trim import trim

trim()

import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from jupyterhub.app import JupyterHub  # noqa: E402


class KajiyaHub(JupyterHub):
    """JupyterHub whose external services are routed at once: they start beside it, and may be slower."""

    name = "jupyterhub"

    async def start_service(self, service_name: str, service: Any, ssl_context: Any = None) -> bool:
        if service.managed:
            return await super().start_service(service_name, service, ssl_context)
        return True


def config_file() -> Path:
    """The configuration file: in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "jupyterhub_config.py"
    return inside if inside.exists() else package.parent / "jupyterhub_config.py"


def main() -> None:
    """Runs the Hub until it is ended."""
    KajiyaHub.launch_instance([f"--config={config_file()}", *sys.argv[1:]])


if __name__ == "__main__":
    main()
