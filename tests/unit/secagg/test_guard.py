"""A malicious server against a site of ours: every attack is refused, and works as soon as its check is away.

An attack is one function: it plays the server and its accomplices to the end, and asserts that it got what it was
after, bit for bit. With `Guard()` it never gets there. The negative control runs the same function with the checks
named beside it taken away; where more than one is named, each of them alone is enough to stop it.
"""

import base64
import hashlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedhealth.contracts.codes import DropCode
from fedhealth.evidence.signing import Envelope, SigningKey
from fedhealth.evidence.statements import Manifest
from fedhealth.secagg.guard import Floors, Guard
from fedhealth.secagg.mask_keys import RunKey
from fedhealth.secagg.mask_stream import add_mask, reduce_words, word_type
from fedhealth.secagg.packing import unpack
from fedhealth.secagg.refusals import MaskingRefusedError
from fedhealth.secagg.shamir import SHARE_BYTES, combine
from fedhealth.secagg.site_side import MaskingSite
from fedhealth.secagg.statements import Agreement, ShareCommitment, Shares, UnmaskRequest

BITS, COUNT = 30, 40
CHECKS = [name for name in vars(Guard) if name.startswith("check_")]
SERVER = SigningKey.generate()


def without(*checks: str) -> Guard:
    """A guard that lacks some of its checks."""
    assert set(checks) <= set(CHECKS)
    blind = {name: lambda *_, **__: None for name in checks}
    return type("BlindGuard", (Guard,), blind)()


class Stage:
    """One masked round as a malicious server sees and stages it.

    It has every vector and every sealed share, chooses what each site is asked, and keeps all shares that it gets,
    under whatever list. `accepted` is what an honest site has on its disk; accomplices forget it.
    """

    def __init__(
        self,
        consortium: Any,
        guard: Guard,
        *,
        manifest: Manifest | None = None,
        kind: type[MaskingSite] = MaskingSite,
        accomplices: Sequence[str] = (),
    ) -> None:
        self.consortium, self.accomplices = consortium, accomplices
        self.manifest = consortium.manifest() if manifest is None else manifest
        self.digest = consortium.digest(self.manifest)
        self.cohort = [member.site_id for member in self.manifest.cohort]
        assert self.manifest.masking is not None
        self.threshold = self.manifest.masking.threshold
        self.plain = {name: self.words_of(name) for name in self.cohort}
        self.sites = {
            name: consortium.site(name, self.manifest, guard=guard, kind=kind)
            for name in self.cohort
        }
        self.sent = {name: self.sites[name].mask(self.words_of(name), BITS) for name in self.cohort}
        self.accepted: dict[str, Any] = {}
        self.shares: Any = defaultdict(dict)

    def words_of(self, name: str) -> Any:
        return self.consortium.words(name, COUNT, BITS)

    def request(
        self,
        step: Any,
        survivors: Sequence[str],
        dropped: Sequence[str],
        agreements: Sequence[Envelope] = (),
        **changes: Any,
    ) -> UnmaskRequest:
        said = {
            "manifest_sha256": self.digest,
            "step": step,
            "survivors": tuple(survivors),
            "dropped": tuple(dropped),
            "commitments": tuple(
                self.sent[name].commitment for name in survivors if name in self.sent
            ),
            "agreements": tuple(agreements),
        }
        return UnmaskRequest.model_validate(said | changes)

    def sealed_for(self, name: str, survivors: Sequence[str]) -> bytes:
        place = self.cohort.index(name)
        return b"".join(self.sent[sender].sealed[place] for sender in survivors)

    def agree(self, name: str, survivors: Sequence[str], dropped: Sequence[str]) -> Envelope:
        said = self.sites[name].agree(
            self.request("agree", survivors, dropped),
            self.sealed_for(name, survivors),
            self.accepted.get(name),
        )
        self._remember(name, survivors)
        return said.sign(self.consortium.signing[name])

    def unmask(
        self,
        name: str,
        survivors: Sequence[str],
        dropped: Sequence[str],
        agreements: Sequence[Envelope] = (),
    ) -> None:
        """Ask one site for shares, and keep them by whose seed and at which point they are."""
        _, answer = self.sites[name].shares(
            self.request("unmask", survivors, dropped, agreements),
            self.sealed_for(name, survivors),
            self.accepted.get(name),
        )
        self._remember(name, survivors)
        seeds = [(owner, None) for owner in survivors]
        seeds += [(owner, gone) for owner in survivors for gone in dropped if owner != gone]
        assert len(answer) == len(seeds) * SHARE_BYTES
        for index, seed in enumerate(seeds):
            share = answer[index * SHARE_BYTES : (index + 1) * SHARE_BYTES]
            self.shares[seed][self.cohort.index(name) + 1] = share

    def whole_list(
        self, survivors: Sequence[str], dropped: Sequence[str], names: Sequence[str]
    ) -> None:
        """These sites agree to a list, then give their shares for it."""
        agreements = [self.agree(name, survivors, dropped) for name in names]
        for name in names:
            self.unmask(name, survivors, dropped, agreements)

    def _remember(self, name: str, survivors: Sequence[str]) -> None:
        if name not in self.accomplices:
            self.accepted[name] = tuple(survivors)

    def seed(self, owner: str, peer: str | None = None) -> bytes:
        """From the shares that were collected; of a pair's seed either site's will do."""
        known = [self.shares[owner, peer]]
        if peer is not None:
            known.append(self.shares[peer, owner])
        return combine(max(known, key=len), threshold=self.threshold)

    def uncover(self, names: Sequence[str]) -> Any:
        """The sum of these sites' words: their vectors without self masks and without masks shared with all others."""
        total = np.zeros(COUNT, dtype=word_type(BITS))
        for name in names:
            total += unpack(self.sent[name].vector, count=COUNT, bits=BITS)
            add_mask(total, self.seed(name), -1)
            for other in self.cohort:
                if other not in names:
                    add_mask(total, self.seed(name, other), -1 if name < other else 1)
        reduce_words(total, BITS)
        return total

    def sum_of(self, names: Sequence[str]) -> Any:
        total = np.zeros(COUNT, dtype=word_type(BITS))
        for name in names:
            total += self.plain[name]
        reduce_words(total, BITS)
        return total


