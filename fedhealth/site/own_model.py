"""A site's own model of a finished run: the global tensors that it received, and what it keeps to itself.

Called by `model export`, `model recalibrate` and `predict` with a site's home.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fedhealth.config.personalisation import BEGINS_UNTRAINED, KEEPS_MODEL, TRAINS_WITHOUT_NOISE
from fedhealth.contracts.tensors import vector_digest
from fedhealth.errors import ConfigError, UsageError
from fedhealth.site.home import Pinned, SiteHome, load_pinned
from fedhealth.site.sessions import Sessions, global_model_path, read_global_model

if TYPE_CHECKING:
    from fedhealth.config.study import RunPlan
    from fedhealth.models.exported import OpenedModel
    from fedhealth.training.learner import Learner


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnModel:
    """A run's model at this site.

    Attributes:
        weights: bytes of the weights file of all its parameters.
        model_sha256: digest of the shared tensors, as round records name it.
        is_simulation: one party played all hospitals.
    """

    pinned: Pinned
    run: "RunPlan"
    sessions: Sessions = field(repr=False)
    learner: "Learner" = field(repr=False)
    weights: bytes = field(repr=False)
    model_sha256: str
    is_simulation: bool

    @property
    def num_personal_tensors(self) -> int:
        """How many tensors are this site's own: those that never travel, or all where it has another whole model."""
        has_own_model = self.run.personalisation in KEEPS_MODEL
        return len(self.learner.shared if has_own_model else self.learner.private)

    @property
    def unseen_modalities(self) -> tuple[str, ...]:
        """Modalities that this site does not declare and that tensors of its own read: nobody trained those."""
        from fedhealth.models.build import modality_prefixes

        own = dict(self.learner.private)
        if self.run.personalisation in BEGINS_UNTRAINED:
            own |= self.learner.shared
        declared = self.pinned.config.declared_modalities(self.pinned.study)
        try:
            prefixes = modality_prefixes(self.learner.model)
        except ConfigError:
            return ()  # the model does not say what reads a modality
        return tuple(
            name
            for name in self.pinned.study.modalities
            if name not in declared and any(t.startswith(prefixes.get(name, ())) for t in own)
        )

    @property
    def is_covered(self) -> bool:
        """Whether the training of the site's own tensors is in its patients' account."""
        has_noise = self.run.personalisation not in TRAINS_WITHOUT_NOISE
        return self.pinned.study.privacy is not None and has_noise

    def opened(self) -> "OpenedModel":
        """The model as `predict` uses it."""
        import hashlib

        from fedhealth.models.exported import OpenedModel

        return OpenedModel(
            model=self.learner.model,
            task=self.learner.task,
            contract=replace(self.learner.contract, has_labels=False),
            weights_sha256=hashlib.sha256(self.weights).hexdigest(),
            unseen=self.unseen_modalities,
        )


def open_own_model(home: SiteHome, study_id: str | None, run_name: str | None) -> OwnModel:
    """The model of a finished run, with this site's own tensors where it has any.

    Args:
        home: the site's home.
        study_id: which study; None where the home holds one.
        run_name: which run; None where the study has one.

    Raises:
        UsageError: FH-USAGE-084 no such run, or it is not finished here, FH-USAGE-083 the training method has no such
            model; FH-USAGE-010 which study is not clear.
        TrainingError: FH-TRAIN-006 the site's own tensors are damaged, FH-TRAIN-009 it has none.
        AggregationError: FH-TENSOR-003 the received model is damaged.
        ConfigError, IdentityError: see `load_pinned`.
    """
    from fedhealth.models.exported import weights_bytes
    from fedhealth.training.evaluation import load_run_model
    from fedhealth.training.learner import Learner

    pinned = load_pinned(home, home.choose_study(study_id))
    study = pinned.study
    if study.training.name != "supervised":
        raise UsageError(
            "FH-USAGE-083",
            f"training method {study.training.name!r} has no model that could be used here.",
            why="Only supervised training has a model that reads patients.",
            fix="Ask the method's authors how its result is used.",
        )
    finished = [r.name for r in study.runs if global_model_path(pinned, r.name).exists()]
    if run_name is None and len(finished) == 1:
        run_name = finished[0]
    if run_name not in finished:
        raise UsageError(
            "FH-USAGE-084",
            f"run {run_name!r} is not finished at this site."
            if run_name
            else "which run is not clear.",
            why=f"Finished here: {', '.join(finished) or 'none'}. The model comes with the closing trip of a run.",
            fix="Give a finished one with --run, or wait for the server (`fedhealth site status`).",
        )
    run, sessions = study.run(run_name), Sessions(home, pinned)
    vector = read_global_model(pinned, run_name)
    site = sessions.context(run_name)
    learner = Learner(study, run, device=site.device)
    load_run_model(learner, run, vector, site, study)
    return OwnModel(
        pinned=pinned,
        run=run,
        sessions=sessions,
        learner=learner,
        weights=weights_bytes(dict(learner.model.named_parameters())),
        model_sha256=vector_digest(vector),
        is_simulation=home.is_simulation,
    )
