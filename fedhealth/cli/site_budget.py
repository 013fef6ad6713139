"""The text of `fedhealth site budget`."""

from collections import Counter
from typing import Any

from fedhealth.cli.output import say, table

NOT_BOUNDED = "not bounded"


def say_budget(account: dict[str, Any]) -> None:
    """Epsilons always together with delta, unit, adjacency, accountant and scope."""
    dataset = account["dataset"]
    say(f"Site {account['site_id']}, data set {dataset['name']}: privacy spent, by study")
    rows = [_row(line, f"study {line['name']}") for line in account["studies"]]
    rows.append(_row(dataset, f"data set {dataset['name']}, all studies"))
    say(table(["composed over", "epsilon", "by RDP", "delta", "limit", "left", "planned"], rows))
    say(
        f"Unit: {dataset['unit']}, adjacency: {dataset['adjacency']}; accountant: "
        f"{dataset['accountant']} {dataset['accountant_version']}, over all reserved events."
    )
    _say_rounds(account["rounds"])
    _say_ledger(account["ledger"])


def _row(line: dict[str, Any], name: str) -> list[object]:
    return [
        name,
        _epsilon(line["epsilon"]),
        _epsilon(line["epsilon_rdp"]),
        f"{line['delta']:.2g}",
        "none set" if line["limit"] is None else f"{line['limit']:g}",
        "no limit" if line["left"] is None else f"{line['left']:.3f}",
        "" if line.get("planned_epsilon") is None else f"{line['planned_epsilon']:.3f}",
    ]


def _epsilon(value: float | None) -> str:
    return NOT_BOUNDED if value is None else f"{value:.3f}"


def _say_rounds(rounds: list[dict[str, Any]]) -> None:
    counts = Counter((r["study_id"], r["run_name"], r["kind"], r["state"]) for r in rounds)
    if not counts:
        say("Nothing was reserved yet.")
        return
    rows = [[*key, count] for key, count in counts.items()]
    say(table(["study", "run", "kind", "state", "rounds"], rows))
    if any(r["state"] == "reserved" for r in rounds):
        say(
            "reserved: training may have begun and nothing was sent; it counts as spent all the same."
        )


def _say_ledger(ledger: dict[str, Any]) -> None:
    say(f"Ledger: {ledger['sequence']} lines, last {ledger['head'][:16]}.")
    for seen in ledger["witnesses"]:
        if seen["is_held"]:
            say(
                f"The server of {seen['study_id']} confirmed line {seen['sequence']}: this copy holds it."
            )
        else:
            say(
                f"WARNING: the server of {seen['study_id']} has seen line {seen['sequence']}, which this copy "
                "does not hold. It is an older copy: restore the newest, or run `fedhealth site recover`."
            )
    if ledger["note"]:
        say(f"Note: {ledger['note']}.")
