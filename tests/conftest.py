"""One thread and one fixed set of random examples, so that every run of the suite checks the same things."""

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

settings.register_profile("polyak", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("polyak")


@pytest.fixture
def device_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the CPU take the path of a device, on which nothing may be read: masks instead of branches."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
