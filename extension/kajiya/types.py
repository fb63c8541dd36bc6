"""The wire types: what the service, the client, the picker and the widgets say to each other.

The OpenAPI document is generated from these, and the profiles' JSON schema too. Times are UTC, sizes are bytes.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

MiB = 1024**2
GiB = 1024**3

Slug = Annotated[str, Field(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")]
Parameters = dict[str, Any]


class Wire(BaseModel):
    """Base of all wire types: unknown keys are refused in what comes in, so that a misspelt one is noticed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# --- statuses
class Status(StrEnum):
    """Where a job or an attempt stands; the last three are final."""

    queued = "queued"
    starting = "starting"
    running = "running"
    stopping = "stopping"
    succeeded = "succeeded"
    failed = "failed"
    stopped = "stopped"

    @property
    def final(self) -> bool:
        return self in FINAL


FINAL = frozenset({Status.succeeded, Status.failed, Status.stopped})
ACTIVE = frozenset({Status.starting, Status.running, Status.stopping})


class Ending(StrEnum):
    """How an attempt ended, from its exit; each class has its own retry budget."""

    succeeded = "succeeded"
    notebook_error = "notebook_error"
    kernel_died = "kernel_died"
    out_of_memory = "out_of_memory"
    timed_out = "timed_out"
    preempted = "preempted"  # also: the machine or the supervisor was lost
    could_not_start = "could_not_start"
    stopped = "stopped"


class Reason(Wire):
    """Why something waits, failed or was refused: a code, its parameters, and the sentence in the reader's language."""

    code: str
    params: dict[str, Any] = Field(default_factory=dict[str, Any])
    message: str = ""


class ErrorDetail(Reason):
    """What an error answer says."""


class ErrorBody(Wire):
    """The one error body over HTTP."""

    error: ErrorDetail


# --- resources and profiles
class Resources(Wire):
    """What a server or an attempt may use."""

    cpu: float = Field(default=1, gt=0, le=4096, description="CPUs; a fraction is a share of one.")
    memory: int = Field(default=GiB, ge=64 * MiB, description="Bytes of memory over the whole process tree.")
    gpus: int = Field(default=0, ge=0, le=64, description="Whole GPUs.")
    gpu_kind: str | None = Field(None, description="Name of the GPU model, as the machine reports it; null takes any.")


class Amount(Wire):
    """How much of one resource there is, and is free now."""

    total: float
    free: float


class GpuAmount(Wire):
    """GPUs of one kind: how many, how many free now, and their memory in bytes."""

    kind: str
    total: int
    free: int
    memory: int | None = None


class Capacity(Wire):
    """What the machine or cluster has, and what is free now."""

    cpu: Amount
    memory: Amount
    gpus: list[GpuAmount] = Field(default_factory=list[GpuAmount])
    at: datetime


class ProfileView(Wire):
    """A profile as one user sees it: what may be chosen, what it gives, and whether it can be had now."""

    slug: str
    name: str
    description: str = ""
    resources: Resources
    options: list["OptionView"] = Field(default_factory=list["OptionView"])
    available: bool = True
    reason: Reason | None = None
    limit: int | None = None
    used: int = 0


class ChoiceView(Wire):
    """One choice of an option."""

    slug: str
    name: str
    default: bool = False
    resources: Resources | None = None


class OptionView(Wire):
    """An option of a profile; `when` names the choices of other options under which it is shown."""

    slug: str
    name: str
    choices: list[ChoiceView]
    when: dict[str, list[str]] = Field(default_factory=dict[str, list[str]])


# --- who
class Whoami(Wire):
    """Who a token belongs to: a user by a Hub token, or an attempt acting for its owner."""

    name: str
    admin: bool = False
    groups: list[str] = Field(default_factory=list[str])
    kind: Literal["user", "service", "attempt"] = "user"
    job: str | None = None
    attempt: int | None = None


# --- jobs
Retries = dict[Ending, Annotated[int, Field(ge=0, le=100)]]


class JobSubmit(Wire):
    """What a submit asks for; the notebook and the files travel beside it as parts of the same request."""

    name: str | None = Field(None, max_length=200, description="Shown in lists; the notebook's name if left out.")
    notebook: str = Field(max_length=4096, description="The notebook's file name or path, for showing.")
    parameters: Parameters = Field(default_factory=dict, description="Values for the parameters cell, as JSON.")
    profile: str | None = Field(None, max_length=64, description="Slug of the profile; the first allowed if left out.")
    options: dict[str, str] = Field(default_factory=dict, description="Chosen options of the profile, by slug.")
    environment: str = Field("default", max_length=64, description="Name of the owner's environment to run in.")
    priority: int = Field(
        0,
        ge=-10,
        le=10,
        description="Higher starts earlier among the owner's own jobs; above 0 is for administrators.",
    )
    time_limit: int | None = Field(default=None, ge=1, le=31 * 86400, description="Seconds an attempt may take.")
    retries: Retries | None = Field(None, description="How often each ending is tried again; null takes the site's.")
    results: list[Annotated[str, Field(max_length=1024)]] = Field(
        default_factory=list,
        max_length=100,
        description="Patterns of files to keep, relative to the working folder.",
    )


class JobAgain(Wire):
    """Changes for running a job again; what is left out stays as it was."""

    name: str | None = Field(default=None, max_length=200)
    parameters: Parameters = Field(default_factory=dict[str, Any], description="Merged over the job's own.")
    profile: str | None = None
    options: dict[str, str] | None = None
    time_limit: int | None = None
    priority: int | None = Field(default=None, ge=-10, le=10)


