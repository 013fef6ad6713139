"""`model export` at the server: the run's newest global model as a MONAI bundle with its card."""

from typing import TYPE_CHECKING

from fedhealth.config.load import study_digest
from fedhealth.contracts.control_variates import model_part
from fedhealth.contracts.tensors import vector_digest
from fedhealth.errors import ConfigError, EvidenceError, UsageError
from fedhealth.report.model_bundle import BundleParts, bundle_files, installed_versions
from fedhealth.report.model_card import ModelCard, ModelFacts, WordsOfCard, model_card
from fedhealth.report.write import read_rounds
from fedhealth.server.checkpoint import read_last_checkpoint
from fedhealth.server.home import ServerHome

if TYPE_CHECKING:
    from fedhealth.config.study import Study
    from fedhealth.report.record import RoundRecord
    from fedhealth.server.checkpoint import Checkpoint
    from fedhealth.training.learner import Learner


def export_global_model(
    home: ServerHome, run_name: str, words: WordsOfCard, *, license_text: str | None
) -> tuple[dict[str, bytes], ModelCard]:
    """The files of the bundle, and its card. Changes nothing; the server may be running.

    A run that keeps tensors at the sites gives the shared part, which says so and cannot predict.

    Raises:
        UsageError: FH-USAGE-020 not a server's home; FH-USAGE-081 no such run, FH-USAGE-082 no round of it is complete,
            FH-USAGE-083 its training method has no model of this kind.
        ConfigError: FH-TRAIN-003 the installed model is not the one that was trained.
        EvidenceError: the checkpoint or a record is damaged; FH-EXPORT-007 the records are of another study.
    """
    from fedhealth.models.exported import ModelDescription, weights_bytes

    study, learner, checkpoint = _trained(home, run_name)
    missing = tuple(learner.private)
    kept = {n: p for n, p in learner.model.named_parameters() if n not in learner.private}
    weights = weights_bytes(kept)
    description = ModelDescription.of(study, weights, missing_tensors=missing)
    versions = installed_versions()
    facts = ModelFacts(
        kind="global",
        study_sha256=study_digest(study),
        run_name=run_name,
        rounds_done=checkpoint.round_number,
        model_sha256=vector_digest(checkpoint.vector),
        weights_sha256=description.weights_sha256,
        personal_tensors=0,
        personal_tensors_are_private=False,
        missing_tensors=len(missing),
        fedhealth_version=versions["fedhealth"],
        is_simulation=home.is_simulation,
    )
    card = model_card(study, facts, _records(home, study, run_name), words)
    parts = BundleParts(
        card=card,
        contract=learner.contract,
        description=description.to_bytes(),
        weights=weights,
        num_outputs=learner.task.num_outputs,
        versions=versions,
        license_text=license_text,
    )
    return bundle_files(parts), card


def _records(home: ServerHome, study: "Study", run_name: str) -> "list[RoundRecord]":
    found = read_rounds(home.run(run_name).reports)
    if any(record.study_sha256 != study_digest(study) for record in found):
        raise EvidenceError(
            "FH-EXPORT-007",
            "the round records here are of another study than the one that this home reads.",
            why="Another version of fedhealth may read the file with other keys, or somebody edited it; a card must be "
            "of the study that was run.",
            fix="Export with the version that ran it (`versions` in the round records), from an unchanged home.",
        )
    return found


def _trained(home: ServerHome, run_name: str) -> "tuple[Study, Learner, Checkpoint]":
    """The study, and its model with the tensors of the run's newest checkpoint. Raises as `export_global_model`."""
    from fedhealth.training.learner import Learner, load, spec_of

    study, _ = home.require()
    _check_run(study, run_name)
    checkpoint = read_last_checkpoint(home.run(run_name))
    if checkpoint.round_number == 0:
        raise UsageError(
            "FH-USAGE-082",
            f"no round of run {run_name!r} is complete.",
            why="A model that nobody trained is no result.",
            fix="Run the study first (`fedhealth server run`).",
        )
    run = study.run(run_name)
    learner = Learner(study, run)
    own = spec_of(learner.shared)
    if checkpoint.spec.entries[: len(own.entries)] != own.entries:
        raise ConfigError(
            "FH-TRAIN-003",
            "the model that is installed here has other tensors than the checkpoint.",
            why="Weights say nothing in a model of another shape.",
            fix="Install the version that trained it (`versions` in the round records).",
        )
    model = model_part(checkpoint.vector, has_controls=run.control_variates)
    load(learner.shared, own.unflatten(model))
    return study, learner, checkpoint


def _check_run(study: "Study", run_name: str) -> None:
    if run_name not in {run.name for run in study.runs}:
        raise UsageError(
            "FH-USAGE-081",
            f"the study has no run {run_name!r}.",
            fix=f"Give one of: {', '.join(run.name for run in study.runs)}.",
        )
    if study.training.name != "supervised":
        raise UsageError(
            "FH-USAGE-083",
            f"training method {study.training.name!r} has no model that could be exported.",
            why="Only supervised training has a model that reads patients.",
            fix="Take the tensors from the checkpoint of the server's home.",
        )
