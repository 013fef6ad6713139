import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from fedhealth_site_synthetic import (
    Scanner,
    SyntheticOptions,
    SyntheticSite,
    bayes_ceiling,
    generate,
    render_volume,
)
from fedhealth_site_synthetic.__main__ import main
from fedhealth_site_synthetic.generate import make_hospital, make_patient
from fedhealth_site_synthetic.latents import bias_for, disease_logit, site_prevalence
from fedhealth_site_synthetic.records import COLUMNS
from fedhealth_site_synthetic.render import SIZES, affine, render_with_mask

from fedhealth.contracts.data import DataContract
from fedhealth.errors import ConfigError, SiteDataError
from fedhealth.models.survival_metrics import concordance


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def small(**changes: object) -> SyntheticOptions:
    return SyntheticOptions.model_validate({"size": 16, "num_patients": 20, **changes})


def test_the_same_options_give_the_same_bytes(tmp_path: Path) -> None:
    generate(tmp_path / "a", small(seed=4))
    generate(tmp_path / "b", small(seed=4))
    assert files(tmp_path / "a") == files(tmp_path / "b")
    generate(tmp_path / "c", small(seed=5))
    assert files(tmp_path / "a")["cohort.csv"] != files(tmp_path / "c")["cohort.csv"]


def test_asking_for_more_patients_changes_none_of_the_first(tmp_path: Path) -> None:
    generate(tmp_path / "few", small(num_patients=5))
    generate(tmp_path / "many", small(num_patients=9))
    few, many = files(tmp_path / "few"), files(tmp_path / "many")
    assert many["cohort.csv"].startswith(few.pop("cohort.csv"))
    assert few.items() <= many.items()


@pytest.mark.parametrize("size", SIZES)
def test_a_written_volume_is_what_nibabel_reads(tmp_path: Path, size: int) -> None:
    options = small(size=size, num_patients=3)
    generate(tmp_path, options)
    patient = next(
        p
        for p in (make_patient(options, make_hospital(options), i) for i in range(3))
        if p.image is not None
    )
    loaded = nib.load(tmp_path / "t1" / f"{patient.patient_id}.nii.gz")
    assert nib.aff2axcodes(loaded.affine) == ("R", "A", "S")
    np.testing.assert_allclose(loaded.affine, affine(size))
    assert loaded.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(loaded.get_fdata(), patient.image, atol=6e-4)


def test_every_size_covers_the_same_field_of_view() -> None:
    for size in SIZES:
        corners = affine(size) @ np.array([[-0.5] * 3 + [1], [size - 0.5] * 3 + [1]]).T
        np.testing.assert_allclose(corners[:3].T, [[-119.5, -137.5, -97.5], [120.5, 102.5, 142.5]])


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("site_index", [0, 2])
def test_lesion_load_can_be_seen_in_a_z_scored_volume(size: int, site_index: int) -> None:
    """The third moment alone ranks patients by burden; a small network can do at least that."""
    options = small(size=size, site_index=site_index, seed=1)
    hospital = make_hospital(options)
    patients = [make_patient(options, hospital, number) for number in range(150)]
    seen = [(p.burden, p.image) for p in patients if p.image is not None]
    burden = np.array([b for b, _ in seen])
    images = np.stack([image for _, image in seen]).astype(np.float64).reshape(len(seen), -1)
    images = (images - images.mean(1, keepdims=True)) / images.std(1, keepdims=True)
    assert rank_correlation(burden, (images**3).mean(axis=1)) > 0.8


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


def test_the_same_lesions_are_drawn_at_every_size() -> None:
    scanner = Scanner(noise_std=0.0)
    coarse, fine = (render_volume(np.random.default_rng(3), 1.0, s, scanner) for s in (16, 32))
    blocks = fine.reshape(16, 2, 16, 2, 16, 2).mean(axis=(1, 3, 5))
    assert np.corrcoef(coarse.ravel(), blocks.ravel())[0, 1] > 0.98


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="size is one of"):
        render_volume(np.random.default_rng(0), 0.0, 48, Scanner())


