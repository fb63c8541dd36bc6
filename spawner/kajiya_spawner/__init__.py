"""Inside the Hub's process: the profile picker and the spawners.

What a Hub's configuration sets (`configure` does all of it but the traits of the spawner):

- `c.JupyterHub.spawner_class = "kajiya_spawner.local.LocalSpawner"`
- `c.JupyterHub.template_paths`, `template_vars`, `extra_handlers`: see `configure`
- `c.LocalSpawner.homes_dir`, `machine_dir`, `servers_dir`: folders, required
- `c.LocalSpawner.accounts`: a Unix account for each user (False)
- `c.LocalSpawner.profiles_file`: a profile file; where there is none the defaults for this machine
- `c.LocalSpawner.service_url`, `mlflow_url`: into KAJIYA_API_URL and MLFLOW_TRACKING_URI of servers
- `c.LocalSpawner.prepare`: async `(user, progress)` that makes the user's environment; `progress` takes `Reason`s
  and may be called from any thread
- `c.LocalSpawner.variables`: more environment variables of servers, such as the site's
- `c.LocalSpawner.server_token_scopes` and `c.JupyterHub.load_roles` as for any spawner
"""

from typing import Any

from kajiya_spawner.look import static_path as static_path
from kajiya_spawner.look import template_path as template_path
from kajiya_spawner.look import template_vars as template_vars


def configure(c: Any) -> None:
    """Puts Kajiya's pages before the Hub's: templates, what they need, and the routes they ask."""
    from kajiya_spawner.handlers import hub_handlers

    _extend(c.JupyterHub, "template_paths", [template_path()])
    _extend(c.JupyterHub, "extra_handlers", hub_handlers())
    variables = c.JupyterHub.get("template_vars") if "template_vars" in c.JupyterHub else {}
    c.JupyterHub.template_vars = {**variables, **template_vars()}


def _extend(section: Any, name: str, values: list[Any]) -> None:
    # An unset key of a traitlets Config answers with a lazy value, which is no list.
    present = list(section[name]) if name in section and isinstance(section[name], list) else []
    section[name] = [*present, *values]
