"""Puts MLflow, its auth app and the front end together."""

import logging
from typing import Any

from starlette.types import ASGIApp

from kajiya_hub.mlflow_app.options import Options, prepare
from kajiya_hub.trim import trim

log = logging.getLogger("kajiya.mlflow")


def build(options: Options) -> ASGIApp:
    """The whole application.

    Raises `OSError` if the folder can't be made, `MlflowException` if a database can't be used.
    """
    trim()
    prepare(options)
    # Only after `prepare`: these read the environment when they are imported.
    from mlflow.server import auth
    from mlflow.server.handlers import initialize_backend_stores

    from kajiya_hub.mlflow_app.front import Front
    from kajiya_hub.mlflow_app.identity import Identities
    from kajiya_hub.mlflow_app.signin import SignIn
    from kajiya_hub.mlflow_app.tenants import Tenants

    auth.auth_config = auth.auth_config._replace(
        default_permission="NO_PERMISSIONS",
        database_uri=options.users,
        authorization_function="kajiya_hub.mlflow_app.bridge:authorize",
        grant_default_workspace_access=False,
    )
    initialize_backend_stores(
        options.database, options.database, "mlflow-artifacts:/", workspace_store_uri=options.database
    )
    # A FastAPI application, because `prepare` named uvicorn as the server.
    app: Any = auth.create_app()
    return Front(app, options.base_path, Identities(options), SignIn(options), Tenants())
