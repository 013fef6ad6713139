"""`fedhealth benefit STUDY.yaml --site FILE ...`: every method on the same held-out patients, all on one machine.

For each seed the study is simulated anew: split, initial weights, noise. Then each hospital's own tuned model, every
run, one model of all data, and for each hospital a federation that it stayed out of, are judged on its test patients.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from fedhealth.config.load import study_digest
from fedhealth.config.site import SiteConfig
from fedhealth.config.study import PluginChoice, RunPlan, Study
from fedhealth.config.variants import own_study
from fedhealth.errors import UsageError
from fedhealth.report.benefit.analysis import Setting, SitePredictions, analyse_simulation
from fedhealth.report.benefit.learning_curves import (
    curves_alone,
    curves_of_run,
    mean_curve,
    told_metric,
)
from fedhealth.report.benefit.record import (
    LEFT_OUT,
    LOCAL,
    POOLED,
    BenefitRecord,
    CurveFact,
    MethodFact,
)
from fedhealth.simulation.simulate import Simulation, simulate
from fedhealth.statistics.judged import Judged
from fedhealth.training.evaluation import scores_on_test
from fedhealth.training.held_out import HeldOutScores, judged_of
from fedhealth.training.judging import held_out_ids, learning_curve, measure_of, missing_shares
from fedhealth.training.pooled import train_pooled_tuned
from fedhealth.training.tuned_alone import train_alone_tuned

SMALLEST_FEDERATION: Final = 2


@dataclass(frozen=True, slots=True)
class SiteScores:
    """What is known of one hospital so far: scores by method and seed, and a number for each of its patients."""

    judged: dict[str, list[Judged]] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    missing: dict[str, float] = field(default_factory=dict)
    curves: list[CurveFact] = field(default_factory=list)

    def add(self, method: str, scores: HeldOutScores, patients: Sequence[str]) -> None:
        """One method's scores with one seed; `patients` are the ids of the owners, in their order."""
        for patient in patients:
            self.numbers.setdefault(patient, len(self.numbers))
        numbers = np.array([self.numbers[patient] for patient in patients], dtype=np.int64)
        self.judged.setdefault(method, []).append(judged_of(scores, numbers))


def benefit_of_simulation(
    study: Study,
    sites: Sequence[SiteConfig],
    folder: Path,
    *,
    num_seeds: int,
    say: Callable[[str], None] = lambda _: None,
) -> BenefitRecord:
    """Simulate the study `num_seeds` times and compare all methods.

    Args:
        study: its seed is the first one; the others follow.
        sites: the hospitals.
        folder: holds the simulations; an interrupted comparison goes on with those that are done.
        num_seeds: splits, initial weights and noise; at least 1.
        say: told what is being done.

    Raises:
        UsageError: FH-BENEFIT-030 nothing to judge in this study, FH-BENEFIT-031 a hospital took part with one seed
            and not with another, FH-BENEFIT-032 hospitals predict different things.
        FedHealthError: as `simulate`, `train_alone_tuned` and `train_pooled_tuned`.
    """
    if study.training.name != "supervised":
        raise UsageError(
            "FH-BENEFIT-030",
            f"training method {study.training.name!r} has no held-out result.",
            why="Only supervised training is judged on test patients.",
            fix="Simulate it with `fedhealth simulate` and look at the reports.",
        )
    _require_one_task(study)
    if not has_one_model(study):
        say("Sites differ in model: there is no pooled model and none of a site that stayed out.")
    found: dict[str, SiteScores] = {}
    means: list[CurveFact] = []
    for number in range(num_seeds):
        seeded = study.model_copy(update={"seed": study.seed + number})
        say(f"seed {seeded.seed} ({number + 1} of {num_seeds}): simulating {len(study.runs)} runs")
        done = simulate(seeded, sites, folder / f"seed-{seeded.seed}")
        _require_same(found, done, is_first=number == 0)
        _judge(done, sites, found, say)
        if number == 0:
            means = _run_curves(done, found)
    return analyse_simulation(
        _setting(study, found, means),
        measure_of(study),
        [
            SitePredictions(
                site_id=site_id, judged=site.judged, missing=site.missing, curves=site.curves
            )
            for site_id, site in found.items()
        ],
    )


def _judge(
    done: Simulation,
    sites: Sequence[SiteConfig],
    found: dict[str, SiteScores],
    say: Callable[[str], None],
) -> None:
    """Add the scores of one seed."""
    study, plain = done.study, plain_run(done.study)
    is_first = not found
    variants = {config.site_id: config.variant for config in sites}
    contexts = {s: done.context(s, plain.name) for s in done.site_ids}
    patients = {s: held_out_ids(context) for s, context in contexts.items()}
    say(f"seed {study.seed}: each hospital alone, tuned")
    for site_id, context in contexts.items():
        site, own = found.setdefault(site_id, SiteScores()), own_study(study, variants[site_id])
        tuned = train_alone_tuned(own, plain, context)
        site.add(LOCAL, tuned.scores, patients[site_id])
        if is_first:
            site.missing.update(missing_shares(study, context))
            site.curves.extend(curves_alone(learning_curve(tuned)))
        for run in study.runs:
            scores = scores_on_test(
                own, run, done.runs[run.name].vector, done.context(site_id, run.name)
            )
            site.add(_method(run).key, scores, patients[site_id])
    if not has_one_model(study):
        return
    say(f"seed {study.seed}: all data in one place, tuned")
    for site_id, scores in train_pooled_tuned(study, plain, contexts).items():
        found[site_id].add(POOLED, scores, patients[site_id])
    if can_leave_out(study, len(contexts)):
        for site_id in contexts:
            say(f"seed {study.seed}: the federation without {site_id}")
            scores = _left_out(done, sites, site_id)
            found[site_id].add(LEFT_OUT, scores, patients[site_id])


