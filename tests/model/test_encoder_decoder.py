"""The properties of the model that training and generation rely on."""

import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel

from bmscale.model import EncoderDecoderConfig, EncoderDecoderForConditionalGeneration
from bmscale.model.config import PRESETS
from bmscale.model.init import initialise

V = 40
VARIANTS = {
    **PRESETS,
    "gqa": {"num_key_value_heads": 2, "head_dim": 10, "rope_theta": 5e5},
    "mqa-bias": {"num_key_value_heads": 1, "bias": True, "feed_forward": "gelu"},
    "qk_norm": {"qk_norm": True},
    "sandwich-layer_norm-free": {"norm": "layer_norm", "sandwich_norm": True, "tie_word_embeddings": False},
    "scaled": {"embedding_scale": 3.0, "attention_scale": 0.5, "residual_scale": 0.7, "logit_scale": 1.5},
}


def build(name="modern", *, attention="sdpa", dtype=torch.float32, **options):
    """A tiny model with every parameter, norms and biases included, away from its trivial first value."""
    shape = {"vocab_size": V, "hidden_size": 32, "num_attention_heads": 4, "num_encoder_layers": 2}
    config = EncoderDecoderConfig(**{**shape, "num_decoder_layers": 2, **VARIANTS[name], **options})
    model = EncoderDecoderForConditionalGeneration._from_config(config, attn_implementation=attention)
    initialise(model, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.to(dtype).eval()


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(2)
    source = torch.randint(4, V, (3, 9), generator=generator)
    source[1, 6:], source[2, 2:] = 1, 1
    target = torch.randint(4, V, (3, 7), generator=generator)
    target[:, 0] = 2
    return source, source != 1, target


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("beams", [1, 3])
def test_a_cache_changes_no_translation(name, beams, pairs):
    model = build(name)
    source, real, _ = pairs
    translations = [
        model.generate(
            source,
            attention_mask=real,
            min_new_tokens=6,
            max_new_tokens=12,
            num_beams=beams,
            do_sample=False,
            use_cache=use_cache,
            return_dict_in_generate=True,
            output_scores=True,
        )
        for use_cache in (False, True)
    ]
    assert torch.equal(translations[0].sequences, translations[1].sequences)
    torch.testing.assert_close(translations[0].scores[-1], translations[1].scores[-1], atol=1e-4, rtol=1e-4)
    assert translations[0].sequences.shape[1] > 6


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_in_step_with_other_ranks(beams, pairs, tmp_path):
    model = build()
    source, real, _ = pairs
    options = {"attention_mask": real, "max_new_tokens": 8, "num_beams": beams, "do_sample": False}
    alone = model.generate(source, **options)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "s"), 1), rank=0, world_size=1
    )
    try:
        assert torch.equal(model.generate(source, **options, synced_gpus=True), alone)
    finally:
        torch.distributed.destroy_process_group()


def test_a_static_cache_changes_no_translation(pairs):
    model = build()
    source, real, _ = pairs
    model.generation_config.disable_compile = True
    plain, static = (
        model.generate(source, attention_mask=real, max_new_tokens=8, do_sample=False, cache_implementation=kind)
        for kind in (None, "static")
    )
    assert torch.equal(plain, static)


