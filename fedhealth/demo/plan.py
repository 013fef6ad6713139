"""What a demo consists of: the study file, and one site.yaml for each hospital."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import yaml

from fedhealth.config.template import template_path
from fedhealth.durable import write_atomically
from fedhealth.errors import UsageError

StudyName = Literal["synthetic", "heart"]
SYNTHETIC_PATIENTS: Final = (400, 280, 200, 160)
TRAIN_SHARE: Final = 0.6
"""Of the study files' split; rounded to tens, as a hospital might declare it."""
MASKED_SITES: Final = 3
"""Of two hospitals each would see the other's update in the sum: masks begin with three."""
HEART_HOSPITALS: Final = ("cleveland", "hungarian", "switzerland", "va")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSite:
    """One hospital of a demo."""

    site_id: str
    package: str
    options: Mapping[str, object] = field(default_factory=dict)
    train_size: int
    privacy: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    """A demo, ready to run."""

    study: StudyName
    sites: tuple[DemoSite, ...]
    study_text: str
    has_privacy: bool
    has_masks: bool


def make_plan(
    study: StudyName,
    *,
    num_sites: int | None,
    num_rounds: int | None,
    seed: int | None,
    is_small: bool,
    has_privacy: bool = True,
) -> DemoPlan:
    """The embedded study and its hospitals' policies, with the wished numbers.

    Args:
        study: which study.
        num_sites: hospitals; 2 to 4 (each has a process with torch).
        num_rounds: rounds of every run.
        seed: seed of cohort and study.
        is_small: the smallest generated cohort, for a quick look and for tests.
        has_privacy: false takes the privacy section out of the study, and the policies out of the sites (which
            refuse a study without noise).

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
    if not has_privacy:
        content.pop("privacy", None)
    sites = _heart_sites(num_sites) if study == "heart" else _synthetic_sites(num_sites, content)
    if len(sites) < MASKED_SITES:
        content.pop("secure_aggregation", None)
        content["federation"]["min_cohort"] = 2
    if has_privacy:
        sites = tuple(replace(site, privacy=_policy(template, site)) for site in sites)
    return DemoPlan(
        study=study,
        sites=sites,
        study_text=yaml.safe_dump(content, sort_keys=False),
        has_privacy=has_privacy,
        has_masks="secure_aggregation" in content,
    )


def write_study(plan: DemoPlan, folder: Path) -> Path:
    """Write the plan's study file."""
    path = folder / "study.yaml"
    write_atomically(path, plan.study_text.encode(), mode=0o644)
    return path


def write_site(site: DemoSite, home: Path) -> None:
    """Write the hospital's site.yaml: its package, its size and its privacy policy."""
    content = {
        "schema_version": 1,
        "site_id": site.site_id,
        "package": {"name": site.package, "options": dict(site.options)},
        "data_dir": "data",
        "declared_train_size": site.train_size,
        "privacy": dict(site.privacy),
    }
    home.mkdir(parents=True, mode=0o700)
    text = yaml.safe_dump(content, sort_keys=False)
    write_atomically(home / "site.yaml", text.encode())


def _policy(template: Path, site: DemoSite) -> dict[str, object]:
    """The privacy policy of the shipped site file that is this site's, or of its study's first one."""
    shipped = sorted(template.parent.glob("site-*.yaml"))
    named = [path for path in shipped if path.stem == f"site-{site.site_id}"]
    content = yaml.safe_load((named or shipped)[0].read_text("utf-8"))
    return dict(content["privacy"])


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
                train_size=_declared(patients),
            )
        )
    return tuple(sites)


def _heart_sites(wished: int | None) -> tuple[DemoSite, ...]:
    if wished not in {None, len(HEART_HOSPITALS)}:
        raise UsageError(
            "FH-USAGE-040",
            f"--sites {wished}: the heart study has four hospitals.",
            fix="Leave --sites out.",
        )
    template = template_path("heart")
    sites = []
    for name in HEART_HOSPITALS:
        shipped = yaml.safe_load(template.with_name(f"site-{name}.yaml").read_text("utf-8"))
        size = int(shipped["declared_train_size"])
        options = {"hospital": name}
        sites.append(DemoSite(site_id=name, package="heart", options=options, train_size=size))
    return tuple(sites)


def _declared(num_patients: int) -> int:
    return max(10, 10 * round(num_patients * TRAIN_SHARE / 10))


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
