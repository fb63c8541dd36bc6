"""From what was sent to an accepted job: everything checked, the input durable, then the store. Runs in a thread."""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import pydantic_core
from pydantic import ValidationError

from kajiya import notebook as notebooks
from kajiya import parameters, profiles
from kajiya.errors import (
    InvalidName,
    InvalidPath,
    InvalidRequest,
    KajiyaError,
    KernelUnknown,
    NotAllowed,
    NotebookTooLarge,
    UploadTooLarge,
)
from kajiya.names import safe_environment_name
from kajiya.parameters_cell import declared
from kajiya.sizes import show_size
from kajiya.types import Environment, Job, JobAgain, JobSubmit, Parameters
from kajiya_hub.api.deps import Deps
from kajiya_hub.api.errors import invalid
from kajiya_hub.api.multipart import parts
from kajiya_hub.auth import Identity
from kajiya_hub.store.files import Inbox
from kajiya_hub.store.ids import new_id
from kajiya_hub.store.paths import printable, safe_path
from kajiya_hub.store.rows import NewJob

KEY_LENGTH = 200
TIME_LIMIT = 31 * 86400


@dataclass
class Received:
    """What a submit brought; the notebook and the files lie in the inbox."""

    spec: JobSubmit
    notebook_sha256: str
    files: dict[str, str]  # path -> sha256


class Acceptor:
    """Accepts submits for one identity."""

    def __init__(self, deps: Deps, identity: Identity) -> None:
        self._deps = deps
        self._identity = identity

    # --- a new submit
    def submit(self, body: Iterable[bytes], boundary: bytes, key: str | None) -> tuple[Job, bool]:
        """Receives and accepts a submit; the flag says whether the job is new. Nothing stays of what is refused.

        Raises `KajiyaError` leaves: whatever is wrong with the notebook, the files, the parameters, the profile.
        """
        deps, owner = self._deps, self._identity.name
        check_key(key)
        id = new_id()
        with deps.files.receive(id, deps.limits.files_bytes) as inbox:
            received = self._receive(inbox, body, boundary)
            spec = received.spec
            asked = spec.model_dump(mode="json") | {
                "notebook_sha256": received.notebook_sha256,
                "files": sorted(received.files.items()),
            }
            digest = request_hash(asked)
            if key is not None and (before := deps.store.submitted(owner, key, digest)) is not None:
                return before, False
            new = self._checked(id, spec, inbox, received)
            return self._commit(replace(new, key=key, request_hash=digest), inbox)

    def _receive(self, inbox: Inbox, body: Iterable[bytes], boundary: bytes) -> Received:
        limits = self._deps.limits
        spec: JobSubmit | None = None
        notebook: str | None = None
        files: dict[str, str] = {}
        for part in parts(body, boundary):
            if part.name == "spec" and spec is None:
                spec = read_spec(part.read(limits.spec_bytes))
            elif part.name == "notebook" and notebook is None:
                try:
                    notebook = inbox.notebook(part.chunks, limits.notebook_bytes)
                except UploadTooLarge as e:
                    limit = show_size(limits.notebook_bytes)
                    name = printable(part.filename or "notebook.ipynb")
                    raise NotebookTooLarge(name=name, size=f"more than {limit}", limit=limit) from e
            elif part.name == "files":
                if len(files) >= limits.files_count:
                    raise UploadTooLarge(limit=f"{limits.files_count} files")
                hashed = _Hashed(part.chunks)
                path = inbox.file(safe_path(part.filename or ""), hashed)
                files[path] = hashed.hexdigest()
            else:
                raise InvalidRequest(field=printable(part.name) or "part", problem="unknown_part")
        if spec is None:
            raise InvalidRequest(field="spec", problem="missing")
        if notebook is None:
            raise InvalidRequest(field="notebook", problem="missing")
        return Received(spec, notebook, files)

    def _checked(self, id: str, spec: JobSubmit, inbox: Inbox, received: Received) -> NewJob:
        shown = check_notebook_name(spec.notebook)
        base = shown.rsplit("/", 1)[-1]
        name = check_name(spec.name) if spec.name else base.removesuffix(".ipynb")[:200] or base[:200]
        for pattern in spec.results:
            safe_path(pattern)
        if spec.priority > 0 and not self._identity.admin:
            raise NotAllowed(action="priority")
        data = (inbox.path / "notebook.ipynb").read_bytes()
        values = self._notebook(data, base, spec.parameters, spec.environment)
        chosen = self._profile(spec.profile, spec.options)
        return NewJob(
            id=id,
            owner=self._identity.name,
            name=name,
            notebook=shown,
            notebook_sha256=received.notebook_sha256,
            files=list(received.files),
            parameters=values,
            profile=chosen.profile,
            options=chosen.options,
            resources=chosen.resources,
            env=chosen.env,
            environment=Environment(kind="as_is", name=spec.environment),
            priority=spec.priority,
            time_limit=spec.time_limit,
            retries=self._deps.retries if spec.retries is None else spec.retries,
            results_wanted=list(spec.results),
        )

    # --- a job run again
    def again(self, source: str, changes: JobAgain, key: str | None) -> tuple[Job, bool]:
        """Accepts the inputs of an earlier job of the same owner as a new job, with changes.

        Raises `JobNotFound`, and what `submit` raises: today's rights and profiles count, not those of that day.
        """
        deps, owner = self._deps, self._identity.name
        check_key(key)
        if changes.time_limit is not None and not 1 <= changes.time_limit <= TIME_LIMIT:
            raise InvalidRequest(field="time_limit", problem="time_limit")
        old = deps.store.input_of(source, owner)
        digest = request_hash({"again_of": source} | changes.model_dump(mode="json", exclude_unset=True))
        if key is not None and (before := deps.store.submitted(owner, key, digest)) is not None:
            return before, False
        priority = old.priority if changes.priority is None else changes.priority
        if priority > 0 and not self._identity.admin:
            if changes.priority is not None:
                raise NotAllowed(action="priority")
            priority = 0
        # Another profile has other options: the old choices go with the old profile.
        same = changes.profile is None or changes.profile == old.profile
        options = changes.options if changes.options is not None else old.options if same else {}
        chosen = self._profile(changes.profile or old.profile, options)
        id = new_id()
        with deps.files.copy_input(source, id) as inbox:
            data = (inbox.path / "notebook.ipynb").read_bytes()
            base = old.notebook.rsplit("/", 1)[-1]
            values = self._notebook(data, base, old.parameters | changes.parameters, old.environment.name)
            new = replace(
                old,
                id=id,
                name=check_name(changes.name) if changes.name else old.name,
                parameters=values,
                profile=chosen.profile,
                options=chosen.options,
                resources=chosen.resources,
                env=chosen.env,
                priority=priority,
                time_limit=changes.time_limit if "time_limit" in changes.model_fields_set else old.time_limit,
                again_of=source,
                key=key,
                request_hash=digest,
            )
            return self._commit(new, inbox)

    # --- common steps
    def _profile(self, profile: str | None, options: dict[str, str]) -> profiles.Selection:
        # The limit per user counts running jobs, so the queue keeps it: a submit only waits for its turn.
        identity, deps = self._identity, self._deps
        groups = identity.whoami.groups
        return profiles.select(deps.profiles(), identity.name, groups, profile, options, deps.capacity())

    def _notebook(self, data: bytes, name: str, given: Parameters, environment: str) -> Parameters:
        """Checks the notebook, its kernel and its parameters; gives the values as they will be injected."""
        book = notebooks.read(data, name, self._deps.limits.notebook_bytes)
        values = parameters.validate(given, declared(book))
        if not safe_environment_name(environment):
            raise InvalidRequest(field="environment", problem="no_environment")
        kernels = self._deps.kernels(self._identity.name, environment)
        kernel = notebooks.kernel_name(book)
        if kernels is not None and kernel is not None and kernel not in kernels:
            raise KernelUnknown(kernel=printable(kernel), known=list(kernels))
        return values

    def _commit(self, new: NewJob, inbox: Inbox) -> tuple[Job, bool]:
        content = asdict(new)
        for private in ("request_hash", "env"):
            content.pop(private)
        inbox.document(pydantic_core.to_jsonable_python(content))
        inbox.commit()
        try:
            limit = self._deps.profiles().limits.jobs_queued
            job, created = self._deps.store.submit(new, limit)
        except KajiyaError:
            # Refused for certain. After any other failure the row may be there, and the sweep looks first.
            self._deps.files.delete(new.id)
            raise
        if not created:
            self._deps.files.delete(new.id)
        else:
            self._deps.wake()
        return job, created


