"""`python -m kajiya_hub.proxy`."""

import sys

from kajiya_hub.proxy.server import main

sys.exit(main())
