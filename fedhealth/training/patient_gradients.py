"""Each training patient's own gradient, for one global step a round under distributed noise. Called by `supervised`.

Sums of clipped per-patient gradients are what DP-SGD adds up (Abadi et al. 2016, arXiv 1607.00133); here the sum
goes over all sites, and its noise is added under their masks.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from fedhealth.contracts.tensors import TensorSpec
from fedhealth.data.batch import PatientDataset
from fedhealth.privacy.dp_sgd.patient_loop import patient_gradients as gradients_of
from fedhealth.privacy.randomness import Randomness
from fedhealth.training.learner import Learner
from fedhealth.training.local_steps import cuda_devices, stop_if
from fedhealth.training.modality_dropout import drop_modalities
from fedhealth.training.private_steps import load_readable, secret_scores, secret_seed

BATCH: int = 32
"""Patients loaded at a time; their gradients are taken one by one."""


def flat_patient_gradients(
    learner: Learner,
    dataset: PatientDataset,
    spec: TensorSpec,
    *,
    modality_dropout: float,
    randomness: Randomness,
    is_cancelled: Callable[[], bool],
) -> Iterator[NDArray[np.float32]]:
    """Gradient of each patient's mean loss over its records, by the shared tensors.

    Dropout of layers and modalities draws from a secret source, patient by patient: what one patient gives does not
    depend on the others.

    Yields:
        (spec.num_elements,) float32; zero where the loss does not reach.

    Raises:
        CancelledTrainingError: FH-TRAIN-001 `is_cancelled()` turned true.
    """
    learner.model.train()
    with torch.random.fork_rng(devices=cuda_devices(learner)):
        for start in range(0, dataset.num_patients, BATCH):
            chosen = np.arange(start, min(start + BATCH, dataset.num_patients))
            loaded, _ = load_readable(dataset, chosen)
            if loaded is None:
                continue
            torch.manual_seed(secret_seed(randomness))
            batch, owners = loaded
            batch = drop_modalities(batch, modality_dropout, partial(secret_scores, randomness)).to(
                learner.device
            )
            for found in gradients_of(
                learner.model, learner.task, learner.shared, batch, owners.to(learner.device)
            ):
                stop_if(is_cancelled)
                flat = np.zeros(spec.num_elements, dtype=np.float32)
                for name, target in spec.views(flat):
                    if name in found:
                        np.copyto(target, found[name].detach().cpu().numpy())
                yield flat