class LenientSite(MaskingSite):
    """Stands in for a client that was written with less care: it answers where ours would stumble or refuse.

    On overlapping lists ours fails to find a site's seed with itself; this one leaves that place out, as clients of
    other libraries do. What cannot be decrypted it takes for zeros.
    """

    def shares(self, request: UnmaskRequest, payload: bytes, accepted: Any) -> tuple[Shares, bytes]:
        self._check(request, payload, accepted)
        self._guard.check_agreements(request, self._manifest, self._roster)
        senders = dict(zip(request.survivors, self._parts(request, payload), strict=True))
        opened = {sender: self._open(sender, part) for sender, part in senders.items()}
        parts = [opened[sender][:SHARE_BYTES] for sender in senders]
        for sender in senders:
            others = [site for site in self._cohort if site != sender]
            for gone in request.dropped:
                if gone != sender:
                    place = (1 + others.index(gone)) * SHARE_BYTES
                    parts.append(opened[sender][place : place + SHARE_BYTES])
        answer = b"".join(parts)
        said = Shares(
            manifest_sha256=self._digest,
            site_id=self._site_id,
            shares_sha256=hashlib.sha256(answer).hexdigest(),
        )
        return said, answer

    def _open(self, sender: str, sealed: bytes) -> bytes:
        try:
            return super()._open(sender, sealed)
        except MaskingRefusedError:
            return bytes(len(self._cohort) * SHARE_BYTES)


def settings_with_a_lower_floor(guard: Guard, make: Any) -> None:
    """The study promised sums of five, the manifest says three: a sum of three comes out."""
    consortium = make(5)
    manifest = consortium.manifest()
    guard.check_settings(manifest, consortium.masking(min_survivors=5))
    stage = Stage(consortium, guard, manifest=manifest)
    *three, fourth, fifth = stage.cohort
    stage.whole_list(three, [fourth, fifth], three)
    assert (stage.uncover(three) == stage.sum_of(three)).all()


def cohort_in_the_servers_order(guard: Guard, make: Any) -> None:
    """Any order is masked for. The sum stays what it is, for signs go by site id: this check keeps one form only."""
    consortium = make(4)
    members = [consortium.member(name) for name in reversed(consortium.names)]
    stage = Stage(consortium, guard, manifest=consortium.manifest(members=members))
    for name in stage.cohort:
        stage.unmask(name, stage.cohort, [])
    assert (stage.uncover(stage.cohort) == stage.sum_of(stage.cohort)).all()


def cohort_of_invented_sites(guard: Guard, make: Any) -> None:
    """All peers are the server's: they share every mask, and hold a threshold of the victim's shares themselves."""
    consortium, sybils = make(1), make(3)
    victim = consortium.names[0]
    sybils.signing[victim], sybils.running[victim] = (
        consortium.signing[victim],
        consortium.running[victim],
    )
    manifest = sybils.manifest()
    site = consortium.site(victim, manifest, guard=guard)
    assert (
        stolen_by_peers(site, victim, sybils, manifest) == consortium.words(victim, COUNT, BITS)
    ).all()


def stolen_by_peers(site: MaskingSite, victim: str, peers: Any, manifest: Manifest) -> Any:
    """What peers find who work together: no request is needed, they open what the victim sealed for them."""
    sent = site.mask(peers.words(victim, COUNT, BITS), BITS)
    digest, key = peers.digest(manifest), peers.running[victim].public
    cohort = [member.site_id for member in manifest.cohort]
    words = unpack(sent.vector, count=COUNT, bits=BITS)
    shares = {}
    for place, peer in enumerate(cohort):
        if peer == victim:
            continue
        opened = peers.running[peer].open_shares(
            key, sent.sealed[place], manifest_sha256=digest, sender=victim, receiver=peer
        )
        shares[place + 1] = opened[:SHARE_BYTES]
        first, second = sorted((victim, peer))
        seed = peers.running[peer].pair_seed(
            key, manifest_sha256=digest, first=first, second=second
        )
        add_mask(words, seed, -1 if victim < peer else 1)
    assert manifest.masking is not None
    add_mask(words, combine(shares, threshold=manifest.masking.threshold), -1)
    reduce_words(words, BITS)
    return words


def cohort_of_one(guard: Guard, make: Any) -> None:
    """Alone, a site is its own threshold: its sum is its update."""
    consortium = make(1)
    stage = Stage(consortium, guard, manifest=consortium.manifest())
    stage.unmask("site-0", ["site-0"], [])
    assert (stage.uncover(["site-0"]) == stage.plain["site-0"]).all()


def threshold_of_half(guard: Guard, make: Any) -> None:
    """Two of four are a threshold, so two pairs of honest sites unmask two lists: with the victim, and without it."""
    consortium = make(4)
    stage = Stage(
        consortium, guard, manifest=consortium.manifest(masking=consortium.masking(threshold=2))
    )
    victim, a, b, c = stage.cohort
    stage.whole_list([victim, a, b], [c], [victim, a])
    stage.whole_list([a, b, c], [victim], [b, c])
    assert (stage.uncover([victim]) == stage.plain[victim]).all()


def threshold_without_the_colluding_site(guard: Guard, make: Any) -> None:
    """Three of five hold against the server alone, but not when one site answers for both lists."""
    consortium = make(5, colluding=1)
    manifest = consortium.manifest(masking=consortium.masking(threshold=3))
    stage = Stage(consortium, guard, manifest=manifest, accomplices=["site-4"])
    victim, a, b, c, accomplice = stage.cohort
    stage.whole_list([victim, a, b, accomplice], [c], [victim, a, accomplice])
    stage.whole_list([a, b, c, accomplice], [victim], [b, c, accomplice])
    assert (stage.uncover([victim]) == stage.plain[victim]).all()


