"""The sum that comes out is the sum that went in, bit for bit, whoever drops out and whoever answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhealth.evidence.statements import CohortMember, Manifest, ManifestTensor, RoundMasking
from fedhealth.privacy.randomness import Randomness
from fedhealth.secagg.fixed_point import SumInput, decode, encode
from fedhealth.secagg.guard import Floors
from fedhealth.secagg.layout import MaskedLayout, TailLayout
from fedhealth.secagg.quorum import least_threshold
from fedhealth.secagg.refusals import MaskingError, MaskingRefusedError
from fedhealth.secagg.server_side import MaskedSum
from fedhealth.secagg.site_side import MaskingSite

from .masking_keys import SERVER, STUDY, keys_of

FLOOR = 3
TAIL = TailLayout(train_metrics=("train_loss",), evaluate_metrics=("auc", "brier"))


@dataclass(frozen=True)
class Case:
    """One round: who is there, what is summed, and what goes wrong."""

    num: int
    colluding: int
    bits: int
    max_weight: int
    num_values: int
    survivors: tuple[str, ...]
    responders: tuple[str, ...]
    always_agree: bool
    seed: int

    @property
    def names(self) -> list[str]:
        return sorted(f"site-{index}" for index in range(self.num))

    @property
    def threshold(self) -> int:
        return least_threshold(self.num, self.colluding)

    @property
    def layout(self) -> MaskedLayout:
        return MaskedLayout(
            num_sites=self.num,
            num_values=self.num_values,
            levels=2 ** (self.bits - 1) - 1,
            value_range=0.5,
            max_weight=self.max_weight,
            tail=TAIL,
        )

    @property
    def manifest(self) -> Manifest:
        return Manifest(
            study_id="study",
            study_sha256=STUDY,
            run_name="main",
            flower_run_id="1",
            round_number=1,
            attempt=1,
            kind="train",
            model_sha256="b" * 64,
            tensors=(ManifestTensor(name="w", shape=(1,), offset=0, dtype="float32"),),
            cohort=tuple(
                CohortMember(
                    site_id=name,
                    key_id=keys_of(name)[0].public.key_id,
                    mask_key=keys_of(name)[2],
                )
                for name in self.names
            ),
            min_cohort=2,
            strategy_config={},
            masking=RoundMasking(
                threshold=self.threshold,
                min_survivors=FLOOR,
                bits=self.bits,
                value_range=0.5,
                max_weight=self.max_weight,
                kept_share=1.0,
            ),
            deadline_s=10,
            opened_at="2026-01-01T00:00:00Z",
        )

    def input_of(self, name: str) -> SumInput:
        rng = np.random.default_rng([self.seed, *name.encode()])
        weight = int(rng.choice([1, self.max_weight, rng.integers(1, self.max_weight + 1)]))
        update = rng.uniform(-0.5, 0.5, self.num_values).astype(np.float32)
        update[rng.random(self.num_values) < 0.1] = 0.5  # the end of the range, not beyond
        metrics = {"auc": rng.random(), "brier": rng.random()}
        return SumInput(
            update=update,
            weight=weight,
            train_metrics={"train_loss": rng.random() * 5},
            evaluate_metrics={n: v for n, v in metrics.items() if rng.random() < 0.7},
        )


@st.composite
def cases(draw: Any) -> Case:
    num = draw(st.integers(3, 8))
    colluding = draw(st.integers(0, min(1, num - 3)))
    names = [f"site-{index}" for index in range(num)]
    least = max(FLOOR, least_threshold(num, colluding))
    survivors = draw(st.sets(st.sampled_from(names), min_size=least))
    responders = draw(
        st.lists(
            st.sampled_from(sorted(survivors)),
            unique=True,
            min_size=least_threshold(num, colluding),
        )
    )
    return Case(
        num=num,
        colluding=colluding,
        bits=draw(st.sampled_from([2, 3, 8, 12, 16, 20, 24])),
        max_weight=draw(st.sampled_from([1, 7, 4096, 100_000_000])),
        num_values=draw(st.sampled_from([0, 1, 2, 7, 8, 9, 64, 129])),
        survivors=tuple(sorted(survivors)),
        responders=tuple(responders),
        always_agree=draw(st.booleans()),
        seed=draw(st.integers(0, 2**32)),
    )


class Play:
    """The protocol with real sites and a real server, and what went in beside it."""

    def __init__(self, case: Case) -> None:
        self.case, self.layout, manifest = case, case.layout, case.manifest
        digest = manifest.sign(SERVER).payload_digest
        roster = {name: keys_of(name)[0].public for name in case.names}
        self.total = MaskedSum(manifest, digest, self.layout, roster)
        self.plain, self.inputs, self.sites = [0] * self.layout.num_words, {}, {}
        for name in case.names:
            signing, running, _ = keys_of(name)
            self.sites[name] = MaskingSite(
                site_id=name,
                signing_key=signing,
                run_key=running,
                roster=roster,
                floors=Floors(min_survivors=FLOOR, colluding=case.colluding),
                manifest=manifest,
                manifest_sha256=digest,
            )
        self.accepted: dict[str, Any] = {}

    def mask(self, survivors: Sequence[str]) -> None:
        """All mask; only the survivors' vectors arrive, the last site's first."""
        for name in reversed(self.case.names):
            given = self.case.input_of(name)
            words = encode(given, self.layout, Randomness.from_os())
            before = [int(word) for word in words]
            sent = self.sites[name].mask(words, self.layout.modulus_bits)
            if name in survivors:
                assert self.total.add(name, sent.commitment, sent.payload)
                self.inputs[name] = given
                self.plain = [a + b for a, b in zip(self.plain, before, strict=True)]

    def agree(self) -> None:
        request = self.total.request("agree")
        for name in self.total.survivors:
            said = self.sites[name].agree(
                request, self.total.payload_for(name), self.accepted.get(name)
            )
            self.accepted[name] = request.survivors
            assert self.total.take_agreement(name, said.sign(keys_of(name)[0]))

    def unmask(self, responders: Sequence[str]) -> None:
        request = self.total.request("unmask")
        for name in responders:
            said, shares = self.sites[name].shares(
                request, self.total.payload_for(name), self.accepted.get(name)
            )
            assert self.total.take_shares(name, said.sign(keys_of(name)[0]), shares)

    def whole(self) -> Any:
        self.mask(self.case.survivors)
        if self.case.always_agree or self.total.dropped:
            self.agree()
        self.unmask(self.case.responders)
        return self.total.remove_masks()


@given(cases())
@settings(max_examples=150, deadline=None)
def test_the_sum_is_the_plain_sum_bit_for_bit_for_any_survivors_and_responders(case: Case) -> None:
    play = Play(case)
    modulus = 2**play.layout.modulus_bits
    assert play.whole().tolist() == [word % modulus for word in play.plain]
    assert play.total.survivors == case.survivors
    assert set(play.total.unmasked_by) == set(case.responders)


@given(cases())
@settings(max_examples=100, deadline=None)
def test_the_mean_is_the_weighted_mean_within_one_unit_and_sums_are_exact(case: Case) -> None:
    play = Play(case)
    out = decode(play.whole(), play.layout)
    inputs = list(play.inputs.values())
    weights = np.array([one.weight for one in inputs])
    assert out.weight == weights.sum()
    assert out.num_cut == 0
    assert out.mean_update.shape == (case.num_values,)
    true = np.average([one.update.astype(np.float64) for one in inputs], axis=0, weights=weights)
    # Stochastic rounding moves a value by less than one unit; the rest is float64's own rounding.
    assert (np.abs(out.mean_update - true) <= play.layout.step * (1 + 1e-6)).all()
    for name in ("train_loss", "auc", "brier"):
        have = [
            (one.weight, {**one.train_metrics, **one.evaluate_metrics}[name])
            for one in inputs
            if name in {**one.train_metrics, **one.evaluate_metrics}
        ]
        said = {**out.train_metrics, **out.evaluate_metrics}
        assert (name in said) == bool(have)
        if have:
            whole = sum(weight * round(value * 2**20) for weight, value in have)
            assert said[name] == whole / sum(weight for weight, _ in have) / 2**20


@given(cases(), st.data())
@settings(max_examples=60, deadline=None)
def test_fewer_responders_than_the_threshold_give_no_sum(case: Case, data: st.DataObject) -> None:
    few = data.draw(st.integers(0, case.threshold - 1))
    play = Play(case)
    play.mask(case.survivors)
    if play.total.dropped:
        play.agree()
    play.unmask(case.responders[:few])
    assert not play.total.has_shares
    with pytest.raises(MaskingError, match="FH-SECAGG-002"):
        play.total.remove_masks()


@given(cases(), st.data())
@settings(max_examples=60, deadline=None)
def test_fewer_survivors_than_the_floor_give_no_sum_and_get_no_share(
    case: Case, data: st.DataObject
) -> None:
    least = max(FLOOR, case.threshold)
    few = data.draw(st.integers(1, least - 1))
    survivors = data.draw(st.permutations(case.names))[:few]
    play = Play(case)
    play.mask(survivors)
    assert not play.total.has_quorum
    with pytest.raises(MaskingRefusedError, match="floor"):
        play.agree()
    with pytest.raises(MaskingRefusedError, match="floor"):
        play.unmask(survivors)
    with pytest.raises(MaskingError, match="FH-SECAGG-009"):
        play.total.remove_masks()


@pytest.mark.parametrize(
    ("num", "bits"), [(30, 8), (30, 16), pytest.param(100, 16, marks=pytest.mark.slow)]
)
def test_many_sites_with_a_third_of_them_dropped_give_their_sum(num: int, bits: int) -> None:
    names = sorted(f"site-{index}" for index in range(num))
    case = Case(
        num=num,
        colluding=0,
        bits=bits,
        max_weight=100_000,
        num_values=3,
        survivors=tuple(names[: num * 2 // 3]),
        responders=tuple(names[: num // 2 + 1]),
        always_agree=False,
        seed=1,
    )
    play = Play(case)
    assert (play.layout.modulus_bits > 32) is (bits == 16)
    assert play.whole().tolist() == [w % 2**play.layout.modulus_bits for w in play.plain]
