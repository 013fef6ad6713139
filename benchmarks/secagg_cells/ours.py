"""One round of our secure aggregation without a network: `MaskingSite` in one process, `MaskedSum` in another.

Every site really runs. A site's vector is a file between the two, so that the server holds what it would hold: its
sum and one reply. Times are processor seconds of the product's code; reading and writing the files is not in them.
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from secagg_cells.processes import Memory, Row, Seconds, cpu, sites_process

from fedhealth.config.secure_aggregation import SecureAggregation
from fedhealth.evidence.signing import Envelope, SigningKey, VerifyKey
from fedhealth.evidence.statements import (
    CohortMember,
    Manifest,
    ManifestTensor,
    RoundMasking,
    parse_statement,
)
from fedhealth.privacy.randomness import Randomness
from fedhealth.secagg.fixed_point import SumInput, decode, encode
from fedhealth.secagg.guard import Floors
from fedhealth.secagg.layout import MaskedLayout, TailLayout
from fedhealth.secagg.mask_keys import RunKey
from fedhealth.secagg.mask_stream import reduce_words, word_type
from fedhealth.secagg.quorum import least_threshold
from fedhealth.secagg.server_side import MaskedSum
from fedhealth.secagg.site_side import MaskingSite
from fedhealth.secagg.statements import MaskKey, UnmaskRequest

DIGEST = "a" * 64
STUDY, RUN = "bench", "main"
DEFAULTS = SecureAggregation()  # of a study that says nothing more
METRICS = TailLayout(train_metrics=("train_loss",), evaluate_metrics=("auc",))
SPREAD = 0.05
MODEL_BYTES = 4  # of a parameter, float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A round to measure; the last `dropped` sites of the cohort never answer."""

    sites: int
    parameters: int
    dropped: int = 0

    @property
    def names(self) -> list[str]:
        """The cohort, in its order."""
        return [f"site-{number:03d}" for number in range(self.sites)]

    @property
    def survivors(self) -> list[str]:
        """Those that answer."""
        return self.names[: self.sites - self.dropped]

    @property
    def threshold(self) -> int:
        """Sites whose shares it takes."""
        return least_threshold(self.sites, DEFAULTS.colluding)


def weight_of(index: int) -> int:
    """Of the site at that place of the cohort."""
    return 10 * (index + 1)


def update_of(index: int, parameters: int) -> NDArray[np.float32]:
    """A site's update, the same at every call."""
    drawn = np.random.default_rng(index).standard_normal(parameters, dtype=np.float32)
    return np.multiply(drawn, np.float32(SPREAD), out=drawn)


def layout_of(cell: Cell) -> MaskedLayout:
    """As the product makes it of a study with default settings."""
    return MaskedLayout(
        num_sites=cell.sites,
        num_values=cell.parameters,
        levels=2 ** (DEFAULTS.bits - 1) - 1,
        value_range=DEFAULTS.value_range,
        max_weight=DEFAULTS.max_train_size,
        tail=METRICS,
    )


