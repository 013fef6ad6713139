"""The words of the report: one human sentence for each code of a record. The record holds codes only."""

from typing import Final

from fedhealth.config.privacy import Tuning
from fedhealth.contracts.codes import DropCode
from fedhealth.contracts.update_encoding import UpdateEncoding
from fedhealth.report.attestation import Attestation
from fedhealth.report.privacy_facts import CompositionScope
from fedhealth.report.record import NotEvidenced, SiteStatus, VoidReason

BANNER: Final = "Evidence report. It does not determine compliance."
SIMULATION: Final = (
    "All hospitals of this page were simulated by one party: keys, budgets and messages are made up, "
    "and nothing here is evidence about a real hospital."
)

STATUS: Final[dict[SiteStatus, str]] = {
    SiteStatus.CONTRIBUTED: "Contributed",
    SiteStatus.UNUSED: "Answered, not used",
    SiteStatus.DROPPED: "Dropped out",
    SiteStatus.NOT_INVITED: "Not invited",
}

STATUS_SENTENCE: Final[dict[SiteStatus, str]] = {
    SiteStatus.CONTRIBUTED: "Its answer was verified and used.",
    SiteStatus.UNUSED: "Its answer was verified and then discarded, because the round was void.",
    SiteStatus.DROPPED: "It did not contribute.",
    SiteStatus.NOT_INVITED: "It was not connected when the round began.",
}

DROP: Final[dict[DropCode, str]] = {
    DropCode.SITE_ERROR: "An error stopped the work at the site. Only this code left the site; its own log has more.",
    DropCode.SITE_DATA: "The site's data did not keep the study's data contract, so nothing was trained.",
    DropCode.TRAINING_FAILED: "Local training could not go on with this model or these settings.",
    DropCode.CANCELLED: "The site stopped its work before it was done, so nothing was sent.",
    DropCode.REFUSED_BY_GATE: "The site's own outbound gate refused to release the result.",
    DropCode.NON_FINITE: "The result held values that are not numbers; the site's gate refused to release it.",
    DropCode.WRONG_SPEC: "The result did not have the agreed tensors; it was refused.",
    DropCode.MANIFEST_INVALID: "The site could not verify the round's instructions and refused to work.",
    DropCode.MANIFEST_REPLAYED: "The site had already answered these instructions and refused to work on them again.",
    DropCode.STUDY_MISMATCH: "The site has another version of the study file and refused to work.",
    DropCode.COHORT_REFUSED: "The site did not accept the hospitals named for this round and refused to work.",
    DropCode.PRESENCE_MISMATCH: "The site refused: the round gave it other modalities than it declared, or divided the "
    "model by modality otherwise than the study.",
    DropCode.FROZEN_MISMATCH: "The site refused: the tensors that nobody trains are others there than at the server, "
    "so that its update would have meant another model.",
    DropCode.SITE_BUSY: "The site was still at work on an earlier round.",
    DropCode.PRIVACY_POLICY: "The hospital's own privacy policy does not allow what the study asked for; nothing was "
    "trained.",
    DropCode.PRIVACY_BUDGET: "The hospital's privacy budget does not cover this round; nothing was trained.",
    DropCode.LEDGER_REFUSED: "The site's privacy ledger could not record the round's cost, or had already recorded it; "
    "nothing new was trained.",
    DropCode.SECAGG_BLOCK_FLOOR: "The site refused: the sum of an encoder would be about fewer hospitals than its own "
    "floor allows.",
    DropCode.SECAGG_COHORT_ORDER: "The site refused: the hospitals of the round were not in the agreed order.",
    DropCode.SECAGG_FLOOR: "The site refused: the sum would be about fewer hospitals than its own floor allows.",
    DropCode.SECAGG_LISTS: "The site refused to unmask: a list left out a hospital, or the site itself.",
    DropCode.SECAGG_NO_AGREEMENT: "The site refused to unmask: too few hospitals had agreed to the list.",
    DropCode.SECAGG_ORDER: "The site refused to unmask: the lists were not in the agreed order.",
    DropCode.SECAGG_OVERLAP: "The site refused to unmask: a hospital was on both lists, which would open its update.",
    DropCode.SECAGG_REQUIRED: "The site takes part under masks only, and the round had none.",
    DropCode.SECAGG_SECOND_LIST: "The site refused to unmask a second list of hospitals for one round.",
    DropCode.SECAGG_SETTINGS: "The site refused: the round masks otherwise than the study says.",
    DropCode.SECAGG_STRANGER: "The site refused: the round named a hospital that it had not pinned.",
    DropCode.SECAGG_THRESHOLD: "The site refused: too few hospitals could have removed the masks.",
    DropCode.SECAGG_UNKNOWN_ROUND: "The site refused to unmask a round that it did not answer last.",
    DropCode.SECAGG_UNKNOWN_SITE: "The site refused to unmask: a list named a hospital outside of the round.",
    DropCode.MASK_KEY_INVALID: "The site refused: a hospital's key for masks was not signed by that hospital for this "
    "run.",
    DropCode.SHARE_COMMITMENT_INVALID: "The site refused to unmask: what it was shown is not what the others signed.",
    DropCode.SHARES_UNREADABLE: "The site could not open what another hospital had sealed for it.",
    DropCode.DEADLINE: "The site did not finish before the round's deadline.",
    DropCode.WORKER_UNREACHABLE: "The site was connected, but its worker in the data zone did not answer.",
    DropCode.PROTOCOL: "The site's answer could not be read as an answer to this round.",
    DropCode.NODE_UNAVAILABLE: "The connection to the site was lost during the round.",
    DropCode.NO_REPLY: "No answer arrived.",
    DropCode.BAD_SIGNATURE: "The answer did not carry a valid signature of the site; it was refused.",
    DropCode.CONTRIBUTION_INVALID: "The signed answer did not fit this round or its own content; it was refused.",
}

