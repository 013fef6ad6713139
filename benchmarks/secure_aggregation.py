"""What secure aggregation costs: ``python benchmarks/secure_aggregation.py [--quick] [--json] [--federation]``.

Parts, each in processes of its own: `ours`, a round with this product's classes; `flower`, the same with Flower's
SecAgg+ (both without a network); `loops`, the hot loops, and a second thread for them; and with `--federation` real
processes over loopback TLS. Every sum is held against the plain one, word for word: a wrong one ends this with code 1,
and so does a federation with another model than the known one. Budgets are printed as met or missed.

A site's seconds are the median over all sites, all of which run. Models are 4 bytes a parameter. The server's memory
is the high-water mark of its process beyond what it held, the round's model among it, when the round began.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence

from round_overhead import MILLION, machine
from secagg_cells import federation, flower, hot_loops, ours
from secagg_cells.ours import Cell
from secagg_cells.processes import Row, isolated

PARTS = ("ours", "flower", "loops", "federation")
BUDGET_CELL = (3, 25 * MILLION, 0)
BUDGETS = {"site_s": 2.0, "bytes_up_per_parameter": 4.0, "trips": 2, "server_models": 3.0}
SMALLEST_FOR_MODELS = MILLION  # below, libraries' own buffers are more than the model


def our_cells(*, quick: bool) -> list[Cell]:
    """With one drop-out at least: 5 sites, of which 4 are enough for the study's floor."""
    if quick:
        return [
            Cell(sites=3, parameters=100_000),
            Cell(sites=5, parameters=100_000),
            Cell(sites=5, parameters=100_000, dropped=1),
        ]
    cells = []
    for parameters in (MILLION, 25 * MILLION):
        cells += [Cell(sites=sites, parameters=parameters) for sites in (3, 5, 10, 30)]
        cells.append(Cell(sites=5, parameters=parameters, dropped=1))
    return cells


def flower_cells(*, quick: bool) -> list[Cell]:
    """Fewer: it takes its time."""
    if quick:
        return [Cell(sites=3, parameters=100_000)]
    small = [Cell(sites=sites, parameters=MILLION) for sites in (3, 5, 10)]
    return [*small, Cell(sites=3, parameters=25 * MILLION)]


def loop_cell(*, quick: bool) -> Cell:
    return Cell(sites=10, parameters=MILLION if quick else 25 * MILLION)


def size(row: Row) -> str:
    dropped = f" -{row['dropped']}" if row.get("dropped") else ""
    return f"{row['parameters'] / MILLION:>5g}M x {str(row['sites']) + dropped:<5}"


def models(row: Row, name: str) -> str:
    return f"{row[name]:>6.2f}" if row["parameters"] >= SMALLEST_FOR_MODELS else "     -"


def show_ours(row: Row) -> str:
    cells = [
        size(row),
        *(f"{row[f'site_{part}_s']:>7.3f}" for part in ("encode", "mask", "unmask")),
        f"{row['site_s']:>7.3f}",
        f"{row['bytes_up_per_parameter']:>6.3f}",
        f"{row['bytes_down_per_parameter']:>6.3f}",
        f"{row['trips']:>5}",
        *(f"{row['server_parts_s'][part]:>7.3f}" for part in ("add", "unmask", "decode")),
        models(row, "server_models_sum"),
        models(row, "server_models"),
        f"{row['wall_s']:>7.1f}",
        "right" if row["result_is_right"] else "WRONG",
    ]
    return "  ".join(cells)


OURS_HEAD = (
    "params x sites  encode s  mask s  unmask s  site s  B/param up  down  trips  server add s  unmask s  "
    "decode s  models to the sum  to the end  wall s"
)


FLOWER_HEAD = (
    "\nFlower SecAgg+: params x sites  site s  B/param up  trips  server s  models  wall s"
)


def show_flower(row: Row) -> str:
    if "error" in row:
        return f"{size(row)}  did not run: {row['error']}"
    cells = [
        size(row),
        f"{row['site_s']:>7.3f}",
        f"{row['bytes_up_per_parameter']:>6.3f}",
        f"{row['trips']:>5}",
        f"{row['server_s']:>7.3f}",
        models(row, "server_models"),
        f"{row['wall_s']:>7.1f}",
        "right" if row["result_is_right"] else "WRONG",
    ]
    return "  ".join(cells)


def ratios(mine: Sequence[Row], theirs: Sequence[Row]) -> list[Row]:
    """Ours over theirs, for the cells that both ran."""
    by_size = {(row["sites"], row["parameters"]): row for row in mine if not row["dropped"]}
    names = ["site_s", "bytes_up_per_parameter", "trips", "server_s"]
    found = []
    for row in theirs:
        own = by_size.get((row["sites"], row["parameters"]))
        if own is None or "error" in row:
            continue
        compared = [*names, "server_models"] if row["parameters"] >= SMALLEST_FOR_MODELS else names
        ratio = {name: round(own[name] / row[name], 3) for name in compared}
        found.append({"sites": row["sites"], "parameters": row["parameters"]} | ratio)
    return found


def budgets(mine: Sequence[Row], federations: Sequence[Row]) -> list[Row]:
    """What was promised, what was measured; nothing where the cell did not run."""
    found = []
    for row in mine:
        if (row["sites"], row["parameters"], row["dropped"]) == BUDGET_CELL:
            found += [
                {"what": f"{name}, {size(row).strip()}", "budget": most, "measured": row[name]}
                for name, most in BUDGETS.items()
            ]
        if row["dropped"]:
            what = f"trips after a drop-out, {size(row).strip()}"
            found.append({"what": what, "budget": 3, "measured": row["trips"]})
    found += [
        {
            "what": f"a masked round over two plain trips, {size(row).strip()}",
            "budget": row["budget_times_two_plain_trips"],
            "measured": row["times_two_plain_trips"],
        }
        for row in federations
        if "times_two_plain_trips" in row
    ]
    return [one | {"is_met": one["measured"] <= one["budget"]} for one in found]


