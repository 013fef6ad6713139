"""Generate one hospital's cohort into a folder and print its Bayes ceiling.

python -m fedhealth_site_synthetic FOLDER --site-index 0 --num-sites 3 --size 32 --num-patients 120
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from fedhealth.data.site_options import parse_site_options
from fedhealth.errors import FedHealthError
from fedhealth_site_synthetic.latents import bayes_ceiling
from fedhealth_site_synthetic.options import SyntheticOptions
from fedhealth_site_synthetic.site import write_site_folder


def main(arguments: list[str] | None = None) -> int:
    """Command line. Returns the exit code."""
    args = vars(_parser().parse_args(arguments))
    folder, as_json = Path(args.pop("folder")), args.pop("json")
    try:
        options = parse_site_options(SyntheticOptions, args, package="synthetic")
        write_site_folder(folder, options)
    except FedHealthError as error:
        sys.stderr.write(f"{error}\n")
        return int(error.exit_code)
    ceiling = bayes_ceiling(options.site_index, options.num_sites)
    if as_json:
        record = {
            "schema_version": 1,
            "options": options.model_dump(),
            "bayes_auc": asdict(ceiling),
        }
        sys.stdout.write(json.dumps(record) + "\n")
        return 0
    sys.stderr.write(
        f"{options.num_patients} patients written. Bayes ceiling (AUC, given the latents): "
        f"both {ceiling.both:.3f}, image {ceiling.image:.3f}, EHR {ceiling.ehr:.3f}.\n"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fedhealth_site_synthetic", description=__doc__.split("\n")[0]
    )
    parser.add_argument("folder", help="empty folder, or one filled with the same options")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    for name, field in SyntheticOptions.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        kind = {"default": field.default, "help": f"{field.description} Default: {field.default}."}
        if isinstance(field.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **kind)
        else:
            parser.add_argument(flag, type=int, **kind)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
