"""A server and one hospital after a run, without processes: what `model export` and `predict` find in their homes."""

from pathlib import Path
from typing import Any

import yaml

from fedhealth.contracts.local_training import RoundTask
from fedhealth.contracts.tensors import TensorSpec, vector_bytes
from fedhealth.durable import write_atomically
from fedhealth.server.checkpoint import Checkpoint, write_checkpoint
from fedhealth.server.enrolment import admit, init_server
from fedhealth.server.home import ServerHome
from fedhealth.site.enrolment import SiteSettings, init_site, join
from fedhealth.site.home import SiteHome, load_pinned
from fedhealth.site.sessions import Sessions, global_model_path, load_training_method

HEART = Path(__file__).parents[3] / "configs" / "heart" / "study.yaml"


def content(**changes: Any) -> dict[str, Any]:
    heart = yaml.safe_load(HEART.read_text(encoding="utf-8"))
    said: dict[str, Any] = {
        "schema_version": 1,
        "id": "trained",
        "title": "Who has it",
        "seed": 7,
        "data": heart["data"] | {"split": {"train": 0.5, "validation": 0.4, "test": 0.1}},
        "model": {"name": "multimodal", "options": {"embedding_size": 4, "table_hidden_size": 4}},
        "training": {
            "local_epochs": 4,
            "batch_size": 32,
            "optimizer": {"name": "adam", "learning_rate": 0.01},
        },
        "runs": [
            {"name": "plain", "num_rounds": 1},
            {"name": "heads", "num_rounds": 1, "personalisation": "private_head"},
        ],
    }
    return said | changes


class Trained:
    """Enrolled by fedhealth's own functions; every run is one local round of this one hospital."""

    def __init__(self, root: Path, said: dict[str, Any]) -> None:
        root.mkdir(parents=True, exist_ok=True)
        study = root / "study.yaml"
        study.write_text(yaml.safe_dump(said), encoding="utf-8")
        self.server, self.site = ServerHome(root / "server"), SiteHome(root / "site")
        address = {"host": "127.0.0.1", "listen_host": "127.0.0.1", "port": 0}
        init_server(self.server, study, **address, method=load_training_method("supervised"))  # type: ignore[arg-type]
        settings = SiteSettings(
            site_id="st-mary",
            package="heart",
            package_options={"hospital": "cleveland"},
            data_dir=root / "data",
            train_size=150,
        )
        request = init_site(self.site, self.server.invitation, settings).request_path
        join(self.site, admit(self.server, request).admission_path)
        self.pinned = load_pinned(self.site, said["id"])
        for run in self.pinned.study.runs:
            self._train(run.name)

    def _train(self, run_name: str) -> None:
        sessions = Sessions(self.site, self.pinned)
        session, spec = sessions.open(run_name)
        initial = load_training_method("supervised").initial_tensors(
            self.pinned.study, self.pinned.study.run(run_name)
        )
        task = RoundTask(
            run_name=run_name,
            round_number=1,
            attempt=1,
            strategy_config={},
            is_cancelled=lambda: False,
        )
        update = session.train(TensorSpec.of(initial).flatten(initial), task)
        session.commit(1)
        vector = spec.flatten(update.tensors)
        write_atomically(global_model_path(self.pinned, run_name), bytes(vector_bytes(vector)))
        checkpoint = Checkpoint(round_number=1, spec=spec, vector=vector, strategy_state={})
        write_checkpoint(self.server.run(run_name), checkpoint)
