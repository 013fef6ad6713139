"""Secure aggregation at a hospital: keys of a run, the mask of a round, and answers to the server's unmasking trips.

What has to survive a restart is written before it leaves: the key of the run, the manifest that was answered, and
the one list of survivors that this site accepted for it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from fedhealth.contracts.aggregation import CLIPPING_NORM
from fedhealth.contracts.codes import DropCode
from fedhealth.contracts.local_training import Vector
from fedhealth.durable import read_json, write_json
from fedhealth.errors import EvidenceError, IdentityError
from fedhealth.evidence.presence import owners_of
from fedhealth.evidence.signing import Envelope
from fedhealth.evidence.statements import Manifest, open_statement
from fedhealth.gate.gate import (
    Masked,
    NoiseTerms,
    release_agreement,
    release_keys,
    release_shares,
)
from fedhealth.gate.outbound import Cleared, ClearedSum
from fedhealth.privacy.randomness import Randomness
from fedhealth.secagg import fixed_point
from fedhealth.secagg.coordinates import kept_coordinates
from fedhealth.secagg.guard import Floors, Guard
from fedhealth.secagg.layout import MaskedLayout
from fedhealth.secagg.mask_keys import RunKey
from fedhealth.secagg.mask_stream import Words
from fedhealth.secagg.metric_blur import blur_metrics
from fedhealth.secagg.refusals import MaskingError, MaskingRefusedError
from fedhealth.secagg.round_settings import (
    distributed_plan,
    rotation_seed,
    round_layout,
    round_masking,
    weighs_by_size,
)
from fedhealth.secagg.site_side import MaskingSite, sealed_size
from fedhealth.secagg.statements import KeyRequest, MaskKey, UnmaskRequest
from fedhealth.site.answers import SignedAnswer
from fedhealth.site.home import Pinned

KEY_REQUEST: Final = KeyRequest.payload_type()
UNMASK_REQUEST: Final = UnmaskRequest.payload_type()


S = TypeVar("S", KeyRequest, UnmaskRequest)


class SiteMasking:
    """This site's part of secure aggregation in one study.

    Args:
        pinned: what the site believes, with the roster that it pinned.
        guard: the checks.
    """

    def __init__(self, pinned: Pinned, guard: Guard | None = None) -> None:
        self._pinned = pinned
        self._guard = Guard() if guard is None else guard
        rules = pinned.config.secure_aggregation
        self._floors = Floors(min_survivors=rules.min_survivors, colluding=rules.colluding)

    @property
    def largest_request_bytes(self) -> int:
        """Most bytes that come with an unmask request: every site's sealed shares."""
        num = len(self._pinned.roster)
        return num * sealed_size(num)

    def give_key(self, envelope: Envelope) -> SignedAnswer:
        """This site's public key of a run; made at the first request, the same ever after.

        Raises:
            MaskingRefusedError: the request is not the pinned server's, or not for this study.
        """
        request = self._open(KeyRequest, envelope)
        study = self._pinned.study
        runs = {run.name for run in study.runs}
        if (request.study_id, request.study_sha256) != (study.id, self._pinned.study_sha256):
            raise MaskingRefusedError(DropCode.STUDY_MISMATCH, "it is for another study")
        if study.secure_aggregation is None or request.run_name not in runs:
            raise MaskingRefusedError(DropCode.STUDY_MISMATCH, "the study has no such masked run")
        said = MaskKey(
            study_id=study.id,
            study_sha256=self._pinned.study_sha256,
            run_name=request.run_name,
            site_id=self._pinned.config.site_id,
            public_key=self._run_key(request.run_name).public,
        )
        signed = said.sign(self._pinned.signing_key)
        return SignedAnswer(outbound=release_keys(said.public_key.encode()), contribution=signed)

    def prepare(self, manifest: Manifest, envelope: Envelope) -> "RoundMask | None":
        """Check a round's masks before anything is computed; None where the round has nothing to mask.

        Raises:
            MaskingRefusedError: see `Guard`; or the study has masks and the manifest has not.
            PrivacyError, MaskingError: the study's own settings do not fit.
        """
        study = self._pinned.study
        run = study.run(manifest.run_name)
        expected = round_masking(
            study, run, num_sites=len(manifest.cohort), num_elements=manifest.spec.num_elements
        )
        if expected is None:
            if manifest.masking is not None:
                raise MaskingRefusedError(DropCode.SECAGG_SETTINGS, "the study has no masks")
            return None
        self._guard.check_settings(manifest, expected)
        if CLIPPING_NORM in manifest.strategy_config:
            # Two sums with two norms would show the longest update of all. Noise under the masks has a norm of its own.
            raise MaskingRefusedError(
                DropCode.SECAGG_SETTINGS, "it cuts whole updates to a norm that is not the study's"
            )
        self._check_newer(manifest)
        self._check_same_settings(manifest)
        site = self._site(manifest, envelope.payload_digest)
        layout = round_layout(manifest, envelope.payload_digest, study)
        if layout is None:
            return None
        return RoundMask(
            pinned=self._pinned,
            site=site,
            layout=layout,
            manifest=manifest,
            envelope=envelope,
            state=self._state(manifest.run_name),
        )

    def answer(self, envelope: Envelope, payload: bytes) -> SignedAnswer:
        """Agree to a list of survivors, or give shares for it. The list is on disk before the answer leaves.

        Raises:
            MaskingRefusedError: see `Guard`; or nothing is known of that round.
        """
        request = self._open(UnmaskRequest, envelope)
        path, state = self._find_state(request.manifest_sha256)
        signed = Envelope.model_validate(state["manifest"])
        manifest = open_statement(Manifest, signed, self._pinned.server_key)
        site = self._site(manifest, signed.payload_digest)
        self._check_same_settings(manifest)
        for opened in self._opened(manifest):
            self._guard.check_first_list(request, opened)
        accepted = state.get("survivors")
        if request.step == "agree":
            said = site.agree(request, payload, accepted)
            write_json(path, state | {"survivors": list(request.survivors)})
            return SignedAnswer(
                outbound=release_agreement(), contribution=said.sign(self._pinned.signing_key)
            )
        statement, shares = site.shares(request, payload, accepted)
        write_json(path, state | {"survivors": list(request.survivors)})
        self._remember_opened(manifest, list(request.survivors))
        return SignedAnswer(
            outbound=release_shares(shares), contribution=statement.sign(self._pinned.signing_key)
        )

    def _check_newer(self, manifest: Manifest) -> None:
        """A mask of a round that was masked before would use the same pairwise masks again, or forget a list."""
        last = read_json(self._state(manifest.run_name)).get("place", [0, 0, 0])
        if _place(manifest) <= last:
            raise MaskingRefusedError(
                DropCode.MANIFEST_REPLAYED,
                "this site has masked that round, or a later one, before",
            )

    def _opened(self, manifest: Manifest) -> list[list[str]]:
        """Lists that this site gave shares for in another attempt at this round, or for a sum from the same model.

        Local training and evaluation repeat themselves: two sums of one round, or two sums about one model in whatever
        round or run, over two lists would show the site in between.
        """
        return [list(entry["survivors"]) for entry in self._opened_like(manifest)]

    def _opened_like(self, manifest: Manifest) -> list[dict[str, Any]]:
        return [
            entry
            for entry in read_json(self._opened_path).get("sums", [])
            if entry["round"] == _round_of(manifest)
            or entry["model_sha256"] == manifest.model_sha256
        ]

    def _check_same_settings(self, manifest: Manifest) -> None:
        """One round, or one model under one strategy, is trained from in one way: local training repeats itself.

        Of two sums of the same updates, weighed by the sites' steps in one of them, the difference is that of the site
        with another number of steps than the rest.
        """
        kind = manifest.kind
        strategies = {run.name: run.strategy for run in self._pinned.study.runs}
        for entry in self._opened_like(manifest):
            run_name, opened_kind, _ = entry["round"]
            is_alike = strategies.get(run_name) == strategies[manifest.run_name]
            is_alike = is_alike and opened_kind == kind
            if is_alike and entry.get("settings") != dict(manifest.strategy_config):
                raise MaskingRefusedError(
                    DropCode.SECAGG_SETTINGS,
                    "a sum of that round, or of its model, was opened with other settings of the strategy",
                )

    def _remember_opened(self, manifest: Manifest, survivors: list[str]) -> None:
        sums = read_json(self._opened_path).get("sums", [])
        entry = {
            "round": _round_of(manifest),
            "model_sha256": manifest.model_sha256,
            "survivors": survivors,
            "settings": dict(manifest.strategy_config),
        }
        if entry not in sums:
            write_json(self._opened_path, {"sums": [*sums, entry]})

    def _site(self, manifest: Manifest, digest: str) -> MaskingSite:
        return MaskingSite(
            site_id=self._pinned.config.site_id,
            signing_key=self._pinned.signing_key,
            run_key=self._run_key(manifest.run_name),
            roster=self._pinned.roster,
            floors=self._floors,
            manifest=manifest,
            manifest_sha256=digest,
            modalities=self._declared(manifest),
            guard=self._guard,
        )

    def _declared(self, manifest: Manifest) -> tuple[str, ...] | None:
        """What a manifest has to say about this site; nothing where nothing in the round depends on it.

        That the manifest names what it has to was checked before anything was masked for it.
        """
        is_by_modality = self._pinned.study.averages_by_modality and manifest.kind == "train"
        says_who = is_by_modality or bool(manifest.summed_modalities)
        return self._pinned.admission.site.modalities if says_who else None

    def _open(self, kind: type[S], envelope: Envelope) -> S:
        try:
            return open_statement(kind, envelope, self._pinned.server_key)
        except (IdentityError, EvidenceError):
            raise MaskingRefusedError(
                DropCode.MANIFEST_INVALID, "it is not signed by the pinned server key"
            ) from None

    def _find_state(self, manifest_sha256: str) -> tuple[Path, dict[str, Any]]:
        for run in self._pinned.study.runs:
            path = self._state(run.name)
            state = read_json(path)
            if state.get("manifest_sha256") == manifest_sha256:
                return path, state
        raise MaskingRefusedError(
            DropCode.SECAGG_UNKNOWN_ROUND, "this site did not answer such a manifest last"
        )

    def _run_key(self, run_name: str) -> RunKey:
        return RunKey.load_or_make(self._folder(run_name) / "mask_key")

    def _state(self, run_name: str) -> Path:
        return self._folder(run_name) / "round.json"

    @property
    def _opened_path(self) -> Path:
        """Of the whole study: runs can begin with the same model."""
        return self._pinned.folder.state / "opened_sums.json"

    def _folder(self, run_name: str) -> Path:
        return self._pinned.folder.state / run_name / "masking"


