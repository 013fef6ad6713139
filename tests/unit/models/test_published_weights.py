"""Weights of somebody else's: found by digest, read without running code, loaded whole or refused."""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from monai.networks.nets.densenet import DenseNet
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from fedhealth.config.base import OptionValue
from fedhealth.contracts.data import DataContract
from fedhealth.errors import ConfigError
from fedhealth.models.build import seeded_model, trainable_parameters
from fedhealth.models.multimodal import build_multimodal, loaded_weights
from fedhealth.models.pretrained import WEIGHTS_FILE, WEIGHTS_SHA256
from fedhealth.models.weight_files import (
    PinnedFile,
    find_file,
    pinned_file,
    weights_in,
    weights_replaced,
)
from fedhealth.testing.model_contract import example_contract

IMAGE = "encoders.volume_mri."


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "weights").mkdir()
    with weights_in(tmp_path):
        yield tmp_path


@pytest.fixture
def contract() -> DataContract:
    return example_contract()


def _pin(home: Path, name: str, payload: bytes, **options: OptionValue) -> dict[str, OptionValue]:
    path = home / "weights" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(payload)
    digest = hashlib.sha256(payload).hexdigest()
    pinned: dict[str, OptionValue] = {"image_weights_file": name, "image_weights_sha256": digest}
    return {"image_weights": "file", "image_encoder": "densenet_small", **pinned, **options}


def _saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _published(norm: str = "batch") -> nn.Module:
    """A DenseNet as MONAI makes it, with statistics as if it were trained."""
    torch.manual_seed(1)
    network = DenseNet(
        3, 1, 2, init_features=16, growth_rate=8, block_config=(2, 4, 4), norm=norm
    ).eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm3d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
    return network