class Sites:
    """All sites of a round, in the process beside the server's."""

    def __init__(self, cell: Cell, folder: Path) -> None:
        self._cell, self._folder, self._layout = cell, folder, layout_of(cell)
        self._keys = {name: SigningKey.generate() for name in cell.names}
        self._run_keys = {name: RunKey.generate() for name in cell.names}
        self._roster = {name: key.public for name, key in self._keys.items()}
        self._plain = np.zeros(self._layout.num_words, dtype=word_type(self._layout.modulus_bits))
        self.seconds: dict[str, Seconds] = {name: {} for name in cell.survivors}

    def keys(self) -> dict[str, tuple[str, bytes]]:
        """Signing key and signed mask key of every site."""
        return {
            name: (key.public.to_base64(), self._mask_key(name)) for name, key in self._keys.items()
        }

    def take_manifest(self, data: bytes) -> None:
        """The round begins."""
        envelope = Envelope.from_bytes(data)
        self._manifest = parse_statement(Manifest, envelope.payload)
        self._digest = envelope.payload_digest

    def mask(self, name: str) -> bytes:
        """Trip 1: the payload is in the folder, the signed commitment comes back."""
        index = self._cell.names.index(name)
        given = SumInput(
            update=update_of(index, self._cell.parameters),
            weight=weight_of(index),
            train_metrics={"train_loss": 0.5},
            evaluate_metrics={"auc": 0.7},
        )
        with cpu(self.seconds[name], "encode"):
            words = encode(given, self._layout, Randomness.from_os())
        np.add(self._plain, words, out=self._plain)
        with cpu(self.seconds[name], "mask"):
            masked = self._site(name).mask(words, self._layout.modulus_bits)
            payload = masked.payload
        (self._folder / name).write_bytes(payload)
        return masked.commitment.to_bytes()

    def agree(self, name: str, request: bytes, payload: bytes) -> bytes:
        """Trip 2 after a drop-out: a signature over the list of survivors."""
        with cpu(self.seconds[name], "unmask"):
            asked = parse_statement(UnmaskRequest, Envelope.from_bytes(request).payload)
            said = self._site(name).agree(asked, payload, None)
            return said.sign(self._keys[name]).to_bytes()

    def share(self, name: str, request: bytes, payload: bytes) -> tuple[bytes, bytes]:
        """The last trip: signed statement, and shares."""
        with cpu(self.seconds[name], "unmask"):
            asked = parse_statement(UnmaskRequest, Envelope.from_bytes(request).payload)
            said, shares = self._site(name).shares(asked, payload, None)
            return said.sign(self._keys[name]).to_bytes(), shares

    def save_plain_sum(self) -> str:
        """What the unmasked sum has to be, word for word."""
        reduce_words(self._plain, self._layout.modulus_bits)
        path = self._folder / "plain.npy"
        np.save(path, self._plain)
        return str(path)

    def _site(self, name: str) -> MaskingSite:
        return MaskingSite(  # anew in every trip, as at a hospital
            site_id=name,
            signing_key=self._keys[name],
            run_key=self._run_keys[name],
            roster=self._roster,
            floors=Floors(min_survivors=DEFAULTS.min_survivors, colluding=DEFAULTS.colluding),
            manifest=self._manifest,
            manifest_sha256=self._digest,
        )

    def _mask_key(self, name: str) -> bytes:
        said = MaskKey(
            study_id=STUDY,
            study_sha256=DIGEST,
            run_name=RUN,
            site_id=name,
            public_key=self._run_keys[name].public,
        )
        return said.sign(self._keys[name]).to_bytes()


def serve(connection: Connection, folder: Path, cell: Cell) -> None:
    """Play the sites until the server is done."""
    sites = Sites(cell, folder)
    while True:
        try:
            name, *arguments = connection.recv()
        except EOFError:
            return
        connection.send(sites.seconds if name == "seconds" else getattr(sites, name)(*arguments))


class Server:
    """The server's side of a cell."""

    def __init__(self, cell: Cell, connection: Connection, folder: Path) -> None:
        self._cell, self._connection, self._folder = cell, connection, folder
        self.seconds: Seconds = {}
        self.up, self.down = dict.fromkeys(cell.survivors, 0), dict.fromkeys(cell.survivors, 0)
        self.trips = 0
        keys: Mapping[str, tuple[str, bytes]] = self.ask("keys")
        self.key_bytes = len(next(iter(keys.values()))[1])
        self._key = SigningKey.generate()
        self._roster = {name: VerifyKey.from_base64(key) for name, (key, _) in keys.items()}
        masks = {name: Envelope.from_bytes(mask) for name, (_, mask) in keys.items()}
        manifest = _manifest(cell, self._roster, masks)
        signed = manifest.sign(self._key)
        self._manifest, self._envelope = manifest, signed.to_bytes()
        self.ask("take_manifest", self._envelope)
        self.layout = layout_of(cell)
        self.total = MaskedSum(manifest, signed.payload_digest, self.layout, self._roster)

    def ask(self, *order: object) -> Any:  # noqa: ANN401 - each order has an answer of its own
        """Have the process of the sites carry out one method of `Sites`."""
        self._connection.send(order)
        return self._connection.recv()

    def collect(self) -> None:
        """Trip 1: model and manifest go down, masked vectors come up, one at a time."""
        self.trips += 1
        for name in self._cell.survivors:
            commitment = self.ask("mask", name)
            path = self._folder / name
            payload = path.read_bytes()
            path.unlink()
            with cpu(self.seconds, "add"):
                is_good = self.total.add(name, Envelope.from_bytes(commitment), payload)
            if not is_good:
                raise RuntimeError("a masked vector was refused")
            self.up[name] += len(payload) + len(commitment)
            self.down[name] += len(self._envelope) + MODEL_BYTES * self._cell.parameters

    def agree(self) -> None:
        """The trip that a drop-out adds."""
        self.trips += 1
        request = self.total.request("agree").sign(self._key).to_bytes()
        for name in self._cell.survivors:
            payload = self.total.payload_for(name)
            said = self.ask("agree", name, request, payload)
            with cpu(self.seconds, "unmask"):
                is_good = self.total.take_agreement(name, Envelope.from_bytes(said))
            if not is_good:
                raise RuntimeError("an agreement was refused")
            self.up[name] += len(said)
            self.down[name] += len(request) + len(payload)

    def gather_shares(self) -> None:
        """The last trip."""
        self.trips += 1
        request = self.total.request("unmask").sign(self._key).to_bytes()
        for name in self._cell.survivors:
            payload = self.total.payload_for(name)
            said, shares = self.ask("share", name, request, payload)
            with cpu(self.seconds, "unmask"):
                is_good = self.total.take_shares(name, Envelope.from_bytes(said), shares)
            if not is_good:
                raise RuntimeError("shares were refused")
            self.up[name] += len(said) + len(shares)
            self.down[name] += len(request) + len(payload)


