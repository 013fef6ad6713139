"""Keys and manifests of a run in one process, and the sum of a round. Called by `federation`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar, cast

import numpy as np

from fedhealth.config.load import study_digest
from fedhealth.config.study import Study
from fedhealth.contracts.local_training import Vector
from fedhealth.contracts.tensors import TensorSpec, vector_digest
from fedhealth.evidence.signing import SigningKey
from fedhealth.evidence.statements import CohortMember, Manifest, manifest_tensors
from fedhealth.secagg import fixed_point
from fedhealth.secagg.guard import Floors
from fedhealth.secagg.layout import MaskedLayout
from fedhealth.secagg.mask_keys import RunKey
from fedhealth.secagg.mask_stream import Words, reduce_words
from fedhealth.secagg.round_settings import round_masking
from fedhealth.secagg.server_side import MaskedSum
from fedhealth.secagg.site_side import MaskingSite
from fedhealth.secagg.statements import MaskKey
from fedhealth.server.home import RunFolder
from fedhealth.server.masked_round import MaskedTotal, Masking
from fedhealth.server.messages import RoundTransport

T = TypeVar("T")


def given(value: T | None) -> T:
    """What this round surely has."""
    if value is None:
        raise SystemExit("something of a round is missing")
    return value


class Keys:
    """Keys of server and sites, manifests, and the sum of a round, with masks in the first one and without."""

    def __init__(self, study: Study, names: list[str], state: Path) -> None:
        self.study, self.run, self.server = study, study.runs[0], SigningKey.generate()
        self.signing = {name: SigningKey.generate() for name in names}
        self.running = {name: RunKey.generate() for name in names}
        self.masking = Masking(
            study=study,
            run=self.run,
            folder=RunFolder(state / "server"),
            signing_key=self.server,
            transport=cast("RoundTransport", None),  # nothing is sent
            issued=frozenset(names),
        )

    def digest(self, manifest: Manifest) -> str:
        """What names the round."""
        return manifest.sign(self.server).payload_digest

    def manifest(
        self, spec: TensorSpec, vector: Vector, number: int, config: Mapping[str, float | bool]
    ) -> Manifest:
        """Of one round, with the masks of the study."""
        num_sites, digest = len(self.signing), study_digest(self.study)
        return Manifest(
            study_id=self.study.id,
            study_sha256=digest,
            run_name=self.run.name,
            flower_run_id="1",
            round_number=number,
            attempt=1,
            kind="train",
            model_sha256=vector_digest(vector),
            tensors=manifest_tensors(spec),
            cohort=tuple(self._member(name, digest) for name in self.signing),
            min_cohort=self.study.federation.min_cohort,
            strategy_config=dict(config),
            masking=round_masking(
                self.study, self.run, num_sites=num_sites, num_elements=spec.num_elements
            ),
            deadline_s=60,
            opened_at="2026-01-01T00:00:00Z",
        )

    def _member(self, name: str, digest: str) -> CohortMember:
        said = MaskKey(
            study_id=self.study.id,
            study_sha256=digest,
            run_name=self.run.name,
            site_id=name,
            public_key=self.running[name].public,
        )
        key = self.signing[name]
        return CohortMember(site_id=name, key_id=key.public.key_id, mask_key=said.sign(key))

    def open(
        self, words: list[Words], manifest: Manifest, layout: MaskedLayout, origin: Vector
    ) -> MaskedTotal:
        """What the server makes of the sum. In the first round masks have to give the same sum."""
        total = np.zeros_like(words[0])
        for one in words:
            np.add(total, one, out=total)
        reduce_words(total, layout.modulus_bits)
        is_first = manifest.round_number == 1
        if is_first and not np.array_equal(total, self._unmasked(words, manifest, layout)):
            raise SystemExit("the sum under masks is not the plain sum")
        fixed_point.check_sum(total, layout, len(words))
        return self.masking._total(  # noqa: SLF001 - what the server does with a sum, without its trips
            total, layout, list(self.signing), manifest, self.digest(manifest), origin
        )

    def _unmasked(self, words: list[Words], manifest: Manifest, layout: MaskedLayout) -> Words:
        digest, roster = self.digest(manifest), {n: k.public for n, k in self.signing.items()}
        masks = given(self.study.secure_aggregation)
        floors = Floors(min_survivors=masks.min_survivors, colluding=masks.colluding)
        total, sites = MaskedSum(manifest, digest, layout, roster), {}
        for (name, key), own in zip(self.signing.items(), words, strict=True):
            sites[name] = MaskingSite(
                site_id=name,
                signing_key=key,
                run_key=self.running[name],
                roster=roster,
                floors=floors,
                manifest=manifest,
                manifest_sha256=digest,
            )
            masked = sites[name].mask(own.copy(), layout.modulus_bits)
            total.add(name, masked.commitment, masked.payload)
        request = total.request("unmask")
        for name, site in sites.items():
            said, shares = site.shares(request, total.payload_for(name), None)
            total.take_shares(name, said.sign(self.signing[name]), shares)
        return total.remove_masks()
