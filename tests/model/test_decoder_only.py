"""The properties of the language model that training and generation rely on."""

import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForCausalLM

from bmscale.model import DecoderOnlyConfig, DecoderOnlyForCausalLM
from bmscale.model.config import DECODER_PRESETS, PRESETS
from bmscale.model.decoder_only import next_labels
from bmscale.model.init import initialise

V = 40
VARIANTS = {
    **DECODER_PRESETS,
    "gqa-untied": {"num_key_value_heads": 2, "head_dim": 10, "tie_word_embeddings": False},
    "vanilla": PRESETS["vanilla"],
}


def build(name="llama", *, attention="sdpa", dtype=torch.float32, **options):
    """A tiny model with every parameter, norms and biases included, away from its trivial first value."""
    shape = {"vocab_size": V, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = DecoderOnlyConfig(**{**shape, **VARIANTS[name], **options})
    model = DecoderOnlyForCausalLM._from_config(config, attn_implementation=attention)
    initialise(model, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.to(dtype).eval()


@pytest.fixture
def ids():
    return torch.randint(4, V, (3, 9), generator=torch.Generator().manual_seed(2))


SEGMENTS = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 3, 3], [1, 1, 1, 1, 1, 1, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1]])


def documents(segments):
    """Row, first slot and end of each document."""
    return [
        (row, int(slots[0]), int(slots[-1]) + 1)
        for row, numbers in enumerate(segments)
        for number in numbers.unique()
        if number
        for slots in [(numbers == number).nonzero()]
    ]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_a_cache_changes_no_text(name, beams, padded, ids):
    model = build(name)
    real = torch.ones_like(ids)
    if padded:
        ids[1, :3], real[1, :3] = 1, 0
    options = {"attention_mask": real, "min_new_tokens": 4, "max_new_tokens": 8, "num_beams": beams, "do_sample": False}
    uncached, cached = (
        model.generate(ids, **options, use_cache=use_cache, return_dict_in_generate=True, output_scores=True)
        for use_cache in (False, True)
    )
    assert torch.equal(cached.sequences, uncached.sequences)
    torch.testing.assert_close(cached.scores[-1], uncached.scores[-1], atol=1e-4, rtol=1e-4)
    assert cached.sequences.shape[1] > 9 + 3


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("padding", [0, 2])
def test_a_text_read_in_two_parts_is_the_whole(name, padding, ids):
    """Without `generate`, which numbers positions itself."""
    model = build(name)
    ids[1, :padding] = 1
    real = ids != 1
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=real if padding else None).logits
        first = model(input_ids=ids[:, :5], attention_mask=real[:, :5] if padding else None)
        rest = model(
            input_ids=ids[:, 5:], attention_mask=real if padding else None, past_key_values=first.past_key_values
        )
    torch.testing.assert_close(rest.logits, whole[:, 5:], atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_on_the_left_changes_no_text(name, ids):
    model = build(name)
    options = {"min_new_tokens": 6, "max_new_tokens": 6, "do_sample": False}
    alone = model.generate(ids[1:2, 3:], **options)
    ids[1, :3] = 1
    together = model.generate(ids, attention_mask=ids != 1, **options)
    assert together[1, 3:].tolist() == alone[0].tolist()


def test_a_static_cache_changes_no_text(ids):
    model = build()
    ids[1, :3] = 1
    model.generation_config.disable_compile = True
    plain, static = (
        model.generate(ids, attention_mask=ids != 1, max_new_tokens=6, do_sample=False, cache_implementation=kind)
        for kind in (None, "static")
    )
    assert torch.equal(plain, static)


def test_generation_in_step_with_other_ranks(ids, tmp_path):
    model = build()
    options = {"max_new_tokens": 6, "do_sample": False}
    alone = model.generate(ids, **options)
    store = torch.distributed.FileStore(str(tmp_path / "s"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert torch.equal(model.generate(ids, **options, synced_gpus=True), alone)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_moves_no_real_logit(name, attention, ids):
    model = build(name, attention=attention)
    right = torch.cat([ids, torch.full((3, 4), 1)], dim=1)
    left = torch.cat([torch.full((3, 4), 1), ids], dim=1)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        hidden_by_order = model(input_ids=right).logits[:, :9]
        masked = model(input_ids=right, attention_mask=right != 1).logits[:, :9]
        shifted = model(input_ids=left, attention_mask=left != 1).logits[:, 4:]
    for got in (hidden_by_order, masked, shifted):
        torch.testing.assert_close(got, expected, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("segments", [None, SEGMENTS])
def test_a_token_moves_no_earlier_logit_and_no_other_document(name, segments, ids):
    model = build(name)
    changed = ids.clone()
    changed[:, 4] = (changed[:, 4] + 1) % V
    with torch.no_grad():
        before, after = (model(input_ids=x, segment_ids=segments).logits for x in (ids, changed))
    moved = (after - before).abs().amax(-1) > 1e-4
    slot = torch.arange(9)
    seen_by = (slot >= 4).expand(3, -1) if segments is None else (slot >= 4) & (segments == segments[:, 4:5])
    assert torch.equal(moved, seen_by)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_document_in_a_packed_row_is_as_if_alone(name, attention, ids):
    model = build(name, attention=attention)
    with torch.no_grad():
        packed = model(input_ids=ids, segment_ids=SEGMENTS).logits
        for row, first, end in documents(SEGMENTS):
            alone = model(input_ids=ids[row : row + 1, first:end]).logits[0]
            torch.testing.assert_close(packed[row, first:end], alone, atol=5e-6, rtol=1e-5)
        # transformers' own way to say the same
        position = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1], [0, 1, 2, 3, 4, 5, 0, 0, 1], [*range(9)]])
        torch.testing.assert_close(
            model(input_ids=ids, position_ids=position).logits[SEGMENTS > 0],
            packed[SEGMENTS > 0],
            atol=1e-6,
            rtol=1e-6,
        )


def test_packed_rows_train_as_their_documents_do(ids):
    """Loss and gradients, and no target across the border of two documents."""
    gradients = []
    for packed in (True, False):
        model = build()
        if packed:
            sums = [model(input_ids=ids, segment_ids=SEGMENTS, labels=labels_of(ids), return_loss_sums=True)]
        else:
            sums = [
                model(input_ids=piece, labels=piece, return_loss_sums=True)
                for row, first, end in documents(SEGMENTS)
                for piece in [ids[row : row + 1, first:end]]
            ]
        loss = torch.stack([one.loss for one in sums]).sum()
        loss.backward()
        tokens = sum(int(one.tokens) for one in sums)
        gradients.append((loss, tokens, [parameter.grad for parameter in model.parameters()]))
    assert gradients[0][1] == gradients[1][1] == (3 + 2 + 1) + (5 + 0) + 8
    torch.testing.assert_close(gradients[0][0], gradients[1][0])
    torch.testing.assert_close(gradients[0][2], gradients[1][2], atol=1e-5, rtol=1e-4)


def labels_of(ids):
    return ids.masked_fill(SEGMENTS == 0, -100)


def test_next_labels():
    labels = torch.tensor([[5, 6, 7, 8, -100]])
    assert next_labels(labels).tolist() == [[6, 7, 8, -100, -100]]
    assert next_labels(labels, torch.tensor([[1, 1, 2, 2, 0]])).tolist() == [[6, -100, 8, -100, -100]]


def test_segments_beside_a_cache_are_refused(ids):
    model = build()
    with torch.no_grad():
        cache = model(input_ids=ids[:, :4]).past_key_values
        assert cache.get_seq_length() == 4
        with pytest.raises(ValueError, match="must not be given with past_key_values"):
            model(input_ids=ids[:, 4:], segment_ids=SEGMENTS[:, 4:], past_key_values=cache)
        assert model(input_ids=ids, segment_ids=SEGMENTS).past_key_values is None


def test_labels_loss_and_sums_agree(ids):
    model = build()
    labels = ids.clone()
    labels[0, 5:] = -100
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
    with torch.no_grad():
        mean = model(input_ids=ids, labels=labels, label_smoothing=0.1)
        sums = model(input_ids=ids, shift_labels=shifted, label_smoothing=0.1, return_loss_sums=True)
        over_ten = model(input_ids=ids, labels=labels, label_smoothing=0.1, num_items_in_batch=torch.tensor(10))
        logits = model(input_ids=ids).logits
        last = model(input_ids=ids, logits_to_keep=2).logits
    expected = F.cross_entropy(logits.flatten(0, 1), shifted.flatten(), label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(sums.loss, expected)
    torch.testing.assert_close(mean.loss, expected / 20)
    torch.testing.assert_close(over_ten.loss, expected / 10)
    assert int(sums.tokens) == 4 + 8 + 8
    assert int(sums.correct) == int((logits.argmax(-1) == shifted).sum())
    assert mean.past_key_values is None
    torch.testing.assert_close(last, logits[:, -2:])
    with pytest.raises(ValueError, match="return_loss_sums needs labels"):
        model(input_ids=ids, return_loss_sums=True)
    with pytest.raises(ValueError, match="got both"):
        model(input_ids=ids, labels=labels, shift_labels=shifted)


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_are_those_of_finite_differences(name, ids):
    model = build(name, dtype=torch.float64)

    def loss() -> torch.Tensor:
        return model(input_ids=ids, segment_ids=SEGMENTS, labels=labels_of(ids), return_loss_sums=True).loss

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


def test_activation_checkpointing_gives_equal_gradients(ids):
    gradients = []
    for checkpointing in (False, True):
        model = build(dropout=0.2).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(0)
        model(input_ids=ids, segment_ids=SEGMENTS, labels=ids, return_loss_sums=True).loss.backward()
        gradients.append({key: parameter.grad for key, parameter in model.named_parameters()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, atol=1e-6, rtol=1e-5)


def test_bf16_autocast_trains(ids):
    model = build().train()
    with torch.autocast("cpu", torch.bfloat16):
        narrow = model(input_ids=ids, segment_ids=SEGMENTS, labels=ids, return_loss_sums=True)
    narrow.loss.backward()
    wide = model(input_ids=ids, segment_ids=SEGMENTS, labels=ids, return_loss_sums=True)
    assert narrow.loss.item() == pytest.approx(wide.loss.item(), rel=2e-2)
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_saved_model_comes_back_exactly(name, tmp_path, ids):
    model = build(name)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        tables = [key for key in file.keys() if key.endswith(("tokens.weight", "lm_head.weight"))]  # noqa: SIM118
    assert len(tables) == (1 if model.config.tie_word_embeddings else 2)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is DecoderOnlyForCausalLM
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == model.config.tie_word_embeddings
    assert not dict(again.named_buffers())  # nothing that a load could leave empty
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)
        base = AutoModel.from_pretrained(tmp_path)
        assert torch.equal(base(input_ids=ids).last_hidden_state, again.model(input_ids=ids).last_hidden_state)


def test_the_auto_class_loads_it_in_a_fresh_process(tmp_path):
    model = build("qwen3")
    model.save_pretrained(tmp_path)
    script = (
        "import sys, torch, bmscale.model\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "print(model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=5, do_sample=False).tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    expected = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=5, do_sample=False)
    assert done.stdout.strip() == str(expected.tolist())


def test_resized_embeddings_stay_tied_and_trainable(ids):
    model = build()
    model.resize_token_embeddings(V + 8, mean_resizing=False)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model(input_ids=ids, labels=ids, return_loss_sums=True).loss.backward()
    assert model.lm_head.weight.grad.shape == (V + 8, 32)


def test_attentions_and_states_can_be_asked_for(ids):
    model = build(attention="eager")
    with torch.no_grad():
        out = model(input_ids=ids, segment_ids=SEGMENTS, output_attentions=True, output_hidden_states=True)
    assert [weights.shape for weights in out.attentions] == [(3, 4, 9, 9)] * 2
    assert len(out.hidden_states) == 3
    assert not out.attentions[0][0, :, 4:7, :4].any()
    torch.testing.assert_close(out.attentions[0].sum(-1), torch.ones(3, 4, 9))