def test_the_ceiling_needs_both_modalities_and_matches_a_simulation() -> None:
    """Published with the generator: .85 both, .72 either alone. The oracle is scikit-learn's AUC."""
    from sklearn.metrics import roc_auc_score

    ceiling = bayes_ceiling(1, 3)
    assert ceiling.both == pytest.approx(0.85, abs=0.01)
    assert ceiling.image == pytest.approx(0.72, abs=0.01)
    assert ceiling.ehr == pytest.approx(ceiling.image, abs=1e-6)
    rng = np.random.default_rng(0)
    burden, risk = rng.standard_normal((2, 200_000))
    logit = disease_logit(burden, risk, bias_for(site_prevalence(1, 3)))
    label = rng.random(200_000) < 1 / (1 + np.exp(-logit))
    assert roc_auc_score(label, logit) == pytest.approx(ceiling.both, abs=0.005)
    assert label.mean() == pytest.approx(site_prevalence(1, 3), abs=0.005)


def test_hospitals_differ_in_labels_images_and_scanners() -> None:
    first, last = (make_hospital(small(site_index=i, num_sites=4)) for i in (0, 3))
    assert (first.prevalence, last.prevalence) == (0.31, 0.62)
    assert (first.image_missing_rate, last.image_missing_rate) == (0.05, 0.40)
    assert first.scanner != last.scanner
    assert first.habits.drift != last.habits.drift


def test_markers_are_missing_at_random_given_the_first_one() -> None:
    """The sicker are tested more, and the first marker, on which that depends, is never missing."""
    options = small(size=16, imaging=False)
    hospital = make_hospital(options)
    records = [make_patient(options, hospital, number).record for number in range(2000)]
    first = np.array([record["marker_1"] for record in records], dtype=np.float64)
    lacks = np.array([record["marker_3"] is None for record in records])
    assert not np.isnan(first).any()
    assert lacks[first < np.median(first)].mean() > 1.5 * lacks[first > np.median(first)].mean()


def test_a_flipped_marker_turns_one_column_only() -> None:
    plain, flipped = small(), small(flipped_marker=True)
    rows = [make_patient(o, make_hospital(o), 3).record for o in (plain, flipped)]
    differing = [name for name in COLUMNS if rows[0][name] != rows[1][name]]
    assert set(differing) <= {"marker_5"}


def test_a_hospital_without_imaging_writes_no_volume(tmp_path: Path) -> None:
    generate(tmp_path, small(imaging=False))
    assert sorted(files(tmp_path)) == ["cohort.csv"]


def test_a_hospital_without_records_has_an_image_of_everybody(
    tmp_path: Path, synthetic_contract: DataContract
) -> None:
    cohort = site(tmp_path / "data", records=False, num_patients=30).load_cohort(synthetic_contract)
    assert all(not patient.tables and set(patient.volumes) == {"t1"} for patient in cohort.patients)
    with_records = site(tmp_path / "other", num_patients=30).load_cohort(synthetic_contract)
    assert [p.label for p in cohort.patients] == [p.label for p in with_records.patients]


def test_a_hospital_has_images_or_records() -> None:
    with pytest.raises(ValueError, match="patients would have nothing"):
        SyntheticOptions(imaging=False, records=False)


def test_a_folder_of_an_older_version_is_known_by_its_options(
    tmp_path: Path, synthetic_contract: DataContract
) -> None:
    site(tmp_path / "data").load_cohort(synthetic_contract)
    marker = tmp_path / "data" / "generated.json"
    written = json.loads(marker.read_text())
    del written["records"]
    marker.write_text(json.dumps(written))
    site(tmp_path / "data").load_cohort(synthetic_contract)


def site(folder: Path, **options: object) -> SyntheticSite:
    options = {"size": 16, "num_patients": 5, **options}
    return SyntheticSite(data_dir=folder, options=options, cache_dir=folder.parent / "cache")


