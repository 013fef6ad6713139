"""The one door out: what it releases, what it refuses with which code, and that nothing goes around it."""

import ast
import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedhealth
from fedhealth.contracts.codes import DropCode
from fedhealth.contracts.local_training import PatientMechanism
from fedhealth.contracts.metrics import METRIC_RANGES
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.errors import GateRefusedError
from fedhealth.gate import outbound as outbound_module
from fedhealth.gate.frozen import Frozen
from fedhealth.gate.gate import (
    ReleaseTerms,
    UpdateClip,
    refusal_code,
    release_again,
    release_code,
    release_keys,
    release_metrics,
    release_status,
    release_update,
)
from fedhealth.gate.outbound import (
    Outbound,
    OutboundCode,
    OutboundKeys,
    OutboundMetrics,
    OutboundStatus,
    OutboundUpdate,
)

PACKAGE = Path(fedhealth.__file__).parent
TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.bias": np.full(4, 0.5, dtype=np.float32),
}
TERMS = ReleaseTerms(spec=TensorSpec.of(TENSORS), metrics=("auc", "train_loss"), metric_digits=4)


def release(
    tensors: dict[str, Any] | None = None, train: Any = None, evaluate: Any = None
) -> OutboundUpdate:
    return release_update(
        TENSORS if tensors is None else tensors,
        train_metrics=train or {},
        evaluate_metrics=evaluate or {},
        terms=TERMS,
    )


def test_an_update_is_the_tensors_in_the_order_of_the_spec_as_little_endian_float32() -> None:
    shuffled = dict(reversed(TENSORS.items()))
    released = release(shuffled)
    expected = np.concatenate([t.ravel() for t in TENSORS.values()]).astype("<f4").tobytes()
    assert bytes(released.payload) == expected
    assert released.num_elements == 10
    assert released.digest == hashlib.sha256(expected).hexdigest()


def test_what_is_released_no_longer_changes_with_the_plugins_array() -> None:
    mine = {name: tensor.copy() for name, tensor in TENSORS.items()}
    released = release(mine)
    mine["a.weight"][:] = np.nan
    assert np.isfinite(np.frombuffer(released.payload, dtype="<f4")).all()


def changed(**tensors: Any) -> dict[str, Any]:
    names = {"a": "a.weight", "b": "b.bias"}
    return TENSORS | {names.get(key, key): value for key, value in tensors.items()}


@pytest.mark.parametrize(
    ("tensors", "code", "told"),
    [
        ({}, "FH-GATE-001", DropCode.WRONG_SPEC),
        ({"a.weight": TENSORS["a.weight"]}, "FH-GATE-001", DropCode.WRONG_SPEC),
        (changed(patient=np.zeros(1, np.float32)), "FH-GATE-001", DropCode.WRONG_SPEC),
        (changed(a=TENSORS["a.weight"].T), "FH-GATE-002", DropCode.WRONG_SPEC),
        (changed(a=TENSORS["a.weight"].ravel()), "FH-GATE-002", DropCode.WRONG_SPEC),
        (changed(b=np.zeros(5, np.float32)), "FH-GATE-002", DropCode.WRONG_SPEC),
        (changed(b=np.zeros(4, np.float64)), "FH-GATE-002", DropCode.WRONG_SPEC),
        (changed(b=np.zeros(4, ">f4")), "FH-GATE-002", DropCode.WRONG_SPEC),
        (changed(b=np.zeros(4, np.int32)), "FH-GATE-002", DropCode.WRONG_SPEC),
        (changed(b=np.array([0, np.nan, 0, 0], np.float32)), "FH-GATE-003", DropCode.NON_FINITE),
        (changed(b=np.array([0, 0, 0, np.inf], np.float32)), "FH-GATE-003", DropCode.NON_FINITE),
        (changed(b=np.array([-np.inf, 0, 0, 0], np.float32)), "FH-GATE-003", DropCode.NON_FINITE),
    ],
)
def test_an_update_that_is_not_the_manifests_is_refused(
    tensors: dict[str, Any], code: str, told: DropCode
) -> None:
    with pytest.raises(GateRefusedError) as refused:
        release(tensors)
    assert refused.value.code == code
    assert refusal_code(refused.value) is told


