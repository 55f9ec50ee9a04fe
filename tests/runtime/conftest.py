"""What the tests of the runtime ask for."""

import pytest
from small_house import open_small_house


@pytest.fixture
def house():
    return open_small_house
