"""Rows in buckets, laid end to end, give the losses and gradients of the same rows padded to the longest."""

import pytest
import torch

from bmscale.model import EncoderDecoderConfig, EncoderDecoderForConditionalGeneration
from bmscale.model.buckets import cut, join, positions_in_rows
from bmscale.model.config import PRESETS, EncoderOnlyConfig
from bmscale.model.encoder_only import EncoderOnlyForSequenceClassification
from bmscale.model.init import initialise

V = 40
IGNORED = -100
BUCKETS = ((2, 3), (3, 6), (1, 9)), ((2, 4), (3, 5), (1, 8))
"""Of sources and targets; some rows are shorter than their bucket."""


def rows_of(buckets, generator):
    """(padded tensor of all rows, that of the buckets laid end to end), padding 1."""
    longest = max(length for _, length in buckets)
    padded, laid = [], []
    for count, length in buckets:
        rows = torch.randint(4, V, (count, length), generator=generator)
        rows[0, length - 1 :] = 1  # the first row of each bucket is a token shorter
        padded.append(torch.nn.functional.pad(rows, (0, longest - length), value=1))
        laid.append(rows.flatten())
    return torch.cat(padded), torch.cat(laid)[None]


def loss_and_gradients(model, **inputs):
    model.zero_grad()
    sums = model(**inputs, return_loss_sums=True, label_smoothing=0.1)
    sums.loss.backward()
    return sums.loss.item(), sums.tokens, {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same(model, padded, laid):
    loss, tokens, gradients = loss_and_gradients(model, **padded)
    other, other_tokens, other_gradients = loss_and_gradients(model, **laid)
    assert tokens == other_tokens > 0
    assert other == pytest.approx(loss, rel=1e-10)
    assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-3
    torch.testing.assert_close(other_gradients, gradients, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("options", [*PRESETS.values(), {"num_key_value_heads": 2}], ids=[*PRESETS, "shared keys"])
def test_an_encoder_decoder_sees_the_same_rows(options, attention, checkpointing):
    shape = {"vocab_size": V, "hidden_size": 32, "num_attention_heads": 4, "num_encoder_layers": 2}
    config = EncoderDecoderConfig(**{**shape, "num_decoder_layers": 2, "dropout": 0.0, **options})
    model = EncoderDecoderForConditionalGeneration._from_config(config, attn_implementation=attention)
    initialise(model, 0)
    model.double().train()
    if checkpointing:
        model.activation_checkpointing_enable()
    generator = torch.Generator().manual_seed(1)
    sources, targets = (rows_of(buckets, generator) for buckets in BUCKETS)
    padded, laid = (
        {
            "input_ids": source,
            "attention_mask": source != 1,
            "decoder_input_ids": target,
            "labels": target.masked_fill(target == 1, IGNORED),
        }
        for source, target in zip(sources, targets, strict=True)
    )
    assert_same(model, padded, {**laid, "source_buckets": BUCKETS[0], "target_buckets": BUCKETS[1]})


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_a_classifier_sees_the_same_texts(pooling):
    config = EncoderOnlyConfig(
        vocab_size=V,
        hidden_size=32,
        num_attention_heads=4,
        num_hidden_layers=2,
        num_labels=3,
        classifier_pooling=pooling,
    )
    model = EncoderOnlyForSequenceClassification(config)
    initialise(model, 0)
    model.double().eval()
    texts, laid = rows_of(BUCKETS[0], torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 2, 1, 1, IGNORED, 2])
    assert_same(
        model,
        {"input_ids": texts, "attention_mask": texts != 1, "labels": labels},
        {"input_ids": laid, "attention_mask": laid != 1, "labels": labels, "buckets": BUCKETS[0]},
    )


def test_what_buckets_do_not_go_with_is_refused():
    shape = {"vocab_size": V, "hidden_size": 32, "num_attention_heads": 4, "num_encoder_layers": 1}
    model = EncoderDecoderForConditionalGeneration(EncoderDecoderConfig(**shape, num_decoder_layers=1))
    row = torch.full((1, 6), 5)
    pair = {"input_ids": row, "source_buckets": [(2, 3)]}
    both = {**pair, "target_buckets": [(2, 3)]}
    with pytest.raises(ValueError, match="given together; got one"):
        model(**pair, decoder_input_ids=row)
    with pytest.raises(ValueError, match="need decoder_input_ids"):
        model(**both, labels=row)
    with pytest.raises(ValueError, match="attention_mask of the target"):
        model(**both, decoder_input_ids=row, decoder_attention_mask=row > 0)
    with pytest.raises(ValueError, match="position or segment ids"):
        model.get_encoder()(row, position_ids=row, buckets=[(2, 3)])
    with pytest.raises(RuntimeError):
        model(
            input_ids=row.repeat(2, 1),
            decoder_input_ids=row.repeat(2, 1),
            source_buckets=[(2, 3)],
            target_buckets=[(2, 3)],
        )


def test_cutting_and_joining_are_inverse():
    x = torch.randn(1, 33, 5)
    parts = cut(x, BUCKETS[0])
    assert [tuple(part.shape[:2]) for part in parts] == list(BUCKETS[0])
    assert torch.equal(join(parts), x)
    with pytest.raises(RuntimeError):
        cut(x[:, 1:], BUCKETS[0])


def test_positions_begin_anew_in_each_row():
    assert positions_in_rows([(2, 2), (1, 3)], torch.device("cpu")).tolist() == [[0, 1, 0, 1, 0, 1, 2]]
