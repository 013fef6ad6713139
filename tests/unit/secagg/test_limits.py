"""What masks do not hide, shown on purpose: what has to be refused or said elsewhere because the protocol cannot."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedhealth.privacy.randomness import Randomness
from fedhealth.secagg.fixed_point import SumInput, SumOfBlock, SumOutput, decode, encode


def attempt(
    consortium: Any,
    rounds: Any,
    inputs: dict[str, SumInput],
    *,
    number: int = 1,
    absent: Sequence[str] = (),
    blocks: Sequence[SumOfBlock] = (),
) -> SumOutput:
    """One attempt at the same round, by sites and a server that break no rule."""
    layout = consortium.layout()
    words = {name: encode(given, layout, Randomness.from_os()) for name, given in inputs.items()}
    play = rounds.masked(
        consortium, manifest=consortium.manifest(attempt=number), words=words, absent=absent
    )
    if absent:
        play.agree()
    play.unmask()
    return decode(play.total.remove_masks(), layout, blocks)


def inputs_of(consortium: Any) -> dict[str, SumInput]:
    rng = np.random.default_rng(0)
    return {
        name: SumInput(
            update=(rng.standard_normal(consortium.num_values) * 0.1).astype(np.float32),
            weight=100 + 17 * place,
            train_metrics={"train_loss": 0.5 + place / 8},
            evaluate_metrics={"auc": 0.75} if place == 2 else {},
        )
        for place, name in enumerate(consortium.names)
    }


def test_two_sums_of_one_round_show_the_site_that_is_in_one_of_them(
    make_consortium: Any, rounds: Any
) -> None:
    # Local training is the same in every attempt at a round. A server that unmasks two attempts with two lists has
    # what the list of one manifest keeps from it, and every check of a guard passes: a site must see to it that it
    # gives shares for one attempt at a round only.
    consortium = make_consortium(4, num_values=200)
    inputs = inputs_of(consortium)
    victim = inputs["site-1"]
    first = attempt(consortium, rounds, inputs, number=1)
    second = attempt(consortium, rounds, inputs, number=2, absent=["site-1"])
    assert first.weight - second.weight == victim.weight
    difference = first.mean_update * first.weight - second.mean_update * second.weight
    shown = difference / victim.weight
    noise = consortium.layout().step * (first.weight + second.weight) / victim.weight
    assert np.abs(shown - victim.update).max() < noise < 0.001
    assert np.corrcoef(shown, victim.update)[0, 1] > 0.9999


def test_two_weights_tell_the_size_of_the_one_site_that_lacks_a_modality(
    make_consortium: Any, rounds: Any
) -> None:
    # The sum's weight, and that of a block's owners: the difference is the others' together. Of one it is its size.
    declared = {f"site-{n}": ("ehr", "mri") if n < 3 else ("ehr",) for n in range(4)}
    consortium = make_consortium(4, declared=declared)
    inputs = {
        name: replace(given, trains=("mri" in declared[name],))
        for name, given in inputs_of(consortium).items()
    }
    out = attempt(consortium, rounds, inputs, blocks=[SumOfBlock(parts=(), num_owners=3)])
    assert out.weight - out.block_weights[0] == inputs["site-3"].weight


def test_a_metric_that_one_site_alone_has_is_that_sites(make_consortium: Any, rounds: Any) -> None:
    # Its weight too, for a metric's own weights are summed. Which site it is, the sum does not say.
    consortium = make_consortium(4)
    out = attempt(consortium, rounds, inputs_of(consortium))
    assert out.evaluate_metrics == {"auc": 0.75}
