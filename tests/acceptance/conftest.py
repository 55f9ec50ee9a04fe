"""What the acceptance tests ask for."""

import pytest
from real_headgate import bench_in


@pytest.fixture
def bench(tmp_path):
    with bench_in(tmp_path) as made:
        yield made
