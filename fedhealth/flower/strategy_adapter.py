"""Any Flower strategy as the round loop's `Aggregator`: named tensors for the strategy, one vector on the wire.

Flower strategies trust their surroundings: stock ones wait for ever, fold a single survivor, break on a
missing metric and return float64 or NaN. What they rely on is made true here, and what they return is checked.
"""

import inspect
import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedhealth.config.study import RunPlan, Study
from fedhealth.contracts.aggregation import (
    STRATEGY_CONFIG_ALLOWED,
    Aggregate,
    SiteLevelRelease,
    SiteReply,
    StrategyConfig,
)
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.errors import AggregationError, ConfigError, FedHealthError, QuorumError
from fedhealth.flower.cohort_grid import CohortGrid, node_id_of, waits_for_sites
from fedhealth.flower.strategy_options import make_run_strategy, make_strategy
from fedhealth.flower.strategy_state import StrategyState
from fedhealth.flower.view_array import array_record
from fedhealth.secagg.round_settings import sum_release

Vector = NDArray[np.float32]

STRATEGY_CONFIG_DROPPED = frozenset({"server-round"})
"""Flower's own bookkeeping: the manifest has the round, so it need not reach a site."""

_log = getLogger(__name__)

_BLOCK = 1 << 20  # elements looked at in one go by the finiteness check


def build_aggregator(
    run: RunPlan, spec: TensorSpec, *, min_cohort: int, study: Study | None = None
) -> "StrategyAggregator":
    """The aggregator of a run, with the strategy that its study names.

    `study` is given in a run: with secure aggregation the strategy then gets sums.

    Raises:
        ConfigError: as `make_run_strategy`.
        PrivacyError: no noise and grid fit the study's distributed privacy.
    """
    if study is None:
        strategy = make_strategy(run, min_cohort=min_cohort)
    else:
        strategy = make_run_strategy(study, run, noise=sum_release(study, spec.num_elements))
    return StrategyAggregator(strategy, spec, min_cohort=min_cohort)