def run_rows(
    head: str, cells: Sequence[Cell], measure: Callable[[Cell], Row], show: Callable[[Row], str]
) -> list[Row]:
    """Each cell in processes of its own, its line as soon as it is there."""
    say(head)
    rows = []
    for cell in cells:
        load = os.getloadavg()[0]
        rows.append(isolated(measure, cell) | {"load_1min_before": round(load, 2)})
        say(show(rows[-1]))
    return rows


def say(line: str) -> None:
    print(line, file=sys.stderr if "--json" in sys.argv else sys.stdout, flush=True)


def run_federations(arguments: argparse.Namespace) -> list[Row]:
    say(
        "\nfederation, 3 sites, loopback TLS: params  kind  round s  trips  exchange s  B/param up  result"
    )
    rows = []
    quick, chosen = arguments.quick, arguments.parameters
    sizes = [MILLION] if quick else [MILLION, 25 * MILLION]
    for parameters in [chosen] if chosen else sizes:
        pair = federation.measure(parameters, arguments.rounds or (3 if quick else 6))
        for row in pair:
            seconds, up = row["round_s"] or float("nan"), row["bytes_up_per_parameter"]
            result = "right" if row["result_is_right"] else "WRONG"
            say(
                f"{parameters / MILLION:>5g}M  {row['kind']:<6}  {seconds:>7.2f}  {row['trips']}  "
                f"{row['exchange_s'] or float('nan'):>7.2f}  {up or float('nan'):>6.3f}  {result}"
            )
        if "times_a_plain_round" in pair[1]:
            say(f"       masked = {pair[1]['times_a_plain_round']} plain rounds")
        rows += pair
    return rows


def show_loops(row: Row) -> None:
    say(
        f"\nhot loops, {size(row).strip()}, {row['modulus_bits']} bits, processor seconds for one vector"
    )
    say("  ".join(f"{name} {seconds:.3f}" for name, seconds in row["cpu_s"].items()))
    say(
        f"{row['masks']} masks, wall s: one thread {row['one_thread_wall_s']:.3f}, two threads "
        f"{row['two_threads_wall_s']:.3f}: gain {row['gain_of_two_threads']}"
    )


def chosen_cells(arguments: argparse.Namespace) -> tuple[list[Cell], list[Cell]]:
    """Ours, and Flower's: what the command line names takes their place."""
    if not arguments.sites and not arguments.parameters:
        return our_cells(quick=arguments.quick), flower_cells(quick=arguments.quick)
    cell = Cell(
        sites=arguments.sites or 3,
        parameters=arguments.parameters or MILLION,
        dropped=arguments.dropped,
    )
    return [cell], [] if cell.dropped else [cell]


def show_ratio(row: Row) -> str:
    shown = [
        f"{name} {value}" for name, value in row.items() if name not in {"sites", "parameters"}
    ]
    return f"ours / theirs, {size(row).strip()}: {', '.join(shown)}"


def measure_all(arguments: argparse.Namespace) -> dict[str, list[Row]]:
    """Every part that was asked for; a part that was not has no rows."""
    parts = set(arguments.only or PARTS[:3]) | ({"federation"} if arguments.federation else set())
    own_cells, flower_own = chosen_cells(arguments)
    rows: dict[str, list[Row]] = {name: [] for name in PARTS}
    if "ours" in parts:
        rows["ours"] = run_rows(OURS_HEAD, own_cells, ours.measure, show_ours)
    if "flower" in parts:
        rows["flower"] = run_rows(FLOWER_HEAD, flower_own, flower.measure_or_say_why, show_flower)
    rows["ours_over_flower"] = ratios(rows["ours"], rows["flower"])
    for row in rows["ours_over_flower"]:
        say(show_ratio(row))
    if "loops" in parts:
        rows["loops"] = [isolated(hot_loops.measure, loop_cell(quick=arguments.quick))]
        show_loops(rows["loops"][0])
    if "federation" in parts:
        rows["federation"] = run_federations(arguments)
    rows["budgets"] = budgets(rows["ours"], rows["federation"])
    for row in rows["budgets"]:
        verdict = "met" if row["is_met"] else "MISSED"
        say(f"budget {row['what']}: {row['measured']} of at most {row['budget']}: {verdict}")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--json", action="store_true", help="machine facts and rows as one JSON object"
    )
    parser.add_argument("--quick", action="store_true", help="100,000 parameters, at most 5 sites")
    parser.add_argument("--federation", action="store_true", help="real processes too")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; may be repeated")
    parser.add_argument("--sites", type=int, help="one cell: sites, at least 3")
    parser.add_argument("--parameters", type=int, help="one cell: float32 elements of the model")
    parser.add_argument("--dropped", type=int, default=0, help="one cell: sites that never answer")
    parser.add_argument("--rounds", type=int, help="of a federation, at least 3")
    arguments = parser.parse_args()
    found = measure_all(arguments)
    if arguments.json:
        about = {"schema_version": 1, "benchmark": "secure_aggregation", "machine": machine()}
        print(json.dumps(about | found))
    # Flower's sum is shown to be right or wrong; only our own can fail this run.
    own = [*found["ours"], *found["loops"], *found["federation"]]
    is_right = all(row["result_is_right"] and row.get("exit_code", 0) == 0 for row in own)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
