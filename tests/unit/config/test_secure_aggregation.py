"""What a study may ask of masks and of noise under them, and what does not fit together."""

from typing import Any

import pytest
from pydantic import ValidationError

from fedhealth.cli.masking_findings import masking_findings
from fedhealth.config.study import Study
from fedhealth.secagg.refusals import MaskingError
from fedhealth.secagg.round_settings import round_masking, weighs_by_size

from ..conftest import study_content  # noqa: TID252 - tests are no installed package

SITE_NOISE = {"unit": "site", "num_sites": 20, "clipping_norm": 1.0, "target_epsilon": 8}
PATIENT_NOISE = {
    "unit": "patient",
    "num_sites": 5,
    "num_patients": 500,
    "clipping_norm": 1.0,
    "noise_multiplier": 1.0,
}


def content(masks: dict[str, Any], **more: Any) -> dict[str, Any]:
    return study_content(min_cohort=3) | {"secure_aggregation": masks} | more


def made(masks: dict[str, Any], **more: Any) -> Study:
    return Study.model_validate(content(masks, **more))


@pytest.mark.parametrize(
    ("masks", "says"),
    [
        ({"min_survivors": 2}, "greater than or equal to 3"),
        ({"min_survivors": 4}, "min_cohort must be at least"),
        ({"min_survivors": 3, "colluding": 2}, "colluding \\+ 2"),
        ({"bits": 1}, "greater than or equal to 2"),
        ({"kept_share": 0.5, "distributed_privacy": SITE_NOISE}, "kept_share"),
        ({"distributed_privacy": SITE_NOISE | {"noise_multiplier": 1.0}}, "exactly one"),
        ({"distributed_privacy": PATIENT_NOISE | {"num_patients": None}}, "num_patients"),
        ({"distributed_privacy": SITE_NOISE | {"num_patients": 5}}, "num_patients"),
        (
            {
                "distributed_privacy": PATIENT_NOISE
                | {"noise_multiplier": None, "target_epsilon": 1}
            },
            "needs a delta",
        ),
        ({"threshold": 1}, "Extra inputs"),
    ],
)
def test_what_does_not_fit_is_refused(masks: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        made(masks)


def test_noise_of_patients_takes_one_global_step_no_private_head_and_no_other_privacy() -> None:
    noise = {"distributed_privacy": PATIENT_NOISE}
    made(noise)
    base = content(noise)
    for change, says in (
        ({"training": base["training"] | {"local_steps": 2}}, "one global step"),
        ({"privacy": {"target_epsilon": 8}}, "one global step"),
        ({"training": base["training"] | {"optimizer": {"name": "adam"}}}, "one plain step"),
        (
            {"runs": [{"name": "main", "num_rounds": 1, "personalisation": "private_head"}]},
            "private head",
        ),
    ):
        with pytest.raises(ValidationError, match=says):
            Study.model_validate(base | change)


def test_sizes_are_hidden_unless_a_privacy_plan_needs_them() -> None:
    assert made({}).hides_sizes
    assert not made({}, privacy={"target_epsilon": 8}, release={"metrics": []}).hides_sizes
    assert not Study.model_validate(study_content()).hides_sizes


def test_the_manifest_s_threshold_holds_against_the_colluding_sites() -> None:
    study = made({"colluding": 1})
    for num_sites in range(3, 101):
        asked = round_masking(study, study.runs[0], num_sites=num_sites, num_elements=10)
        assert asked is not None
        assert 2 * asked.threshold > num_sites + 1
        assert asked.threshold <= num_sites


def test_more_sites_than_a_round_can_hold_are_refused() -> None:
    study = made({})
    with pytest.raises(MaskingError, match="FH-SECAGG-014"):
        round_masking(study, study.runs[0], num_sites=151, num_elements=10)
    noised = made({"distributed_privacy": SITE_NOISE})
    with pytest.raises(MaskingError, match="FH-SECAGG-015"):
        round_masking(noised, noised.runs[0], num_sites=21, num_elements=10)


def test_noise_needs_equal_weights() -> None:
    assert weighs_by_size(made({}), made({}).runs[0])
    noised = made({"distributed_privacy": SITE_NOISE})
    assert not weighs_by_size(noised, noised.runs[0])


def codes(study: Study) -> dict[str, str]:
    return {finding.code: finding.level for finding in masking_findings(study)}


def test_study_check_tells_bits_noise_and_what_cannot_be() -> None:
    assert codes(Study.model_validate(study_content())) == {"FH-SECAGG-020": "note"}
    assert codes(made({})) == {"FH-SECAGG-021": "note", "FH-SECAGG-026": "note"}
    large = {"bits": 24, "max_train_size": 1_000_000}
    assert codes(made(large))["FH-SECAGG-021"] == "note"
    silent = {"release": {"metrics": []}}
    assert codes(made({"distributed_privacy": SITE_NOISE}, **silent)) == {"FH-SECAGG-024": "note"}
    assert codes(made({"distributed_privacy": SITE_NOISE}))["FH-SECAGG-027"] == "warning"
    coarse = SITE_NOISE | {"modulus_bits": 8}
    assert "error" in codes(made({"distributed_privacy": coarse})).values()


def test_study_check_says_what_two_hidden_weights_tell() -> None:
    federation = {"min_cohort": 3, "average_encoders_over": "sites_with_modality"}
    assert codes(made({}, federation=federation))["FH-SECAGG-028"] == "note"
    uniform = [
        {
            "name": "main",
            "num_rounds": 1,
            "strategy": {"name": "fedavg", "options": {"weighting": "uniform"}},
        }
    ]
    assert "FH-SECAGG-028" not in codes(made({}, federation=federation, runs=uniform))
    public = {"noise_multiplier": 1.0, "clipping_norm": 1.0}
    assert "FH-SECAGG-028" not in codes(made({}, federation=federation, privacy=public))


def test_study_check_says_that_few_owners_of_a_modality_make_no_round() -> None:
    mri = {"kind": "volume", "name": "mri", "shape": [8, 8, 8], "spacing_mm": [2, 2, 2]}
    data = {"data": {"modalities": [*study_content()["data"]["modalities"], mri]}}
    assert codes(made({}, **data))["FH-SECAGG-029"] == "note"
    by_modality = {"min_cohort": 3, "average_encoders_over": "sites_with_modality"}
    assert "FH-SECAGG-029" not in codes(made({}, **data, federation=by_modality))
    public = {"noise_multiplier": 1.0, "clipping_norm": 1.0}
    assert "FH-SECAGG-029" not in codes(made({}, **data, privacy=public))


def test_study_check_warns_of_single_steps_of_one_size() -> None:
    adam = study_content()["training"] | {"optimizer": {"name": "adam", "learning_rate": 0.01}}
    assert codes(made({}, training=adam))["FH-SECAGG-030"] == "warning"
    assert "FH-SECAGG-030" not in codes(made({}, training=adam | {"local_steps": 5}))
    assert "FH-SECAGG-030" not in codes(made({"distributed_privacy": SITE_NOISE}, training=adam))


@pytest.mark.parametrize("name", ["fedprox", "fednova"])
def test_a_proximal_term_that_throws_further_than_it_pulls_back_is_refused(name: str) -> None:
    rate = 0.05

    def study(strength: float, optimizer: str = "sgd") -> Study:
        training = study_content()["training"]
        training |= {"optimizer": {"name": optimizer, "learning_rate": rate}}
        options = {"proximal_mu": strength}
        runs = [{"name": "main", "num_rounds": 1, "strategy": {"name": name, "options": options}}]
        return made({}, training=training, runs=runs)

    assert study(1 / rate).runs[0].strategy.options == {"proximal_mu": 1 / rate}
    with pytest.raises(ValidationError, match="must be at most 1"):
        study(1.01 / rate)
    study(1.01 / rate, "adam")  # whose steps have one length whatever the pull


def test_noise_of_patients_averages_every_tensor_over_all_sites() -> None:
    federation = {"min_cohort": 3, "average_encoders_over": "sites_with_modality"}
    with pytest.raises(ValidationError, match="must be all_sites"):
        made({"distributed_privacy": PATIENT_NOISE}, federation=federation)
    assert made({"distributed_privacy": SITE_NOISE}, federation=federation).averages_by_modality


def test_study_check_refuses_a_training_method_without_patients_gradients() -> None:
    study = made(
        {"distributed_privacy": PATIENT_NOISE},
        training={"name": "add_one", "local_steps": 1},
    )
    assert codes(study)["FH-SECAGG-025"] == "error"
