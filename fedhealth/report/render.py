"""Report pages from records: self-contained HTML, a pure function of its arguments. No clock, no network, no script."""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import prod
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedhealth.report import figures, wording
from fedhealth.report.attestation import attestations
from fedhealth.report.coverage import coverage_section
from fedhealth.report.figures import bytes_long, bytes_short, grouped, moment, seconds
from fedhealth.report.masking_facts import NOT_VISIBLE, masking_section
from fedhealth.report.privacy_page import round_section, run_section
from fedhealth.report.record import (
    NotEvidenced,
    RoundRecord,
    SiteFact,
    SiteStatus,
    TensorFact,
    record_digest,
    round_order,
    round_stem,
)
from fedhealth.report.run_record import RunRecord, run_record


def render_round(
    record: RoundRecord, *, previous: RoundRecord | None, history: Sequence[RoundRecord] = ()
) -> str:
    """The page of one round.

    Args:
        record: the round.
        previous: the last complete training round before it; None for the first.
        history: all rounds before it that are at hand, for what adds up over rounds.
    """
    laps = record.timings
    return page(
        "round.html.j2",
        record.not_evidenced,
        is_simulation=record.is_simulation,
        r=record,
        r_previous=previous,
        heading=figures.heading(record),
        previous_heading=figures.heading(previous).lower() if previous else "",
        previous_page=f"{round_stem(previous)}.html" if previous else "",
        record_file=f"{round_stem(record)}.json",
        digest=record_digest(record),
        summary=round_summary(record),
        contributed=record.count(SiteStatus.CONTRIBUTED),
        largest_update=max(site.update_bytes for site in record.sites),
        left_sentence=_left_sentence(record),
        charts=figures.round_charts(record, previous),
        privacy=round_section(record, history),
        chain=_chain(record, previous),
        masking=masking_section(record.masking, record.status),
        coverage=coverage_section(record.coverage, record.status, record.kind),
        means=figures.mean_rows(record),
        personalisation=wording.PERSONALISATION[record.personalisation],
        judged=wording.JUDGED[record.personalisation],
        laps=[
            ("gathering hospitals", laps.gather_s),
            ("sending, training and answering", laps.exchange_s),
            ("aggregating", laps.aggregate_s),
            ("storing", laps.checkpoint_s),
        ],
    )


def render_run(
    study_title: str, records: Sequence[RoundRecord], *, run: RunRecord | None = None
) -> str:
    """The page of a run, which links its rounds.

    Args:
        study_title: heading; escaped.
        records: the run's rounds in any order, at least one.
        run: the record of exactly these rounds, where it is at hand.

    Raises:
        ValueError: none, or rounds of several runs.
    """
    ordered = sorted(records, key=round_order)
    run = run or run_record(ordered)
    trained = [r for r in ordered if r.kind == "train"]
    complete = sum(r.status == "complete" for r in trained)
    charts, means, legend = figures.run_charts(ordered)
    rows = [
        {
            "record": record,
            "line": line,
            "heading": figures.heading(record),
            "page": f"{round_stem(record)}.html",
        }
        for record, line in zip(ordered, run.rounds, strict=True)
    ]
    return page(
        "run.html.j2",
        ordered[-1].not_evidenced,
        is_simulation=run.is_simulation,
        run=run,
        title=study_title,
        summary=_run_summary(ordered, complete),
        num_complete=complete,
        num_void=sum(r.status == "void" for r in ordered),
        sites=_participation(ordered),
        left_total=sum(site.update_bytes for r in ordered for site in r.sites),
        charts=charts,
        privacy=run_section(ordered),
        means=means,
        legend=legend,
        rows=rows,
        final=ordered[-1],
        personalisation=wording.PERSONALISATION[ordered[-1].personalisation],
        judged=wording.JUDGED[ordered[-1].personalisation],
        digest=record_digest(run),
    )


def round_summary(record: RoundRecord) -> str:
    """What happened in the round, in one or two sentences."""
    used, invited = record.count(SiteStatus.CONTRIBUTED), _invited(record)
    if record.status == "void":
        reason = wording.VOID[record.void_reason] if record.void_reason else ""
        return f"The round is void and the model is unchanged. {reason}"
    if record.kind == "evaluate":
        return (
            f"{used} of {invited} invited hospitals evaluated the final model. Nothing was trained."
        )
    missing = invited - used
    tail = "" if missing == 0 else f" {missing} did not contribute; the reasons are below."
    return (
        f"{used} of {invited} invited hospitals trained the shared model on their own patients, and the "
        f"server {_combined(record)}.{tail}"
    )


