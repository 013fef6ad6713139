"""What a strategy carries from round to round, as named arrays that a checkpoint can hold.

A strategy that has ``state_dict`` and ``load_state_dict`` is asked. Stock strategies have neither: their
attributes that changed since they were made are taken, if they are numbers, arrays, or lists, dicts or
ArrayRecords of arrays. A change of any other kind is refused: a checkpoint that forgets silently is worse
than none.

Names are ``kind:attribute`` and ``kind:attribute:item``.
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedhealth.errors import AggregationError

State = dict[str, NDArray[np.generic]]
_NUMERIC = (np.ndarray, np.generic)  # arithmetic turns a 0-d array into a numpy scalar


class StrategyState:
    """Reads and restores the state of one strategy. Make it before the strategy's first round."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._explicit = hasattr(strategy, "state_dict") and hasattr(strategy, "load_state_dict")
        self._fresh = {
            name: value if callable(value) else copy.deepcopy(value)
            for name, value in vars(strategy).items()
        }

    def read(self) -> State:
        """The state by name; arrays are not copied.

        Raises:
            AggregationError: FH-STRATEGY-040 an attribute changed that cannot be stored.
        """
        if self._explicit:
            return dict(self._strategy.state_dict())  # type: ignore[attr-defined]  # checked above
        state: State = {}
        for name, value in vars(self._strategy).items():
            if not _same(value, self._fresh.get(name)):
                state |= _flatten(name, value)
        return state

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Put back what `read` gave; attributes that it does not name go back to their first value.

        Raises:
            AggregationError: FH-STRATEGY-041 a name that this strategy does not have.
        """
        if self._explicit:
            self._strategy.load_state_dict(state)  # type: ignore[attr-defined]  # checked above
            return
        restored = _unflatten(state)
        unknown = sorted(set(restored) - set(self._fresh))
        if unknown:
            raise _unknown_state(unknown[0])
        for name, value in self._fresh.items():
            kept = value if callable(value) else copy.deepcopy(value)
            setattr(self._strategy, name, restored.get(name, kept))


def _flatten(name: str, value: object) -> State:
    match value:
        case bool() | int() | float() | np.generic():
            return {f"scalar:{name}": np.asarray(value)}
        case np.ndarray():
            return {f"array:{name}": value}
        case ArrayRecord():
            return {f"record:{name}:{key}": array.numpy() for key, array in value.items()}
        case dict() if all(isinstance(item, _NUMERIC) for item in value.values()):
            return {f"dict:{name}:{key}": np.asarray(item) for key, item in value.items()}
        case list() if all(isinstance(item, _NUMERIC) for item in value):
            return {f"list:{name}:{index}": np.asarray(item) for index, item in enumerate(value)}
        case _:
            raise AggregationError(
                "FH-STRATEGY-040",
                f"the strategy keeps a {type(value).__name__} in {name!r}, which no checkpoint can hold.",
                why="A server that restarts would go on from another state.",
                fix="Give the strategy state_dict and load_state_dict (strategies/README.md).",
            )


def _unflatten(state: Mapping[str, NDArray[np.generic]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for full_name, array in state.items():
        kind, _, rest = full_name.partition(":")
        name, _, item = rest.partition(":")
        match kind:
            case "scalar":
                values[name] = array.item()
            case "array":
                values[name] = array
            case "record":
                values.setdefault(name, ArrayRecord())[item] = Array(array)
            case "dict":
                values.setdefault(name, {})[item] = array
            case "list":
                values.setdefault(name, []).append(array)
            case _:
                raise _unknown_state(full_name)
    return values


def _same(value: object, fresh: object) -> bool:
    if callable(value) or value is fresh:
        return True
    if type(value) is not type(fresh):
        return False
    if isinstance(value, np.ndarray) or isinstance(fresh, np.ndarray):
        return bool(np.array_equal(np.asarray(value), np.asarray(fresh)))
    if isinstance(value, dict | list | ArrayRecord):
        return not value and not fresh
    return bool(value == fresh)


def _unknown_state(name: str) -> AggregationError:
    return AggregationError(
        "FH-STRATEGY-041",
        f"the checkpoint holds {name!r}, which this strategy does not have.",
        fix="Go on with the strategy and the fedhealth version that wrote the checkpoint.",
    )