class StrategyAggregator:
    """`fedhealth.contracts.aggregation.Aggregator` over a Flower strategy. Not safe for threads.

    Memory beyond the strategy's own: the one reply in hand, then the new vector. A strategy that keeps its
    replies (every stock one) costs a model for each site.
    """

    def __init__(self, strategy: Strategy, spec: TensorSpec, *, min_cohort: int) -> None:
        self._strategy = strategy
        self._spec = spec
        self._min_cohort = min_cohort
        self._state = StrategyState(strategy)
        self._note_survivors = getattr(strategy, "note_survivors", None)
        self._weight_key = str(getattr(strategy, "weighted_by_key", "num-examples"))
        self._array_key = str(getattr(strategy, "arrayrecord_key", "arrays"))

    @property
    def strategy(self) -> Strategy:
        """The strategy itself, for plans and for tests."""
        return self._strategy

    def configure(self, round_number: int, vector: Vector, cohort: Sequence[str]) -> StrategyConfig:
        """What the strategy wants every site of this round's cohort to know.

        Raises:
            QuorumError: FH-STRATEGY-030 the strategy wants more sites than there are, FH-STRATEGY-031 the
                cohort is below the minimum.
            ConfigError: FH-STRATEGY-011 it wants to talk to sites itself, FH-STRATEGY-016 it picks some
                sites only, FH-STRATEGY-017 it wants to send something that may not reach a site.
            AggregationError: FH-STRATEGY-050 it raised something else.
        """
        self._check_quorum(len(cohort))
        self._check_demands(len(cohort))
        arrays = array_record(self._spec, vector)
        grid = CohortGrid(cohort)
        with self._strategy_errors("configure_train"):
            messages = list(
                self._strategy.configure_train(round_number, arrays, ConfigRecord(), grid)
            )
        _check_destinations(messages, grid)
        configs = [_allowed_config(message.content, arrays) for message in messages]
        if any(config != configs[0] for config in configs):
            raise _refused_payload("another configuration for each site")
        return configs[0]

    def aggregate(self, round_number: int, replies: Iterator[SiteReply]) -> Aggregate:
        """Fold replies, in the order they come; vectors are loaded one at a time.

        Raises:
            QuorumError: FH-STRATEGY-031 fewer replies than the minimum cohort.
            AggregationError: FH-STRATEGY-050 to 056 the strategy or a reply broke the contract.
            whatever the iterator or `load_vector` raises, as it is.
        """
        listed = list(replies)
        self._check_quorum(sum(reply.num_sites for reply in listed))
        _check_replies(listed)
        if self._note_survivors is not None:
            self._note_survivors(listed[0].num_sites)
        train = _ReplyMessages(self, listed)
        with self._strategy_errors("aggregate_train", train):
            arrays, train_metrics = self._strategy.aggregate_train(round_number, iter(train))
        if arrays is None:
            raise _broken("FH-STRATEGY-051", "the strategy returned no tensors")
        vector = self._to_vector(arrays)
        evaluate = self._evaluate_messages(listed)
        with self._strategy_errors("aggregate_evaluate"):
            evaluate_metrics = self._strategy.aggregate_evaluate(round_number, evaluate)
        release, releases = self._releases()
        return Aggregate(
            vector=vector,
            train_metrics=_known_metrics(train_metrics, _common([r.train_metrics for r in listed])),
            evaluate_metrics=_known_metrics(
                evaluate_metrics, _common([r.evaluate_metrics for r in listed])
            ),
            site_level=release,
            site_level_so_far=releases,
        )

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        """What the strategy carries from round to round. Raises AggregationError FH-STRATEGY-040."""
        return self._state.read()

    def load_state_dict(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Put back what `state_dict` gave. Raises AggregationError FH-STRATEGY-041 on unknown names."""
        self._state.restore(state)

    def train_message(self, reply: SiteReply, metric_names: Sequence[str]) -> Message:
        """The reply as the strategy expects it from a node; loads the vector.

        Raises:
            AggregationError: FH-TENSOR-003 wrong length, FH-STRATEGY-054 not finite.
        """
        vector = reply.load_vector()
        content = RecordDict(
            {
                self._array_key: array_record(self._spec, vector),
                "metrics": self._metrics(reply, reply.train_metrics, metric_names),
            }
        )
        if not _is_finite(vector):
            raise _broken("FH-STRATEGY-054", f"the update of site {reply.site_id!r} is not finite")
        return _reply_message(reply.site_id, MessageType.TRAIN, content)

    def _evaluate_messages(self, replies: Sequence[SiteReply]) -> list[Message]:
        names = _common([reply.evaluate_metrics for reply in replies])
        contents = [self._metrics(reply, reply.evaluate_metrics, names) for reply in replies]
        return [
            _reply_message(reply.site_id, MessageType.EVALUATE, RecordDict({"metrics": content}))
            for reply, content in zip(replies, contents, strict=True)
        ]

    def _metrics(
        self, reply: SiteReply, metrics: Mapping[str, float], names: Sequence[str]
    ) -> MetricRecord:
        record = MetricRecord({name: float(metrics[name]) for name in names})
        record[self._weight_key] = float(reply.weight)
        return record

    def _releases(self) -> tuple[SiteLevelRelease | None, tuple[SiteLevelRelease, ...]]:
        """What this round told about a site and all of the run; nothing from a strategy that adds no noise."""
        take = getattr(self._strategy, "take_release", None)
        if take is None or not getattr(self._strategy, "has_noise", True):
            return None, ()
        with self._strategy_errors("take_release"):
            release, so_far = take(), tuple(getattr(self._strategy, "releases", ()))
        is_whole = so_far[-1:] == (release,) and all(
            isinstance(one, SiteLevelRelease) for one in so_far
        )
        if not is_whole:
            raise _broken("FH-STRATEGY-056", "the strategy cannot say what its rounds released")
        return release, so_far

    def _to_vector(self, arrays: ArrayRecord) -> Vector:
        """Cast to float32 on the spec. Tensors are taken out of the record one by one."""
        if set(arrays) != set(self._spec.names()):
            raise _broken("FH-STRATEGY-052", "the strategy returned other tensor names")
        vector = np.empty(self._spec.num_elements, dtype=np.float32)
        for name, target in self._spec.views(vector):
            tensor = arrays.pop(name).numpy()
            if tensor.shape != target.shape or tensor.dtype.kind not in "fiu":
                raise _broken(
                    "FH-STRATEGY-053",
                    f"the strategy returned tensor {name!r} as {tensor.dtype} {tensor.shape}, "
                    f"the spec says float32 {target.shape}",
                )
            with np.errstate(over="ignore", invalid="ignore"):
                np.copyto(target, tensor, casting="unsafe")
        if not _is_finite(vector):
            raise _broken("FH-STRATEGY-054", "the strategy returned a value that is not finite")
        return vector

    def _check_quorum(self, present: int) -> None:
        if present < self._min_cohort:
            raise QuorumError(
                "FH-STRATEGY-031",
                f"{present} sites take part, the minimum cohort is {self._min_cohort}.",
                why="A model of fewer sites would show one hospital to the others.",
                fix="Wait for more sites; the model stays as it is.",
            )

    def _check_demands(self, present: int) -> None:
        """Find out from a stock strategy's settings that it would wait, before it does."""
        wanted = [getattr(self._strategy, n, 0) for n in ("min_train_nodes", "min_available_nodes")]
        wanted.append(int(present * getattr(self._strategy, "fraction_train", 0.0)))
        if max(wanted) > present:
            raise waits_for_sites(present)

    @contextmanager
    def _strategy_errors(
        self, verb: str, messages: "_ReplyMessages | None" = None
    ) -> Iterator[None]:
        """Errors of a strategy become ours; errors of the round that pass through it stay what they are."""
        try:
            yield
        except FedHealthError:
            raise
        except Exception as error:
            # A strategy is a plug-in: whatever it raises must end as a code and a void round.
            if messages is not None and messages.failure is not None:
                raise messages.failure from None
            # Its words may hold values of updates: they are for the author, on this machine, who asks for them.
            _log.debug("the strategy failed", exc_info=True)
            kind = type(
                getattr(self._strategy, "inner", self._strategy)
            )  # under masks it is wrapped
            failed = f"failed with {type(error).__name__} at {_line_of(error, kind)}"
            raise _broken("FH-STRATEGY-050", f"{kind.__name__}.{verb} {failed}") from error


class _ReplyMessages:
    """Replies as Messages, each loaded when the strategy asks for it. Remembers what loading raised."""

    def __init__(self, aggregator: StrategyAggregator, replies: Sequence[SiteReply]) -> None:
        self._aggregator = aggregator
        self._replies = replies
        self._names = _common([reply.train_metrics for reply in replies])
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[Message]:
        for reply in self._replies:
            try:
                message = self._aggregator.train_message(reply, self._names)
            except Exception as error:
                self.failure = error
                raise
            yield message
            # The name would keep this reply's tensors alive while the next reply is loaded.
            del message


def _reply_message(site_id: str, message_type: str, content: RecordDict) -> Message:
    instruction = Message(RecordDict(), node_id_of(site_id), message_type)
    return Message(content, reply_to=instruction)


def _common(metrics: Sequence[Mapping[str, float]]) -> list[str]:
    """Names of the metrics that every reply has with a finite value, sorted."""
    finite = [{name for name, value in one.items() if math.isfinite(value)} for one in metrics]
    return sorted(set.intersection(*finite)) if finite else []


def _known_metrics(record: MetricRecord | None, names: Sequence[str]) -> dict[str, float]:
    """The strategy's means of the metrics it was given; what it made up itself stays here."""
    values = {} if record is None else {name: record.get(name) for name in names}
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _check_replies(replies: Sequence[SiteReply]) -> None:
    if len({reply.site_id for reply in replies}) != len(replies):
        raise _broken("FH-STRATEGY-055", "a site replied twice")
    for reply in replies:
        if not math.isfinite(reply.weight) or reply.weight <= 0:
            raise _broken("FH-STRATEGY-055", f"site {reply.site_id!r} has no positive weight")


def _check_destinations(messages: Sequence[Message], grid: CohortGrid) -> None:
    picked = [message.metadata.dst_node_id for message in messages]
    if sorted(picked) != sorted(grid.get_node_ids()):
        raise ConfigError(
            "FH-STRATEGY-016",
            f"the strategy addresses {len(picked)} sites, not each of the cohort once.",
            why="Every site of the manifest trains; Flower's sampling is unseeded and cannot be repeated.",
            fix="Remove fraction_train from the study's strategy options.",
        )


def _allowed_config(content: RecordDict, arrays: ArrayRecord) -> StrategyConfig:
    """The one ConfigRecord of a message, through the allow-list."""
    if content.metric_records or len(content.config_records) > 1:
        raise _refused_payload("more than tensors and one configuration")
    records = list(content.array_records.values())
    if len(records) != 1 or not _same_tensors(records[0], arrays):
        raise _refused_payload("other tensors than the current model")
    config: StrategyConfig = {}
    for record in content.config_records.values():
        for key, value in record.items():
            if key in STRATEGY_CONFIG_DROPPED:
                continue
            if key not in STRATEGY_CONFIG_ALLOWED:
                raise _refused_payload(f"the configuration key {key!r}")
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise _refused_payload(f"a value of {key!r} that is not a finite number")
            config[key] = value
    return config


def _same_tensors(record: ArrayRecord, arrays: ArrayRecord) -> bool:
    if record is arrays:
        return True
    return set(record) == set(arrays) and all(
        record[name] is array or np.array_equal(record[name].numpy(), np.asarray(array))
        for name, array in arrays.items()
    )


def _is_finite(vector: Vector) -> bool:
    return all(
        bool(np.isfinite(vector[start : start + _BLOCK]).all())
        for start in range(0, vector.size, _BLOCK)
    )


def _refused_payload(what: str) -> ConfigError:
    allowed = ", ".join(sorted(STRATEGY_CONFIG_ALLOWED))
    return ConfigError(
        "FH-STRATEGY-017",
        f"the strategy wants to send {what}.",
        why=f"A site receives the current model and these keys only: {allowed}.",
        fix="Use a strategy without it, or bring the key through a review of STRATEGY_CONFIG_ALLOWED.",
    )


def _line_of(error: Exception, kind: type) -> str:
    """File name and line where it happened: the innermost one in the strategy's own file, if it came through there."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == inspect.getsourcefile(kind)]
    last = (own or frames)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"


def _broken(code: str, what: str) -> AggregationError:
    return AggregationError(
        code,
        f"{what}.",
        why="The round is void and the model stays as it is.",
        fix="Check the strategy against fedhealth.testing.strategy_contract; `fedhealth --log-level debug ...` shows "
        "where and why a strategy failed.",
    )
