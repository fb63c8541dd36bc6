"""`python -m kajiya_hub.mlflow_app`: MLflow for the running Kajiya, in one process."""

import logging
import os
import sys
import warnings

import uvicorn

from kajiya.errors import KajiyaError
from kajiya_hub.mlflow_app import create_app
from kajiya_hub.mlflow_app.options import Options


def main() -> int:
    """Serve until SIGTERM or SIGINT; the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    os.umask(0o077)
    warnings.filterwarnings("ignore", message="starlette.middleware.wsgi is deprecated")  # MLflow's affair
    try:
        options = Options.of_settings()
        app = create_app(options)
    except KajiyaError as e:
        print(e.sentence(), file=sys.stderr)
        return 1
    uvicorn.run(
        app,
        host=options.host,
        port=options.port,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=64 * 1024,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
