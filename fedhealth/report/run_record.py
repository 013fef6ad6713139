"""The record of a run: its rounds in order, each by the digest of its own record. It says nothing that they do not."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field

from fedhealth.report.record import RoundOrder, RoundRecord, SiteStatus, record_digest, round_order
from fedhealth.report.schema import Closed, Count, D, Hex64, P, S, SlugId, Watermarked

RUN_SCHEMA: Literal["fedhealth/run-record/v1"] = "fedhealth/run-record/v1"


class RoundLine(Closed):
    """One round in the record of a run, by digest."""

    round_number: Annotated[int, Field(ge=1, le=1_000_000), S]
    attempt: Annotated[int, Field(ge=1, le=1_000_000), S]
    kind: Annotated[Literal["train", "evaluate"], S]
    status: Annotated[Literal["complete", "void"], S]
    record_sha256: Annotated[Hex64, P]
    model_out_sha256: Annotated[Hex64, S]
    contributed: Annotated[Count, S]
    dropped: Annotated[Count, S]


class RunRecord(Watermarked):
    """The rounds of a run, derived from their records: it says nothing that they do not."""

    schema_id: Annotated[Literal["fedhealth/run-record/v1"], P] = RUN_SCHEMA
    study_id: Annotated[SlugId, D]
    study_sha256: Annotated[Hex64, P]
    run_name: Annotated[SlugId, D]
    rounds: tuple[RoundLine, ...] = Field(min_length=1)


def run_record(
    records: Sequence[RoundRecord], known: Mapping[RoundOrder, RoundLine] = MappingProxyType({})
) -> RunRecord:
    """The run's record from its rounds, which are put in order.

    Args:
        records: its rounds.
        known: lines of some of them that were worked out before; a digest costs as much as writing the record.

    Raises:
        ValueError: none, or rounds of several runs or studies, or simulated rounds beside real ones.
    """
    if len({(r.study_id, r.study_sha256, r.run_name, r.is_simulation) for r in records}) != 1:
        raise ValueError("the rounds must be of one run of one study")
    ordered = sorted(records, key=round_order)
    first = ordered[0]
    return RunRecord(
        is_simulation=first.is_simulation,
        study_id=first.study_id,
        study_sha256=first.study_sha256,
        run_name=first.run_name,
        rounds=tuple(known.get(round_order(record)) or _line(record) for record in ordered),
    )


def _line(record: RoundRecord) -> RoundLine:
    return RoundLine(
        round_number=record.round_number,
        attempt=record.attempt,
        kind=record.kind,
        status=record.status,
        record_sha256=record_digest(record),
        model_out_sha256=record.model_out_sha256,
        contributed=record.count(SiteStatus.CONTRIBUTED),
        dropped=record.count(SiteStatus.DROPPED),
    )
