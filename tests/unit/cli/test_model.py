"""`model export` and `predict`: the same scores wherever the model is opened, and nothing that should not leave."""

import csv
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.bundle.properties import MetaProperties
from monai.utils import BundleProperty, BundlePropertyConfig
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from fedhealth.cli import app as cli
from fedhealth.config.study import Study
from fedhealth.contracts.data import SplitName
from fedhealth.contracts.tensors import vector_digest
from fedhealth.data.batch import PatientDataset
from fedhealth.data.reader import COHORT_FILE
from fedhealth.data.split import split_patients
from fedhealth.errors import ExitCode
from fedhealth.models.multimodal import build_multimodal
from fedhealth.report.model_bundle import CARD_PAGE
from fedhealth.report.write import write_round
from fedhealth.site.own_model import open_own_model
from fedhealth.site.sessions import Sessions, load_training_method
from fedhealth.testing.example_rounds import example_run

from .trained import Trained, content


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"), content())


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def new_patients(tmp_path: Path, trained: Trained) -> Path:
    """Three of the hospital's patients without their label: the second lacks a modality, the third a value."""
    folder = tmp_path / "new"
    folder.mkdir()
    with (trained.site.root.parent / "data" / COHORT_FILE).open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))[:3]
    rows[1] |= {"ca": "", "thal": ""}
    rows[2] |= {"chol": ""}
    names = [name for name in rows[0] if name != "label"]
    with (folder / COHORT_FILE).open("w", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def run(*arguments: object) -> int:
    return cli.run([str(argument) for argument in arguments])


def export(home: Path, out: Path, *more: object, name: str = "plain") -> int:
    return run("model", "export", "--home", home, "--run", name, "--out", out, *more)


def table_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def risks(path: Path) -> list[float]:
    return [float(row["probability_1"]) for row in table_of(path)]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_plain_torch_gives_the_scores_of_predict(
    tmp_path: Path, trained: Trained, new_patients: Path
) -> None:
    assert export(trained.server.root, tmp_path / "bundle") == ExitCode.OK
    arguments = ("--model", tmp_path / "bundle", "--data-dir", new_patients)
    assert run("predict", *arguments, "--out", tmp_path / "scores.csv") == ExitCode.OK
    study = Study.model_validate(content())
    contract = study.data.to_contract(seed=study.seed)
    model = build_multimodal(contract, 1, study.model.options)
    model.load_state_dict(load_file(tmp_path / "bundle" / "models" / "model.safetensors"))
    cohort = trained.site.root.parent / "data"
    from fedhealth.data.reader import read_folder_cohort

    known = {p.patient_id: p for p in read_folder_cohort(cohort, contract, tmp_path).patients}
    rows = table_of(tmp_path / "scores.csv")
    first = PatientDataset([known[rows[0]["patient_id"]]], contract).batch([0])
    with torch.no_grad():
        expected = float(torch.sigmoid(model(first)))
    assert float(rows[0]["probability_1"]) == pytest.approx(expected, abs=1e-6)
    assert float(rows[0]["probability_0"]) == pytest.approx(1 - expected, abs=1e-6)


def test_a_hospital_and_the_bundle_of_its_model_score_alike(
    tmp_path: Path, trained: Trained, new_patients: Path
) -> None:
    bundle = tmp_path / "bundle"
    assert export(trained.site.root, bundle, "--allow-unprotected", name="heads") == ExitCode.OK
    data = ("--data-dir", new_patients)
    at_site = ("predict", "--home", trained.site.root, "--run", "heads", *data)
    assert run(*at_site, "--out", tmp_path / "a.csv") == ExitCode.OK
    assert run("predict", "--model", bundle, *data, "--out", tmp_path / "b.csv") == ExitCode.OK
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert run(*at_site[:4], "plain", *data, "--out", tmp_path / "c.csv") == ExitCode.OK
    assert risks(tmp_path / "a.csv") != risks(tmp_path / "c.csv")


def test_what_a_patient_lacks_is_said_and_nothing_else_is_written(
    tmp_path: Path, trained: Trained, new_patients: Path
) -> None:
    before = contents(tmp_path), contents(trained.site.root)
    out = tmp_path / "scores.csv"
    arguments = ("predict", "--home", trained.site.root, "--run", "plain")
    assert run(*arguments, "--data-dir", new_patients, "--out", out) == ExitCode.OK
    rows = table_of(out)
    assert [row["modalities"] for row in rows] == [
        "clinical+imaging_derived",
        "clinical",
        "clinical+imaging_derived",
    ]
    assert {row["calibrated"] for row in rows} == {"no"}
    assert out.stat().st_mode & 0o077 == 0
    after = contents(tmp_path)
    del after["scores.csv"]
    assert (after, contents(trained.site.root)) == before


def test_scores_are_never_replaced_unasked(
    tmp_path: Path, trained: Trained, new_patients: Path
) -> None:
    out = tmp_path / "scores.csv"
    out.write_text("kept", encoding="utf-8")
    arguments = ("predict", "--home", trained.site.root, "--run", "plain")
    arguments = (*arguments, "--data-dir", new_patients, "--out", out)
    assert run(*arguments) == ExitCode.USAGE
    assert out.read_text(encoding="utf-8") == "kept"
    assert run(*arguments, "--force") == ExitCode.OK
    assert len(table_of(out)) == 3


def test_an_implausible_value_is_refused_by_count_and_column(
    tmp_path: Path, trained: Trained, new_patients: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = new_patients / COHORT_FILE
    rows = table_of(path)
    rows[0]["age"] = "250"
    with path.open("w", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    arguments = ("predict", "--home", trained.site.root, "--run", "plain")
    code = run(*arguments, "--data-dir", new_patients, "--out", tmp_path / "scores.csv")
    said = capsys.readouterr().err
    assert code == ExitCode.SITE_DATA
    assert "'age'" in said
    assert "1 value (row 2)" in said
    assert "250" not in said
    assert rows[0]["patient_id"] not in said
    assert not (tmp_path / "scores.csv").exists()


def test_a_site_package_that_needs_labels_is_refused(
    tmp_path: Path, trained: Trained, new_patients: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedhealth_site_heart.site import HeartSite

    monkeypatch.delattr(HeartSite, "load_new_patients")
    arguments = ("predict", "--home", trained.site.root, "--run", "plain")
    code = run(*arguments, "--data-dir", new_patients, "--out", tmp_path / "scores.csv")
    assert code == ExitCode.CONFIG


def test_a_package_can_be_named_for_a_bundle(
    tmp_path: Path, trained: Trained, new_patients: Path
) -> None:
    assert export(trained.server.root, tmp_path / "bundle") == ExitCode.OK
    arguments = ("predict", "--model", tmp_path / "bundle", "--data-dir", new_patients)
    named = (*arguments, "--package", "heart", "--option", "hospital=va")
    assert run(*arguments, "--out", tmp_path / "a.csv") == ExitCode.OK
    assert run(*named, "--out", tmp_path / "b.csv") == ExitCode.OK
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert run(*arguments, "--option", "x=1", "--out", tmp_path / "c.csv") == ExitCode.USAGE


def test_one_of_home_and_model_is_given(
    tmp_path: Path, trained: Trained, new_patients: Path
) -> None:
    data = ("--data-dir", new_patients, "--out", tmp_path / "scores.csv")
    assert run("predict", *data) == ExitCode.USAGE
    assert run("predict", "--home", trained.site.root, "--model", tmp_path, *data) == ExitCode.USAGE


def test_the_same_model_gives_the_same_bytes_and_no_path(tmp_path: Path, trained: Trained) -> None:
    license_file = tmp_path / "terms.txt"
    license_file.write_text("As agreed.\n", encoding="utf-8")
    words = ("--authors", "The *three* of us", "--limit", "Not for children.")
    for name in ("a", "b"):
        done = export(trained.server.root, tmp_path / name, *words, "--license", license_file)
        assert done == ExitCode.OK
    files = contents(tmp_path / "a")
    assert files == contents(tmp_path / "b")
    assert files["LICENSE"] == b"As agreed.\n"
    assert set(files) == {
        "LICENSE",
        "configs/inference.json",
        "configs/metadata.json",
        "configs/model.json",
        CARD_PAGE.as_posix(),
        "docs/model_card.json",
        "models/model.safetensors",
    }
    text = b"".join(files.values())
    assert str(trained.server.root).encode() not in text
    assert b"st-mary" not in text
    page = files[CARD_PAGE.as_posix()].decode()
    assert "Not for clinical use." in page
    assert "Not for children." in page
    assert "The \\*three\\* of us" in page
    card = json.loads(files["docs/model_card.json"])
    assert card["weights_sha256"] == hashlib.sha256(files["models/model.safetensors"]).hexdigest()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, trained: Trained) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine").write_text("mine", encoding="utf-8")
    assert export(trained.server.root, tmp_path / "bundle") == ExitCode.USAGE
    assert contents(tmp_path / "bundle") == {"mine": b"mine"}


@pytest.mark.parametrize("words", [("--authors", ""), ("--limit", "<b>"), ("--license", "no-file")])
def test_words_that_no_card_can_hold_are_refused(
    tmp_path: Path, trained: Trained, words: tuple[str, str]
) -> None:
    assert export(trained.server.root, tmp_path / "bundle", *words) == ExitCode.USAGE
    assert not (tmp_path / "bundle").exists()


def test_monai_finds_its_metadata_and_the_network(tmp_path: Path, trained: Trained) -> None:
    bundle = tmp_path / "bundle"
    assert export(trained.server.root, bundle) == ExitCode.OK
    parser = ConfigParser()
    parser.read_meta(str(bundle / "configs" / "metadata.json"))
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser["bundle_root"] = str(bundle)
    required = [item for item in MetaProperties.values() if item[BundleProperty.REQUIRED]]
    assert required
    for item in required:
        assert parser.get(item[BundlePropertyConfig.ID]) is not None
    # The fields of MONAI's bundle specification, of which every network input and output has to have these.
    data_format = parser["_meta_"]["network_data_format"]
    fields = {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range"}
    for described in (*data_format["inputs"].values(), *data_format["outputs"].values()):
        assert fields | {"is_patch_data", "channel_def"} == set(described)
        assert len(described["channel_def"]) == described["num_channels"]
    network = parser.get_parsed_content("network")
    weights = load_file(bundle / "models" / "model.safetensors")
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter.cpu(), weights[name])


def test_a_changed_weight_is_found(tmp_path: Path, trained: Trained, new_patients: Path) -> None:
    bundle = tmp_path / "bundle"
    assert export(trained.server.root, bundle) == ExitCode.OK
    path = bundle / "models" / "model.safetensors"
    payload = bytearray(path.read_bytes())
    payload[-1] ^= 1
    path.write_bytes(payload)
    arguments = ("predict", "--model", bundle, "--data-dir", new_patients)
    code = run(*arguments, "--out", tmp_path / "scores.csv")
    assert code == ExitCode.EVIDENCE_NOT_VERIFIED
    assert not (tmp_path / "scores.csv").exists()


@pytest.mark.parametrize("file", ["configs/model.json", "models/model.safetensors"])
def test_a_bundle_without_a_file_is_none(
    tmp_path: Path, trained: Trained, new_patients: Path, file: str
) -> None:
    bundle = tmp_path / "bundle"
    assert export(trained.server.root, bundle) == ExitCode.OK
    (bundle / file).unlink()
    arguments = ("predict", "--model", bundle, "--data-dir", new_patients)
    code = run(*arguments, "--out", tmp_path / "scores.csv")
    assert code == ExitCode.EVIDENCE_NOT_VERIFIED


def test_weights_of_another_model_are_refused_with_a_true_digest(
    tmp_path: Path, trained: Trained, new_patients: Path
) -> None:
    bundle = tmp_path / "bundle"
    assert export(trained.server.root, bundle) == ExitCode.OK
    path = bundle / "configs" / "model.json"
    said = json.loads(path.read_bytes())
    said["model"]["options"]["embedding_size"] = 8
    del said["content_sha256"]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    said["content_sha256"] = digest
    path.write_text(json.dumps(said), encoding="utf-8")
    arguments = ("predict", "--model", bundle, "--data-dir", new_patients)
    assert run(*arguments, "--out", tmp_path / "scores.csv") == ExitCode.CONFIG


@pytest.mark.parametrize("what", ["limit", "codes", "seed"])
def test_a_description_that_was_edited_is_refused(
    tmp_path: Path, trained: Trained, new_patients: Path, what: str
) -> None:
    """Another limit scales a column otherwise, another order of labels exchanges their probabilities."""
    bundle = tmp_path / "bundle"
    assert export(trained.server.root, bundle) == ExitCode.OK
    path = bundle / "configs" / "model.json"
    said = json.loads(path.read_bytes())
    if what == "limit":
        said["data"]["modalities"][0]["columns"][0]["maximum"] = 200
    elif what == "codes":
        said["data"]["label"]["codes"] = [1, 0]
    else:
        said["seed"] += 1
    path.write_text(json.dumps(said), encoding="utf-8")
    arguments = ("predict", "--model", bundle, "--data-dir", new_patients)
    code = run(*arguments, "--out", tmp_path / "scores.csv")
    assert code == ExitCode.EVIDENCE_NOT_VERIFIED
    assert not (tmp_path / "scores.csv").exists()


def test_records_of_another_study_make_no_card(
    tmp_path: Path, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after an upgrade that reads the study file with other keys: a refusal, no bug."""
    reports = trained.server.run("plain").reports
    try:
        write_round(reports, example_run()[0])
        code = export(trained.server.root, tmp_path / "bundle")
    finally:
        shutil.rmtree(reports)
    assert code == ExitCode.EVIDENCE_NOT_VERIFIED
    assert "FH-EXPORT-007" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_the_shared_part_of_a_personalised_run_says_that_it_cannot_predict(
    tmp_path: Path, trained: Trained, new_patients: Path
) -> None:
    bundle = tmp_path / "bundle"
    assert export(trained.server.root, bundle, name="heads") == ExitCode.OK
    assert not any(
        name.startswith("head.") for name in load_file(bundle / "models" / "model.safetensors")
    )
    page = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    assert "cannot predict by itself" in page
    arguments = ("predict", "--model", bundle, "--data-dir", new_patients)
    assert run(*arguments, "--out", tmp_path / "scores.csv") == ExitCode.CONFIG


def test_a_head_without_privacy_leaves_only_when_asked_and_the_card_says_so(
    tmp_path: Path, trained: Trained
) -> None:
    out = tmp_path / "bundle"
    assert export(trained.site.root, out, name="heads") == ExitCode.PRIVACY_BUDGET
    assert not out.exists()
    assert export(trained.site.root, out, "--allow-unprotected", name="heads") == ExitCode.OK
    page = (out / "docs" / "README.md").read_text(encoding="utf-8")
    assert "trained without differential privacy" in page
    card = json.loads((out / "docs" / "model_card.json").read_bytes())
    assert (card["kind"], card["site_id"], card["personal_tensors"]) == ("site", "st-mary", 2)
    assert not card["has_records"]


def test_a_run_that_is_not_there_or_not_done_is_refused(tmp_path: Path, trained: Trained) -> None:
    assert export(trained.server.root, tmp_path / "x", name="nope") == ExitCode.USAGE
    assert export(trained.site.root, tmp_path / "x", name="nope") == ExitCode.USAGE
    assert export(tmp_path, tmp_path / "x") == ExitCode.USAGE
    assert not (tmp_path / "x").exists()


def test_recalibration_is_the_maximum_likelihood_fit_and_keeps_the_ranks(
    tmp_path: Path, trained: Trained, new_patients: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = ("--home", trained.site.root, "--run", "plain")
    data = ("--data-dir", new_patients)
    kept = trained.pinned.folder.results / "plain.recalibration.json"
    try:
        assert run("model", "recalibrate", *home, "--json") == ExitCode.OK
        said = json.loads(capsys.readouterr().out)
        assert run("predict", *home, *data, "--out", tmp_path / "fitted.csv") == ExitCode.OK
        raw = ("--raw", "--out", tmp_path / "raw.csv")
        assert run("predict", *home, *data, *raw) == ExitCode.OK
        damaged = json.loads(kept.read_bytes()) | {"weights_sha256": "0" * 64}
        kept.write_text(json.dumps(damaged), encoding="utf-8")
        code = run("predict", *home, *data, "--out", tmp_path / "other.csv")
        assert code == ExitCode.EVIDENCE_NOT_VERIFIED
    finally:
        kept.unlink(missing_ok=True)
    assert {row["calibrated"] for row in table_of(tmp_path / "fitted.csv")} == {"yes"}
    before, after = np.array(risks(tmp_path / "raw.csv")), np.array(risks(tmp_path / "fitted.csv"))
    assert (np.argsort(before) == np.argsort(after)).all()
    logits = np.log(before / (1 - before))
    expected = 1 / (1 + np.exp(-(said["intercept"] + said["slope"] * logits)))
    assert after == pytest.approx(expected, abs=1e-5)
    intercept, slope = _oracle(trained)
    assert said["intercept"] == pytest.approx(intercept, abs=1e-3)
    assert said["slope"] == pytest.approx(slope, abs=1e-3)


def _oracle(trained: Trained) -> tuple[float, float]:
    """scikit-learn's logistic regression without penalty on the validation side's log odds."""
    from fedhealth.site.own_model import open_own_model

    own = open_own_model(trained.site, None, "plain")
    cohort = own.sessions.context("plain").load_cohort()
    dataset = PatientDataset(split_patients(cohort)[SplitName.VALIDATION], own.learner.contract)
    found = own.learner.predict(dataset, batch_size=64)
    logits = np.log(found / (1 - found))[:, None]
    fitted = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(
        logits, dataset.labels.numpy()
    )
    return float(fitted.intercept_[0]), float(fitted.coef_[0, 0])


@pytest.mark.parametrize(
    ("method", "unseen"),
    [
        ("none", ()),
        ("private_head", ()),
        ("fine_tune", ()),  # begins with what the others trained
        ("mr_mtl", ("imaging_derived",)),
        ("ditto", ("imaging_derived",)),
    ],
)
def test_what_a_site_has_no_patients_for_was_trained_by_others_or_by_nobody(
    tmp_path: Path, method: str, unseen: tuple[str, ...]
) -> None:
    said = content(runs=[{"name": "main", "num_rounds": 1, "personalisation": method}])
    own = open_own_model(Trained(tmp_path, said).site, None, None)
    assert own.unseen_modalities == ()  # this site declares all of them
    config = own.pinned.config.model_copy(update={"modalities": ("clinical",)})
    lacking = replace(own, pinned=replace(own.pinned, config=config))
    assert lacking.unseen_modalities == unseen
    assert lacking.opened().unseen == unseen


def test_recalibration_on_too_few_patients_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = {"train": 0.85, "validation": 0.05, "test": 0.1}
    said = content(runs=[{"name": "plain", "num_rounds": 1}])
    small = Trained(tmp_path, said | {"data": said["data"] | {"split": split}})
    assert run("model", "recalibrate", "--home", small.site.root) == ExitCode.SITE_DATA
    assert "FH-DATA-042" in capsys.readouterr().err
    assert not (small.pinned.folder.results / "plain.recalibration.json").exists()


def test_control_variates_are_no_part_of_an_exported_model(
    tmp_path: Path, new_patients: Path
) -> None:
    said = content()
    said["training"]["optimizer"] = {"name": "sgd", "learning_rate": 0.05}
    scaffold = {"name": "scaffold"}
    run_plan = {"name": "plain", "num_rounds": 1, "strategy": scaffold, "control_variates": True}
    corrected = Trained(tmp_path / "scaffold", said | {"runs": [run_plan]})
    for home, bundle in ((corrected.server, tmp_path / "a"), (corrected.site, tmp_path / "b")):
        assert export(home.root, bundle) == ExitCode.OK
    one, other = (load_file(tmp_path / b / "models" / "model.safetensors") for b in ("a", "b"))
    assert set(one) == set(other)
    assert not any(name.startswith("control.") for name in one)
    assert all(torch.equal(one[name], other[name]) for name in one)
    arguments = ("predict", "--model", tmp_path / "a", "--data-dir", new_patients)
    assert run(*arguments, "--out", tmp_path / "scores.csv") == ExitCode.OK


def test_records_of_another_model_make_no_card(tmp_path: Path, trained: Trained) -> None:
    for record in example_run():
        write_round(tmp_path / "reports", record)
    records = ("--records", tmp_path / "reports")
    code = export(trained.site.root, tmp_path / "x", *records)
    assert code == ExitCode.EVIDENCE_NOT_VERIFIED
    (tmp_path / "empty").mkdir()
    code = export(trained.site.root, tmp_path / "x", "--records", tmp_path / "empty")
    assert code == ExitCode.EVIDENCE_NOT_VERIFIED
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("method", ["ditto", "mr_mtl", "fine_tune"])
def test_a_whole_model_of_a_sites_own_leaves_only_when_asked(
    tmp_path: Path, method: str, new_patients: Path
) -> None:
    plans = [{"name": "own", "num_rounds": 1, "personalisation": method}]
    site = Trained(tmp_path / "home", content(runs=plans)).site
    bundle = tmp_path / "bundle"
    assert export(site.root, bundle, name="own") == ExitCode.PRIVACY_BUDGET
    assert export(site.root, bundle, "--allow-unprotected", name="own") == ExitCode.OK
    weights = load_file(bundle / "models" / "model.safetensors")
    card = json.loads((bundle / "docs" / "model_card.json").read_bytes())
    assert card["personal_tensors"] == len(weights)
    data = ("--data-dir", new_patients)
    assert run("predict", "--home", site.root, *data, "--out", tmp_path / "a.csv") == ExitCode.OK
    assert run("predict", "--model", bundle, *data, "--out", tmp_path / "b.csv") == ExitCode.OK
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_fine_tuning_is_never_covered_by_the_account(tmp_path: Path) -> None:
    said = content(runs=[{"name": "own", "num_rounds": 1, "personalisation": "fine_tune"}])
    private = said | {
        "privacy": {"noise_multiplier": 1.0, "clipping_norm": 1.0},
        "release": {"metrics": []},
    }
    site = Trained(tmp_path / "home", private).site
    assert export(site.root, tmp_path / "bundle", name="own") == ExitCode.PRIVACY_BUDGET
    assert export(site.root, tmp_path / "bundle", "--allow-unprotected", name="own") == ExitCode.OK
    page = (tmp_path / "bundle" / "docs" / "README.md").read_text(encoding="utf-8")
    assert "trained without differential privacy" in page


def test_classes_are_recalibrated_by_one_temperature(
    tmp_path: Path, new_patients: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = content(
        task={"name": "multiclass_classification"},
        runs=[{"name": "plain", "num_rounds": 1}],
        release={"metrics": []},
    )
    home = ("--home", Trained(tmp_path / "home", said).site.root)
    assert run("model", "recalibrate", *home, "--json") == ExitCode.OK
    made = json.loads(capsys.readouterr().out)
    assert made["intercept"] == 0
    data = ("--data-dir", new_patients)
    assert run("predict", *home, *data, "--out", tmp_path / "a.csv") == ExitCode.OK
    assert run("predict", *home, *data, "--raw", "--out", tmp_path / "b.csv") == ExitCode.OK
    raw = np.array(risks(tmp_path / "b.csv"))
    odds = (raw / (1 - raw)) ** made["slope"]
    assert risks(tmp_path / "a.csv") == pytest.approx(odds / (1 + odds), abs=1e-5)


@pytest.fixture
def own_home(tmp_path: Path, trained: Trained) -> Path:
    """A copy of the hospital's home, to damage."""
    home = tmp_path / "home"
    shutil.copytree(trained.site.root, home)
    return home


def listed(home: Path, capsys: pytest.CaptureFixture[str], *more: str) -> list[dict[str, object]]:
    capsys.readouterr()
    assert cli.run(["model", "list", "--home", str(home), "--json", *more]) == 0
    models: list[dict[str, object]] = json.loads(capsys.readouterr().out)["models"]
    return models


def test_list_names_what_a_site_keeps_and_the_global_model_that_it_belongs_to(
    trained: Trained, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = listed(own_home, capsys)
    assert [(m["run_name"], m["round_number"], m["holds"], m["method"]) for m in models] == [
        ("plain", None, "global model", "none"),
        ("heads", 1, "private head", "private_head"),
        ("heads", None, "global model", "private_head"),
    ]
    assert all(m["is_readable"] for m in models)
    for model in models:
        path = own_home / str(model["file"])
        assert model["size_bytes"] == path.stat().st_size
        if model["holds"] == "global model":
            assert model["model_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    sessions = Sessions(trained.site, trained.pinned)
    started_from = load_training_method("supervised").initial_tensors(
        trained.pinned.study, trained.pinned.study.run("heads")
    )
    vector = sessions.open("heads")[1].flatten(started_from)
    assert models[1]["model_sha256"] == vector_digest(vector)
    assert listed(own_home, capsys, "--study", "trained") == models


def test_list_names_a_damaged_file_and_the_models_that_use_it_are_refused(
    own_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (head,) = own_home.glob("studies/trained/state/heads/private_heads/heads/*.safetensors")
    content = bytearray(head.read_bytes())
    content[-1] ^= 1
    head.write_bytes(content)
    plain = own_home / "studies/trained/results/plain.f4le"
    plain.write_bytes(plain.read_bytes()[:-1])
    assert cli.run(["model", "list", "--home", str(own_home)]) == 0
    said = capsys.readouterr().err
    for path in (head, plain):
        assert f"DAMAGED: {path.relative_to(own_home)}" in said
    assert said.count("DAMAGED: ") == 2
    for run, code in (("heads", "FH-TRAIN-006"), ("plain", "FH-TENSOR-003")):
        out = ["--run", run, "--out", str(tmp_path / run)]
        assert cli.run(["model", "export", "--home", str(own_home), *out]) != 0
        assert code in capsys.readouterr().err


def test_list_of_a_home_that_keeps_nothing_yet_says_so(
    own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(own_home / "studies/trained/results")
    shutil.rmtree(own_home / "studies/trained/state")
    assert listed(own_home, capsys) == []
    assert cli.run(["model", "list", "--home", str(own_home)]) == 0
    assert "Nothing is kept here yet" in capsys.readouterr().err


def test_list_refuses_a_folder_that_is_no_sites_home(
    tmp_path: Path, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["model", "list", "--home", str(tmp_path)]) == ExitCode.CONFIG
    assert cli.run(["model", "list", "--home", str(own_home), "--study", "no"]) == ExitCode.USAGE
    assert "FH-USAGE-010" in capsys.readouterr().err
