"""The coordinates of a round: the manifest's choice, the same at every site, and fair."""

import hashlib

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from fedhealth.secagg.coordinates import exact_share, kept_coordinates


def manifest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


@pytest.mark.parametrize("num", [0, 1, 1000, (1 << 18) + 5, (1 << 19) + 1])
def test_every_site_keeps_the_coordinates_that_the_keystream_of_the_manifest_names(
    num: int,
) -> None:
    digest = manifest(1)
    kept = kept_coordinates(digest, num, 0.25)
    key = hashlib.sha256(f"fedhealth/secagg/coordinates/1|{digest}".encode()).digest()
    raw = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(2 * num))
    expected = [i for i in range(num) if int.from_bytes(raw[2 * i : 2 * i + 2], "little") < 2**14]
    assert kept is not None
    assert kept.tolist() == expected


def test_another_manifest_keeps_other_coordinates() -> None:
    first, second = (kept_coordinates(manifest(n), 10_000, 0.5) for n in (1, 2))
    assert first is not None
    assert second is not None
    common = np.intersect1d(first, second).size
    assert abs(common - 2500) < 6 * np.sqrt(10_000 * 0.25 * 0.75)


@pytest.mark.parametrize("share", [2**-16, 0.01, 0.5, 0.999])
def test_the_share_that_is_kept_is_the_share_that_was_asked_for(share: float) -> None:
    num = 1_000_000
    kept = kept_coordinates(manifest(3), num, share)
    assert kept is not None
    exact = round(share * 2**16) / 2**16
    assert abs(kept.size - num * exact) <= 6 * np.sqrt(num * exact * (1 - exact)) + 1


def test_all_coordinates_travel_at_a_share_of_one() -> None:
    assert kept_coordinates(manifest(1), 10, 1.0) is None
    assert exact_share(1.0) == 1.0


def test_what_travelled_is_spread_so_that_its_mean_over_rounds_is_the_whole_update() -> None:
    update = np.linspace(-1, 2, 200)
    share, rounds = 0.3, 4000
    total = np.zeros(200)
    for number in range(rounds):
        kept = kept_coordinates(manifest(number), 200, share)
        assert kept is not None
        total[kept] += update[kept] / exact_share(share)
    error = np.abs(total / rounds - update)
    # six standard errors of a Bernoulli(p) scaled by 1 / p
    assert (error <= 6 * np.abs(update) * np.sqrt((1 - share) / share / rounds) + 1e-4).all()
