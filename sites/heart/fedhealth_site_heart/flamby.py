"""FLamby's Fed-Heart-Disease split, exactly, for comparison with its published table.

Reference: Ogier du Terrail et al., FLamby: Datasets and Benchmarks for Cross-Silo Federated Learning in
Realistic Healthcare Settings, NeurIPS 2022, section on Fed-Heart-Disease and its public code.
"""

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from fedhealth_site_heart.tables import COLUMNS, HOSPITALS, Hospital, read_table

Features = NDArray[np.float32]
Labels = NDArray[np.int64]

NUM_FEATURES = 13
_NUMERIC = ("age", "sex", "trestbps", "chol", "fbs", "thalach", "exang", "oldpeak")
_ONE_HOT = {"cp": (2.0, 3.0, 4.0), "restecg": (1.0, 2.0)}
"""Codes with a feature of their own; the first code of each column has none."""

_TEST_SHARE, _TRAIN_SHARE, _SEED = 1 - 0.66, 0.66, 43


def flamby_split(hospital: Hospital) -> tuple[Features, Labels, Features, Labels]:
    """Train and test side of one hospital as FLamby makes them.

    Slope, ca and thal are dropped, then patients with a missing value; zeros in chol and trestbps stay, as
    FLamby leaves them. Features are z-scored with the hospital's own training side (N - 1 in the variance, as
    torch has it); a constant feature becomes 0.

    Returns:
        train (N, 13) float32, train labels (N,) int64, test (M, 13), test labels (M,).
    """
    x_train, y_train, x_test, y_test = _split(hospital)
    return _scaled(x_train, x_train), y_train, _scaled(x_test, x_train), y_test


def flamby_pooled_train() -> tuple[Features, Labels]:
    """All four training sides together, z-scored as one table: what FLamby's pooled model is trained on.

    FLamby tests that model on each hospital's own scaling (`flamby_split`), and so must a comparison.

    Returns:
        (486, 13) float32 and (486,) int64.
    """
    sides = [_split(hospital) for hospital in HOSPITALS]
    features = np.concatenate([side[0] for side in sides])
    return _scaled(features, features), np.concatenate([side[1] for side in sides])


def _split(
    hospital: Hospital,
) -> tuple[NDArray[np.float64], Labels, NDArray[np.float64], Labels]:
    """Both sides with unscaled features."""
    table = read_table(hospital)
    used = [COLUMNS.index(name) for name in (*_NUMERIC, *_ONE_HOT)]
    complete = table[~np.isnan(table[:, used]).any(axis=1)]
    features, labels = _features(complete), (complete[:, -1] > 0).astype(np.int64)
    counts = np.bincount(labels, minlength=2)
    train, test = train_test_split(
        np.arange(len(labels)),
        test_size=_TEST_SHARE,
        train_size=_TRAIN_SHARE,
        random_state=_SEED,
        shuffle=True,
        stratify=labels if counts.min() > 2 else None,  # noqa: PLR2004 - FLamby's rule
    )
    return features[train], labels[train], features[test], labels[test]


def _scaled(features: NDArray[np.float64], reference: NDArray[np.float64]) -> Features:
    mean, std = reference.mean(axis=0), reference.std(axis=0, ddof=1)
    return np.asarray((features - mean) / np.where(std > 0, std, 1.0), dtype=np.float32)


def _features(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 13): numeric columns in file order, then one feature per further code of cp and restecg."""
    blocks = [table[:, COLUMNS.index(name)] for name in _NUMERIC]
    for name, codes in _ONE_HOT.items():
        blocks += [(table[:, COLUMNS.index(name)] == code).astype(np.float64) for code in codes]
    return np.column_stack(blocks)