def _features(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        maps: Tensor = network.features(images)  # type: ignore[operator]  # MONAI's attribute
        return maps.relu().mean(dim=(2, 3, 4))


def _model(contract: DataContract, options: Mapping[str, OptionValue]) -> nn.Module:
    return seeded_model(build_multimodal, contract, 1, options, seed=1)


def test_a_bundle_s_network_gives_the_same_features(home: Path, contract: DataContract) -> None:
    network = _published()
    options = _pin(home, "a.pt", _saved(network.state_dict()), image_norm="frozen_batch")
    encoder = _model(contract, options).get_submodule(IMAGE[:-1])
    images = torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        found = encoder.features(images)  # type: ignore[operator]  # VolumeEncoder
    # Folding the statistics takes one product of each value instead of two.
    torch.testing.assert_close(found, _features(network, images), atol=1e-4, rtol=1e-4)


def test_a_resnet_of_monai_gives_the_same_features(home: Path, contract: DataContract) -> None:
    torch.manual_seed(2)
    network = ResNet(
        "basic",
        [1, 1, 1, 1],
        [64, 128, 256, 512],
        n_input_channels=1,
        conv1_t_stride=2,
        bias_downsample=False,
        num_classes=3,
    ).eval()
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    options = _pin(home, "m.pth", _saved({"state_dict": state}), image_norm="frozen_batch")
    options["image_encoder"] = "resnet10"
    encoder = _model(contract, options).get_submodule(IMAGE[:-1])
    images = torch.randn(2, 1, 16, 16, 16)
    network.fc = None
    with torch.no_grad():
        found = encoder.features(images)  # type: ignore[operator]  # VolumeEncoder
        torch.testing.assert_close(found, network(images), atol=1e-4, rtol=1e-4)
    report = loaded_weights(contract, options)["mri"]
    assert report.unused == ("fc.bias", "fc.weight")


def _zipped(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name, payload in members.items():
            bundle.writestr(name, payload)
    return buffer.getvalue()


def _file(kind: str, state: Mapping[str, Tensor]) -> tuple[str, bytes]:
    metadata = json.dumps({"name": "Tiny", "license": "Apache-2.0"}).encode()
    return {
        "safetensors": ("a.safetensors", safetensors.torch.save(dict(state))),
        "checkpoint": ("a.ckpt", _saved({"model": dict(state), "epoch": 3})),
        "folder": ("tiny/models/model.pt", _saved(dict(state))),
        "zip": (
            "tiny.zip",
            _zipped(
                {
                    "tiny/models/model.pt": _saved(dict(state)),
                    "tiny/configs/metadata.json": metadata,
                }
            ),
        ),
    }[kind]


@pytest.mark.parametrize("kind", ["safetensors", "checkpoint", "folder", "zip"])
def test_every_format_says_what_was_loaded(home: Path, contract: DataContract, kind: str) -> None:
    own = _model(contract, {"image_encoder": "densenet_small"})
    backbone = {
        name.removeprefix(f"{IMAGE}backbone."): p.detach() + 1.0
        for name, p in own.named_parameters()
        if name.startswith(f"{IMAGE}backbone.")
    }
    name, payload = _file(
        kind, {**{f"net.{k}": v for k, v in backbone.items()}, "head": torch.ones(2)}
    )
    options = _pin(home, name, payload, image_weights_prefix="net.")
    if kind == "folder":
        (home / "weights/tiny/configs").mkdir()
        (home / "weights/tiny/configs/metadata.json").write_text(
            '{"name": "Tiny", "license": "Apache-2.0"}'
        )
    loaded = dict(_model(contract, options).named_parameters())
    assert all(torch.equal(loaded[f"{IMAGE}backbone.{k}"], v) for k, v in backbone.items())
    report = loaded_weights(contract, options)["mri"]
    assert (report.num_loaded, report.unused) == (len(backbone), ("head",))
    assert not report.has_projection
    says_more = kind in {"folder", "zip"}
    assert (report.title, report.licence) == (("Tiny", "Apache-2.0") if says_more else (None, None))


def test_an_encoder_of_ours_is_loaded_with_its_projection(
    home: Path, contract: DataContract
) -> None:
    options = _pin(home, "p.safetensors", WEIGHTS_FILE.read_bytes(), image_encoder="cnn")
    assert options["image_weights_sha256"] == WEIGHTS_SHA256
    from_file, shipped = (
        _model(contract, chosen) for chosen in (options, {"image_weights": "phantom"})
    )
    first, second = from_file.state_dict(), shipped.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert loaded_weights(contract, options)["mri"].has_projection


@pytest.mark.parametrize("has_projection", [True, False])
@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_names_do_not_depend_on_what_the_file_holds(
    home: Path, contract: DataContract, trainable: str, *, has_projection: bool
) -> None:
    state = safetensors.torch.load(WEIGHTS_FILE.read_bytes())
    kept = {n: t for n, t in state.items() if has_projection or not n.startswith("projection.")}
    payload = safetensors.torch.save(kept)
    options = _pin(home, "p.safetensors", payload, image_encoder="cnn", trainable=trainable)
    model = _model(contract, options)
    with weights_replaced():
        built_without = _model(contract, options)
    names = [name for name, _ in model.named_parameters()]
    assert [name for name, _ in built_without.named_parameters()] == names
    trained = {name for name, _ in trainable_parameters(model)}
    assert {f"{IMAGE}projection.weight", f"{IMAGE}projection.bias"} <= trained


@pytest.mark.parametrize("trainable", ["image_frozen", "head_and_fusion", "lora", "frozen", "all"])
def test_a_projection_that_is_new_is_trained_and_folded_statistics_never(
    home: Path, contract: DataContract, trainable: str
) -> None:
    options = _pin(home, "a.pt", _saved(_published().state_dict()), image_norm="frozen_batch")
    key = "freeze_image_encoder" if trainable == "frozen" else "trainable"
    options[key] = True if trainable == "frozen" else trainable
    model = _model(contract, options)
    names = [name for name, _ in trainable_parameters(model) if name.startswith(IMAGE)]
    assert {f"{IMAGE}projection.weight", f"{IMAGE}projection.bias"} <= set(names)
    assert not any(name.endswith((".scale", ".shift")) for name in names)
    if trainable not in {"all", "lora"}:
        assert len(names) == 2
        taken = model.take_out_frozen_encoders()  # type: ignore[operator]  # MultimodalModel
        assert taken["mri"](torch.zeros(1, 1, 16, 16, 16)).shape[1] > options.get(
            "embedding_size", 16
        )  # type: ignore[operator]
        assert {n for n, _ in trainable_parameters(model) if n.startswith(IMAGE)} == set(names)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code of a stranger",))


def test_code_in_a_checkpoint_is_never_run(
    home: Path, contract: DataContract, capsys: pytest.CaptureFixture[str]
) -> None:
    options = _pin(home, "evil.pt", _saved({"weights": _Evil()}))
    with pytest.raises(ConfigError, match="FH-MODEL-034"):
        _model(contract, options)
    assert "stranger" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("a.bin", b"x"),
        ("a.safetensors", b"x" * 20),
        ("a.pt", b"no checkpoint"),
        ("a.zip", b"no zip"),
        ("a.zip", _zipped({"models/other.pt": b""})),
        ("a.pt", _saved({"epoch": 3})),
        ("a.pt", _saved([1, 2])),
    ],
)
def test_a_file_of_no_known_format_is_refused(
    home: Path, contract: DataContract, name: str, payload: bytes
) -> None:
    with pytest.raises(ConfigError, match="FH-MODEL-034"):
        _model(contract, _pin(home, name, payload))


