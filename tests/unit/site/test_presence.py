"""A site without a modality: what it declares, refuses, and leaves alone bit for bit."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from fedhealth.config.load import load_site
from fedhealth.config.study import Study
from fedhealth.contracts.codes import DropCode
from fedhealth.contracts.cohort import Cohort, Patient
from fedhealth.contracts.data import SplitName
from fedhealth.contracts.tensors import vector_from_bytes
from fedhealth.data.check import CohortSummary, SideSummary
from fedhealth.errors import (
    ConfigError,
    GateRefusedError,
    IdentityError,
    SiteDataError,
    UsageError,
)
from fedhealth.evidence.signing import Envelope
from fedhealth.evidence.statements import Admission, JoinRequest, open_statement, parse_statement
from fedhealth.server.enrolment import admit
from fedhealth.site.enrolment import SiteSettings, init_site, join
from fedhealth.site.home import SiteHome
from fedhealth.site.preflight import _modalities

from ..conftest import two_modalities  # noqa: TID252 - tests are no installed package
from .hospital import Hospital

SITES = ("site-1", "site-2", "site-3")
LACKS = {"site-3": ("ehr",)}
MRI = slice(40, 100)


@pytest.fixture
def lacking(new_consortium: Any) -> Hospital:
    return Hospital(new_consortium(*SITES, content=two_modalities(), modalities=LACKS), "site-3")


def sent(hospital: Hospital, **changes: Any) -> Any:
    return vector_from_bytes(bytes(hospital.round(**changes).outbound.payload))


def test_a_declaration_goes_through_request_admission_roster_and_site_yaml(
    lacking: Hospital,
) -> None:
    request = Envelope.from_bytes(lacking.pinned.folder.request.read_bytes())
    assert parse_statement(JoinRequest, request.payload).modalities == ("ehr",)
    assert lacking.pinned.admission.site.modalities == ("ehr",)
    assert lacking.consortium.line("site-3").entry.modalities == ("ehr",)
    assert load_site(lacking.home.config_path).modalities == ("ehr",)
    assert lacking.consortium.line("site-1").entry.modalities == ("ehr", "mri")


def test_a_site_without_imaging_leaves_the_image_encoder_alone_bit_for_bit(
    lacking: Hospital,
) -> None:
    before = lacking.consortium.model()
    vector = sent(lacking)
    assert vector[MRI].tobytes() == before[MRI].tobytes()
    assert (vector[:40] == before[:40] + 1.5).all()


def test_a_site_with_imaging_trains_it(lacking: Hospital) -> None:
    vector = sent(Hospital(lacking.consortium, "site-1"))
    assert (vector == lacking.consortium.model() + 0.5).all()


def test_an_encoder_that_too_few_sites_have_is_trained_nowhere(lacking: Hospital) -> None:
    vector = sent(Hospital(lacking.consortium, "site-1"), min_cohort=3)
    assert not vector[MRI].any()
    assert vector[:40].all()


def test_the_gate_refuses_a_frozen_tensor_that_moved(new_consortium: Any) -> None:
    content = two_modalities()
    content["training"]["options"]["ignores_frozen"] = True
    site = Hospital(new_consortium(*SITES, content=content, modalities=LACKS), "site-3")
    with pytest.raises(GateRefusedError, match="FH-GATE-013"):
        site.round()
    assert sent(Hospital(site.consortium, "site-1")).all()


def with_modalities(hospital: Hospital, **said: Any) -> dict[str, Any]:
    cohort = hospital.consortium.manifest().cohort
    changed = [
        member.model_copy(update={"modalities": said.get(member.site_id.replace("-", "_"))})
        if member.site_id.replace("-", "_") in said
        else member
        for member in cohort
    ]
    return {"cohort": tuple(changed)}


def test_a_manifest_that_claims_a_modality_for_a_site_that_lacks_it_is_refused(
    lacking: Hospital,
) -> None:
    claimed = with_modalities(lacking, site_3=("ehr", "mri"))
    assert lacking.refused(**claimed) is DropCode.PRESENCE_MISMATCH


def test_a_manifest_that_takes_a_modality_from_a_site_is_refused(lacking: Hospital) -> None:
    owner = Hospital(lacking.consortium, "site-1")
    assert owner.refused(**with_modalities(owner, site_1=("ehr",))) is DropCode.PRESENCE_MISMATCH


@pytest.mark.parametrize(
    "blocks",
    [
        (),
        ({"modality": "mri", "tensors": ("first.weight", "second.weight")},),
        ({"modality": "ehr", "tensors": ("second.weight",)},),
    ],
    ids=["none", "another tensor", "another modality"],
)
def test_blocks_that_the_study_does_not_have_are_refused(lacking: Hospital, blocks: Any) -> None:
    changes: dict[str, Any] = {"blocks": blocks}
    if not blocks:
        changes |= with_modalities(lacking, site_1=None, site_2=None, site_3=None)
    assert lacking.refused(**changes) is DropCode.PRESENCE_MISMATCH


def test_a_study_over_all_sites_knows_no_blocks(new_consortium: Any) -> None:
    content = two_modalities(average_encoders_over="all_sites")
    site = Hospital(new_consortium(*SITES, content=content, modalities=LACKS), "site-3")
    assert sent(site).all()
    blocks = ({"modality": "mri", "tensors": ("second.weight",)},)
    cohort = tuple(
        m.model_copy(update={"modalities": ("ehr", "mri")})
        for m in site.consortium.manifest().cohort
    )
    changes = {"blocks": blocks, "cohort": cohort, "round_number": 2}
    assert site.refused(**changes) is DropCode.PRESENCE_MISMATCH


def test_a_modality_that_the_study_does_not_have_is_refused_at_init(lacking: Hospital) -> None:
    new = SiteHome(lacking.consortium.root / "new")
    settings = SiteSettings(
        site_id="site-9",
        package="synthetic",
        package_options={},
        data_dir=lacking.consortium.root,
        train_size=10,
        modalities=("mri", "genome"),
    )
    with pytest.raises(UsageError, match="FH-USAGE-017"):
        init_site(new, lacking.consortium.server.invitation, settings)
    assert not new.config_path.exists()


def test_a_declaration_of_nothing_that_the_study_has_is_refused(lacking: Hospital) -> None:
    config = load_site(lacking.home.config_path).model_copy(update={"modalities": ("genome",)})
    with pytest.raises(ConfigError, match="FH-CONFIG-033"):
        config.declared_modalities(lacking.pinned.study)


def test_a_site_yaml_that_says_something_else_than_the_admission_is_refused(
    lacking: Hospital,
) -> None:
    path = lacking.home.config_path
    path.write_text(path.read_text().replace("- ehr", "- ehr\n- mri"))
    with pytest.raises(ConfigError, match="FH-CONFIG-034"):
        lacking.restart()


def test_an_admission_with_other_modalities_than_asked_for_is_not_pinned(
    lacking: Hospital,
) -> None:
    path = lacking.consortium.server.admissions / "site-3.json"
    admission = open_statement(
        Admission, Envelope.from_bytes(path.read_bytes()), lacking.consortium.server_key.public
    )
    site = admission.site.model_copy(update={"modalities": ("ehr", "mri")})
    forged = admission.model_copy(update={"site": site}).sign(lacking.consortium.server_key)
    path.write_bytes(forged.to_bytes())
    with pytest.raises(IdentityError, match="FH-IDENTITY-011"):
        join(lacking.home, path)


def test_a_request_for_a_modality_that_the_study_lacks_is_not_admitted(lacking: Hospital) -> None:
    path = lacking.consortium.request("site-4")
    said = parse_statement(JoinRequest, Envelope.from_bytes(path.read_bytes()).payload)
    key = lacking.consortium.site_key("site-4")
    for modalities in (("genome",), ()):
        path.write_bytes(said.model_copy(update={"modalities": modalities}).sign(key).to_bytes())
        with pytest.raises(IdentityError, match="FH-IDENTITY-034"):
            admit(lacking.consortium.server, path)


def summary(**having: int) -> CohortSummary:
    side = SideSummary(num_patients=9, per_label={0: 5, 1: 4}, lacking={}, having=having)
    return CohortSummary(
        num_patients=9, sides={SplitName.TRAIN: side}, missing_values={}, warnings=()
    )


def test_site_check_finds_a_declared_modality_that_no_training_patient_has(
    lacking: Hospital,
) -> None:
    owner = Hospital(lacking.consortium, "site-1")
    config, study = load_site(owner.home.config_path), owner.pinned.study
    assert _modalities(config, study, summary(ehr=9, mri=1)) == []
    with pytest.raises(SiteDataError, match=r"FH-DATA-034.*mri"):
        _modalities(config, study, summary(ehr=9, mri=0))
    federation = study.federation.model_copy(update={"average_encoders_over": "all_sites"})
    plain = study.model_copy(update={"federation": federation})
    assert _modalities(config, plain, summary(ehr=9, mri=0)) == []


def test_site_check_remarks_patients_with_a_modality_that_is_not_declared(
    lacking: Hospital,
) -> None:
    config, study = load_site(lacking.home.config_path), lacking.pinned.study
    (remark,) = _modalities(config, study, summary(ehr=9, mri=2))
    assert "its encoder is not trained here" in remark
    assert _modalities(config, study, summary(ehr=9, mri=0)) == []


MASKS = {"min_survivors": 3}


def masked_over_all(new_consortium: Any, **modalities: tuple[str, ...]) -> Any:
    content = two_modalities(min_cohort=3, average_encoders_over="all_sites")
    declared = {name.replace("_", "-"): own for name, own in modalities.items()}
    return new_consortium(
        *SITES, content=content | {"secure_aggregation": MASKS}, modalities=declared
    )


def made_patients(*, imaging: bool) -> Cohort:
    """Nine patients with records, on the training side; with a volume or without."""
    volumes = {"mri": UnreadVolume()} if imaging else {}
    patients = tuple(
        Patient(patient_id=f"p{n}", tables={"ehr": np.array([50.0])}, volumes=volumes)
        for n in range(9)
    )
    contract = Study.model_validate(two_modalities()).data.to_contract(seed=7)
    split = dict.fromkeys((p.patient_id for p in patients), SplitName.TRAIN)
    return Cohort(contract=contract, patients=patients, fixed_split=split)


class UnreadVolume:
    """A volume that nobody opens here."""

    def load(self) -> Any:
        raise AssertionError


@pytest.mark.parametrize(
    ("own", "imaging", "code"),
    [
        (("ehr", "mri"), False, "FH-DATA-034"),
        (("ehr",), True, "FH-DATA-035"),
        (("ehr", "mri"), True, ""),
        (("ehr",), False, ""),
    ],
)
def test_a_worker_whose_declaration_is_not_true_does_not_start_where_a_masked_sum_counts_on_it(
    new_consortium: Any, own: tuple[str, ...], imaging: bool, code: str
) -> None:
    # Declaring all modalities is the default: a floor of owners would be met by hospitals that have no images.
    hospital = Hospital(masked_over_all(new_consortium, site_3=own), "site-3")
    hospital.sessions._load_cohort = lambda: made_patients(imaging=imaging)  # type: ignore[assignment]
    with pytest.raises(SiteDataError, match=code) if code else nullcontext():
        hospital.sessions.check_declarations()


def test_site_check_asks_for_true_declarations_where_a_masked_sum_counts_on_them(
    new_consortium: Any,
) -> None:
    owner = Hospital(masked_over_all(new_consortium, site_3=("ehr",)), "site-3")
    config, study = load_site(owner.home.config_path), owner.pinned.study
    assert _modalities(config, study, summary(ehr=9, mri=0)) == []
    with pytest.raises(SiteDataError, match=r"FH-DATA-035.*mri"):
        _modalities(config, study, summary(ehr=9, mri=2))
    told = config.model_copy(update={"modalities": ("ehr", "mri")})
    with pytest.raises(SiteDataError, match=r"FH-DATA-034.*mri"):
        _modalities(told, study, summary(ehr=9, mri=0))


def test_the_incoming_model_is_what_leaves_for_frozen_tensors_in_every_round(
    lacking: Hospital,
) -> None:
    # Not only for a model of zeros: the bits of the incoming values come back.
    model = np.linspace(-3, 3, 100, dtype=np.float32)
    model[41] = -0.0
    lacking.consortium.model = lambda: model  # type: ignore[method-assign]
    assert sent(lacking)[MRI].tobytes() == model[MRI].tobytes()
