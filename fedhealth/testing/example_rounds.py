"""Rounds of a made-up run with every outcome that a report can show: for tests of whatever reads records."""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

from fedhealth.contracts.aggregation import SiteLevelRelease
from fedhealth.contracts.codes import DropCode
from fedhealth.evidence.statements import LedgerPlace, PrivacySpend
from fedhealth.privacy.accounting.events import (
    Event,
    GaussianRelease,
    PoissonSubsampledGaussian,
    UnboundedRelease,
    merge_events,
)
from fedhealth.privacy.accounting.metrics import METRIC_BOUNDS
from fedhealth.report.coverage import ModalityCoverage
from fedhealth.report.masking_facts import MaskingFact
from fedhealth.report.privacy import site_fact, site_level_fact
from fedhealth.report.privacy_facts import PatientPrivacyFact
from fedhealth.report.record import (
    RoundRecord,
    SiteFact,
    SiteStatus,
    TensorFact,
    Timings,
    Versions,
    VoidReason,
    mean_metrics,
    round_order,
    tensor_spec_digest,
    unevidenced,
)

SITES = {"hospital-north": 812, "hospital-south": 344, "lakeside-clinic": 120, "st-anne": 95}

TENSORS = (
    TensorFact(name="image.conv1.weight", shape=(8, 1, 3, 3, 3), offset=0),
    TensorFact(name="image.norm1.weight", shape=(8,), offset=216),
    TensorFact(name="table.linear.weight", shape=(32, 24), offset=224),
    TensorFact(name="fusion.temperature", shape=(), offset=992),
)


def digest(text: str) -> str:
    """A digest that stands for something."""
    return hashlib.sha256(text.encode()).hexdigest()


def site(
    index: int, number: int, *, drop: DropCode | None = None, status: SiteStatus | None = None
) -> SiteFact:
    """What one of the four hospitals did in a round."""
    site_id = list(SITES)[index]
    facts: dict[str, Any] = {"status": status or SiteStatus.CONTRIBUTED}
    if drop is not None:
        facts = {"status": SiteStatus.DROPPED, "drop_code": drop, "answered_after_s": 0.8}
        facts["wire_bytes_in"] = 1204
    elif status is not SiteStatus.NOT_INVITED:
        gain = 1 - 0.6**number
        facts |= {
            "contribution_sha256": digest(f"{site_id} {number}"),
            "update_bytes": 3972,
            "wire_bytes_in": 9120 + 7 * index,
            "answered_after_s": 3.2 + 1.7 * index,
            "train_metrics": {"train_loss": round(0.72 - 0.3 * gain + 0.03 * index, 3)},
            "evaluate_metrics": {
                "auc": round(0.55 + 0.3 * gain - 0.04 * index, 3),
                "log_loss": round(0.71 - 0.25 * gain + 0.03 * index, 3),
                "brier": round(0.26 - 0.09 * gain + 0.01 * index, 3),
            },
        }
        if site_id == "st-anne":  # one class only in its validation patients
            del facts["evaluate_metrics"]["auc"]
    if status is not SiteStatus.NOT_INVITED:
        facts["wire_bytes_out"] = 9482
    return SiteFact(
        site_id=site_id, key_id=digest(site_id), declared_train_size=SITES[site_id], **facts
    )


def make_round(
    number: int,
    sites: tuple[SiteFact, ...],
    *,
    kind: Literal["train", "evaluate"] = "train",
    void: VoidReason | None = None,
    attempt: int = 1,
) -> RoundRecord:
    """One round of the example run with these hospitals."""
    is_same = void is not None or kind == "evaluate"
    return RoundRecord(
        study_id="heart-demo",
        study_sha256=digest("study"),
        run_name="federated",
        flower_run_id="16325478901234567890",
        round_number=number,
        attempt=attempt,
        kind=kind,
        status="void" if void else "complete",
        void_reason=void,
        opened_at=f"2026-03-02T09:{number:02d}:{attempt:02d}.250000Z",
        closed_at=f"2026-03-02T09:{number:02d}:4{attempt}.500000Z",
        deadline_s=3600.0,
        timings=Timings(
            gather_s=0.21, exchange_s=38.44, aggregate_s=0.031, checkpoint_s=0.058, total_s=38.74
        ),
        manifest_sha256=digest(f"manifest {number} {attempt}"),
        model_in_sha256=digest(f"model {number - 1}"),
        model_out_sha256=digest(f"model {number - 1 if is_same else number}"),
        tensor_spec_sha256=tensor_spec_digest(TENSORS),
        tensors=TENSORS,
        num_parameters=993,
        strategy="fedprox",
        strategy_config={"proximal_mu": 0.01},
        personalisation="private_head",
        min_cohort=2,
        sites=sites,
        aggregate_train_metrics=mean_metrics(sites, "train"),
        aggregate_evaluate_metrics=mean_metrics(sites, "evaluate"),
        versions=Versions(fedhealth="0.1.0", flwr="1.41.0"),
        not_evidenced=unevidenced(sites, None),
    )


