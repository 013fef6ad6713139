"""What attackers find in a site's training, with and without privacy: ``python benchmarks/privacy_audit.py``.

The audit of `fedhealth site audit` on the hospital of Cleveland (the heart study with the model `multimodal`, epsilon
8), with more canaries and models; then the same canaries on steps with bugs put in, to show which check finds which
bug. Exits 1 when the product's own steps show a bug, when the audit is blind, or when a bug that must be found is not.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fedhealth_site_heart import HeartSite
from noise_cells.studies import earlier_heart_study

from fedhealth.cli.site_audit import audit_lines
from fedhealth.config.privacy import PatientPrivacy
from fedhealth.config.study import Study
from fedhealth.contracts.local_training import PatientMechanism, SiteContext
from fedhealth.data.batch import PatientDataset
from fedhealth.privacy.accounting.plan import plan_site
from fedhealth.privacy.dp_sgd.clipped_gradients import ClippedGradients
from fedhealth.privacy.randomness import Randomness
from fedhealth.site.audit import as_json, claim_of
from fedhealth.training.audit.findings import AuditFindings
from fedhealth.training.audit.no_noise import NoNoise
from fedhealth.training.audit.whole import QUICK, AuditSize, Subject, audit, audit_steps
from fedhealth.training.learner import Learner
from fedhealth.training.local_steps import StepPlan
from fedhealth.training.private_steps import run_private_steps

HOSPITAL, DECLARED_SIZE = "cleveland", 190
TARGET_EPSILON = 8.0


@dataclass(frozen=True)
class Steps:
    """The product's steps, with another mechanism than the one that was asked for."""

    noise: float = 1.0
    clipping: float = 1.0
    rate: float = 1.0

    def __call__(
        self,
        learner: Learner,
        dataset: PatientDataset,
        plan: StepPlan,
        mechanism: PatientMechanism,
        randomness: Randomness,
        *,
        gradients: ClippedGradients | None = None,
    ) -> None:
        """As `run_private_steps`."""
        wrong = replace(
            mechanism,
            # Noise is in units of the clipping norm: without clipping it stays what it was.
            noise_multiplier=mechanism.noise_multiplier * (self.noise or 1.0) / self.clipping,
            clipping_norm=mechanism.clipping_norm * self.clipping,
            sampling_rate=min(1.0, mechanism.sampling_rate * self.rate),
        )
        source = randomness if self.noise else NoNoise(randomness)
        run_private_steps(learner, dataset, plan, wrong, source, gradients=gradients)


BUGS = {
    "none": Steps(),
    "no noise": Steps(noise=0.0),
    "half of the noise": Steps(noise=0.5),
    "no clipping": Steps(clipping=1e9),
    "twice the sampling rate": Steps(rate=2.0),
}
"""Each must be named by the audit, and `none` must not."""


def make_subject(folder: Path) -> Subject:
    study = Study.model_validate(earlier_heart_study())
    study = study.model_copy(update={"privacy": PatientPrivacy(target_epsilon=TARGET_EPSILON)})
    package = HeartSite(data_dir=folder, options={"hospital": HOSPITAL}, cache_dir=folder)
    contract = study.data.to_contract(seed=study.seed)
    site = SiteContext(
        site_id=HOSPITAL,
        load_cohort=lambda: package.load_cohort(contract),
        state_dir=folder,
        cache_dir=folder,
        device="cpu",
        num_threads=1,
    )
    return Subject(study=study, plan=plan_site(study, DECLARED_SIZE), site=site)


def find_bug(subject: Subject, size: AuditSize, name: str) -> dict[str, Any]:
    findings = audit_steps(
        replace(subject, steps=BUGS[name]), size, rng=np.random.default_rng(), say=lambda _: None
    )
    return {
        "bug": name,
        "found_by_measuring": any(m.is_too_weak for m in findings.measured),
        "found_by_canaries": any(
            row.epsilon_claimed is not None and row.epsilon_shown > row.epsilon_claimed
            for row in findings.canaries
        ),
        "rows": [asdict(row) for row in findings.canaries],
    }


def is_as_expected(findings: AuditFindings, bugs: list[dict[str, Any]]) -> bool:
    named = {b["bug"]: b["found_by_measuring"] or b["found_by_canaries"] for b in bugs}
    right = all(found == (name != "none") for name, found in named.items())
    return right and not findings.bugs and not findings.is_blind


def print_bugs(bugs: list[dict[str, Any]]) -> None:
    print(
        f"{'bug put into the steps':<26}{'by measuring':>14}{'by canaries':>14}   epsilon >= (claimed)"
    )
    for bug in bugs:
        shown = ", ".join(
            f"{row['epsilon_shown']:.2f} ({row['epsilon_claimed']:.2f})" for row in bug["rows"]
        )
        found = ["found" if bug[f"found_by_{way}"] else "-" for way in ("measuring", "canaries")]
        print(f"{bug['bug']:<26}{found[0]:>14}{found[1]:>14}   {shown}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, canaries and models")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    size = QUICK if arguments.quick else AuditSize(num_canaries=600, num_models=64)
    with tempfile.TemporaryDirectory() as folder:
        subject = make_subject(Path(folder))
        findings = audit(subject, size, rng=np.random.default_rng(), say=lambda _: None)
        bugs = [find_bug(subject, size, name) for name in BUGS]
    result = {
        "schema_version": 1,
        "benchmark": "privacy_audit",
        "site_id": HOSPITAL,
        "study_id": subject.study.id,
        "size": asdict(size),
        "claim": None if subject.plan is None else claim_of(subject.plan),
        **as_json(findings),
        "bugs_put_in": bugs,
        "seconds": round(time.monotonic() - started, 1),
    }
    if arguments.json:
        print(json.dumps(result))
    else:
        print("\n".join(audit_lines(result)))
        print_bugs(bugs)
    return 0 if is_as_expected(findings, bugs) else 1


if __name__ == "__main__":
    sys.exit(main())
