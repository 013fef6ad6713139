"""Build hook: the wheel carries `configs/` and `sites/template/`; an editable install reads them in place.

Plain `force-include` would also copy them on an editable install, and that copy, a folder named `fedhealth`
in site-packages, would hide the package itself.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class TemplatesHook(BuildHookInterface):
    """Adds `configs` and `sites/template` to standard wheels."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds; `version` is ``standard`` or ``editable``."""
        if version == "standard":
            included = build_data["force_include"]
            # File by file: who simulated in the checkout has generated patients beside the templates.
            for path in sorted(Path(self.root, "configs").glob("*/*.yaml")):
                name = f"{path.parent.name}/{path.name}"
                included[f"configs/{name}"] = f"fedhealth/config/templates/{name}"
            included["sites/template"] = "fedhealth/site/template"
