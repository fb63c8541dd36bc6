"""What can be wrong with a layer, a manifest or a layout: each with a code and parameters.

Nothing else of ours is imported here, so a caller turns these into the errors it shows; the sentences stand in
`kajiya/messages` under the same codes.
"""

from typing import Any, ClassVar


class OciError(Exception):
    """The root: a stable code and the parameters of its sentence."""

    code: ClassVar[str] = "oci"

    def __init__(self, **params: Any) -> None:
        self.params: dict[str, Any] = params
        super().__init__(f"{self.code}: " + ", ".join(f"{k}={v!r}" for k, v in params.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.params))


def _rebuild(cls: type[OciError], params: dict[str, Any]) -> OciError:
    return cls(**params)


# --- the bytes are not those that were promised
class ContentError(OciError):
    """The bytes of a blob are not what was promised."""

    code = "oci.content"


class DigestMismatch(ContentError):
    code = "oci.digest_mismatch"  # expected, actual


class SizeMismatch(ContentError):
    code = "oci.size_mismatch"  # digest, expected, actual


class DiffIdMismatch(ContentError):
    code = "oci.diff_id_mismatch"  # expected, actual


class BlobTruncated(ContentError):
    code = "oci.truncated"


class BlobDamaged(ContentError):
    code = "oci.damaged"  # problem


class TooLarge(ContentError):
    code = "oci.too_large"  # what, limit


class Bomb(ContentError):
    code = "oci.bomb"  # ratio


class TooManyEntries(ContentError):
    code = "oci.too_many_entries"  # limit


# --- a layer holds what a layer must not hold
class LayerRefused(OciError):
    """A layer holds something that it must not; `path` names it."""

    code = "oci.layer"


class PathOutside(LayerRefused):
    code = "oci.path_outside"


class NameInvalid(LayerRefused):
    code = "oci.name_invalid"  # path, problem


class LinkOutside(LayerRefused):
    code = "oci.link_outside"  # path, target


class HardLinkInvalid(LayerRefused):
    code = "oci.hard_link"  # path, target


class ThroughLink(LayerRefused):
    code = "oci.through_link"


class SpecialFile(LayerRefused):
    code = "oci.special_file"


class SpecialMode(LayerRefused):
    code = "oci.special_mode"  # path, mode


class SparseFile(LayerRefused):
    code = "oci.sparse_file"


class Duplicate(LayerRefused):
    code = "oci.duplicate"


class WhiteoutInvalid(LayerRefused):
    code = "oci.whiteout"


# --- a layer can not be written
class ContentChanged(OciError):
    """A file changed while it was read; reading everything again helps."""

    code = "oci.content_changed"  # path


class NoSpace(OciError):
    code = "oci.no_space"  # path


# --- a manifest, a configuration or an index
class ManifestInvalid(OciError):
    code = "oci.manifest_invalid"  # problem


class ManifestTooLarge(ManifestInvalid):
    code = "oci.manifest_too_large"  # size, limit


class IndexInsteadOfManifest(ManifestInvalid):
    code = "oci.index_instead"


class MediaTypeRefused(ManifestInvalid):
    code = "oci.media_type"  # media_type


class DigestInvalid(ManifestInvalid):
    code = "oci.digest_invalid"  # digest


class AlgorithmUnknown(DigestInvalid):
    code = "oci.algorithm_unknown"  # algorithm


# --- a layout on disk
class LayoutInvalid(OciError):
    code = "oci.layout_invalid"  # path, problem


class BlobMissing(OciError):
    code = "oci.blob_missing"  # digest


class TagMissing(OciError):
    code = "oci.tag_missing"  # tag


def leaves() -> list[type[OciError]]:
    """All errors that can be raised: those of the tree without children, and those with that have a sentence."""
    out: list[type[OciError]] = []
    todo: list[type[OciError]] = [OciError]
    while todo:
        cls = todo.pop(0)
        children = cls.__subclasses__()
        todo += children
        if not children or issubclass(cls, ManifestInvalid):
            out.append(cls)
    return out
