"""The loops that a masked round spends its time in, one by one; and whether a second core would help with the masks.

Best of a few repeats: on a machine with other work the least is what the code itself takes.
"""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from secagg_cells.ours import Cell, layout_of, update_of, weight_of
from secagg_cells.processes import Row

from fedhealth.privacy.randomness import Randomness
from fedhealth.secagg.fixed_point import SumInput, decode, encode
from fedhealth.secagg.mask_stream import Words, add_mask, reduce_words, word_type
from fedhealth.secagg.packing import pack, unpack
from fedhealth.secagg.shamir import SEED_BYTES

REPEATS = 3
THREADS = 2
WORTH_IT = 1.5


def measure(cell: Cell) -> Row:
    """Processor seconds of each loop for one vector, and the gain of two threads over a round's masks."""
    layout = layout_of(cell)
    given = SumInput(
        update=update_of(0, cell.parameters),
        weight=weight_of(0),
        train_metrics={},
        evaluate_metrics={},
    )
    bits, randomness = layout.modulus_bits, Randomness.from_os()
    words = encode(given, layout, randomness)
    seed = os.urandom(SEED_BYTES)
    loops: dict[str, Callable[[], object]] = {
        "encode": lambda: encode(given, layout, randomness),
        "one mask": lambda: add_mask(words, seed, 1),
    }
    taken = {name: _least(loop, time.process_time) for name, loop in loops.items()}
    reduce_words(words, bits)
    packed = pack(words, bits)
    total = encode(given, layout, randomness)
    reduce_words(total, bits)
    loops = {
        "pack": lambda: pack(words, bits),
        "digest": lambda: hashlib.sha256(packed).digest(),
        "unpack": lambda: unpack(packed, count=words.size, bits=bits),
        "add": lambda: np.add(words, words),
        "decode": lambda: decode(total, layout),
    }
    taken |= {name: _least(loop, time.process_time) for name, loop in loops.items()}
    return {
        "sites": cell.sites,
        "parameters": cell.parameters,
        "modulus_bits": bits,
        "cpu_s": {name: round(seconds, 4) for name, seconds in taken.items()},
    } | _threads(cell, layout.num_words, bits)


def _threads(cell: Cell, num_words: int, bits: int) -> Row:
    seeds = [
        os.urandom(SEED_BYTES) for _ in range(cell.sites)
    ]  # its own mask, and one for each peer
    one = two = np.zeros(0, dtype=word_type(bits))
    one_s, two_s = float("inf"), float("inf")
    for _ in range(REPEATS):
        begin = time.perf_counter()
        one = _masked(num_words, bits, seeds)
        middle = time.perf_counter()
        two = _masked_by_threads(num_words, bits, seeds)
        one_s = min(one_s, middle - begin)
        two_s = min(two_s, time.perf_counter() - middle)
    return {
        "masks": len(seeds),
        "one_thread_wall_s": round(one_s, 4),
        "two_threads_wall_s": round(two_s, 4),
        "gain_of_two_threads": round(one_s / two_s, 2),
        "is_worth_it": one_s / two_s > WORTH_IT,
        "result_is_right": bool(np.array_equal(one, two)),
    }


def _masked(num_words: int, bits: int, seeds: Sequence[bytes]) -> Words:
    words: Words = np.zeros(num_words, dtype=word_type(bits))
    for seed in seeds:
        add_mask(words, seed, 1)
    return words


def _masked_by_threads(num_words: int, bits: int, seeds: Sequence[bytes]) -> Words:
    """A sum for each thread, which costs a vector more."""
    with ThreadPoolExecutor(THREADS) as pool:
        parts = [pool.submit(_masked, num_words, bits, seeds[i::THREADS]) for i in range(THREADS)]
        first, second = (part.result() for part in parts)
    np.add(first, second, out=first)
    return first


def _least(loop: Callable[[], object], clock: Callable[[], float]) -> float:
    taken = []
    for _ in range(REPEATS):
        begin = clock()
        loop()
        taken.append(clock() - begin)
    return min(taken)