VOID: Final[dict[VoidReason, str]] = {
    VoidReason.MINIMUM_COHORT: "Fewer hospitals answered than the study's minimum.",
    VoidReason.MINIMUM_OWNERS: "Of the hospitals that declared a modality, too few answered: the sum would have shown "
    "what single ones did to its encoder.",
    VoidReason.AGGREGATION_FAILED: "The answers could not be combined into a usable model.",
    VoidReason.MASKS_NOT_REMOVED: "Too few hospitals helped to remove the masks, so the sum stayed unreadable.",
    VoidReason.SUM_NOT_USABLE: "The masks came off, and the sum was not one that these hospitals can have.",
    VoidReason.INTERRUPTED: "The server was stopped before the round was over.",
}

NOT_EVIDENCED: Final[dict[NotEvidenced, str]] = {
    NotEvidenced.PRIVACY_ACCOUNTING: "A bound on the privacy cost of every hospital's patients: this record has "
    "none that covers all of them.",
    NotEvidenced.SECURE_AGGREGATION: "That the server was unable to read single updates: it could read each one.",
    NotEvidenced.SIGNATURES_IN_RECORD: "The sites' signatures: the server checked them; here are digests only.",
    NotEvidenced.TAMPER_EVIDENT_LOG: "That no earlier record was replaced or removed.",
    NotEvidenced.COUNTERSIGNATURES: "That the sites have seen this record.",
    NotEvidenced.DATA_QUALITY: "The quality of the data.",
    NotEvidenced.LABEL_TRUTH: "That labels are true.",
    NotEvidenced.DATA_USED_IS_DATA_DECLARED: "That a site trained on the data that it declared.",
    NotEvidenced.OTHER_OUTBOUND_PATHS: "That nothing left a site by a path other than this federation.",
    NotEvidenced.REIDENTIFICATION_FROM_MODEL: "That no patient can be recognised from the model.",
    NotEvidenced.CLINICAL_SAFETY: "Clinical safety or benefit.",
    NotEvidenced.ABSENCE_OF_BIAS: "Equal performance across groups of patients.",
    NotEvidenced.LAWFULNESS_OF_PROCESSING: "The legal basis of the processing.",
    NotEvidenced.CONSENT: "Consent of patients.",
}

ATTESTATION: Final[dict[Attestation, tuple[str, str]]] = {
    Attestation.PROVEN: ("Proven", "anyone can recompute it from this record or the study file"),
    Attestation.SERVER_OBSERVED: ("Server-observed", "the consortium's server saw it"),
    Attestation.SITE_ATTESTED: ("Site-attested", "the site's word, sent under its signing key"),
    Attestation.DECLARED: ("Declared", "written down by a person in the study or at admission"),
    Attestation.NOT_EVIDENCED: ("Not evidenced", "listed so that its absence can be seen"),
}

