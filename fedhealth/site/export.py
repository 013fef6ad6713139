"""`model export` at a site: its own model, personal tensors included, as a MONAI bundle with its card."""

from pathlib import Path
from typing import TYPE_CHECKING

from fedhealth.errors import EvidenceError, PrivacyError
from fedhealth.report.model_bundle import BundleParts, bundle_files, installed_versions
from fedhealth.report.model_card import ModelCard, ModelFacts, WordsOfCard, model_card
from fedhealth.report.write import read_rounds
from fedhealth.site.own_model import OwnModel

if TYPE_CHECKING:
    from fedhealth.report.record import RoundRecord


def export_own_model(
    own: OwnModel,
    words: WordsOfCard,
    *,
    records: Path | None,
    license_text: str | None,
    allow_unprotected: bool,
) -> tuple[dict[str, bytes], ModelCard]:
    """The files of the bundle, and its card. Nothing is sent.

    Args:
        own: the model.
        words: of the person who exports.
        records: folder with the run's round records, as the server's reports have them; None: the card says that
            they were not at hand.
        license_text: content of the bundle's LICENSE.
        allow_unprotected: whether tensors that were trained without differential privacy may go into the bundle.

    Raises:
        PrivacyError: FH-EXPORT-004 there are such tensors, and they may not.
        EvidenceError: a record does not read; FH-EXPORT-005 the records are not of this model.
    """
    from fedhealth.models.exported import ModelDescription

    if own.num_personal_tensors and not (own.is_covered or allow_unprotected):
        raise PrivacyError(
            "FH-EXPORT-004",
            f"{own.num_personal_tensors} tensors of this model were trained here without differential privacy.",
            why="They never left this site. Whoever gets them may find out who was among its patients.",
            fix="Export the global model at the server, or give --allow-unprotected if whoever gets this one may see "
            "what it tells of your patients.",
        )
    unseen = own.unseen_modalities
    description = ModelDescription.of(own.pinned.study, own.weights, unseen_modalities=unseen)
    versions = installed_versions()
    facts = ModelFacts(
        kind="site",
        site_id=own.pinned.config.site_id,
        study_sha256=own.pinned.study_sha256,
        run_name=own.run.name,
        rounds_done=own.run.num_rounds,
        model_sha256=own.model_sha256,
        weights_sha256=description.weights_sha256,
        personal_tensors=own.num_personal_tensors,
        personal_tensors_are_private=own.is_covered,
        missing_tensors=0,
        fedhealth_version=versions["fedhealth"],
        is_simulation=own.is_simulation,
        unseen_modalities=unseen,
    )
    found = [] if records is None else _records_of(own, records)
    card = model_card(own.pinned.study, facts, found, words)
    parts = BundleParts(
        card=card,
        contract=own.learner.contract,
        description=description.to_bytes(),
        weights=own.weights,
        num_outputs=own.learner.task.num_outputs,
        versions=versions,
        license_text=license_text,
    )
    return bundle_files(parts), card


def _records_of(own: OwnModel, folder: Path) -> "list[RoundRecord]":
    found = read_rounds(folder)
    is_ours = found and all(
        (r.study_sha256, r.run_name) == (own.pinned.study_sha256, own.run.name) for r in found
    )
    if not is_ours or found[-1].model_out_sha256 != own.model_sha256:
        raise EvidenceError(
            "FH-EXPORT-005",
            "the records do not end in the model that this site received.",
            why="A card with the metrics of another model would be wrong.",
            fix="Take the whole folder of this run's reports from the server, after its last round.",
        )
    return found
