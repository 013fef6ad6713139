"""Keys of a masked run, made once for each name: key generation costs more than a round."""

from functools import lru_cache
from typing import Final

from fedhealth.evidence.signing import Envelope, SigningKey
from fedhealth.secagg.mask_keys import RunKey
from fedhealth.secagg.statements import MaskKey

STUDY: Final = "a" * 64
SERVER: Final = SigningKey.generate()


@lru_cache
def keys_of(name: str) -> tuple[SigningKey, RunKey, Envelope]:
    """A site's signing key, its key of the run, and its signed statement of that key."""
    signing, running = SigningKey.generate(), RunKey.generate()
    said = MaskKey(
        study_id="study",
        study_sha256=STUDY,
        run_name="main",
        site_id=name,
        public_key=running.public,
    )
    return signing, running, said.sign(signing)
