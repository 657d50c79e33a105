"""One S3 server for the tests of this folder."""

import pytest

from tests import object_store


@pytest.fixture(scope="session")
def store():
    with object_store.server() as running:
        yield running


@pytest.fixture
def bucket(store):
    """A new bucket, used by this process."""
    with object_store.used(store):
        yield store.bucket()
