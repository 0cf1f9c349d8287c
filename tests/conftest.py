"""One thread for every test: workers that each take all cores fight for them, and tiny models gain nothing."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
