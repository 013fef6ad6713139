"""What a demo consists of: the study file, and one site for each hospital."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import yaml

from fedhealth.config.template import template_path
from fedhealth.durable import write_atomically
from fedhealth.errors import UsageError

StudyName = Literal["synthetic", "heart"]
# Training sizes follow the split of the study files; the weights of FedAvg are public numbers anyway.
SYNTHETIC_PATIENTS: Final = (400, 280, 200, 160)
HEART_TRAIN_SIZES: Final = {"cleveland": 180, "hungarian": 180, "switzerland": 70, "va": 120}


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSite:
    """One hospital of a demo."""

    site_id: str
    package: str
    options: Mapping[str, object] = field(default_factory=dict)
    train_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    """A demo, ready to run."""

    study: StudyName
    sites: tuple[DemoSite, ...]
    study_text: str


def make_plan(
    study: StudyName,
    *,
    num_sites: int | None,
    num_rounds: int | None,
    seed: int | None,
    is_small: bool,
) -> DemoPlan:
    """The embedded study, with the wished numbers.

    Args:
        study: which study.
        num_sites: hospitals; 2 to 4 (each has a process with torch).
        num_rounds: rounds of every run.
        seed: seed of cohort and study.
        is_small: the smallest generated cohort, for a quick look and for tests.

    Raises:
        UsageError: FH-USAGE-040 a number is out of range.
    """
    template = template_path(study)
    if is_small and study == "synthetic":
        template = template.with_name("study-tests.yaml")
    content = yaml.safe_load(template.read_text("utf-8"))
    if seed is not None:
        content["seed"] = seed
    if num_rounds is not None:
        _require("--rounds", num_rounds, 1, 1000)
        for run in content["runs"]:
            run["num_rounds"] = num_rounds
    sites = _heart_sites(num_sites) if study == "heart" else _synthetic_sites(num_sites, content)
    return DemoPlan(study=study, sites=sites, study_text=yaml.safe_dump(content, sort_keys=False))


def write_study(plan: DemoPlan, folder: Path) -> Path:
    """Write the plan's study file."""
    path = folder / "study.yaml"
    write_atomically(path, plan.study_text.encode(), mode=0o644)
    return path


def _synthetic_sites(wished: int | None, content: Mapping[str, object]) -> tuple[DemoSite, ...]:
    number = 3 if wished is None else wished
    _require("--sites", number, 2, 4)
    size = _volume_size(content)
    scale = 1.0 if size >= 32 else 0.25  # noqa: PLR2004 - the small grid is for tests
    sites = []
    for index in range(number):
        patients = int(SYNTHETIC_PATIENTS[index] * scale)
        options = {
            "site_index": index,
            "num_sites": number,
            "num_patients": patients,
            "size": size,
            "seed": content["seed"],
        }
        sites.append(
            DemoSite(
                site_id=f"hospital-{index + 1}",
                package="synthetic",
                options=options,
                train_size=max(10, 10 * round(patients * 0.06)),
            )
        )
    return tuple(sites)


def _heart_sites(wished: int | None) -> tuple[DemoSite, ...]:
    if wished not in {None, len(HEART_TRAIN_SIZES)}:
        raise UsageError(
            "FH-USAGE-040",
            f"--sites {wished}: the heart study has four hospitals.",
            fix="Leave --sites out.",
        )
    return tuple(
        DemoSite(site_id=name, package="heart", options={"hospital": name}, train_size=size)
        for name, size in HEART_TRAIN_SIZES.items()
    )


def _volume_size(content: Mapping[str, object]) -> int:
    data = content["data"]
    modalities = data["modalities"] if isinstance(data, dict) else []
    return next(int(m["shape"][0]) for m in modalities if m["kind"] == "volume")


def _require(option: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UsageError(
            "FH-USAGE-040",
            f"{option} {value} is not between {low} and {high}.",
            fix="A real federation has no such limit; a demo runs on one machine.",
        )
