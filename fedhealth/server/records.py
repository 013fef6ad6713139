"""From what happened in a round to its record: nothing is added, nothing is left out."""

import json
import socket
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final, cast

from fedhealth.config.study import RunPlan
from fedhealth.contracts.aggregation import STRATEGY_CONFIG_ALLOWED
from fedhealth.evidence.statements import Manifest
from fedhealth.report.coverage import ModalityCoverage
from fedhealth.report.masking_facts import MaskingFact
from fedhealth.report.privacy import patient_fact, site_fact, site_level_fact
from fedhealth.report.record import (
    RoundRecord,
    SiteFact,
    SiteStatus,
    StrategySetting,
    TensorFact,
    Timings,
    Versions,
    mean_metrics,
    tensor_spec_digest,
    unevidenced,
)
from fedhealth.report.schema import MetricName
from fedhealth.server.block_means import block_means
from fedhealth.server.outcomes import RoundOutcome, SiteOutcome
from fedhealth.server.roster import RosterLine

METRIC_DECIMALS: Final = 6
"""Masks carry metrics in steps of a millionth; what sites release has four digits at most."""
WireBytes = Mapping[str, tuple[int, int]]
"""Bytes received from and sent to each node key so far, as the gateway counted them."""


def round_record(
    outcome: RoundOutcome,
    run: RunPlan,
    roster: Sequence[RosterLine],
    wire: WireBytes,
    *,
    is_simulation: bool = False,
) -> RoundRecord:
    """The record of a closed round.

    Args:
        outcome: what happened.
        run: the run's plan.
        roster: admitted sites; those outside the cohort are listed as not invited.
        wire: bytes of this round by node key; empty when the gateway could not be asked.
        is_simulation: all hospitals were simulated by one party.
    """
    manifest = outcome.manifest
    tensors = tuple(
        TensorFact(name=t.name, shape=t.shape, offset=t.offset) for t in manifest.tensors
    )
    sites = _sites(outcome, manifest, roster, wire)
    train_means, evaluate_means = _means(outcome, sites)
    mean = outcome.aggregate
    site_level = (
        site_level_fact(mean.site_level, mean.site_level_so_far, num_admitted=len(sites))
        if mean
        else None
    )
    masking = masking_fact(outcome)
    return RoundRecord(
        is_simulation=is_simulation,
        study_id=manifest.study_id,
        study_sha256=manifest.study_sha256,
        run_name=manifest.run_name,
        flower_run_id=manifest.flower_run_id,
        round_number=manifest.round_number,
        attempt=manifest.attempt,
        kind=manifest.kind,
        status=outcome.status,
        void_reason=outcome.void_reason,
        opened_at=manifest.opened_at,
        closed_at=outcome.closed_at,
        deadline_s=manifest.deadline_s,
        timings=_timings(outcome.seconds),
        manifest_sha256=outcome.manifest_sha256,
        model_in_sha256=manifest.model_sha256,
        model_out_sha256=outcome.model_out_sha256,
        tensor_spec_sha256=tensor_spec_digest(tensors),
        tensors=tensors,
        num_parameters=manifest.spec.num_elements,
        strategy=run.strategy.name,
        strategy_config={
            cast("StrategySetting", name): float(value)
            for name, value in manifest.strategy_config.items()
            if name in STRATEGY_CONFIG_ALLOWED
        },
        personalisation=run.personalisation,
        min_cohort=manifest.min_cohort,
        sites=sites,
        aggregate_train_metrics=train_means,
        aggregate_evaluate_metrics=evaluate_means,
        patient_privacy=patient_fact(manifest.privacy),
        site_level=site_level,
        masking=masking,
        coverage=coverage_facts(outcome),
        update_encoding=manifest.update_encoding,
        not_evidenced=unevidenced(sites, site_level, masking),
        versions=Versions(fedhealth=version("fedhealth"), flwr=version("flwr")),
    )


def coverage_facts(outcome: RoundOutcome) -> tuple[ModalityCoverage, ...]:
    """Who declared which modality, and whose updates its tensors are the mean of."""
    manifest, names = (
        outcome.manifest,
        dict.fromkeys(name for site in outcome.sites for name in site.line.entry.modalities),
    )
    contributed = [s.line.entry.site_id for s in outcome.sites if s.drop_code is None]
    is_void = outcome.status == "void"
    blocks = {block.modality: block for block in block_means(manifest, contributed)}
    facts = []
    for name in names:
        declared = [s.line.entry.site_id for s in outcome.sites if name in s.line.entry.modalities]
        block = blocks.get(name)
        facts.append(
            ModalityCoverage(
                modality=name,
                declared_by=tuple(declared),
                num_contributed=len(set(declared) & set(contributed)),
                averaged_over="all_sites" if block is None else "sites_with_modality",
                num_owners=None if block is None else 0 if is_void else len(block.owners),
                num_values=None if block is None else sum(p.stop - p.start for p in block.parts),
            )
        )
    return tuple(facts)


