"""Which parameters are trained, with which rate and decay."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mllm.config import Config, ParameterGroup
from mllm.errors import UserError
from mllm.objectives import LanguageModelling
from mllm.optim import freeze, parameter_groups
from mllm.step_memory import build_empty
from tests.scenarios import pretrain_config


def _config(**train: Any) -> Config:
    config = pretrain_config(Path("w"), Path("r"))
    return replace(config, train=replace(config.train, **train))


def _groups(config: Config) -> list[tuple[float, float, set[str]]]:
    module = LanguageModelling(build_empty(config))
    names = {parameter: name for name, parameter in module.named_parameters()}
    return [
        (group["lr_scale"], group["weight_decay"], {names[p] for p in group["params"]})
        for group in parameter_groups(module, config)
    ]


def test_every_trainable_parameter_is_in_one_group() -> None:
    config = _config(parameter_groups=[ParameterGroup(["*norm*", "*.bias"], 1.0, 0.0)])
    module = LanguageModelling(build_empty(config))
    trainable = [name for name, p in module.named_parameters() if p.requires_grad]
    groups = _groups(config)
    assert sorted(name for _, _, names in groups for name in names) == sorted(trainable)


def test_the_papers_recipe_is_one_group_with_decay_on_everything() -> None:
    ((lr_scale, decay, names),) = _groups(_config(vision_lr_scale=1.0, train_last_blocks=0))
    assert (lr_scale, decay) == (1.0, 0.01)
    assert any("norm" in name for name in names) and any("bias" in name for name in names)


def test_the_first_group_that_matches_has_a_parameter() -> None:
    asked = [
        ParameterGroup(["vision.*"], 0.25),
        ParameterGroup(["*norm*", "*.bias"], 1.0, 0.0),
        ParameterGroup(["decoder.embed_tokens.weight"], 3.0),
    ]
    vision, plain, embeddings, rest = _groups(_config(parameter_groups=asked))
    assert vision[:2] == (0.25, 0.01) and plain[:2] == (1.0, 0.0) and embeddings[:2] == (3.0, 0.01)
    assert any("bias" in name for name in vision[2])
    assert embeddings[2] == {"model.decoder.embed_tokens.weight"}  # once: the head is tied to it
    assert not any("bias" in name or "norm" in name for name in rest[2])


@pytest.mark.parametrize("pattern", ["*nrom*", "vision.vision_model.embeddings.*"])
def test_a_group_without_a_parameter_is_told(pattern: str) -> None:
    """A misspelt one, and one of which all is frozen."""
    with pytest.raises(UserError, match=r"no trainable parameter is left for .*names are such as"):
        _groups(_config(parameter_groups=[ParameterGroup([pattern])]))


def test_parts_are_frozen_by_name() -> None:
    module = build_empty(_config(freeze=["decoder.*", "vision.*"]))
    free = {name for name, p in module.named_parameters() if p.requires_grad}
    assert free and all(name.startswith("resampler.") for name in free)
    for patterns, problem in ((["decodre.*"], "no parameter matches"), (["*"], "nothing is left")):
        with pytest.raises(UserError, match=f"train.freeze: {problem}"):
            freeze(build_empty(_config()), patterns)
