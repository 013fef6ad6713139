"""Pages are pure, self-contained, escaped and modest."""

import base64
import hashlib
import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest

from fedhealth.config.personalisation import PersonalisationName
from fedhealth.contracts.codes import DropCode
from fedhealth.report import charts, wording
from fedhealth.report.figures import bytes_short, grouped, seconds
from fedhealth.report.record import RoundRecord, SiteStatus
from fedhealth.report.render import render_round, render_run
from fedhealth.testing.example_rounds import (
    SITES,
    bare_run,
    example_run,
    make_round,
    run_with_site_level,
    run_without_privacy,
    site,
)

ROUNDS = example_run()
PAGES = [render_round(r, previous=p) for p, r in zip([None, *ROUNDS], ROUNDS, strict=False)]
PAGES.append(render_run("A study <b>of</b> hearts", ROUNDS))
BOTH = run_with_site_level(4)
OTHERS = [  # no account, no bound, both units: well-formed and modest like the rest
    render_run("t", bare_run()),
    render_run("t", run_without_privacy()),
    render_run("t", BOTH),
    render_round(BOTH[1], previous=BOTH[0], history=BOTH[:1]),
]
FORBIDDEN = r"compliant|anonym|guarantee|certif|de-identified|HIPAA|GDPR|safe to share"
VOID_ELEMENTS = {"meta", "br", "link", "img", "input"}


