"""The properties of the masked language model and of the classifier that training relies on."""

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from bmscale.model import EncoderOnlyForMaskedLM, EncoderOnlyForSequenceClassification
from bmscale.model.config import ENCODER_PRESETS, PRESETS
from bmscale.model.init import initialise
from bmscale.model.tasks import TASKS

V, LABELS = 40, 5
VARIANTS = {
    **ENCODER_PRESETS,
    "gqa-untied": {"num_key_value_heads": 2, "head_dim": 10, "tie_word_embeddings": False},
    "vanilla": PRESETS["vanilla"],
}
SEGMENTS = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 3, 3], [1, 1, 1, 1, 1, 1, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1]])


def build(task="masked_lm", name="eurobert", *, attention="sdpa", dtype=torch.float32, **options):
    """A tiny model with every parameter, norms and biases included, away from its trivial first value."""
    shape = {"vocab_size": V, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = TASKS[task].configure(**{**shape, "num_labels": LABELS, **VARIANTS[name], **options})
    model = TASKS[task].model._from_config(config, attn_implementation=attention)
    initialise(model, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.to(dtype).eval()


@pytest.fixture
def ids():
    return torch.randint(4, V, (3, 9), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def masked(ids):
    """Labels of a masked language model."""
    chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(3)) < 0.4
    return ids.masked_fill(~chosen, -100)


def loss_of(model, ids, labels, **options):
    return model(input_ids=ids, labels=labels, return_loss_sums=True, **options).loss


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("task", ["masked_lm", "classification"])
@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_padding_moves_nothing(name, task, pooling, ids):
    model = build(task, name, classifier_pooling=pooling)
    real = torch.ones_like(ids, dtype=torch.bool)
    real[2, 4:] = False
    few = ids.masked_fill(~real, 1)
    more, more_real = F.pad(few, (0, 3), value=1), F.pad(real, (0, 3), value=False)
    with torch.no_grad():
        logits = model(input_ids=few, attention_mask=real).logits
        padded = model(input_ids=more, attention_mask=more_real).logits
        alone = model(input_ids=ids[2:, :4]).logits[0]
        if task == "masked_lm":
            padded, logits, alone = padded[:, :9][real], logits[real], alone
            torch.testing.assert_close(logits[-4:], alone, atol=5e-6, rtol=1e-5)
        else:
            torch.testing.assert_close(logits[2], alone, atol=5e-6, rtol=1e-5)
    torch.testing.assert_close(padded, logits, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("segments", [None, SEGMENTS])
def test_every_token_is_seen_by_its_whole_document_and_by_no_other(segments, ids):
    model = build()
    changed = ids.clone()
    changed[:, 4] = (changed[:, 4] + 1) % V
    with torch.no_grad():
        before, after = (model(input_ids=x, segment_ids=segments).logits for x in (ids, changed))
    moved = (after - before).abs().amax(-1) > 1e-4
    same = torch.ones(3, 9, dtype=torch.bool) if segments is None else segments == segments[:, 4:5]
    assert torch.equal(moved, same)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_document_in_a_packed_row_is_as_if_alone(name, attention, ids):
    model = build(name=name, attention=attention)
    one_a_row = torch.tensor([[4] * 9, [4] * 5 + [0] * 4, [0] * 9])
    for segments in (SEGMENTS, one_a_row):
        with torch.no_grad():
            packed = model(input_ids=ids, segment_ids=segments).logits
            for row in range(3):
                for number in segments[row].unique():
                    slots = segments[row] == number
                    alone = model(input_ids=ids[row : row + 1, slots]).logits[0]
                    if number:
                        torch.testing.assert_close(packed[row, slots], alone, atol=5e-6, rtol=1e-5)
    position = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1], [0, 1, 2, 3, 4, 5, 0, 0, 1], [*range(9)]])
    with torch.no_grad():
        packed = model(input_ids=ids, segment_ids=SEGMENTS).logits[SEGMENTS > 0]
        by_position = model(input_ids=ids, position_ids=position).logits[SEGMENTS > 0]
    torch.testing.assert_close(by_position, packed, atol=1e-6, rtol=1e-6)


def test_masked_loss_and_sums_agree(ids, masked):
    model = build()
    with torch.no_grad():
        mean = model(input_ids=ids, labels=masked)
        sums = model(input_ids=ids, labels=masked, return_loss_sums=True)
        over_ten = model(input_ids=ids, labels=masked, num_items_in_batch=10)
        logits = model(input_ids=ids).logits
    expected = F.cross_entropy(logits.flatten(0, 1), masked.flatten(), reduction="sum")
    torch.testing.assert_close(sums.loss, expected)
    torch.testing.assert_close(over_ten.loss, expected / 10)
    assert int(sums.tokens) == int((masked != -100).sum()) > 5
    torch.testing.assert_close(mean.loss, expected / sums.tokens)
    assert int(sums.correct) == int((logits.argmax(-1) == masked).sum())
    with pytest.raises(ValueError, match="return_loss_sums needs labels"):
        model(input_ids=ids, return_loss_sums=True)


