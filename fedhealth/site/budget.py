"""`site budget`: what was spent on this site's data, by which study and round, and what is left. Files only."""

from dataclasses import dataclass
from typing import Any

from fedhealth.config.load import load_site, load_study
from fedhealth.config.site import SiteConfig
from fedhealth.config.study import Study
from fedhealth.durable import read_json
from fedhealth.privacy.accounting.accountants import Spend, compose
from fedhealth.privacy.accounting.plan import default_delta, plan_site
from fedhealth.privacy.ledger.ledger import LedgerView, read_ledger
from fedhealth.privacy.ledger.mark import LedgerMark
from fedhealth.site.account import account_delta, sums_of_study
from fedhealth.site.home import SiteHome

NO_WITNESS = "no server has confirmed a place of this ledger yet: whether this is its newest copy cannot be known here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """What was spent under one limit of the site's policy; `limit` None: the site set none."""

    name: str
    spend: Spend
    limit: float | None


def read_budget(home: SiteHome) -> dict[str, Any]:
    """The account of this home's data, as one JSON object. Changes nothing and needs no lock.

    Raises:
        ConfigError: site.yaml or a pinned study is wrong.
        PrivacyError: the ledger is damaged.
    """
    config = load_site(home.config_path)
    view = read_ledger(home.ledger(config))
    studies = {study_id: load_study(home.study(study_id).study) for study_id in home.studies()}
    delta = default_delta(config.declared_train_size)
    dataset = Cap(
        name=config.privacy.dataset,
        spend=compose(view.events(), delta=delta),
        limit=config.privacy.max_epsilon_per_dataset,
    )
    known = dict.fromkeys([*studies, *(line.study_id for line in view.lines)])
    return {
        "site_id": config.site_id,
        "dataset": _cap(dataset),
        "studies": [_study(study_id, studies, view, config) for study_id in known],
        "rounds": [_round(line) for line in view.lines],
        "ledger": _ledger(home, view),
        "policy": config.privacy.model_dump(mode="json", exclude={"ledger_dir"}),
    }


def _study(
    study_id: str, studies: dict[str, Study], view: LedgerView, config: SiteConfig
) -> dict[str, Any]:
    study = studies.get(study_id)
    plan = plan_site(study, config.declared_train_size) if study else None
    sums = sums_of_study(study) if study else None
    planned = plan.planned_events() if plan else () if sums is None else sums.planned
    delta = (
        account_delta(study, plan, config.declared_train_size)
        if study
        else default_delta(config.declared_train_size)
    )
    spent = Cap(
        name=study_id,
        spend=compose(view.events(study_id), delta=delta),
        limit=config.privacy.max_epsilon_per_study,
    )
    said = _cap(spent)
    said["planned_epsilon"] = _number(compose(planned, delta=delta).epsilon) if planned else None
    return said


def _cap(cap: Cap) -> dict[str, Any]:
    spend = cap.spend
    left = None if cap.limit is None else max(0.0, cap.limit - spend.epsilon)
    return {
        "name": cap.name,
        "epsilon": _number(spend.epsilon),
        "epsilon_rdp": _number(spend.epsilon_rdp),
        "is_bounded": _number(spend.epsilon) is not None,
        "delta": spend.delta,
        "unit": spend.unit,
        "adjacency": spend.adjacency,
        "accountant": spend.accountant,
        "accountant_version": spend.accountant_version,
        "limit": cap.limit,
        "left": left,
    }


def _number(epsilon: float) -> float | None:
    """JSON has no infinity: None, with `is_bounded` false beside it."""
    return None if epsilon == float("inf") else round(epsilon, 6)


def _round(line: Any) -> dict[str, Any]:  # noqa: ANN401 - a ledger line's facts
    return {
        "study_id": line.study_id,
        "run_name": line.run_name,
        "round_number": line.round_number,
        "attempt": line.attempt,
        "kind": line.kind,
        "state": line.state,
        "at": line.at,
        "events": [event.model_dump(mode="json") for event in line.events],
    }


def _ledger(home: SiteHome, view: LedgerView) -> dict[str, Any]:
    """The ledger's own place, and whether a server's memory of it fits."""
    witnesses = []
    for study_id in home.studies():
        seen = read_json(home.study(study_id).witness)
        if seen:
            mark = LedgerMark(sequence=seen["sequence"], head=seen["head"])
            witnesses.append(
                {"study_id": study_id, "sequence": mark.sequence, "is_held": view.contains(mark)}
            )
    return {
        "sequence": view.mark.sequence,
        "head": view.mark.head,
        "witnesses": witnesses,
        "note": None if witnesses else NO_WITNESS,
    }