def example_run() -> list[RoundRecord]:
    """Five records with patient-level privacy: complete, with a drop-out, void, repeated, closing evaluation.

    Every answer releases noised metrics of validation patients, and its account pays for them.
    What a dropped hospital spent is unknown to the server, and comes with its next answer.
    """
    rounds = sorted(bare_run(), key=round_order)
    return [
        _with_accounts(record, rounds[: index + 1], target_epsilon=8.0)
        for index, record in enumerate(rounds)
    ]


def run_without_privacy() -> list[RoundRecord]:
    """The same rounds of a study that asks for no patient-level privacy: the ledgers say so."""
    rounds = bare_run()
    return [
        _with_accounts(record, rounds[: index + 1], target_epsilon=None)
        for index, record in enumerate(rounds)
    ]


def run_with_site_level(num_sites: int) -> list[RoundRecord]:
    """`example_run` under a strategy that also bounds what is learnt about one of `num_sites` hospitals.

    Those beyond the four are admitted, and never connected.
    """
    rounds, releases = [], []
    others = tuple(_absent(number) for number in range(len(SITES), num_sites))
    for record in example_run():
        sites = tuple(sorted((*record.sites, *others), key=lambda one: one.site_id))
        if record.status == "void" or record.kind == "evaluate":
            rounds.append(_changed(record, sites=sites, strategy="dp-fedavg"))
            continue
        releases.append(
            SiteLevelRelease(
                mechanism="dp-fedavg",
                noise_multiplier=1.5,
                noise_std=1.5 * 0.4 / num_sites,
                clipping_norm=0.4,
                denominator=num_sites,
                num_replies=record.count(SiteStatus.CONTRIBUTED),
                quantile_multiplier=None,
                generator="chacha20",
            )
        )
        site_level = site_level_fact(releases[-1], releases, num_admitted=len(sites))
        rounds.append(_changed(record, sites=sites, strategy="dp-fedavg", site_level=site_level))
    return rounds


def masked_run() -> list[RoundRecord]:
    """`run_without_privacy` under masks: the server knows sums, and no size, metric or update of one hospital."""
    return [_masked(record) for record in run_without_privacy()]


def _coverage(
    record: RoundRecord, invited: Sequence[str], contributed: Sequence[str]
) -> tuple[ModalityCoverage, ...]:
    """All hospitals have records; the last one has no images, and its image encoder is the others'."""
    imaging = tuple(sorted(invited))[:-1]
    num_imaging = len(set(imaging) & set(contributed))
    is_trained = record.kind == "train"
    return (
        ModalityCoverage(
            modality="ehr",
            declared_by=tuple(sorted(invited)),
            num_contributed=len(contributed),
            averaged_over="all_sites",
        ),
        ModalityCoverage(
            modality="mri",
            declared_by=imaging,
            num_contributed=num_imaging,
            averaged_over="sites_with_modality" if is_trained else "all_sites",
            num_owners=(num_imaging if record.status == "complete" else 0) if is_trained else None,
            num_values=400 if is_trained else None,
        ),
    )


def _masked(record: RoundRecord) -> RoundRecord:
    hidden: dict[str, Any] = {
        "declared_train_size": None,
        "train_metrics": {},
        "evaluate_metrics": {},
    }
    sites = tuple(
        SiteFact(**{name: getattr(one, name) for name in SiteFact.model_fields} | hidden)
        for one in record.sites
    )
    invited = [one for one in sites if one.status is not SiteStatus.NOT_INVITED]
    survivors = tuple(one.site_id for one in sites if one.status is SiteStatus.CONTRIBUTED)
    is_whole = len(survivors) == len(invited)
    masking = MaskingFact(
        is_masked=True,
        hides_sizes=True,
        threshold=len(invited) // 2 + 1,
        min_survivors=2,
        modulus_bits=31,
        value_range=1.0,
        survivors=survivors,
        agreed=0 if is_whole or not survivors else 3,
        unmasked_by=survivors[:3],
        unmask_trips=(1 if is_whole else 2) if survivors else 0,
        total_weight=sum(SITES[site_id] for site_id in survivors) or None,
        num_cut=17 if survivors else None,
    )
    return _changed(
        record,
        sites=sites,
        masking=masking,
        coverage=_coverage(record, [one.site_id for one in invited], survivors),
        aggregate_train_metrics=record.aggregate_train_metrics,
        aggregate_evaluate_metrics=record.aggregate_evaluate_metrics,
    )