def test_classification_loss_and_sums_agree(ids):
    model = build("classification")
    labels = torch.tensor([3, -100, 0])
    with torch.no_grad():
        mean = model(input_ids=ids, labels=labels, label_smoothing=0.1)
        sums = model(input_ids=ids, labels=labels, label_smoothing=0.1, return_loss_sums=True)
        nothing = model(input_ids=ids[:1], labels=torch.tensor([-100]), return_loss_sums=True)
        over_ten = model(input_ids=ids, labels=labels, label_smoothing=0.1, num_items_in_batch=10)
    assert mean.logits.shape == (3, LABELS)
    expected = F.cross_entropy(mean.logits, labels, label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(sums.loss, expected)
    torch.testing.assert_close(mean.loss, expected / 2)
    torch.testing.assert_close(over_ten.loss, expected / 10)
    assert int(sums.tokens) == 2
    assert int(sums.correct) == int((mean.logits.argmax(-1) == labels).sum())
    assert (int(nothing.tokens), float(nothing.loss)) == (0, 0.0)
    with pytest.raises(ValueError, match="return_loss_sums needs labels"):
        model(input_ids=ids, return_loss_sums=True)
    with pytest.raises(ValueError, match="one text a row; got segment_ids"):
        model(input_ids=ids, segment_ids=SEGMENTS)


def test_a_rank_without_texts_has_gradients_of_zero():
    """What a rank runs when the step has no text left for it: every parameter takes part, and nothing moves."""
    model = build("classification")
    loss_of(model, torch.tensor([[2]]), torch.tensor([-100])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("task", ["masked_lm", "classification"])
def test_gradients_are_those_of_finite_differences(name, task, ids, masked):
    model = build(task, name, dtype=torch.float64)
    real = torch.ones_like(ids, dtype=torch.bool)
    real[2, 4:] = False
    labels, options = (masked, {"segment_ids": SEGMENTS}) if task == "masked_lm" else (torch.tensor([1, 0, 4]), {})

    def loss() -> torch.Tensor:
        return loss_of(model, ids, labels, attention_mask=real, **options)

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
    assert len(seen) > 10


@pytest.mark.parametrize("task", ["masked_lm", "classification"])
def test_activation_checkpointing_gives_equal_gradients(task, ids, masked):
    labels = masked if task == "masked_lm" else torch.tensor([1, 0, 4])
    gradients = []
    for checkpointing in (False, True):
        model = build(task, dropout=0.2).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(0)
        loss_of(model, ids, labels).backward()
        gradients.append({key: parameter.grad for key, parameter in model.named_parameters()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("task", ["masked_lm", "classification"])
def test_bf16_autocast_trains(task, ids, masked):
    labels = masked if task == "masked_lm" else torch.tensor([1, 0, 4])
    model = build(task).train()
    with torch.autocast("cpu", torch.bfloat16):
        narrow = loss_of(model, ids, labels)
    narrow.backward()
    assert narrow.item() == pytest.approx(loss_of(model, ids, labels).item(), rel=2e-2)
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_saved_masked_model_comes_back_exactly(name, tmp_path, ids):
    model = build(name=name, mask_token_id=7)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        tables = [key for key in file.keys() if key.endswith(("tokens.weight", "lm_head.weight"))]  # noqa: SIM118
    assert len(tables) == (1 if model.config.tie_word_embeddings else 2)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert type(again) is EncoderOnlyForMaskedLM
    assert again.config.mask_token_id == 7
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == model.config.tie_word_embeddings
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)
        base = AutoModel.from_pretrained(tmp_path)
        assert torch.equal(base(input_ids=ids).last_hidden_state, again.model(input_ids=ids).last_hidden_state)


def test_a_saved_classifier_comes_back_exactly_with_its_labels(tmp_path, ids):
    names = dict(enumerate(["admin", "devel", "games", "libs", "net"]))
    model = build("classification", id2label=names, label2id={name: i for i, name in names.items()})
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(again) is EncoderOnlyForSequenceClassification
    assert again.config.id2label == names
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)


def test_a_classifier_starts_from_a_masked_model(tmp_path):
    """transformers' own way to fine-tune: the stack is read, the head is new."""
    model = build()
    model.save_pretrained(tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=4)
    for name, value in model.model.state_dict().items():
        assert torch.equal(classifier.model.state_dict()[name], value), name
    assert classifier.classifier.weight.shape == (4, 32)


def test_attentions_and_states_can_be_asked_for(ids):
    model = build(attention="eager")
    with torch.no_grad():
        out = model(input_ids=ids, segment_ids=SEGMENTS, output_attentions=True, output_hidden_states=True)
    assert [weights.shape for weights in out.attentions] == [(3, 4, 9, 9)] * 2
    assert len(out.hidden_states) == 3
    assert not out.attentions[0][0, :, 4:7, :4].any()
    assert out.attentions[0][0, :, 4, 6].all()
