"""Secure aggregation in real federations: the sum is right, drop-outs are survived or said, nothing else is seen."""

import math
from typing import Any

import numpy as np
import pytest

from fedhealth.report.record import RoundRecord, SiteStatus, VoidReason
from fedhealth.server.checkpoint import read_last_checkpoint

from .conftest import Federation, MakeFederation, study_content

MASKS: dict[str, Any] = {"min_survivors": 3, "value_range": 8.0}


def masked_content(
    options: dict[str, Any],
    *,
    num_rounds: int = 1,
    masks: dict[str, Any] | None = None,
    **rules: Any,
) -> dict[str, Any]:
    content = study_content(options, num_rounds=num_rounds, **({"min_cohort": 3} | rules))
    return content | {"secure_aggregation": MASKS | (masks or {})}


def model_of(federation: Federation) -> np.ndarray[Any, Any]:
    return read_last_checkpoint(federation.server.run("main")).vector


def weighted_mean(sizes: dict[int, int], step: float = 0.5) -> float:
    return sum(step * site * size for site, size in sizes.items()) / sum(sizes.values())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from .conftest import factory

    made = factory(tmp_path_factory.mktemp("masked"))
    make = next(made)
    federation = make(masked_content({"step": 0.5}, num_rounds=2))
    assert federation.run_to_the_end() == 0, federation.output("server")
    yield federation
    made.close()


def test_the_model_is_the_weighted_mean_of_the_sites(finished: Federation) -> None:
    step = 8.0 / (2**15 - 1)
    expected = 2 * weighted_mean({1: 10, 2: 20, 3: 30})
    assert np.abs(model_of(finished) - expected).max() <= 2 * step


def test_the_record_shows_sums_and_no_site_of_its_own(finished: Federation) -> None:
    records = finished.records()
    assert [record.status for record in records] == ["complete"] * 3
    for record in records:
        masking = record.masking
        assert masking is not None
        assert masking.is_masked
        assert masking.survivors == ("hospital-1", "hospital-2", "hospital-3")
        assert masking.unmask_trips == 1
        assert len(masking.unmasked_by) >= masking.threshold == 2
        assert masking.total_weight == 60
        assert all(site.declared_train_size is None for site in record.sites)
        assert not any(site.evaluate_metrics or site.train_metrics for site in record.sites)
        assert "secure_aggregation" not in {item.value for item in record.not_evidenced}
    auc = (0.51 * 10 + 0.52 * 20 + 0.53 * 30) / 60
    assert math.isclose(records[-1].aggregate_evaluate_metrics["auc"], auc, abs_tol=1e-5)


def test_nothing_on_the_servers_disk_tells_a_size_or_a_metric_of_one_site(
    finished: Federation,
) -> None:
    server = finished.server.root
    for path in server.rglob("*"):
        if path.is_file() and path.suffix not in {".db", ".db-wal"}:
            data = path.read_bytes()
            assert b'"train_size":20' not in data and b'"train_size": 20' not in data, path
            for value in (b"0.52,", b"0.52}", b"0.53,", b"0.53}"):
                assert value not in data or b"roster" in path.name.encode(), (path, value)


def outcome(record: RoundRecord) -> dict[str, str]:
    return {s.site_id: s.drop_code.value if s.drop_code else s.status.value for s in record.sites}


def test_a_site_that_fails_before_masking_is_survived_by_five(
    make_federation: MakeFederation,
) -> None:
    options = {"step": 0.5, "fault_site": "hospital-2", "fault": "nan", "fault_rounds": [1]}
    federation = make_federation(masked_content(options), num_sites=5)
    assert federation.run_to_the_end() == 0, federation.output("server")
    first = federation.records()[0]
    assert first.masking is not None
    assert first.masking.unmask_trips == 2
    assert first.masking.agreed >= first.masking.threshold == 3
    assert first.masking.survivors == ("hospital-1", "hospital-3", "hospital-4", "hospital-5")
    assert outcome(first)["hospital-2"] == "non_finite"
    expected = weighted_mean({1: 10, 3: 30, 4: 40, 5: 50})
    assert np.abs(model_of(federation) - expected).max() <= 8.0 / (2**15 - 1)


def test_a_round_of_three_with_a_drop_out_is_void_and_keeps_the_model(
    make_federation: MakeFederation,
) -> None:
    options = {"step": 0.5, "fault_site": "hospital-2", "fault": "nan", "fault_rounds": [1]}
    federation = make_federation(masked_content(options, max_void_rounds=1))
    assert federation.run_to_the_end() == 9
    (record,) = federation.records()
    assert record.void_reason is VoidReason.MINIMUM_COHORT
    assert record.model_in_sha256 == record.model_out_sha256
    assert record.masking is not None
    assert record.masking.unmasked_by == ()
    assert record.count(SiteStatus.UNUSED) == 2
