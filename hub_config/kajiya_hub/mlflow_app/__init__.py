"""MLflow behind the Hub: whoever can't show who they are gets in nowhere, and each sees only what is their own.

One ASGI application stands in front of both of MLflow's web stacks (FastAPI and Flask), so no route escapes it:

- `identity` learns who asks: a Hub token, an attempt's token, or a browser signed in through the Hub (`signin`).
- `routes` says for every route of MLflow whether it is open, one's own, or refused; what is unknown is refused.
- Each user has a *workspace* of MLflow: experiments, runs, models, versions, traces and artifacts live in exactly one,
  names are free in each, and searches see one. The front end sets it; a client can't choose another's. Administrators
  may name any in the header `X-MLFLOW-WORKSPACE`. `tenants` makes user, workspace and right on the first request.
- MLflow's own auth app checks every route once more behind it: no rights by default, closed where it knows nothing.
- Experiment 0, which plain `mlflow.start_run()` uses, means the asking user's own experiment `Default`: nothing needs
  to be set up, nothing is shared. `rewrite` does that, and sets the tag `mlflow.user` to who really asked.

`python -m kajiya_hub.mlflow_app` runs it; `mlflow server --app-name kajiya` finds `create_app` too.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from kajiya_hub.mlflow_app.options import Options


def create_app(options: "Options | None" = None) -> "ASGIApp":
    """The whole application; without options those of the running Kajiya (KAJIYA_SETTINGS)."""
    from kajiya_hub.mlflow_app.build import build
    from kajiya_hub.mlflow_app.options import Options

    return build(options or Options.of_settings())
