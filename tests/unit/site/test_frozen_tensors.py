"""A site whose frozen tensors are not the server's takes no part: its update would mean another model."""

from typing import Any

import pytest
from fedhealth_test_plugins.scripted import DRAWN_HERE

from fedhealth.contracts.codes import DropCode

from ..conftest import NUM_ROUNDS, study_content  # noqa: TID252 - tests are no installed package
from .hospital import Hospital


def site_of(new_consortium: Any, **options: str) -> Hospital:
    content = study_content()
    content["training"] |= {"options": options}
    return Hospital(new_consortium("site-1", "site-2", content=content))


def test_a_site_that_drew_the_same_takes_part(new_consortium: Any) -> None:
    site = site_of(new_consortium, frozen="drawn from the seed")
    assert site.said(site.round()).update_sha256 is not None


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_site_that_draws_others_from_the_same_study_refuses(
    new_consortium: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    site = site_of(new_consortium, frozen="drawn from the seed")
    monkeypatch.setenv(DRAWN_HERE, "by another version of torch")
    site.restart()
    changes = {} if kind == "train" else {"kind": kind, "round_number": NUM_ROUNDS + 1}
    assert site.refused(**changes) is DropCode.FROZEN_MISMATCH
    monkeypatch.delenv(DRAWN_HERE)
    site.restart()
    assert site.said(site.round(**changes)).drop_code is None


def test_a_manifest_without_the_digest_or_with_one_too_many_is_refused(new_consortium: Any) -> None:
    site = site_of(new_consortium, frozen="drawn from the seed")
    assert site.refused(frozen_sha256=None) is DropCode.FROZEN_MISMATCH
    assert site.refused(frozen_sha256="ab" * 32) is DropCode.FROZEN_MISMATCH


def test_where_all_is_trained_a_digest_of_frozen_tensors_is_refused(new_consortium: Any) -> None:
    site = site_of(new_consortium)
    assert site.refused(frozen_sha256="ab" * 32) is DropCode.FROZEN_MISMATCH
    assert site.said(site.round()).drop_code is None
