"""A wrong file: its line, what is wrong, what to write instead, and all of it at once."""

import re
from pathlib import Path

import pytest
import yaml

from fedhealth.config.load import (
    ConfigFileError,
    json_schema,
    load_server,
    load_site,
    load_study,
    study_digest,
    study_to_yaml,
)
from fedhealth.config.privacy import PatientPrivacy
from fedhealth.config.template import template_names, template_path
from fedhealth.errors import ConfigError, ExitCode

BLANK = template_path("blank").read_text("utf-8")
SITE = """\
schema_version: 1
site_id: st-mary
package: {name: synthetic}
data_dir: data
declared_train_size: 240
"""
SERVER = "schema_version: 1\npublic_host: fed.example.org\n"


def study_file(tmp_path: Path, old: str = "", new: str = "") -> Path:
    assert old in BLANK
    path = tmp_path / "study.yaml"
    path.write_text(BLANK.replace(old, new, 1), "utf-8")
    return path


def line_of(text: str, path: Path) -> int:
    return next(i for i, row in enumerate(path.read_text().splitlines(), 1) if text in row)


def refuse(path: Path) -> ConfigFileError:
    with pytest.raises(ConfigFileError) as caught:
        load_study(path)
    assert caught.value.exit_code == ExitCode.CONFIG
    return caught.value


@pytest.mark.parametrize("name", template_names())
def test_every_template_is_a_valid_study(name: str) -> None:
    assert load_study(template_path(name)).schema_version == 1


@pytest.mark.parametrize(
    ("old", "new", "code", "remedy"),
    [
        ("batch_size: 16", "batchsize: 16", "FH-CONFIG-005", "Did you mean `batch_size`?"),
        ("batch_size: 16", "batch_size: 0", "FH-CONFIG-007", "at least 1"),
        ("batch_size: 16", 'batch_size: "16"', "FH-CONFIG-007", "whole number, such as 3"),
        ("batch_size: 16", "batch_size: 1.5", "FH-CONFIG-007", "whole number"),
        ("batch_size: 16", "batch_size: true", "FH-CONFIG-007", "whole number"),
        ("learning_rate: 0.05", "learning_rate: fast", "FH-CONFIG-007", "a number, such as 0.5"),
        ("learning_rate: 0.05", "learning_rate: 1e400", "FH-CONFIG-007", "number"),
        ("pooling_allowed: false", "pooling_allowed: no", "FH-CONFIG-007", "true or false"),
        ("name: sgd", "name: sdg", "FH-CONFIG-007", "Did you mean sgd?"),
        ("id: my-study", "id: My Study", "FH-CONFIG-007", "lower-case letters, digits and dashes"),
        (
            "local_epochs: 1",
            "local_epochs: 1\n  local_steps: 2",
            "FH-CONFIG-008",
            "Change the keys",
        ),
        ("dtype: float", "dtype: number", "FH-CONFIG-007", "Write one of: float, int, category."),
        ("kind: table", "kind: tabel", "FH-CONFIG-007", "table, volume"),
        ("schema_version: 1", "schema_version: 2", "FH-CONFIG-009", "Write schema_version: 1"),
        ("num_rounds: 10", "num_rounds: 10\n    num_rounds: 11", "FH-CONFIG-003", "Keep one"),
    ],
)
def test_a_wrong_value_has_line_code_and_remedy(
    tmp_path: Path, old: str, new: str, code: str, remedy: str
) -> None:
    path = study_file(tmp_path, old, new)
    error = refuse(path)
    assert (error.code, len(error.problems)) == (code, 1)
    assert remedy in error.problems[0].fix
    assert f"{path}:{error.problems[0].line} " in error.what
    if code not in ("FH-CONFIG-008", "FH-CONFIG-003"):  # these point at the block, the second key
        assert error.problems[0].line == line_of(new.partition("\n")[0], path)


def test_a_missing_key_is_named_with_its_description(tmp_path: Path) -> None:
    error = refuse(study_file(tmp_path, "seed: 1", "#"))
    assert error.code == "FH-CONFIG-006"
    assert "`seed`" in error.what
    assert "initial weights" in error.what


def test_all_problems_of_a_file_are_listed_in_line_order(tmp_path: Path) -> None:
    path = study_file(tmp_path, "id: my-study", "id: 7\ntitel: x")
    text = path.read_text().replace("batch_size: 16", "batch_size: 0\n  batch_size: 1")
    path.write_text(text.replace("codes: [0, 1]}", "codes: [0]}"))
    problems = refuse(path).problems
    assert [p.code for p in problems] == [
        "FH-CONFIG-007",
        "FH-CONFIG-005",
        "FH-CONFIG-008",
        "FH-CONFIG-007",
        "FH-CONFIG-003",
    ]
    assert [p.line for p in problems] == sorted(p.line for p in problems)


