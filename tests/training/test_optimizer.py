"""Parameter groups."""

from bmscale.experiment import OptimizerConfig
from bmscale.model import EncoderDecoderConfig, EncoderDecoderForConditionalGeneration
from bmscale.training.optimizer import make_optimizer, parameter_groups


def test_only_matrices_decay():
    config = EncoderDecoderConfig(
        vocab_size=20, hidden_size=16, num_attention_heads=2, num_encoder_layers=1, num_decoder_layers=1, bias=True
    )
    model = EncoderDecoderForConditionalGeneration(config)
    decayed, plain = parameter_groups(model, OptimizerConfig(weight_decay=0.3, learning_rate=0.5))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)].rsplit(".", 1)[0].rsplit("_", 1)[-1] for p in decayed["params"]} == {"proj"}
    assert all("norm" in names[id(p)] or "bias" in names[id(p)] or "embed" in names[id(p)] for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(names)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    optimizer = make_optimizer(model, OptimizerConfig())
    assert optimizer.defaults["fused"]
