"""Manifests, configurations and indexes from elsewhere, checked strictly before anything is believed of them."""

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from kajiya.oci.errors import (
    AlgorithmUnknown,
    DigestInvalid,
    DigestMismatch,
    IndexInsteadOfManifest,
    ManifestInvalid,
    ManifestTooLarge,
    MediaTypeRefused,
)
from kajiya_hub.oci import image

MAX_MANIFEST = 4 << 20
"""Bytes; what the distribution specification asks registries to take, and no more."""

MAX_CONFIG = 8 << 20
MAX_LAYERS = 500
MAX_BLOB = 1 << 40

_ALGORITHM = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def digest(text: object) -> str:
    """The digest, if it is one that is used here: sha256. Raises `DigestInvalid`, `AlgorithmUnknown`."""
    if not isinstance(text, str) or len(text) > 300:
        raise DigestInvalid(digest=str(text)[:80])
    algorithm, colon, value = text.partition(":")
    if not colon or not _ALGORITHM.fullmatch(algorithm) or not value:
        raise DigestInvalid(digest=text[:80])
    if algorithm != "sha256":
        raise AlgorithmUnknown(digest=text[:80], algorithm=algorithm)
    if not _SHA256.fullmatch(value):
        raise DigestInvalid(digest=text[:80])
    return text


def manifest(data: bytes, *, media_type: str | None = None, expected: str | None = None) -> dict[str, Any]:
    """The manifest of one image. `media_type` is what the bearer said it is, `expected` the digest asked for.

    Raises `ManifestInvalid` and its leaves, and `DigestMismatch`.
    """
    value = _document(data, MAX_MANIFEST, expected)
    said = _plain(media_type)
    kind = value.get("mediaType", said or image.MANIFEST)
    # A document that is both at once is read as either by different tools (CVE-2021-41190), so it is neither.
    if "manifests" in value and ("layers" in value or "config" in value):
        _wrong("it is a manifest and an index at once")
    if kind in (image.INDEX, image.DOCKER_INDEX) or said in (image.INDEX, image.DOCKER_INDEX) or "manifests" in value:
        raise IndexInsteadOfManifest()
    if kind not in (image.MANIFEST, image.DOCKER_MANIFEST):
        raise MediaTypeRefused(media_type=str(kind)[:100])
    if said is not None and said != kind:
        _wrong(f"it came as {said} and says {kind} of itself")
    _version(value)
    docker = kind == image.DOCKER_MANIFEST
    config = _descriptor(value.get("config"), "config")
    artifact = value.get("artifactType")
    if artifact is not None and not isinstance(artifact, str):
        _wrong("artifactType is no text")
    if not artifact:
        _media_type(config, (image.DOCKER_CONFIG,) if docker else (image.CONFIG,))
    if config["size"] > MAX_CONFIG:
        raise ManifestTooLarge(size=config["size"], limit=MAX_CONFIG)
    layers = _list(value.get("layers"), "layers")
    if len(layers) > MAX_LAYERS:
        _wrong(f"it has more than {MAX_LAYERS} layers")
    for number, layer in enumerate(layers, 1):
        checked = _descriptor(layer, f"layer {number}")
        if not artifact:
            _media_type(checked, tuple(image.DOCKER_LAYERS) if docker else image.LAYERS)
    if value.get("subject") is not None:
        _descriptor(value["subject"], "subject")
    _annotations(value)
    return value


def config(data: bytes, manifest: dict[str, Any]) -> dict[str, Any]:
    """The configuration that belongs to a validated manifest. Raises `ManifestInvalid`, `DigestMismatch`."""
    value = _document(data, MAX_CONFIG, manifest["config"]["digest"])
    if len(data) != manifest["config"]["size"]:
        _wrong("the configuration has another size than the manifest says")
    for key in ("architecture", "os"):
        if not isinstance(value.get(key), str):
            _wrong(f"the configuration has no {key}")
    rootfs = value.get("rootfs")
    if not isinstance(rootfs, dict) or rootfs.get("type") != "layers":
        _wrong("the configuration's rootfs is not made of layers")
    diff_ids = _list(rootfs.get("diff_ids"), "diff_ids")
    if len(diff_ids) != len(manifest["layers"]):
        _wrong(f"the configuration has {len(diff_ids)} layers and the manifest {len(manifest['layers'])}")
    for diff_id in diff_ids:
        digest(diff_id)
    told = [_object(entry, "a line of the history") for entry in _list(value.get("history") or [], "history")]
    if told and sum(1 for entry in told if entry.get("empty_layer") is not True) > len(diff_ids):
        _wrong("the history tells of more layers than there are")
    runtime = _object(value.get("config") or {}, "config")
    for key in ("Env", "Entrypoint", "Cmd"):
        _texts(runtime.get(key), key)
    for key in ("User", "WorkingDir"):
        if not isinstance(runtime.get(key) or "", str):
            _wrong(f"{key} is no text")
    return value


def index(data: bytes, *, expected: str | None = None) -> dict[str, Any]:
    """An index of images. Raises `ManifestInvalid` and its leaves, `DigestMismatch`."""
    value = _document(data, MAX_MANIFEST, expected)
    if value.get("mediaType", image.INDEX) not in (image.INDEX, image.DOCKER_INDEX):
        raise MediaTypeRefused(media_type=str(value.get("mediaType"))[:100])
    if "layers" in value or "config" in value:
        _wrong("it is a manifest and an index at once")
    _version(value)
    for number, entry in enumerate(_list(value.get("manifests"), "manifests"), 1):
        _descriptor(entry, f"manifest {number}")
    _annotations(value)
    return value


# --- the parts
def _wrong(problem: str) -> NoReturn:
    raise ManifestInvalid(problem=problem)


def _document(data: bytes, limit: int, expected: str | None) -> dict[str, Any]:
    if len(data) > limit:
        raise ManifestTooLarge(size=len(data), limit=limit)
    if expected is not None:
        actual = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if digest(expected) != actual:
            raise DigestMismatch(expected=expected, actual=actual)
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        raise ManifestInvalid(problem="it is no JSON, or too deep") from e
    return _object(value, "it")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        _wrong("a key is there twice")
    return out


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _wrong(f"{what} is no object")
    return value


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        _wrong(f"{what} is no list")
    return value


def _texts(value: object, what: str) -> None:
    if value is not None and not all(isinstance(item, str) for item in _list(value, what)):
        _wrong(f"{what} holds something that is no text")


def _version(value: dict[str, Any]) -> None:
    version = value.get("schemaVersion")
    if version != 2 or isinstance(version, bool):
        _wrong("its schemaVersion is not 2")


def _plain(media_type: str | None) -> str | None:
    return media_type.split(";", 1)[0].strip().lower() if media_type else None


def _media_type(found: dict[str, Any], known: Iterable[str]) -> None:
    if found["mediaType"] not in known:
        raise MediaTypeRefused(media_type=found["mediaType"][:100])


def _descriptor(value: object, what: str) -> dict[str, Any]:
    found = _object(value, what)
    if not isinstance(found.get("mediaType"), str):
        _wrong(f"{what} has no media type")
    digest(found.get("digest"))
    size = found.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_BLOB:
        _wrong(f"{what} has no size, or one that can't be")
    _annotations(found)
    return found


def _annotations(value: dict[str, Any]) -> None:
    annotations = value.get("annotations")
    if annotations is None:
        return
    if not all(isinstance(text, str) for text in _object(annotations, "annotations").values()):
        _wrong("an annotation is no text")
