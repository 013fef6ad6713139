"""A training method whose every step is written in the study: known updates, and faults at chosen sites."""

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from fedhealth.contracts.local_training import LocalUpdate, Metrics, RoundTask, SiteContext, Vector
from fedhealth.contracts.tensors import TensorSpec

NUM_FIRST, NUM_SECOND = 40, 60
DRAWN_HERE = "FEDHEALTH_TEST_FROZEN_TENSORS"


class Scripted:
    """`step` is added everywhere, times the site's number; `fault` happens at `fault_site` in `fault_rounds`.

    `fault_runs` and `reverse_runs` name the runs in which it happens, and in which sites answer in reverse order.
    `slope` also adds itself times a value's place in the vector, so that not all values move alike.
    """

    supports_patient_gradients = True
    supports_patient_privacy = True  # with option `carries_out`, it also claims to have done it

    def initial_tensors(self, study: Any, run: Any) -> dict[str, Vector]:
        return {
            "first.weight": np.zeros((8, 5), dtype=np.float32),
            "second.weight": np.zeros((60,), dtype=np.float32),
        }

    def modality_prefixes(self, study: Any, run: Any) -> dict[str, tuple[str, ...]]:
        return {"mri": ("second.",)} if "mri" in study.modalities else {}

    def frozen_digest(self, study: Any, run: Any) -> str | None:
        """Of the text of option `frozen`, which stands for tensors that nobody trains.

        The variable stands for a machine that draws others from the same seed.
        """
        said = os.environ.get(DRAWN_HERE, study.training.options.get("frozen"))
        return None if said is None else hashlib.sha256(str(said).encode()).hexdigest()

    def open_session(self, study: Any, run: Any, spec: TensorSpec, site: SiteContext) -> "Session":
        if study.training.options.get("reads_cohort", False):
            site.load_cohort()
        return Session(dict(study.training.options), spec, site.site_id, run.name)


class Session:
    """One site's session."""

    def __init__(
        self, options: dict[str, Any], spec: TensorSpec, site_id: str, run_name: str
    ) -> None:
        self._options = options
        self._spec = spec
        self._site_id = site_id
        self._run = run_name
        self._number = int(site_id.rpartition("-")[2])

    def evaluate(self, vector: Vector) -> Metrics:
        return {"auc": 0.5 + 0.01 * self._number, "log_loss": 0.69}

    def train(self, vector: Vector, task: RoundTask) -> LocalUpdate:
        self._wait(task)
        step = float(self._options.get("step", 1.0)) * self._number
        more = float(self._options.get("slope", 0.0)) * np.arange(vector.size, dtype=np.float32)
        tensors = self._spec.unflatten((vector + np.float32(step) + more).astype(np.float32))
        if not self._options.get("ignores_frozen", False):
            came = self._spec.unflatten(vector)
            tensors = {n: came[n] if n in task.frozen else tensor for n, tensor in tensors.items()}
        fault = self._fault(task)
        if fault is not None:
            tensors = self._break(dict(tensors), fault)
        if task.mechanism is None or not self._options.get("carries_out", False):
            return LocalUpdate(tensors=tensors, metrics={"train_loss": 0.5})
        return LocalUpdate(
            tensors=tensors, metrics={}, mechanism=task.mechanism, generator="chacha20"
        )

    def patient_gradients(self, vector: Vector, is_cancelled: Any) -> Any:
        """`num_patients` times the same gradient, `step` in every coordinate."""
        for _ in range(int(self._options.get("num_patients", 5))):
            yield np.full(vector.size, float(self._options.get("step", 1.0)), dtype=np.float32)

    def patient_metrics(self, vector: Vector) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
        return {"accuracy": np.ones(5), "brier": np.full(5, 0.2), "log_loss": np.full(5, 0.5)}

    def commit(self, round_number: int) -> None:
        pass

    def _fault(self, task: RoundTask) -> str | None:
        """`fault` in `fault_rounds`, or the round's own one of `faults`."""
        if self._site_id != self._options.get("fault_site"):
            return None
        if self._run not in self._options.get("fault_runs", [self._run]):
            return None
        by_round = dict(enumerate(self._options.get("faults", []), start=1))
        if "fault" in self._options:
            by_round |= dict.fromkeys(
                self._options.get("fault_rounds", [1]), self._options["fault"]
            )
        return by_round.get(task.round_number)

    def _wait(self, task: RoundTask) -> None:
        if "watch" in self._options:  # an observer outside: which trainings began
            with Path(f"{self._options['watch']}.{self._site_id}").open("a") as file:
                file.write(f"{task.round_number} {task.attempt}\n")
                file.flush()
                os.fsync(file.fileno())
        seconds = float(self._options.get("wait_s", 0.0))
        if self._site_id == self._options.get("slow_site") and task.round_number == 1:
            seconds = float(self._options["slow_s"])
        if self._run in self._options.get("reverse_runs", []):
            seconds += 0.5 * (5 - self._number)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if task.is_cancelled():
                from fedhealth.errors import CancelledTrainingError

                raise CancelledTrainingError("FH-TEST-001", "cancelled.")
            time.sleep(0.02)

    def _break(self, tensors: dict[str, Vector], fault: str) -> dict[str, Vector]:
        if fault == "raise":
            raise KeyError("DOE^JOHN")
        if fault == "nan":
            broken = tensors["second.weight"].copy()
            broken[3] = np.nan
            tensors["second.weight"] = broken
        elif fault == "wrong_shape":
            tensors["first.weight"] = np.zeros((5, 8), dtype=np.float32)
        elif fault == "missing_tensor":
            del tensors["first.weight"]
        elif fault == "extra_tensor":
            tensors["patient.DOE^JOHN"] = np.zeros((1,), dtype=np.float32)
        elif fault == "exit":
            os._exit(3)
        return tensors
