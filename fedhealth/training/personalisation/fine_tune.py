"""Fine-tuning at the end: the final shared model, trained on at the site. Called when that model is asked for.

FedAvg followed by local fine-tuning is a baseline that personalised methods have to beat (Wang et al. 2019,
"Federated Evaluation of On-device Personalization", arXiv 1910.10252; Chen, Gao, Kuang, Li, Ding 2022, "pFL-Bench").
Nothing of it can influence a release: it happens after the run's last message, and nothing is sent afterwards. It is
therefore done without noise, and the model that it gives is **not** differentially private: whoever gets that model can
learn about the site's patients.
"""

from typing import TYPE_CHECKING

from fedhealth.config.personalisation import FineTuneOptions
from fedhealth.config.study import OptimizerConfig
from fedhealth.contracts.data import SplitName
from fedhealth.contracts.local_training import SiteContext, Vector
from fedhealth.contracts.tensors import vector_digest
from fedhealth.data.batch import PatientDataset
from fedhealth.data.split import split_patients
from fedhealth.errors import TrainingError
from fedhealth.models.seeds import derive_seed
from fedhealth.training.frozen_encoders import apply_frozen_encoders
from fedhealth.training.learner import Learner, dump, load, spec_of
from fedhealth.training.local_steps import StepPlan, run_steps
from fedhealth.training.personalisation.state import state_store
from fedhealth.training.personalisation.work import Tensors
from fedhealth.training.supervised import supervised_options

if TYPE_CHECKING:
    from fedhealth.config.study import RunPlan, Study


def fine_tuned(study: "Study", run: "RunPlan", vector: Vector, site: SiteContext) -> Tensors:
    """The site's own model from this final vector: from disk if it was made before, and else made now and kept.

    Args:
        study: the study.
        run: with personalisation fine_tune.
        vector: the final shared tensors, flat, on the run's spec.
        site: cohort and state folder.

    Raises:
        TrainingError: FH-TRAIN-004 the training diverged, FH-TRAIN-005 there is no training patient, FH-TRAIN-006 the
            file is damaged.
        SiteDataError: a volume cannot be read.
    """
    learner = Learner(study, run, device=site.device)
    store, digest = state_store(site, run, learner), vector_digest(vector)
    kept = store.newest()
    if kept is not None and store.trained_from(kept[0]) == digest:
        return kept[1]
    options = FineTuneOptions.model_validate(run.personalisation_options)
    load(learner.shared, spec_of(learner.shared).unflatten(vector))
    dataset = PatientDataset(
        split_patients(site.load_cohort())[SplitName.TRAIN],
        learner.contract,
        memory_limit_bytes=supervised_options(study).memory_limit_bytes,
    )
    if len(dataset) == 0:
        raise TrainingError(
            "FH-TRAIN-005",
            "this site has no patient on the training side.",
            why="Without a patient there is nothing to fine-tune on.",
            fix="Use the shared model of this run.",
        )
    apply_frozen_encoders(
        learner,
        (dataset,),
        batch_size=supervised_options(study).evaluation_batch_size,
        cache_dir=site.cache_dir,
    )
    config = study.training.model_copy(
        update={
            "optimizer": OptimizerConfig(name="sgd", learning_rate=options.learning_rate),
            "local_epochs": options.epochs,
            "local_steps": None,
        }
    )
    seed = derive_seed(study.seed, "fine tune", run.name, site.site_id)
    run_steps(
        learner,
        dataset,
        StepPlan(config=config, seed=seed, proximal_mu=0.0, is_cancelled=lambda: False),
    )
    own = dump(learner.shared)
    store.save(run.num_rounds, own, model_sha256=digest)
    return own
