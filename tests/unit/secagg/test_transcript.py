"""All that a server ever sees of a round holds nothing of any one site: not a window of 16 bytes, not a number."""

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fedhealth.privacy.randomness import Randomness
from fedhealth.secagg.fixed_point import SumInput, encode
from fedhealth.secagg.mask_stream import reduce_words
from fedhealth.secagg.packing import pack

WINDOW = 16
LEAST_NONZERO = 6
"""Bytes of a window that have to agree by chance: 2**-48."""
WEIGHTS = {f"site-{index}": 400_009 + 7919 * index for index in range(5)}


def inputs_of(name: str, num_values: int) -> SumInput:
    rng = np.random.default_rng([3, *name.encode()])
    index = int(name[-1])
    return SumInput(
        update=(rng.standard_normal(num_values) * 0.1).astype(np.float32),
        weight=WEIGHTS[name],
        train_metrics={"train_loss": 0.693_147_18 + index / 97},
        evaluate_metrics={"auc": 0.812_345_67 + index / 101},
    )


def windows(data: bytes) -> Iterator[bytes]:
    return (data[place : place + WINDOW] for place in range(len(data) - WINDOW + 1))


def secrets_of(given: SumInput, words: Any, modulus_bits: int) -> set[bytes]:
    """Every window of 16 bytes of what a site hides, in every form that it has at the site."""
    reduced = words.copy()
    reduce_words(reduced, modulus_bits)
    forms = [
        pack(reduced, modulus_bits),
        *(source.astype(kind).tobytes() for source in (words, reduced) for kind in ("<u4", "<u8")),
        given.update.astype("<f4").tobytes(),
        given.update.astype("<f8").tobytes(),
    ]
    found = {window for form in forms for window in windows(form)}
    # A run of zeros says nothing: the filling after the last word is one, and what follows it is random.
    return {window for window in found if WINDOW - window.count(0) >= LEAST_NONZERO}


def numbers_of(given: SumInput) -> set[bytes]:
    """Weight and metrics as eight bytes: an accidental hit has a chance below 2**-40."""
    metrics = [*given.train_metrics.values(), *given.evaluate_metrics.values()]
    return {
        given.weight.to_bytes(8, "little"),
        *(np.float64(value).tobytes() for value in (given.weight, *metrics)),
    }


def json_numbers(value: Any) -> Iterator[float]:
    """All numbers in a statement, also in statements within it."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from json_numbers(item)
    elif isinstance(value, str) and value.startswith("{"):
        yield from json_numbers(json.loads(value))
    elif isinstance(value, int | float):
        yield value


def play(consortium: Any, rounds: Any, absent: list[str]) -> tuple[bytes, list[Any], Any, Any]:
    """An honest round: all binary that the server sees, all statements, and each site's secrets.

    What arrives too late is seen as well.
    """
    layout = consortium.layout()
    given = {name: inputs_of(name, consortium.num_values) for name in consortium.names}
    words = {
        name: encode(given[name], layout, Randomness.seeded_for_tests(name.encode().ljust(32)))
        for name in consortium.names
    }
    game = rounds.masked(consortium, words=words, absent=absent)
    binary = [sent.payload for sent in game.sent.values()]
    said = [json.loads(sent.commitment.to_bytes()) for sent in game.sent.values()]
    binary.append(game.total._total.tobytes())
    if absent:
        game.agree()
    game.unmask()
    for step in ("agree", "unmask"):
        request = game.total.request(step)
        said.append(json.loads(request.sign(consortium.signing["site-0"]).to_bytes()))
    binary += [game.total.payload_for(name) for name in game.total.survivors]
    binary += [part for survivor in game.total._in.values() for part in survivor.sealed]
    binary += game.total._shares.values()
    binary.append(game.total._total.tobytes())
    said += [json.loads(envelope.to_bytes()) for envelope in game.total._agreements.values()]
    binary += [json.dumps(said).encode()]
    # Between the parts there is something that no window crosses.
    return b"\0\xff\0\xff".join(binary), said, given, words


@pytest.mark.parametrize("absent", [[], ["site-1", "site-4"]])
@pytest.mark.parametrize("num_values", [201, 0])
@pytest.mark.parametrize("bits", [6, 16])  # a modulus below and above 32 bits
def test_nothing_of_a_site_is_in_what_the_server_sees(
    absent: list[str], num_values: int, bits: int, make_consortium: Any, rounds: Any
) -> None:
    consortium = make_consortium(5, num_values=num_values, max_weight=2**20, bits=bits)
    seen, said, given, words = play(consortium, rounds, absent)
    seen_windows = set(windows(seen))
    seen_numbers = {float(number) for number in json_numbers(said)}
    for name in consortium.names:
        secrets = secrets_of(given[name], words[name], consortium.layout().modulus_bits)
        assert len(secrets) > 15
        assert not secrets & seen_windows
        assert not [number for number in numbers_of(given[name]) if number in seen]
        assert float(given[name].weight) not in seen_numbers
        metrics = [*given[name].train_metrics.values(), *given[name].evaluate_metrics.values()]
        assert not seen_numbers & set(metrics)


def test_the_search_covers_all_that_a_server_holds(make_consortium: Any, rounds: Any) -> None:
    consortium = make_consortium(4)
    game = rounds.masked(consortium)
    held = set(type(game.total).__init__.__code__.co_names)
    own = {name for name in held if re.fullmatch(r"_[a-z_]+", name)}
    assert own == {
        "_digest", "_layout", "_keys", "_threshold", "_floor", "_cohort", "_manifest",  # public
        "_total", "_in", "_is_fixed", "_agreements", "_shares",
    }  # fmt: skip


@pytest.mark.parametrize("form", ["packed", "words", "wide words", "update", "half masked"])
@pytest.mark.parametrize("bits", [6, 16])
def test_the_same_search_finds_a_payload_without_masks(
    form: str, bits: int, make_consortium: Any, rounds: Any
) -> None:
    consortium = make_consortium(5, num_values=201, max_weight=2**20, bits=bits)
    seen, _, given, words = play(consortium, rounds, [])
    modulus_bits = consortium.layout().modulus_bits
    reduced = words["site-2"].copy()
    reduce_words(reduced, modulus_bits)
    leak = {
        "packed": pack(reduced, modulus_bits),
        "words": words["site-2"].tobytes(),
        "wide words": reduced.astype("<u8").tobytes(),
        "update": given["site-2"].update.tobytes(),
        "half masked": np.random.default_rng(0).bytes(300) + pack(reduced, modulus_bits)[300:],
    }[form]
    secrets = secrets_of(given["site-2"], words["site-2"], modulus_bits)
    assert secrets & set(windows(seen + leak))
    number = given["site-2"].weight.to_bytes(8, "little")
    assert number in seen + b"\x07" + number


def test_the_same_search_finds_a_number_in_a_statement() -> None:
    inner = json.dumps({"weight": 408_928, "site_id": "site-1"})
    assert 408_928 in set(json_numbers([{"payload": inner}]))
