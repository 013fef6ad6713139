"""FLamby's federated settings on its hospitals: local steps of all seeds side by side, the product's strategies."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from fedhealth_site_heart import HOSPITALS, flamby_split
from numpy.typing import NDArray
from torch import Tensor

from fedhealth.config.study import PluginChoice, RunPlan
from fedhealth.contracts.aggregation import SiteReply
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.flower.strategy_adapter import StrategyAggregator, build_aggregator

NUM_ROUNDS: Final = 15
NUM_STEPS: Final = 100
BATCH_SIZE: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class FederatedSetting:
    """One federated row: local rate, and the strategy's options as in FLamby's result files."""

    name: str
    learning_rate: float
    options: Mapping[str, float] = field(default_factory=dict)

    @property
    def has_controls(self) -> bool:
        """Whether control variates travel besides the model."""
        return self.name == "scaffold"


def _adaptive(rate: float) -> dict[str, float]:
    return {"learning_rate": rate, "tau": 1e-8, "beta_1": 0.9}


FEDERATED: Final = (
    FederatedSetting(name="fedavg", learning_rate=0.001),
    FederatedSetting(name="fedprox", learning_rate=0.001, options={"proximal_mu": 0.01}),
    FederatedSetting(name="scaffold", learning_rate=0.001),
    FederatedSetting(
        name="fedadam", learning_rate=0.01, options=_adaptive(0.01) | {"beta_2": 0.999}
    ),
    FederatedSetting(
        name="fedyogi", learning_rate=0.003162, options=_adaptive(0.01) | {"beta_2": 0.999}
    ),
    FederatedSetting(name="fedadagrad", learning_rate=0.003162, options=_adaptive(0.316228)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Client:
    """One hospital: its patients, and batches of all seeds without end."""

    name: str
    features: Tensor
    labels: Tensor
    batches: Iterator[Tensor]


def federate(setting: FederatedSetting, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """All rounds of every seed.

    Returns:
        weights (S, D) and biases (S,).
    """
    clients = [_client(name, number, seeds) for number, name in enumerate(HOSPITALS)]
    width = clients[0].features.shape[1]
    model = torch.stack([initial_parameters(width, seed) for seed in seeds])
    spec = _spec(width + 1, with_controls=setting.has_controls)
    aggregators = [_aggregator(setting, spec) for _ in seeds]
    control = torch.zeros_like(model)
    own_controls = {client.name: torch.zeros_like(model) for client in clients}
    for number in range(1, NUM_ROUNDS + 1):
        sent = {}
        # Every aggregator is told its model; what they ask of sites is the same.
        for index, aggregator in enumerate(aggregators):
            wishes = _wishes(aggregator, number, model[index], control[index], setting)
        for client in clients:
            correction = control - own_controls[client.name]
            trained = _local_steps(
                client, model, setting.learning_rate, wishes.get("proximal_mu", 0.0), correction
            )
            parts = [trained]
            if setting.has_controls:
                # Karimireddy et al. 2020, option II.
                change = -control + (model - trained) / (NUM_STEPS * setting.learning_rate)
                own_controls[client.name] = own_controls[client.name] + change
                parts.append(control + change)
            sent[client.name] = torch.cat(parts, dim=1)
        vectors = [
            _aggregate(aggregator, number, clients, {n: v[index] for n, v in sent.items()})
            for index, aggregator in enumerate(aggregators)
        ]
        joined = torch.from_numpy(np.stack(vectors))
        model = joined[:, : width + 1]
        control = joined[:, width + 1 :] if setting.has_controls else control
    return model[:, :-1], model[:, -1]


def initial_parameters(num_features: int, seed: int) -> Tensor:
    """(D + 1,) weights and bias as `torch.nn.Linear` starts them after `torch.manual_seed(seed)`."""
    torch.manual_seed(seed)
    layer = torch.nn.Linear(num_features, 1)
    return torch.cat([layer.weight.detach()[0], layer.bias.detach()])


def _client(name: str, number: int, seeds: Sequence[int]) -> _Client:
    features, labels, _, _ = flamby_split(name)  # type: ignore[arg-type]  # one of HOSPITALS
    generators = [torch.Generator().manual_seed(10 * seed + number) for seed in seeds]
    return _Client(
        name=name,
        features=torch.from_numpy(features),
        labels=torch.from_numpy(labels).float(),
        batches=_batches(len(labels), generators),
    )


def _batches(num_patients: int, generators: Sequence[torch.Generator]) -> Iterator[Tensor]:
    """(S, B) rows: each seed's own permutations one after the other, across rounds."""
    while True:
        orders = torch.stack([torch.randperm(num_patients, generator=g) for g in generators])
        yield from torch.split(orders, BATCH_SIZE, dim=1)


def _local_steps(
    client: _Client, model: Tensor, rate: float, proximal_mu: float, correction: Tensor
) -> Tensor:
    """(S, D + 1) after `NUM_STEPS` steps of SGD on the mean log loss of a batch."""
    trained = model.clone()
    for _ in range(NUM_STEPS):
        rows = next(client.batches)
        inputs = client.features[rows]
        logits = torch.einsum("sbd,sd->sb", inputs, trained[:, :-1]) + trained[:, -1:]
        errors = (torch.sigmoid(logits) - client.labels[rows]) / rows.shape[1]
        by_weight = torch.einsum("sb,sbd->sd", errors, inputs)
        gradient = torch.cat([by_weight, errors.sum(dim=1, keepdim=True)], dim=1)
        trained = trained - rate * (gradient + proximal_mu * (trained - model) + correction)
    return trained


def _spec(size: int, *, with_controls: bool) -> TensorSpec:
    tensors = {"model": np.zeros(size, dtype=np.float32)}
    if with_controls:
        tensors["control.model"] = np.zeros(size, dtype=np.float32)
    return TensorSpec.of(tensors)


def _aggregator(setting: FederatedSetting, spec: TensorSpec) -> StrategyAggregator:
    run = RunPlan(
        name="main",
        num_rounds=NUM_ROUNDS,
        strategy=PluginChoice(name=setting.name, options=dict(setting.options)),
        control_variates=setting.has_controls,
    )
    return build_aggregator(run, spec, min_cohort=len(HOSPITALS))


def _wishes(
    aggregator: StrategyAggregator,
    number: int,
    model: Tensor,
    control: Tensor,
    setting: FederatedSetting,
) -> Mapping[str, float]:
    parts = [model, control] if setting.has_controls else [model]
    return aggregator.configure(number, torch.cat(parts).numpy(), list(HOSPITALS))


def _aggregate(
    aggregator: StrategyAggregator,
    number: int,
    clients: Sequence[_Client],
    sent: Mapping[str, Tensor],
) -> NDArray[np.float32]:
    def reply(client: _Client) -> SiteReply:
        vector = sent[client.name].numpy()
        return SiteReply(
            site_id=client.name,
            weight=float(len(client.labels)),
            load_vector=lambda: vector,
            train_metrics={},
            evaluate_metrics={},
        )

    return aggregator.aggregate(number, iter([reply(client) for client in clients])).vector