def _combined(record: RoundRecord) -> str:
    if record.masking is not None and record.masking.is_masked:
        return "made a new model from the sum of their updates, which is all that it could read"
    return "combined their updates into a new model"


def _run_summary(records: Sequence[RoundRecord], complete: int) -> str:
    first, last = records[0], records[-1]
    evaluated = any(r.kind == "evaluate" and r.status == "complete" for r in records)
    tail = " The final model was evaluated at the hospitals." if evaluated else ""
    return (
        f"Run {first.run_name}: {complete} complete training round{'' if complete == 1 else 's'} "
        f"between {moment(first.opened_at)} and "
        f"{moment(last.closed_at)}.{tail}"
    )


def _left_sentence(record: RoundRecord) -> str:
    if record.masking is not None and record.masking.is_masked:
        what = (
            "the metrics"
            if record.kind == "evaluate"
            else "the changes of the tensors below, the metrics"
        )
        noise = record.masking.noise_unit
        inside = (
            "the noised change of the tensors below, nothing else"
            if noise
            else f"{what} and the weight"
        )
        return (
            f"One vector under masks left each hospital, of the same size everywhere: under them {inside}. With it "
            "went shares of its masks, sealed for the other hospitals."
        )
    if record.kind == "evaluate":
        return "Evaluation only: no update left a hospital. Released metrics and their digests did."
    head = wording.KEPT_BACK.get(record.personalisation, "")
    numbers = f"{grouped(record.num_parameters)} {wording.NUMBERS[record.update_encoding]}"
    return (
        f"An update is one vector of {numbers} that holds the {len(record.tensors)} tensors below.{head} The metrics "
        "listed go with it."
    )


def _chain(record: RoundRecord, previous: RoundRecord | None) -> str:
    if previous is None:
        return ""
    name = figures.heading(previous).lower()
    if previous.model_out_sha256 == record.model_in_sha256:
        return f"The model that {name} put out."
    return f"Not the model that {name} put out."


def _participation(records: Sequence[RoundRecord]) -> list[dict[str, object]]:
    facts: dict[str, list[SiteFact]] = {}
    for record in records:
        for site in record.sites:
            facts.setdefault(site.site_id, []).append(site)
    return [
        {
            "name": name,
            "update_bytes": sum(fact.update_bytes for fact in own),
            **{status.value: sum(fact.status is status for fact in own) for status in SiteStatus},
        }
        for name, own in facts.items()
    ]


def _invited(record: RoundRecord) -> int:
    return len(record.sites) - record.count(SiteStatus.NOT_INVITED)


@dataclass(frozen=True, slots=True)
class _Theme:
    environment: Environment
    style: Markup
    style_hash: str
    classes: Mapping[str, tuple[str, str, str]]


@cache
def _theme() -> _Theme:
    environment = Environment(
        loader=PackageLoader("fedhealth.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = files("fedhealth.report").joinpath("templates/style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    classes = {
        path: (kind.value, *wording.ATTESTATION[kind])
        for path, kind in attestations(RoundRecord).items()
    }
    return _Theme(environment, Markup(text), f"sha256-{digest}", classes)  # noqa: S704 - our own style file


def page(template: str, not_evidenced: Iterable[NotEvidenced], **values: Any) -> str:  # noqa: ANN401 - template values
    """A page in the reports' style from a template of this package."""
    theme = _theme()
    return theme.environment.get_template(template).render(
        style=theme.style,
        style_hash=theme.style_hash,
        attest=theme.classes.__getitem__,
        classes=[(kind.value, *said) for kind, said in wording.ATTESTATION.items()],
        not_evidenced=[wording.NOT_EVIDENCED[item] for item in not_evidenced],
        banner=wording.BANNER,
        simulation_note=wording.SIMULATION,
        bytes_short=bytes_short,
        bytes_long=bytes_long,
        grouped=grouped,
        seconds=seconds,
        moment=moment,
        size_of=_size_of,
        declared_size=_declared_size,
        status_word=_status_word,
        status_sentence=_status_sentence,
        metric_names=_metric_names,
        **values,
    )


def _declared_size(site: SiteFact) -> str:
    return NOT_VISIBLE if site.declared_train_size is None else grouped(site.declared_train_size)


def _size_of(tensor: TensorFact) -> int:
    return prod(tensor.shape)


def _status_word(site: SiteFact) -> str:
    return wording.STATUS[site.status]


def _status_sentence(site: SiteFact) -> str:
    if site.drop_code is not None:
        return wording.DROP[site.drop_code]
    return wording.STATUS_SENTENCE[site.status]


def _metric_names(site: SiteFact) -> str:
    names = [*site.train_metrics, *site.evaluate_metrics]
    return ", ".join(wording.METRIC[name][0] for name in names)
