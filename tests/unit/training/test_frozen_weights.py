"""The digest of what nobody trains: what changes it, what does not, and that a real round carries it."""

from typing import Any

import torch
from torch import nn

from fedhealth.config.load import load_study
from fedhealth.config.study import Study
from fedhealth.config.template import template_path
from fedhealth.training.frozen_weights import digest_of_frozen
from fedhealth.training.learner import Learner
from fedhealth.training.supervised import SupervisedTraining


def study(**changes: Any) -> Study:
    """The study of tests with one option or another of its model."""
    shipped = load_study(template_path("synthetic").with_name("study-tests.yaml"))
    options = {"trainable": "lora", "image_widths": [4], "embedding_size": 4} | changes
    return shipped.model_copy(
        update={"model": shipped.model.model_copy(update={"options": options})}
    )


def digest(model: nn.Module, of: Study | None = None) -> str | None:
    chosen = of or study()
    return digest_of_frozen(chosen, chosen.runs[0], model)


def learner(of: Study | None = None) -> Learner:
    chosen = of or study()
    return Learner(chosen, chosen.runs[0])


def test_server_and_site_get_the_same_digest_from_the_same_study() -> None:
    said = SupervisedTraining().frozen_digest(study(), study().runs[0])
    assert said is not None
    assert said == digest(learner().model)


def test_another_random_factor_is_another_digest() -> None:
    """Two seeds, and one last bit of one number: what differs between machines may be that small."""
    other = study().model_copy(update={"seed": study().seed + 1})
    assert digest(learner(other).model) != digest(learner().model)
    model = learner().model
    factor = next(p for n, p in model.named_parameters() if n.endswith("lora_a.weight"))
    with torch.no_grad():
        factor.view(-1)[0] = torch.nextafter(factor.view(-1)[0], torch.tensor(9.0))
    assert digest(model) != digest(learner().model)


def test_what_is_trained_is_not_in_it() -> None:
    model = learner().model
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    assert digest(model) == digest(learner().model)


def test_a_model_that_is_trained_whole_has_none() -> None:
    whole = study(trainable="all")
    assert digest(learner(whole).model, whole) is None


def test_types_that_numpy_does_not_know_and_single_numbers_count_too() -> None:
    model = nn.Module()
    model.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.bfloat16), requires_grad=False)
    first = digest(model)
    model.scale = nn.Parameter(torch.tensor(1.5), requires_grad=False)
    assert first is not None
    assert digest(model) not in {None, first}


def test_only_shared_blocks_count_where_the_rest_is_a_sites_own() -> None:
    shipped = load_study(template_path("client-specific"))
    options = dict(shipped.model.options) | {"trainable": "lora"}
    own = shipped.model_copy(
        update={"model": shipped.model.model_copy(update={"options": options})}
    )
    run = own.runs[0]
    assert run.personalisation == "private_blocks"
    assert own.site_models is not None
    model = Learner(own, run).model
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen
    assert not any(n.startswith(own.site_models.shared_blocks) for n in frozen)
    assert digest_of_frozen(own, run, model) is None
    blocks = (*own.site_models.shared_blocks, frozen[0].rpartition(".")[0])
    wider = own.model_copy(
        update={"site_models": own.site_models.model_copy(update={"shared_blocks": blocks})}
    )
    assert digest_of_frozen(wider, run, model) is not None