def test_a_folder_filled_with_other_options_is_refused(
    tmp_path: Path, synthetic_contract: DataContract
) -> None:
    site(tmp_path / "data").load_cohort(synthetic_contract)
    with pytest.raises(SiteDataError, match="FH-DATA-051"):
        site(tmp_path / "data", seed=9).load_cohort(synthetic_contract)


def test_a_folder_that_holds_anything_else_is_left_alone(
    tmp_path: Path, synthetic_contract: DataContract
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "cohort.csv").write_text("patient_id,label\nreal,1\n")
    with pytest.raises(SiteDataError, match="FH-DATA-050"):
        site(folder).load_cohort(synthetic_contract)
    assert files(folder) == {"cohort.csv": b"patient_id,label\nreal,1\n"}


def test_an_interrupted_generation_is_done_again(
    tmp_path: Path, synthetic_contract: DataContract
) -> None:
    folder = tmp_path / "data"
    site(folder).load_cohort(synthetic_contract)
    complete = files(folder)
    (folder / "cohort.csv").unlink()
    next((folder / "t1").iterdir()).write_bytes(b"half a volume")
    site(folder).load_cohort(synthetic_contract)
    assert files(folder) == complete


def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, synthetic_contract: DataContract
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SiteDataError, match="FH-DATA-052"):
        site(tmp_path / "file" / "data").load_cohort(synthetic_contract)


@pytest.mark.parametrize(
    "options", [{"site_index": 3}, {"size": 48}, {"patients": 5}, {"num_patients": 0}]
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="FH-CONFIG-041"):
        site(tmp_path, **options)


def test_the_command_writes_a_folder_that_the_site_reads(
    tmp_path: Path, synthetic_contract: DataContract, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    arguments = [str(folder), "--size", "16", "--num-patients", "5", "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["bayes_auc"]["both"] > 0.8
    assert len(site(folder).load_cohort(synthetic_contract).patients) == 5
    assert main([*arguments, "--seed", "2"]) == 4
    assert "FH-DATA-051" in capsys.readouterr().err


def test_other_outcomes_and_masks_change_nothing_else(tmp_path: Path) -> None:
    generate(tmp_path / "plain", small())
    generate(tmp_path / "more", small(outcomes=True, lesion_masks=True))
    plain, more = files(tmp_path / "plain"), files(tmp_path / "more")
    old, new = (pd.read_csv(tmp_path / name / "cohort.csv") for name in ("plain", "more"))
    assert set(new) - set(old) == {"grade", "days", "progressed"}
    pd.testing.assert_frame_equal(new[list(old)], old)
    images = {name: content for name, content in plain.items() if name.startswith("t1")}
    assert images.items() <= more.items()
    assert sum(name.startswith("lesion") for name in more) == 20


def test_grade_and_progression_follow_the_latents() -> None:
    options = small(outcomes=True, imaging=False)
    hospital = make_hospital(options)
    drawn = [make_patient(options, hospital, number) for number in range(1500)]
    logit = np.array([float(disease_logit(p.burden, p.risk, 0.0)) for p in drawn])
    known = [p.outcomes for p in drawn if p.outcomes is not None]
    grade, days, seen = np.array([(o.grade, o.days, o.progressed) for o in known]).T
    assert set(grade) == {0, 1, 2, 3}
    assert (grade >= 2).mean() == pytest.approx(hospital.prevalence, abs=0.04)
    assert 0 < days.min() < days.max() <= 1800
    assert 0.3 < seen.mean() < 0.9
    once = np.ones((1, 1500))
    assert concordance(logit, days, seen, once)[0] > 0.65
    # From one grade to the next, patients of the same latents apart, the mean logit rises.
    assert all(np.diff([logit[grade == g].mean() for g in range(4)]) > 0)


def test_a_mask_is_where_the_bright_lesion_is() -> None:
    volume, mask = render_with_mask(np.random.default_rng(1), 1.5, 32, Scanner())
    without, nothing = render_with_mask(np.random.default_rng(1), -20.0, 32, Scanner())
    assert mask.sum() > 20
    assert nothing.sum() == 0
    added = volume - without
    assert added[mask == 1].min() > added[mask == 0].mean() + 0.2
