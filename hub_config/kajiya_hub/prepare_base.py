"""Makes what all environments begin with, in the background of the first start: `python -m kajiya_hub.prepare_base`."""

import sys

from kajiya.environment.base import prepare
from kajiya.errors import KajiyaError
from kajiya.types import Reason
from kajiya_hub.settings import Settings


def main() -> int:
    """The exit status: 0 where the base is ready."""

    def tell(reason: Reason) -> None:
        print(reason.code, flush=True)

    try:
        prepare(Settings.load().environment_base, tell)
    except KajiyaError as e:
        print(e.sentence(), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
