"""The server's sum: what it takes, what it leaves out, and when it gives nothing at all."""

import hashlib
from typing import Any

import numpy as np
import pytest

from fedhealth.secagg.mask_stream import reduce_words
from fedhealth.secagg.refusals import MaskingError
from fedhealth.secagg.server_side import MaskedSum
from fedhealth.secagg.shamir import SHARE_BYTES
from fedhealth.secagg.site_side import sealed_size
from fedhealth.secagg.statements import Agreement, ShareCommitment, Shares


def plain_sum(consortium: Any, names: Any) -> Any:
    total = sum((consortium.words(name) for name in names), start=0 * consortium.words("site-0"))
    reduce_words(total, consortium.layout().modulus_bits)
    return total


def test_a_whole_cohort_takes_one_more_trip(make_consortium: Any, rounds: Any) -> None:
    consortium = make_consortium(4)
    play = rounds.masked(consortium)
    assert play.total.is_whole
    assert play.total.has_quorum
    play.unmask()
    assert play.total.has_shares
    assert play.total.unmasked_by == tuple(consortium.names)
    assert (play.total.remove_masks() == plain_sum(consortium, consortium.names)).all()


def test_after_a_drop_out_it_takes_two_more_trips(make_consortium: Any, rounds: Any) -> None:
    consortium = make_consortium(5)
    play = rounds.masked(consortium, absent=["site-0", "site-3"])
    assert (play.total.survivors, play.total.dropped) == (
        ("site-1", "site-2", "site-4"),
        ("site-0", "site-3"),
    )
    assert not play.total.is_whole
    play.agree()
    assert play.total.has_agreement
    play.unmask()
    assert (play.total.remove_masks() == plain_sum(consortium, play.total.survivors)).all()


def test_shares_of_a_threshold_of_survivors_are_enough(make_consortium: Any, rounds: Any) -> None:
    consortium = make_consortium(5)
    play = rounds.masked(consortium)
    play.unmask(["site-0", "site-2"])
    assert not play.total.has_shares
    with pytest.raises(MaskingError, match="FH-SECAGG-002"):
        play.total.remove_masks()
    play.unmask(["site-4"])  # the sum is as it was: nothing came off before
    assert (play.total.remove_masks() == plain_sum(consortium, consortium.names)).all()


def test_fewer_survivors_than_the_floor_give_no_sum(make_consortium: Any, rounds: Any) -> None:
    consortium = make_consortium(5, floor=4)
    play = rounds.masked(consortium, absent=["site-0", "site-3"])
    assert not play.total.has_quorum
    with pytest.raises(MaskingError, match="FH-SECAGG-009"):
        play.total.remove_masks()


def test_a_share_that_contradicts_the_others_gives_no_sum(
    make_consortium: Any, rounds: Any
) -> None:
    consortium = make_consortium(5)
    play = rounds.masked(consortium)
    play.unmask()
    play.total._shares["site-1"] = bytes(len(play.total._shares["site-1"]))
    with pytest.raises(MaskingError, match="FH-SECAGG-003"):
        play.total.remove_masks()


def test_a_vector_that_comes_late_twice_or_from_a_stranger_is_not_added(
    make_consortium: Any, rounds: Any
) -> None:
    consortium = make_consortium(4)
    play = rounds.masked(consortium, absent=["site-3"])
    sent = play.sent["site-3"]
    before = play.total._total.copy()
    again = play.sent["site-0"]
    assert not play.total.add("site-0", again.commitment, again.payload)
    assert not play.total.add("site-9", sent.commitment, sent.payload)
    play.agree()  # the list is fixed
    assert not play.total.add("site-3", sent.commitment, sent.payload)
    assert (play.total._total == before).all()
    assert play.total.dropped == ("site-3",)
    play.unmask()
    assert (play.total.remove_masks() == plain_sum(consortium, consortium.names[:3])).all()


def resigned(given: Any, signer: str = "site-3", **changes: Any) -> Any:
    """The commitment with something changed, signed again."""
    consortium, sent, _ = given
    said = ShareCommitment.model_validate_json(sent.commitment.payload).model_copy(update=changes)
    return said.sign(consortium.signing[signer])


def with_filling(given: Any) -> tuple[Any, bytes]:
    """A site signs for a vector that has something after its last word."""
    consortium, sent, _ = given
    size = consortium.layout().num_bytes
    vector = sent.payload[: size - 1] + b"\xff"
    digest = hashlib.sha256(vector).hexdigest()
    return resigned(given, vector_sha256=digest), vector + sent.payload[size:]


def another_statement(given: Any) -> tuple[Any, bytes]:
    consortium, sent, _ = given
    said = Shares(manifest_sha256="1" * 64, site_id="site-3", shares_sha256="1" * 64)
    return said.sign(consortium.signing["site-3"]), sent.payload


def of_payload(change: Any) -> Any:
    return lambda given: (given[1].commitment, change(given[1].payload))


