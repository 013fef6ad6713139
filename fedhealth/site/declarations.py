"""What a site declared against what its training patients have. Called by `site check` and at the worker's start.

A floor of owners counts declarations: one that is not true would let a sum about fewer hospitals be opened.
"""

from collections.abc import Collection

from fedhealth.config.study import Study
from fedhealth.errors import SiteDataError


def check_declarations(
    study: Study, declared: Collection[str], having: Collection[str], *, summed: Collection[str]
) -> None:
    """Refuse a declaration that would make the others believe that more, or fewer, sites train a modality's tensors.

    Args:
        study: the study.
        declared: modalities that this site declared.
        having: those that some patient on its training side has.
        summed: those whose tensors are in a masked sum over all sites (`config.blocks.summed_modalities`).

    Raises:
        SiteDataError: FH-DATA-034 one is declared that nobody has, FH-DATA-035 one is not declared, some have it, and
            it is trained on all the same.
    """
    counted = study.modalities if study.averages_by_modality else summed
    empty = [name for name in declared if name in counted and name not in having]
    if empty:
        raise SiteDataError(
            "FH-DATA-034",
            f"modality {empty[0]} is declared, and no patient on the training side has it.",
            why="This site would weigh in the mean of an encoder that it cannot train, or count as one of the sites "
            "that hide each other's update there.",
            fix="List what this site has under `modalities` in site.yaml, before it asks to be admitted.",
        )
    untold = [name for name in summed if name in having and name not in declared]
    if untold:
        raise SiteDataError(
            "FH-DATA-035",
            f"patients have {untold[0]}, which site.yaml does not declare.",
            why="The study averages its encoder over all sites under masks: this site's part would be in a sum that "
            "looks as if nobody had a part in it.",
            fix="Declare it under `modalities` in site.yaml before it asks to be admitted, or leave it out of the "
            "cohort.",
        )
