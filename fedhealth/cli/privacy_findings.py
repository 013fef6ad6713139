"""What `fedhealth study check` says about a study's privacy section. Without that section: nothing."""

from collections.abc import Iterator

from fedhealth import plugins
from fedhealth.config.check import Finding
from fedhealth.config.privacy import PatientPrivacy
from fedhealth.config.study import Study
from fedhealth.errors import ConfigError
from fedhealth.privacy.accounting.metrics import METRIC_BOUNDS
from fedhealth.privacy.accounting.plan import DELTA_SHARE

WHY_NOT = {
    "auc": "it compares pairs of patients, so one patient moves it by an amount that depends on the others",
    "macro_auc": "it compares pairs of patients, as the AUC does",
    "c_index": "it compares pairs of patients, as the AUC does",
    "balanced_accuracy": "one patient of a rare class moves it by an amount that depends on the others of that class",
    "integrated_brier": "its weights come from the censoring of all patients",
    "calibration_error": "it depends on which patients share a bin with which others",
    "train_loss": "it is taken from training patients while they are trained on",
}
"""Why a metric is not a mean of one bounded number per patient."""


def privacy_findings(study: Study) -> Iterator[Finding]:
    """Errors, warnings and notes on `study.privacy`."""
    if study.privacy is None:
        return
    yield from _metrics(study, study.privacy)
    yield from _training(study)
    yield from _sizes(study, study.privacy)


def _metrics(study: Study, privacy: PatientPrivacy) -> Iterator[Finding]:
    asked = study.release.metrics
    wrong = [name for name in asked if name not in METRIC_BOUNDS]
    kept = [name for name in asked if name in METRIC_BOUNDS] or list(METRIC_BOUNDS)
    is_silent = privacy.release_metrics == "never"
    fix = f"Write release.metrics: [{'' if is_silent else ', '.join(kept)}]"
    if wrong:
        reasons = "; ".join(f"{name}: {WHY_NOT.get(name, 'it has no bound')}" for name in wrong)
        text = f"release.metrics cannot all be noised under privacy ({reasons}). {fix}"
        yield Finding(level="error", code="FH-PRIVACY-044", text=text)
    elif is_silent and asked:
        text = (
            "release.metrics names metrics, and privacy.release_metrics is never: none of them will leave "
            f"a site. {fix}, or set privacy.release_metrics to closing or every_round."
        )
        yield Finding(level="warning", code="FH-PRIVACY-045", text=text)


def _training(study: Study) -> Iterator[Finding]:
    name = study.training.name
    try:
        method = plugins.load("fedhealth.training", name)
    except ConfigError as error:
        if error.code == "FH-CONFIG-012":
            text = f"whether training {name} protects patients is not checked: it does not import here."
            yield Finding(level="warning", code="FH-PRIVACY-047", text=text)
        return  # `check_study` has told of one that is not installed
    if not getattr(method, "supports_patient_privacy", False):
        text = (
            f"training {name} cannot clip and noise every patient, and the study has privacy: no site would "
            "send anything. Choose another method, such as supervised, or leave out privacy."
        )
        yield Finding(level="error", code="FH-PRIVACY-046", text=text)


def _sizes(study: Study, privacy: PatientPrivacy) -> Iterator[Finding]:
    if study.training.local_epochs is not None:
        text = (
            "training.local_epochs is counted in the size that a site declares: local_epochs x "
            "ceil(declared_train_size / batch_size) steps a round, each with patients drawn by chance."
        )
        yield Finding(level="note", code="FH-PRIVACY-048", text=text)
    if privacy.delta is None:
        return
    largest = _largest_size(privacy.delta)
    if largest == 0:
        text = (
            f"privacy.delta is {privacy.delta:g}: no site of any size can take it, since it is above "
            f"{DELTA_SHARE:g} / declared_train_size everywhere. Leave it out, and each site takes the delta of its "
            f"size, or write at most {DELTA_SHARE:g} / the largest declared_train_size (1e-4 for 1000 patients)."
        )
        yield Finding(level="error", code="FH-PRIVACY-043", text=text)
    else:
        text = (
            f"privacy.delta is {privacy.delta:g}: sites that declare more than {largest} training patients "
            "will refuse the study. Leave it out, and each site takes the delta of its size."
        )
        yield Finding(level="warning", code="FH-PRIVACY-049", text=text)


def _largest_size(delta: float) -> int:
    """The largest declared size that `check_delta` accepts with that delta; 0: none."""
    near = int(DELTA_SHARE / delta)
    # The quotient is rounded: its neighbours decide by the comparison that sites make.
    fitting = [
        size for size in (near - 1, near, near + 1) if size > 0 and delta <= DELTA_SHARE / size
    ]
    return max(fitting, default=0)
