"""What `fedhealth study check` says beyond the file's form: plug-ins, limits, and whether to federate at all.

Options of strategies are checked by `cli.study_check`, since strategies are Flower's.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedhealth import plugins
from fedhealth.config.blocks import modality_blocks
from fedhealth.config.study import RunPlan, Study
from fedhealth.config.variants import check_variants
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.contracts.update_encoding import encoded_size, encoding_of
from fedhealth.errors import ConfigError, PrivacyError

SMALL_COHORT = 3
"""With two sites, each can subtract its own update from the result and has the other's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One remark on a study. An error means that the study cannot run."""

    level: Literal["error", "warning", "note"]
    code: str
    text: str


def check_study(study: Study, *, build: bool = False) -> list[Finding]:
    """All findings, errors first. `build` also builds the model of every run, which imports torch."""
    findings = [*_plugins(study), *_federation(study), *_release(study), *_pooling(study)]
    if build and not any(finding.level == "error" for finding in findings):
        findings += _build(study)
    return in_order(findings)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Errors, then warnings, then notes."""
    order = ("error", "warning", "note")
    return sorted(findings, key=lambda finding: order.index(finding.level))


def require_no_errors(path: Path, findings: list[Finding]) -> None:
    """Raise if there is an error among the findings.

    Raises:
        ConfigError: with the code of the first error.
    """
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        raise ConfigError(
            errors[0].code,
            "\n".join(f"{path} {finding.text}" for finding in errors),
            why="The study cannot run as it is.",
            fix="Correct the file, or install what it names; then check again.",
        )


def _error(code: str, text: str) -> Finding:
    return Finding(level="error", code=code, text=text)


def _plugins(study: Study) -> Iterator[Finding]:
    wanted: list[tuple[plugins.Group, str]] = [
        ("fedhealth.tasks", study.task.name),
        ("fedhealth.models", study.model.name),
        ("fedhealth.training", study.training.name),
        *(("fedhealth.strategies", run.strategy.name) for run in study.runs),
    ]
    for variant in () if study.site_models is None else study.site_models.variants.values():
        wanted.append(("fedhealth.models", variant.model.name))
        wanted += [] if variant.task is None else [("fedhealth.tasks", variant.task.name)]
    for group, name in dict.fromkeys(wanted):
        try:
            plugins.find(group, name)
        except ConfigError as error:
            yield _error(error.code, f"{error.what} {error.why} {error.fix}")


def _federation(study: Study) -> Iterator[Finding]:
    federation = study.federation
    if federation.min_cohort < SMALL_COHORT:
        text = (
            f"federation.min_cohort is {federation.min_cohort}: of two sites, each can work out the "
            f"other's update from the result. Write {SMALL_COHORT} or more where the sites must not."
        )
        yield Finding(level="warning", code="FH-CONFIG-024", text=text)
    if federation.cohort_wait_s > federation.round_deadline_s * 24:
        text = "federation.cohort_wait_s is over 24 times round_deadline_s; is it meant in seconds?"
        yield Finding(level="warning", code="FH-CONFIG-025", text=text)


def _release(study: Study) -> Iterator[Finding]:
    exact = study.release.metric_digits
    many = 3
    if exact > many:
        text = (
            f"release.metric_digits is {exact}: metrics of a small validation side with so many digits "
            f"can tell single patients. {many} or fewer is the usual choice."
        )
        yield Finding(level="warning", code="FH-CONFIG-026", text=text)


def _pooling(study: Study) -> Iterator[Finding]:
    if study.policy.pooling_allowed:
        text = (
            "your policy allows pooling: simply pool the data and train one model on all of it. That is "
            "simpler, and as a rule at least as good; federation would add nothing but work. If pooling "
            "is in fact not allowed, write policy.pooling_allowed: false."
        )
        yield Finding(level="warning", code="FH-CONFIG-027", text=text)


def _metrics_of_the_task(study: Study) -> Iterator[Finding]:
    """Under privacy a site answers with all metrics or with none, so a missing one stops the study."""
    given = getattr(plugins.load("fedhealth.tasks", study.task.name), "metric_names", None)
    if given is None:
        return
    missing = [name for name in study.release.metrics if name not in {*given, "train_loss"}]
    if not missing:
        return
    is_noised = study.privacy is not None and study.privacy.release_metrics != "never"
    text = (
        f"release.metrics names {', '.join(missing)}, which task {study.task.name} does not give: "
        f"{'no site could answer' if is_noised else 'they will be missing'}. It gives {', '.join(given)}."
    )
    yield Finding(level="error" if is_noised else "warning", code="FH-CONFIG-038", text=text)


def _size_note(study: Study, run: RunPlan, spec: TensorSpec) -> Finding:
    encoding = encoding_of(study.federation.update_bits)
    there, back = spec.num_bytes, encoded_size(spec, encoding)
    size = f"{there / 1e6:.2f} MB each way a round."
    if encoding != "float32":
        size = (
            f"{there / 1e6:.2f} MB to each site a round and {back / 1e6:.3g} MB back, with "
            f"{study.federation.update_bits} bits a value {there / back:.2f} times less than in float32."
        )
    text = f"runs.{run.name}: {len(spec.entries)} tensors travel, {size}"
    return Finding(level="note", code="FH-CONFIG-028", text=text)


def _build(study: Study) -> list[Finding]:
    method = plugins.load("fedhealth.training", study.training.name)()
    findings = list(_metrics_of_the_task(study))
    for run in study.runs:
        try:
            tensors = method.initial_tensors(study, run)
        except (ConfigError, PrivacyError) as error:
            text = f"runs.{run.name}: {error.what} {error.why}"
            # What has no privacy for its reason is told in full: another choice is the way out.
            text += f" {error.fix}" if isinstance(error, PrivacyError) else ""
            findings.append(_error(error.code, text))
            continue
        try:
            blocks = modality_blocks(method, study, run, TensorSpec.of(tensors))
            check_variants(method, study, run, TensorSpec.of(tensors))
        except ConfigError as error:
            findings.append(
                _error(error.code, f"runs.{run.name}: {error.what} {error.why} {error.fix}")
            )
            continue
        for block in blocks:
            size = sum(tensors[name].size for name in block.tensors)
            text = (
                f"runs.{run.name}: {len(block.tensors)} tensors ({size} values) are averaged over the sites that "
                f"declare {block.modality}."
            )
            findings.append(Finding(level="note", code="FH-CONFIG-035", text=text))
        findings.append(_size_note(study, run, TensorSpec.of(tensors)))
    return findings
