"""Masked rounds with sites that lack a modality, in memory: right means, and no sum of too few owners."""

from typing import Any

import numpy as np
import pytest

from fedhealth.contracts.codes import DropCode
from fedhealth.errors import GateRefusedError, QuorumError
from fedhealth.evidence.signing import Envelope
from fedhealth.evidence.statements import Manifest, open_statement
from fedhealth.report.record import RoundRecord, VoidReason
from fedhealth.report.render import render_round
from fedhealth.secagg.refusals import MaskingError
from fedhealth.secagg.statements import UnmaskRequest
from fedhealth.server.records import round_record
from fedhealth.site.manifest_checks import drop_code_of

from ..conftest import two_modalities  # noqa: TID252 - tests are no installed package
from .masked import MASKS, Sites, ask, loop_of, silent, step_of

FIVE = ("site-1", "site-2", "site-3", "site-4", "site-5")
OWNERS = ("site-1", "site-2", "site-3")
LACKS = {"site-4": ("ehr",), "site-5": ("ehr",)}
SIZES = {name: 10 * int(name[-1]) for name in FIVE}
STEP = 8.0 / (2**15 - 1)
OTHER, MRI = slice(0, 40), slice(40, 100)


def content(masks: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    made = two_modalities(min_cohort=3, max_void_rounds=1)
    return made | {"secure_aggregation": MASKS | (masks or {})} | changes


def federation(new_consortium: Any, **masks: Any) -> Sites:
    return Sites(new_consortium(*FIVE, content=content(masks), modalities=LACKS))


def averaged_over_all(
    new_consortium: Any, lacks: dict[str, tuple[str, ...]] = LACKS, **changes: Any
) -> Sites:
    """The same sites, in a study that averages every tensor over all of them."""
    made = two_modalities(min_cohort=3, max_void_rounds=1, average_encoders_over="all_sites")
    whole = made | {"secure_aggregation": MASKS} | changes
    return Sites(new_consortium(*FIVE, content=whole, modalities=lacks))


@pytest.fixture
def five(new_consortium: Any) -> Sites:
    return federation(new_consortium)


def one_round(sites: Sites) -> Any:
    loop, _, start = loop_of(sites)
    return loop._train_round(start, 1)


def record_of(sites: Sites, outcome: Any) -> RoundRecord:
    study = sites.consortium.server.require()[0]
    return round_record(outcome, study.runs[0], sites.roster(), {})


def mean(names: tuple[str, ...]) -> float:
    """Site n adds n / 2 everywhere that it trains, and weighs 10 n."""
    return sum(0.5 * int(n[-1]) * SIZES[n] for n in names) / sum(SIZES[n] for n in names)


def test_every_block_is_the_mean_of_its_owners_under_their_hidden_weights(five: Sites) -> None:
    outcome, after = one_round(five)
    assert np.abs(after.vector[OTHER] - mean(FIVE)).max() <= STEP
    assert np.abs(after.vector[MRI] - mean(OWNERS)).max() <= STEP
    assert outcome.total.weight == sum(SIZES.values())
    (ehr, mri) = record_of(five, outcome).coverage
    assert (ehr.num_owners, mri.num_owners, mri.num_values) == (None, 3, 60)
    assert mri.declared_by == OWNERS


def test_with_a_share_of_the_coordinates_each_is_divided_by_its_own_weight(
    new_consortium: Any,
) -> None:
    _, after = one_round(federation(new_consortium, kept_share=0.5, value_range=16.0))
    for part, names in ((OTHER, FIVE), (MRI, OWNERS)):
        moved = after.vector[part][after.vector[part] != 0]
        assert 0 < moved.size < after.vector[part].size
        assert np.abs(moved - 2 * mean(names)).max() <= 4 * STEP


def test_a_site_that_lacks_the_modality_may_drop_out(five: Sites) -> None:
    five.faults["site-4", "manifest"] = silent
    _, after = one_round(five)
    assert np.abs(after.vector[OTHER] - mean((*OWNERS, "site-5"))).max() <= STEP
    assert np.abs(after.vector[MRI] - mean(OWNERS)).max() <= STEP


def test_a_round_that_would_show_an_encoder_of_two_owners_is_void_and_nobody_unmasks(
    five: Sites,
) -> None:
    five.faults["site-3", "manifest"] = silent
    outcome, after = one_round(five)
    assert (outcome.status, outcome.void_reason) == ("void", VoidReason.MINIMUM_OWNERS)
    assert not after.vector.any()
    assert {step_of(envelope) for _, envelope, _ in five.sent} == {"keyrequest", "manifest"}
    record = record_of(five, outcome)
    assert record.coverage[1].num_owners == 0
    assert "too few answered" in render_round(record, previous=None)


def test_all_owners_may_drop_out_together(new_consortium: Any) -> None:
    seven = (*FIVE, "site-6", "site-7")
    lacks = dict.fromkeys(seven[3:], ("ehr",))
    sites = Sites(new_consortium(*seven, content=content(), modalities=lacks))
    for name in OWNERS:
        sites.faults[name, "manifest"] = silent
    outcome, after = one_round(sites)
    assert outcome.status == "complete"
    assert after.vector[OTHER].all()
    assert not after.vector[MRI].any()


def test_an_encoder_of_two_owners_is_trained_nowhere_and_its_part_of_the_sum_is_zero(
    new_consortium: Any,
) -> None:
    lacks = LACKS | {"site-3": ("ehr",)}
    sites = Sites(new_consortium(*FIVE, content=content(), modalities=lacks))
    outcome, after = one_round(sites)
    assert outcome.status == "complete"
    assert not after.vector[MRI].any()
    assert np.abs(after.vector[OTHER] - mean(FIVE)).max() <= STEP
    assert record_of(sites, outcome).coverage[1].num_owners == 0
    layout, words = outcome.masked.layout, outcome.masked.total._total
    assert not words[: layout.num_values][MRI].any()


def test_sites_refuse_to_open_a_list_with_two_owners_whatever_the_server_says(
    five: Sites,
) -> None:
    codes = []

    def asked_for_fewer(sites: Sites, site_id: str, envelope: Envelope, payload: bytes) -> Any:
        key = sites.consortium.server_key
        said = open_statement(UnmaskRequest, envelope, key.public)
        names, size = list(said.survivors), len(payload) // len(said.survivors)
        for gone in ("site-3", "site-4"):
            kept = [place for place, name in enumerate(names) if name != gone]
            fewer = said.model_copy(
                update={
                    "step": "agree",
                    "survivors": tuple(names[i] for i in kept),
                    "dropped": (gone,),
                    "commitments": tuple(said.commitments[i] for i in kept),
                }
            ).sign(key)
            part = b"".join(payload[i * size : (i + 1) * size] for i in kept)
            codes.append(ask(sites, site_id, fewer, part).code)
        return ask(sites, site_id, envelope, payload)

    five.faults["site-1", "unmask"] = asked_for_fewer
    one_round(five)
    # Without a third owner refused; without a site that lacks the modality agreed to, as any first list.
    assert codes == [DropCode.SECAGG_BLOCK_FLOOR, None]


def test_the_server_itself_opens_no_sum_of_two_owners(five: Sites) -> None:
    five.faults["site-3", "manifest"] = silent
    outcome, _ = one_round(five)
    with pytest.raises(MaskingError, match="FH-SECAGG-009"):
        outcome.masked.total.remove_masks()


def test_a_site_that_is_given_a_modality_answers_with_a_code_and_the_others_go_on(
    five: Sites,
) -> None:
    def claimed(sites: Sites, site_id: str, envelope: Envelope, payload: bytes) -> Any:
        said = open_statement(Manifest, envelope, sites.consortium.server_key.public)
        cohort = tuple(m.model_copy(update={"modalities": ("ehr", "mri")}) for m in said.cohort)
        forged = said.model_copy(update={"cohort": cohort}).sign(sites.consortium.server_key)
        with pytest.raises(GateRefusedError) as error:
            sites.sites[site_id].answer(forged, payload)
        assert drop_code_of(error.value) is DropCode.PRESENCE_MISMATCH
        return ask(sites, site_id, envelope, payload)

    five.faults["site-4", "manifest"] = claimed
    outcome, _ = one_round(five)
    assert outcome.status == "complete"


def test_noise_hides_a_block_with_all_sites_shares_and_its_mean_is_over_its_owners(
    new_consortium: Any,
) -> None:
    noise = {
        "unit": "site",
        "num_sites": 5,
        "clipping_norm": 4.0,
        "noise_multiplier": 0.05,
        "modulus_bits": 32,
    }
    sites = federation(new_consortium, distributed_privacy=noise)
    outcome, after = one_round(sites)
    assert outcome.status == "complete"
    # Site n moves every value that it trains by n / 2, so its whole update is clipped to norm 4.
    trained = {name: 100 if name in OWNERS else 40 for name in FIVE}
    clipped = {n: min(0.5 * int(n[-1]), 4 / np.sqrt(trained[n])) for n in FIVE}
    assert outcome.total.weight == 1.0
    std = 0.05 * 4.0 / 5 * np.sqrt(5 / 3)
    for part, names, num in ((OTHER, FIVE, 5), (MRI, OWNERS, 3)):
        expected = sum(clipped[n] for n in names) / num
        noise_of_mean = std * 5 / num  # all five sites' shares, over fewer owners
        assert abs(after.vector[part].mean() - expected) < 6 * noise_of_mean / np.sqrt(40)
        assert 0.4 * noise_of_mean < after.vector[part].std() < 2.5 * noise_of_mean


def test_averaged_over_all_sites_an_encoder_of_two_owners_is_in_no_sum(
    new_consortium: Any,
) -> None:
    # A site without images adds an exact zero to an image encoder: its sum is that of the two that have them.
    sites = averaged_over_all(new_consortium, LACKS | {"site-3": ("ehr",)})
    with pytest.raises(QuorumError, match="FH-QUORUM-007"):
        one_round(sites)
    assert {step_of(envelope) for _, envelope, _ in sites.sent} <= {"keyrequest"}


def test_averaged_over_all_sites_a_drop_out_opens_no_encoder_of_two_owners(
    new_consortium: Any,
) -> None:
    sites = averaged_over_all(new_consortium)
    sites.faults["site-3", "manifest"] = silent
    outcome, after = one_round(sites)
    assert (outcome.status, outcome.void_reason) == ("void", VoidReason.MINIMUM_OWNERS)
    assert not after.vector.any()
    assert {step_of(envelope) for _, envelope, _ in sites.sent} == {"keyrequest", "manifest"}


def test_averaged_over_all_sites_enough_owners_change_nothing(new_consortium: Any) -> None:
    outcome, after = one_round(averaged_over_all(new_consortium))
    assert outcome.status == "complete"
    assert np.abs(after.vector - mean(FIVE)).max() <= STEP
    assert outcome.manifest.blocks == ()


def test_a_manifest_that_is_silent_about_modalities_is_refused_where_their_sums_could_be_small(
    new_consortium: Any,
) -> None:
    sites = averaged_over_all(new_consortium)
    codes = []

    def silenced(sites: Sites, site_id: str, envelope: Envelope, payload: bytes) -> Any:
        said = open_statement(Manifest, envelope, sites.consortium.server_key.public)
        cohort = tuple(m.model_copy(update={"modalities": None}) for m in said.cohort)
        forged = said.model_copy(update={"cohort": cohort, "summed_modalities": ()})
        with pytest.raises(GateRefusedError) as error:
            sites.sites[site_id].answer(forged.sign(sites.consortium.server_key), payload)
        codes.append(drop_code_of(error.value))
        return ask(sites, site_id, envelope, payload)

    sites.faults["site-1", "manifest"] = silenced
    outcome, _ = one_round(sites)
    assert codes == [DropCode.PRESENCE_MISMATCH]
    assert outcome.status == "complete"


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy": {"noise_multiplier": 2.0, "clipping_norm": 1.0}, "release": {"metrics": []}},
        {
            "secure_aggregation": MASKS
            | {
                "distributed_privacy": {
                    "unit": "site",
                    "num_sites": 5,
                    "clipping_norm": 4.0,
                    "noise_multiplier": 0.05,
                    "modulus_bits": 32,
                }
            }
        },
    ],
    ids=["noise at every site", "noise under the masks"],
)
def test_noise_of_all_sites_on_an_encoder_lets_few_owners_be_in_its_sum(
    new_consortium: Any, changes: dict[str, Any]
) -> None:
    if "privacy" in changes:
        training = {
            "name": "scripted",
            "options": {"step": 0.5, "carries_out": True},
            "local_steps": 1,
            "batch_size": 2,
        }
        changes = changes | {"training": training}
    sites = averaged_over_all(new_consortium, LACKS | {"site-3": ("ehr",)}, **changes)
    outcome, _ = one_round(sites)
    assert outcome.status == "complete"
    assert outcome.manifest.summed_modalities == ()
