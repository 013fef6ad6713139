"""The worker's training sessions: cohort loaded once, one session for the run at work."""

from functools import cache
from pathlib import Path
from typing import cast

from fedhealth import plugins
from fedhealth.config.blocks import modality_blocks, summed_modalities
from fedhealth.config.frozen import frozen_digest
from fedhealth.config.study import Study
from fedhealth.contracts.blocks import ModalityBlock
from fedhealth.contracts.cohort import Cohort, SitePackage
from fedhealth.contracts.data import SplitName
from fedhealth.contracts.local_training import LocalSession, SiteContext, TrainingMethod, Vector
from fedhealth.contracts.tensors import TensorSpec, vector_bytes, vector_from_bytes
from fedhealth.data.split import split_patients
from fedhealth.durable import write_atomically
from fedhealth.errors import AggregationError, ConfigError
from fedhealth.evidence.statements import Manifest
from fedhealth.site.declarations import check_declarations
from fedhealth.site.home import Pinned, SiteHome, StudyFolder

FLOAT32_BYTES = 4


def site_package(
    pinned_or_home: "SiteHome", package: str, options: dict[str, object], data_dir: Path
) -> SitePackage:
    """The hospital's own package, ready to load its cohort.

    Raises:
        ConfigError: it is not installed, or its options are wrong.
    """
    factory = plugins.load("fedhealth.sites", package)
    made = factory(data_dir=data_dir, options=options, cache_dir=pinned_or_home.cache)
    return cast("SitePackage", made)


class Sessions:
    """Opens the session of a run when its first manifest comes; only one is kept in memory."""

    def __init__(self, home: SiteHome, pinned: Pinned) -> None:
        self._home = home
        self._pinned = pinned
        self._open: tuple[str, LocalSession, TensorSpec] | None = None
        self._has_own_split = False
        self._load_cohort = cache(self._load_cohort_once)
        self._frozen = cache(self._frozen_once)
        self._method = load_training_method(pinned.study.training.name)
        _require_personalisation(self._method, pinned.study)
        self._specs = {
            run.name: TensorSpec.of(self._method.initial_tensors(pinned.study, run))
            for run in pinned.study.runs
        }
        self._blocks = {
            run.name: modality_blocks(self._method, pinned.study, run, self._specs[run.name])
            for run in pinned.study.runs
        }
        self._summed = {
            run.name: summed_modalities(self._method, pinned.study, run, self._specs[run.name])
            for run in pinned.study.runs
        }

    @property
    def largest_model_bytes(self) -> int:
        """Size of the largest global vector of this study: the most that a frame may carry."""
        return max(spec.num_bytes for spec in self._specs.values())

    def open(self, run_name: str) -> tuple[LocalSession, TensorSpec]:
        """The session of a run, and the tensor spec that this site derives from its own study file.

        Raises:
            ConfigError: a plug-in is missing or refuses its options.
            SiteDataError: the cohort does not keep the data contract.
        """
        if self._open is None or self._open[0] != run_name:
            self._open = None  # free the other run's model first
            self._open = (run_name, *self._make(run_name))
        return self._open[1], self._open[2]

    def blocks(self, run_name: str) -> tuple[ModalityBlock, ...]:
        """Tensors of each modality, as this site derives them; none where every tensor is averaged over all sites."""
        return self._blocks[run_name]

    def frozen_sha256(self, run_name: str) -> str | None:
        """Digest of the tensors that nobody trains, as this site makes or loads them; None without any."""
        return self._frozen(run_name)

    def summed_modalities(self, run_name: str) -> tuple[str, ...]:
        """Modalities whose tensors are in a masked sum over all sites, as this site derives them."""
        return self._summed[run_name]

    def context(self, run_name: str) -> SiteContext:
        """What a training method gets from this site."""
        config = self._pinned.config
        return SiteContext(
            site_id=config.site_id,
            load_cohort=self._load_cohort,
            state_dir=self._pinned.folder.state / run_name,
            cache_dir=self._home.cache,
            device=config.device,
            num_threads=config.num_threads,
        )

    @property
    def has_own_split(self) -> bool:
        """Whether the site package gave its own split: nobody else can tell whose side a patient is on."""
        return self._has_own_split

    def num_training_patients(self) -> int:
        """Patients on the training side; a patient with several records counts once. Never leaves the site."""
        side = split_patients(self._load_cohort())[SplitName.TRAIN]
        return len({patient.patient_id for patient in side})

    def training_modalities(self) -> frozenset[str]:
        """Modalities that some patient on the training side has. Never leaves the site."""
        side = split_patients(self._load_cohort())[SplitName.TRAIN]
        return frozenset(name for patient in side for name in (*patient.tables, *patient.volumes))

    def check_declarations(self) -> None:
        """In a study with masks, what this site declared is what its patients have.

        Raises:
            SiteDataError: FH-DATA-034 and 035, see `declarations`; or the cohort does not keep the data contract.
        """
        study, summed = self._pinned.study, {n for names in self._summed.values() for n in names}
        if study.secure_aggregation is None or not (summed or any(self._blocks.values())):
            return
        check_declarations(
            study,
            self._pinned.admission.site.modalities,
            self.training_modalities(),
            summed=sorted(summed),
        )

    def keep_global_model(self, manifest: Manifest, vector: Vector) -> None:
        """Keep the incoming model of the closing trip: it is the result, for `site evaluate`."""
        if manifest.kind == "evaluate":
            path = global_model_path(self._pinned, manifest.run_name)
            write_atomically(path, bytes(vector_bytes(vector)))

    def _make(self, run_name: str) -> tuple[LocalSession, TensorSpec]:
        study = self._pinned.study
        spec = self._specs[run_name]
        context = self.context(run_name)
        context.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self._method.open_session(study, study.run(run_name), spec, context), spec

    def _frozen_once(self, run_name: str) -> str | None:
        study = self._pinned.study
        return frozen_digest(self._method, study, study.run(run_name))

    def _load_cohort_once(self) -> Cohort:
        config = self._pinned.config
        package = site_package(
            self._home, config.package.name, dict(config.package.options), config.data_dir
        )
        study = self._pinned.study
        cohort = package.load_cohort(study.data.to_contract(seed=study.seed))
        self._has_own_split = cohort.fixed_split is not None
        return cohort