NUMBERS: Final[dict[UpdateEncoding, str]] = {
    "float32": "float32 numbers",
    "int8": "changes in 8 bits each, rounded at random without bias, with a float32 scale for at most 1 024 of them,",
}

METRIC: Final[dict[str, tuple[str, str]]] = {
    "auc": ("AUC", "higher is better"),
    "accuracy": ("Accuracy", "higher is better"),
    "log_loss": ("Log loss", "lower is better"),
    "brier": ("Brier score", "lower is better"),
    "calibration_error": ("Calibration error", "lower is better"),
    "train_loss": ("Training loss", "lower is better"),
    "macro_auc": ("AUC, mean over classes", "higher is better"),
    "balanced_accuracy": ("Accuracy, mean over classes", "higher is better"),
    "subset_accuracy": ("All labels right", "higher is better"),
    "c_index": ("Concordance index", "higher is better"),
    "integrated_brier": ("Integrated Brier score", "lower is better"),
    "dice": ("Dice overlap", "higher is better"),
}

PERSONALISATION: Final[dict[str, str]] = {
    "none": "None: the whole model is shared.",
    "private_blocks": "Private blocks: what the study does not name as shared is trained at each hospital and never "
    "leaves it; hospitals may have different models.",
    "private_head": "Private head: each hospital trains its own head, which never leaves it.",
    "fedrep": "FedRep: each hospital trains its own head first, which never leaves it, and then the shared rest.",
    "local_norm": "Local normalisation: weights of normalisation layers are each hospital's own and never leave it.",
    "mr_mtl": "MR-MTL: each hospital has a model of its own, drawn to the mean of all; what leaves is its change.",
    "ditto": "Ditto: besides the shared model each hospital trains one of its own, which never leaves it.",
    "fine_tune": "Fine-tuning: each hospital may train the final model on, by itself; that model never leaves it.",
}

OWN_TENSORS_JUDGED: Final = "the shared model with each hospital's own tensors in it"
OWN_MODEL_JUDGED: Final = "each hospital's own model"

JUDGED: Final[dict[str, str]] = {
    "none": "the shared model",
    "private_blocks": OWN_TENSORS_JUDGED,
    "private_head": OWN_TENSORS_JUDGED,
    "fedrep": OWN_TENSORS_JUDGED,
    "local_norm": OWN_TENSORS_JUDGED,
    "mr_mtl": OWN_MODEL_JUDGED,
    "ditto": OWN_MODEL_JUDGED,
    "fine_tune": "the shared model, which no hospital has trained on yet",
}
"""Which model the metrics of a run are of."""

KEPT_BACK: Final[dict[str, str]] = {
    "private_head": " The hospital's private head is not among them.",
    "fedrep": " The hospital's private head is not among them.",
    "local_norm": " The hospital's own normalisation weights are not among them.",
    "private_blocks": " The hospital's private blocks are not among them.",
    "mr_mtl": " They are the incoming model plus the change of the hospital's own model.",
    "ditto": " The hospital's own model is not among them.",
}
"""Follows the sentence that says what an update holds."""

UNBOUNDED: Final = "No differential privacy: nothing bounds what can be learnt about a patient"
"""Ends with the hospital, or with a full stop."""

OWN_HOSPITAL: Final = (
    "Each patient's bound is that of their own hospital: there is no mean over hospitals. For somebody who is a "
    "patient of two hospitals the two bounds compose: to at most the sum of the epsilons, at the sum of the deltas."
)

STRONG_EPSILON: Final = 3.0
"""About ln 20: above it even odds may become more than 95 %. A reader is then told that the bound is weak."""


def odds(epsilon: float, factor: str) -> str:
    """An epsilon for a reader without statistics; `factor` is exp(epsilon) as it is shown."""
    said = (
        "In plain words: from all these releases together, the odds that anybody can infer whether one given patient "
        f"took part change by at most a factor of {factor} (exp of epsilon), except with chance delta."
    )
    if epsilon <= STRONG_EPSILON:
        return said
    return f"{said} As a worst case that is a weak bound: an audit, which attacks the model, shows more."


