"""What `fedhealth study privacy` says about noise under the masks: for a patient, and who has to be honest."""

from dataclasses import dataclass

from fedhealth.config.study import Study
from fedhealth.privacy.accounting.accountants import Spend, compose
from fedhealth.secagg.patient_account import noised_sums, patient_delta


@dataclass(frozen=True, slots=True, kw_only=True)
class SumsForecast:
    """What all sums of a study cost one patient."""

    spend: Spend
    num_honest: int
    num_sums: int
    noise_multiplier: float

    def line(self) -> str:
        """For people."""
        return (
            f"Noise under the masks: {self.num_sums} sums, spare rounds included, cost one patient epsilon "
            f"{self.spend.epsilon:.3g} at delta {self.spend.delta:.2g} ({self.spend.accountant}), if at least "
            f"{self.num_honest} sites of every sum are honest. Noise multiplier of those together: "
            f"{self.noise_multiplier:g}."
        )

    def payload(self) -> dict[str, float | int | str]:
        """For machines."""
        return {
            "epsilon": self.spend.epsilon,
            "delta": self.spend.delta,
            "accountant": self.spend.accountant,
            "num_honest": self.num_honest,
            "num_sums": self.num_sums,
            "noise_multiplier": self.noise_multiplier,
        }


def sums_forecast(study: Study) -> SumsForecast | None:
    """The plan of a study whose patients are covered by noise under the masks only; None for all others.

    Raises:
        ConfigError: the study's model cannot be made here.
        PrivacyError: no noise and grid fit.
    """
    masks = study.secure_aggregation
    if study.privacy is not None or masks is None or masks.distributed_privacy is None:
        return None
    from fedhealth.site.sessions import model_sizes

    sums = noised_sums(study, model_sizes(study))
    if sums is None:
        return None
    return SumsForecast(
        spend=compose(sums.planned, delta=patient_delta(study)),
        num_honest=min(event.num_honest for event in sums.by_run.values()),
        num_sums=sum(event.steps for event in sums.planned),
        noise_multiplier=sums.noise_multiplier,
    )