def load_training_method(name: str) -> TrainingMethod:
    """An installed training method by name. Raises ConfigError."""
    loaded = plugins.load("fedhealth.training", name)
    try:
        return cast("TrainingMethod", loaded())
    except TypeError:
        raise ConfigError(
            "FH-CONFIG-013",
            f"training method {name!r} cannot be made without arguments.",
            fix="Its entry point must name a class with the shape of TrainingMethod.",
        ) from None


def _require_personalisation(method: TrainingMethod, study: Study) -> None:
    """A method that ignores it would train as ever, and accounts and reports would name what never ran."""
    names = [run.personalisation for run in study.runs if run.personalisation != "none"]
    if names and not getattr(method, "supports_personalisation", False):
        raise ConfigError(
            "FH-TRAIN-062",
            f"training method {study.training.name!r} does not know personalisation {names[0]}.",
            why="It would train as without it, and every report would say otherwise.",
            fix="Use `supervised`, or personalisation none.",
        )


def model_sizes(study: Study) -> dict[str, int]:
    """Elements of the model that travels, by run.

    Raises:
        ConfigError: the study's training method or model cannot be made.
    """
    method = load_training_method(study.training.name)
    return {
        run.name: TensorSpec.of(method.initial_tensors(study, run)).num_elements
        for run in study.runs
    }


def global_model_path(pinned: Pinned, run_name: str) -> Path:
    """Where the closing model of a run lies at this site."""
    return closing_model_path(pinned.folder, run_name)


def closing_model_path(folder: StudyFolder, run_name: str) -> Path:
    """The same by the study's folder alone, for who only lists what is there."""
    return folder.results / f"{run_name}.f4le"


def read_global_model(pinned: Pinned, run_name: str) -> Vector:
    """The closing model of a finished run, flat.

    Raises:
        AggregationError: FH-TENSOR-003 the file is no row of float32.
    """
    payload = global_model_path(pinned, run_name).read_bytes()
    if len(payload) % FLOAT32_BYTES:
        raise AggregationError(
            "FH-TENSOR-003",
            f"the model of run {run_name} that is kept here has {len(payload)} bytes, which is no row of float32.",
            why="The file is damaged: it is not the model that came with the closing trip.",
            fix="Restore the study's results folder of this home from a backup.",
        )
    return vector_from_bytes(payload)
