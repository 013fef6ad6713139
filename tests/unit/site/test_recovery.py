"""A restored ledger learns what it lost from what this site signed, and from nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedhealth.errors import UsageError
from fedhealth.evidence.signing import SigningKey
from fedhealth.privacy.ledger.ledger import read_ledger
from fedhealth.site.local_round import SignedAnswer
from fedhealth.site.recovery import recover_ledger

from .hospital import Hospital, private_content


class Story:
    """A hospital, and the answers that its server kept."""

    def __init__(self, hospital: Hospital, kept: Path) -> None:
        self.hospital = hospital
        self.folder = kept
        self.kept = kept / "main" / "contributions" / "round-0001-1-train.jsonl"
        self.kept.parent.mkdir(parents=True)
        self.kept.touch()

    def round(self, number: int, *, attempt: int = 1) -> SignedAnswer:
        answer = self.hospital.round(round_number=number, attempt=attempt)
        self.hospital.account.commit(answer.sealed_for or "")
        with self.kept.open("a") as file:
            file.write(json.dumps(answer.contribution.model_dump()) + "\n")
        return answer

    @property
    def ledger(self) -> Path:
        return self.hospital.ledger / "ledger.jsonl"

    def restore(self, backup: bytes) -> None:
        self.ledger.write_bytes(backup)
        self.hospital.restart()

    @property
    def steps(self) -> int:
        """In units of one round."""
        events = read_ledger(self.hospital.ledger).events()
        single = self.hospital.account.plan
        assert single is not None
        return sum(event.steps for event in events) // single.steps_per_round["main"]

    def recover(self) -> dict[str, Any]:
        found = recover_ledger(self.hospital.home, self.folder)
        self.hospital.restart()
        return found


@pytest.fixture
def story(new_consortium: Any, tmp_path: Path) -> Story:
    content = private_content(spare_rounds=20)
    return Story(Hospital(new_consortium("site-1", "site-2", content=content)), tmp_path / "runs")


def test_what_was_lost_is_added_and_every_lost_place_is_known_again(story: Story) -> None:
    story.round(1)
    backup = story.ledger.read_bytes()
    lost = [story.round(2), story.round(3)]
    story.restore(backup)
    assert story.steps == 1
    story.recover()
    assert story.steps == 3
    view = read_ledger(story.hospital.ledger)
    for answer in lost:
        place = story.hospital.spend(answer).ledger
        assert (place.sequence, place.head) in view.marks


def test_what_was_spent_after_the_restore_is_not_taken_for_what_was_lost(story: Story) -> None:
    """Six rounds in truth: one before the backup, two lost, three after it."""
    story.round(1)
    backup = story.ledger.read_bytes()
    story.round(2)
    story.round(3)
    story.restore(backup)
    for attempt in (1, 2, 3):
        story.round(3, attempt=attempt + 1)
    assert story.steps == 4
    story.recover()
    assert story.steps == 6


def test_a_backup_from_before_every_answer_counts_all_of_them(story: Story) -> None:
    backup = story.ledger.read_bytes()
    story.round(1)
    story.round(2)
    story.restore(backup)
    story.recover()
    assert story.steps == 2


def test_a_round_that_was_reserved_and_never_answered_is_recovered_with_the_next_answer(
    story: Story,
) -> None:
    story.round(1)
    backup = story.ledger.read_bytes()
    story.hospital.sessions.open("main")[0]._options["wait_s"] = 5  # type: ignore[attr-defined]  # the scripted session
    with pytest.raises(Exception, match="cancel"):
        story.hospital.round(round_number=2, is_cancelled=True)
    story.hospital.sessions.open("main")[0]._options["wait_s"] = 0  # type: ignore[attr-defined]  # the scripted session
    story.round(2, attempt=2)
    story.restore(backup)
    story.recover()
    assert story.steps == 3


def test_recovering_twice_adds_nothing(story: Story) -> None:
    story.round(1)
    backup = story.ledger.read_bytes()
    story.round(2)
    story.restore(backup)
    assert story.recover()["added"]
    assert story.recover()["added"] == {}
    assert story.steps == 2


def test_words_of_another_key_are_not_believed(story: Story) -> None:
    """A smaller account with the right place, signed by whoever: the older copy would pass for a whole one."""
    story.round(1)
    backup = story.ledger.read_bytes()
    answer = story.round(2)
    story.restore(backup)
    said = story.hospital.said(answer)
    assert said.privacy is not None
    cheap = said.privacy.model_copy(update={"study_events": said.privacy.round_events})
    forged = said.model_copy(update={"privacy": cheap}).sign(SigningKey.generate())
    story.kept.write_text(json.dumps(forged.model_dump()) + "\n")
    with pytest.raises(UsageError, match="FH-USAGE-040"):
        story.recover()
    assert story.steps == 1


def test_an_edited_line_is_an_error_and_adds_nothing(story: Story) -> None:
    story.round(1)
    story.kept.write_text(story.kept.read_text() + "{}\n")
    with pytest.raises(UsageError, match="FH-USAGE-041"):
        story.recover()
