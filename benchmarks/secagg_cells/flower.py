"""The same round with SecAgg+ of Flower: its `SecAggPlusWorkflow` in one process, its `secaggplus_mod` in another.

Both are Flower's own code, unchanged; only its network is not there. A message is a pickled file between the two, and
the server gets all replies of a stage at once, as from a Grid. SecAgg+ takes the legacy records of a `FitRes` only.
"""

import logging
import pickle  # our own files, of a process that we started
import statistics
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn, cast

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.compat.common.recorddict_compat import (
    arrayrecord_to_parameters,
    fitres_to_recorddict,
    parameters_to_arrayrecord,
)
from flwr.server import LegacyContext, ServerConfig
from flwr.server.client_manager import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.serverapp import Grid
from secagg_cells.ours import MODEL_BYTES, Cell, update_of, weight_of
from secagg_cells.processes import Memory, Row, Seconds, cpu, sites_process

from fedhealth.testing.flower_task import flower_task

FIRST_NODE = 1001
NUMBER_BYTES = 8
TOLERANCE = 1e-3  # far above its quantisation (16 / 2**22, times max_weight / weight), far below a wrong sum
STAGES = ("setup", "share_keys", "collect_masked_vectors", "unmask")


class Proxy(ClientProxy):
    """A name for a node: the workflow asks a proxy for nothing else."""

    def __init__(self, node_id: int) -> None:
        super().__init__(str(node_id))
        self.node_id = node_id

    def _never(self, *_arguments: object, **_named: object) -> NoReturn:
        raise NotImplementedError

    get_properties = get_parameters = fit = evaluate = reconnect = _never


class FileGrid:
    """What the workflow uses of a `Grid`: it sends messages to the process of the sites, and waits for all replies."""

    def __init__(self, connection: Connection, folder: Path) -> None:
        self._connection, self._folder = connection, folder
        self.trips, self.up, self.down = 0, 0, 0
        self.seconds: Seconds = {}

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """One trip."""
        del timeout
        self.trips += 1
        with cpu(self.seconds, "transport"):
            return [self._exchange(message) for message in messages]

    def _exchange(self, message: Message) -> Message:
        path = self._folder / "message"
        self.down += content_bytes(message)
        with path.open("wb") as file:
            pickle.dump(message, file, protocol=5)
        self._connection.send(message.metadata.dst_node_id)
        problem = self._connection.recv()
        if problem is not None:
            raise RuntimeError(problem)
        with path.open("rb") as file:
            reply: Message = pickle.load(file)  # noqa: S301 - written by the process that we started
        self.up += content_bytes(reply)
        return reply


def content_bytes(message: Message) -> int:
    """Arrays and values of a message's records, without names and frames."""
    content = message.content
    arrays = [array for record in content.array_records.values() for array in record.values()]
    values = [value for record in content.config_records.values() for value in record.values()]
    return sum(len(array.data) for array in arrays) + sum(_size(value) for value in values)


def _size(value: object) -> int:
    if isinstance(value, list):
        return sum(_size(item) for item in value)
    return len(value) if isinstance(value, bytes | str) else NUMBER_BYTES