def _manifest(
    cell: Cell, roster: Mapping[str, VerifyKey], masks: Mapping[str, Envelope]
) -> Manifest:
    tensor = ManifestTensor(name="w", shape=(cell.parameters,), offset=0, dtype="float32")
    masking = RoundMasking(
        threshold=cell.threshold,
        min_survivors=DEFAULTS.min_survivors,
        bits=DEFAULTS.bits,
        value_range=DEFAULTS.value_range,
        max_weight=DEFAULTS.max_train_size,
        kept_share=1.0,
    )
    return Manifest(
        study_id=STUDY,
        study_sha256=DIGEST,
        run_name=RUN,
        flower_run_id="1",
        round_number=1,
        attempt=1,
        kind="train",
        model_sha256=DIGEST,
        tensors=(tensor,),
        cohort=tuple(
            CohortMember(site_id=name, key_id=roster[name].key_id, mask_key=masks[name])
            for name in cell.names
        ),
        min_cohort=DEFAULTS.min_survivors,
        strategy_config={},
        masking=masking,
        deadline_s=10,
        opened_at="2026-01-01T00:00:00Z",
    )


def measure(cell: Cell) -> Row:
    """Run a round; the row says whether its sum is the plain one, bit for bit."""
    with sites_process(serve, cell) as (connection, folder):
        server = Server(cell, connection, folder)
        origin = np.ones(
            cell.parameters, dtype=np.float32
        )  # the round's model, there from the start
        begin, memory = time.monotonic(), Memory()
        server.collect()
        if cell.dropped:
            server.agree()
        server.gather_shares()
        with cpu(server.seconds, "unmask"):
            words = server.total.remove_masks()
        sum_bytes = memory.peak_bytes()
        with cpu(server.seconds, "decode"):
            said = decode(words, server.layout)
            new_model = said.moved(origin, None, 1.0)
        peak_bytes, wall_s = memory.peak_bytes(), time.monotonic() - begin
        plain = np.load(server.ask("save_plain_sum"), mmap_mode="r")
        expected = sum(weight_of(index) for index in range(len(cell.survivors)))
        is_right = (
            bool(np.array_equal(words, plain))
            and said.weight == expected
            and bool(np.isfinite(new_model).all())
        )
        return _row(cell, server, server.ask("seconds")) | {
            "server_models_sum": round(sum_bytes / (MODEL_BYTES * cell.parameters), 2),
            "server_models": round(peak_bytes / (MODEL_BYTES * cell.parameters), 2),
            "wall_s": round(wall_s, 2),
            "result_is_right": is_right,
        }


def _row(cell: Cell, server: Server, of_sites: Mapping[str, Seconds]) -> Row:
    def median(part: str) -> float:
        return round(statistics.median(one[part] for one in of_sites.values()), 4)

    up, down = statistics.median(server.up.values()), statistics.median(server.down.values())
    return {
        "protocol": "fedhealth",
        "sites": cell.sites,
        "parameters": cell.parameters,
        "dropped": cell.dropped,
        "sites_run": len(cell.survivors),
        "modulus_bits": server.layout.modulus_bits,
        "site_encode_s": median("encode"),
        "site_mask_s": median("mask"),
        "site_unmask_s": median("unmask"),
        "site_s": round(statistics.median(sum(one.values()) for one in of_sites.values()), 4),
        "bytes_up": int(up),
        "bytes_down": int(down),
        "bytes_up_per_parameter": round(up / cell.parameters, 4),
        "bytes_down_per_parameter": round(down / cell.parameters, 4),
        "key_bytes_a_run": server.key_bytes,
        "trips": server.trips,
        "server_parts_s": {part: round(value, 4) for part, value in server.seconds.items()},
        "server_s": round(sum(server.seconds.values()), 4),
    }
