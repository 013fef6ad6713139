"""What the models of a record are made of: the closed base, bounded strings and numbers, attestation classes."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

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


class Watermarked(Closed):
    """A record that says it when it comes from a simulation.

    The field is written only then: records of real federations are byte for byte what they were before it
    existed, and a reader that does not know the field refuses a simulation's record.
    """

    is_simulation: Annotated[bool, S] = False

    def left_out(self) -> frozenset[str]:
        """Fields that are not written, because they say nothing here."""
        return frozenset() if self.is_simulation else frozenset({"is_simulation"})

    @model_serializer(mode="wrap")
    def _as_written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = write(self)
        return {name: value for name, value in fields.items() if name not in self.left_out()}