class Sites:
    """All clients, with a context each, as their SuperNodes would keep it."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._contexts = [
            Context(
                run_id=1, node_id=FIRST_NODE + i, node_config={}, state=RecordDict(), run_config={}
            )
            for i in range(cell.sites)
        ]
        self.seconds: list[Seconds] = [{} for _ in range(cell.sites)]
        self._stage = [0] * cell.sites

    def answer(self, message: Message) -> Message:
        """One stage at one client; what the training itself takes is left out."""
        index = message.metadata.dst_node_id - FIRST_NODE
        training: Seconds = {}

        def train(asked: Message, _context: Context) -> Message:
            with cpu(training, "app"):
                result = FitRes(
                    status=Status(code=Code.OK, message=""),
                    parameters=ndarrays_to_parameters([update_of(index, self._cell.parameters)]),
                    num_examples=weight_of(index),
                    metrics={},
                )
                return Message(fitres_to_recorddict(result, keep_input=False), reply_to=asked)

        seconds, stage = self.seconds[index], STAGES[self._stage[index]]
        with cpu(seconds, stage):
            reply = secaggplus_mod(message, self._contexts[index], train)
        seconds[stage] -= training.get("app", 0.0)
        self._stage[index] += 1
        return reply


def serve(connection: Connection, folder: Path, cell: Cell) -> None:
    """Play the clients until the server is done."""
    sites = Sites(cell)
    path = folder / "message"
    with flower_task(node_id=FIRST_NODE):
        while True:
            try:
                asked = connection.recv()
            except EOFError:
                return
            if asked == "seconds":
                connection.send(sites.seconds)
                continue
            with path.open("rb") as file:
                message = pickle.load(file)  # noqa: S301 - written by the process that started this one
            try:
                reply = sites.answer(message)
            except Exception as error:  # noqa: BLE001 - told to the server, which ends the cell
                connection.send(f"{type(error).__name__}: {error}")
                continue
            with path.open("wb") as file:
                pickle.dump(reply, file, protocol=5)
            connection.send(None)


def measure(cell: Cell) -> Row:
    """Run a round of SecAgg+ with its own default ranges and our threshold."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    with sites_process(serve, cell) as (connection, folder), flower_task():
        grid = FileGrid(connection, folder)
        context = legacy_context(cell)
        workflow = SecAggPlusWorkflow(num_shares=1.0, reconstruction_threshold=cell.threshold)
        seconds: Seconds = {}
        begin, memory = time.monotonic(), Memory()
        with cpu(seconds, "all"):
            workflow(cast("Grid", grid), context)
        peak_bytes, wall_s = memory.peak_bytes(), time.monotonic() - begin
        connection.send("seconds")
        of_sites: list[Seconds] = connection.recv()
        (found,) = parameters_to_ndarrays(
            arrayrecord_to_parameters(context.state.array_records["parameters"], keep_input=True)
        )
        error = largest_error(cell, found)
    up = grid.up / cell.sites
    return {
        "protocol": "flower-secaggplus",
        "sites": cell.sites,
        "parameters": cell.parameters,
        "site_parts_s": {
            stage: round(statistics.median(one[stage] for one in of_sites), 4) for stage in STAGES
        },
        "site_s": round(statistics.median(sum(one.values()) for one in of_sites), 4),
        "bytes_up": int(up),
        "bytes_down": int(grid.down / cell.sites),
        "bytes_up_per_parameter": round(up / cell.parameters, 4),
        "trips": grid.trips,
        "server_s": round(seconds["all"] - grid.seconds["transport"], 4),
        "server_models": round(peak_bytes / (MODEL_BYTES * cell.parameters), 2),
        "wall_s": round(wall_s, 2),
        "largest_error": error,
        "result_is_right": error <= TOLERANCE,
    }


def legacy_context(cell: Cell) -> LegacyContext:
    """What the workflow asks of a ServerApp: a model, a strategy, and a manager that knows the nodes."""
    clients = SimpleClientManager()
    for index in range(cell.sites):
        clients.register(Proxy(FIRST_NODE + index))
    state = RecordDict()
    first = ndarrays_to_parameters([np.zeros(cell.parameters, dtype=np.float32)])
    state.array_records["parameters"] = parameters_to_arrayrecord(first, keep_input=False)
    state.config_records["config"] = ConfigRecord({"current_round": 1})
    return LegacyContext(
        Context(run_id=1, node_id=1, node_config={}, state=state, run_config={}),
        config=ServerConfig(num_rounds=1),
        strategy=FedAvg(
            min_fit_clients=cell.sites, min_available_clients=cell.sites, fraction_evaluate=0.0
        ),
        client_manager=clients,
    )


def largest_error(cell: Cell, found: np.ndarray) -> float:
    """Against the weighted mean of what the clients trained."""
    total = sum(weight_of(index) for index in range(cell.sites))
    mean = np.zeros(cell.parameters)
    for index in range(cell.sites):
        mean += update_of(index, cell.parameters) * (weight_of(index) / total)
    return float(np.abs(found - mean).max())


def measure_or_say_why(cell: Cell) -> Row:
    """The row; or why there is none."""
    try:
        return measure(cell)
    except Exception as error:  # noqa: BLE001 - Flower's, of any kind: the table says it
        reason = f"{type(error).__name__}: {error}"
        return {
            "protocol": "flower-secaggplus",
            "sites": cell.sites,
            "parameters": cell.parameters,
            "error": reason[:300],
        }
