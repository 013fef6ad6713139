"""Give this process the task identity that Flower's Message constructor asks for, outside a Flower task.

Strategies speak in Flower Messages. A ServerApp process has the identity from Flower; a simulation, tests and
benchmarks, which run strategies in their own process, do not, and there is no public way to set it. This is the
one file of fedhealth that touches it; `tests/flower_contract/test_strategies.py` pins the private one used here.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from flwr.supercore.task_identity import TaskIdentity


@contextmanager
def flower_task(*, run_id: int = 1, node_id: int = 1, task_id: int = 1) -> Iterator[None]:
    """Set the identity for the block, and put back what was there."""
    names = ("_run_id", "_node_id", "_task_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, node_id, task_id
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)
