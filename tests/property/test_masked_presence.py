"""Who has which modality, and who drops out: a sum opens over enough owners only, and is their weighted mean.

The oracle knows declarations, drop-outs and fractions; it knows no manifest, no block and no mask.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhealth.contracts.codes import DropCode
from fedhealth.evidence.presence import owners_of
from fedhealth.evidence.statements import CohortMember, Manifest, ManifestTensor, RoundMasking
from fedhealth.privacy.randomness import Randomness
from fedhealth.secagg.fixed_point import SumInput, check_sum, decode, encode
from fedhealth.secagg.fixed_point import SumOfBlock as Block
from fedhealth.secagg.guard import Floors
from fedhealth.secagg.layout import MaskedLayout, TailLayout
from fedhealth.secagg.quorum import least_threshold
from fedhealth.secagg.refusals import MaskingError, MaskingRefusedError
from fedhealth.secagg.server_side import MaskedSum
from fedhealth.secagg.site_side import MaskingSite
from fedhealth.secagg.statements import UnmaskRequest

from .masking_keys import SERVER, STUDY, keys_of

FLOOR: Final = 3
PARTS: Final = {"ct": slice(0, 3), "labs": slice(3, 5), "": slice(5, 8)}
"""Of the flat vector, by modality; the last one is everybody's."""
LEVELS: Final = 127
STEP: Final = Fraction(1, 256)
"""Updates lie on the grid, so that rounding at random changes nothing and means are exact."""
MOST: Final = 50