def keys_of_the_server(how: str) -> Callable[[Guard, Any], None]:
    """Peers' keys are ones whose private half the server has; the victim's shares and masks are then the server's."""

    def attack(guard: Guard, make: Any) -> None:
        consortium = make(4)
        victim, *others = consortium.names
        server = make(4)
        server.running[victim] = consortium.running[victim]
        accomplice = consortium.signing["site-3"]
        forged = {
            "signed by the server": lambda name: server.key_of(name, signer=SERVER),
            "signed by another site": lambda name: server.key_of(name, signer=accomplice),
            "another site's statement": lambda name: server.key_of(
                name, signer=accomplice, site_id="site-3"
            ),
            "leaked from another run": lambda name: server.key_of(
                name, signer=consortium.signing[name], run_name="earlier"
            ),
            "leaked from another study": lambda name: server.key_of(
                name, signer=consortium.signing[name], study_sha256="f" * 64
            ),
        }[how]
        members = [consortium.member(victim)]
        members += [consortium.member(name, mask_key=forged(name)) for name in others]
        manifest = consortium.manifest(members=members)
        site = consortium.site(victim, manifest, guard=guard)
        stolen = stolen_by_peers(site, victim, server, manifest)
        assert (stolen == consortium.words(victim, COUNT, BITS)).all()

    return attack


def overlapping_lists(guard: Guard, make: Any) -> None:
    """The victim is said to be alive and dead: both of its masks come off."""
    stage = Stage(make(4), guard, kind=LenientSite)
    victim, *others = stage.cohort
    stage.whole_list(stage.cohort, [victim], others)
    assert (stage.uncover([victim]) == stage.plain[victim]).all()


def left_out_site_instead_of_a_dropped_one(guard: Guard, make: Any) -> None:
    """A list without its other half passes for the whole cohort: shares leave, and nobody agreed to anything.

    The site that was left out is an accomplice, and knows the masks that it shares with the others.
    """
    consortium = make(4)
    stage = Stage(consortium, guard)
    *three, accomplice = stage.cohort
    for name in three:
        stage.unmask(name, three, [])
    total = np.zeros(COUNT, dtype=word_type(BITS))
    for name in three:
        total += unpack(stage.sent[name].vector, count=COUNT, bits=BITS)
        add_mask(total, stage.seed(name), -1)
        known = consortium.running[accomplice].pair_seed(
            consortium.running[name].public,
            manifest_sha256=stage.digest,
            first=name,
            second=accomplice,
        )
        add_mask(total, known, -1)
    reduce_words(total, BITS)
    assert (total == stage.sum_of(three)).all()


def fewer_survivors_than_the_floor(guard: Guard, make: Any) -> None:
    """A sum of two: the other one is an accomplice, so the difference is the victim's."""
    stage = Stage(make(3), guard)
    victim, accomplice, third = stage.cohort
    stage.whole_list([victim, accomplice], [third], [victim, accomplice])
    difference = stage.uncover([victim, accomplice]) - stage.plain[accomplice]
    reduce_words(difference, BITS)
    assert (difference == stage.plain[victim]).all()


def second_list_after_unmasking(guard: Guard, make: Any) -> None:
    """First the sum of all, then the sum of all but the victim."""
    stage = Stage(make(4), guard)
    victim, *others = stage.cohort
    for name in stage.cohort:
        stage.unmask(name, stage.cohort, [])
    first = stage.uncover(stage.cohort)
    stage.whole_list(others, [victim], others)
    difference = first - stage.uncover(others)
    reduce_words(difference, BITS)
    assert (difference == stage.plain[victim]).all()
    assert (stage.uncover([victim]) == stage.plain[victim]).all()


def second_list_after_agreeing(guard: Guard, make: Any) -> None:
    """Signatures for two lists first, then both are unmasked."""
    stage = Stage(make(4), guard)
    victim, a, b, c = stage.cohort
    lists = [([victim, a, b], [c]), ([a, b, c], [victim])]
    signed = [
        [stage.agree(name, survivors, dropped) for name in survivors]
        for survivors, dropped in lists
    ]
    for (survivors, dropped), agreements in zip(lists, signed, strict=True):
        for name in survivors:
            stage.unmask(name, survivors, dropped, agreements)
    assert (stage.uncover([victim]) == stage.plain[victim]).all()


def late_vector_of_a_dropped_site(guard: Guard, make: Any) -> None:
    """The victim was declared dropped and its masks were given away; then its vector arrives, on a list with it."""
    stage = Stage(make(4), guard)
    victim, *others = stage.cohort
    stage.whole_list(others, [victim], others)
    for name in others:
        stage.unmask(name, stage.cohort, [])
    assert (stage.uncover([victim]) == stage.plain[victim]).all()


def survivor_of_another_manifest(guard: Guard, make: Any) -> None:
    """The victim masked for another model; the others give their shares for a sum that it is said to be in.

    No update shows, for masks of two manifests do not cancel: the round is burnt, and the sum is noise.
    """
    consortium = make(4)
    stage = Stage(consortium, guard, kind=LenientSite)
    victim, *others = stage.cohort
    elsewhere = Stage(consortium, guard, manifest=consortium.manifest(model_sha256="c" * 64))
    stage.sent[victim] = elsewhere.sent[victim]
    stage.whole_list(stage.cohort, [], others)
    total = np.zeros(COUNT, dtype=word_type(BITS))
    for name in stage.cohort:
        total += unpack(stage.sent[name].vector, count=COUNT, bits=BITS)
    for name in others:
        add_mask(total, stage.seed(name), -1)
    reduce_words(total, BITS)
    assert (total != stage.sum_of(stage.cohort)).any()
    assert set(stage.accepted) == set(others)


def shares_of_many_lists_mixed(guard: Guard, make: Any) -> None:
    """Five sites, five lists of at least three, no list twice and none with a threshold: a sum of two comes out.

    Every site answers once, for one list only. Shares of one seed add up over the lists in which it is due.
    """
    stage = Stage(make(5), guard)
    v, w, x, y, z = stage.cohort
    for name, dropped in {v: [x, y], w: [y, z], x: [y, z], y: [x, z], z: [x]}.items():
        stage.unmask(name, [site for site in stage.cohort if site not in dropped], dropped)
    assert (stage.uncover([v, w]) == stage.sum_of([v, w])).all()