def masking_fact(outcome: RoundOutcome) -> MaskingFact | None:
    """How the round was masked; None without masks."""
    asked, masked, total = outcome.manifest.masking, outcome.masked, outcome.total
    if asked is None:
        return None
    noise = asked.distributed
    facts: dict[str, object] = {
        "is_masked": masked is not None,
        "hides_sizes": all(site.line.entry.train_size is None for site in outcome.sites),
        "threshold": asked.threshold,
        "min_survivors": asked.min_survivors,
        "value_range": None if noise else asked.value_range,
        "kept_share": asked.kept_share,
        "noise_unit": noise.unit if noise else None,
        "num_honest": noise.num_honest if noise else None,
    }
    if masked is not None:
        facts |= {
            "modulus_bits": masked.layout.modulus_bits,
            "survivors": masked.total.survivors,
            "agreed": masked.agreed,
            "unmasked_by": masked.total.unmasked_by,
            "unmask_trips": masked.unmask_trips,
        }
    if total is not None and noise is None:
        by_size = asked.max_weight > 1
        facts |= {"total_weight": int(total.weight) if by_size else None, "num_cut": total.num_cut}
    return MaskingFact.model_validate(facts)


def read_wire_bytes(path: Path) -> dict[str, tuple[int, int]]:
    """Ask the gateway for its counters; empty when it does not answer: then the record says None."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(2)
            connection.connect(str(path))
            data = b"".join(iter(lambda: connection.recv(65536), b""))
    except OSError:
        return {}
    return {key: (int(counts[0]), int(counts[1])) for key, counts in json.loads(data).items()}


def since(now: WireBytes, before: WireBytes) -> dict[str, tuple[int, int]]:
    """Bytes between two readings; a gateway that was restarted in between has not measured the round."""
    passed = {
        key: (received - before.get(key, (0, 0))[0], sent - before.get(key, (0, 0))[1])
        for key, (received, sent) in now.items()
    }
    return {key: counts for key, counts in passed.items() if min(counts) >= 0}


def _means(
    outcome: RoundOutcome, sites: tuple[SiteFact, ...]
) -> tuple[dict[MetricName, float], dict[MetricName, float]]:
    """The strategy's own means of a training round; the closing evaluation has no strategy."""
    if outcome.aggregate is None and outcome.total is not None:
        return {}, _named(outcome.total.evaluate_metrics)
    if outcome.aggregate is None:
        is_closing = outcome.status == "complete"
        return {}, (mean_metrics(sites, "evaluate") if is_closing else {})
    mean = outcome.aggregate
    return _named(mean.train_metrics), _named(mean.evaluate_metrics)


def _named(metrics: Mapping[str, float]) -> dict[MetricName, float]:
    return {
        cast("MetricName", name): round(value, METRIC_DECIMALS) for name, value in metrics.items()
    }


def _sites(
    outcome: RoundOutcome, manifest: Manifest, roster: Sequence[RosterLine], wire: WireBytes
) -> tuple[SiteFact, ...]:
    is_void = outcome.status == "void"
    facts = [_site(site, is_void=is_void, wire=wire) for site in outcome.sites]
    cohort = {member.site_id for member in manifest.cohort}
    facts += [
        SiteFact(
            site_id=line.entry.site_id,
            key_id=line.entry.key_id,
            status=SiteStatus.NOT_INVITED,
            declared_train_size=line.entry.train_size,
        )
        for line in roster
        if line.entry.site_id not in cohort
    ]
    return tuple(sorted(facts, key=lambda fact: fact.site_id))


def _site(site: SiteOutcome, *, is_void: bool, wire: WireBytes) -> SiteFact:
    entry, said = site.line.entry, site.contribution
    counts = wire.get(entry.node_key_id)
    is_counted = site.drop_code is None
    return SiteFact(
        site_id=entry.site_id,
        key_id=entry.key_id,
        status=_status(site, is_void=is_void),
        drop_code=site.drop_code,
        contribution_sha256=site.contribution_sha256,
        declared_train_size=entry.train_size,
        update_bytes=site.update_bytes,
        wire_bytes_in=counts[0] if counts else None,
        wire_bytes_out=counts[1] if counts else None,
        answered_after_s=site.answered_after_s,
        train_metrics=_named(said.train_metrics) if said and is_counted else {},
        evaluate_metrics=_named(said.evaluate_metrics) if said and is_counted else {},
        privacy=site_fact(said.privacy) if said and is_counted else None,
    )


def _status(site: SiteOutcome, *, is_void: bool) -> SiteStatus:
    if site.drop_code is not None:
        return SiteStatus.DROPPED
    return SiteStatus.UNUSED if is_void else SiteStatus.CONTRIBUTED


def _timings(seconds: Mapping[str, float]) -> Timings:
    return Timings(
        gather_s=seconds.get("gather", 0.0),
        exchange_s=seconds.get("exchange", 0.0),
        aggregate_s=seconds.get("aggregate", 0.0),
        checkpoint_s=seconds.get("checkpoint", 0.0),
        total_s=round(sum(seconds.values()), 3),
    )
