"""What the application needs to know, and the environment in which MLflow is imported."""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

SERVICE = "mlflow"


@dataclass(frozen=True)
class Options:
    """Where things lie and who answers for users.

    `folder` holds the databases and artifacts; `hub_api` is the Hub's API address; `service_api` the address of the
    workbench service's API, asked for tokens of attempts; `token` this service's own Hub token; `base_path` the path
    below which everything is served, without a closing slash; `hub_path` the Hub's path as browsers see it.
    """

    folder: Path
    hub_api: str
    token: str
    service_api: str | None = None
    base_path: str = "/services/mlflow"
    hub_path: str = "/hub"
    host: str = "127.0.0.1"
    port: int = 5000

    @classmethod
    def of_settings(cls) -> "Options":
        """Those of the running Kajiya. Raises `NotConfigured`."""
        from kajiya_hub.settings import Settings

        settings = Settings.load()
        return cls(
            folder=settings.data.mlflow,
            hub_api=settings.hub_api_url,
            token=settings.secret("mlflow.token"),
            service_api=f"{settings.service_url}/api",
            base_path=settings.mlflow_prefix,
            hub_path=f"{settings.base_url}hub",
            port=settings.ports.mlflow,
        )

    @property
    def database(self) -> str:
        """SQLAlchemy URL of experiments, runs and models."""
        return f"sqlite:///{self.folder / 'mlflow.sqlite'}"

    @property
    def users(self) -> str:
        """SQLAlchemy URL of MLflow's own users and rights."""
        return f"sqlite:///{self.folder / 'users.sqlite'}"


def prepare(options: Options) -> None:
    """Make the folder and set the environment; MLflow reads it when it is imported, so this comes first."""
    artifacts = options.folder / "artifacts"
    for folder in (options.folder, artifacts):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "_MLFLOW_"))]:
        # What is set for a user's code around us must not steer the server.
        del os.environ[name]
    os.environ.update(
        {
            # What `mlflow server` sets for its workers (mlflow/server/constants.py, 3.17.2).
            "_MLFLOW_SERVER_FILE_STORE": options.database,
            "_MLFLOW_SERVER_REGISTRY_STORE": options.database,
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": artifacts.absolute().as_uri(),
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "_MLFLOW_SGI_NAME": "uvicorn",
            "_MLFLOW_IN_JOB_EXECUTOR": "false",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
            "MLFLOW_ENABLE_WORKSPACES": "true",
            "MLFLOW_WORKSPACE_STORE_URI": options.database,
            "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",
            "MLFLOW_AUTH_ADMIN_USERNAME": "kajiya/nobody",
            "MLFLOW_AUTH_ADMIN_PASSWORD": secrets.token_hex(32),
            # Eight processes of 233 MB that run code of users with the server's rights.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            # Host and origin are checked in front, where the public address is known.
            "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true",
            "MLFLOW_ENABLE_ASSISTANT_SANDBOX": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
        }
    )
