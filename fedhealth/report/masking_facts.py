"""What a record holds about secure aggregation, and how the report says it."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from fedhealth.report.schema import Closed, Count, D, S, SlugId

ASSUMPTION: Final = (
    "This holds if the hospitals that pinned each other's keys compared their fingerprints, and if no more of them "
    "collude with the server than the study allows for. It says nothing about what the sum itself tells."
)
HIDDEN_SIZES: Final = (
    "Sizes of hospitals travelled under the masks too: the server knows their total in each round. Totals of rounds "
    "with different hospitals tell the size of the one that is in one of them."
)
NOT_VISIBLE: Final = "not visible to the server"
"""Stands where a site's own value would be."""
Positive = Annotated[float, Field(gt=0)]


class MaskingFact(Closed):
    """How the updates of a round were masked, and how the masks came off.

    Attributes:
        is_masked: something was under masks; false in an evaluation that releases no metric.
        hides_sizes: the number of a site's patients stays at the site.
        threshold: sites whose shares it takes to remove the masks.
        min_survivors: fewest sites that a sum may be about.
        modulus_bits: of one masked value.
        value_range: largest change of a value that is not cut; None where noise sets the grid.
        kept_share: of the coordinates that travelled.
        survivors: sites whose vectors are in the sum.
        agreed: survivors that signed their list before it was unmasked; 0 where all of the cohort is in the sum.
        unmasked_by: sites that gave shares.
        unmask_trips: messages to each site beyond the first.
        total_weight: of all survivors together; None in a void round, or where all count the same.
        num_cut: values beyond the range, over all survivors; None where it is not known.
        noise_unit: what noise shares under the masks hide; None without.
        num_honest: fewest honest sites that the noise was sized for.
    """

    protocol: Annotated[Literal["fedhealth-secagg/1"], S] = "fedhealth-secagg/1"
    is_masked: Annotated[bool, S]
    hides_sizes: Annotated[bool, D]
    threshold: Annotated[int, Field(ge=1, le=1000), S]
    min_survivors: Annotated[int, Field(ge=2, le=1000), S]
    modulus_bits: Annotated[int | None, S] = None
    value_range: Annotated[Positive | None, D] = None
    kept_share: Annotated[Positive, D] = 1.0
    survivors: Annotated[tuple[SlugId, ...], S] = ()
    agreed: Annotated[Count, S] = 0
    unmasked_by: Annotated[tuple[SlugId, ...], S] = ()
    unmask_trips: Annotated[Count, S] = 0
    total_weight: Annotated[Count | None, S] = None
    num_cut: Annotated[Count | None, S] = None
    noise_unit: Annotated[Literal["patient", "site"] | None, D] = None
    num_honest: Annotated[Count | None, D] = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not set(self.unmasked_by) <= set(self.survivors):
            raise ValueError("only survivors give shares")
        if not self.is_masked and (self.survivors or self.unmask_trips):
            raise ValueError("without a masked vector there is nothing to unmask")
        if (self.noise_unit is None) != (self.num_honest is None):
            raise ValueError("noise under masks names the honest sites that it counts on")
        return self


def check_round(
    fact: MaskingFact,
    *,
    is_void: bool,
    used: Sequence[str],
    sizes: Sequence[int | None],
    tells: bool,
) -> None:
    """What has to hold between a masked round's sites and its sum.

    Args:
        fact: of the round.
        is_void: the round gave no model.
        used: sites that contributed.
        sizes: what each site's size is shown as.
        tells: some site's own metric is shown.

    Raises:
        ValueError: it does not hold.
    """
    if tells:
        raise ValueError("a site's metric is shown in a masked round")
    if any((size is None) != fact.hides_sizes for size in sizes):
        raise ValueError("sizes are hidden at all sites or at none")
    if is_void or not fact.is_masked:
        return
    if sorted(fact.survivors) != sorted(used) or len(used) < fact.min_survivors:
        raise ValueError("the sum is about the sites that contributed, and enough of them")
    if len(fact.unmasked_by) < fact.threshold:
        raise ValueError("masks came off without enough shares")


def masking_section(fact: MaskingFact | None, status: str) -> dict[str, Any] | None:
    """Sentences and facts for the page; None without masks."""
    if fact is None:
        return None
    return {"sentence": _sentence(fact, status), "rows": _rows(fact), "notes": _notes(fact)}


def _sentence(fact: MaskingFact, status: str) -> str:
    if not fact.is_masked:
        return "This study masks updates and metrics. This trip released neither, so there was nothing to mask."
    if status == "void" and len(fact.unmasked_by) >= fact.threshold:
        return (
            f"Every update came under masks. The server could open the sum of {len(fact.survivors)} hospitals, and "
            "used none of it: the round is void. What it cost the sites' privacy budgets stays spent."
        )
    if status == "void":
        return (
            "Every update came under masks, and the masks stayed on: the server has seen no update, and no sum. "
            "What the round cost the sites' privacy budgets stays spent."
        )
    return (
        f"The server saw the sum of {len(fact.survivors)} hospitals and no single update: each came under masks that "
        f"cancel in the sum only. It took the shares of {fact.threshold} hospitals to remove them; "
        f"{len(fact.unmasked_by)} gave theirs."
    )


def _rows(fact: MaskingFact) -> list[tuple[str, str, str]]:
    """Name, value, and the record's field."""
    rows = [
        ("Protocol", fact.protocol, "protocol"),
        ("In the sum", ", ".join(fact.survivors) or "no hospital", "survivors"),
        ("Gave shares", ", ".join(fact.unmasked_by) or "no hospital", "unmasked_by"),
        ("Shares needed", str(fact.threshold), "threshold"),
        ("Fewest hospitals in a sum", str(fact.min_survivors), "min_survivors"),
        (
            "Trips to unmask",
            f"{fact.unmask_trips}"
            + (f" ({fact.agreed} hospitals signed the list first)" if fact.agreed else ""),
            "unmask_trips",
        ),
    ]
    if fact.modulus_bits is not None:
        rows.append(("Bits of a masked value", str(fact.modulus_bits), "modulus_bits"))
    if fact.total_weight is not None:
        rows.append(("Weight of all together", f"{fact.total_weight:,}", "total_weight"))
    if fact.num_cut is not None:
        said = f"{fact.num_cut:,} (largest change that is not cut: {fact.value_range:g})"
        rows.append(("Values that were cut", said, "num_cut"))
    if fact.kept_share < 1:
        rows.append(("Coordinates that travelled", f"{fact.kept_share:.1%}", "kept_share"))
    if fact.noise_unit is not None:
        said = f"noise shares that hide one {fact.noise_unit}, sized for {fact.num_honest} honest hospitals"
        rows.append(("Noise under the masks", said, "noise_unit"))
    return rows


def _notes(fact: MaskingFact) -> list[str]:
    notes = [ASSUMPTION]
    if fact.hides_sizes:
        notes.append(HIDDEN_SIZES)
    return notes
