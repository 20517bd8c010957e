"""Plans of runs: defaults filled in, hyperparameters found by name, checked at the door."""

import dataclasses
import json

import pytest

from lsmooth.errors import DataError, InvalidArgumentError
from lsmooth.tasks.plan import make_plan


def test_defaults_are_the_tasks():
    plan, data = make_plan("transformer-encoder")
    assert data.stand_in
    assert (plan.preset, plan.optimizer, plan.hyperparameters) == ("small", "sgd", {"lr": 5.0})
    assert plan.settings["max_norm"] == 0.5
    assert json.loads(json.dumps(dataclasses.asdict(plan)))["settings"]["sequence"] == 35


def test_real_data_means_the_papers_settings(tmp_path):
    for name in ("train", "valid"):
        (tmp_path / f"{name}.txt").write_text("some words of text\n" * 400)
    plan, data = make_plan("transformer-encoder", data=str(tmp_path))
    assert not data.stand_in
    assert (plan.preset, plan.settings["steps"], plan.settings["epochs"]) == ("paper", None, 5)


def test_names_are_found_among_settings_and_hyperparameters():
    plan, _ = make_plan(
        "transformer-encoder",
        optimizer="generalized-signsgd",
        changes={"dropout": "0.1", "optimizer.lr": "1e-3", "betas": "0.8,0.95", "weight_decay": 0.01},
    )
    assert plan.settings["dropout"] == 0.1
    assert plan.hyperparameters == {"lr": 1e-3, "betas": (0.8, 0.95), "weight_decay": 0.01}
    run = plan.start()
    assert run.optimizer.param_groups[0]["betas"] == (0.8, 0.95)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"task": "transformer-encodr"}, "did you mean transformer-encoder"),
        ({"optimizer": "generalised-signsgd"}, "did you mean generalized-signsgd"),
        ({"changes": {"droput": "1"}}, "did you mean dropout"),
        ({"changes": {"lr": "fast"}}, "lr=fast cannot be read as float"),
        ({"device": "abacus"}, "no device 'abacus'"),
        ({"device": "cuda:77"}, "no device 'cuda:77'"),
        ({"data": "/nowhere"}, "no folder /nowhere"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(arguments, sentence):
    with pytest.raises((InvalidArgumentError, DataError), match=sentence):
        make_plan(**({"task": "transformer-encoder"} | arguments))