VOID_COST: Final = (
    "This round was void and changed no model, but it cost its patients what it cost: the answers had left their "
    "hospitals, and the accounts count them."
)

NO_ACCOUNT: Final = "No account of privacy is on record."

EPSILON_SOURCE: Final = (
    "Epsilon is computed from the mechanism events below. The events are the hospital's word."
)

SPEND_UNKNOWN: Final = (
    "Asked since their last account, and gave none (their ledgers may hold more than is shown):"
)
"""Ends with the hospitals' names."""

SEEDED: Final = (
    "Some of this noise came from a fixed seed, for tests only: who knows the seed can remove it."
)

KEPT_NOISED: Final[dict[str, str]] = {
    "private_head": "The private head was clipped and noised with the shared tensors, and did not leave.",
    "fedrep": "The private head was clipped and noised in steps of its own, and did not leave.",
    "local_norm": "The own normalisation weights were clipped and noised with the shared tensors, and did not leave.",
    "private_blocks": "Private blocks were clipped and noised with the shared tensors, and did not leave.",
    "mr_mtl": "The hospital's own model is made of the same noised steps.",
    "ditto": "The hospital's own model was clipped and noised in steps of its own, and did not leave.",
    "fine_tune": "A model that a hospital trains on after the run is made without noise: this bound is not about it.",
}


def honest_sites(num_honest: int) -> str:
    """The trust assumption of noise that sites add themselves."""
    return (
        f"Each hospital adds a part of the noise before the sum is opened. The bound counts on the noise of at least "
        f"{num_honest} honest sites in every sum: ones that added their part and tell nobody what it was."
    )


SCOPE: Final[dict[CompositionScope, str]] = {
    CompositionScope.THIS_STUDY_AT_THIS_SITE: "this study at this hospital",
    CompositionScope.THIS_RUN_AT_THE_SERVER: "this run at the server",
}

EVENT: Final[dict[str, str]] = {
    "poisson_subsampled_gaussian": "Training steps",
    "gaussian": "Noised release",
    "distributed_skellam": "Sum with noise from the sites",
    "unbounded": "Release without noise",
}

ADJACENCY: Final[dict[str, str]] = {"add_or_remove_one": "add or remove one"}

SAMPLER: Final[dict[str, str]] = {"poisson": "Poisson", "none": "none"}

NOT_COVERED: Final = (
    "Not in these numbers: when and how fast a hospital answers, which hospitals take part and why one drops out, the "
    "sizes of messages, the declared training size, settings that somebody chose after a look at patients' data, other "
    "studies on the same data (each hospital's ledger has those), and anything that leaves by another path."
)

BOTH_UNITS: Final = (
    "The two bounds are different: one is about the records of one patient, the other about all that one hospital "
    "sends. They are never added up or put in one number."
)


SEEDED_SITES: Final = (
    "The noise on the model came from a fixed seed, for tests only: who knows the seed can remove it. "
    "No badge is shown."
)


def large_epsilon(maximum: str) -> str:
    """Why an epsilon for hospitals gets no badge."""
    return (
        f"No badge is shown: an epsilon above {maximum} bounds next to nothing of what the model tells about a "
        "hospital."
    )


LARGE_DELTA: Final = (
    "No badge is shown: delta is not below 1 / number of hospitals, so publishing one hospital whole would be "
    "allowed."
)


def few_sites(num_sites: int, minimum: int) -> str:
    """What a site-level bound is worth with few sites."""
    return (
        f"With {num_sites} hospitals no badge is shown (fewer than {minimum}). Everybody knows who takes part, and "
        f"each hospital is 1/{num_sites} of the result: noise for a small epsilon would be as large as what it hides. "
        "Read it as a limit on one hospital's influence, not as protection to rely on."
    )


TUNING: Final[dict[Tuning, str]] = {
    "not_stated": "It does not say how its settings were chosen; epsilon holds if they were not tried on these "
    "patients.",
    "fixed_in_advance": "Its settings were fixed in advance, as the coordinator declares.",
    "public_or_synthetic_data": "Its settings were chosen on public or synthetic data, as the coordinator declares.",
}
"""Trying settings on the patients is a release of its own (Papernot and Steinke 2022, arXiv 2110.03620)."""
