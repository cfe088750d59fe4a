"""μP: what follows width and depth, and that at its base shape it is the standard parametrization."""

import math
from typing import Any

import pytest
import torch

from bmscale.experiment import OptimizerConfig
from bmscale.model import init
from bmscale.model import parametrization as rules
from bmscale.model.tasks import TASKS
from bmscale.training.optimizer import make_optimizer, parameter_groups

BASE = {"base_hidden_size": 32, "base_layers": 2, "base_head_dim": 8}


def configured(task: str, width: int = 32, depth: int = 2, **options: Any) -> Any:
    depths = ("num_encoder_layers", "num_decoder_layers") if task == "translation" else ("num_hidden_layers",)
    shape = {"vocab_size": 50, "hidden_size": width, "head_dim": 8, "num_attention_heads": width // 8, "bias": True}
    return TASKS[task].configure(**{**shape, "num_labels": 3, **dict.fromkeys(depths, depth), **options})


def mup(task: str, width: int = 32, depth: int = 2, **options: Any) -> Any:
    return configured(task, width, depth, parametrization="mup", **{**BASE, **options})


@pytest.mark.parametrize("options", [{}, {"scale_embeddings": True}, {"tie_word_embeddings": False}])
@pytest.mark.parametrize("task", TASKS)
def test_at_the_base_shape_it_is_the_standard_parametrization(task, options):
    losses = []
    for config in (configured(task, **options), mup(task, **options)):
        model: Any = TASKS[task].model(config)
        init.initialise(model, 0)
        optimizer = make_optimizer(model, OptimizerConfig(learning_rate=0.01, weight_decay=0.1))
        ids = torch.arange(24).view(2, 12)
        for _ in range(3):
            loss = model(input_ids=ids, labels=ids[:, 0] // 12 if task == "classification" else ids.flip(1)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    assert losses[:3] == losses[3:]


# At four times the width and three times the depth of the base: (rate, decay, epsilon), standard deviation.
RULES = {
    "model.layers.1.self_attention.q_proj.weight": ((1 / 4, 4, 1 / 12), math.sqrt(2 / (5 * 128))),
    "model.layers.1.self_attention.o_proj.weight": ((1 / 4, 4, 1 / 12), math.sqrt(2 / (5 * 128 * 4))),
    "model.layers.1.self_attention.q_proj.bias": ((1, 1, 1 / 12), 0.0),
    "model.layers.1.feed_forward_norm.weight": ((1, 1, 1 / 12), None),
    "model.norm.weight": ((1, 1, 1 / 4), None),
    "model.embed.tokens.weight": ((1, 1, 1 / 4), math.sqrt(2 / (5 * 32))),
    "lm_head.weight": ((1, 1, 1 / 4), math.sqrt(2 / (5 * 32))),
    "dense.weight": ((1 / 4, 4, 1 / 4), math.sqrt(2 / (5 * 128))),
    "dense.bias": ((1, 1, 1 / 4), 0.0),
    "classifier.weight": ((1 / 4, 4, 1), math.sqrt(2 / (5 * 128)) / 2),
    "classifier.bias": ((1, 1, 1), 0.0),
}


@pytest.mark.parametrize("name", RULES)
def test_rules_of_one_stack(name):
    config = mup("classification", width=128, depth=6)
    (rate, decay, epsilon), std = RULES[name]
    scales = rules.adam_scales(name, config)
    assert (scales.rate, scales.decay, scales.epsilon) == pytest.approx((rate, decay, epsilon))
    if std is not None:
        value = init.initial_value(name, (400, 128), 0, config)
        assert float(value.std()) == pytest.approx(std, rel=0.02)
    standard = configured("classification", width=128, depth=6)
    assert rules.adam_scales(name, standard) == rules.AdamScales()


def test_an_encoder_and_a_decoder_go_by_their_own_depth():
    config = mup("translation", width=64, num_encoder_layers=6, num_decoder_layers=2)
    name = "model.{}.layers.0.feed_forward.up_proj.weight"
    scales = [rules.adam_scales(name.format(stack), config).epsilon for stack in ("encoder", "decoder")]
    assert scales == [pytest.approx(1 / 6), pytest.approx(1 / 2)]
    model = TASKS["translation"].model(config)
    assert model.model.encoder.layers[0].residual_scale == pytest.approx(1 / 3)
    assert model.model.decoder.layers[0].residual_scale == 1.0
    # As many branches as two blocks have: four in an encoder, six in a decoder.
    for stack, branches in (("encoder", 4), ("decoder", 6)):
        value = init.initial_value(f"model.{stack}.layers.0.self_attention.o_proj.weight", (400, 64), 0, config)
        assert float(value.std()) == pytest.approx(math.sqrt(2 / (5 * 64 * branches)), rel=0.02)


def test_scales_of_the_forward_pass():
    config = mup("translation", width=128, head_dim=32, num_attention_heads=4, logit_scale=3.0, scale_embeddings=True)
    assert rules.logit_scale(config) == pytest.approx(3 / 4)
    assert rules.attention_scale(config) == pytest.approx(0.5)
    assert rules.embedding_scale(config) == pytest.approx(math.sqrt(32))
    assert init.embedding_std(config) == pytest.approx(1 / math.sqrt(32))


@pytest.mark.parametrize("task", TASKS)
def test_groups_have_the_rates_decays_and_epsilons_of_their_parameters(task):
    config = mup(task, width=64, depth=4)
    model = TASKS[task].model(config)
    groups = parameter_groups(model, OptimizerConfig(learning_rate=0.5, weight_decay=0.3, epsilon=1e-6))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = set()
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.add(name)
            scales = rules.adam_scales(name, config)
            assert group["lr"] == 0.5 * scales.rate == 0.5 * group["lr_scale"]
            assert group["eps"] == 1e-6 * scales.epsilon
            decays = name.endswith(("_proj.weight", "dense.weight", "classifier.weight"))
            assert group["weight_decay"] == (0.3 * scales.decay if decays else 0.0)
            if decays:
                assert group["lr"] * group["weight_decay"] == pytest.approx(0.5 * 0.3)
    assert seen == set(names.values())


def test_transformers_draws_from_the_same_distributions():
    for task in ("translation", "classification"):
        config = mup(task, width=128, depth=3, vocab_size=500, tie_word_embeddings=False, num_labels=400)
        torch.manual_seed(0)
        for name, theirs in TASKS[task].model(config).named_parameters():
            expected = float(init.initial_value(name, theirs.shape, 0, config).std(correction=0))
            assert float(theirs.detach().std(correction=0)) == pytest.approx(expected, rel=0.05), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_hidden_size": 64}, "base_hidden_size goes with parametrization: mup only; got 64"),
        ({"parametrization": "mup", "base_layers": -1}, "base_layers must be between 1 and 1,048,576, or 0 for 4; got"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(Exception, match="validate_architecture") as caught:
        configured("translation", **options)
    assert message in str(caught.value.__cause__)


def test_the_base_is_the_same_at_every_size():
    bases = [configured("translation", width=width, parametrization="mup") for width in (32, 512)]
    assert len({(one.base_hidden_size, one.base_layers, one.base_head_dim) for one in bases}) == 1
