"""What an update costs in bytes, and fewer bytes in accuracy: ``python benchmarks/update_bytes.py``.

Three parts: bytes of an update by model and form (worked out); bytes that really come from a site in a round (real
processes over TLS, counted at the gateway); and the AUC on held-out patients of whole simulated federations, without
noise and masks, 8 bits against float32 and parts of the model against all of it, paired by seed.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from bytes_cells.accuracy import FORMS, PARTS, WHOLE, Cell, cells, loss
from bytes_cells.sizes import sizes
from bytes_cells.wire import on_the_wire

BAR_POINTS: Final = 0.5
BAR_RATIO: Final = 3.9
BAR_FEWER: Final = 10.0
HEART_SEEDS: Final = tuple(range(1, 11))
GENERATED_SEEDS: Final = tuple(range(1, 23))
PART_SEEDS: Final = tuple(range(1, 5))
WIRE_VALUES: Final = (20_561, 335_418, 14_366_161)
"""The numbers of the default model with a small CNN, of the shipped U-Net, and of a ResNet-10 model."""


def size_rows() -> list[dict[str, Any]]:
    return [asdict(row) | {"ratio": round(row.ratio, 3)} for row in sizes()]


def wire_rows(values: tuple[int, ...]) -> list[dict[str, Any]]:
    rows = []
    for count in values:
        for bits in (32, 8):
            with tempfile.TemporaryDirectory(prefix="fedhealth-bytes-") as folder:
                rows.append(asdict(on_the_wire(count, bits, Path(folder))))
    return rows


def accuracy_rows(found: list[Cell]) -> list[dict[str, Any]]:
    """Each way with its mean AUC and what it lost against the whole model in float32, in points (hundredths of AUC)."""
    base = next(cell for cell in found if cell.way == WHOLE)
    rows = []
    for cell in found:
        mean, low, high = loss(base, cell)
        rows.append(
            {
                "cohort": cell.cohort,
                "way": cell.way,
                "num_values": cell.num_values,
                "update_bytes": cell.update_bytes,
                "times_fewer_bytes": round(base.update_bytes / cell.update_bytes, 2),
                "times_fewer_values": round(base.num_values / cell.num_values, 2),
                "auc": round(sum(cell.aucs) / len(cell.aucs), 4),
                "auc_untrained": round(sum(cell.untrained) / len(cell.untrained), 4),
                "points_lost": round(100 * mean, 3),
                "points_lost_95": [round(100 * low, 3), round(100 * high, 3)],
                "seeds": len(cell.aucs),
            }
        )
    return rows


def verdicts(report: dict[str, Any]) -> dict[str, bool]:
    """Each bar by its name. On the wire the large models are asked, whose statement is a small part of the message."""
    by_model = {row["model"]: row for row in report["sizes"]}
    eight = [row for row in report["accuracy"] if row["way"] == "8 bits"]
    image = ("cnn", "resnet10")
    return {
        "8 bits take 3.9 times fewer bytes (image models)": all(
            by_model[name]["ratio"] >= BAR_RATIO for name in image
        ),
        "8 bits cost at most 0.5 points on average": all(
            row["points_lost"] <= BAR_POINTS for row in eight
        ),
        "the interval of that cost ends below 0.5 points": all(
            row["points_lost_95"][1] <= BAR_POINTS for row in eight
        ),
        "head_only trains 10 times fewer numbers": all(
            by_model[f"{name}, head_only"]["fewer_values"] >= BAR_FEWER for name in image
        ),
        "lora (lora_parts image) trains 10 times fewer numbers": all(
            by_model[f"{name}, lora"]["fewer_values"] >= BAR_FEWER for name in image
        ),
        "lora_parts all trains 10 times fewer numbers": all(
            by_model[f"{name}, lora_parts all"]["fewer_values"] >= BAR_FEWER for name in image
        ),
    }


def run(*, is_quick: bool) -> dict[str, Any]:
    """All parts. Quick: one small model on the wire, two seeds of the heart cohort."""
    report: dict[str, Any] = {"sizes": size_rows()}
    report["wire"] = wire_rows(WIRE_VALUES[:1] if is_quick else WIRE_VALUES)
    found = accuracy_rows(cells("heart", FORMS, HEART_SEEDS[:2] if is_quick else HEART_SEEDS))
    if not is_quick:
        found += accuracy_rows(cells("generated", FORMS, GENERATED_SEEDS))
        found += accuracy_rows(cells("generated", {WHOLE: {}} | PARTS, PART_SEEDS))
    report["accuracy"] = found
    report["bars"] = verdicts(report)
    return report


def show(report: dict[str, Any]) -> None:
    print("bytes of an update   numbers  float32   8 bits  ratio  masked 16/16u/8u   fewer numbers")
    for row in report["sizes"]:
        masked = "/".join(str(size) for size in row["masked"].values())
        print(
            f"{row['model']:<24}{row['num_values']:>11,}{row['float32']:>12,}{row['int8']:>12,}"
            f"{row['ratio']:>7.2f}  {masked:<32}{row['fewer_values']:>8.1f}"
        )
    print("\nfrom a site in a round, at the gateway")
    for row in report["wire"]:
        print(
            f"{row['num_values']:>11,} numbers, {row['bits']:>2} bits: update {row['update_bytes']:>11,} B, "
            f"on the wire {row['wire_bytes']:>12,.0f} B, {'right' if row['is_right'] else 'WRONG'}"
        )
    print("\nAUC on held-out patients, paired by seed")
    for row in report["accuracy"]:
        print(
            f"{row['cohort']:<10}{row['way']:<24} AUC {row['auc']:.4f} (untrained {row['auc_untrained']:.3f}), lost "
            f"{row['points_lost']:+.3f} points {row['points_lost_95']}, {row['times_fewer_bytes']:.2f} times fewer "
            f"bytes, {row['seeds']} seeds"
        )
    print()
    for name, holds in report["bars"].items():
        print(f"{'holds ' if holds else 'MISSED'}  {name}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="one federation, the heart, two seeds")
    arguments = parser.parse_args()
    report = run(is_quick=arguments.quick)
    if arguments.json:
        print(json.dumps({"schema_version": 1, "benchmark": "update_bytes"} | report))
    else:
        show(report)
    return 0 if all(row["is_right"] for row in report["wire"]) else 1


if __name__ == "__main__":
    sys.exit(main())