def test_a_frozen_tensor_leaves_as_it_came_or_nothing_does() -> None:
    origin = np.concatenate([TENSORS["a.weight"].ravel(), TENSORS["b.bias"]])
    origin[6] = -0.0
    frozen = Frozen(names=frozenset({"b.bias"}), origin=origin, ranges=(slice(6, 10),))
    terms = dataclasses.replace(TERMS, frozen=frozen, clip=UpdateClip(origin=origin, norm=0.5))

    def released(bias: Any) -> OutboundUpdate:
        tensors = {"a.weight": TENSORS["a.weight"] + np.float32(1), "b.bias": bias}
        return release_update(tensors, train_metrics={}, evaluate_metrics={}, terms=terms)

    out = np.frombuffer(released(origin[6:].copy()).payload, dtype="<f4")
    assert out[6:].tobytes() == origin[6:].tobytes()
    assert np.linalg.norm(out - origin) == pytest.approx(0.5)
    for place, value in ((3, np.nextafter(np.float32(0.5), np.float32(1))), (0, 0.0)):
        moved = origin[6:].copy()
        moved[place] = value
        with pytest.raises(GateRefusedError, match="FH-GATE-013") as error:
            released(moved)
        assert refusal_code(error.value) is DropCode.REFUSED_BY_GATE


def test_a_refusal_repeats_no_name_that_a_plugin_made_up() -> None:
    with pytest.raises(GateRefusedError) as refused:
        release(changed(**{"DOE^JOHN": np.zeros(1, np.float32)}))
    assert "DOE" not in str(refused.value)
    with pytest.raises(GateRefusedError) as refused:
        release(train={"DOE^JOHN": 1.0})
    assert "DOE" not in str(refused.value)


def test_a_metric_that_no_study_can_ask_for_is_refused() -> None:
    with pytest.raises(GateRefusedError, match="FH-GATE-004") as refused:
        release(train={"num_patients": 12.0})
    assert refusal_code(refused.value) is DropCode.REFUSED_BY_GATE


def test_a_metric_that_this_study_does_not_list_stays() -> None:
    released = release(train={"train_loss": 0.5}, evaluate={"auc": 0.7, "brier": 0.1})
    assert released.evaluate_metrics == {"auc": 0.7}
    assert released.train_metrics == {"train_loss": 0.5}
    assert release_metrics({"brier": 0.1}, terms=TERMS).evaluate_metrics == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.001, 1.001])
def test_a_metric_out_of_its_range_is_refused(value: float) -> None:
    with pytest.raises(GateRefusedError, match="FH-GATE-005"):
        release_metrics({"auc": value}, terms=TERMS)


@given(st.floats(0, 1), st.integers(1, 6))
def test_a_metric_leaves_with_the_studys_digits_and_no_more(value: float, digits: int) -> None:
    terms = ReleaseTerms(spec=TERMS.spec, metrics=("auc",), metric_digits=digits)
    said = release_metrics({"auc": value}, terms=terms).evaluate_metrics["auc"]
    assert said == float(f"{said:.{digits}g}")
    assert abs(said - value) <= value * 10 ** (1 - digits)
    low, high = METRIC_RANGES["auc"]
    assert low <= said <= high


def test_a_code_is_one_of_the_closed_list() -> None:
    assert release_code(DropCode.SITE_ERROR).code is DropCode.SITE_ERROR
    with pytest.raises(ValueError, match="not a valid DropCode"):
        release_code("DOE^JOHN")  # type: ignore[arg-type]


TYPES = [OutboundUpdate, OutboundMetrics, OutboundCode, OutboundKeys, OutboundStatus, Outbound]


@pytest.mark.parametrize("kind", TYPES)
def test_nothing_but_the_gate_can_make_an_outbound_message(kind: type[Outbound]) -> None:
    fields: dict[str, Any] = {
        f.name: {} for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING
    }
    for token in ({}, {"token": None}, {"token": object()}):
        with pytest.raises(PermissionError):
            kind(**fields, **token)


def test_a_released_message_cannot_be_turned_into_another() -> None:
    released = release()
    with pytest.raises(dataclasses.FrozenInstanceError):
        released.payload = b"DOE^JOHN"  # type: ignore[misc]
    with pytest.raises((ValueError, PermissionError, TypeError)):
        dataclasses.replace(released, payload=b"DOE^JOHN")
    with pytest.raises((ValueError, PermissionError, TypeError)):
        dataclasses.replace(release_status(), payload=b"DOE^JOHN")


def test_a_message_does_not_carry_the_gates_token() -> None:
    token = outbound_module._GATE_TOKEN
    for message in (release(), release_code(DropCode.CANCELLED), release_keys(b"x")):
        names = {slot for kind in type(message).__mro__ for slot in getattr(kind, "__slots__", ())}
        assert all(getattr(message, name) is not token for name in names)
        assert "token" not in repr(message)


CONSTRUCTORS = {kind.__name__ for kind in TYPES}


def calls_and_names(path: Path) -> tuple[set[str], set[str]]:
    tree = ast.parse(path.read_text("utf-8"))
    called, named = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            called.add(getattr(function, "id", getattr(function, "attr", "")))
        if isinstance(node, ast.Name):
            named.add(node.id)
        if isinstance(node, ast.Attribute):
            named.add(node.attr)
        if isinstance(node, ast.ImportFrom | ast.Import):
            named |= {alias.name for alias in node.names}
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            named.add(node.value)
    return called, named


