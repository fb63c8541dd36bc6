"""The contract of the store, as a pytest class, for every database it can stand on. To test yours:

class TestMine(StoreContract):
    @pytest.fixture
    def url(self):
        return "postgresql+psycopg://…"  # an empty database for each test
"""

from kajiya_hub.testing.store_progress import ProgressContract
from kajiya_hub.testing.store_requests import RequestsContract


class StoreContract(RequestsContract, ProgressContract):
    """What the store must do; a subclass gives the fixture `url`."""
