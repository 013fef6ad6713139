"""The section `federation` of study.yaml: who must be there, how long the others wait, and how updates travel."""

from typing import Literal

from pydantic import Field

from fedhealth.config.base import ConfigModel


class FederationConfig(ConfigModel):
    """Who must be there, and how long the others wait."""

    min_cohort: int = Field(
        2, ge=2, le=1000, description="Fewest sites in a round; fewer: the round is void."
    )
    cohort_wait_s: float = Field(
        600, gt=0, le=604_800, description="How long to wait for the minimum cohort."
    )
    gather_s: float = Field(
        30,
        ge=0,
        le=86_400,
        description="Once the minimum cohort is there, how long a starting run waits for the others.",
    )
    round_deadline_s: float = Field(
        3600, gt=0, le=604_800, description="A round ends at the latest after this."
    )
    max_void_rounds: int = Field(
        3, ge=1, le=1000, description="Void rounds in a row after which a run stops."
    )
    update_bits: Literal[32, 8] = Field(
        32,
        description="Bits of one value of an update without masks. 8: its change, rounded at random without bias, "
        "about a quarter of the bytes (docs/how-to/send-fewer-bytes.md). Under masks: secure_aggregation.bits.",
    )
    average_encoders_over: Literal["all_sites", "sites_with_modality"] = Field(
        "all_sites",
        description="Whose updates an encoder's mean is about. sites_with_modality: those that declared its modality "
        "(site.yaml); the others leave it as it is and do not weigh in it.",
    )