ParameterKind = Literal["int", "float", "str", "bool", "list", "dict", "any"]


class ParameterSpec(Wire):
    """A parameter that a notebook declares in its parameters cell."""

    name: str
    type: ParameterKind = "any"
    items: ParameterKind | None = Field(default=None, description="Type of a list's members, where it is declared.")
    optional: bool = Field(default=False, description="Whether null may be given.")
    choices: list[Any] | None = Field(default=None, description="The only values allowed, where they are declared.")
    required: bool = Field(default=False, description="Declared without a default, so a value must be given.")
    default: Any = Field(default=None, description="The default as JSON; null where it is no plain value.")
    default_source: str = Field(default="", description="The default as it stands in the notebook.")
    help: str = Field(default="", description="The comment behind the parameter.")


class Environment(Wire):
    """What a job runs in."""

    kind: Literal["as_is", "snapshot"] = "as_is"
    name: str = "default"
    digest: str | None = None
    note: str = ""


class Progress(Wire):
    """How far the notebook is."""

    cells_total: int = 0
    cells_done: int = 0
    current: int | None = Field(default=None, description="Index among code cells of the one being executed, from 0.")
    source: str = Field(default="", description="First line of the current cell.")


class Usage(Wire):
    """What an attempt used."""

    cpu_seconds: float = 0
    memory_peak: int = 0
    wall_seconds: float = 0


class Attempt(Wire):
    """One try of a job, numbered from 1."""

    number: int
    status: Status
    ending: Ending | None = None
    exit_code: int | None = None
    reason: Reason | None = None
    usage: Usage | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None


class Result(Wire):
    """A file that a job kept."""

    path: str
    size: int
    sha256: str
    attempt: int


class Job(Wire):
    """A notebook to be run, running, or run."""

    id: str
    owner: str
    name: str
    notebook: str
    notebook_sha256: str
    files: list[str] = Field(default_factory=list[str])
    parameters: Parameters = Field(default_factory=dict[str, Any])
    profile: str
    options: dict[str, str] = Field(default_factory=dict[str, str])
    resources: Resources
    environment: Environment
    priority: int = 0
    time_limit: int | None = None
    retries: Retries = Field(default_factory=dict[Ending, int])
    results_wanted: list[str] = Field(default_factory=list[str])
    again_of: str | None = None
    status: Status
    reason: Reason | None = None
    position: int | None = Field(default=None, description="Place in the queue, from 1, while queued.")
    progress: Progress = Field(default_factory=Progress)
    attempts: list[Attempt] = Field(default_factory=list[Attempt])
    results: list[Result] = Field(default_factory=list[Result])
    submitted_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    seq: int = Field(default=0, description="Grows with every change of any job; the id of its event in the stream.")


# --- snapshots
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class SnapshotLayer(Wire):
    """A layer of a snapshot's image."""

    digest: Digest = Field(description="Of the compressed bytes: the name of its blob.")
    diff_id: Digest = Field(description="Of the tar that it unpacks to.")
    size: int = Field(ge=0, description="Compressed bytes.")
    media_type: Literal["application/vnd.oci.image.layer.v1.tar+zstd", "application/vnd.oci.image.layer.v1.tar+gzip"]


class Package(Wire):
    """An installed distribution."""

    name: str = Field(max_length=200)
    version: str = Field(max_length=200)


class SnapshotCreate(Wire):
    """An environment that was captured; its layers and its state were sent as blobs before."""

    name: str | None = Field(default=None, max_length=63, description="A name for it; none is needed.")
    environment: str = Field(default="default", max_length=64, description="The environment that was captured.")
    base: Digest | None = Field(default=None, description="The snapshot that the layers are put on.")
    layers: list[SnapshotLayer] = Field(max_length=8, description="What is new, the lowest first.")
    content: Digest = Field(description="Of all that the environment holds: the same for the same environment.")
    state: Digest = Field(description="The blob that lists what the environment holds, for the next capture.")
    interpreter: list[Annotated[str, Field(pattern=r"^/[^\x00]*/python[0-9.]*$", max_length=4096)]] = Field(
        default_factory=list[str], max_length=8, description="The interpreter outside the environment that it needs."
    )
    python: str = Field(default="", max_length=64, description="The interpreter's version.")
    packages: list[Package] = Field(default_factory=list[Package], max_length=20_000)
    note: str = Field(default="", max_length=2000)


class Snapshot(Wire):
    """A captured environment, which never changes: an OCI image, named by the digest of its manifest."""

    digest: Digest
    owner: str
    names: list[str] = Field(default_factory=list[str])
    environment: str
    base: Digest | None = Field(default=None, description="The snapshot that it was put on.")
    layers: list[SnapshotLayer] = Field(description="All of them, the lowest first.")
    content: Digest
    state: Digest
    interpreter: list[str] = Field(default_factory=list[str])
    python: str = ""
    packages: list[Package] = Field(default_factory=list[Package])
    size: int = Field(description="Compressed bytes of all layers.")
    added: int = Field(description="Compressed bytes of the layers that its base does not have.")
    note: str = ""
    created_at: datetime


T = TypeVar("T")


class Page(Wire, Generic[T]):
    """One page of a list; `next` is the cursor of the next page, null on the last."""

    items: list[T]
    next: str | None = None
    total: int


class Health(Wire):
    """Whether the service works, part by part."""

    ok: bool
    version: str
    parts: dict[str, str] = Field(description="By part: ok, or what is wrong.")