def test_what_does_not_fit_is_refused(home: Path, contract: DataContract) -> None:
    state = dict(_published().state_dict())

    def refused(changed: Mapping[str, Tensor], **options: OptionValue) -> str:
        with pytest.raises(ConfigError) as caught:
            _model(contract, _pin(home, "a.pt", _saved(dict(changed)), **options))
        return str(caught.value)

    frozen: dict[str, OptionValue] = {"image_norm": "frozen_batch"}
    assert "FH-MODEL-036" in refused(state)
    name = "features.conv0.weight"
    assert "FH-MODEL-035" in refused(state, **frozen, image_weights_prefix="encoder.")
    without = {k: v for k, v in state.items() if k != name}
    assert (
        f"lacks 1 of {len(state) - 2 - sum('num_batches' in k for k in state)} tensors"
        in refused(without, **frozen)
    )
    assert "(16, 1, 7, 7)" in refused({**state, name: state[name][..., 0]}, **frozen)
    assert "not finite" in refused({**state, name: state[name] * torch.nan}, **frozen)


def test_another_file_or_none_is_refused(home: Path, contract: DataContract) -> None:
    options = _pin(home, "a.pt", _saved(_published().state_dict()), image_norm="frozen_batch")
    file = home / "weights/a.pt"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(ConfigError, match="FH-MODEL-033"):
        _model(contract, options)
    file.unlink()
    with pytest.raises(ConfigError, match=r"FH-MODEL-032.*weights/"):
        _model(contract, options)


def test_the_nearest_folder_comes_first_and_a_wrong_file_there_is_passed_over(
    tmp_path: Path,
) -> None:
    payloads = {"outer": b"right", "inner": b"wrong"}
    for name, payload in payloads.items():
        (tmp_path / name / "weights").mkdir(parents=True)
        (tmp_path / name / "weights" / "a").write_bytes(payload)
    right = PinnedFile(name="a", sha256=hashlib.sha256(b"right").hexdigest())
    with weights_in(tmp_path / "outer"), weights_in(tmp_path / "inner"):
        assert find_file(right) == (tmp_path / "outer" / "weights" / "a", b"right")
    with pytest.raises(ConfigError, match="FH-MODEL-032"):
        find_file(right)


@pytest.mark.parametrize(
    "options",
    [
        {"image_weights": "file"},
        {"image_weights": "file", "image_weights_file": "a.pt"},
        {"image_weights_file": "a.pt", "image_weights_sha256": "0" * 64},
        {"image_weights_prefix": "a."},
        {"image_weights": "file", "image_weights_file": "../a", "image_weights_sha256": "0" * 64},
        {"image_weights": "file", "image_weights_file": "/a", "image_weights_sha256": "0" * 64},
        {"image_norm": "frozen_batch"},
    ],
)
def test_a_file_is_named_and_pinned_or_not_at_all(
    contract: DataContract, options: dict[str, OptionValue]
) -> None:
    with pytest.raises(ConfigError, match="FH-MODEL-001"):
        build_multimodal(contract, 1, options)


def test_options_without_a_file_pin_nothing() -> None:
    assert pinned_file({"image_weights": "phantom"}) is None
    options: dict[str, OptionValue] = {
        "image_weights": "file",
        "image_weights_file": "a",
        "image_weights_sha256": "0",
    }
    assert pinned_file(options) == PinnedFile(name="a", sha256="0")
