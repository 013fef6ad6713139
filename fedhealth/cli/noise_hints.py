"""What other settings would do to the noise: worked out, not guessed. Called by `study_privacy`."""

from collections.abc import Iterator
from dataclasses import dataclass

from fedhealth import plugins
from fedhealth.config.study import RunPlan, Study
from fedhealth.privacy.accounting.accountants import compose
from fedhealth.privacy.accounting.plan import plan_site


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """The same study with one setting changed, at a site of one size."""

    what: str
    declared_train_size: int
    noise_multiplier: float
    noise_per_coordinate: float
    planned_steps: int
    epsilon: float
    delta: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Trained numbers of a model, private ones included: each gets noise."""

    name: str
    num_parameters: int


def alternatives(study: Study, declared_train_size: int) -> tuple[Alternative, ...]:
    """Twice the batch, half the rounds, half the steps: noise and epsilon of each, for one size of site.

    Raises:
        PrivacyError: as `plan_site`.
    """
    planned = []
    for what, changed in _changed(study):
        plan = plan_site(changed, declared_train_size)
        if plan is None:
            continue
        planned.append(
            Alternative(
                what=what,
                declared_train_size=declared_train_size,
                noise_multiplier=plan.noise_multiplier,
                noise_per_coordinate=plan.noise_multiplier
                * plan.clipping_norm
                / plan.expected_batch_size,
                planned_steps=plan.planned_steps,
                epsilon=compose(plan.planned_events(), delta=plan.delta).epsilon,
                delta=plan.delta,
            )
        )
    return tuple(planned)


def _changed(study: Study) -> Iterator[tuple[str, Study]]:
    training = study.training
    doubled = training.model_copy(update={"batch_size": 2 * training.batch_size})
    yield (
        f"batch_size {doubled.batch_size} (twice)",
        study.model_copy(update={"training": doubled}),
    )
    halved = tuple(
        run.model_copy(update={"num_rounds": max(1, run.num_rounds // 2)}) for run in study.runs
    )
    yield "half the rounds (rounded down)", study.model_copy(update={"runs": halved})
    for key in ("local_steps", "local_epochs"):
        now = getattr(training, key)
        if now is not None and now > 1:
            fewer = training.model_copy(update={key: now // 2})
            yield f"{key} {now // 2} (half)", study.model_copy(update={"training": fewer})


def model_sizes(study: Study) -> tuple[ModelSize, ...]:
    """Trained numbers of the study's model, and of the same model with frozen image encoders if it has that option.

    Imports torch.

    Raises:
        ConfigError: the model cannot be made.
    """
    sizes = [ModelSize(name="the model", num_parameters=_num_parameters(study))]
    option = "freeze_image_encoder"
    trains_all = study.model.options.get("trainable", "all") == "all"
    if study.model.name == "multimodal" and trains_all and not study.model.options.get(option):
        options = {**study.model.options, option: True}
        frozen = study.model_copy(
            update={"model": study.model.model_copy(update={"options": options})}
        )
        fewer = _num_parameters(frozen)
        if fewer < sizes[0].num_parameters:
            sizes.append(ModelSize(name="with frozen image encoders", num_parameters=fewer))
    return tuple(sizes)


def _num_parameters(study: Study) -> int:
    """Of the whole model: a private head is clipped and noised with the rest, and only not sent."""
    method = plugins.load("fedhealth.training", study.training.name)()
    whole = RunPlan.model_validate(study.runs[0].alone())
    return sum(tensor.size for tensor in method.initial_tensors(study, whole).values())
