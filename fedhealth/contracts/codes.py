"""Why a site did not contribute: the closed list of codes. A code is all that ever crosses to another party."""

from enum import StrEnum
from typing import Final


class DropCode(StrEnum):
    """Made at the site (first block), by the relay (second), or by the server (third)."""

    SITE_ERROR = "site_error"
    SITE_DATA = "site_data"
    TRAINING_FAILED = "training_failed"
    CANCELLED = "cancelled"
    REFUSED_BY_GATE = "refused_by_gate"
    NON_FINITE = "non_finite"
    WRONG_SPEC = "wrong_spec"
    MANIFEST_INVALID = "manifest_invalid"
    MANIFEST_REPLAYED = "manifest_replayed"
    STUDY_MISMATCH = "study_mismatch"
    COHORT_REFUSED = "cohort_refused"
    PRESENCE_MISMATCH = "presence_mismatch"
    FROZEN_MISMATCH = "frozen_mismatch"
    SITE_BUSY = "site_busy"
    PRIVACY_POLICY = "privacy_policy"
    PRIVACY_BUDGET = "privacy_budget"
    LEDGER_REFUSED = "ledger_refused"
    SECAGG_BLOCK_FLOOR = "secagg_block_floor"
    SECAGG_COHORT_ORDER = "secagg_cohort_order"
    SECAGG_FLOOR = "secagg_floor"
    SECAGG_LISTS = "secagg_lists"
    SECAGG_NO_AGREEMENT = "secagg_no_agreement"
    SECAGG_ORDER = "secagg_order"
    SECAGG_OVERLAP = "secagg_overlap"
    SECAGG_REQUIRED = "secagg_required"
    SECAGG_SECOND_LIST = "secagg_second_list"
    SECAGG_SETTINGS = "secagg_settings"
    SECAGG_STRANGER = "secagg_stranger"
    SECAGG_THRESHOLD = "secagg_threshold"
    SECAGG_UNKNOWN_ROUND = "secagg_unknown_round"
    SECAGG_UNKNOWN_SITE = "secagg_unknown_site"
    MASK_KEY_INVALID = "mask_key_invalid"
    SHARE_COMMITMENT_INVALID = "share_commitment_invalid"
    SHARES_UNREADABLE = "shares_unreadable"

    DEADLINE = "deadline"
    WORKER_UNREACHABLE = "worker_unreachable"
    PROTOCOL = "protocol"

    NODE_UNAVAILABLE = "node_unavailable"
    NO_REPLY = "no_reply"
    BAD_SIGNATURE = "bad_signature"
    CONTRIBUTION_INVALID = "contribution_invalid"


SERVER_CODES: Final = frozenset(
    {
        DropCode.NODE_UNAVAILABLE,
        DropCode.NO_REPLY,
        DropCode.BAD_SIGNATURE,
        DropCode.CONTRIBUTION_INVALID,
    }
)
"""What only the server itself can find: a site or a relay that says so is not believed."""
