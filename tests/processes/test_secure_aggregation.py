"""Secure aggregation in real federations: the sum is right, drop-outs are survived or said, nothing else is seen."""

import contextlib
import math
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedhealth.contracts.tensors import vector_from_bytes
from fedhealth.durable import read_json
from fedhealth.report.coverage import ModalityCoverage
from fedhealth.report.record import RoundRecord, SiteStatus, VoidReason
from fedhealth.server.checkpoint import read_last_checkpoint
from fedhealth.site.home import load_pinned
from fedhealth.site.sessions import global_model_path

from .conftest import (
    Federation,
    MakeFederation,
    factory,
    processes_of,
    study_content,
    wait,
    wait_until,
)

STEP = 0.5
GRID = 8.0 / (2**15 - 1)
NUM_SHARED = 40  # values of the model before those that belong to `mri`
SIZES = {1: 10, 2: 20, 3: 30, 4: 50}  # not 40: the mean would be the update of hospital-3
ALL = ("hospital-1", "hospital-2", "hospital-3", "hospital-4")
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


def weighted_mean(sizes: dict[int, int], step: float = STEP) -> float:
    return sum(step * site * size for site, size in sizes.items()) / sum(sizes.values())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Two masked rounds of four hospitals, of which the last has no imaging: `mri` is averaged over the others."""
    content = masked_content(
        {"step": STEP}, num_rounds=2, average_encoders_over="sites_with_modality"
    )
    mri = {"kind": "volume", "name": "mri", "shape": [8, 8, 8], "spacing_mm": [2, 2, 2]}
    content["data"] = {"modalities": [*content["data"]["modalities"], mri]}
    for make in factory(tmp_path_factory.mktemp("masked")):
        federation = make(
            content,
            num_sites=4,
            sizes=tuple(SIZES.values()),
            modalities={4: ("ehr",)},
            package="test-made-up",  # with patients, since a worker looks whether its declaration is true
        )
        assert federation.run_to_the_end(280) == 0, federation.output("server")
        yield federation


def test_the_model_is_the_weighted_mean_of_the_sites(finished: Federation) -> None:
    expected = 2 * weighted_mean(SIZES)
    assert np.abs(model_of(finished)[:NUM_SHARED] - expected).max() <= 2 * GRID


def test_the_encoder_of_a_modality_is_the_mean_of_its_owners(finished: Federation) -> None:
    expected = 2 * weighted_mean({1: 10, 2: 20, 3: 30})
    assert np.abs(model_of(finished)[NUM_SHARED:] - expected).max() <= 2 * GRID


def test_every_hospital_gets_the_encoder_that_others_trained(finished: Federation) -> None:
    pinned = load_pinned(finished.sites["hospital-4"], "scripted")
    kept = vector_from_bytes(global_model_path(pinned, "main").read_bytes())
    assert kept.tobytes() == model_of(finished).tobytes()
    assert pinned.admission.site.modalities == ("ehr",)


def test_record_and_page_show_who_has_what(finished: Federation) -> None:
    first, _, closing = finished.records()
    assert first.coverage == (
        ModalityCoverage(
            modality="ehr",
            declared_by=ALL,
            num_contributed=4,
            averaged_over="all_sites",
        ),
        ModalityCoverage(
            modality="mri",
            declared_by=ALL[:3],
            num_contributed=3,
            averaged_over="sites_with_modality",
            num_owners=3,
            num_values=60,
        ),
    )
    assert [fact.averaged_over for fact in closing.coverage] == ["all_sites", "all_sites"]
    page = (finished.server.run("main").reports / "round-0001.html").read_text()
    assert "its encoder is the mean of 3 hospitals" in page


def test_the_record_shows_sums_and_no_site_of_its_own(finished: Federation) -> None:
    records = finished.records()
    assert [record.status for record in records] == ["complete"] * 3
    for record in records:
        masking = record.masking
        assert masking is not None
        assert masking.is_masked
        assert masking.survivors == ALL
        assert masking.unmask_trips == 1
        assert len(masking.unmasked_by) >= masking.threshold == 3
        assert masking.total_weight == sum(SIZES.values())
        assert all(site.declared_train_size is None for site in record.sites)
        assert not any(site.evaluate_metrics or site.train_metrics for site in record.sites)
        assert "secure_aggregation" not in {item.value for item in record.not_evidenced}
    auc = sum((0.5 + 0.01 * n) * size for n, size in SIZES.items()) / sum(SIZES.values())
    assert math.isclose(records[-1].aggregate_evaluate_metrics["auc"], auc, abs_tol=5e-4)


def test_nothing_on_the_servers_disk_tells_a_size_a_metric_or_an_update_of_one_site(
    finished: Federation,
) -> None:
    files = {p: p.read_bytes() for p in finished.server.root.rglob("*") if p.is_file()}
    model = model_of(finished)[:4].astype(np.float32).tobytes()
    assert [path for path, data in files.items() if model in data], "the search finds the model"
    for path, data in files.items():
        compact = data.replace(b" ", b"")
        assert not [size for size in SIZES.values() if b'"train_size":%d' % size in compact], path
        own = [b'"auc":0.5%d%c' % (n, end) for n in SIZES for end in b",}"]
        assert not [value for value in own if value in compact], path
        assert not [update for update in plain_updates(SIZES) if update in data], path


def plain_updates(sizes: Mapping[int, int], step: float = STEP) -> list[bytes]:
    """How a site's update could look in memory: as float32, and in grid steps times its weight."""
    found = []
    for number, size in sizes.items():
        found.append(np.full(4, step * number, dtype=np.float32).tobytes())
        for whole in (np.floor, np.ceil):
            value = int(whole(step * number / GRID)) * size
            found += [np.full(4, value, dtype=kind).tobytes() for kind in (np.uint32, np.int64)]
    return found


