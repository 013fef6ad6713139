"""Whole trainings in one process: through a strategy, through sums of secure aggregation, and by DP-SGD."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from noise_cells.masks import Keys, given
from noise_cells.studies import Setting
from privacy_utility import Hospital, context, train

from fedhealth.config.study import Study
from fedhealth.contracts.aggregation import SiteReply
from fedhealth.contracts.local_training import PatientMechanism, RoundTask, Vector
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.evidence.statements import Manifest
from fedhealth.flower.strategy_adapter import build_aggregator
from fedhealth.gate.gate import (
    NoiseTerms,
    ReleaseTerms,
    clear_update,
    noise_patient_sum,
    noise_update,
)
from fedhealth.gate.outbound import Cleared, ClearedSum
from fedhealth.privacy.distributed.plan import DistributedPlan
from fedhealth.privacy.randomness import Randomness
from fedhealth.secagg import fixed_point
from fedhealth.secagg.coordinates import kept_coordinates
from fedhealth.secagg.layout import MaskedLayout
from fedhealth.secagg.mask_stream import Words
from fedhealth.secagg.round_settings import distributed_plan, rotation_seed, round_layout
from fedhealth.site.local_round import clip_wish, training_settings
from fedhealth.training.supervised import SupervisedSession, SupervisedTraining


def dp_sgd(
    study: Study, setting: Setting, multiplier: float, hospitals: list[Hospital], state: Path
) -> Vector:
    """One step a round with all patients: the model after the last one.

    The weight of a hospital is what its own sum was divided by, so that all patients count the same: the mean is the
    sum of all clipped gradients and all noises over the sum of sizes.
    """
    method, run = SupervisedTraining(), study.runs[0]
    tensors = method.initial_tensors(study, run)
    spec, sizes = TensorSpec.of(tensors), [one.train_size for one in hospitals]
    sessions = [method.open_session(study, run, spec, context(one, state)) for one in hospitals]
    vector = spec.flatten(tensors)
    for number in range(1, run.num_rounds + 1):
        updates = []
        for session, size in zip(sessions, sizes, strict=True):
            mechanism = PatientMechanism(
                sampling_rate=1.0,
                noise_multiplier=multiplier,
                clipping_norm=setting.clipping_norm,
                expected_batch_size=float(size),
                num_steps=1,
            )
            updates.append(train(session, spec, vector, task(run.name, number, {}, mechanism)))
        vector = np.average(updates, axis=0, weights=sizes).astype(np.float32)
    return vector


class Federation:
    """One run: its sites, its strategy and, where the study has masks, its sums."""

    def __init__(self, study: Study, hospitals: list[Hospital], state: Path) -> None:
        method, self.study, self.run = SupervisedTraining(), study, study.runs[0]
        tensors = method.initial_tensors(study, self.run)
        self.spec = TensorSpec.of(tensors)
        self.vector, self.num_cut = self.spec.flatten(tensors), 0
        self.hospitals = sorted(hospitals, key=lambda one: one.name)
        self.sessions = [
            method.open_session(study, self.run, self.spec, context(one, state))
            for one in self.hospitals
        ]
        floor = study.federation.min_cohort
        self.aggregator = build_aggregator(self.run, self.spec, min_cohort=floor, study=study)
        self.keys = Keys(study, [one.name for one in self.hospitals], state)

    def run_all(self) -> Vector:
        """All rounds: the last model."""
        names = [one.name for one in self.hospitals]
        for number in range(1, self.run.num_rounds + 1):
            config = self.aggregator.configure(number, self.vector, names)
            manifest = self.keys.manifest(self.spec, self.vector, number, config)
            members = zip(self.hospitals, self.sessions, strict=True)
            if manifest.masking is None:
                replies = [
                    reply(one.name, one.train_size, self._train(session, manifest))
                    for one, session in members
                ]
            else:
                digest = self.keys.digest(manifest)
                layout = given(round_layout(manifest, digest, self.study))
                words = [
                    self._words(session, one.train_size, manifest, layout)
                    for one, session in members
                ]
                total = self.keys.open(words, manifest, layout, self.vector)
                self.num_cut += total.num_cut or 0
                replies = [reply("sum", total.weight, given(total.vector), len(names))]
            self.vector = self.aggregator.aggregate(number, iter(replies)).vector
        return self.vector

    def _train(self, session: SupervisedSession, manifest: Manifest) -> Vector:
        return given(self._cleared(session, manifest).vector)

    def _cleared(self, session: SupervisedSession, manifest: Manifest) -> Cleared:
        settings = training_settings(manifest)
        update = session.train(self.vector, task(self.run.name, manifest.round_number, settings))
        session.commit(manifest.round_number)
        clip = clip_wish(manifest, self.vector)
        terms = ReleaseTerms(spec=self.spec, metrics=(), metric_digits=3, clip=clip)
        return clear_update(update.tensors, train_metrics={}, evaluate_metrics={}, terms=terms)

    def _words(
        self, session: SupervisedSession, size: int, manifest: Manifest, layout: MaskedLayout
    ) -> Words:
        """What a site puts under its mask: as `site.masking.RoundMask` does."""
        digest = self.keys.digest(manifest)
        plan = distributed_plan(self.study, self.spec.num_elements)
        if plan is not None:
            whole = self._noised(session, manifest, noise_terms(self.study, plan, digest)).whole
            return fixed_point.with_check_words(whole, layout)
        change = np.subtract(self._train(session, manifest), self.vector, dtype=np.float32)
        kept = kept_coordinates(digest, change.size, given(manifest.masking).kept_share)
        update = fixed_point.SumInput(
            update=change if kept is None else change[kept],
            weight=size,
            train_metrics={},
            evaluate_metrics={},
        )
        return fixed_point.encode(update, layout, Randomness.from_os())

    def _noised(
        self, session: SupervisedSession, manifest: Manifest, terms: NoiseTerms
    ) -> ClearedSum:
        if terms.plan.unit == "patient":
            return noise_patient_sum(session.patient_gradients(self.vector, never), terms)
        return noise_update(self._cleared(session, manifest), self.vector, terms)


def noise_terms(study: Study, plan: DistributedPlan, digest: str) -> NoiseTerms:
    """As `site.masking.RoundMask` makes them."""
    return NoiseTerms(
        plan=plan,
        rotation_seed=rotation_seed(digest),
        most_patients=given(study.secure_aggregation).max_train_size,
        randomness=Randomness.from_os(),
    )


def task(
    run_name: str,
    number: int,
    settings: Mapping[str, float | bool],
    mechanism: PatientMechanism | None = None,
) -> RoundTask:
    return RoundTask(
        run_name=run_name,
        round_number=number,
        attempt=1,
        strategy_config=settings,
        is_cancelled=never,
        mechanism=mechanism,
    )


def reply(name: str, weight: float, vector: Vector, num_sites: int = 1) -> SiteReply:
    return SiteReply(
        site_id=name,
        weight=float(weight),
        load_vector=lambda: vector,
        train_metrics={},
        evaluate_metrics={},
        num_sites=num_sites,
    )


def never() -> bool:
    return False