def _left_out(done: Simulation, sites: Sequence[SiteConfig], site_id: str) -> HeldOutScores:
    """The model of a federation that this hospital stayed out of, on its test patients."""
    others = [config for config in sites if config.site_id != site_id]
    study = without_one(done.study, len(done.site_ids) - 1)
    run = plain_run(study)
    other = simulate(study, others, done.folder.parent / f"{done.folder.name}-without-{site_id}")
    vector = other.runs[run.name].vector
    return scores_on_test(study, run, vector, done.context(site_id, plain_run(done.study).name))


def plain_run(study: Study) -> RunPlan:
    """The first run without personalisation; the first run without its personalisation where all have one."""
    plain = [run for run in study.runs if run.personalisation == "none"]
    if plain:
        return plain[0]
    return study.runs[0].model_copy(
        update={
            "personalisation": "none",
            "strategy": PluginChoice(name="fedavg"),
            "control_variates": False,
        }
    )


def has_one_model(study: Study) -> bool:
    """Whether one model can stand for all hospitals: not where they chose variants."""
    return study.site_models is None or not study.site_models.variants


def can_leave_out(study: Study, num_sites: int) -> bool:
    """Whether a federation is left when one hospital stays out: with noise under the masks, enough to make it."""
    masks = study.secure_aggregation
    noise = masks.distributed_privacy if masks is not None else None
    fewest = masks.min_survivors if masks is not None and noise is not None else SMALLEST_FEDERATION
    return num_sites - 1 >= max(fewest, SMALLEST_FEDERATION)


def without_one(study: Study, num_others: int) -> Study:
    """The study of the others: one plain run, and as many hospitals as there are.

    With privacy all runs stay, since they share the budget: a study of one run would have less noise. Masks alone are
    left out: they change nothing in a model but its last digits.
    """
    plain, masks = plain_run(study), study.secure_aggregation
    is_noised = masks is not None and masks.distributed_privacy is not None
    runs = study.runs if study.privacy is not None or is_noised else ()
    federation = study.federation.model_copy(
        update={"min_cohort": min(study.federation.min_cohort, num_others)}
    )
    kept = tuple(plain if run.name == plain.name else run for run in runs) or (plain,)
    has_blocks = any(run.personalisation == "private_blocks" for run in kept)
    return study.model_copy(
        update={
            "runs": kept,
            "site_models": study.site_models if has_blocks else None,
            "secure_aggregation": masks if is_noised else None,
            "federation": federation,
        }
    )


def _require_one_task(study: Study) -> None:
    variants = () if study.site_models is None else study.site_models.variants.values()
    if any(variant.task is not None or variant.label is not None for variant in variants):
        raise UsageError(
            "FH-BENEFIT-032",
            "hospitals of this study predict different things.",
            why="Their metrics cannot stand in one comparison.",
            fix="Ask each hospital with `fedhealth benefit --home`.",
        )


def _require_same(found: Mapping[str, SiteScores], done: Simulation, *, is_first: bool) -> None:
    if not is_first and set(found) != set(done.site_ids):
        changed = ", ".join(sorted(set(found) ^ set(done.site_ids)))
        raise UsageError(
            "FH-BENEFIT-031",
            f"with one seed {changed} took part, and with another not.",
            why="Differences over seeds would be of different hospitals.",
            fix="Look at why it did not start (its data, or its policy); or leave it out.",
        )


def _run_curves(done: Simulation, found: Mapping[str, SiteScores]) -> list[CurveFact]:
    """Add each hospital's curves, where the study releases metrics in the clear; the runs' mean curves."""
    study = done.study
    metric = told_metric(measure_of(study).primary, study.release.metrics)
    means: list[CurveFact] = []
    for run in study.runs:
        records, key = done.runs[run.name].records, _method(run).key
        means.extend(mean_curve(records, metric=metric, method=key))
        for site_id, curves in curves_of_run(records, metric=metric, method=key).items():
            if site_id in found:
                found[site_id].curves.extend(curves)
    return means


def _method(run: RunPlan) -> MethodFact:
    return MethodFact.of_run(run.name, is_personal=run.personalisation != "none")


def _setting(study: Study, found: Mapping[str, SiteScores], means: Sequence[CurveFact]) -> Setting:
    others = []
    if any(POOLED in site.judged for site in found.values()):
        others.append(MethodFact(key=POOLED, kind="pooled"))
    if any(LEFT_OUT in site.judged for site in found.values()):
        others.append(MethodFact(key=LEFT_OUT, kind="left_out"))
    masks = study.secure_aggregation
    return Setting(
        study_id=study.id,
        study_sha256=study_digest(study),
        has_patient_privacy=study.privacy is not None
        or (masks is not None and masks.distributed_privacy is not None),
        pooling_allowed=study.policy.pooling_allowed,
        methods=(
            MethodFact(key=LOCAL, kind="local"),
            *(_method(run) for run in study.runs),
            *others,
        ),
        seed=study.seed,
        curves=means,
    )
