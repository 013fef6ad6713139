"""Read study.yaml, site.yaml and server.yaml: every problem of a file at once, with line and remedy."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import rfc8785
import yaml
from pydantic import ValidationError

from fedhealth.config.base import ConfigModel
from fedhealth.config.explain import explain
from fedhealth.config.server import ServerConfig
from fedhealth.config.site import SiteConfig
from fedhealth.config.source import Dumper, Problem, UnreadableSourceError, parse, read_text
from fedhealth.config.study import Study
from fedhealth.errors import ConfigError

ModelT = TypeVar("ModelT", bound=ConfigModel)

KINDS: dict[str, type[ConfigModel]] = {"study": Study, "site": SiteConfig, "server": ServerConfig}
"""The configuration files there are, by the name that `fedhealth study schema` uses."""


class ConfigFileError(ConfigError):
    """A configuration file is wrong. `problems` lists all that was found; `code` is the first one's."""

    problems: tuple[Problem, ...] = ()

    @classmethod
    def of(cls, path: Path, problems: Sequence[Problem]) -> "ConfigFileError":
        """One error from all problems of `path`, in line order."""
        ordered = tuple(sorted(problems, key=lambda p: (p.line, p.what)))
        lines = [f"{path}:{p.line} {p.what}. {p.fix}" for p in ordered]
        noun = "problem" if len(ordered) == 1 else "problems"
        error = cls(
            ordered[0].code,
            "\n".join(lines),
            why=f"{len(ordered)} {noun} in {path.name}: nothing was started.",
            fix="Correct the lines above and try again; docs/reference/configuration.md lists every key.",
        )
        error.problems = ordered
        return error


def load(path: Path, model: type[ModelT]) -> ModelT:
    """Read one configuration file.

    Raises:
        ConfigFileError: unreadable (FH-CONFIG-001), not YAML (002), a repeated key (003), a refused YAML
            feature (004), an unknown key (005), a missing key (006), a wrong type or value (007), a broken
            rule between keys (008), a format version that this release cannot read (009).
    """
    try:
        source = parse(read_text(path))
    except UnreadableSourceError as error:
        raise ConfigFileError.of(path, error.problems) from error
    try:
        # JSON mode with strict: lists become tuples, but no number, date or boolean is made from text.
        value = model.model_validate_json(json.dumps(source.values), strict=True)
    except ValidationError as error:
        problems = [*source.problems, *explain(error, source, model)]
        raise ConfigFileError.of(path, problems) from None
    if source.problems:
        raise ConfigFileError.of(path, source.problems)
    return value


def load_study(path: Path) -> Study:
    """Read study.yaml. Raises ConfigFileError as `load`."""
    return load(path, Study)


def load_site(path: Path) -> SiteConfig:
    """Read site.yaml; a relative `data_dir` is resolved against the file's folder.

    Raises:
        ConfigFileError: as `load`.
    """
    config = load(path, SiteConfig)
    data_dir = path.absolute().parent / config.data_dir.expanduser()
    return config.model_copy(update={"data_dir": data_dir})


def load_server(path: Path) -> ServerConfig:
    """Read server.yaml. Raises ConfigFileError as `load`."""
    return load(path, ServerConfig)


def study_digest(study: Study) -> str:
    """SHA-256 in hex of the resolved study in canonical JSON (RFC 8785): defaults included.

    Two files with the same meaning have the same digest, whatever their comments, order or spacing.

    Raises:
        ConfigError: FH-CONFIG-013 a whole number is beyond +-(2^53 - 1), which JSON cannot carry exactly.
    """
    try:
        return hashlib.sha256(rfc8785.dumps(study.model_dump(mode="json"))).hexdigest()
    except rfc8785.CanonicalizationError as error:
        raise ConfigError(
            "FH-CONFIG-013",
            "the study holds a whole number that JSON cannot carry exactly.",
            why="Every site pins the study by its digest, so all must read the same number.",
            fix="Keep whole numbers within +-9007199254740991.",
        ) from error


def to_yaml(config: ConfigModel) -> str:
    """The resolved configuration as YAML that `load` reads back to the same value."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, width=100)


def study_to_yaml(study: Study) -> str:
    """The resolved study, defaults included, as YAML that `load_study` reads back to the same value."""
    return to_yaml(study)


def json_schema(kind: str) -> dict[str, Any]:
    """JSON Schema (2020-12) of `study`, `site` or `server`, for editors.

    Raises:
        ConfigError: FH-CONFIG-014 another kind.
    """
    if kind not in KINDS:
        raise ConfigError(
            "FH-CONFIG-014",
            f"there is no configuration file of kind {kind!r}.",
            fix=f"Write one of: {', '.join(KINDS)}.",
        )
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return dialect | KINDS[kind].model_json_schema()
