"""The Grid that a strategy gets: exactly the sites of one round's manifest, and no way to talk to them.

A strategy may ask who is there and address them. Sending, receiving and waiting are the round loop's: stock
sampling (`sample_nodes`) would otherwise wait for ever for a hospital that is not coming.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedhealth.errors import ConfigError, QuorumError

# Stock FedAvg asks twice in a round. Whoever keeps asking waits for an answer that cannot change.
_MAX_QUESTIONS = 8


def node_id_of(site_id: str) -> int:
    """A stable positive 63-bit node id of a site: the same in every round and after a restart."""
    digest = hashlib.sha256(b"fedhealth/node-id/v1:" + site_id.encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 1) or 1


class CohortGrid(Grid):
    """A read-only Grid over one cohort, for one call of one strategy verb.

    Args:
        cohort: site ids of the manifest, without repetition.
    """

    def __init__(self, cohort: Sequence[str]) -> None:
        self._sites = {node_id_of(site_id): site_id for site_id in cohort}
        if len(self._sites) != len(cohort):
            raise ConfigError(
                "FH-STRATEGY-010",
                "the cohort names a site twice.",
                fix="Each site id of a roster must be distinct.",
            )
        self._questions = 0

    def get_node_ids(self) -> Iterable[int]:
        """Node ids of the cohort, in its order.

        Raises:
            QuorumError: FH-STRATEGY-030 the strategy keeps asking, so it waits for more sites.
        """
        self._questions += 1
        if self._questions > _MAX_QUESTIONS:
            raise waits_for_sites(len(self._sites))
        return list(self._sites)

    def site_id_of(self, node_id: int) -> str | None:
        """The site behind a node id; None for a stranger."""
        return self._sites.get(node_id)

    def set_run(self, run: Any) -> None:  # noqa: ANN401, ARG002 - Flower's Run is not public API
        """Refused: a strategy does not choose the run."""
        _refuse("set_run")

    @property
    def run(self) -> Any:  # noqa: ANN401 - as above
        """Refused: the run's keys and code are the server's."""
        _refuse("run")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message, for strategies that still make them through the Grid."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:  # noqa: ARG002
        """Refused."""
        _refuse("push_messages")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:  # noqa: ARG002
        """Refused."""
        _refuse("pull_messages")

    def send_and_receive(
        self,
        messages: Iterable[Message],  # noqa: ARG002
        *,
        timeout: float | None = None,  # noqa: ARG002
    ) -> Iterable[Message]:
        """Refused."""
        _refuse("send_and_receive")


def waits_for_sites(present: int) -> QuorumError:
    """The strategy asks for more sites than the round has."""
    return QuorumError(
        "FH-STRATEGY-030",
        f"the strategy wants more than the {present} sites of this round.",
        why="It would wait for them without end.",
        fix="Lower min_train_nodes, min_available_nodes or fraction_train in the study's strategy options.",
    )


def _refuse(verb: str) -> NoReturn:
    raise ConfigError(
        "FH-STRATEGY-011",
        f"the strategy calls grid.{verb}, which is the round loop's business.",
        why="Every message to a hospital is a signed manifest with a deadline and goes on record.",
        fix="Write the strategy with configure_train and aggregate_train only (strategies/README.md).",
    )