def _absent(number: int) -> SiteFact:
    site_id = f"regional-{number:02d}"
    return SiteFact(
        site_id=site_id,
        key_id=digest(site_id),
        status=SiteStatus.NOT_INVITED,
        declared_train_size=100,
    )


def bare_run() -> list[RoundRecord]:
    """The five records without any account."""
    absent, unused = SiteStatus.NOT_INVITED, SiteStatus.UNUSED
    closing = tuple(
        site(i, 4).model_copy(update={"update_bytes": 0, "train_metrics": {}}) for i in range(4)
    )
    return [
        make_round(1, tuple(site(i, 1) for i in range(4))),
        make_round(2, (site(0, 2), site(1, 2), site(2, 2, drop=DropCode.DEADLINE), site(3, 2))),
        make_round(
            3,
            (
                site(0, 3, drop=DropCode.NODE_UNAVAILABLE),
                site(1, 3, status=unused),
                site(2, 3, drop=DropCode.NON_FINITE),
                site(3, 3, status=absent),
            ),
            void=VoidReason.MINIMUM_COHORT,
        ),
        make_round(3, tuple(site(i, 3) for i in range(4)), attempt=2),
        make_round(4, closing, kind="evaluate"),
    ]


def spend_of(
    site_id: str, rounds: Sequence[RoundRecord], *, is_private: bool = True
) -> PrivacySpend:
    """What a hospital's ledger says after these rounds, the last of which it answered."""
    events = [_events(record, site_id, is_private=is_private) for record in rounds]
    return PrivacySpend(
        round_events=merge_events(events[-1]),
        study_events=merge_events(event for answer in events for event in answer),
        delta=min(1e-3, 0.1 / SITES[site_id]),
        clipping_norm=1.0 if is_private else None,
        ledger=LedgerPlace(
            sequence=3 * len(rounds), head=digest(f"ledger {site_id} {len(rounds)}")
        ),
    )


def _events(record: RoundRecord, site_id: str, *, is_private: bool) -> tuple[Event, ...]:
    """Four epochs of batches of 32 a training round, and noised metrics with every answer."""
    if not is_private:
        return (UnboundedRelease(unit="patient", steps=1),)
    metrics = GaussianRelease(
        unit="patient", noise_multiplier=10.0, steps=1, population="validation", split_id="s1"
    )
    if record.kind == "evaluate":
        return (metrics,)
    size = SITES[site_id]
    noise = {"hospital-north": 0.9, "hospital-south": 1.0, "lakeside-clinic": 1.4, "st-anne": 1.35}
    training = PoissonSubsampledGaussian(
        sampling_rate=min(1.0, 32 / size),
        noise_multiplier=noise[site_id],
        steps=4 * -(-size // 32),
        population="train",
        split_id="s1",
    )
    return (training, metrics)


def _with_accounts(
    record: RoundRecord, so_far: Sequence[RoundRecord], *, target_epsilon: float | None
) -> RoundRecord:
    is_private = target_epsilon is not None
    sites = tuple(_with_account(one, so_far, is_private=is_private) for one in record.sites)
    asked = PatientPrivacyFact(
        target_epsilon=target_epsilon, clipping_norm=1.0, tuning="public_or_synthetic_data"
    )
    return _changed(
        record,
        sites=sites,
        patient_privacy=asked if is_private else None,
        aggregate_train_metrics=mean_metrics(sites, "train"),
        aggregate_evaluate_metrics=mean_metrics(sites, "evaluate"),
    )


def _with_account(fact: SiteFact, so_far: Sequence[RoundRecord], *, is_private: bool) -> SiteFact:
    if fact.status not in {SiteStatus.CONTRIBUTED, SiteStatus.UNUSED}:
        return fact
    invited = [
        record
        for record in so_far
        for one in record.sites
        if one.site_id == fact.site_id and one.status is not SiteStatus.NOT_INVITED
    ]
    spend = spend_of(fact.site_id, invited, is_private=is_private)
    charged: dict[str, Any] = {"privacy": site_fact(spend)}
    if is_private:
        noised = {k: v for k, v in fact.evaluate_metrics.items() if k in METRIC_BOUNDS}
        charged |= {"train_metrics": {}, "evaluate_metrics": noised}
    return SiteFact(**{name: getattr(fact, name) for name in SiteFact.model_fields} | charged)


def _changed(record: RoundRecord, **values: Any) -> RoundRecord:  # noqa: ANN401 - fields of a record
    """The record with other values, checked anew."""
    fields = {name: getattr(record, name) for name in RoundRecord.model_fields} | values
    fields["not_evidenced"] = unevidenced(fields["sites"], fields["site_level"], fields["masking"])
    return RoundRecord(**fields)
