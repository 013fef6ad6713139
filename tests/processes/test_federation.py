"""Three sites and a server over TLS with node authentication: what must hold when all goes well."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedhealth.evidence.journal import verify_journal
from fedhealth.evidence.signing import SigningKey
from fedhealth.server.checkpoint import read_last_checkpoint

from .conftest import Federation, factory, processes_of, study_content

NUM_ROUNDS = 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    for make in factory(tmp_path_factory.mktemp("finished")):
        federation = make(study_content({"step": 0.5}, num_rounds=NUM_ROUNDS))
        assert federation.run_to_the_end() == 0, federation.output("server")
        yield federation


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
    weights, steps = np.array([10.0, 20.0, 30.0]), 0.5 * np.array([1.0, 2.0, 3.0])
    expected = NUM_ROUNDS * float((weights * steps).sum() / weights.sum())
    model = read_last_checkpoint(finished.server.run("main")).vector
    np.testing.assert_allclose(model, expected, rtol=1e-6)


def test_every_round_has_a_page_and_the_run_page_links_it(finished: Federation) -> None:
    reports = finished.server.run("main").reports
    index = (reports / "index.html").read_text()
    for page in sorted(reports.glob("round-*.html")):
        assert page.name in index


def test_wire_bytes_are_measured_for_each_site(finished: Federation) -> None:
    for record in finished.records():
        for site in record.sites:
            assert site.wire_bytes_in is not None
            assert site.wire_bytes_in > site.update_bytes
            assert site.wire_bytes_out is not None
            assert site.wire_bytes_out > 0


def test_the_journal_has_a_line_for_every_message_that_left(finished: Federation) -> None:
    for home in finished.sites.values():
        _, lines = verify_journal(home.study("scripted").journal)
        assert lines == 1 + NUM_ROUNDS + 1  # join request, updates, closing metrics


def test_the_server_keeps_no_update_after_the_rounds(finished: Federation) -> None:
    assert not list(finished.server.run("main").spool.iterdir())


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


def test_the_same_seed_gives_the_same_model_whatever_the_order_of_answers(tmp_path: Path) -> None:
    digests = []
    for name, is_reversed in (("first", False), ("second", True)):
        for make in factory(tmp_path / name):
            options = {"step": 0.1, "reverse_order": is_reversed}
            federation = make(study_content(options, num_rounds=2), name=name)
            assert federation.run_to_the_end() == 0, federation.output("server")
            digests.append(federation.records()[-1].model_out_sha256)
    assert digests[0] == digests[1]
