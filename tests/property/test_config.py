"""Whatever a study says survives writing and reading; whatever a file holds, reading it ends in order."""

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from fedhealth.config.load import ConfigFileError, load_study, study_digest, study_to_yaml
from fedhealth.config.source import Problem, UnreadableSourceError, parse
from fedhealth.config.study import Study
from fedhealth.config.template import template_path

BLANK_TEXT = template_path("blank").read_text("utf-8")
BLANK = load_study(template_path("blank"))
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=40)
WORDS = st.sampled_from(
    ["no", "1e3", "0x1", "~", "null", "2024-01-01", "1:30", "- a", "a: b", "*x"]
)
OPTIONS = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True),
    st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
    | WORDS
    | st.lists(st.integers(-5, 5), max_size=4),
    max_size=4,
)


def read_back(text: str) -> Study:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "study.yaml"
        path.write_text(text, "utf-8")
        return load_study(path)


@settings(max_examples=60, deadline=None)
@given(title=TEXT | WORDS, options=OPTIONS, seed=st.integers(0, 2**31 - 1))
def test_a_study_survives_writing_and_reading(
    title: str, options: dict[str, object], seed: int
) -> None:
    changes = {"title": title, "seed": seed, "model": {"name": "multimodal", "options": options}}
    study = Study.model_validate(BLANK.model_dump() | changes)
    again = read_back(study_to_yaml(study))
    assert again.model_dump() == study.model_dump()
    assert study_digest(again) == study_digest(study)


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, len(BLANK_TEXT)), insert=st.text(min_size=1, max_size=6))
def test_a_damaged_file_is_read_or_refused_with_problems(position: int, insert: str) -> None:
    problems: tuple[Problem, ...] | None = None
    try:
        read_back(BLANK_TEXT[:position] + insert + BLANK_TEXT[position:])
    except ConfigFileError as error:
        problems = error.problems
    assert problems is None or problems
    assert all(problem.line >= 1 and problem.fix for problem in problems or ())


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_any_text_parses_or_is_refused(text: str) -> None:
    with suppress(UnreadableSourceError):  # any other exception is a bug
        parse(text)
