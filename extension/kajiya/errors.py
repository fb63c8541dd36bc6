"""The error tree: every refusal and failure a user can meet, each with a code, parameters, a status and a sentence.

The sentence stands in `kajiya/messages` under the error's code, in each language: what happened, and what to do.
Over HTTP an error is `{"error": {"code", "message", "params"}}` with the leaf's `status`.
"""

import traceback
from collections.abc import Mapping
from typing import Any, ClassVar

from kajiya.messages import message


class KajiyaError(Exception):
    """The root: one sentence, a stable code, the parameters of the sentence, and an HTTP status."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, **params: Any) -> None:
        self.params: dict[str, Any] = params
        super().__init__(message(self.code, params, "en"))

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.params))

    said: str = ""
    """The sentence as the service said it, where the error came from there."""

    def __str__(self) -> str:
        return self.said or super().__str__()

    def sentence(self, language: str | None = None) -> str:
        """What happened and what to do, in the given or the preferred language."""
        return (self.said if language is None else "") or message(self.code, self.params, language)

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the sentence, not the inside of Kajiya; a fault of ours shows it all."""
        if type(self) is KajiyaError:
            return traceback.format_exception(self)
        return [f"{type(self).__name__}: {self.sentence()}"]

    def body(self, language: str | None = None) -> dict[str, Any]:
        """The one error body over HTTP."""
        return {"error": {"code": self.code, "message": self.sentence(language), "params": self.params}}


def _rebuild(cls: type[KajiyaError], params: dict[str, Any]) -> KajiyaError:
    return cls(**params)


# --- who may do what
class AccessError(KajiyaError):
    """Who you are, or what you may do."""

    code, status = "access", 403


class NotAuthenticated(AccessError):
    code, status = "access.not_authenticated", 401


class NotAllowed(AccessError):
    code, status = "access.not_allowed", 403


class AttemptSuperseded(AccessError):
    code, status = "access.attempt_superseded", 409


# --- there is no such thing (also said of what belongs to others, so that nothing leaks)
class NotFound(KajiyaError):
    """Nothing of that name is yours to see."""

    code, status = "not_found", 404


class JobNotFound(NotFound):
    code = "job.not_found"


class ResultNotFound(NotFound):
    code = "result.not_found"


class AttemptNotFound(NotFound):
    code = "attempt.not_found"


class SnapshotNotFound(NotFound):
    code = "snapshot.not_found"


class BlobNotFound(NotFound):
    code = "blob.not_found"


# --- what you sent can't be used
class InvalidInput(KajiyaError):
    """What was sent can't be used as it is."""

    code, status = "invalid", 422


class InvalidRequest(InvalidInput):
    code = "invalid.request"


class MethodNotAllowed(InvalidInput):
    code, status = "invalid.method", 405


class InvalidName(InvalidInput):
    code = "invalid.name"


class InvalidPath(InvalidInput):
    code = "invalid.path"


class NotebookInvalid(InvalidInput):
    code = "notebook.invalid"


class NotebookUnreadable(InvalidInput):
    code = "notebook.unreadable"


class NotebookTooLarge(InvalidInput):
    code, status = "notebook.too_large", 413


class UploadTooLarge(InvalidInput):
    code, status = "upload.too_large", 413


class NoParametersCell(InvalidInput):
    code = "parameters.no_cell"


class UnknownParameter(InvalidInput):
    code = "parameters.unknown"


class ParameterType(InvalidInput):
    code = "parameters.type"


class ParameterMissing(InvalidInput):
    code = "parameters.missing"


class UnknownProfile(InvalidInput):
    code = "profile.unknown"


class UnknownOption(InvalidInput):
    code = "profile.unknown_option"


class UnknownChoice(InvalidInput):
    code = "profile.unknown_choice"


class TooLargeForMachine(InvalidInput):
    code = "profile.too_large"


class ProfileNotAllowed(AccessError):
    code = "profile.not_allowed"


class ProfileLimit(AccessError):
    code = "profile.limit"


class KernelUnknown(InvalidInput):
    code = "kernel.unknown"


class FilesMissing(InvalidInput):
    """A file on this machine that can't be read, or a pattern that no file answers to."""

    code = "files.missing"


class FilesClash(InvalidInput):
    code = "files.clash"


class FilesChanged(InvalidInput):
    code = "files.changed"


class LayerInvalid(InvalidInput):
    """A blob or a layer is not what was said of it; parameter: problem."""

    code = "snapshot.layer_invalid"


# --- it can't be done now
class Conflict(KajiyaError):
    """It clashes with how things stand."""

    code, status = "conflict", 409