class _Hashed:
    """Chunks that pass through a sha256."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._digest = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self._digest.update(chunk)
            yield chunk

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def read_spec(data: bytes) -> JobSubmit:
    """The spec of a submit. Raises `InvalidRequest` naming the field, `InvalidName`, `InvalidPath`."""
    try:
        # Not pydantic's own reader: that one takes NaN, which no answer could carry.
        raw: Any = pydantic_core.from_json(data, allow_inf_nan=False)
    except ValueError as e:
        raise InvalidRequest(field="spec", problem="json") from e
    if not isinstance(raw, dict):
        raise InvalidRequest(field="spec", problem="json")
    try:
        return JobSubmit.model_validate(raw)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        value = first.get("input")
        if first["type"] == "string_too_long" and first["loc"] == ("name",):
            raise InvalidName(name=printable(str(value)), problem="name_too_long") from e
        if first["type"] == "string_too_long" and first["loc"][0] in ("notebook", "results"):
            raise InvalidPath(path=printable(str(value))) from e
        raise invalid([first]) from e


def check_name(name: str) -> str:
    """A job's name, trimmed. Raises `InvalidName` for line breaks and other control characters."""
    trimmed = name.strip()
    if not trimmed or any(unicodedata.category(c) in ("Cc", "Cs") or c in "\u2028\u2029" for c in trimmed):
        raise InvalidName(name=printable(name), problem="name_control" if trimmed else "name_empty")
    return trimmed


def check_notebook_name(path: str) -> str:
    """The notebook's path as it is shown; it is never opened. Raises `InvalidPath`."""
    if not path.strip("/ ") or any(unicodedata.category(c) in ("Cc", "Cs") or c in "\u2028\u2029" for c in path):
        raise InvalidPath(path=printable(path))
    return path


def check_key(key: str | None) -> None:
    """Raises `InvalidRequest` for an idempotency key that is empty, long, or not printable ASCII."""
    if key is not None and not (0 < len(key) <= KEY_LENGTH and key.isascii() and key.isprintable()):
        raise InvalidRequest(field="Idempotency-Key", problem="key")


def request_hash(asked: dict[str, Any]) -> str:
    """A digest of all that was asked; equal for equal requests, whatever the order of keys."""
    text = pydantic_core.to_json(_sorted(asked))
    return hashlib.sha256(text).hexdigest()


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _sorted(value[k]) for k in sorted(value)}
    if isinstance(value, list | tuple):
        return [_sorted(v) for v in value]
    return value
