"""What a hospital insists on, held against a study before anything starts: a clear error instead of refused rounds."""

from fedhealth.config.site import SiteConfig
from fedhealth.config.study import Study
from fedhealth.errors import ConfigError, GateRefusedError
from fedhealth.secagg.round_settings import least_survivors


def check_site_rules(study: Study, config: SiteConfig) -> None:
    """Would this site mask in this study at all?

    Raises:
        GateRefusedError: FH-SECAGG-011 the site takes part under masks only and the study has none; FH-SECAGG-012
            the study's sums may be about fewer sites than this site allows; FH-SECAGG-013 the study allows for
            fewer colluding sites than this site.
        ConfigError: FH-CONFIG-032 this site declares more patients than the study's sums have room for.
    """
    masks, rules = study.secure_aggregation, config.secure_aggregation
    if masks is None:
        if rules.required:
            raise _refused(
                "FH-SECAGG-011",
                "the study has no secure aggregation; this site asks for it (secure_aggregation.required).",
                "The server would see this site's own update in every round.",
                "Ask the coordinator for a study with `secure_aggregation`, or change site.yaml.",
            )
        return
    if least_survivors(study, masks) < rules.min_survivors:
        raise _refused(
            "FH-SECAGG-012",
            f"a sum of the study may be about {least_survivors(study, masks)} sites; this site asks for "
            f"{rules.min_survivors} (secure_aggregation.min_survivors).",
            "The fewer sites are in a sum, the more it says about each.",
            "Ask the coordinator for a higher floor, or lower this site's.",
        )
    if masks.colluding < rules.colluding:
        raise _refused(
            "FH-SECAGG-013",
            f"the study's masks hold against {masks.colluding} colluding sites; this site asks for "
            f"{rules.colluding} (secure_aggregation.colluding).",
            "The threshold of shares follows from that number.",
            "Ask the coordinator to raise secure_aggregation.colluding, or lower this site's.",
        )
    if config.declared_train_size > masks.max_train_size:
        raise ConfigError(
            "FH-CONFIG-032",
            f"declared_train_size is above secure_aggregation.max_train_size ({masks.max_train_size}) of the study.",
            why="Sizes travel under the mask, and the sum has no room for it.",
            fix="Declare at most that many, or ask the coordinator for a study with a larger limit.",
        )


def _refused(code: str, what: str, why: str, fix: str) -> GateRefusedError:
    return GateRefusedError(code, what, why=why, fix=fix)