@pytest.mark.parametrize("reference", ["[70, 40]", "[40, 40]", "[40, 140]", "[-1, 60]"])
def test_a_reference_range_lies_within_the_plausible_one(tmp_path: Path, reference: str) -> None:
    old = "minimum: 0, maximum: 110}"
    assert old in template_path("blank").read_text()
    new = f"minimum: 0, maximum: 110, reference: {reference}}}"
    assert "reference is low < high" in str(refuse(study_file(tmp_path, old, new)))
    load_study(study_file(tmp_path, old, "minimum: 0, maximum: 110, reference: [40, 70]}"))


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n", "just text\n", "7\n"])
def test_a_file_that_is_no_block_of_keys_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    assert refuse(path).problems


def test_an_absent_file_is_a_configuration_error(tmp_path: Path) -> None:
    assert refuse(tmp_path / "absent.yaml").code == "FH-CONFIG-001"


def test_digest_ignores_comments_order_and_written_defaults(tmp_path: Path) -> None:
    study = load_study(study_file(tmp_path))
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(study_to_yaml(study))
    assert load_study(resolved) == study
    assert study_digest(load_study(resolved)) == study_digest(study)
    assert re.fullmatch(r"[0-9a-f]{64}", study_digest(study))


def test_digest_changes_with_any_value(tmp_path: Path) -> None:
    before = study_digest(load_study(study_file(tmp_path)))
    assert study_digest(load_study(study_file(tmp_path, "seed: 1", "seed: 2"))) != before


def test_digest_is_a_function_of_the_values_alone() -> None:
    study = load_study(template_path("blank"))
    assert study_digest(study) == study_digest(type(study).model_validate(study.model_dump()))


def test_a_whole_number_beyond_json_has_no_digest(tmp_path: Path) -> None:
    big = "strategy: {name: fedavg, options: {n: 9007199254740993}}"
    study = load_study(study_file(tmp_path, "strategy: {name: fedavg}", big))
    with pytest.raises(ConfigError) as caught:
        study_digest(study)
    assert caught.value.code == "FH-CONFIG-013"


def test_a_relative_data_dir_starts_at_the_files_folder(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(SITE)
    assert load_site(path).data_dir == tmp_path / "data"
    path.write_text(SITE.replace("data_dir: data", "data_dir: /srv/cohort"))
    assert load_site(path).data_dir == Path("/srv/cohort")


def test_site_defaults_are_safe(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(SITE)
    site = load_site(path)
    assert (site.isolation, site.num_threads, site.device) == ("auto", 1, "auto")


@pytest.mark.parametrize("size", ["0", "-5", "12.5", "unknown"])
def test_a_site_declares_a_positive_whole_size(tmp_path: Path, size: str) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(SITE.replace("240", size))
    with pytest.raises(ConfigFileError, match="declared_train_size"):
        load_site(path)


def test_the_server_listens_on_loopback_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"
    path.write_text(SERVER)
    server = load_server(path)
    assert (server.listen_host, server.port) == ("127.0.0.1", 0)


@pytest.mark.parametrize("host", ["https://x", "a b", "", "x:", "-x"])
def test_a_public_host_is_a_name_or_address(tmp_path: Path, host: str) -> None:
    path = tmp_path / "server.yaml"
    path.write_text(SERVER.replace("fed.example.org", f'"{host}"'))
    with pytest.raises(ConfigFileError, match="public_host"):
        load_server(path)


@pytest.mark.parametrize("kind", ["study", "site", "server"])
def test_json_schema_is_closed_and_every_key_of_site_and_server_is_described(kind: str) -> None:
    schema = json_schema(kind)
    assert schema["additionalProperties"] is False
    if kind != "study":
        assert all(p.get("description") for p in schema["properties"].values())


def test_json_schema_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="no configuration file"):
        json_schema("demo")


def test_resolved_yaml_is_plain_yaml_for_other_readers(tmp_path: Path) -> None:
    study = load_study(study_file(tmp_path))
    assert yaml.safe_load(study_to_yaml(study))["id"] == "my-study"


def test_settings_that_were_tried_on_the_patients_are_refused_under_privacy() -> None:
    """Trying settings on the patients releases something that no event accounts for."""
    privacy = {"target_epsilon": 8, "tuning": "on_these_patients"}
    with pytest.raises(ValueError, match="outside of the account"):
        PatientPrivacy.model_validate(privacy)
    stated = PatientPrivacy.model_validate(privacy | {"tuning": "public_or_synthetic_data"})
    assert stated.tuning == "public_or_synthetic_data"


@pytest.mark.parametrize("epsilon", [0, -1, float("inf"), float("nan")])
def test_an_epsilon_that_is_no_positive_number_is_refused(epsilon: object) -> None:
    with pytest.raises(ValueError, match="target_epsilon"):
        PatientPrivacy.model_validate({"target_epsilon": epsilon})


def test_noise_is_given_in_one_way_only() -> None:
    for both in ({}, {"target_epsilon": 8, "noise_multiplier": 1}):
        with pytest.raises(ValueError, match="exactly one of"):
            PatientPrivacy.model_validate(both)