class RoundMask:
    """The mask of one round at one site; `commitment` is there once it was used, which is once."""

    def __init__(
        self,
        *,
        pinned: Pinned,
        site: MaskingSite,
        layout: MaskedLayout,
        manifest: Manifest,
        envelope: Envelope,
        state: Path,
    ) -> None:
        self._pinned, self._site, self.layout = pinned, site, layout
        self._manifest, self._envelope, self._state = manifest, envelope, state
        self._plan = distributed_plan(pinned.study, manifest.spec.num_elements)
        self.commitment: Envelope | None = None

    @property
    def num_bytes(self) -> int:
        """Of this round's payload, the same at every site."""
        num = len(self._manifest.cohort)
        return self.layout.num_bytes + num * sealed_size(num)

    @property
    def noise(self) -> NoiseTerms | None:
        """Distributed noise of this round; None without."""
        masks = self._pinned.study.secure_aggregation
        if self._plan is None or masks is None:
            return None
        return NoiseTerms(
            plan=self._plan,
            rotation_seed=rotation_seed(self._envelope.payload_digest),
            most_patients=masks.max_train_size,
            randomness=Randomness.from_os(),
        )

    def mask(self, cleared: Cleared | ClearedSum, origin: Vector) -> Masked:
        """Put what was cleared under the mask: a noised sum as it is, or the change, the weight and the metrics.

        Raises:
            MaskingError: it does not fit the layout.
            PermissionError: this mask was used before.
        """
        if self.commitment is not None:
            raise PermissionError(
                "a mask is used once: two vectors under it would show their difference"
            )
        words = (
            fixed_point.with_check_words(cleared.whole, self.layout)
            if isinstance(cleared, ClearedSum)
            else self._words(cleared, origin)
        )
        masked = self._site.mask(words, self.layout.modulus_bits)
        write_json(
            self._state,
            {
                "manifest_sha256": self._envelope.payload_digest,
                "manifest": json.loads(self._envelope.to_bytes()),
                "place": _place(self._manifest),
            },
        )
        self.commitment = masked.commitment
        return Masked(payload=masked.payload, num_words=self.layout.num_words)

    def _words(self, cleared: Cleared, origin: Vector) -> Words:
        masking = self._manifest.masking
        if self._plan is not None or masking is None:
            raise MaskingError("FH-SECAGG-006", "the round masks noised sums only.")
        change = np.empty(0, dtype=np.float32)
        if cleared.vector is not None:
            change = np.subtract(cleared.vector, origin, dtype=np.float32)
            kept = kept_coordinates(self._envelope.payload_digest, change.size, masking.kept_share)
            change = change if kept is None else change[kept]
        study = self._pinned.study
        own, blocks = self._pinned.config.site_id, self._manifest.blocks
        by_size = weighs_by_size(study, study.run(self._manifest.run_name))
        digits, randomness = study.release.metric_digits, Randomness.from_os()
        return fixed_point.encode(
            fixed_point.SumInput(
                update=change,
                weight=self._pinned.config.declared_train_size if by_size else 1,
                train_metrics=blur_metrics(
                    cleared.train_metrics, digits=digits, randomness=randomness
                ),
                evaluate_metrics=blur_metrics(
                    cleared.evaluate_metrics, digits=digits, randomness=randomness
                ),
                trains=tuple(own in owners_of(self._manifest, b.modality) for b in blocks),
            ),
            self.layout,
            randomness,
        )


def _place(manifest: Manifest) -> list[int]:
    """Order of manifests in a run: rounds, then attempts; the closing evaluation has a round number of its own."""
    return [manifest.round_number, int(manifest.kind == "evaluate"), manifest.attempt]


def _round_of(manifest: Manifest) -> list[str | int]:
    return [manifest.run_name, manifest.kind, manifest.round_number]


def is_masking_request(header: Mapping[str, object]) -> bool:
    """Whether a frame's header is one of secure aggregation's own requests."""
    return header.get("payload_type") in {KEY_REQUEST, UNMASK_REQUEST}