SPOILT = {
    "altered vector": of_payload(lambda p: bytes([p[0] ^ 1]) + p[1:]),
    "altered shares": of_payload(lambda p: p[:-1] + bytes([p[-1] ^ 1])),
    "cut": of_payload(lambda p: p[:-1]),
    "longer": of_payload(lambda p: p + b"\0"),
    "empty": of_payload(lambda _: b""),
    "another signer": lambda given: (resigned(given, "site-2"), given[1].payload),
    "another site's name": lambda given: (resigned(given, site_id="site-2"), given[1].payload),
    "fewer digests": lambda given: (resigned(given, share_sha256=("0" * 64,)), given[1].payload),
    "another manifest": lambda given: (given[2].commitment, given[2].payload),
    "another kind of statement": another_statement,
    "something after the last word": with_filling,
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_vector_that_is_not_what_its_site_signed_for_this_round_is_not_added(
    how: str, make_consortium: Any, rounds: Any
) -> None:
    consortium = make_consortium(4, num_values=41)  # not a multiple of eight: there is filling
    play = rounds.masked(consortium, absent=["site-3"])
    other = rounds.masked(consortium, manifest=consortium.manifest(attempt=2))
    before = play.total._total.copy()
    given = (consortium, play.sent["site-3"], other.sent["site-3"])
    commitment, payload = SPOILT[how](given)
    assert not play.total.add("site-3", commitment, payload)
    assert (play.total._total == before).all()
    assert play.total.survivors == ("site-0", "site-1", "site-2")


def test_agreements_count_for_this_list_from_its_survivors_and_once_it_is_fixed(
    make_consortium: Any, rounds: Any
) -> None:
    consortium = make_consortium(4)
    play = rounds.masked(consortium, absent=["site-3"])
    total, digest = play.total, consortium.digest(play.manifest)

    def said(signer: str, **changes: Any) -> Any:
        given = {"manifest_sha256": digest, "site_id": signer, "survivors": total.survivors}
        return Agreement.model_validate(given | changes).sign(consortium.signing[signer])

    assert not total.take_agreement("site-0", said("site-0"))  # more vectors could still come
    total.request("agree")
    assert not total.take_agreement("site-3", said("site-3"))
    assert not total.take_agreement("site-9", said("site-0"))
    assert not total.take_agreement("site-1", said("site-0"))
    assert not total.take_agreement("site-0", said("site-0", survivors=tuple(consortium.names)))
    assert not total.take_agreement("site-0", said("site-0", manifest_sha256="d" * 64))
    assert not total.take_agreement("site-0", play.sent["site-0"].commitment)
    for name in total.survivors:
        assert not total.has_agreement
        assert total.take_agreement(name, said(name))
        assert total.take_agreement(name, said(name))  # twice is once
    assert total.has_agreement


def test_shares_count_as_their_survivor_signed_them(make_consortium: Any, rounds: Any) -> None:
    consortium = make_consortium(4)
    play = rounds.masked(consortium, absent=["site-3"])
    play.agree()
    request = play.total.request("unmask")
    said, shares = play.sites["site-0"].shares(
        request, play.total.payload_for("site-0"), play.accepted["site-0"]
    )
    key = consortium.signing["site-0"]
    other = said.model_copy(update={"manifest_sha256": "d" * 64})
    named = said.model_copy(update={"site_id": "site-3"})
    short = shares[:-SHARE_BYTES]  # signed as it is, but a share is missing
    fewer = said.model_copy(update={"shares_sha256": hashlib.sha256(short).hexdigest()})
    assert len(shares) == 3 * 2 * SHARE_BYTES
    for name, envelope, payload in [
        ("site-0", said.sign(key), shares[:-1]),
        ("site-0", said.sign(key), shares + b"\0"),
        ("site-0", said.sign(key), bytes(len(shares))),
        ("site-0", said.sign(key), b""),
        ("site-0", fewer.sign(key), short),
        ("site-0", other.sign(key), shares),
        ("site-0", said.sign(consortium.signing["site-1"]), shares),
        ("site-1", said.sign(key), shares),
        ("site-3", named.sign(consortium.signing["site-3"]), shares),
        ("site-9", said.sign(key), shares),
    ]:
        assert not play.total.take_shares(name, envelope, payload)
    assert play.total.unmasked_by == ()
    assert play.total.take_shares("site-0", said.sign(key), shares)
    assert play.total.unmasked_by == ("site-0",)


def test_a_round_without_masks_has_no_masked_sum(make_consortium: Any) -> None:
    consortium = make_consortium(3)
    manifest = consortium.manifest(masking=None)
    with pytest.raises(MaskingError, match="FH-SECAGG-008"):
        MaskedSum(manifest, "1" * 64, consortium.layout(), consortium.roster)


def test_every_site_sends_the_same_number_of_bytes_whatever_it_has(
    make_consortium: Any, rounds: Any
) -> None:
    consortium = make_consortium(4)
    kind = consortium.layout()
    words = {name: np.zeros_like(consortium.words(name)) for name in consortium.names}
    zeros, full = rounds.masked(consortium, words=words), rounds.masked(consortium)
    sizes = {len(sent.payload) for play in (zeros, full) for sent in play.sent.values()}
    assert sizes == {kind.num_bytes + 4 * sealed_size(4)} == {zeros.total.num_bytes}
