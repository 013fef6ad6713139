"""A real federation with a hospital that has no imaging: its image encoder stays with those that have, under masks."""

from typing import Any

import numpy as np
import pytest

from fedhealth.contracts.tensors import vector_from_bytes
from fedhealth.report.coverage import ModalityCoverage
from fedhealth.server.checkpoint import read_last_checkpoint
from fedhealth.site.home import load_pinned
from fedhealth.site.sessions import global_model_path

from .conftest import Federation, study_content
from .test_secure_aggregation import MASKS

GRID = 8.0 / (2**15 - 1)
OWNERS = ("hospital-1", "hospital-2", "hospital-3")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from .conftest import factory

    content = study_content(
        {"step": 0.5}, min_cohort=3, average_encoders_over="sites_with_modality"
    )
    mri = {"kind": "volume", "name": "mri", "shape": [8, 8, 8], "spacing_mm": [2, 2, 2]}
    content["data"] = {"modalities": [*content["data"]["modalities"], mri]}
    content["secure_aggregation"] = MASKS
    made = factory(tmp_path_factory.mktemp("presence"))
    make = next(made)
    federation = make(content, num_sites=4, modalities={4: ("ehr",)})
    assert federation.run_to_the_end() == 0, federation.output("server")
    yield federation
    made.close()


def test_the_encoder_is_the_mean_of_its_owners_and_the_rest_of_all(finished: Federation) -> None:
    # Hospital n adds n / 2 where it trains, and weighs 10 n; the last 60 values belong to mri.
    vector = read_last_checkpoint(finished.server.run("main")).vector
    for part, num in ((vector[:40], 4), (vector[40:], 3)):
        expected = sum(0.5 * n * 10 * n for n in range(1, num + 1)) / sum(
            10 * n for n in range(1, num + 1)
        )
        assert np.abs(part - expected).max() <= GRID


def test_every_hospital_gets_the_encoder_that_others_trained(finished: Federation) -> None:
    final = read_last_checkpoint(finished.server.run("main")).vector
    pinned = load_pinned(finished.sites["hospital-4"], "scripted")
    kept = vector_from_bytes(global_model_path(pinned, "main").read_bytes())
    assert kept.tobytes() == final.tobytes()
    assert pinned.admission.site.modalities == ("ehr",)


def test_record_and_page_show_who_has_what(finished: Federation) -> None:
    training, closing = finished.records()
    assert training.coverage == (
        ModalityCoverage(
            modality="ehr",
            declared_by=(*OWNERS, "hospital-4"),
            num_contributed=4,
            averaged_over="all_sites",
        ),
        ModalityCoverage(
            modality="mri",
            declared_by=OWNERS,
            num_contributed=3,
            averaged_over="sites_with_modality",
            num_owners=3,
            num_values=60,
        ),
    )
    assert [fact.averaged_over for fact in closing.coverage] == ["all_sites", "all_sites"]
    page = (finished.server.run("main").reports / "round-0001.html").read_text()
    assert "its encoder is the mean of 3 hospitals" in page
