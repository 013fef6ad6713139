"""What a record holds about modalities: which hospitals declared one, and whose updates its encoder is the mean of."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from fedhealth.report.schema import Closed, Count, D, P, S, SlugId

ModalityName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
HINT: Final = (
    "What a hospital has is what it declared. How many of its patients lack a modality stays there."
)


class ModalityCoverage(Closed):
    """One modality in one round.

    Attributes:
        modality: its name in the study.
        declared_by: invited hospitals that declared it.
        num_contributed: how many of those contributed.
        averaged_over: whose updates the mean of its tensors is about.
        num_owners: declaring hospitals in that mean; 0 when the tensors stayed as they were; None where they are
            averaged over all sites.
        num_values: values of the model that belong to the modality alone; None where they are averaged over all.
    """

    modality: Annotated[ModalityName, P]
    declared_by: Annotated[tuple[SlugId, ...], D] = ()
    num_contributed: Annotated[Count, S]
    averaged_over: Annotated[Literal["all_sites", "sites_with_modality"], D]
    num_owners: Annotated[Count | None, S] = None
    num_values: Annotated[Count | None, P] = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not (self.num_owners or 0) <= self.num_contributed <= len(self.declared_by):
            raise ValueError(
                "more hospitals are in a mean than contributed, or contributed than declared"
            )
        by_modality = self.averaged_over == "sites_with_modality"
        if (self.num_owners is not None) != by_modality or (
            self.num_values is not None
        ) != by_modality:
            raise ValueError("a number of owners goes with tensors that are averaged over them")
        return self


def coverage_section(
    coverage: Sequence[ModalityCoverage], status: str, kind: str
) -> dict[str, Any] | None:
    """Rows and sentences for the page; None where the record says nothing."""
    if not coverage:
        return None
    rows = [
        {
            "modality": fact.modality,
            "declared_by": ", ".join(fact.declared_by) or "no hospital",
            "contributed": f"{fact.num_contributed} of {len(fact.declared_by)}",
            "mean": _mean(fact, status, kind),
        }
        for fact in coverage
    ]
    return {"rows": rows, "hint": HINT}


def _mean(fact: ModalityCoverage, status: str, kind: str) -> str:
    if status == "void" or kind == "evaluate":
        return "nothing was averaged"
    if fact.num_owners is None:
        return "over all contributing hospitals"
    if fact.num_owners == 0:
        return "its encoder stayed as it was: too few hospitals that declared it contributed"
    return f"its encoder is the mean of {fact.num_owners} hospitals"
