"""A site of a study with updates in 8 bits: what it answers, what it refuses, and from where its rounding is random."""

import hashlib
from typing import Any

import numpy as np
import pytest

from fedhealth.contracts.codes import DropCode
from fedhealth.contracts.update_encoding import decode_change, encoded_size

from ..conftest import study_content  # noqa: TID252 - tests are no installed package
from .hospital import Hospital


@pytest.fixture
def site(new_consortium: Any) -> Hospital:
    content = study_content()
    content["federation"] |= {"update_bits": 8}
    content["training"] |= {"options": {"step": 0.3}}
    return Hospital(new_consortium("site-1", "site-2", content=content))


def test_a_site_sends_and_signs_the_bytes_of_the_8_bit_form(site: Hospital) -> None:
    answer = site.round(update_encoding="int8")
    said, payload = site.said(answer), bytes(answer.outbound.payload)
    spec = site.consortium.spec
    assert said.update_encoding == "int8"
    assert said.update_sha256 == hashlib.sha256(payload).hexdigest()
    assert (said.num_elements, len(payload)) == (spec.num_elements, encoded_size(spec, "int8"))
    # Site 1 adds one step to every value: all are the largest of their bucket, so none is rounded.
    read = decode_change(payload, site.consortium.model(), spec)
    np.testing.assert_allclose(read, 0.3, rtol=1e-6)


def test_a_manifest_that_asks_for_another_form_than_the_study_is_refused(site: Hospital) -> None:
    assert site.refused(update_encoding="float32") is DropCode.MANIFEST_INVALID
    assert site.refused() is DropCode.MANIFEST_INVALID


def test_the_closing_trip_has_no_update_and_so_no_form(site: Hospital) -> None:
    last = site.pinned.study.runs[0].num_rounds
    answer = site.round(kind="evaluate", round_number=last + 1)
    assert site.said(answer).update_encoding == "float32"


def test_a_sealed_answer_comes_back_byte_by_byte_after_a_restart(site: Hospital) -> None:
    first = site.round(update_encoding="int8")
    site.restart()
    again = site.round(update_encoding="int8")
    if first.sealed_for is None:
        pytest.fail("an answer was not sealed")
    assert bytes(again.outbound.payload) == bytes(first.outbound.payload)
    assert site.said(again) == site.said(first)
