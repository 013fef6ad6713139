"""The text of `fedhealth site audit`."""

from typing import Any

from fedhealth.cli.output import say, table

_VERDICTS = {
    "bug": "A bug is shown: training is less private than it claims.",
    "blind": "The audit is blind: steps without any noise would have passed it.",
    "no_bug_found": "No bug found.",
    "no_privacy": "This study has no patient-level privacy: only what the attacks find without it is shown.",
}


def say_audit(result: dict[str, Any]) -> None:
    """Claim, measurements, three attacks, verdict, and where the result lies."""
    for line in audit_lines(result):
        say(line)
    say(f"Nothing left this site, so nothing is charged to the ledger. Result: {result['path']}")


def audit_lines(result: dict[str, Any]) -> list[str]:
    """The text of an audit, without its file."""
    measured = [_measured(result["measured"])] if result["measured"] else []
    return [
        f"Site {result['site_id']}, study {result['study_id']}",
        *_claim(result),
        *measured,
        _canaries(result),
        _membership(result["membership"]),
        _rebuilt(result["rebuilt"]),
        *(f"note: {note}" for note in result["notes"]),
        _VERDICTS[result["verdict"]],
        *(f"  {bug}" for bug in result["bugs"]),
        result["disclaimer"],
    ]


def _claim(result: dict[str, Any]) -> list[str]:
    claim = result["claim"]
    if claim is None:
        return ["Claim: none. The study has no privacy section."]
    promised = (
        f"Claim: epsilon {claim['epsilon']:.3f} at delta {claim['delta']:.2g} for each {claim['unit']} over the whole "
        f"study (add or remove one; {claim['accountant']} {claim['accountant_version']})."
    )
    attacked = (
        f"Attacked: {result['num_steps_audited']} of {result['num_steps_planned']} steps, on "
        f"{result['num_training_patients']} training patients."
    )
    return [promised, attacked]


def _measured(measured: list[dict[str, Any]]) -> str:
    """The tensor with the least noise stands for all; the file has each."""
    noise = [m for m in measured if m["what"].startswith("noise")]
    shown = [m for m in measured if m not in noise]
    if noise:
        least = min(noise, key=lambda m: m["value"] / m["promised"])
        shown.insert(0, {**least, "what": f"least {least['what']} (of {len(noise)})"})
    rows = [
        [m["what"], m["value"], m["promised"], "NO" if m["is_too_weak"] else "yes"] for m in shown
    ]
    return table(["measured on the steps themselves", "found", "promised", "kept"], rows)


def _canaries(result: dict[str, Any]) -> str:
    rows = [
        [
            row["attack"],
            f"{row['guesses']['num_correct']} of {row['guesses']['num_guesses']}",
            row["epsilon_shown"],
            row["epsilon_claimed"],
            row["epsilon_ceiling"],
            f"{row['delta']:.2g}",
        ]
        for row in [result["control"], *result["canaries"]]
        if row is not None
    ]
    headers = ["1. was a canary in? (95 %)", "right", "epsilon >=", "claimed", "ceiling", "delta"]
    return table(headers, rows)


def _membership(membership: list[dict[str, Any]]) -> str:
    rows = [
        [
            row["training"],
            _interval(row["result"]["auc"]),
            _interval(row["result"]["true_positive_rate"]),
            row["result"]["num_models"],
            row["result"]["num_patients"],
        ]
        for row in membership
    ]
    headers = [
        "2. was a patient in?",
        "AUC (0.5: guessing)",
        "found at 1 % false",
        "models",
        "patients",
    ]
    return table(headers, rows)


def _rebuilt(rebuilt: list[dict[str, Any]]) -> str:
    rows = [
        [
            f"{row['result']['modality']}, {row['result']['model']}",
            "with" if row["with_privacy"] else "without",
            row["result"]["correlation"],
            row["result"]["by_chance"],
            row["result"]["similarity"],
        ]
        for row in rebuilt
    ]
    headers = ["3. made-up patient from a gradient", "privacy", "correlation", "by chance", "SSIM"]
    return table(headers, rows)


def _interval(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"
