"""The profile file: reading, writing, and its JSON schema."""

import json
from pathlib import Path
from typing import Any

import yaml

from kajiya import yamlfile
from kajiya.profiles.model import ProfileSet


def load(path: Path) -> ProfileSet:
    """The profile file. Raises `ConfigInvalid` naming file, line, key and what was expected."""
    return yamlfile.load(path, ProfileSet)


def parse(text: str, file: str = "profiles.yaml") -> ProfileSet:
    """A profile set from YAML text; see `load`."""
    return yamlfile.parse(text, ProfileSet, file)


def schema() -> dict[str, Any]:
    """The JSON schema of a profile file, for editors and for docs/profiles.md."""
    return ProfileSet.model_json_schema() | {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Kajiya profiles",
    }


def dump(config: ProfileSet) -> str:
    """A profile set as YAML text."""
    data = json.loads(config.model_dump_json(exclude_defaults=True))
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