class IdempotencyConflict(Conflict):
    code = "idempotency.conflict"


class JobNotEnded(Conflict):
    code = "job.not_ended"


class JobEnded(Conflict):
    code = "job.ended"


class NotebookNotReady(Conflict):
    code = "notebook.not_ready"


class FileExists(Conflict):
    """Something of that name lies where a download would go."""

    code = "files.exists"


class SnapshotNameTaken(Conflict):
    code = "snapshot.name_taken"


class SnapshotNeeded(Conflict):
    """Something needs the snapshot; parameters: snapshot, needed_by."""

    code = "snapshot.needed"


class EnvironmentExists(Conflict):
    code = "environment.exists"


class DataDirInUse(Conflict):
    code = "data_dir.in_use"


class NoCapacity(Conflict):
    code = "capacity.none"


class LimitReached(KajiyaError):
    code, status = "limit.jobs", 429


class TooManyRequests(KajiyaError):
    code, status = "limit.requests", 429


# --- said by the client alone, of a job that it waited for
class JobFailed(KajiyaError):
    """A job that was waited for did not succeed; the parameter `reason` is the sentence that says why."""

    code, status = "job.failed", 424

    def sentence(self, language: str | None = None) -> str:
        # Beside the template, not in it: a reason is never cut short.
        return " ".join(filter(None, (super().sentence(language), str(self.params.get("reason") or ""))))

    def __str__(self) -> str:
        return self.sentence()


class JobStopped(JobFailed):
    code = "job.stopped"


class WaitTimeout(KajiyaError):
    code, status = "job.wait_timeout", 408


# --- the set-up is wrong, or something of ours can't be reached
class SetupError(KajiyaError):
    """The installation or its configuration needs mending."""

    code, status = "setup", 500


class ConfigInvalid(SetupError):
    """A configuration file is wrong; parameters: file, line, key, expected."""

    code = "config.invalid"


class DataDirUnusable(SetupError):
    code = "data_dir.unusable"


class DataDirOnNfs(SetupError):
    code = "data_dir.nfs"


class StoreNewer(SetupError):
    code = "store.newer"


class NotConfigured(SetupError):
    code = "client.not_configured"


class AccountsNeedRoot(SetupError):
    code = "accounts.need_root"


class AccountFailed(SetupError):
    code = "accounts.failed"


class HomeOfAnother(SetupError):
    code = "accounts.home_of_another"


class UvMissing(SetupError):
    code = "environment.no_uv"


class PackagesUnavailable(SetupError):
    code = "environment.packages_unavailable"


class EnvironmentFailed(SetupError):
    code = "environment.failed"


class EnvironmentUnreadable(SetupError):
    """A part of an environment can't be read; parameters: path, problem."""

    code, status = "environment.unreadable", 422


class EnvironmentChanging(SetupError):
    """A file would not stay as it is while it was read; parameter: path."""

    code, status = "environment.changing", 409


class EnvironmentNotMovable(SetupError):
    """Binary files have the environment's own path inside; parameter: paths."""

    code, status = "environment.not_movable", 422


class EnvironmentNameReserved(SetupError):
    """Names that mean something else in an image; parameter: paths."""

    code, status = "environment.name_reserved", 422


class InterpreterMissing(SetupError):
    """The interpreter that a snapshot needs is not on this machine; parameters: snapshot, python, path."""

    code, status = "environment.interpreter_missing", 422


class DiskFull(SetupError):
    code, status = "disk.full", 507


class Unreachable(KajiyaError):
    code, status = "service.unreachable", 503


class HubUnreachable(Unreachable):
    code = "hub.unreachable"


class DownloadDamaged(KajiyaError):
    code, status = "download.damaged", 502


class UnexpectedAnswer(KajiyaError):
    code, status = "service.unexpected", 502


def leaves(root: type[KajiyaError] = KajiyaError) -> list[type[KajiyaError]]:
    """Every class of the tree, the root first."""
    out = [root]
    for child in root.__subclasses__():
        out += leaves(child)
    return out


def from_body(body: Mapping[str, Any], status: int) -> KajiyaError:
    """The error that an HTTP answer carries, as the leaf it was; an unknown code gives `UnexpectedAnswer`."""
    error = body.get("error") if isinstance(body.get("error"), Mapping) else None
    if error is not None:
        for leaf in leaves():
            if leaf.code == error.get("code"):
                params = error.get("params")
                found = leaf(**(params if isinstance(params, dict) else {}))
                # The service knows more words than this client may, and speaks the reader's language.
                found.said = str(error.get("message") or "")
                return found
    return UnexpectedAnswer(status=status)
