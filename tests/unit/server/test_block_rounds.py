"""Rounds with a site that lacks a modality, in memory: real round loop, real workers, real strategies."""

from typing import Any

import numpy as np
import pytest

from fedhealth.config.study import Study
from fedhealth.contracts.codes import DropCode
from fedhealth.errors import ConfigError
from fedhealth.flower.strategy_options import make_run_strategy
from fedhealth.report.coverage import ModalityCoverage
from fedhealth.report.render import render_round
from fedhealth.server.checkpoint import read_agreed, read_last_checkpoint
from fedhealth.server.records import round_record

from ..conftest import two_modalities  # noqa: TID252 - tests are no installed package
from .masked import Sites, loop_of, run, silent

SITES = ("site-1", "site-2", "site-3")
LACKS = {"site-3": ("ehr",)}
SIZES = {"site-1": 10, "site-2": 20, "site-3": 30}
OTHER, MRI = slice(0, 40), slice(40, 100)


def mean(*names: str) -> float:
    """Site n adds n / 2 everywhere that it trains, and weighs 10 n."""
    return sum(0.5 * int(n[-1]) * SIZES[n] for n in names) / sum(SIZES[n] for n in names)


@pytest.fixture
def sites(new_consortium: Any) -> Sites:
    return Sites(new_consortium(*SITES, content=two_modalities(), modalities=LACKS))


def one_round(sites: Sites) -> Any:
    loop, _, start = loop_of(sites)
    return loop._train_round(start, 1)


def test_every_block_is_the_mean_of_its_owners(sites: Sites) -> None:
    _, after = one_round(sites)
    np.testing.assert_allclose(after.vector[OTHER], mean(*SITES), atol=1e-6)
    np.testing.assert_allclose(after.vector[MRI], mean("site-1", "site-2"), atol=1e-6)


def test_the_same_sites_over_all_sites_are_diluted(new_consortium: Any) -> None:
    # The control: what the switch is for. Here site-3 trains the encoder too, since nothing is frozen.
    content = two_modalities(average_encoders_over="all_sites")
    _, after = one_round(Sites(new_consortium(*SITES, content=content, modalities=LACKS)))
    np.testing.assert_allclose(after.vector, mean(*SITES), atol=1e-6)


def test_an_encoder_that_fewer_owners_than_the_minimum_cohort_answered_for_stays_as_it_was(
    sites: Sites,
) -> None:
    sites.faults["site-2", "manifest"] = silent
    outcome, after = one_round(sites)
    assert outcome.status == "complete"
    assert not after.vector[MRI].any()
    np.testing.assert_allclose(after.vector[OTHER], mean("site-1", "site-3"), atol=1e-6)


def test_a_momentum_of_the_server_does_not_move_an_encoder_that_nobody_trained(
    new_consortium: Any,
) -> None:
    content = two_modalities()
    content["runs"][0]["strategy"] = {"name": "flower-fedadam", "options": {"eta": 0.1}}
    sites = Sites(new_consortium(*SITES, content=content, modalities=LACKS))
    loop, _, start = loop_of(sites)
    _, first = loop._train_round(start, 1)
    assert first.vector[MRI].all()
    sites.faults["site-2", "manifest"] = silent
    _, second = loop._train_round(first, 1)
    assert second.vector[MRI].tobytes() == first.vector[MRI].tobytes()
    assert (second.vector[OTHER] != first.vector[OTHER]).all()


def test_a_run_goes_on_after_a_restart_with_the_blocks_of_its_home(sites: Sites) -> None:
    vector, rounds = run(sites)
    folder = sites.consortium.server.run("main")
    assert [b.modality for b in read_agreed(folder).blocks] == ["mri"]
    assert read_last_checkpoint(folder).vector.tobytes() == vector.tobytes()
    np.testing.assert_allclose(vector[MRI], 3 * mean("site-1", "site-2"), atol=1e-5)
    # The closing evaluation trains nothing, so its manifest names no block.
    assert [bool(r.manifest.blocks) for r in rounds] == [True, True, True, False]


def test_the_record_and_its_page_say_who_has_what_and_whose_mean_an_encoder_is(
    sites: Sites,
) -> None:
    sites.faults["site-1", "manifest"] = silent
    loop, _, start = loop_of(sites)
    outcome, _ = loop._train_round(start, 1)
    run_plan, roster = loop.run, sites.roster()
    record = round_record(outcome, run_plan, roster, {})
    assert record.coverage == (
        ModalityCoverage(
            modality="ehr",
            declared_by=SITES,
            num_contributed=2,
            averaged_over="all_sites",
        ),
        ModalityCoverage(
            modality="mri",
            declared_by=("site-1", "site-2"),
            num_contributed=1,
            averaged_over="sites_with_modality",
            num_owners=0,
            num_values=60,
        ),
    )
    page = render_round(record, previous=None)
    assert "its encoder stayed as it was" in page
    assert "site-1, site-2" in page


def test_an_update_whose_frozen_part_moved_does_not_leave_its_site(new_consortium: Any) -> None:
    content = two_modalities()
    content["training"]["options"]["ignores_frozen"] = True
    outcome, after = one_round(Sites(new_consortium(*SITES, content=content, modalities=LACKS)))
    codes = {s.line.entry.site_id: s.drop_code for s in outcome.sites}
    assert codes["site-3"] is DropCode.SITE_ERROR  # the worker itself says refused_by_gate
    np.testing.assert_allclose(after.vector, mean("site-1", "site-2"), atol=1e-6)


@pytest.mark.parametrize("name", ["flower-fedmedian", "dp-fedavg"])
def test_a_strategy_that_is_no_mean_is_refused(name: str) -> None:
    content = two_modalities()
    options: dict[str, Any] = (
        {"num_sites": 3, "noise_multiplier": 1.0, "clipping_norm": 1.0}
        if name == "dp-fedavg"
        else {}
    )
    content["runs"][0]["strategy"] = {"name": name, "options": options}
    study = Study.model_validate(content)
    with pytest.raises(ConfigError, match="FH-STRATEGY-063"):
        make_run_strategy(study, study.runs[0])
    everywhere = study.federation.model_copy(update={"average_encoders_over": "all_sites"})
    make_run_strategy(study.model_copy(update={"federation": everywhere}), study.runs[0])
