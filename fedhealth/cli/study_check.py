"""The part of `fedhealth study check` that asks the strategies themselves. Imports flwr, but no torch."""

from collections.abc import Iterator

from fedhealth import plugins
from fedhealth.cli.masking_findings import masking_findings
from fedhealth.cli.privacy_findings import privacy_findings
from fedhealth.config.check import Finding, check_study, in_order
from fedhealth.config.study import Study
from fedhealth.errors import ConfigError, FedHealthError

NOT_INSTALLED = "FH-CONFIG-010"


def check_whole_study(study: Study, *, build: bool) -> list[Finding]:
    """Findings of `check_study`, of every run's strategy, of privacy and of masks, errors first."""
    findings = [
        *check_study(study, build=build),
        *_strategies(study),
        *(_personalisation(study) if build else ()),
        *_control_variates(study),
        *_shared_data(study),
        *privacy_findings(study),
        *masking_findings(study),
        *(_weights(study) if build else ()),
    ]
    return in_order(findings)


def _strategies(study: Study) -> Iterator[Finding]:
    """Make every run's strategy as the server will: unknown options and wrong values show here."""
    try:
        from fedhealth.flower.strategy_options import make_run_strategy
    except ImportError:
        text = "options of strategies are not checked: Flower is not installed here (fedhealth[server])."
        yield Finding(level="warning", code="FH-CONFIG-020", text=text)
        return
    for run in study.runs:
        try:
            make_run_strategy(study, run)
        except FedHealthError as error:
            if error.code == NOT_INSTALLED:  # `check_study` has said so
                continue
            is_wrong = isinstance(error, ConfigError)
            text = f"runs.{run.name}.strategy: {error.what} {error.why} {error.fix}"
            yield Finding(level="error" if is_wrong else "warning", code=error.code, text=text)


def _weights(study: Study) -> Iterator[Finding]:
    """What came of a file of pretrained weights; a file that does not fit is an error of `check_study`."""
    if study.model.name != "multimodal" or study.model.options.get("image_weights") != "file":
        return
    from fedhealth.models.multimodal import loaded_weights

    try:
        found = loaded_weights(study.data.to_contract(seed=study.seed), study.model.options)
    except ConfigError:
        return
    for modality, weights in found.items():
        unused = (
            f"{len(weights.unused)} others of the file are not used"
            if weights.unused
            else "the whole file"
        )
        text = (
            f"model: {weights.num_loaded} pretrained tensors are loaded for modality {modality!r}, {unused}; "
            f"name: {weights.title or 'not said'}; licence: {weights.licence or 'not said'}."
        )
        yield Finding(level="note", code="FH-CONFIG-037", text=text)


def _personalisation(study: Study) -> Iterator[Finding]:
    """A method that does not know it would train as ever, and reports would name what never ran."""
    runs = [run for run in study.runs if run.personalisation != "none"]
    if runs and _training_lacks(study, "supports_personalisation"):
        text = (
            f"runs.{runs[0].name}.personalisation: training method {study.training.name!r} does not know "
            f"{runs[0].personalisation}. Use `supervised`, or personalisation none."
        )
        yield Finding(level="error", code="FH-TRAIN-062", text=text)


def _control_variates(study: Study) -> Iterator[Finding]:
    """A method that does not know them would average zeros for ever, and call that scaffold."""
    runs = [run.name for run in study.runs if run.control_variates]
    if runs and _training_lacks(study, "supports_control_variates"):
        text = (
            f"runs.{runs[0]}.control_variates: training method {study.training.name!r} does not know control variates. "
            "Use `supervised`, or another strategy than scaffold."
        )
        yield Finding(level="error", code="FH-TRAIN-051", text=text)


def _shared_data(study: Study) -> Iterator[Finding]:
    """Every site needs the package; the coordinator need not have it, so that is a warning here."""
    shared = study.training.shared_data
    if shared is None:
        return
    text = (
        f"training.shared_data: every site gets the records of package {shared.package!r}. They must be public or "
        "made up: no privacy accounting covers them."
    )
    yield Finding(level="note", code="FH-CONFIG-043", text=text)
    try:
        plugins.find("fedhealth.sites", shared.package)
    except FedHealthError as error:
        text = f"training.shared_data: {error.what} It is needed at every site; `fedhealth site check` tells there."
        yield Finding(level="warning", code=error.code, text=text)
    if _training_lacks(study, "supports_shared_data"):
        text = (
            f"training.shared_data: training method {study.training.name!r} does not know shared data. "
            "Use `supervised`, or take the section out."
        )
        yield Finding(level="error", code="FH-TRAIN-054", text=text)


def _training_lacks(study: Study, ability: str) -> bool:
    """Whether the training method does not say that it can do something. Loads it, and torch with most methods."""
    try:
        method = plugins.load("fedhealth.training", study.training.name)
    except FedHealthError:  # `check_study` has said so, or it needs what is not installed here
        return False
    return not getattr(method, ability, False)