@pytest.mark.parametrize("name", PRESETS)
def test_padding_moves_no_real_logit(name, pairs):
    model = build(name)
    source, real, target = pairs
    more_source = torch.cat([source, torch.full((3, 4), 1)], dim=1)
    more_target = torch.cat([target, torch.randint(V, (3, 5))], dim=1)
    with torch.no_grad():
        few = model(input_ids=source, attention_mask=real, decoder_input_ids=target).logits
        many = model(input_ids=more_source, attention_mask=more_source != 1, decoder_input_ids=more_target).logits
        alone = model(input_ids=source[2:, :2], decoder_input_ids=target[2:]).logits
    torch.testing.assert_close(many[:, :7], few, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(alone[0], few[2], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_a_target_token_moves_no_earlier_logit(name, pairs):
    model = build(name)
    source, real, target = pairs
    changed = target.clone()
    changed[:, 4] = (changed[:, 4] + 1) % V
    with torch.no_grad():
        before, after = (
            model(input_ids=source, attention_mask=real, decoder_input_ids=ids).logits for ids in (target, changed)
        )
    torch.testing.assert_close(after[:, :4], before[:, :4], atol=1e-6, rtol=0)
    assert ((after - before)[:, 4:].abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("name", ["modern", "gemma", "vanilla", "qk_norm", "scaled"])
def test_gradients_are_those_of_finite_differences(name, pairs):
    model = build(name, dtype=torch.float64)
    source, real, target = pairs
    labels = target.masked_fill(torch.rand(target.shape, generator=torch.Generator().manual_seed(3)) < 0.2, -100)

    def loss() -> torch.Tensor:
        out = model(input_ids=source, attention_mask=real, labels=labels, label_smoothing=0.1, return_loss_sums=True)
        return out.loss

    loss().backward()
    step, seen = 1e-6, set()
    generator = torch.Generator().manual_seed(4)
    for parameter_name, parameter in model.named_parameters():
        kind = parameter_name.replace(".0.", ".1.")
        if kind in seen:
            continue
        seen.add(kind)
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
            above = loss()
            parameter.sub_(direction, alpha=2 * step)
            below = loss()
            parameter.add_(direction, alpha=step)
        assert parameter.grad is not None, parameter_name
        slope = float((parameter.grad * direction).sum())
        assert slope == pytest.approx(float((above - below) / (2 * step)), rel=1e-5, abs=1e-6), parameter_name
    assert len(seen) > 20


@pytest.mark.parametrize("name", PRESETS)
def test_activation_checkpointing_gives_equal_gradients(name, pairs):
    source, real, target = pairs
    gradients = []
    for checkpointing in (False, True):
        model = build(name, dropout=0.2).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(0)
        model(input_ids=source, attention_mask=real, labels=target, return_loss_sums=True).loss.backward()
        gradients.append({key: parameter.grad for key, parameter in model.named_parameters()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, atol=1e-6, rtol=1e-5)


def test_dropout_acts_in_training_only(pairs):
    source, real, target = pairs
    inputs = {"input_ids": source, "attention_mask": real, "decoder_input_ids": target}
    for option in ("dropout", "attention_dropout"):
        model = build(**{option: 0.5})
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, build()(**inputs).logits)
            model.train()
            assert not torch.allclose(model(**inputs).logits, model(**inputs).logits)


def test_labels_loss_and_sums_agree(pairs):
    model = build()
    source, real, target = pairs
    labels = target.clone()
    labels[0, 5:] = -100
    shifted = model.prepare_decoder_input_ids_from_labels(labels)
    assert shifted[0].tolist() == [2, *labels[0, :5].tolist(), 1]
    inputs = {"input_ids": source, "attention_mask": real, "labels": labels, "label_smoothing": 0.1}
    with torch.no_grad():
        mean = model(**inputs)
        sums = model(**inputs, return_loss_sums=True)
        over_ten = model(**inputs, num_items_in_batch=torch.tensor(10))
        logits = model(input_ids=source, attention_mask=real, decoder_input_ids=shifted).logits
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1, reduction="sum"
    )
    torch.testing.assert_close(sums.loss, expected)
    torch.testing.assert_close(mean.loss, expected / 19)
    torch.testing.assert_close(over_ten.loss, expected / 10)
    assert int(sums.tokens) == 19
    assert mean.past_key_values is None
    with pytest.raises(ValueError, match="return_loss_sums needs labels"):
        model(input_ids=source, decoder_input_ids=target, return_loss_sums=True)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_saved_model_comes_back_exactly(name, tmp_path, pairs):
    model = build(name)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        tables = [key for key in file.keys() if key.endswith(("tokens.weight", "lm_head.weight"))]  # noqa: SIM118
    assert len(tables) == (1 if model.config.tie_word_embeddings else 3)
    again = EncoderDecoderForConditionalGeneration.from_pretrained(tmp_path)
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == model.config.tie_word_embeddings
    assert not dict(again.named_buffers())  # nothing that a load could leave empty
    source, real, target = pairs
    inputs = {"input_ids": source, "attention_mask": real, "decoder_input_ids": target}
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, again(**inputs).logits)
        base = AutoModel.from_pretrained(tmp_path)
        assert torch.equal(base(**inputs).last_hidden_state, again.model(**inputs).last_hidden_state)


def test_the_auto_class_loads_it_in_a_fresh_process(tmp_path):
    model = build("gemma")
    model.save_pretrained(tmp_path)
    script = (
        "import sys, torch, bmscale.model\n"
        "from transformers import AutoModelForSeq2SeqLM\n"
        "model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1])\n"
        "with torch.no_grad():\n"
        "    out = model(input_ids=torch.tensor([[5, 6, 2]]), decoder_input_ids=torch.tensor([[2, 7]]))\n"
        "print(type(model).__name__, out.logits.double().sum().item())\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    name, total = done.stdout.split()
    with torch.no_grad():
        out = model(input_ids=torch.tensor([[5, 6, 2]]), decoder_input_ids=torch.tensor([[2, 7]]))
    assert name == "EncoderDecoderForConditionalGeneration"
    assert float(total) == pytest.approx(out.logits.double().sum().item(), rel=1e-6)


def test_resized_embeddings_stay_tied_and_trainable(pairs):
    model = build()
    model.resize_token_embeddings(V + 8, mean_resizing=False)
    source, real, target = pairs
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.model.decoder.embed.tokens.weight is model.lm_head.weight
    sums = model(input_ids=source, attention_mask=real, labels=target, return_loss_sums=True)
    sums.loss.backward()
    assert model.lm_head.weight.grad.shape == (V + 8, 32)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attentions_and_states_can_be_asked_for(pairs, attention):
    model = build(attention=attention)
    source, real, target = pairs
    with torch.no_grad():
        out = model(
            input_ids=source,
            attention_mask=real,
            decoder_input_ids=target,
            output_attentions=True,
            output_hidden_states=True,
        )
    assert [weights.shape for weights in out.cross_attentions] == [(3, 4, 7, 9)] * 2
    assert [weights.shape for weights in out.decoder_attentions] == [(3, 4, 7, 7)] * 2
    assert len(out.encoder_hidden_states) == 3
    assert not out.cross_attentions[0][2, :, :, 2:].any()
    torch.testing.assert_close(out.cross_attentions[0].sum(-1), torch.ones(3, 4, 7))
    assert not out.decoder_attentions[0].triu(1).any()  # the future
    with torch.no_grad():
        plain = model(input_ids=source, attention_mask=real, decoder_input_ids=target)
    torch.testing.assert_close(out.logits, plain.logits)


def test_bf16_autocast_trains(pairs):
    model = build("modern").train()
    source, real, target = pairs
    with torch.autocast("cpu", torch.bfloat16):
        narrow = model(input_ids=source, attention_mask=real, labels=target, return_loss_sums=True)
    narrow.loss.backward()
    wide = model(input_ids=source, attention_mask=real, labels=target, return_loss_sums=True)
    assert narrow.loss.item() == pytest.approx(wide.loss.item(), rel=2e-2)
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())
