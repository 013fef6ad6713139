"""What a model reads and what it predicts, in a line each, for its card: the study's public data contract."""

from fedhealth.config.study import Study
from fedhealth.contracts.data import (
    Column,
    DataContract,
    MaskLabel,
    MultiLabel,
    SurvivalLabel,
    TableModality,
    VolumeModality,
)


def inputs_of(study: Study) -> dict[str, tuple[str, ...]]:
    """By modality a line for each column, with its unit and limits or codes; or the grid of an image."""
    contract = study.data.to_contract(seed=study.seed)
    return {modality.name: _lines(modality) for modality in contract.modalities}


def predicted_by(study: Study) -> str:
    """What the model predicts: column and codes, labels, time and event with the unit, or the codes of a mask."""
    return _predicted(study.data.to_contract(seed=study.seed))


def _lines(modality: TableModality | VolumeModality) -> tuple[str, ...]:
    if isinstance(modality, TableModality):
        return tuple(_column(column) for column in modality.columns)
    sides = " x ".join(str(side) for side in modality.shape)
    spacing = " x ".join(f"{side:g}" for side in modality.spacing_mm)
    return (f"NIfTI, brought to {sides} voxels of {spacing} mm, {modality.orientation}",)


def _column(column: Column) -> str:
    said = [column.unit] if column.unit else []
    if column.dtype == "category":
        said.append(f"codes {_listed(column.codes)}")
    elif column.minimum is not None and column.maximum is not None:
        said.append(f"{column.minimum:g} to {column.maximum:g}")
    if column.required:
        said.append("required")
    return f"{column.name} ({', '.join(said)})" if said else column.name


def _predicted(contract: DataContract) -> str:
    match contract.target:
        case None:
            return f"{contract.label_column}, codes {_listed(contract.label_codes)}"
        case MultiLabel(columns=columns):
            return f"{', '.join(columns)}, yes or no each"
        case SurvivalLabel(time_column=time, event_column=event, unit=unit, maximum=maximum):
            return f"time to {event} ({time}), 0 to {maximum:g} {unit}"
        case MaskLabel(name=name, grid=grid, codes=codes):
            return f"mask {name} on {grid.name}, codes {_listed(codes)}"


def _listed(codes: tuple[int, ...]) -> str:
    return ", ".join(str(code) for code in codes)
