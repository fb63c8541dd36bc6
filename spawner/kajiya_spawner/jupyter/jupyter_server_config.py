"""What every server of a user begins with; read by Jupyter Server."""

import shutil
from typing import Any

c: Any = get_config()  # type: ignore[name-defined]  # noqa: F821

# Not a login shell, which would put the system's PATH before the environment's: `pip` and `kajiya` must be the user's.
c.ServerApp.terminado_settings = {"shell_command": [shutil.which("bash") or "/bin/sh"]}
# Nobody asks the internet for news on behalf of users.
c.LabApp.news_url = None
c.LabApp.check_for_updates_class = "jupyterlab.handlers.announcements.NeverCheckForUpdate"
