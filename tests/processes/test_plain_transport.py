"""`fast_transport: false`: Flower as it comes, without our changes to its message transport."""

import yaml

from fedhealth.durable import write_atomically

from .conftest import MakeFederation, processes_of, study_content, wait, wait_until


def test_a_round_completes_with_flowers_own_transport(make_federation: MakeFederation) -> None:
    federation = make_federation(study_content({"step": 1.0, "wait_s": 1}), num_sites=2)
    for home in federation.sites.values():
        settings = yaml.safe_load(home.config_path.read_text()) | {"fast_transport": False}
        write_atomically(home.config_path, yaml.safe_dump(settings).encode())
    federation.start_sites()
    server = federation.start_server()
    home = federation.sites["hospital-1"].root

    def relay_runs() -> bool:
        return any("clientapp_process" in command for command in processes_of(home).values())

    wait_until(relay_runs, 90, "Flower starts a process for the message")
    commands = " ".join(processes_of(home).values())
    assert "warm_start" not in commands
    assert "--eager" not in commands
    assert wait(server, 120) == 0, federation.output("server")
    assert [record.status for record in federation.records()] == ["complete"] * 2
    federation.end()
    assert processes_of(home) == {}
