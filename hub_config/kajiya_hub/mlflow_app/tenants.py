"""Users of MLflow, made on the first request of each: a workspace, the right to it, an experiment Default."""

import secrets
import threading
from dataclasses import dataclass, field

from kajiya.names import slug
from kajiya_hub.mlflow_app.identity import Person

DEFAULT_EXPERIMENT = "Default"
# What MLflow keeps for itself (WorkspaceNameValidator, 3.17.2), and the shortest name it takes is two letters.
_TAKEN = frozenset({"default", "workspaces", "api", "ajax-api", "static-files"})


def workspace_of(person: Person) -> str:
    """The workspace that belongs to a person; no two persons have the same."""
    name = slug(f"service/{person.name}" if person.service else person.name)
    # A slug with a digest ends in twelve digits after its double hyphen, so this one meets none.
    return f"{name}--own" if len(name) < 2 or name in _TAKEN else name


@dataclass(slots=True)
class Tenant:
    """A workspace and the experiment in it that `0` means."""

    workspace: str
    experiment: str


@dataclass
class Tenants:
    """Makes what is missing, once, and remembers it; call it in a thread."""

    _ready: dict[str, Tenant] = field(default_factory=dict)
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def ready(self, person: Person) -> Tenant | None:
        """What is known already of a person's own workspace."""
        return self._ready.get(person.key)

    def ensure(self, person: Person) -> Tenant:
        """The person's own workspace, made if there is none."""
        with self._mutex:
            known = self._ready.get(person.key)
            if known is None:
                workspace = workspace_of(person)
                self._make_workspace(workspace, person.name)
                tenant = Tenant(workspace, self.experiment(workspace))
                self._make_user(person, workspace)
                known = self._ready[person.key] = tenant
            return known

    def experiment(self, workspace: str) -> str:
        """The id of a workspace's experiment Default, made if there is none. MlflowException if no such workspace."""
        from mlflow.server.handlers import _get_tracking_store
        from mlflow.utils.workspace_context import ServerWorkspaceContext

        if workspace == "default":
            return "0"
        with ServerWorkspaceContext(workspace):
            store = _get_tracking_store()
            found = store.get_experiment_by_name(DEFAULT_EXPERIMENT)
            return str(found.experiment_id if found else store.create_experiment(DEFAULT_EXPERIMENT, None, []))

    @staticmethod
    def _make_workspace(workspace: str, owner: str) -> None:
        from mlflow.entities import Workspace
        from mlflow.exceptions import MlflowException
        from mlflow.server.workspace_helpers import _get_workspace_store

        store = _get_workspace_store()
        try:
            store.get_workspace(workspace)
        except MlflowException:
            store.create_workspace(Workspace(name=workspace, description=owner[:500]))

    @staticmethod
    def _make_user(person: Person, workspace: str) -> None:
        from mlflow.server import auth

        if not auth.store.has_user(person.key):
            # Nobody ever signs in with a password here; there must be one.
            auth.store.create_user(person.key, secrets.token_urlsafe(32), is_admin=person.admin)
        auth.store.set_workspace_permission(workspace, person.key, "MANAGE")
