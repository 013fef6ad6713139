"""A hospital's own answer to "was it worth it?", and the row of it that may leave: real keys, gate, ledger, journal."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhealth.cli import app as cli
from fedhealth.config.load import load_study
from fedhealth.config.template import template_path
from fedhealth.contracts.benefit import MethodGain, MethodMetrics
from fedhealth.contracts.tensors import TensorSpec, vector_bytes
from fedhealth.durable import write_atomically
from fedhealth.errors import EvidenceError, ExitCode, GateRefusedError, IdentityError, UsageError
from fedhealth.evidence.benefit_row import BenefitRow
from fedhealth.evidence.signing import Envelope, SigningKey
from fedhealth.evidence.statements import open_statement
from fedhealth.gate.benefit import BenefitTerms, release_benefit
from fedhealth.privacy.accounting.events import UnboundedRelease
from fedhealth.privacy.ledger.ledger import read_ledger
from fedhealth.server.benefit_rows import combine_files
from fedhealth.server.enrolment import admit, init_server
from fedhealth.server.home import ServerHome
from fedhealth.site.benefit import SiteBenefitResult, benefit_of_site, release_row
from fedhealth.site.enrolment import SiteSettings, init_site, join
from fedhealth.site.home import SiteHome, load_pinned
from fedhealth.site.results import TUNED, evaluate_site
from fedhealth.site.sessions import global_model_path, load_training_method

STUDY_ID = "heart"


class HeartFederation:
    """Hospitals of the heart study with a finished run, without processes."""

    def __init__(self, root: Path, *site_ids: str, release: dict[str, Any]) -> None:
        content = yaml.safe_load(template_path("heart").read_text("utf-8"))
        for key in ("privacy", "secure_aggregation"):
            content.pop(key)
        content["federation"]["min_cohort"] = 2
        content["runs"] = content["runs"][:1]
        content["release"] = release
        study = root / "study.yaml"
        study.write_text(yaml.safe_dump(content, sort_keys=False))
        self.server = ServerHome(root / "server")
        method = load_training_method("supervised")
        init_server(
            self.server, study, host="127.0.0.1", listen_host="127.0.0.1", port=0, method=method
        )
        loaded = load_study(study)
        tensors = method.initial_tensors(loaded, loaded.runs[0])
        self.model = bytes(vector_bytes(TensorSpec.of(tensors).flatten(tensors)))
        self.homes = {site_id: self.enrol(root, site_id) for site_id in site_ids}

    def enrol(self, root: Path, site_id: str) -> SiteHome:
        home = SiteHome(root / site_id)
        settings = SiteSettings(
            site_id=site_id,
            package="heart",
            package_options={"hospital": "va"},
            data_dir=root / site_id / "data",
            train_size=100,
        )
        request = init_site(home, self.server.invitation, settings).request_path
        join(home, admit(self.server, request).admission_path)
        pinned = load_pinned(home, STUDY_ID)
        write_atomically(global_model_path(pinned, pinned.study.runs[0].name), self.model)
        return home


RELEASE = {"metrics": ["auc", "log_loss"], "metric_digits": 2, "benefit": True}


@pytest.fixture(scope="module")
def heart(tmp_path_factory: pytest.TempPathFactory) -> HeartFederation:
    return HeartFederation(tmp_path_factory.mktemp("heart"), "va", "vb", release=RELEASE)


@pytest.fixture(scope="module")
def result(heart: HeartFederation) -> SiteBenefitResult:
    """Of `va`; the same patients stand for `vb`."""
    return benefit_of_site(heart.homes["va"], None)


def journal_kinds(home: SiteHome) -> list[str]:
    return [
        json.loads(line)["kind"] for line in home.study(STUDY_ID).journal.read_text().splitlines()
    ]


def test_a_site_gets_record_and_page_and_nothing_leaves(
    heart: HeartFederation, result: SiteBenefitResult
) -> None:
    home = heart.homes["va"]
    assert result.record.origin == "site"
    assert result.record_path.parent == home.study(STUDY_ID).results
    assert "va" in result.page_path.read_text("utf-8")
    assert journal_kinds(home)[0] == "keys"
    (site,) = result.record.sites
    assert site.missing["imaging_derived"] > 0
    assert {curve.unit for curve in site.curves} == {"epoch"}
    # A model that was never trained on anything is worse than one that was tuned here.
    gain = site.gain("run:shared-head", "local", "auc")
    assert gain is not None
    assert gain.value < 0


def test_its_numbers_are_those_of_site_evaluate(
    heart: HeartFederation, result: SiteBenefitResult
) -> None:
    known = evaluate_site(heart.homes["va"], None)
    (site,) = result.record.sites
    (difference,) = known["differences"]
    gain = site.gain("run:shared-head", "local", "auc")
    losses = site.gain("run:shared-head", "local", "log_loss")
    assert gain is not None
    assert losses is not None
    assert (gain.value, gain.low, gain.high) == pytest.approx(
        [difference["auc"][name] for name in ("value", "low", "high")], abs=1e-12
    )
    assert losses.value == pytest.approx(-difference["log_loss"]["value"], abs=1e-12)
    tuned = next(row for row in known["rows"] if row["model"] == TUNED)
    alone = site.result("local")
    assert alone is not None
    assert alone.metrics["auc"] == pytest.approx(tuned["auc"])
    assert site.num_patients == known["num_patients"]


def test_rows_are_signed_charged_and_journaled_then_combined(
    heart: HeartFederation, result: SiteBenefitResult, tmp_path: Path
) -> None:
    paths = []
    for name, home in heart.homes.items():
        path = tmp_path / f"{name}.json"
        release_row(home, None, result, path)
        paths.append(path)
        envelope = Envelope.from_bytes(path.read_bytes())
        row = open_statement(BenefitRow, envelope, SigningKey.load(home.signing_key).public)
        assert {name for r in row.results for name in r.metrics} == {"auc", "log_loss"}
        numbers = [v for g in row.gains for v in (g.value, g.low, g.high, g.p_value)]
        assert all(float(f"{value:.2g}") == value for value in numbers)
        assert "num_patients" not in envelope.payload
        assert journal_kinds(home)[-1] == "benefit"
        pinned = load_pinned(home, STUDY_ID)
        last = read_ledger(home.ledger(pinned.config)).lines[-1]
        assert last.manifest_sha256 == envelope.payload_digest
        assert last.events == (UnboundedRelease(unit="patient", steps=1),)
    record, title = combine_files(paths, heart.server)
    assert (record.origin, [s.site_id for s in record.sites]) == (
        "released",
        ["va", "vb"],
    )
    assert title.startswith("Coronary")
    gains = record.gains("run:shared-head", "local")
    for gain in gains.values():
        assert gain is not None
        assert gain.adjusted_p == pytest.approx(
            min(1, 2 * gain.p_value)
        )  # Holm over two equal ones
    assert all(site.num_patients is None for site in record.sites)
    assert combine_files(paths, None)[0].origin == "released_unverified"
    with pytest.raises(EvidenceError, match="FH-BENEFIT-011"):
        combine_files([paths[0], paths[0]], heart.server)
    with pytest.raises(UsageError, match="FH-BENEFIT-002"):
        release_row(heart.homes["va"], None, result, paths[0])


def test_an_altered_row_or_one_of_a_stranger_is_refused(
    heart: HeartFederation, result: SiteBenefitResult, tmp_path: Path
) -> None:
    path = tmp_path / "row.json"
    row = release_row(heart.homes["va"], None, result, path)
    forged = row.model_copy(update={"issued_at": "2030-01-01T00:00:00Z"})
    path.write_bytes(forged.sign(SigningKey.generate()).to_bytes())
    with pytest.raises(IdentityError, match="FH-IDENTITY-002"):
        combine_files([path], heart.server)
    stranger = row.model_copy(update={"site_id": "nobody"}).sign(SigningKey.generate())
    path.write_bytes(stranger.to_bytes())
    with pytest.raises(IdentityError, match="FH-BENEFIT-013"):
        combine_files([path], heart.server)
    other = row.model_copy(update={"study_sha256": "f" * 64})
    path.write_bytes(other.sign(SigningKey.load(heart.homes["va"].signing_key)).to_bytes())
    with pytest.raises(EvidenceError, match="FH-BENEFIT-012"):
        combine_files([path], heart.server)


def test_a_site_at_work_releases_nothing(
    heart: HeartFederation, result: SiteBenefitResult, tmp_path: Path
) -> None:
    home = heart.homes["vb"]
    status = home.study(STUDY_ID).status
    status.write_text(json.dumps({"pid": 1, "state": "waiting"}))
    try:
        with pytest.raises(UsageError, match="FH-BENEFIT-001"):
            release_row(home, None, result, tmp_path / "row.json")
    finally:
        status.unlink()
    assert not list(tmp_path.iterdir())


TERMS: dict[str, Any] = {
    "is_agreed": True,
    "metrics": ("auc",),
    "metric_digits": 3,
    "has_patient_privacy": False,
    "is_masked": False,
}


def released(counts: tuple[int, ...] = (50, 50), value: float = 0.0123456, **changes: Any) -> Any:
    gain = MethodGain(
        method="run:plain",
        over="local",
        metric="auc",
        value=value,
        low=-0.01,
        high=0.034567,
        p_value=0.123456,
        standard_error=0.01,
    )
    metrics = {"auc": 0.812345, "brier": 0.2, "average_precision": 0.7}
    return release_benefit(
        [MethodMetrics(method="local", metrics=metrics)],
        [gain],
        patients_per_class=counts,
        terms=BenefitTerms(**(TERMS | changes)),
    )


def test_the_gate_lets_listed_rounded_metrics_out_and_nothing_else() -> None:
    outbound = released()
    assert outbound.results[0].metrics == {"auc": 0.812}
    assert (outbound.gains[0].value, outbound.gains[0].high) == (0.0123, 0.0346)
    assert "0.0123" not in repr(outbound)


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("FH-GATE-020", {"is_agreed": False}),
        ("FH-GATE-021", {"has_patient_privacy": True}),
        ("FH-GATE-022", {"is_masked": True}),
        ("FH-GATE-023", {"counts": (9, 50)}),
        ("FH-GATE-023", {"counts": (50, 50, 0)}),
        ("FH-GATE-023", {"counts": ()}),
        ("FH-GATE-024", {"metrics": ("brier",)}),
        ("FH-GATE-025", {"value": 1.5}),
        ("FH-GATE-025", {"value": float("nan")}),
    ],
)
def test_the_gate_refuses_a_row_with_the_reason(code: str, changes: dict[str, Any]) -> None:
    with pytest.raises(GateRefusedError, match=code):
        released(**changes)


def test_a_refused_row_costs_nothing_and_writes_nothing(
    heart: HeartFederation, result: SiteBenefitResult, tmp_path: Path
) -> None:
    home = heart.homes["vb"]
    folder = home.ledger(load_pinned(home, STUDY_ID).config)
    before = journal_kinds(home), folder.exists() and read_ledger(folder).mark
    with pytest.raises(GateRefusedError, match="FH-GATE-023"):
        release_row(home, None, replace(result, patients_per_class=(9, 50)), tmp_path / "row.json")
    assert not (tmp_path / "row.json").exists()
    assert (journal_kinds(home), folder.exists() and read_ledger(folder).mark) == before


def test_a_row_that_could_not_be_written_costs_nothing(
    heart: HeartFederation, result: SiteBenefitResult, tmp_path: Path
) -> None:
    """The charge has no bound and stays: it must not be for a mistyped folder."""
    home = heart.homes["vb"]
    folder = home.ledger(load_pinned(home, STUDY_ID).config)
    before = journal_kinds(home), folder.exists() and read_ledger(folder).mark
    (tmp_path / "file").touch()
    for place in ("nowhere", "file"):
        with pytest.raises(UsageError, match="FH-BENEFIT-003"):
            release_row(home, None, result, tmp_path / place / "row.json")
    assert (journal_kinds(home), folder.exists() and read_ledger(folder).mark) == before


def test_the_command_says_it_keeps_the_page_and_releases_the_row(
    heart: HeartFederation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, path = heart.homes["vb"], tmp_path / "row.json"
    code = cli.run(["benefit", "--home", str(home.root), "--release", str(path), "--json"])
    captured = capsys.readouterr()
    assert code == ExitCode.OK, captured.err
    said = json.loads(captured.out)
    assert said["record"]["origin"] == "site"
    assert said["page"] == str(home.study(STUDY_ID).results / "benefit.html")
    assert said["sentences"]["overall"][0].startswith("vb: ")
    assert "no counts" in captured.err
    assert Envelope.from_bytes(path.read_bytes()).payload_digest in (
        home.study(STUDY_ID).journal.read_text()
    )
    assert cli.run(["benefit", "--home", str(home.root), "--study", "nope"]) == ExitCode.USAGE
    # What cannot be released is refused before a model is trained for it.
    again = cli.run(["benefit", "--home", str(home.root), "--release", str(path)])
    assert again == ExitCode.USAGE
    assert "Training alone" not in capsys.readouterr().err
