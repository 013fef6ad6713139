"""Three sites and a server over TLS with node authentication, through nine runs: what must hold when all goes well.

The runs are one study's, over the same processes: a plain one, one whose sites answer in another order, one for
each strategy by name, one with site-level privacy, and one with a site whose training misbehaves.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fedhealth.contracts.codes import DropCode
from fedhealth.durable import read_json
from fedhealth.evidence.journal import verify_journal
from fedhealth.evidence.signing import SigningKey
from fedhealth.privacy.update_clipping import clip_update
from fedhealth.server.checkpoint import read_last_checkpoint

from .conftest import Federation, factory, processes_of, study_content

pytestmark = pytest.mark.timeout(
    600
)  # the first test starts the federation, and pays for all its runs

NUM_ROUNDS, LEVEL_ROUNDS = 3, 2
STEPS, WEIGHTS = np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 30.0])
WEIGHTED, UNIFORM, MEDIAN = float((WEIGHTS * STEPS).sum() / WEIGHTS.sum()), 2.0, 2.0
NUM_PARAMETERS, CLIPPING_NORM, MULTIPLIER = 100, 15.0, 1e-4
FAULTS = {
    "raise": DropCode.SITE_ERROR,
    "nan": DropCode.NON_FINITE,
    "extra_tensor": DropCode.WRONG_SPEC,
    "missing_tensor": DropCode.WRONG_SPEC,
    "wrong_shape": DropCode.WRONG_SPEC,
}
STRATEGIES: list[dict[str, Any]] = [
    {"name": "uniform", "strategy": {"name": "fedavg", "options": {"weighting": "uniform"}}},
    {"name": "fedprox", "strategy": {"name": "fedprox", "options": {"proximal_mu": 0.1}}},
    {"name": "stock-fedavg", "strategy": {"name": "flower-fedavg"}},
    {"name": "stock-fedmedian", "strategy": {"name": "flower-fedmedian"}},
    {"name": "stock-fedadam", "strategy": {"name": "flower-fedadam"}, "num_rounds": 2},
]
SITE_LEVEL = {
    "num_sites": 4,  # one more than there are: as if it had dropped out of every round
    "noise_multiplier": MULTIPLIER,
    "clipping_norm": CLIPPING_NORM,
}
RUNS: list[dict[str, Any]] = [
    {"name": "main", "num_rounds": NUM_ROUNDS},
    {"name": "reversed", "num_rounds": NUM_ROUNDS},
    *({"num_rounds": 1} | run for run in STRATEGIES),
    {
        "name": "site-level",
        "num_rounds": LEVEL_ROUNDS,
        "strategy": {"name": "dp-fedavg", "options": SITE_LEVEL},
    },
    {"name": "misbehaves", "num_rounds": len(FAULTS) + 1},
]
OPTIONS = {
    "reverse_runs": ["reversed"],
    "faults": list(FAULTS),
    "fault_site": "hospital-2",
    "fault_runs": ["misbehaves"],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    for make in factory(tmp_path_factory.mktemp("finished")):
        federation = make(study_content(OPTIONS) | {"runs": RUNS})
        assert federation.run_to_the_end(500) == 0, federation.output("server")
        yield federation


def model_of(federation: Federation, run: str) -> np.ndarray[Any, Any]:
    return read_last_checkpoint(federation.server.run(run)).vector


def test_all_rounds_and_the_closing_evaluation_are_recorded_complete(finished: Federation) -> None:
    records = finished.records()
    assert [(r.round_number, r.kind, r.status) for r in records] == [
        (1, "train", "complete"),
        (2, "train", "complete"),
        (3, "train", "complete"),
        (4, "evaluate", "complete"),
    ]
    assert all(s.status == "contributed" for r in records for s in r.sites)


def test_the_sum_is_the_weighted_mean_of_known_updates(finished: Federation) -> None:
    np.testing.assert_allclose(model_of(finished, "main"), NUM_ROUNDS * WEIGHTED, rtol=1e-6)


def test_every_round_has_a_page_and_the_run_page_links_it(finished: Federation) -> None:
    reports = finished.server.run("main").reports
    index = (reports / "index.html").read_text()
    pages = sorted(reports.glob("round-*.html"))
    assert len(pages) == NUM_ROUNDS + 1
    for page in pages:
        assert page.name in index


def test_wire_bytes_are_measured_for_each_site(finished: Federation) -> None:
    for record in finished.records():
        for site in record.sites:
            assert site.wire_bytes_in is not None
            assert site.wire_bytes_in > site.update_bytes
            assert site.wire_bytes_out is not None
            assert site.wire_bytes_out > 0


def test_the_journal_has_a_line_for_every_message_that_left(finished: Federation) -> None:
    answers = sum(run["num_rounds"] + 1 for run in RUNS)  # updates or codes, and closing metrics
    for home in finished.sites.values():
        _, lines = verify_journal(home.study("scripted").journal)
        assert lines == 1 + answers  # the join request


def test_the_server_keeps_no_update_after_the_rounds(finished: Federation) -> None:
    for run in RUNS:
        assert not list(finished.server.run(run["name"]).spool.iterdir())


def test_private_keys_are_readable_by_their_owner_only(finished: Federation) -> None:
    private = [finished.server.signing_key, finished.server.keys / "server.key"]
    for home in finished.sites.values():
        private += [home.node_key, home.signing_key]
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}


def test_signing_keys_of_all_parties_differ(finished: Federation) -> None:
    paths = [finished.server.signing_key, *(h.signing_key for h in finished.sites.values())]
    assert len({SigningKey.load(path).public.key_id for path in paths}) == len(paths)


def test_nothing_but_the_round_s_own_site_ids_is_shared(finished: Federation) -> None:
    """No site's folder, package or data path is anywhere in the server's home."""
    needles = [str(home.root).encode() for home in finished.sites.values()]
    for path in finished.server.root.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(needle in content for needle in needles), path


def test_nothing_that_the_server_ships_is_unpacked_at_a_site(finished: Federation) -> None:
    for home in finished.sites.values():
        flower_home = home.study("scripted").run / "flwr-home"
        assert flower_home.is_dir()
        assert not list(flower_home.rglob("apps/*"))


def test_sigterm_ends_every_process_of_a_site(finished: Federation) -> None:
    finished.end()
    for home in finished.sites.values():
        assert processes_of(home.root) == {}
    assert processes_of(finished.server.root) == {}


def test_the_same_seed_gives_the_same_model_whatever_the_order_of_answers(
    finished: Federation,
) -> None:
    first, second = finished.records("main"), finished.records("reversed")
    after = [{s.site_id: s.answered_after_s or 0.0 for s in r.sites} for r in second]
    assert all(times["hospital-3"] < times["hospital-1"] for times in after[:NUM_ROUNDS])
    assert first[-1].model_out_sha256 == second[-1].model_out_sha256


# --- a site whose training misbehaves -----------------------------------------------------------------------------


def test_a_round_goes_on_without_a_site_whose_training_misbehaves(finished: Federation) -> None:
    """One fault a round at hospital-2; in the last round it behaves, and takes part again."""
    records = [record for record in finished.records("misbehaves") if record.kind == "train"]
    for record, code in zip(records, [*FAULTS.values(), None], strict=True):
        codes = {site.site_id: site.drop_code for site in record.sites}
        assert codes == {"hospital-1": None, "hospital-2": code, "hospital-3": None}


def test_the_cause_of_a_fault_is_found_nowhere_outside_the_site(finished: Federation) -> None:
    needle = b"DOE^JOHN"
    for folder in (finished.server.root, finished.sites["hospital-1"].root):
        assert not [p for p in folder.rglob("*") if p.is_file() and needle in p.read_bytes()]
    assert "DOE^JOHN" not in finished.output("server") + finished.output("hospital-2")


# --- strategies by name -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ("uniform", UNIFORM),
        ("fedprox", WEIGHTED),
        ("stock-fedavg", WEIGHTED),
        ("stock-fedmedian", MEDIAN),
    ],
)
def test_a_strategy_by_name_gives_its_own_mean(
    finished: Federation, run: str, expected: float
) -> None:
    np.testing.assert_allclose(model_of(finished, run), expected, rtol=1e-6)


def test_fedadam_keeps_float32_and_checkpoints_its_moments(finished: Federation) -> None:
    checkpoint = read_last_checkpoint(finished.server.run("stock-fedadam"))
    assert checkpoint.vector.dtype == np.float32
    assert np.isfinite(checkpoint.vector).all()
    assert any("m_t" in name for name in checkpoint.strategy_state)
    assert any("v_t" in name for name in checkpoint.strategy_state)


def test_only_allowed_settings_of_a_strategy_reach_the_manifest(finished: Federation) -> None:
    assert finished.records("fedprox")[0].strategy_config == {"proximal_mu": 0.1}
    assert finished.records("stock-fedadam")[0].strategy_config == {}


def test_every_run_is_complete_and_named_by_its_strategy(finished: Federation) -> None:
    for run in STRATEGIES:
        folder = finished.server.run(run["name"])
        assert read_json(folder.outcome)["state"] == "completed"
        assert {r.strategy for r in finished.records(run["name"])} == {run["strategy"]["name"]}


def test_metrics_of_all_sites_are_in_the_record_rounded(finished: Federation) -> None:
    for site in finished.records("stock-fedavg")[0].sites:
        assert site.evaluate_metrics == {
            "auc": pytest.approx(0.5 + 0.01 * int(site.site_id[-1])),
            "log_loss": 0.69,
        }
        assert site.train_metrics == {"train_loss": 0.5}


# --- dp-fedavg: sites clip before they send, the server noises, the record has the account ------------------------


def test_model_is_the_noised_sum_of_clipped_updates_over_the_sites_of_the_study(
    finished: Federation,
) -> None:
    moves = np.minimum(10.0 * STEPS, CLIPPING_NORM) / 10  # of a coordinate, at each site
    bound = 6 * MULTIPLIER * CLIPPING_NORM / 4  # six standard deviations of the noise on the mean
    model = model_of(finished, "site-level")
    np.testing.assert_allclose(model, LEVEL_ROUNDS * moves.sum() / 4, atol=LEVEL_ROUNDS * bound)
    assert len(np.unique(model)) > NUM_PARAMETERS // 2  # the noise is there


def test_a_site_sends_its_update_clipped(finished: Federation) -> None:
    """Its journal has the digest of the bytes that left in round 1: those of the clipped model."""
    origin = np.zeros(NUM_PARAMETERS, dtype=np.float32)
    before = [run["name"] for run in RUNS].index("site-level")
    first = sum(run["num_rounds"] for run in RUNS[:before])
    for number, home in enumerate(finished.sites.values(), start=1):
        trained = np.full(NUM_PARAMETERS, number, dtype=np.float32)
        sent, was_clipped = clip_update(origin, trained, CLIPPING_NORM)
        assert was_clipped == (number > 1)
        lines = map(json.loads, home.study("scripted").journal.read_text().splitlines())
        left = [line["body"]["payload_sha256"] for line in lines if line["kind"] == "update"]
        assert left[first] == hashlib.sha256(sent.tobytes()).hexdigest()


def test_the_record_has_the_norm_and_the_account_of_the_run_so_far(finished: Federation) -> None:
    records = [record for record in finished.records("site-level") if record.kind == "train"]
    for number, record in enumerate(records, start=1):
        assert record.strategy_config == {"clipping_norm": CLIPPING_NORM}
        fact = record.site_level
        assert fact is not None
        assert sum(event.steps for event in fact.run_events) == number
        assert fact.unit == "site"
        assert not fact.shows_badge
        assert fact.num_sites == 4
        assert {event.generator for event in fact.run_events} == {"chacha20"}
    assert len(records) == LEVEL_ROUNDS


def test_the_account_is_in_the_checkpoint_with_the_model(finished: Federation) -> None:
    state = read_last_checkpoint(finished.server.run("site-level")).strategy_state
    assert state["releases"].shape[0] == LEVEL_ROUNDS
    np.testing.assert_array_equal(state["releases"][:, 0], MULTIPLIER)
