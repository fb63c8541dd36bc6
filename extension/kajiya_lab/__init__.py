"""Kajiya in JupyterLab and Notebook 7: a server extension that forwards with the user's token, and widgets."""

import os
from typing import Any


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "kajiya_lab"}]


def _load_jupyter_server_extension(server: Any) -> None:
    from kajiya_lab.handlers import handlers

    # Kernels inherit it, and so can say where a file they wrote stands in the file browser.
    os.environ["KAJIYA_SERVER_ROOT"] = os.path.realpath(server.root_dir)
    server.web_app.add_handlers(".*$", handlers(server.base_url))
