"""Images as values, and descriptions from elsewhere: what is kept, what is made, and what is refused."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from helpers.layers import sha256
from kajiya.messages import fields, sentences
from kajiya.oci import errors
from kajiya_hub.oci import image, validate
from kajiya_hub.oci.image import Descriptor, Image, NewLayer

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
WHEN = "2026-11-24T00:00:00Z"


def layer(digest: str = A, size: int = 10) -> NewLayer:
    return NewLayer(Descriptor(f"{image.LAYER}+zstd", digest, size), B, "kajiya capture", "lightgbm")


def docker_image() -> Image:
    config = {
        "architecture": "arm64",
        "os": "linux",
        "variant": "v8",
        "container": "abc",
        "docker_version": "20",
        "container_config": {"Cmd": ["x"]},
        "config": {
            "Env": ["PATH=/usr/bin", "LANG=C"],
            "User": "1000:100",
            "Entrypoint": ["tini", "--"],
            "WorkingDir": "/home/jovyan",
            "Labels": {"x": "学習"},
        },
        "rootfs": {"type": "layers", "diff_ids": [A]},
        "history": [{"created_by": "FROM"}, {"created_by": "ENV", "empty_layer": True}],
    }
    config_bytes = json.dumps(config, indent=3).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": image.DOCKER_MANIFEST,
        "config": image.describe(config_bytes, image.DOCKER_CONFIG).json(),
        "layers": [{"mediaType": next(m for m in image.DOCKER_LAYERS if "gzip" in m), "digest": B, "size": 5}],
    }
    return Image(config_bytes, json.dumps(manifest).encode(), image.DOCKER_MANIFEST)


def checked(made: Image) -> tuple[dict[str, Any], dict[str, Any]]:
    manifest = validate.manifest(made.manifest, media_type=made.media_type, expected=made.descriptor.digest)
    return manifest, validate.config(made.config, manifest)


def test_a_layer_on_a_docker_image_gives_an_oci_image_that_runs_the_same() -> None:
    base = docker_image()
    checked(base)
    made = image.append(base, [layer()], created=WHEN, base_name="quay.io/lab:1", env={"LANG": "C.UTF-8", "X": "1"})
    manifest, config = checked(made)
    assert manifest["mediaType"] == image.MANIFEST
    assert manifest["config"]["mediaType"] == image.CONFIG
    assert [x["mediaType"] for x in manifest["layers"]] == [f"{image.LAYER}+gzip", f"{image.LAYER}+zstd"]
    assert [x["digest"] for x in manifest["layers"]] == [B, A]
    assert config["rootfs"]["diff_ids"] == [A, B]
    before = json.loads(base.config)["config"]
    assert {k: v for k, v in config["config"].items() if k != "Env"} == {k: v for k, v in before.items() if k != "Env"}
    assert config["config"]["Env"] == ["PATH=/usr/bin", "LANG=C.UTF-8", "X=1"]
    assert (config["architecture"], config["variant"]) == ("arm64", "v8")
    assert not {"container", "container_config", "docker_version"} & config.keys()
    assert [h.get("created_by") for h in config["history"]] == ["FROM", "ENV", "kajiya capture"]
    assert manifest["annotations"] == {
        image.BASE_DIGEST: base.descriptor.digest,
        image.BASE_NAME: "quay.io/lab:1",
        image.CREATED: WHEN,
    }


def test_the_same_image_has_the_same_digest() -> None:
    def make() -> Image:
        return image.append(image.scratch("amd64", env=["A=1"], User="0"), [layer()], created=WHEN)

    assert make().descriptor == make().descriptor
    other = image.append(image.scratch("amd64", env=["A=1"], User="0"), [layer(B)], created=WHEN)
    assert other.descriptor.digest != make().descriptor.digest
    assert image.BASE_DIGEST not in json.loads(make().manifest)["annotations"]  # nothing is below it


def test_a_history_that_tells_too_little_is_filled_up() -> None:
    base = docker_image()
    config = json.loads(base.config)
    del config["history"]
    config_bytes = json.dumps(config).encode()
    manifest = json.loads(base.manifest) | {"config": image.describe(config_bytes, image.DOCKER_CONFIG).json()}
    made = image.append(Image(config_bytes, json.dumps(manifest).encode()), [layer()], created=WHEN)
    assert len(checked(made)[1]["history"]) == 2


def test_artifacts_and_indexes_are_valid() -> None:
    subject = image.scratch("amd64").descriptor
    lock = image.artifact("application/vnd.kajiya.lock", [Descriptor("text/x-toml", A, 3)], subject=subject)
    found = validate.manifest(lock)
    assert (found["artifactType"], found["subject"]["digest"]) == ("application/vnd.kajiya.lock", subject.digest)
    assert validate.index(image.index([subject]))["manifests"] == [subject.json()]
    assert sha256(b"{}") == found["config"]["digest"]


GOOD = json.loads(image.append(image.scratch("amd64"), [layer()], created=WHEN).manifest)


def changed(**changes: Any) -> bytes:
    value = copy.deepcopy(GOOD)
    for path, new in changes.items():
        *parents, last = path.split("__")
        place: Any = value
        for step in parents:
            place = place[int(step) if step.isdigit() else step]
        place[int(last) if last.isdigit() else last] = new
    return json.dumps(value).encode()


BAD = [
    (b"", errors.ManifestInvalid),
    (b"null", errors.ManifestInvalid),
    (b"[]", errors.ManifestInvalid),
    (b"\xff", errors.ManifestInvalid),
    (b'{"schemaVersion":NaN}', errors.ManifestInvalid),
    (b"[" * 200_000, errors.ManifestInvalid),
    (b'{"a":1,"a":2}', errors.ManifestInvalid),
    (b" " * (10 << 20), errors.ManifestTooLarge),
    (changed(schemaVersion=1), errors.ManifestInvalid),
    (changed(schemaVersion="2"), errors.ManifestInvalid),
    (changed(schemaVersion=True), errors.ManifestInvalid),
    (changed(mediaType=image.INDEX), errors.IndexInsteadOfManifest),
    (changed(mediaType=image.DOCKER_INDEX), errors.IndexInsteadOfManifest),
    (image.index([]), errors.IndexInsteadOfManifest),
    (changed(manifests=[]), errors.ManifestInvalid),
    (changed(mediaType="application/vnd.docker.distribution.manifest.v1+json"), errors.MediaTypeRefused),
    (changed(mediaType=5), errors.MediaTypeRefused),
    (changed(config=None), errors.ManifestInvalid),
    (changed(config__mediaType="text/html"), errors.MediaTypeRefused),
    (changed(config__size=-1), errors.ManifestInvalid),
    (changed(config__size=True), errors.ManifestInvalid),
    (changed(config__size=1.5), errors.ManifestInvalid),
    (changed(config__size=1 << 50), errors.ManifestInvalid),
    (changed(config__size=1 << 30), errors.ManifestTooLarge),
    (changed(layers=None), errors.ManifestInvalid),
    (changed(layers={}), errors.ManifestInvalid),
    (changed(layers=[GOOD["layers"][0]] * 501), errors.ManifestInvalid),
    (changed(layers__0=None), errors.ManifestInvalid),
    (changed(layers__0__mediaType="application/vnd.docker.image.rootfs.diff.tar.gzip"), errors.MediaTypeRefused),
    (changed(layers__0__mediaType=f"{image.LAYER}+xz"), errors.MediaTypeRefused),
    (changed(layers__0__mediaType=None), errors.ManifestInvalid),
    (changed(layers__0__digest="sha256:" + "A" * 64), errors.DigestInvalid),
    (changed(layers__0__digest="sha256:../../../etc/passwd"), errors.DigestInvalid),
    (changed(layers__0__digest="sha256:" + "a" * 63 + "\n"), errors.DigestInvalid),
    (changed(layers__0__digest="md5:" + "a" * 32), errors.AlgorithmUnknown),
    (changed(layers__0__digest="sha512:" + "a" * 128), errors.AlgorithmUnknown),
    (changed(layers__0__digest=7), errors.DigestInvalid),
    (changed(annotations={"a": 1}), errors.ManifestInvalid),
    (changed(annotations=[]), errors.ManifestInvalid),
    (changed(subject={"digest": "x"}), errors.ManifestInvalid),
]


@pytest.mark.parametrize(("data", "error"), BAD, ids=range(len(BAD)))
def test_wrong_manifests_are_refused(data: bytes, error: type[errors.OciError]) -> None:
    with pytest.raises(errors.ManifestInvalid) as found:
        validate.manifest(data)
    assert type(found.value) is error


def test_a_manifest_must_be_what_it_came_as() -> None:
    data = json.dumps(GOOD).encode()
    assert validate.manifest(data, media_type=f"{image.MANIFEST}; charset=utf-8") == GOOD
    without = json.dumps({k: v for k, v in GOOD.items() if k != "mediaType"}).encode()
    assert validate.manifest(without, media_type=image.MANIFEST)
    with pytest.raises(errors.IndexInsteadOfManifest):
        validate.manifest(data, media_type=image.INDEX)
    with pytest.raises(errors.ManifestInvalid):
        validate.manifest(data, media_type=image.DOCKER_MANIFEST)
    with pytest.raises(errors.MediaTypeRefused):
        validate.manifest(without, media_type="text/html")
    with pytest.raises(errors.DigestMismatch):
        validate.manifest(data, expected=A)


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": None},
        {"os": 5},
        {"rootfs": None},
        {"rootfs": {"type": "other", "diff_ids": [B]}},
        {"rootfs": {"type": "layers", "diff_ids": []}},
        {"rootfs": {"type": "layers", "diff_ids": ["sha256:x"]}},
        {"history": [{}, {}]},
        {"history": [5]},
        {"config": {"Env": [5]}},
        {"config": {"Entrypoint": "sh"}},
        {"config": {"User": 5}},
        {"config": []},
    ],
    ids=str,
)
def test_wrong_configurations_are_refused(change: dict[str, Any]) -> None:
    made = image.append(image.scratch("amd64"), [layer()], created=WHEN)
    config = json.dumps(json.loads(made.config) | change).encode()
    manifest = json.loads(made.manifest) | {"config": image.describe(config, image.CONFIG).json()}
    if change == {"config": []}:  # as good as none, as Docker writes it
        assert validate.config(config, manifest)
        return
    with pytest.raises(errors.ManifestInvalid):
        validate.config(config, manifest)


def test_a_configuration_must_be_the_one_that_the_manifest_names() -> None:
    made = image.append(image.scratch("amd64"), [layer()], created=WHEN)
    manifest = json.loads(made.manifest)
    with pytest.raises(errors.DigestMismatch):
        validate.config(made.config + b" ", manifest)
    manifest["config"]["size"] += 1
    with pytest.raises(errors.ManifestInvalid):
        validate.config(made.config, manifest)


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [("extension/kajiya/oci", ["kajiya.oci"]), ("hub_config/kajiya_hub/oci", ["kajiya.oci", "kajiya_hub.oci"])],
)
def test_nothing_else_of_ours_is_imported(folder: str, allowed: list[str]) -> None:
    imported = re.compile(r"^(?:from|import) (kajiya\S*)", re.MULTILINE)
    files = sorted((Path(__file__).parents[2] / folder).glob("*.py"))
    found = {name for path in files for name in imported.findall(path.read_text("utf-8"))}
    assert found and {n for n in found if not any(n == a or n.startswith(a + ".") for a in allowed)} == set()


def test_every_error_has_a_sentence_in_both_languages() -> None:
    for leaf in errors.leaves():
        for language in ("en", "ja"):
            assert leaf.code in sentences(language), leaf
    assert fields(sentences("en")["oci.digest_mismatch"]) == {"expected", "actual"}