def memory_of(pid: int) -> Iterator[bytes]:
    """Every readable and writable region of a live process."""
    regions = Path(f"/proc/{pid}/maps").read_text().splitlines()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for region in regions:
            span, rights, *_ = region.split()
            if not rights.startswith("rw"):
                continue
            begin, end = (int(part, 16) for part in span.split("-"))
            with contextlib.suppress(OSError, ValueError, OverflowError):
                memory.seek(begin)
                yield memory.read(end - begin)


def found_in_memory(federation: Federation, needles: Sequence[bytes]) -> set[bytes]:
    """Which of these byte strings any process of the server holds, its message store included."""
    found: set[bytes] = set()
    for pid in processes_of(federation.server.root):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for region in memory_of(pid):
                found |= {needle for needle in needles if needle in region}
    return found


def outcome(record: RoundRecord) -> dict[str, str]:
    return {s.site_id: s.drop_code.value if s.drop_code else s.status.value for s in record.sites}


@pytest.mark.timeout(600)
def test_kills_and_delays_at_every_stage_are_survived_by_five(
    make_federation: MakeFederation,
) -> None:
    """Round 1: hospital-4 is too late, hospital-3 is killed after its vector is in the sum, and comes back.

    Round 2: the worker of hospital-2 dies in training. Round 3: all are there again. On a slow machine a round may
    begin before hospital-3 is back; one with too few survivors is void, changes nothing and is done again.
    """
    step = 0.7310585
    options = {
        "step": step,
        "slow_site": "hospital-4",
        "slow_s": 300,
        "wait_s": 8,
        "fault_site": "hospital-2",
        "fault": "exit",
        "fault_rounds": [2],
    }
    content = masked_content(
        options, num_rounds=3, masks={"colluding": 0}, round_deadline_s=25, max_void_rounds=20
    )
    federation = make_federation(content, num_sites=5)
    for home in federation.sites.values():
        with home.config_path.open("a") as file:
            file.write("secure_aggregation: {colluding: 0}\n")
    federation.start_sites()
    server = federation.start_server()
    run = federation.server.run("main")

    def is_in() -> bool:
        return "hospital-3 done" in str(read_json(run.status).get("doing", ""))

    wait_until(is_in, 240, "hospital-3's masked vector is at the server")
    for pid in processes_of(federation.sites["hospital-3"].root):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until((run.reports / "round-0001.json").exists, 120, "round 1 is over without it")
    model = model_of(federation)[:4].astype(np.float32).tobytes()
    updates = plain_updates({n: 10 * n for n in (1, 2, 3, 5)}, step)
    assert found_in_memory(federation, [model, *updates]) == {model}
    federation.start_site("hospital-3")
    assert wait(server, 400) == 0, federation.output("server")
    rounds = [r for r in federation.records() if r.kind == "train"]
    for record in rounds:
        if record.status == "void":
            assert record.void_reason is VoidReason.MINIMUM_COHORT, record.void_reason
            assert record.model_in_sha256 == record.model_out_sha256
    first, second, third = (r for r in rounds if r.status == "complete")
    assert outcome(first)["hospital-4"] == "deadline"
    masking = first.masking
    assert masking is not None
    assert masking.survivors == ("hospital-1", "hospital-2", "hospital-3", "hospital-5")
    assert masking.unmasked_by == ("hospital-1", "hospital-2", "hospital-5")
    assert masking.unmask_trips == 2
    assert outcome(second)["hospital-2"] != "contributed"
    assert third.status == "complete"
    moved = 0.0
    for record in (first, second, third):
        assert record.masking is not None
        names = [int(name[-1]) for name in record.masking.survivors]
        moved += weighted_mean({number: 10 * number for number in names}, step)
    assert np.abs(model_of(federation) - moved).max() <= 3 * 8.0 / (2**15 - 1)


def test_noise_of_all_sites_is_in_the_model_and_on_every_account(
    make_federation: MakeFederation,
) -> None:
    noise = {
        "unit": "site",
        "num_sites": 3,
        "clipping_norm": 1.0,
        "target_epsilon": 8,
        "delta": 1e-3,
    }
    content = masked_content({"step": 0.5}, masks={"distributed_privacy": noise})
    federation = make_federation(content)
    assert federation.run_to_the_end() == 0, federation.output("server")
    first, closing = federation.records()
    assert first.site_level is not None
    assert first.site_level.epsilon is not None
    assert 7 < first.site_level.epsilon <= 8
    for site in first.sites:
        assert site.privacy is not None
        assert site.privacy.is_bounded
    assert closing.aggregate_evaluate_metrics == {}
    model = model_of(federation)
    assert 0 < model.std() < 1
    assert abs(model.mean() - 0.1) < 0.1  # 100 equal values, clipped to norm 1


@pytest.mark.slow  # tests/unit/server/test_masked_rounds.py has it without processes, test_faults.py without masks
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
