"""Contract tests and fakes, shipped so that whoever writes a third backend can test it as ours are tested."""

from kajiya_hub.backends.fake import FakeBackend as FakeBackend
from kajiya_hub.testing.backends import PLAYS as PLAYS
from kajiya_hub.testing.backends import BackendContract as BackendContract
from kajiya_hub.testing.backends import program as program
