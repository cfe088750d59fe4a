"""A model is exactly one of transformers: the same weights under other names give the same logits."""

from typing import Any

import pytest
import torch
import transformers

from bmscale.model import EncoderDecoderConfig
from bmscale.model.init import initialise
from bmscale.model.layouts import layout_config, layout_name
from bmscale.model.tasks import TASKS

V = 40
CASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "llama": ("language_model", "llama", "LlamaForCausalLM", {}),
    "llama-gqa-untied": ("language_model", "llama", "LlamaForCausalLM", {"num_key_value_heads": 2, "rope_theta": 1e4,
                                                                         "tie_word_embeddings": False}),
    "llama-mqa-bias": ("language_model", "llama", "LlamaForCausalLM", {"num_key_value_heads": 1, "bias": True}),
    "llama-head": ("language_model", "llama", "LlamaForCausalLM", {"head_dim": 12}),
    "qwen3": ("language_model", "qwen3", "Qwen3ForCausalLM", {}),
    "qwen3-gqa-untied": ("language_model", "qwen3", "Qwen3ForCausalLM", {"num_key_value_heads": 2, "head_dim": 12,
                                                                         "tie_word_embeddings": False}),
    "eurobert": ("masked_lm", "eurobert", "EuroBertForMaskedLM", {"mask_token_id": 5}),
    "eurobert-gqa-untied": ("masked_lm", "eurobert", "EuroBertForMaskedLM", {"num_key_value_heads": 2,
                                                                             "tie_word_embeddings": False}),
    "classifier-mean": ("classification", "eurobert", "EuroBertForSequenceClassification", {"num_labels": 3}),
    "classifier-first": ("classification", "eurobert", "EuroBertForSequenceClassification",
                         {"classifier_pooling": "first"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case):
    task, preset, name, options = CASES[case]
    shape = {"vocab_size": V, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = TASKS[task].configure(**{**TASKS[task].presets[preset], **shape, "mask_token_id": 5, **options})
    ours: Any = TASKS[task].model(config).eval()
    initialise(ours, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    other = layout_config(config)
    assert other.architectures == [name]
    theirs = getattr(transformers, name)(other).eval()
    # strict: each of their weights is one of ours, and the other way round
    theirs.load_state_dict({layout_name(key): value for key, value in ours.state_dict().items()})
    ids = torch.randint(4, V, (3, 9), generator=generator)
    real = torch.ones_like(ids)
    real[1, 6:] = 0
    with torch.no_grad():
        for inputs in ({"input_ids": ids}, {"input_ids": ids, "attention_mask": real}):
            got, expected = ours(**inputs).logits, theirs(**inputs).logits
            if task != "classification" and "attention_mask" in inputs:  # what stands in a padded slot means nothing
                got, expected = got[real == 1], expected[real == 1]
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
            assert float(expected.std()) > 0.05
    if task == "language_model":
        real = real.flip(1)
        options = {"attention_mask": real, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 1}
        assert torch.equal(ours.generate(ids, **options), theirs.generate(ids, **options))


@pytest.mark.parametrize(
    ("task", "options", "said"),
    [
        ("language_model", {"norm": "layer_norm"}, "norm must be rms_norm in this layout; got layer_norm"),
        ("language_model", {"feed_forward": "geglu"}, "feed_forward must be swiglu"),
        ("language_model", {"positions": "sinusoid"}, "positions must be rope"),
        ("language_model", {"sandwich_norm": True}, "sandwich_norm must be False"),
        ("language_model", {"logit_scale": 0.5}, "logit_scale must be 1.0"),
        ("language_model", {"qk_norm": True, "bias": True}, "bias must be False"),
        ("masked_lm", {"qk_norm": True}, "qk_norm must be False"),
    ],
)
def test_a_model_without_a_layout_is_refused(task, options, said):
    with pytest.raises(ValueError, match=said):
        layout_config(TASKS[task].configure(**options))


def test_an_encoder_decoder_has_no_layout_here():
    with pytest.raises(ValueError, match="got bmscale_encoder_decoder"):
        layout_config(EncoderDecoderConfig())