class BlockStage(Stage):
    """The first half of the vector belongs to a modality; a site that lacks it adds nothing there."""

    block = slice(0, COUNT // 2)

    def words_of(self, name: str) -> Any:
        words = super().words_of(name)
        if "mri" not in self.consortium.declared[name]:
            words[self.block] = 0
        return words


def with_mri(make: Any, num: int, *owners: int) -> Any:
    declared = {f"site-{n}": ("ehr", "mri") if n in owners else ("ehr",) for n in range(num)}
    return make(num, num_values=COUNT, declared=declared)


def owners_that_declared_nothing(guard: Guard, make: Any) -> None:
    """One site has imaging, and the manifest says that all have: enough owners, and one update in their sum."""
    consortium = with_mri(make, 4, 0)
    members = [consortium.member(name, modalities=("ehr", "mri")) for name in consortium.names]
    stage = BlockStage(consortium, guard, manifest=consortium.manifest(members=members))
    stage.whole_list(stage.cohort, [], stage.cohort)
    shown = stage.uncover(stage.cohort)[stage.block]
    assert (shown == stage.plain["site-0"][stage.block]).all()


def one_owner_among_the_survivors(guard: Guard, make: Any) -> None:
    """Of three sites with imaging two are said to have dropped out: the list is long enough, the block's is not."""
    stage = BlockStage(with_mri(make, 5, 0, 1, 2), guard)
    victim, a, b, c, d = stage.cohort
    stage.whole_list([victim, c, d], [a, b], [victim, c, d])
    shown = stage.uncover([victim, c, d])
    assert (shown[stage.block] == stage.plain[victim][stage.block]).all()
    assert (shown == stage.sum_of([victim, c, d])).all()


def one_owner_in_a_sum_over_all_sites(guard: Guard, make: Any) -> None:
    """Nothing is averaged by modality, and one survivor has images: the others' part of the encoder is zero."""
    declared = {f"site-{n}": ("ehr", "mri") if n == 0 else ("ehr",) for n in range(4)}
    consortium = make(4, num_values=COUNT, declared=declared, averages_over_all=True)
    stage = BlockStage(consortium, guard)
    stage.whole_list(stage.cohort, [], stage.cohort)
    shown = stage.uncover(stage.cohort)[stage.block]
    assert (shown == stage.plain["site-0"][stage.block]).all()


@dataclass(frozen=True)
class Attack:
    """What it is, the checks that stop it, and the code with which it is refused."""

    play: Callable[[Guard, Any], None]
    checks: tuple[str, ...]
    code: DropCode
    name: str = ""

    def __str__(self) -> str:
        return self.name or self.play.__name__


ATTACKS = [
    Attack(settings_with_a_lower_floor, ("check_settings",), DropCode.SECAGG_SETTINGS),
    Attack(cohort_in_the_servers_order, ("check_order",), DropCode.SECAGG_COHORT_ORDER),
    Attack(cohort_of_invented_sites, ("check_roster", "check_keys"), DropCode.SECAGG_STRANGER),
    Attack(cohort_of_one, ("check_floor", "check_survivors"), DropCode.SECAGG_FLOOR),
    Attack(threshold_of_half, ("check_threshold",), DropCode.SECAGG_THRESHOLD),
    Attack(threshold_without_the_colluding_site, ("check_threshold",), DropCode.SECAGG_THRESHOLD),
    *(
        Attack(keys_of_the_server(how), ("check_keys",), DropCode.MASK_KEY_INVALID, f"key {how}")
        for how in (
            "signed by the server",
            "signed by another site",
            "another site's statement",
            "leaked from another run",
            "leaked from another study",
        )
    ),
    Attack(overlapping_lists, ("check_lists",), DropCode.SECAGG_OVERLAP),
    Attack(left_out_site_instead_of_a_dropped_one, ("check_lists",), DropCode.SECAGG_LISTS),
    Attack(fewer_survivors_than_the_floor, ("check_survivors",), DropCode.SECAGG_FLOOR),
    Attack(owners_that_declared_nothing, ("check_presence",), DropCode.PRESENCE_MISMATCH),
    Attack(one_owner_among_the_survivors, ("check_blocks",), DropCode.SECAGG_BLOCK_FLOOR),
    Attack(one_owner_in_a_sum_over_all_sites, ("check_blocks",), DropCode.SECAGG_BLOCK_FLOOR),
    Attack(second_list_after_unmasking, ("check_first_list",), DropCode.SECAGG_SECOND_LIST),
    Attack(second_list_after_agreeing, ("check_first_list",), DropCode.SECAGG_SECOND_LIST),
    Attack(late_vector_of_a_dropped_site, ("check_first_list",), DropCode.SECAGG_SECOND_LIST),
    Attack(
        survivor_of_another_manifest,
        ("check_commitments",),
        DropCode.SHARE_COMMITMENT_INVALID,
    ),
    Attack(shares_of_many_lists_mixed, ("check_agreements",), DropCode.SECAGG_NO_AGREEMENT),
]


def refused(play: Callable[[], Any]) -> DropCode:
    with pytest.raises(MaskingRefusedError) as caught:
        play()
    return caught.value.drop_code


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_an_attack_is_refused_with_its_own_code(attack: Attack, make_consortium: Any) -> None:
    assert refused(lambda: attack.play(Guard(), make_consortium)) == attack.code


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_an_attack_works_without_the_checks_that_stop_it(
    attack: Attack, make_consortium: Any
) -> None:
    attack.play(without(*attack.checks), make_consortium)


@pytest.mark.parametrize("attack", [a for a in ATTACKS if len(a.checks) > 1], ids=str)
def test_each_of_several_checks_is_enough_to_stop_an_attack(
    attack: Attack, make_consortium: Any
) -> None:
    for left in attack.checks:
        blind = without(*(check for check in attack.checks if check != left))
        refused(lambda blind=blind: attack.play(blind, make_consortium))  # type: ignore[misc]


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_an_attack_is_refused_by_its_own_checks_without_the_others(
    attack: Attack, make_consortium: Any
) -> None:
    alone = without(*(check for check in CHECKS if check not in attack.checks))
    refused(lambda: attack.play(alone, make_consortium))


def test_every_check_has_an_attack_that_works_without_it() -> None:
    assert {check for attack in ATTACKS for check in attack.checks} == set(CHECKS)


def test_overlapping_lists_end_in_an_error_even_when_nobody_checks_them(
    make_consortium: Any,
) -> None:
    # Defence in depth: a site has no seed with itself, so ours finds no place to take a share from.
    stage = Stage(make_consortium(4), without("check_lists"))
    victim, *others = stage.cohort
    agreements = [stage.agree(name, stage.cohort, [victim]) for name in others]
    with pytest.raises(ValueError, match="not in list"):
        stage.unmask(others[0], stage.cohort, [victim], agreements)


def test_a_survivor_of_another_manifest_cannot_be_opened_even_when_nobody_checks_its_commitment(
    make_consortium: Any,
) -> None:
    # Defence in depth: sealed shares are encrypted for their manifest.
    consortium = make_consortium(4)
    stage = Stage(consortium, without("check_commitments"))
    victim, other, *_ = stage.cohort
    elsewhere = Stage(consortium, Guard(), manifest=consortium.manifest(attempt=2))
    stage.sent[victim] = elsewhere.sent[victim]
    stage.agree(other, stage.cohort, [])
    code = refused(lambda: stage.unmask(other, stage.cohort, []))
    assert code == DropCode.SHARES_UNREADABLE


def test_a_dropped_sites_vector_stays_noise_when_all_its_pairwise_masks_are_known(
    make_consortium: Any,
) -> None:
    # The double mask: what was revealed because it dropped out does not uncover what arrives late.
    stage = Stage(make_consortium(4), Guard())
    victim, *others = stage.cohort
    stage.whole_list(others, [victim], others)
    words = unpack(stage.sent[victim].vector, count=COUNT, bits=BITS)
    for other in others:
        add_mask(words, stage.seed(victim, other), -1 if victim < other else 1)
    reduce_words(words, BITS)
    assert not set(words.tolist()) & set(stage.plain[victim].tolist())
    assert not stage.shares[victim, None]


# What the manifest may not be. Each entry changes one thing of a manifest that is accepted.


def masked_for(make: Any, change: Callable[[Any], dict[str, Any]], **site: Any) -> None:
    consortium = make(4)
    manifest = consortium.manifest(**change(consortium))
    consortium.site("site-1", manifest, **site).mask(consortium.words("site-1", COUNT, BITS), BITS)


def with_key(consortium: Any, name: str, envelope: Any) -> dict[str, Any]:
    return {
        "members": [
            consortium.member(n, mask_key=envelope) if n == name else consortium.member(n)
            for n in consortium.names
        ]
    }


def swapped_keys(consortium: Any) -> dict[str, Any]:
    """site-2 signs site-1's key as its own; site-1's place shows an older key that it once signed."""
    old = consortium.key_of("site-1", public_key=RunKey.generate().public)
    new = consortium.key_of("site-2", public_key=consortium.running["site-1"].public)
    members = {name: consortium.member(name) for name in consortium.names}
    members["site-1"] = consortium.member("site-1", mask_key=old)
    members["site-2"] = consortium.member("site-2", mask_key=new)
    return {"members": list(members.values())}


MANIFESTS: dict[str, tuple[DropCode, Callable[[Any], dict[str, Any]]]] = {
    "no masks": (DropCode.SECAGG_REQUIRED, lambda _: {"masking": None}),
    "two sites": (
        DropCode.SECAGG_FLOOR,
        lambda c: {"members": [c.member("site-0"), c.member("site-1")]},
    ),
    "sums of two": (
        DropCode.SECAGG_FLOOR,
        lambda c: {"masking": c.masking(min_survivors=2)},
    ),
    "threshold too low": (
        DropCode.SECAGG_THRESHOLD,
        lambda c: {"masking": c.masking(threshold=2)},
    ),
    "threshold above the cohort": (
        DropCode.SECAGG_THRESHOLD,
        lambda c: {"masking": c.masking(threshold=5)},
    ),
    "cohort in another order": (
        DropCode.SECAGG_COHORT_ORDER,
        lambda c: {"members": [c.member(c.names[i]) for i in (1, 0, 2, 3)]},
    ),
    "unknown site": (
        DropCode.SECAGG_STRANGER,
        lambda c: {
            "members": [
                *(c.member(name) for name in c.names),
                c.member("site-0").model_copy(update={"site_id": "site-9", "key_id": "9" * 64}),
            ]
        },
    ),
    "known site with another signing key": (
        DropCode.SECAGG_STRANGER,
        lambda c: {
            "members": [
                *(c.member(name) for name in c.names[:3]),
                c.member("site-3", key_id=SERVER.public.key_id),
            ]
        },
    ),
    "no key": (DropCode.MASK_KEY_INVALID, lambda c: with_key(c, "site-2", None)),
    "two sites with one key": (
        DropCode.MASK_KEY_INVALID,
        lambda c: with_key(c, "site-2", c.key_of("site-2", public_key=c.running["site-3"].public)),
    ),
    "own key replaced by an older one": (
        DropCode.MASK_KEY_INVALID,
        lambda c: with_key(c, "site-1", c.key_of("site-1", public_key=RunKey.generate().public)),
    ),
    "own key at another site's place": (DropCode.MASK_KEY_INVALID, swapped_keys),
    "key of low order": (
        DropCode.MASK_KEY_INVALID,
        lambda c: with_key(c, "site-2", c.key_of("site-2", public_key="A" * 43 + "=")),
    ),
    "key that its site signed in another's name": (
        DropCode.MASK_KEY_INVALID,
        lambda c: with_key(c, "site-2", c.key_of("site-2", site_id="site-3")),
    ),
    "key that is none": (
        DropCode.MASK_KEY_INVALID,
        lambda c: with_key(c, "site-2", c.key_of("site-2", public_key="AAAA")),
    ),
    "key with an altered payload": (
        DropCode.MASK_KEY_INVALID,
        lambda c: with_key(
            c,
            "site-2",
            c.key_of("site-2").model_copy(update={"payload": c.key_of("site-3").payload}),
        ),
    ),
    "statement of another kind": (
        DropCode.MASK_KEY_INVALID,
        lambda c: with_key(
            c,
            "site-2",
            Agreement(manifest_sha256="1" * 64, site_id="site-2", survivors=()).sign(
                c.signing["site-2"]
            ),
        ),
    ),
    "cohort without this site": (
        DropCode.MASK_KEY_INVALID,
        lambda c: {"members": [c.member(n) for n in ("site-0", "site-2", "site-3")]},
    ),
}


def test_a_manifest_that_keeps_the_rules_is_masked_for(make_consortium: Any) -> None:
    masked_for(make_consortium, lambda _: {})


@pytest.mark.parametrize("what", MANIFESTS)
def test_no_mask_is_made_for_a_manifest_that_breaks_a_rule(what: str, make_consortium: Any) -> None:
    code, change = MANIFESTS[what]
    assert refused(lambda: masked_for(make_consortium, change)) == code


@pytest.mark.parametrize(("colluding", "floor"), [(2, 3), (3, 3), (3, 4)])
def test_a_sum_with_one_honest_site_is_refused_whatever_the_floor_says(
    colluding: int, floor: int, make_consortium: Any
) -> None:
    # n = 4 and t = 4 hold against two or three that collude, but they would see what is left of the sum.
    consortium = make_consortium(4)
    masking = consortium.masking(threshold=4, min_survivors=floor)
    manifest = consortium.manifest(masking=masking)
    floors = Floors(min_survivors=floor, colluding=colluding)
    code = refused(lambda: consortium.site("site-0", manifest, floors=floors))
    assert code == DropCode.SECAGG_FLOOR


# What a request may not be. All sites masked; site-3's vector is said to be missing, and all others agreed.

THREE, FOURTH = ["site-0", "site-1", "site-2"], ["site-3"]


@dataclass
class Request:
    """A request to site-0 that is accepted, before one thing of it is changed."""

    stage: Stage
    said: dict[str, Any]
    payload: bytes

    @classmethod
    def accepted(cls, make: Any) -> "Request":
        stage = Stage(make(4), Guard())
        agreements = [stage.agree(name, THREE, FOURTH) for name in THREE]
        said = stage.request("unmask", THREE, FOURTH, agreements).model_dump()
        return cls(stage, said, stage.sealed_for("site-0", THREE))

    def ask(self) -> Any:
        request = UnmaskRequest.model_validate(self.said)
        return self.stage.sites["site-0"].shares(
            request, self.payload, self.stage.accepted.get("site-0")
        )

    def agreement(self, signer: str, **changes: Any) -> Envelope:
        said = {"manifest_sha256": self.stage.digest, "site_id": signer, "survivors": THREE}
        return Agreement.model_validate(said | changes).sign(self.stage.consortium.signing[signer])

    def digests(self, signer: str) -> tuple[str, ...]:
        raw = self.stage.sent[signer].commitment.payload
        return ShareCommitment.model_validate_json(raw).share_sha256

    def commit(self, signer: str, **changes: Any) -> None:
        """The same commitment with something changed, signed by its site again."""
        old = self.stage.sent[signer].commitment
        said = ShareCommitment.model_validate_json(old.payload).model_dump() | changes
        new = ShareCommitment.model_validate(said).sign(self.stage.consortium.signing[signer])
        place = self.said["survivors"].index(signer)
        commitments = list(self.said["commitments"])
        commitments[place] = new.model_dump()
        self.said["commitments"] = commitments


def changed(**changes: Any) -> Callable[[Request], None]:
    return lambda request: request.said.update(changes)


def fresh(**changes: Any) -> Callable[[Request], None]:
    """Of a site that has accepted no list yet."""

    def change(request: Request) -> None:
        request.stage.accepted.clear()
        request.said.update(changes)

    return change


def agreements(make: Callable[[Request], Sequence[Envelope]]) -> Callable[[Request], None]:
    return lambda request: request.said.update(agreements=[e.model_dump() for e in make(request)])


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def payload(make: Callable[[Request], bytes]) -> Callable[[Request], None]:
    def change(request: Request) -> None:
        request.payload = make(request)

    return change


def sealed_for_somebody_else(request: Request) -> None:
    """site-1 is malicious: it signs that what it sealed for site-2 is for site-0."""
    sealed = list(request.stage.sent["site-1"].sealed)
    sealed[0], sealed[2] = sealed[2], sealed[0]
    request.commit("site-1", share_sha256=[hashlib.sha256(part).hexdigest() for part in sealed])
    size = len(sealed[0])
    request.payload = request.payload[:size] + sealed[0] + request.payload[2 * size :]


REQUESTS: dict[str, tuple[DropCode, Callable[[Request], None]]] = {
    "another manifest": (
        DropCode.SECAGG_UNKNOWN_ROUND,
        changed(manifest_sha256="d" * 64),
    ),
    "site on both lists": (
        DropCode.SECAGG_OVERLAP,
        changed(dropped=["site-2", "site-3"]),
    ),
    "unknown survivor": (
        DropCode.SECAGG_UNKNOWN_SITE,
        changed(survivors=[*THREE, "site-9"]),
    ),
    "unknown dropped site": (
        DropCode.SECAGG_UNKNOWN_SITE,
        changed(dropped=["site-3", "site-9"]),
    ),
    "survivors in another order": (
        DropCode.SECAGG_ORDER,
        changed(survivors=["site-1", "site-0", "site-2"]),
    ),
    "survivor twice": (
        DropCode.SECAGG_ORDER,
        changed(survivors=["site-0", "site-0", "site-1", "site-2"]),
    ),
    "dropped site twice": (DropCode.SECAGG_ORDER, changed(dropped=["site-3", "site-3"])),
    "site on no list": (DropCode.SECAGG_LISTS, changed(dropped=[])),
    "this site is not a survivor": (
        DropCode.SECAGG_LISTS,
        changed(survivors=["site-1", "site-2", "site-3"], dropped=["site-0"]),
    ),
    "two survivors": (
        DropCode.SECAGG_FLOOR,
        fresh(survivors=["site-0", "site-1"], dropped=["site-2", "site-3"]),
    ),
    "another list than agreed to": (
        DropCode.SECAGG_SECOND_LIST,
        changed(survivors=["site-0", "site-1", "site-3"], dropped=["site-2"]),
    ),
    "the whole cohort after agreeing to less": (
        DropCode.SECAGG_SECOND_LIST,
        changed(survivors=[*THREE, *FOURTH], dropped=[]),
    ),
    "a commitment too few": (
        DropCode.SHARE_COMMITMENT_INVALID,
        lambda r: r.said.update(commitments=r.said["commitments"][:-1]),
    ),
    "a commitment too many": (
        DropCode.SHARE_COMMITMENT_INVALID,
        lambda r: r.said.update(commitments=[*r.said["commitments"], r.said["commitments"][0]]),
    ),
    "commitments in another order": (
        DropCode.SHARE_COMMITMENT_INVALID,
        lambda r: r.said.update(commitments=r.said["commitments"][::-1]),
    ),
    "commitment of another manifest": (
        DropCode.SHARE_COMMITMENT_INVALID,
        lambda r: r.commit("site-1", manifest_sha256="d" * 64),
    ),
    "commitment to fewer shares": (
        DropCode.SHARE_COMMITMENT_INVALID,
        lambda r: r.commit("site-1", share_sha256=["0" * 64]),
    ),
    "commitment to more shares": (
        DropCode.SHARE_COMMITMENT_INVALID,
        lambda r: r.commit("site-1", share_sha256=[*r.digests("site-1"), "0" * 64]),
    ),
    "commitment in another site's name": (
        DropCode.SHARE_COMMITMENT_INVALID,
        lambda r: r.commit("site-1", site_id="site-2"),
    ),
    "sealed share altered": (
        DropCode.SHARE_COMMITMENT_INVALID,
        payload(lambda r: flipped(r.payload, 200)),
    ),
    "sealed shares swapped": (
        DropCode.SHARE_COMMITMENT_INVALID,
        payload(lambda r: r.stage.sealed_for("site-0", ["site-1", "site-0", "site-2"])),
    ),
    "sealed shares of another receiver": (
        DropCode.SHARE_COMMITMENT_INVALID,
        payload(lambda r: r.stage.sealed_for("site-1", THREE)),
    ),
    "sealed shares of the dropped site instead": (
        DropCode.SHARE_COMMITMENT_INVALID,
        payload(lambda r: r.stage.sealed_for("site-0", ["site-0", "site-1", "site-3"])),
    ),
    "payload cut": (DropCode.SHARE_COMMITMENT_INVALID, payload(lambda r: r.payload[:-1])),
    "payload too long": (
        DropCode.SHARE_COMMITMENT_INVALID,
        payload(lambda r: r.payload + bytes(1)),
    ),
    "payload empty": (DropCode.SHARE_COMMITMENT_INVALID, payload(lambda _: b"")),
    "sealed by a malicious site for somebody else": (
        DropCode.SHARES_UNREADABLE,
        sealed_for_somebody_else,
    ),
    "no agreement": (DropCode.SECAGG_NO_AGREEMENT, agreements(lambda _: [])),
    "no agreement in the name of the other step": (
        DropCode.SECAGG_NO_AGREEMENT,
        changed(step="agree", agreements=[]),
    ),
    "an agreement too few": (
        DropCode.SECAGG_NO_AGREEMENT,
        agreements(lambda r: [r.agreement("site-0"), r.agreement("site-1")]),
    ),
    "one agreement three times": (
        DropCode.SECAGG_NO_AGREEMENT,
        agreements(lambda r: [r.agreement("site-0"), r.agreement("site-1"), r.agreement("site-1")]),
    ),
    "agreement of the dropped site": (
        DropCode.SECAGG_NO_AGREEMENT,
        agreements(lambda r: [r.agreement(f"site-{i}") for i in (0, 1, 3)]),
    ),
    "agreement signed by another site": (
        DropCode.SECAGG_NO_AGREEMENT,
        agreements(
            lambda r: [
                r.agreement("site-0"),
                r.agreement("site-1"),
                r.agreement("site-1", site_id="site-2"),
            ]
        ),
    ),
    "agreement to another list": (
        DropCode.SECAGG_NO_AGREEMENT,
        agreements(
            lambda r: [
                r.agreement("site-0"),
                r.agreement("site-1"),
                r.agreement("site-2", survivors=[*THREE, *FOURTH]),
            ]
        ),
    ),
    "agreement of another manifest": (
        DropCode.SECAGG_NO_AGREEMENT,
        agreements(
            lambda r: [
                r.agreement("site-0"),
                r.agreement("site-1"),
                r.agreement("site-2", manifest_sha256="d" * 64),
            ]
        ),
    ),
    "agreement of a stranger": (
        DropCode.SECAGG_NO_AGREEMENT,
        agreements(
            lambda r: [
                r.agreement("site-0"),
                r.agreement("site-1"),
                Agreement(
                    manifest_sha256=r.stage.digest, site_id="site-9", survivors=tuple(THREE)
                ).sign(SERVER),
            ]
        ),
    ),
    "something else than an agreement": (
        DropCode.SECAGG_NO_AGREEMENT,
        agreements(
            lambda r: [
                r.agreement("site-0"),
                r.agreement("site-1"),
                r.stage.sent["site-2"].commitment,
            ]
        ),
    ),
}


def test_a_request_that_keeps_the_rules_is_answered(make_consortium: Any) -> None:
    request = Request.accepted(make_consortium)
    first = request.ask()
    assert first == request.ask()  # asked again for the same list, a site gives the same


@pytest.mark.parametrize("what", REQUESTS)
def test_no_share_leaves_for_a_request_that_breaks_a_rule(what: str, make_consortium: Any) -> None:
    code, change = REQUESTS[what]
    request = Request.accepted(make_consortium)
    change(request)
    assert refused(request.ask) == code


def test_agreeing_is_checked_like_unmasking_but_for_the_agreements(make_consortium: Any) -> None:
    others = {DropCode.SECAGG_NO_AGREEMENT, DropCode.SHARES_UNREADABLE}
    for code, change in REQUESTS.values():
        request = Request.accepted(make_consortium)
        change(request)
        if code in others:
            continue
        asked = UnmaskRequest.model_validate(request.said | {"step": "agree"})
        site, accepted = request.stage.sites["site-0"], request.stage.accepted.get("site-0")
        assert refused(lambda: site.agree(asked, request.payload, accepted)) == code  # noqa: B023


def test_more_agreements_than_needed_and_false_ones_beside_them_do_no_harm(
    make_consortium: Any,
) -> None:
    request = Request.accepted(make_consortium)
    agreements(
        lambda r: [
            r.agreement("site-3"),
            *(r.agreement(name) for name in THREE),
            r.agreement("site-1", site_id="site-2"),
        ]
    )(request)
    request.ask()


def test_every_refusal_of_secure_aggregation_is_provoked_here() -> None:
    ours = {code for code in DropCode if code.value.startswith("secagg_")}
    ours |= {
        DropCode.MASK_KEY_INVALID,
        DropCode.SHARE_COMMITMENT_INVALID,
        DropCode.SHARES_UNREADABLE,
    }
    provoked = {attack.code for attack in ATTACKS}
    provoked |= {code for code, _ in (*MANIFESTS.values(), *REQUESTS.values())}
    assert ours <= provoked


@pytest.mark.parametrize(
    "change",
    [
        {"model_sha256": "c" * 64},
        {"attempt": 2},
        {"round_number": 2},
        {"strategy_config": {"rate": 0.5}},
        {"kind": "evaluate"},
    ],
)
def test_masks_of_two_manifests_do_not_cancel(
    change: dict[str, Any], make_consortium: Any, rounds: Any
) -> None:
    """Model inconsistency (Pasquini et al. 2022): a site that was shown something else adds noise to the sum."""
    consortium = make_consortium(4)
    honest = rounds.masked(consortium)
    elsewhere = rounds.masked(consortium, manifest=consortium.manifest(**change))
    victim = "site-0"
    layout = consortium.layout()
    assert not honest.total.add(
        victim, elsewhere.sent[victim].commitment, elsewhere.sent[victim].payload
    )
    total = np.zeros(layout.num_words, dtype=word_type(layout.modulus_bits))
    true = np.zeros_like(total)
    for name in consortium.names:
        source = elsewhere if name == victim else honest
        total += unpack(source.sent[name].vector, count=layout.num_words, bits=layout.modulus_bits)
        true += consortium.words(name)
    # The server is given every self mask: what is left are the pairwise ones.
    for name in consortium.names:
        source = elsewhere if name == victim else honest
        shares = {}
        for place, peer in enumerate(consortium.names):
            opened = source.sites[peer]._open(name, source.sent[name].sealed[place])
            shares[place + 1] = opened[:SHARE_BYTES]
        add_mask(total, combine(shares, threshold=3), -1)
    difference = total - true
    reduce_words(difference, layout.modulus_bits)
    assert len(set(difference.tolist())) > layout.num_words * 0.9


def test_a_site_of_another_cohort_or_with_another_key_shares_no_mask(make_consortium: Any) -> None:
    consortium = make_consortium(4)
    fewer = consortium.manifest(members=[consortium.member(name) for name in consortium.names[:3]],
                                masking=consortium.masking(threshold=2))  # fmt: skip
    whole = consortium.manifest()
    key, peer = consortium.running["site-0"], consortium.running["site-1"].public
    seeds = {
        key.pair_seed(
            peer, manifest_sha256=consortium.digest(manifest), first="site-0", second="site-1"
        )
        for manifest in (fewer, whole)
    }
    assert len(seeds) == 2


def test_a_low_order_key_signed_by_an_accomplice_is_refused_before_anything_is_masked(
    make_consortium: Any,
) -> None:
    # Every guard is away: the refusal is where the shared secret is made.
    consortium = make_consortium(4)
    points = [bytes(32), (1).to_bytes(32, "little"), (2**255 - 19).to_bytes(32, "little")]
    for point in points:
        text = base64.b64encode(point).decode()
        manifest = consortium.manifest(
            **with_key(consortium, "site-3", consortium.key_of("site-3", public_key=text))
        )
        site = consortium.site("site-0", manifest, guard=without(*CHECKS))
        words = consortium.words("site-0", COUNT, BITS)
        assert refused(lambda: site.mask(words, BITS)) == DropCode.MASK_KEY_INVALID  # noqa: B023


def whole_list_beside_another(consortium: Any) -> tuple[Any, Any]:
    """Half of the honest sites see the whole cohort, the others a list without the victim; site-4 answers for both."""
    stage = Stage(consortium, Guard(), accomplices=["site-4"])
    victim, a, b, c, accomplice = stage.cohort
    for name in (victim, a, accomplice):
        stage.unmask(name, stage.cohort, [])
    others = [a, b, c, accomplice]
    signed = [stage.agree(name, others, [victim]) for name in (b, c, accomplice)]
    for name in (b, c, accomplice):
        stage.unmask(name, others, [victim], signed)
    return stage.uncover([victim]), stage.plain[victim]


def test_a_threshold_against_nobody_who_colludes_breaks_when_one_of_five_sites_does(
    make_consortium: Any,
) -> None:
    # Every check of every honest site passes: `colluding` is what protects, and its default is 0.
    stolen, plain = whole_list_beside_another(make_consortium(5, colluding=0))
    assert (stolen == plain).all()


def test_the_same_lists_find_no_threshold_when_one_colluding_site_was_expected(
    make_consortium: Any,
) -> None:
    code = refused(lambda: whole_list_beside_another(make_consortium(5, colluding=1)))
    assert code == DropCode.SECAGG_NO_AGREEMENT


def test_no_threshold_of_shares_comes_together_over_the_whole_list_and_another_one() -> None:
    """The short way (nobody dropped, no agreement) beside the long one: for every split of the sites, no double loss.

    Some sites are asked for the whole cohort, which needs no agreement; a threshold of others agrees to a list
    without the victim. Whoever is left, the victim's two masks are never both known.
    """
    for num, colluding in ((3, 0), (4, 0), (5, 0), (5, 1), (6, 2)):
        names = [f"site-{index}" for index in range(num)]
        threshold = (num + colluding) // 2 + 1
        accomplices = names[num - colluding :]
        for size in range(threshold, num):
            for survivors in itertools.combinations(names[1:], size):
                for agreed in itertools.combinations(survivors, threshold):
                    for_whole = set(names) - set(agreed) | set(accomplices)
                    assert len(for_whole) < threshold


def test_an_x25519_key_made_by_anybody_is_only_believed_under_its_sites_signature(
    make_consortium: Any,
) -> None:
    consortium = make_consortium(3)
    other = RunKey(X25519PrivateKey.generate())
    said = consortium.key_of("site-1", public_key=other.public, signer=SERVER)
    manifest = consortium.manifest(**with_key(consortium, "site-1", said))
    assert refused(lambda: consortium.site("site-0", manifest)) == DropCode.MASK_KEY_INVALID
