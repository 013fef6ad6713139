"""Training in the worker against the same steps in a bare PyTorch loop: ``python benchmarks/worker_training.py``.

Both train the same model for the same number of steps of the same size, in turns, in one process; the bare
loop has all data in a few tensors and hides as many modalities, in the cheapest way. The ratio of the medians
is what counts, and may be 1.10 at most.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedhealth.config.study import Study
from fedhealth.contracts.cohort import Cohort, Patient
from fedhealth.contracts.data import SplitName
from fedhealth.contracts.local_training import RoundTask, SiteContext
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.data.batch import Batch, PatientDataset
from fedhealth.models.build import build_model, build_task, trainable_parameters
from fedhealth.training.local_steps import make_optimizer
from fedhealth.training.supervised import SupervisedTraining

TARGET_RATIO = 1.10
NUM_COLUMNS = 12


@dataclass(frozen=True)
class MemoryVolume:
    """A volume that needs no reading."""

    values: NDArray[np.float32]

    def load(self) -> NDArray[np.float32]:
        """(i, j, k) float32."""
        return self.values


def make_study(size: int, epochs: int, batch_size: int) -> Study:
    columns = [
        {"name": f"lab_{i}", "dtype": "float", "minimum": -5, "maximum": 5}
        for i in range(NUM_COLUMNS)
    ]
    volume = {"kind": "volume", "name": "mri", "shape": [size] * 3, "spacing_mm": [2, 2, 2]}
    return Study.model_validate(
        {
            "schema_version": 1,
            "id": "bench",
            "title": "Worker training",
            "seed": 1,
            "data": {"modalities": [{"kind": "table", "name": "ehr", "columns": columns}, volume]},
            "training": {
                "local_epochs": epochs,
                "batch_size": batch_size,
                "modality_dropout": 0.1,
                "optimizer": {"name": "adam", "learning_rate": 1e-3},
            },
            "runs": [{"name": "main", "num_rounds": 1}],
        }
    )


def make_patients(count: int, size: int) -> tuple[Patient, ...]:
    rng = np.random.default_rng(0)
    return tuple(
        Patient(
            patient_id=f"p{index}",
            label=index % 2,
            tables={"ehr": rng.uniform(-4, 4, NUM_COLUMNS)},
            volumes={"mri": MemoryVolume(rng.standard_normal((size,) * 3).astype(np.float32))},
        )
        for index in range(count)
    )


def bare_loop(study: Study, data: Batch) -> float:
    """Seconds of the same steps without fedhealth's session, on data in memory."""
    contract = study.data.to_contract(seed=study.seed)
    task = build_task(study, contract)
    model = build_model(study, contract, num_outputs=task.num_outputs).train()
    config = study.training
    start = time.perf_counter()
    optimizer = make_optimizer(config.optimizer, [p for _, p in trainable_parameters(model)])
    for _ in range(config.local_epochs or 1):
        for rows in torch.split(torch.randperm(len(data)), config.batch_size):
            hidden = torch.rand(len(rows), 2) < config.modality_dropout
            hidden[:, 1] &= ~hidden[:, 0]
            batch = Batch(
                tables={"ehr": data.tables["ehr"][rows]},
                missing={"ehr": data.missing["ehr"][rows]},
                volumes={"mri": data.volumes["mri"][rows]},
                present={"ehr": ~hidden[:, 0], "mri": ~hidden[:, 1]},
                labels=data.labels[rows],
            )
            optimizer.zero_grad()
            loss = task.loss(model(batch), batch.labels)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
    return time.perf_counter() - start


def measure(size: int, count: int, epochs: int, repeats: int) -> dict[str, object]:
    study = make_study(size, epochs, batch_size=16)
    contract, patients = study.data.to_contract(seed=study.seed), make_patients(count, size)
    sides = {patient.patient_id: SplitName.TRAIN for patient in patients}
    cohort = Cohort(contract=contract, patients=patients, fixed_split=sides)
    method = SupervisedTraining()
    tensors = method.initial_tensors(study, study.runs[0])
    spec = TensorSpec.of(tensors)
    vector = spec.flatten(tensors)
    with tempfile.TemporaryDirectory() as folder:
        site = SiteContext(
            site_id="site-a",
            load_cohort=lambda: cohort,
            state_dir=Path(folder),
            cache_dir=Path(folder),
            device="cpu",
            num_threads=1,
        )
        session = method.open_session(study, study.runs[0], spec, site)
        data = PatientDataset(patients, contract).batch(np.arange(count))
        worker_s, bare_s = [], []
        for repeat in range(repeats + 1):
            task = RoundTask(
                run_name="main",
                round_number=repeat + 1,
                attempt=1,
                strategy_config={},
                is_cancelled=lambda: False,
            )
            start = time.perf_counter()
            session.train(vector, task)
            worker_s.append(time.perf_counter() - start)
            bare_s.append(bare_loop(study, data))
    # The first turn warms both up (thread pools, memory, the session's volumes).
    worker, bare = statistics.median(worker_s[1:]), statistics.median(bare_s[1:])
    return {
        "size": size,
        "patients": count,
        "epochs": epochs,
        "repeats": repeats,
        "num_parameters": spec.num_elements,
        "worker_s": round(worker, 4),
        "bare_s": round(bare, 4),
        "epoch_s": round(worker / epochs, 4),
        "ratio": round(worker / bare, 3),
        "target_ratio": TARGET_RATIO,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="16 voxels a side, two turns")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plans = [(16, 64, 2, 2)] if arguments.quick else [(16, 160, 4, 7), (32, 160, 4, 7)]
    rows = [measure(*plan) for plan in plans]
    if arguments.json:
        print(json.dumps({"schema_version": 1, "benchmark": "worker_training", "rows": rows}))
    else:
        for row in rows:
            print(
                f"{row['size']}^3: worker {row['worker_s']} s, bare loop {row['bare_s']} s, "
                f"ratio {row['ratio']} (at most {TARGET_RATIO}); an epoch {row['epoch_s']} s"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
