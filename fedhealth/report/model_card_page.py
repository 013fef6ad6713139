"""The model card in Markdown: the page of an exported model. Made from the card and nothing else."""

from fedhealth.report.model_card import ModelCard, PrivacyStatement

_SIMULATED = (
    "**A simulation: one party played all hospitals. Nothing here is evidence about a hospital.**"
)

_NOISED = (
    "Noise was added to these numbers for the patients' privacy. With few patients they may be far off: a Brier score "
    "and a log loss that do not go together are noise, and so may be the difference of two cards."
)

_UNSEEN = "**Left out: the site has no such patients, and nobody else trained the part of its model that reads this**"


def card_markdown(card: ModelCard) -> str:
    """The page, for people; the same card gives the same text."""
    study = card.study
    whose = "Global model" if card.kind == "global" else f"Model of site {card.site_id}"
    blocks = [
        f"# {_escaped(study.study_title)}",
        _about(card, whose),
        *([_SIMULATED] if card.is_simulation else []),
        "## Intended use",
        _escaped(card.intended_use),
        "## Limits",
        "\n".join(f"- {_escaped(limit)}" for limit in card.limits),
        *([_missing(card)] if card.missing_tensors else []),
        "## Inputs, outputs and data",
        _data(card),
        "## Metrics",
        _metrics(card),
        "## Privacy",
        _privacy(card),
        "## Provenance",
        _provenance(card),
    ]
    return "\n\n".join(blocks) + "\n"


def _about(card: ModelCard, whose: str) -> str:
    study = card.study
    return (
        f"{whose} of run `{study.run_name}`, study `{study.study_id}`, after round {study.rounds_done} of "
        f"{study.num_rounds}. Made by {_escaped(card.authors)}."
    )


def _missing(card: ModelCard) -> str:
    return (
        f"This is the shared part only: {card.missing_tensors} tensors are trained at every site and stay there "
        f"(personalisation {card.study.personalisation}). It cannot predict by itself."
    )


def _data(card: ModelCard) -> str:
    lines = [
        f"It predicts: {_escaped(card.data.predicts)}.",
        "",
        "It reads the following; a patient may lack any of them, and values that are not required.",
        "",
        *(
            f"- `{name}`: {'; '.join(_escaped(line) for line in found)}"
            + (f". {_UNSEEN}" if name in card.data.unseen else "")
            for name, found in card.data.inputs.items()
        ),
        "",
        "No patient's data is in this folder.",
    ]
    if card.data.num_sites is None:
        lines.append(
            "How many hospitals and patients trained it is in the records of the study's server."
        )
    elif card.data.num_patients is None:
        lines.append(
            f"{card.data.num_sites} hospitals trained it; their sizes are hidden under masks."
        )
    else:
        lines.append(
            f"{card.data.num_sites} hospitals trained it and declared {card.data.num_patients} training patients "
            "in all."
        )
    return "\n".join(lines)


def _metrics(card: ModelCard) -> str:
    found = card.metrics
    if found is None:
        why = (
            "No round released metrics of this model."
            if card.has_records
            else "Round records were not at hand when it was exported."
        )
        return f"None. {why}"
    whose = "" if card.study.personalisation == "none" else ", each of its own model"
    rows = [f"| {name} | {value:.4g} |" for name, value in sorted(found.values.items())]
    return "\n".join(
        [
            f"Means over the validation patients of {found.num_sites} hospitals{whose}, in round {found.round_number}:",
            "",
            "| metric | value |",
            "|---|---|",
            *rows,
            *(["", _NOISED] if found.are_noised else []),
        ]
    )


def _privacy(card: ModelCard) -> str:
    lines = [_account(statement) for statement in card.privacy]
    if not lines and card.has_records:
        lines.append("Differential privacy: none.")
    if not card.has_records:
        asked = "asks for it, for every patient" if card.patient_privacy_asked else "asks for none"
        lines.append(
            f"Differential privacy: the study {asked} at the sites. What was spent is in the records of its server."
        )
    if card.personal_tensors:
        covered = (
            "they were clipped and noised with the rest"
            if card.personal_tensors_are_private
            else "**they were trained without differential privacy, and may tell who was a patient there**"
        )
        lines.append(f"Tensors of this site's own: {card.personal_tensors}; {covered}.")
    masks = "on: the server saw sums of updates only" if card.secure_aggregation else "off"
    lines.append(f"Secure aggregation: {masks}.")
    return "\n".join(f"- {line}" for line in lines)


def _account(statement: PrivacyStatement) -> str:
    whose = (
        "whole sites" if statement.site_id is None else f"patients of site `{statement.site_id}`"
    )
    epsilon = "no bound" if statement.epsilon is None else f"epsilon {statement.epsilon:g}"
    return (
        f"{whose}: {epsilon} at delta {statement.delta:g}, unit {statement.unit}, "
        f"{statement.adjacency.replace('_', ' ')}, by {statement.accountant} {statement.accountant_version}"
    )


def _provenance(card: ModelCard) -> str:
    return "\n".join(
        [
            f"- study digest `{card.study.study_sha256}`",
            f"- digest of the shared tensors `{card.model_sha256}`",
            f"- digest of `models/model.safetensors` `{card.weights_sha256}`",
            f"- task `{card.study.task}`, strategy `{card.study.strategy}`",
            f"- personalisation `{card.study.personalisation}`",
            f"- fedhealth {card.fedhealth_version}",
        ]
    )


def _escaped(text: str) -> str:
    """Text of a person as text: no Markdown and no HTML comes of it."""
    for mark in "\\`*_[]#|<>!":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
