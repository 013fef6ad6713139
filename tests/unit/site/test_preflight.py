"""`site check` says early what would be refused or unlimited later."""

import hashlib
from typing import Any

import pytest

from fedhealth.config.load import load_site
from fedhealth.errors import ExitCode, FedHealthError, PrivacyError
from fedhealth.models.weight_files import weights_in
from fedhealth.site.preflight import _privacy, _shared, check_site

from .hospital import Hospital, private_content


def remarks(hospital: Hospital) -> list[str]:
    return _privacy(load_site(hospital.home.config_path), hospital.pinned.study)


def test_a_study_without_privacy_and_a_site_without_limits_are_remarked(
    new_consortium: Any,
) -> None:
    unprotected = Hospital(new_consortium("site-1", "site-2", name="open"))
    assert "no privacy section" in remarks(unprotected)[0]
    protected = Hospital(new_consortium("site-1", "site-2", content=private_content()))
    assert "max_epsilon_per_dataset is not set" in remarks(protected)[0]
    protected.set_policy("{max_epsilon_per_dataset: 10}")
    assert remarks(protected) == []


def test_a_study_outside_the_policy_is_refused_before_anybody_admits_the_site(
    new_consortium: Any,
) -> None:
    hospital = Hospital(new_consortium("site-1", "site-2", content=private_content()))
    hospital.set_policy("{min_noise_multiplier: 3}")
    with pytest.raises(PrivacyError, match="FH-PRIVACY-023") as error:
        remarks(hospital)
    assert error.value.exit_code is ExitCode.PRIVACY_BUDGET


def test_weights_that_the_study_pins_must_be_in_the_home(new_consortium: Any) -> None:
    content = private_content()
    digest = hashlib.sha256(b"weights").hexdigest()
    content["model"] = {
        "name": "multimodal",
        "options": {
            "image_weights": "file",
            "image_weights_file": "a.safetensors",
            "image_weights_sha256": digest,
        },
    }
    hospital = Hospital(new_consortium("site-1", "site-2", content=content))
    home = hospital.home

    def refused() -> str:
        with pytest.raises(FedHealthError) as error, weights_in(home.root):
            check_site(home, None)
        return error.value.code

    assert refused() == "FH-MODEL-032"
    (home.root / "weights").mkdir()
    (home.root / "weights" / "a.safetensors").write_bytes(b"others")
    assert refused() == "FH-MODEL-033"
    (home.root / "weights" / "a.safetensors").write_bytes(b"weights")
    with weights_in(home.root):
        assert check_site(home, None)["train_size"] > 0


def test_shared_data_is_loaded_and_a_missing_package_is_named(new_consortium: Any) -> None:
    content = private_content()
    shared = {"package": "test-made-up", "options": {"num_patients": 7}, "fraction": 0.2}
    content["training"]["shared_data"] = shared
    hospital = Hospital(new_consortium("site-1", "site-2", content=content))
    assert "7 shared patients" in _shared(hospital.home, hospital.pinned.study)[0]
    shared["package"] = "nobody-has-it"
    lacking = Hospital(new_consortium("site-1", "site-2", content=content, name="lacking"))
    with pytest.raises(FedHealthError, match="FH-CONFIG-042"):
        _shared(lacking.home, lacking.pinned.study)
    with pytest.raises(FedHealthError):
        check_site(lacking.home, None)
