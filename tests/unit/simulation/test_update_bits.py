"""Whole rounds with updates in 8 bits: record, page, model, strategies, and what goes with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedhealth_strategies.dp_fedavg import DpFedAvg

from fedhealth.cli.study_check import check_whole_study
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.contracts.update_encoding import encoded_size
from fedhealth.errors import ConfigError
from fedhealth.report.record import RoundRecord
from fedhealth.simulation import simulate

from .conftest import content, hospitals, masks
from .test_simulate import WEIGHTED

FEDERATION = {"min_cohort": 2, "cohort_wait_s": 1, "round_deadline_s": 5, "update_bits": 8}


def in_8_bits(options: dict[str, Any], **more: Any) -> dict[str, Any]:
    return content(options, federation=FEDERATION, **more)


def test_the_model_is_the_mean_of_what_was_read_and_the_record_says_the_form(
    as_study: Any, tmp_path: Path
) -> None:
    """Every value of a site moves by the same step, the largest of its bucket: nothing is rounded."""
    study = as_study(in_8_bits({"step": 0.5}, num_rounds=2))
    done = simulate(study, hospitals(tmp_path), tmp_path / "out").runs["main"]
    np.testing.assert_allclose(done.vector, 2 * WEIGHTED, rtol=1e-6)
    train, _, evaluate = done.records
    spec = TensorSpec.of({t.name: np.zeros(t.shape, np.float32) for t in train.tensors})
    assert train.update_encoding == "int8"
    assert {site.update_bytes for site in train.sites} == {encoded_size(spec, "int8")}
    assert evaluate.update_encoding == "float32"
    page = (done.reports / "round-0001.html").read_text()
    assert "changes in 8 bits each" in page
    assert "int8:" in page
    plain = (done.reports / "round-0003-evaluate.json").read_text()
    assert "update_encoding" not in plain
    assert RoundRecord.model_validate_json((done.reports / "round-0001.json").read_text()) == train


def test_a_record_whose_sizes_are_not_of_its_form_is_none(as_study: Any, tmp_path: Path) -> None:
    study = as_study(in_8_bits({"step": 0.5}))
    train = simulate(study, hospitals(tmp_path), tmp_path / "out").runs["main"].records[0]
    said = train.model_dump(mode="json")
    said["sites"][0]["update_bytes"] += 1
    with pytest.raises(ValueError, match="another size than its form"):
        RoundRecord.model_validate(said)
    with pytest.raises(ValueError, match="only an update without masks"):
        RoundRecord.model_validate(
            said | {"kind": "evaluate", "model_out_sha256": said["model_in_sha256"]}
        )


def test_a_simulation_rounds_the_same_way_every_time_and_never_by_more_than_a_step(
    as_study: Any, tmp_path: Path
) -> None:
    options = {"step": 0.5, "slope": 0.01}
    study = as_study(in_8_bits(options, num_rounds=2))
    first, again = (
        simulate(study, hospitals(tmp_path), tmp_path / name).runs["main"].vector
        for name in ("a", "b")
    )
    assert first.tobytes() == again.tobytes()
    plain = as_study(content(options, num_rounds=2))
    exact = simulate(plain, hospitals(tmp_path), tmp_path / "plain").runs["main"].vector
    step = (3 * 0.5 + 0.01 * 99) / 127
    off = np.abs(first - exact)
    assert 0 < off.max() < 2 * step
    # The two rounds and three hospitals round by themselves: errors of one kind would add up to 2 steps a value.
    assert abs(float(np.mean(first - exact))) < 0.2 * step


@pytest.mark.parametrize("strategy", ["flower-fedavg", "flower-fedmedian", "fedadam"])
def test_strategies_get_whole_models(as_study: Any, tmp_path: Path, strategy: str) -> None:
    runs = [{"name": "main", "num_rounds": 1, "strategy": {"name": strategy}}]
    done = simulate(
        as_study(in_8_bits({"step": 0.5}, runs=runs)), hospitals(tmp_path), tmp_path / "out"
    )
    plain = simulate(
        as_study(content({"step": 0.5}, runs=runs)), hospitals(tmp_path), tmp_path / "plain"
    )
    np.testing.assert_allclose(
        done.runs["main"].vector, plain.runs["main"].vector, rtol=1e-5, atol=1e-6
    )


def test_masks_have_bits_of_their_own(as_study: Any) -> None:
    more = masks()
    more["federation"] |= {"update_bits": 8}
    with pytest.raises(ConfigError, match=r"secure_aggregation\.bits"):
        as_study(content({}, **more))


def test_a_clipping_norm_that_follows_lengths_does_not_go_with_rounded_updates(
    as_study: Any,
) -> None:
    options = {"num_sites": 40, "noise_multiplier": 0.5, "clipping_norm": 1.0}
    study = as_study(in_8_bits({}))
    fixed = DpFedAvg(**options)  # type: ignore[arg-type]  # the options of a study file
    fixed.check_study(study, study.runs[0])
    adaptive = DpFedAvg(**options, adaptive_clipping=True)  # type: ignore[arg-type]  # see above
    adaptive.check_study(as_study(content({})), study.runs[0])
    with pytest.raises(ConfigError, match="FH-STRATEGY-024"):
        adaptive.check_study(study, study.runs[0])


def test_study_check_says_what_travels_each_way(as_study: Any) -> None:
    findings = check_whole_study(as_study(in_8_bits({})), build=True)
    (said,) = [f.text for f in findings if f.code == "FH-CONFIG-028"]
    assert "to each site a round" in said
    assert "times less than in float32" in said


def test_noised_updates_are_rounded_and_cost_what_they_cost_in_float32(
    as_study: Any, tmp_path: Path
) -> None:
    more = {
        "privacy": {"noise_multiplier": 2.0, "clipping_norm": 1.0},
        "release": {"metrics": []},
    }
    options = {"step": 0.5, "slope": 0.01, "carries_out": True}
    spent = []
    for name, study in (("eight", in_8_bits(options, **more)), ("plain", content(options, **more))):
        done = simulate(as_study(study), hospitals(tmp_path), tmp_path / name).runs["main"]
        train = done.records[0]
        assert train.status == "complete"
        spent.append([site.privacy.round_events for site in train.sites if site.privacy])
        assert len(spent[-1]) == 3
    assert spent[0] == spent[1]
