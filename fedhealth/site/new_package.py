"""Write a new site package from the template: `fedhealth site new NAME`.

The template is `sites/template` in a checkout and `fedhealth/site/template` in an installed wheel. Its files end
in `.template`, so that nothing takes them for code, and hold placeholders between `@@`.
"""

import re
from pathlib import Path

from fedhealth import plugins
from fedhealth.errors import UsageError

_INSTALLED = Path(__file__).parent / "template"
_CHECKOUT = Path(__file__).parents[2] / "sites" / "template"
_SUFFIX = ".template"
_PACKAGE_FOLDER = "__package__"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_MAX_NAME_LENGTH = 40


def create_site_package(name: str, target: Path) -> Path:
    """Write the folder ``fedhealth-site-<name>``.

    Args:
        name: entry point name of the package, such as ``st-mary``.
        target: folder to write it into; made if need be.

    Returns:
        The new folder.

    Raises:
        UsageError: FH-SITE-070 the name cannot be used, FH-SITE-071 it is installed already, FH-SITE-072 the
            folder is there already, FH-SITE-073 it cannot be written, FH-SITE-074 the template is not installed.
    """
    _check_name(name)
    template = _template_folder()
    folder = target / f"fedhealth-site-{name}"
    words = {"@@NAME@@": name, "@@PACKAGE@@": package_name(name), "@@CLASS@@": class_name(name)}
    try:
        target.mkdir(parents=True, exist_ok=True)
        folder.mkdir()  # refuses what is there already: nothing is ever overwritten
        for source in sorted(template.rglob(f"*{_SUFFIX}")):
            relative = source.relative_to(template).as_posix().removesuffix(_SUFFIX)
            path = folder / relative.replace(_PACKAGE_FOLDER, package_name(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_render(source.read_text(encoding="utf-8"), words), encoding="utf-8")
    except FileExistsError:
        raise UsageError(
            "FH-SITE-072",
            f"{folder} is there already.",
            why="Nothing is overwritten.",
            fix="Choose another name or folder, or remove it.",
        ) from None
    except OSError as error:
        raise UsageError(
            "FH-SITE-073",
            f"{folder} cannot be written ({type(error).__name__}).",
            fix="Choose a folder in which you may write.",
        ) from error
    return folder


def package_name(name: str) -> str:
    """Import name of the package: ``st-mary`` gives ``fedhealth_site_st_mary``."""
    return f"fedhealth_site_{name.replace('-', '_')}"


def class_name(name: str) -> str:
    """Class of the package: ``st-mary`` gives ``StMarySite``."""
    return "".join(part.capitalize() for part in name.split("-")) + "Site"


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME_LENGTH:
        raise UsageError(
            "FH-SITE-070",
            f"{name!r} cannot be the name of a site package.",
            why="It becomes a folder, a Python package and a name in site.yaml.",
            fix=f"Use at most {_MAX_NAME_LENGTH} lower-case letters, digits and single dashes, "
            "beginning with a letter, such as st-mary.",
        )
    if name in plugins.names("fedhealth.sites"):
        raise UsageError(
            "FH-SITE-071",
            f"a site package {name!r} is installed already.",
            why="With two of them, site.yaml could not say which one it means.",
            fix="Choose another name.",
        )


def _template_folder() -> Path:
    folder = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
    if not any(folder.rglob(f"*{_SUFFIX}")):
        raise UsageError(
            "FH-SITE-074",
            "the template of a site package is not installed.",
            fix="Reinstall fedhealth.",
        )
    return folder


def _render(text: str, words: dict[str, str]) -> str:
    for placeholder, word in words.items():
        text = text.replace(placeholder, word)
    return text
