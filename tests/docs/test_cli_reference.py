"""docs/cli.md is what the commands say of themselves."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_reference_of_the_commands_is_up_to_date() -> None:
    # A process of its own: the commands take their language when they are imported.
    made = subprocess.run(
        [sys.executable, "-m", "kajiya.cli_docs"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert (ROOT / "docs/cli.md").read_text("utf-8") == made, "run `python -m kajiya.cli_docs > docs/cli.md`"
    assert "## submit" in made