def test_no_other_module_makes_an_outbound_message_or_reads_the_token() -> None:
    modules = [p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE / "gate"]
    assert len(modules) > 100
    for path in modules:
        called, named = calls_and_names(path)
        assert not called & CONSTRUCTORS, path
        assert "_GATE_TOKEN" not in named, path
    found = [calls_and_names(path) for path in (PACKAGE / "gate").glob("*.py")]
    called, named = (set().union(*sets) for sets in zip(*found, strict=True))
    assert called >= CONSTRUCTORS - {"Outbound"}, "the search does see such a call"
    assert "_GATE_TOKEN" in named


def test_only_the_door_sends_what_the_gate_made() -> None:
    """Frames from the data zone: contributions and codes are sent by `site/door.py` and by nothing else."""
    senders = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "send_frame" in calls_and_names(path)[0]
    ]
    assert sorted(senders) == ["flower/client_app.py", "site/door.py"]


MECHANISM = PatientMechanism(
    sampling_rate=0.1,
    noise_multiplier=2.0,
    clipping_norm=1.0,
    expected_batch_size=16.0,
    num_steps=5,
)


def private_terms(**changes: Any) -> ReleaseTerms:
    wanted: dict[str, Any] = {"metrics": ("accuracy",), "mechanism": MECHANISM}
    return dataclasses.replace(TERMS, **(wanted | changes))


@pytest.mark.parametrize(
    ("carried_out", "generator"),
    [
        (None, None),
        (dataclasses.replace(MECHANISM, noise_multiplier=1.9), "chacha20"),
        (dataclasses.replace(MECHANISM, num_steps=6), "chacha20"),
        (MECHANISM, None),
        (MECHANISM, "seeded_for_tests"),
    ],
)
def test_an_update_that_was_not_made_by_the_reserved_mechanism_is_refused(
    carried_out: Any, generator: Any
) -> None:
    with pytest.raises(GateRefusedError, match="FH-GATE-007"):
        release_update(
            TENSORS,
            train_metrics={},
            evaluate_metrics={},
            terms=private_terms(),
            carried_out=carried_out,
            generator=generator,
        )


def test_an_update_of_the_reserved_mechanism_leaves() -> None:
    released = release_update(
        TENSORS,
        train_metrics={},
        evaluate_metrics={"accuracy": 0.5},
        terms=private_terms(),
        carried_out=MECHANISM,
        generator="chacha20",
    )
    assert released.num_elements == 10


def test_a_mechanism_that_nobody_reserved_is_refused_too() -> None:
    with pytest.raises(GateRefusedError, match="FH-GATE-007"):
        release_update(
            TENSORS,
            train_metrics={},
            evaluate_metrics={},
            terms=TERMS,
            carried_out=MECHANISM,
            generator="chacha20",
        )


def test_a_metric_that_the_ledger_was_not_charged_for_is_refused() -> None:
    with pytest.raises(GateRefusedError, match="FH-GATE-006"):
        release_metrics({"brier": 0.2}, terms=private_terms())
    assert release_metrics({"accuracy": 0.5}, terms=private_terms()).evaluate_metrics


def test_the_whole_update_is_clipped_where_the_strategy_asks_for_it() -> None:
    origin = np.zeros(10, dtype=np.float32)
    released = release_update(
        TENSORS,
        train_metrics={},
        evaluate_metrics={},
        terms=dataclasses.replace(TERMS, clip=UpdateClip(origin=origin, norm=0.5)),
    )
    moved = np.frombuffer(released.payload, dtype="<f4").astype(np.float64)
    assert float(np.linalg.norm(moved)) <= 0.5
    whole = np.concatenate([tensor.ravel() for tensor in TENSORS.values()]).astype(np.float64)
    np.testing.assert_allclose(moved, whole * 0.5 / np.linalg.norm(whole), rtol=1e-6)


def test_a_sealed_answer_leaves_again_as_the_same_bytes_or_not_at_all() -> None:
    first = release(evaluate={"auc": 0.7})
    payload = bytes(first.payload)
    again = release_again(payload, first.digest, {}, {"auc": 0.7})
    assert isinstance(again, OutboundUpdate)
    assert (bytes(again.payload), again.num_elements) == (payload, first.num_elements)
    for damaged in (payload[:-1], payload + b"\0", b"", payload[::-1]):
        with pytest.raises(GateRefusedError, match="FH-GATE-008"):
            release_again(damaged, first.digest, {}, {})
    assert isinstance(release_again(b"", None, {}, {"auc": 0.7}), OutboundMetrics)
    with pytest.raises(GateRefusedError, match="FH-GATE-008"):
        release_again(b"patient", None, {}, {})
