"""What the models of a record are made of: the closed base, bounded strings and numbers, attestation classes."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedhealth.report.attestation import Attestation

P, S, A, D, N = (
    Attestation.PROVEN,
    Attestation.SERVER_OBSERVED,
    Attestation.SITE_ATTESTED,
    Attestation.DECLARED,
    Attestation.NOT_EVIDENCED,
)

Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SlugId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{1,39}$")]
PluginName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
DecimalId = Annotated[str, Field(pattern=r"^[0-9]{1,20}$")]
"""Flower run ids are uint64, which JSON numbers cannot hold."""
UtcTime = Annotated[
    str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z$")
]
Version = Annotated[str, Field(pattern=r"^[0-9]{1,6}(\.[0-9]{1,10}){1,3}([-+.a-z0-9]{1,40})?$")]
TensorName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,200}$")]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
MetricName = Literal[
    "auc",
    "accuracy",
    "log_loss",
    "brier",
    "calibration_error",
    "train_loss",
    "macro_auc",
    "balanced_accuracy",
    "subset_accuracy",
    "c_index",
    "integrated_brier",
    "dice",
]
Metrics = dict[MetricName, float]


class Closed(BaseModel):
    """Base: no unknown field, nothing mutable, finite numbers only."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
