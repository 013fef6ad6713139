"""A real federation under dp-fedavg: sites clip before they send, the server noises, the record has the account."""

import hashlib
import json
from collections.abc import Iterator

import numpy as np
import pytest

from fedhealth.privacy.update_clipping import clip_update
from fedhealth.server.checkpoint import read_last_checkpoint

from .conftest import Federation, factory, study_content

NUM_PARAMETERS, CLIPPING_NORM, MULTIPLIER = 100, 15.0, 1e-4
ROUNDS = 2
MOVES = (
    np.minimum(10.0 * np.arange(1, 4), CLIPPING_NORM) / 10
)  # of a coordinate, at sites 1, 2 and 3
BOUND = 6 * MULTIPLIER * CLIPPING_NORM / 4  # six standard deviations of the noise on the mean


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    content = study_content({})
    options = {
        "num_sites": 4,  # one more than there are: as if it had dropped out of every round
        "noise_multiplier": MULTIPLIER,
        "clipping_norm": CLIPPING_NORM,
    }
    content["runs"] = [
        {
            "name": "main",
            "num_rounds": ROUNDS,
            "strategy": {"name": "dp-fedavg", "options": options},
        }
    ]
    for make in factory(tmp_path_factory.mktemp("site-level")):
        federation = make(content)
        assert federation.run_to_the_end(240) == 0, federation.output("server")
        yield federation


def test_model_is_the_noised_sum_of_clipped_updates_over_the_sites_of_the_study(
    finished: Federation,
) -> None:
    model = read_last_checkpoint(finished.server.run("main")).vector
    expected = ROUNDS * MOVES.sum() / 4
    np.testing.assert_allclose(model, expected, atol=ROUNDS * BOUND)
    assert len(np.unique(model)) > NUM_PARAMETERS // 2  # the noise is there


def test_a_site_sends_its_update_clipped(finished: Federation) -> None:
    """Its journal has the digest of the bytes that left in round 1: those of the clipped model."""
    origin = np.zeros(NUM_PARAMETERS, dtype=np.float32)
    for number, home in enumerate(finished.sites.values(), start=1):
        trained = np.full(NUM_PARAMETERS, number, dtype=np.float32)
        sent, was_clipped = clip_update(origin, trained, CLIPPING_NORM)
        assert was_clipped == (number > 1)
        lines = map(json.loads, home.study("scripted").journal.read_text().splitlines())
        left = [line["body"]["payload_sha256"] for line in lines if line["kind"] == "update"]
        assert left[0] == hashlib.sha256(sent.tobytes()).hexdigest()


def test_the_record_has_the_norm_and_the_account_of_the_run_so_far(finished: Federation) -> None:
    records = [record for record in finished.records() if record.kind == "train"]
    for number, record in enumerate(records, start=1):
        assert record.strategy_config == {"clipping_norm": CLIPPING_NORM}
        fact = record.site_level
        assert fact is not None
        assert sum(event.steps for event in fact.run_events) == number
        assert fact.unit == "site"
        assert not fact.shows_badge
        assert fact.num_sites == 4
        assert {event.generator for event in fact.run_events} == {"chacha20"}
    assert len(records) == ROUNDS


def test_the_account_is_in_the_checkpoint_with_the_model(finished: Federation) -> None:
    state = read_last_checkpoint(finished.server.run("main")).strategy_state
    assert state["releases"].shape[0] == ROUNDS
    np.testing.assert_array_equal(state["releases"][:, 0], MULTIPLIER)
