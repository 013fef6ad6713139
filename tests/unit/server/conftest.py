"""Strategies build Flower's Messages, which want a task."""

from collections.abc import Iterator

import pytest

from fedhealth.testing.flower_task import flower_task


@pytest.fixture(autouse=True)
def _in_a_flower_task() -> Iterator[None]:
    with flower_task():
        yield
