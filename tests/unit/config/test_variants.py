"""Sites may differ in their model, in nothing that they share, and the study says in what."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from fedhealth.config.check import check_study
from fedhealth.config.load import load_site
from fedhealth.config.study import Study
from fedhealth.config.variants import own_study
from fedhealth.errors import ConfigError

FOLDER = Path(__file__).parents[3] / "configs" / "client-specific"
CONTENT: dict[str, Any] = yaml.safe_load((FOLDER / "study.yaml").read_text(encoding="utf-8"))


def changed(path: tuple[str, ...], value: object) -> dict[str, Any]:
    content: dict[str, Any] = deepcopy(CONTENT)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return content


def test_the_shipped_sites_choose_variants_that_the_shipped_study_has() -> None:
    study = Study.model_validate(CONTENT)
    variants = [load_site(FOLDER / f"site-{n}.yaml").variant for n in (1, 2, 3)]
    assert variants == ["wide", None, "records_only"]
    models = [own_study(study, variant).model.options["image_widths"] for variant in variants]
    assert models == [[16, 32], [4, 8], [4]]


def test_the_shipped_study_can_run() -> None:
    findings = check_study(Study.model_validate(CONTENT), build=True)
    assert [finding for finding in findings if finding.level == "error"] == []


def test_a_variant_changes_model_task_and_label_and_nothing_else() -> None:
    content = changed(("release", "metrics"), [])
    content["site_models"]["variants"]["wide"] |= {
        "task": {"name": "binary_classification", "options": {"positive_weight": 2.0}},
        "label": {"column": "outcome", "codes": [1, 2]},
    }
    study = Study.model_validate(content)
    own = own_study(study, "wide")
    assert own.task.options == {"positive_weight": 2.0}
    assert own.data.label.column == "outcome"
    assert own.data.modalities == study.data.modalities
    assert (own.training, own.runs, own.privacy, own.seed) == (
        study.training,
        study.runs,
        study.privacy,
        study.seed,
    )


def test_a_variant_that_the_study_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="FH-CONFIG-045"):
        own_study(Study.model_validate(CONTENT), "wider")


def test_a_label_of_a_variant_is_no_column_of_the_contract() -> None:
    content = changed(("release", "metrics"), [])
    content["site_models"]["variants"]["wide"]["label"] = {"column": "age", "codes": [0, 1]}
    with pytest.raises(ValidationError, match="repeat"):
        own_study(Study.model_validate(content), "wide")


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        (("model", "options", "table_hidden_size"), 8, "FH-MODEL-041"),
        (("model", "options", "embedding_size"), 4, "FH-MODEL-041"),
        (("model", "options", "fusion"), "concatenation", "FH-MODEL-041"),
        (("site_models", "shared_blocks"), ["no_such_block."], "FH-MODEL-040"),
        (("site_models", "shared_blocks"), ["encoders."], "FH-MODEL-041"),
        (("site_models", "variants", "wide", "model", "name"), "nope", "FH-CONFIG-010"),
    ],
    ids=["width", "embedding", "fusion", "nothing shared", "image encoder shared", "no such model"],
)
def test_study_check_refuses_variants_that_do_not_share_the_blocks(
    path: tuple[str, ...], value: object, code: str
) -> None:
    findings = check_study(Study.model_validate(changed(path, value)), build=True)
    assert [f.code for f in findings if f.level == "error"][:1] == [code]


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (("site_models",), None, "needs site_models"),
        (
            ("runs",),
            [{"name": "all", "num_rounds": 1, "personalisation": "none"}],
            "goes with personalisation private_blocks",
        ),
        (
            ("site_models", "variants", "wide", "task"),
            {"name": "binary_classification"},
            "release.metrics",
        ),
        (("site_models", "shared_blocks"), [], "at least 1"),
    ],
    ids=["no blocks", "a run that shares all", "means over tasks", "no shared block"],
)
def test_a_study_whose_parts_contradict_each_other_does_not_read(
    path: tuple[str, ...], value: object, match: str
) -> None:
    with pytest.raises(ValidationError, match=match):
        Study.model_validate(changed(path, value))
