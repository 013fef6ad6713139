"""`site audit`: attack this site's own training, with and without privacy. Reads the cohort, sends nothing.

Nothing is charged to the privacy ledger: what is trained here is thrown away, and the result stays in the home.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fedhealth.config.load import load_site, load_study
from fedhealth.config.site import SiteConfig
from fedhealth.config.study import Study
from fedhealth.config.variants import own_study
from fedhealth.contracts.local_training import SiteContext
from fedhealth.durable import write_json
from fedhealth.errors import PrivacyError, UsageError
from fedhealth.privacy.accounting.accountants import compose
from fedhealth.privacy.accounting.plan import SitePlan, plan_site
from fedhealth.site.home import SiteHome
from fedhealth.site.sessions import site_package

if TYPE_CHECKING:
    from fedhealth.training.audit.findings import AuditFindings
    from fedhealth.training.audit.whole import AuditSize

RESULT_FILE: Final = "audit.json"
DISCLAIMER: Final = "A check for bugs, not a proof: what it does not find may still be there."


def audit_site(
    home: SiteHome,
    study_id: str | None,
    *,
    num_canaries: int | None,
    size_name: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Audit, write the result into the study's results folder (mode 0600) and return it.

    Works before `site join`, on the invited study.

    Args:
        home: the site's home.
        study_id: which study; None: the only one.
        num_canaries: of the gradient attack; None: what the size says.
        size_name: `full` or `quick`.
        say: told what is done now.

    Raises:
        UsageError: which study is not clear; FH-AUDIT-005 and 006 the study cannot be attacked; FH-AUDIT-003
            and 004 too few patients or canaries.
        ConfigError, SiteDataError, TrainingError, PrivacyError: as the training of a round.
    """
    from fedhealth.training.audit.whole import Subject, audit

    started = time.monotonic()
    folder = home.study(home.choose_study(study_id))
    config = load_site(home.config_path)
    study = own_study(load_study(folder.study), config.variant)
    if study.training.name != "supervised":
        raise UsageError(
            "FH-AUDIT-005",
            f"training method {study.training.name!r} has no audit.",
            why="The attacks drive the steps of supervised training.",
            fix="Ask the method's authors how they tested it.",
        )
    if study.data.label.kind != "code":
        raise UsageError(
            "FH-AUDIT-006",
            f"labels of kind {study.data.label.kind} have no audit.",
            why="The attacks give made-up patients a label code, and guess by the chance of that code.",
            fix="Audit a study of the same model and settings whose label is a code: the private steps are the same.",
        )
    plan = plan_site(study, config.declared_train_size)
    size = _size(size_name, num_canaries)
    subject = Subject(study=study, plan=plan, site=_context(home, config, study, folder.state))
    findings = audit(subject, size, rng=np.random.default_rng(), say=say)
    result = {
        "site_id": config.site_id,
        "study_id": study.id,
        "size": {"name": size_name, **asdict(size)},
        "claim": None if plan is None else claim_of(plan),
        **as_json(findings),
        "seconds": round(time.monotonic() - started, 1),
    }
    path = folder.results / RESULT_FILE
    write_json(path, result)
    return {**result, "path": str(path)}


def as_json(findings: "AuditFindings") -> dict[str, Any]:
    """The findings as JSON, with the verdict: `bug`, `blind`, `no_bug_found` or `no_privacy`."""
    return {
        **asdict(findings),
        "disclaimer": DISCLAIMER,
        "bugs": list(findings.bugs),
        "notes": list(findings.notes),
        "verdict": verdict(findings),
    }


def verdict(findings: "AuditFindings") -> str:
    """A bug that was shown counts even where the audit could have missed it."""
    if findings.bugs:
        return "bug"
    if findings.is_blind:
        return "blind"
    return "no_privacy" if findings.control is None else "no_bug_found"


def require_clean(result: dict[str, Any]) -> None:
    """Turn a verdict that is no pass into an error.

    Raises:
        PrivacyError: FH-AUDIT-010 privacy is weaker than claimed.
        UsageError: FH-AUDIT-011 the audit would have passed steps without noise.
    """
    if result["verdict"] == "bug":
        raise PrivacyError(
            "FH-AUDIT-010",
            f"training is less private than it claims: {'; '.join(result['bugs'])}.",
            why="Patients of this site would be worse protected than the ledger says.",
            fix=f"Stop taking part, and report it with {result['path']} (SECURITY.md).",
        )
    if result["verdict"] == "blind":
        shown = result["control"]["epsilon_shown"]
        raise UsageError(
            "FH-AUDIT-011",
            f"the audit is blind: training without any noise showed an epsilon of only {shown:.2f}.",
            why="A check that steps without noise would pass says nothing about steps with noise.",
            fix="Give more --canaries. If it stays blind, report it (SECURITY.md).",
        )


def _size(name: str, num_canaries: int | None) -> "AuditSize":
    from fedhealth.training.audit.whole import QUICK, AuditSize, check_size

    size = QUICK if name == "quick" else AuditSize()
    if num_canaries is not None:
        size = replace(size, num_canaries=num_canaries)
    check_size(size)
    return size


def _context(home: SiteHome, config: SiteConfig, study: Study, state: Path) -> SiteContext:
    package = site_package(home, config.package.name, dict(config.package.options), config.data_dir)
    contract = study.data.to_contract(seed=study.seed)
    return SiteContext(
        site_id=config.site_id,
        load_cohort=lambda: package.load_cohort(contract),
        state_dir=state,
        cache_dir=home.cache,
        device=config.device,
        num_threads=config.num_threads,
    )


def claim_of(plan: SitePlan) -> dict[str, Any]:
    """What the study promises each patient of this site, over all its runs."""
    spend = compose(plan.planned_events(), delta=plan.delta)
    return {
        "epsilon": spend.epsilon,
        "epsilon_rdp": spend.epsilon_rdp,
        "delta": spend.delta,
        "unit": spend.unit,
        "adjacency": spend.adjacency,
        "accountant": spend.accountant,
        "accountant_version": spend.accountant_version,
        "noise_multiplier": plan.noise_multiplier,
        "clipping_norm": plan.clipping_norm,
        "sampling_rate": plan.sampling_rate,
    }
