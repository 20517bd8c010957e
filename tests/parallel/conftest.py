"""Fixtures of the tests of several processes."""

import pytest
import torch.distributed as dist


@pytest.fixture
def one_process_group():
    if not dist.is_gloo_available():
        pytest.skip("needs gloo")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