class Walker(HTMLParser):
    """Checks nesting and collects tags."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def walk(page: str) -> Walker:
    walker = Walker()
    walker.feed(page)
    assert walker.open == []
    return walker


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_page_needs_no_script_and_no_network(page: str) -> None:
    walker = walk(page)
    assert not {"script", "link", "img", "iframe", "object", "form"} & {t for t, _ in walker.tags}
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert "@import" not in page
    assert "url(" not in page
    assert not [a for _, attrs in walker.tags for a in attrs if a.startswith("on") or a == "style"]


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_policy_allows_the_pages_own_style_only(page: str) -> None:
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"default-src &#39;none&#39;; style-src &#39;sha256-{digest}" in page or (
        f"default-src 'none'; style-src 'sha256-{digest}'" in page
    )


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_page_claims_nothing_it_cannot_show(page: str) -> None:
    text = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    assert not re.search(FORBIDDEN, text, re.IGNORECASE)
    assert wording.BANNER in text


@pytest.mark.parametrize("record", [ROUNDS[0], bare_run()[0]], ids=["account", "bare"])
def test_page_lists_what_its_record_leaves_open_and_nothing_else(record: RoundRecord) -> None:
    page = render_round(record, previous=None).replace("&#39;", "'")
    for item, sentence in wording.NOT_EVIDENCED.items():
        assert (sentence in page) == (item in record.not_evidenced)


def test_templates_and_words_hold_no_forbidden_claim() -> None:
    folder = Path(wording.__file__).parent
    for path in [*folder.glob("*.py"), *folder.glob("templates/*")]:
        assert not re.search(FORBIDDEN, path.read_text(), re.IGNORECASE), path.name


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_tables_have_captions_and_charts_have_titles_and_descriptions(page: str) -> None:
    assert page.count("<table") == page.count("<caption")
    assert page.count('<svg role="img"') == page.count("<desc>")
    assert '<html lang="en">' in page


def test_same_record_gives_the_same_page() -> None:
    again = RoundRecord.model_validate(ROUNDS[1].model_dump(mode="json"))
    assert render_round(again, previous=ROUNDS[0]) == PAGES[1]
    assert render_run("Title", ROUNDS) == render_run("Title", ROUNDS[::-1])


def test_title_of_the_study_is_escaped() -> None:
    assert "A study &lt;b&gt;of&lt;/b&gt; hearts" in PAGES[-1]
    assert "<b>of</b>" not in PAGES[-1]


@pytest.mark.parametrize("code", DropCode)
def test_drop_out_is_told_in_words_and_by_code(code: DropCode) -> None:
    sites = (site(0, 1), site(1, 1), site(2, 1, drop=code))
    page = render_round(make_round(1, sites), previous=None)
    assert wording.DROP[code].replace("'", "&#39;") in page
    assert f"<code>{code}</code>" in page


def test_void_round_says_that_the_model_is_unchanged() -> None:
    assert "The round is void and the model is unchanged." in PAGES[2]
    assert "this round changed nothing" in PAGES[2]
    assert wording.STATUS[SiteStatus.UNUSED] in PAGES[2]


def test_round_page_names_every_site_and_both_model_digests() -> None:
    for name in SITES:
        assert f'<th scope="row">{name}</th>' in PAGES[0]
    assert ROUNDS[0].model_in_sha256 in PAGES[0]
    assert ROUNDS[0].model_out_sha256 in PAGES[0]


def test_break_in_the_chain_of_models_is_said() -> None:
    assert "The model that round 1 put out." in PAGES[1]
    stranger = ROUNDS[0].model_copy(update={"model_out_sha256": "0" * 64})
    assert "Not the model that round 1 put out." in render_round(ROUNDS[1], previous=stranger)


def test_bytes_that_nobody_measured_are_not_zero() -> None:
    assert "not measured" in PAGES[2]


def test_run_page_links_every_round() -> None:
    links = re.findall(r'href="(round-[^"]+)"', PAGES[-1])
    assert links == [
        "round-0001.html",
        "round-0002.html",
        "round-0003.html",
        "round-0003-attempt-2.html",
        "round-0004-evaluate.html",
    ]


def test_run_without_metrics_still_has_a_page() -> None:
    bare = tuple(
        s.model_copy(update={"train_metrics": {}, "evaluate_metrics": {}}) for s in ROUNDS[0].sites
    )
    record = make_round(1, bare)
    assert "No metric was released" in render_run("t", [record])
    assert "No metric was released" in render_round(record, previous=None)


def test_round_with_many_sites_renders_well_formed() -> None:
    many = tuple(
        site(0, 1).model_copy(update={"site_id": f"site-{i}", "key_id": "0" * 64})
        for i in range(40)
    )
    walk(render_round(make_round(1, many), previous=None))


@pytest.mark.parametrize(
    ("points", "top"),
    [
        ([(1, 0.5)], None),
        ([(1, 0.0), (2, 0.0)], 1.0),
        ([(0, 1.0), (1, 1.0)], 1.0),
        ([(3, 1e6)], None),
    ],
)
def test_curve_stays_inside_its_frame(points: list[tuple[int, float]], top: float | None) -> None:
    svg = charts.curves("t", [charts.Series("a", 0, points)], top=top)
    for x, y in re.findall(r'cx="([\d.-]+)" cy="([\d.-]+)"', svg):
        assert 40 <= float(x) <= 452
        assert 8 <= float(y) <= 208


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (3972, "3.97 kB"), (100_000_000, "100 MB"), (2 * 10**9, "2 GB")],
)
def test_bytes_are_rounded_in_decimal_units(value: int, text: str) -> None:
    assert bytes_short(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.418, "0.42 s"), (38.74, "38.7 s"), (245, "4 min 05 s"), (7380, "2 h 03 min")],
)
def test_durations_read_well(value: float, text: str) -> None:
    assert seconds(value) == text


def test_large_counts_are_grouped() -> None:
    assert grouped(25_000_000) == "25\u202f000\u202f000"


@pytest.mark.parametrize("method", get_args(PersonalisationName))
def test_pages_say_which_model_the_metrics_are_of_and_what_the_bound_is_about(method: str) -> None:
    rounds = [r.model_copy(update={"personalisation": method}) for r in ROUNDS]
    whole, single = render_run("t", rounds), render_round(rounds[0], previous=None)
    judged = wording.JUDGED[method]
    assert f"Metrics of {judged}, on each" in html.unescape(whole)
    assert f"Evaluation is of {judged} as" in html.unescape(single)
    assert ("own" in judged) == (method not in {"none", "fine_tune"})
    if method != "none":
        assert wording.KEPT_NOISED[method] in html.unescape(single)
