"""`site check`: is this site's data fit for the study? Reads everything, sends nothing."""

from typing import Any

from fedhealth.config.blocks import sums_over_all
from fedhealth.config.load import load_site, load_study
from fedhealth.config.site import SiteConfig
from fedhealth.config.study import Study
from fedhealth.config.variants import own_study
from fedhealth.contracts.data import SplitName
from fedhealth.data.check import CohortSummary, check_cohort
from fedhealth.data.shared import load_shared_cohort
from fedhealth.models.weight_files import find_file, pinned_file
from fedhealth.privacy.accounting.accountants import compose
from fedhealth.privacy.accounting.plan import plan_site
from fedhealth.privacy.policy import check_plan, check_sums
from fedhealth.secagg.site_rules import check_site_rules
from fedhealth.site.account import account_delta, sums_of_study
from fedhealth.site.declarations import check_declarations
from fedhealth.site.home import SiteHome
from fedhealth.site.sessions import site_package


def check_site(home: SiteHome, study_id: str | None) -> dict[str, Any]:
    """Load the cohort through the site package and check every record and volume.

    Works before `site join`, so that wrong data is found before anybody is asked to admit the site.

    Raises:
        SiteDataError: the cohort does not keep the data contract; FH-DATA-034 and 035, see `check_declarations`.
        ConfigError: site.yaml is wrong or its package is not installed; FH-CONFIG-042 that of the study's shared data;
            FH-MODEL-032 the study's pretrained weights are
            not in this home's folder weights, FH-MODEL-033 they are others.
        UsageError: which study is not clear.
        PrivacyError: the study asks for more than this site's policy allows.
        GateRefusedError: FH-SECAGG-011 to 013 the study masks less than this site asks for.
    """
    chosen = home.choose_study(study_id)
    config = load_site(home.config_path)
    study = own_study(load_study(home.study(chosen).study), config.variant)
    weights = pinned_file(study.model.options)
    if weights is not None:
        find_file(weights)
    package = site_package(home, config.package.name, dict(config.package.options), config.data_dir)
    summary = check_cohort(package.load_cohort(study.data.to_contract(seed=study.seed)))
    warnings = list(summary.warnings)
    if config.declared_train_size > 2 * max(1, summary.train_size):
        warnings.append(
            f"declared_train_size is {config.declared_train_size}, the training side has "
            f"{summary.train_size} patients: this site would weigh more than its data."
        )
    if 2 * config.declared_train_size < summary.train_size:
        warnings.append(
            f"declared_train_size is {config.declared_train_size}, the training side has "
            f"{summary.train_size} patients: privacy plans divide by the declared size, and delta would be too "
            "large for so many patients."
        )
    warnings += _modalities(config, study, summary)
    warnings += _shared(home, study)
    warnings += _privacy(config, study)
    return {
        "site_id": config.site_id,
        "study_id": chosen,
        "train_size": summary.train_size,
        "summary": summary.as_json(),
        "table": [
            [str(name), side.num_patients, _labels(dict(side.per_label))]
            for name, side in summary.sides.items()
        ],
        "missing": _missing([dict(side.lacking) for side in summary.sides.values()]),
        "warnings": warnings,
    }


def _modalities(config: SiteConfig, study: Study, summary: CohortSummary) -> list[str]:
    """The declaration against the training side: what `average_encoders_over` relies on."""
    declared = config.declared_modalities(study)
    having = summary.sides[SplitName.TRAIN].having
    check_declarations(
        study,
        declared,
        [name for name, count in having.items() if count],
        # Of a modality without tensors of its own it asks for the same: to know, it would have to build the model.
        summed=study.modalities if sums_over_all(study) else (),
    )
    warnings = []
    for name in study.modalities:
        if name not in declared and having[name]:
            what = (
                "its encoder is not trained here"
                if study.averages_by_modality
                else "it is trained on all the same, since the study averages over all sites"
            )
            warnings.append(f"patients have {name}, which site.yaml does not declare: {what}.")
    return warnings


def _shared(home: SiteHome, study: Study) -> list[str]:
    """The study's shared cohort, from its package as the worker will load it."""
    shared = study.training.shared_data
    if shared is None:
        return []
    contract = study.data.to_contract(seed=study.seed)
    summary = check_cohort(load_shared_cohort(shared, contract, cache_dir=home.cache))
    said = f"{summary.num_patients} shared patients of package {shared.package!r} are mixed into training"
    return [f"{said}; they are in no evaluation, and must be public or made up."]


def _privacy(config: SiteConfig, study: Study) -> list[str]:
    """What this site's own policy says about the study, before anybody is asked to admit the site."""
    check_site_rules(study, config)
    plan, sums = plan_site(study, config.declared_train_size), sums_of_study(study)
    if plan is None and sums is not None:
        delta = account_delta(study, plan, config.declared_train_size)
        check_sums(
            config.privacy,
            sums.planned,
            delta=delta,
            noise_multiplier=sums.noise_multiplier,
            clipping_norm=sums.clipping_norm,
        )
        epsilon = compose(sums.planned, delta=delta).epsilon
        said = f"epsilon {epsilon:.3g} (delta {delta:.2g}), as long as enough of them are honest."
        return [f"the study hides a patient behind noise of all sites together: {said}"]
    check_plan(config.privacy, plan, declared_train_size=config.declared_train_size)
    if plan is None:
        return [
            "the study has no privacy section: nothing bounds what a model tells about a patient."
        ]
    if config.privacy.max_epsilon_per_dataset is None:
        return ["privacy.max_epsilon_per_dataset is not set: no limit holds over several studies."]
    return []


def _labels(per_label: dict[int | str, int]) -> str:
    return ", ".join(f"{label}: {count}" for label, count in per_label.items())


def _missing(sides: list[dict[str, int]]) -> list[list[object]]:
    names = sorted({name for side in sides for name in side})
    return [[name, sum(side.get(name, 0) for side in sides)] for name in names]
