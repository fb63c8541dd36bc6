"""Images as values: a configuration and a manifest, made and appended to without touching a file or a network.

The formats are those of https://github.com/opencontainers/image-spec (config.md, manifest.md, image-index.md, and
annotations.md); Docker's are those of its "Image Manifest Version 2, Schema 2".
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

# What each kind of layer of Docker's is called in an OCI image; the bytes are the same.
DOCKER_LAYERS = {
    "application/vnd.docker.image.rootfs.diff.tar": LAYER,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": f"{LAYER}+gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": f"{LAYER}+zstd",
}
LAYERS = (LAYER, f"{LAYER}+gzip", f"{LAYER}+zstd")

REF_NAME = "org.opencontainers.image.ref.name"
BASE_NAME = "org.opencontainers.image.base.name"
BASE_DIGEST = "org.opencontainers.image.base.digest"
CREATED = "org.opencontainers.image.created"

# Docker's builder leaves in a configuration what describes its own container, and nothing of the image.
_DOCKER_ONLY = ("container", "container_config", "docker_version", "parent", "id", "throwaway", "Size")


@dataclass(frozen=True)
class Descriptor:
    """Names a blob: media type, digest (`sha256:…`) and size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict[str, str])
    platform: Mapping[str, Any] | None = None
    artifact_type: str | None = None

    def json(self) -> dict[str, Any]:
        """As it stands in manifests and indexes."""
        out: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.artifact_type:
            out["artifactType"] = self.artifact_type
        if self.platform:
            out["platform"] = dict(self.platform)
        if self.annotations:
            out["annotations"] = dict(sorted(self.annotations.items()))
        return out


@dataclass(frozen=True)
class NewLayer:
    """A layer to append: what names its bytes, the digest of its tar, and a line for the history."""

    descriptor: Descriptor
    diff_id: str
    created_by: str
    comment: str = ""


@dataclass(frozen=True)
class Image:
    """A configuration and a manifest that belong together, as their exact bytes."""

    config: bytes
    manifest: bytes
    media_type: str = MANIFEST

    @property
    def descriptor(self) -> Descriptor:
        """Names the image: the digest is the manifest's."""
        return describe(self.manifest, self.media_type)

    @property
    def layers(self) -> list[Descriptor]:
        """The lowest first."""
        return [descriptor(layer) for layer in json.loads(self.manifest)["layers"]]

    @property
    def diff_ids(self) -> list[str]:
        """Of the layers, the lowest first."""
        return list(json.loads(self.config)["rootfs"]["diff_ids"])


def encode(value: Any) -> bytes:
    """JSON with one form for one value, so that the same image has the same digest."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode("utf-8")


def describe(data: bytes, media_type: str) -> Descriptor:
    """The descriptor of some bytes."""
    return Descriptor(media_type, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))


def descriptor(value: Mapping[str, Any]) -> Descriptor:
    """A descriptor from its JSON, which was validated before."""
    return Descriptor(
        value["mediaType"],
        value["digest"],
        value["size"],
        value.get("annotations") or {},
        value.get("platform"),
        value.get("artifactType"),
    )


def scratch(
    architecture: str, *, env: Sequence[str] = (), created: str = "1980-01-01T00:00:00Z", **config: Any
) -> Image:
    """An image without layers. `config` takes `User`, `Entrypoint`, `Cmd`, `WorkingDir`, `Labels`."""
    runtime = {"Env": list(env)} | {k: v for k, v in config.items() if v is not None}
    whole = {
        "architecture": architecture,
        "os": "linux",
        "created": created,
        "config": runtime,
        "rootfs": {"type": "layers", "diff_ids": []},
        "history": [],
    }
    return _image(whole, [], {})


def append(
    image: Image,
    layers: Sequence[NewLayer],
    *,
    created: str,
    annotations: Mapping[str, str] | None = None,
    base_name: str = "",
    env: Mapping[str, str] | None = None,
) -> Image:
    """The image with more layers above its own; what it runs, as whom and with which variables stays.

    A Docker image becomes an OCI one, whose layers are the same blobs. The image appended to is named as the base;
    `created` is RFC 3339; `env` is added to its variables.
    """
    manifest, before = json.loads(image.manifest), json.loads(image.config)
    config: dict[str, Any] = {k: v for k, v in before.items() if k not in _DOCKER_ONLY} | {"created": created}
    config["rootfs"] = {"type": "layers", "diff_ids": [*config["rootfs"]["diff_ids"], *(x.diff_id for x in layers)]}
    config["history"] = _history(config.get("history"), len(manifest["layers"])) + [
        {"created": created, "created_by": x.created_by} | ({"comment": x.comment} if x.comment else {}) for x in layers
    ]
    if env:
        runtime = dict(config.get("config") or {})
        kept = [line for line in runtime.get("Env") or [] if line.split("=", 1)[0] not in env]
        config["config"] = runtime | {"Env": [*kept, *(f"{k}={v}" for k, v in env.items())]}
    below = [_as_oci(layer) for layer in manifest["layers"]]
    named = dict(annotations or {})
    if below:
        named[BASE_DIGEST] = image.descriptor.digest
        if base_name:
            named[BASE_NAME] = base_name
    return _image(config, [*below, *(x.descriptor.json() for x in layers)], {CREATED: created} | named)


def _image(config: Any, layers: Sequence[Any], annotations: Mapping[str, str]) -> Image:
    config_bytes = encode(config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": describe(config_bytes, CONFIG).json(),
        "layers": list(layers),
    }
    if annotations:
        manifest["annotations"] = dict(annotations)
    return Image(config_bytes, encode(manifest))


def _as_oci(layer: Mapping[str, Any]) -> dict[str, Any]:
    return dict(layer) | {"mediaType": DOCKER_LAYERS.get(layer["mediaType"], layer["mediaType"])}


def _history(history: Any, layers: int) -> list[Any]:
    """The history, which has to tell of as many layers as there are: readers match the two."""
    told: list[Any] = list(history or [])
    missing = layers - sum(1 for entry in told if not entry.get("empty_layer"))
    return [*told, *({"comment": "not told by the base image"} for _ in range(missing))] if missing > 0 else told


def artifact(
    artifact_type: str,
    blobs: Sequence[Descriptor],
    *,
    subject: Descriptor | None = None,
    annotations: Mapping[str, str] | None = None,
) -> bytes:
    """The manifest of files that are no image: a lock, a list of packages, a lineage; `subject` is what they tell of.

    Its configuration is the two bytes `{}`, which have to be stored too.
    """
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": artifact_type,
        "config": describe(b"{}", EMPTY).json(),
        "layers": [blob.json() for blob in blobs] or [describe(b"{}", EMPTY).json()],
    }
    if subject is not None:
        manifest["subject"] = Descriptor(subject.media_type, subject.digest, subject.size).json()
    if annotations:
        manifest["annotations"] = dict(annotations)
    return encode(manifest)


def index(manifests: Sequence[Descriptor], annotations: Mapping[str, str] | None = None) -> bytes:
    """An index of images."""
    value: dict[str, Any] = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [m.json() for m in manifests]}
    if annotations:
        value["annotations"] = dict(annotations)
    return encode(value)
