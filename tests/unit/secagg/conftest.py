"""A consortium in memory: real keys, real manifests, and the sites and the server of the product. No network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from fedhealth.evidence.signing import Envelope, SigningKey, VerifyKey
from fedhealth.evidence.statements import CohortMember, Manifest, ManifestTensor, RoundMasking
from fedhealth.secagg.guard import Floors, Guard
from fedhealth.secagg.layout import MaskedLayout, TailLayout
from fedhealth.secagg.mask_keys import RunKey
from fedhealth.secagg.mask_stream import word_type
from fedhealth.secagg.quorum import least_threshold
from fedhealth.secagg.server_side import MaskedSum
from fedhealth.secagg.site_side import MaskedVector, MaskingSite
from fedhealth.secagg.statements import MaskKey

STUDY = "a" * 64
RUN = "main"
SERVER = SigningKey.generate()


@dataclass
class Consortium:
    """Sites with their keys, what they pinned, and one round's manifest."""

    names: list[str]
    colluding: int = 0
    floor: int = 3
    num_values: int = 40
    max_weight: int = 1000
    bits: int = 16
    signing: dict[str, SigningKey] = field(default_factory=dict)
    running: dict[str, RunKey] = field(default_factory=dict)
    declared: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Modalities by site; the first half of the vector is then the block of `mri`."""
    averages_over_all: bool = False
    """That half is averaged over all sites, and is in everybody's sum."""

    def __post_init__(self) -> None:
        for name in self.names:
            self.signing.setdefault(name, SigningKey.generate())
            self.running.setdefault(name, RunKey.generate())

    @property
    def roster(self) -> dict[str, VerifyKey]:
        return {name: self.signing[name].public for name in self.names}

    @property
    def floors(self) -> Floors:
        return Floors(min_survivors=self.floor, colluding=self.colluding)

    def key_of(self, name: str, *, signer: SigningKey | None = None, **changes: Any) -> Envelope:
        """A site's public key, signed; or something else in its place."""
        said = {
            "study_id": "study",
            "study_sha256": STUDY,
            "run_name": RUN,
            "site_id": name,
            "public_key": self.running[name].public,
        }
        return MaskKey.model_validate(said | changes).sign(signer or self.signing[name])

    def member(self, name: str, **changes: Any) -> CohortMember:
        said = {
            "key_id": self.signing[name].public.key_id,
            "mask_key": self.key_of(name),
            "modalities": self.declared.get(name),
        }
        return CohortMember.model_validate({"site_id": name} | said | changes)

    def masking(self, **changes: Any) -> RoundMasking:
        said = {
            "threshold": least_threshold(len(self.names), self.colluding),
            "min_survivors": self.floor,
            "bits": self.bits,
            "value_range": 1.0,
            "max_weight": self.max_weight,
            "kept_share": 1.0,
        }
        return RoundMasking.model_validate(said | changes)

    def manifest(
        self, *, members: Sequence[CohortMember] | None = None, **changes: Any
    ) -> Manifest:
        cohort = [self.member(name) for name in self.names] if members is None else members
        said = {
            "study_id": "study",
            "study_sha256": STUDY,
            "run_name": RUN,
            "flower_run_id": "1",
            "round_number": 1,
            "attempt": 1,
            "kind": "train",
            "model_sha256": "b" * 64,
            "tensors": tuple(
                ManifestTensor(name=name, shape=(size,), offset=offset, dtype="float32")
                for name, size, offset in self.tensors
            ),
            "blocks": ({"modality": "mri", "tensors": ("mri",)},) if self.has_blocks else (),
            "summed_modalities": ("mri",) if self.declared and self.averages_over_all else (),
            "cohort": tuple(cohort),
            "min_cohort": 2,
            "strategy_config": {},
            "masking": self.masking(),
            "deadline_s": 10,
            "opened_at": "2026-01-01T00:00:00Z",
        }
        return Manifest.model_validate(said | changes)

    @property
    def has_blocks(self) -> bool:
        """Whether the half of `mri` is averaged over its owners."""
        return bool(self.declared) and not self.averages_over_all

    @property
    def tensors(self) -> list[tuple[str, int, int]]:
        """Name, size and offset of each."""
        if not self.declared:
            return [("w", max(1, self.num_values), 0)]
        half = self.num_values // 2
        return [("mri", half, 0), ("w", self.num_values - half, half)]

    def digest(self, manifest: Manifest) -> str:
        return manifest.sign(SERVER).payload_digest

    def layout(self) -> MaskedLayout:
        return MaskedLayout(
            num_sites=len(self.names),
            num_values=self.num_values,
            levels=2 ** (self.bits - 1) - 1,
            value_range=1.0,
            max_weight=self.max_weight,
            tail=TailLayout(
                train_metrics=("train_loss",),
                evaluate_metrics=("auc",),
                num_blocks=1 if self.has_blocks else 0,
            ),
        )

    def site(
        self,
        name: str,
        manifest: Manifest,
        *,
        guard: Guard | None = None,
        kind: type[MaskingSite] = MaskingSite,
        floors: Floors | None = None,
        run_key: RunKey | None = None,
    ) -> MaskingSite:
        return kind(
            site_id=name,
            signing_key=self.signing[name],
            run_key=self.running[name] if run_key is None else run_key,
            roster=self.roster,
            floors=self.floors if floors is None else floors,
            manifest=manifest,
            manifest_sha256=self.digest(manifest),
            modalities=self.declared.get(name),
            guard=guard,
        )

    def words(self, name: str, count: int | None = None, modulus_bits: int | None = None) -> Any:
        """What a site has to hide: the same words whenever they are asked for."""
        layout = self.layout()
        rng = np.random.default_rng([7, *name.encode()])
        bits = layout.modulus_bits if modulus_bits is None else modulus_bits
        most = rng.integers(
            0, 2**bits, layout.num_words if count is None else count, dtype=np.uint64
        )
        return most.astype(word_type(bits))


