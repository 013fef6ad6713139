"""What a manifest says about modalities, and which manifests cannot say it."""

from typing import Any

import pytest

from fedhealth.errors import EvidenceError
from fedhealth.evidence.presence import active_blocks, declaring, frozen_tensors, owners_of
from fedhealth.evidence.statements import Manifest, parse_statement

from ..conftest import two_modalities  # noqa: TID252 - tests are no installed package

SITES = ("site-1", "site-2", "site-3")
LACKS = {"site-3": ("ehr",)}


@pytest.fixture
def manifest(new_consortium: Any) -> Manifest:
    made: Manifest = new_consortium(*SITES, content=two_modalities(), modalities=LACKS).manifest()
    return made


def test_owners_are_those_that_declared_it_and_the_others_freeze_its_tensors(
    manifest: Manifest,
) -> None:
    assert declaring(manifest, "mri") == owners_of(manifest, "mri") == ("site-1", "site-2")
    assert frozen_tensors(manifest, "site-3") == {"second.weight"}
    assert frozen_tensors(manifest, "site-1") == set()


def test_a_block_of_fewer_owners_than_the_minimum_cohort_is_frozen_everywhere(
    manifest: Manifest,
) -> None:
    three = manifest.model_copy(update={"min_cohort": 3})
    assert active_blocks(three) == ()
    assert owners_of(three, "mri") == ()
    assert declaring(three, "mri") == ("site-1", "site-2")
    assert all(frozen_tensors(three, site) == {"second.weight"} for site in SITES)


@pytest.mark.parametrize(
    "changes",
    [
        {"blocks": [{"modality": "mri", "tensors": ["third.weight"]}]},
        {"blocks": [{"modality": m, "tensors": ["second.weight"]} for m in ("mri", "pet")]},
        {
            "blocks": [
                {"modality": "mri", "tensors": [name]} for name in ("first.weight", "second.weight")
            ]
        },
        {"blocks": []},
    ],
    ids=["unknown tensor", "tensor in two blocks", "modality twice", "modalities without blocks"],
)
def test_a_manifest_whose_blocks_do_not_fit_is_none(
    manifest: Manifest, changes: dict[str, Any]
) -> None:
    with pytest.raises(EvidenceError, match="FH-EVIDENCE-002"):
        parse_statement(
            Manifest, manifest.model_copy(update=changes).model_dump_json(warnings=False)
        )


def test_a_manifest_from_before_blocks_is_read_as_one_without(new_consortium: Any) -> None:
    old = new_consortium("site-1", "site-2", name="old").manifest().model_dump(mode="json")
    del old["blocks"]
    for member in old["cohort"]:
        del member["modalities"]
    assert Manifest.model_validate(old).blocks == ()
