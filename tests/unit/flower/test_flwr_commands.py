"""Several commands of Flower's command line in one process, and what they answered."""

import json
import subprocess
from pathlib import Path

from fedhealth.flower import launch
from fedhealth.flower.flwr_commands import documents


def test_documents_are_found_one_after_the_other_and_end_before_anything_else() -> None:
    said = json.dumps({"success": True, "node-id": 1}, indent=2) + '\n{"success": false}\n'
    found = [{"success": True, "node-id": 1}, {"success": False}]
    assert documents(said) == found
    assert documents(f"{said}Usage: flwr") == found
    assert documents(f'{said}{{"success": tr') == found
    assert documents("") == documents("Traceback") == []


def test_each_command_answers_and_one_that_fails_says_so(tmp_path: Path) -> None:
    """No SuperLink is there: the list of connections is read, and a run is refused."""
    environment = launch.flower_environment(tmp_path / "home")
    launch.write_connection(tmp_path / "home", "127.0.0.1:1", tmp_path / "none.crt")
    commands = [("config", "list"), ("ls", launch.CONNECTION)]
    done = subprocess.run(
        launch.module("fedhealth.flower.flwr_commands"),
        input=json.dumps(commands),
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    first, second = documents(done.stdout)
    assert first == {"superlink": [launch.CONNECTION], "default": launch.CONNECTION}
    assert second["success"] is False