@dataclass
class Round:
    """One round's honest server with its sites, as far as it went."""

    consortium: Consortium
    manifest: Manifest
    total: MaskedSum
    sites: dict[str, MaskingSite]
    sent: dict[str, MaskedVector]
    accepted: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def masked(
        cls,
        consortium: Consortium,
        *,
        absent: Sequence[str] = (),
        words: Mapping[str, Any] | None = None,
        guard: Guard | None = None,
        kind: type[MaskingSite] = MaskingSite,
        manifest: Manifest | None = None,
    ) -> "Round":
        """Every site masks; the vectors of the `absent` do not arrive in time."""
        manifest = consortium.manifest() if manifest is None else manifest
        layout = consortium.layout()
        total = MaskedSum(manifest, consortium.digest(manifest), layout, consortium.roster)
        sites, sent = {}, {}
        for name in [member.site_id for member in manifest.cohort]:
            sites[name] = consortium.site(name, manifest, guard=guard, kind=kind)
            given = consortium.words(name) if words is None else words[name].copy()
            sent[name] = sites[name].mask(given, layout.modulus_bits)
            if name not in absent:
                assert total.add(name, sent[name].commitment, sent[name].payload)
        return cls(consortium, manifest, total, sites, sent)

    def agree(self, names: Sequence[str] | None = None) -> None:
        request = self.total.request("agree")
        for name in self.total.survivors if names is None else names:
            said = self.sites[name].agree(
                request, self.total.payload_for(name), self.accepted.get(name)
            )
            self.accepted[name] = request.survivors
            assert self.total.take_agreement(name, said.sign(self.consortium.signing[name]))

    def unmask(self, names: Sequence[str] | None = None) -> None:
        request = self.total.request("unmask")
        for name in self.total.survivors if names is None else names:
            said, shares = self.sites[name].shares(
                request, self.total.payload_for(name), self.accepted.get(name)
            )
            self.accepted[name] = request.survivors
            assert self.total.take_shares(name, said.sign(self.consortium.signing[name]), shares)


@pytest.fixture(scope="session")
def make_consortium() -> Any:
    """Four sites if nothing else is said."""

    def make(num: int = 4, **changes: Any) -> Consortium:
        return Consortium([f"site-{index}" for index in range(num)], **changes)

    return make


@pytest.fixture(scope="session")
def rounds() -> Any:
    """The class `Round`."""
    return Round