@dataclass(frozen=True)
class Case:
    """What each site declared, who drops out, and whether encoders are averaged over their owners or over all."""

    declared: tuple[tuple[str, ...], ...]
    dropped: frozenset[int]
    by_modality: bool
    seed: int

    @property
    def names(self) -> list[str]:
        return [f"site-{number}" for number in range(len(self.declared))]

    @property
    def survivors(self) -> list[int]:
        return [n for n in range(len(self.declared)) if n not in self.dropped]

    def trains(self, number: int, modality: str) -> bool:
        """Whether a site's update has anything in that part: the rule as docs say it."""
        if not modality:
            return True
        owners = [n for n, own in enumerate(self.declared) if modality in own]
        return number in owners and (not self.by_modality or len(owners) >= FLOOR)

    def may_open(self) -> bool:
        """As many sites as floor and threshold, and of each part none or as many as the floor."""
        least = max(FLOOR, least_threshold(len(self.declared), 0))
        counts = [sum(self.trains(n, name) for n in self.survivors) for name in PARTS]
        return len(self.survivors) >= least and all(num == 0 or num >= FLOOR for num in counts)

    def whole(self, number: int) -> tuple[np.ndarray[Any, np.dtype[np.int64]], int]:
        """A site's change in grid units, zeros where it trains nothing, and its weight."""
        rng = np.random.default_rng([self.seed, number])
        units = rng.integers(-LEVELS, LEVELS + 1, 8)
        for name, part in PARTS.items():
            units[part] *= self.trains(number, name)
        return units, int(rng.integers(1, MOST + 1))

    def mean(self, modality: str) -> list[Fraction]:
        """The change of that part: over its owners, or over all survivors."""
        part = PARTS[modality]
        total, weight = [Fraction(0)] * (part.stop - part.start), 0
        for number in self.survivors:
            units, own = self.whole(number)
            if self.by_modality and not self.trains(number, modality):
                continue
            weight += own
            total = [t + own * int(u) for t, u in zip(total, units[part], strict=True)]
        return [t * STEP / weight if weight else Fraction(0) for t in total]

    @property
    def manifest(self) -> Manifest:
        named = ("ct", "labs")
        blocks = tuple({"modality": m, "tensors": (f"{m}.w",)} for m in named)
        return Manifest(
            study_id="study",
            study_sha256=STUDY,
            run_name="main",
            flower_run_id="1",
            round_number=1,
            attempt=1,
            kind="train",
            model_sha256="b" * 64,
            tensors=tuple(
                ManifestTensor(
                    name=f"{m or 'all'}.w",
                    shape=(p.stop - p.start,),
                    offset=p.start,
                    dtype="float32",
                )
                for m, p in PARTS.items()
            ),
            cohort=tuple(
                CohortMember(
                    site_id=name,
                    key_id=keys_of(name)[0].public.key_id,
                    mask_key=keys_of(name)[2],
                    modalities=own,
                )
                for name, own in zip(self.names, self.declared, strict=True)
            ),
            blocks=blocks if self.by_modality else (),  # type: ignore[arg-type]  # pydantic makes them
            summed_modalities=() if self.by_modality else named,
            min_cohort=2,
            strategy_config={},
            masking=RoundMasking(
                threshold=least_threshold(len(self.names), 0),
                min_survivors=FLOOR,
                bits=8,
                value_range=float(LEVELS * STEP),
                max_weight=MOST,
                kept_share=1.0,
            ),
            deadline_s=10,
            opened_at="2026-01-01T00:00:00Z",
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    num = draw(st.integers(3, 7))
    own = st.sampled_from([("ct",), ("labs",), ("ct", "labs"), ("ct", "labs")])
    return Case(
        declared=tuple(draw(own) for _ in range(num)),
        dropped=frozenset(draw(st.sets(st.integers(0, num - 1), max_size=num - 1))),
        by_modality=draw(st.booleans()),
        seed=draw(st.integers(0, 2**32)),
    )


class Played:
    """The round up to the moment at which the server knows who is in the sum."""

    def __init__(self, case: Case) -> None:
        self.case, self.manifest = case, case.manifest
        self.digest = self.manifest.sign(SERVER).payload_digest
        roster = {name: keys_of(name)[0].public for name in case.names}
        self.layout = MaskedLayout(
            num_sites=len(case.names),
            num_values=8,
            levels=LEVELS,
            value_range=float(LEVELS * STEP),
            max_weight=MOST,
            tail=TailLayout(
                train_metrics=(), evaluate_metrics=(), num_blocks=len(self.manifest.blocks)
            ),
        )
        self.total = MaskedSum(self.manifest, self.digest, self.layout, roster)
        self.sites = {}
        for number, name in enumerate(case.names):
            site = self.sites[name] = MaskingSite(
                site_id=name,
                signing_key=keys_of(name)[0],
                run_key=keys_of(name)[1],
                roster=roster,
                floors=Floors(min_survivors=FLOOR, colluding=0),
                manifest=self.manifest,
                manifest_sha256=self.digest,
                modalities=case.declared[number],
            )
            units, weight = case.whole(number)
            given = SumInput(
                update=(units * float(STEP)).astype(np.float32),
                weight=weight,
                train_metrics={},
                evaluate_metrics={},
                trains=tuple(
                    name in owners_of(self.manifest, b.modality) for b in self.manifest.blocks
                ),
            )
            sent = site.mask(
                encode(given, self.layout, Randomness.from_os()), self.layout.modulus_bits
            )
            if number not in case.dropped:
                assert self.total.add(name, sent.commitment, sent.payload)

    def request(self, step: Any) -> UnmaskRequest:
        return self.total.request(step)

    def open(self) -> Any:
        if not self.total.is_whole:
            for name in self.total.survivors:
                said = self.sites[name].agree(
                    self.request("agree"), self.total.payload_for(name), None
                )
                assert self.total.take_agreement(name, said.sign(keys_of(name)[0]))
        for name in self.total.survivors:
            said, shares = self.sites[name].shares(
                self.request("unmask"), self.total.payload_for(name), None
            )
            assert self.total.take_shares(name, said.sign(keys_of(name)[0]), shares)
        words = self.total.remove_masks()
        check_sum(words, self.layout, len(self.total.survivors))
        return words

    def blocks(self) -> list[Block]:
        case = self.case
        return [
            Block(
                parts=(PARTS[block.modality],),
                num_owners=sum(case.trains(n, block.modality) for n in case.survivors),
            )
            for block in self.manifest.blocks
        ]


@given(case=cases())
@settings(max_examples=60, deadline=None)
def test_whoever_has_what_and_drops_out_a_sum_opens_only_over_enough_owners_and_is_their_mean(
    case: Case,
) -> None:
    played = Played(case)
    if not case.may_open():
        assert not (played.total.has_quorum and played.total.has_owners)
        with pytest.raises(MaskingError, match="FH-SECAGG-009"):
            played.total.remove_masks()
        # A server that asks all the same gets no agreement and no share from anybody.
        for name in played.total.survivors:
            sealed = played.total.payload_for(name)
            for ask, step in (
                (played.sites[name].agree, "agree"),
                (played.sites[name].shares, "unmask"),
            ):
                with pytest.raises(MaskingRefusedError) as refused:
                    ask(played.request(step), sealed, None)
                assert refused.value.drop_code in {
                    DropCode.SECAGG_FLOOR,
                    DropCode.SECAGG_BLOCK_FLOOR,
                }
        return
    said = decode(played.open(), played.layout, played.blocks())
    moved = said.moved(np.zeros(8, dtype=np.float32), None, 1.0, played.blocks())
    for modality, part in PARTS.items():
        assert moved[part].tolist() == [
            float(np.float32(x)) for x in map(float, case.mean(modality))
        ]
    assert said.weight == sum(case.whole(n)[1] for n in case.survivors)


@given(case=cases(), modality=st.sampled_from(sorted(PARTS)))
@settings(max_examples=25, deadline=None)
def test_what_opens_of_a_part_depends_on_no_survivor_or_on_as_many_as_the_floor(
    case: Case, modality: str
) -> None:
    # By trying it: a site's own update is exchanged, and the part of the mean that is opened moves or it does not.
    if not case.may_open():
        return
    moving = 0
    part = PARTS[modality]
    whole = Played(case)
    first = decode(whole.open(), whole.layout, whole.blocks()).words[part].tolist()
    for site in case.survivors:
        other = ChangedCase(
            declared=case.declared,
            dropped=case.dropped,
            by_modality=case.by_modality,
            seed=case.seed,
            changed=site,
        )
        played = Played(other)
        words = decode(played.open(), played.layout, played.blocks()).words[part].tolist()
        moving += words != first
    assert moving == 0 or moving >= FLOOR


@dataclass(frozen=True)
class ChangedCase(Case):
    """The same round with another update of one site."""

    changed: int = 0

    def whole(self, number: int) -> tuple[np.ndarray[Any, np.dtype[np.int64]], int]:
        units, weight = super().whole(number)
        if number != self.changed:
            return units, weight
        other = np.where(units < LEVELS, units + 1, units - 1)
        for name, part in PARTS.items():
            other[part] *= self.trains(number, name)
        return other, weight


def test_the_cases_hold_some_that_open_and_some_that_do_not() -> None:
    everybody = Case(declared=(("ct", "labs"),) * 4, dropped=frozenset(), by_modality=False, seed=1)
    assert everybody.may_open()
    lone = replace(everybody, declared=(("ct", "labs"),) + (("labs",),) * 3)
    assert not lone.may_open()
    assert replace(lone, by_modality=True).may_open()
    three = replace(everybody, declared=(("ct", "labs"),) * 3 + (("labs",),) * 2, by_modality=True)
    assert three.may_open()
    assert not replace(three, dropped=frozenset({0})).may_open()
