"""Peer: Hugging Face transformers, Seq2SeqTrainer over Marian or T5 of equal shape.

Run: INTERPRETER hf_trainer.py SPEC.json RESULT.json
Systems: hf-marian, hf-t5, and either with `-grouped` behind it, which switches length grouping on.

Equal: widths, layers, heads, one V x D matrix for both embeddings and the head, AdamW (the trainer's default, fused),
gradients clipped to norm 1 (its default), cross-entropy without smoothing. Pairs are tokenized beforehand to lists of
ids, as its users do with `map`, and padded to the longest of a batch by DataCollatorForSeq2Seq. No logging, saving or
validation.
Not equal: the trainer batches by sentences (it has no token batches), so the target tokens of an update are equal on
average only, and padding is whatever the sentences drawn need. Marian: post-norm, LayerNorm, sinusoids, ReLU, biases;
dropout on embeddings and residual branches. T5: pre-norm, RMSNorm, a relative position bias, ReLU, no biases; its one
dropout rate holds for attention weights and inside the feed-forward as well.
"""

import os
from typing import Any

from protocol import END, PAD, SPECIALS, START, Meter, Pairs, Spec, encode, packages, read_spec, stop, write_result

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # with more GPUs in sight the trainer would use them all

with packages():
    import sentencepiece  # noqa: F401 - protocol.encode needs it
    import torch
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    if not transformers.utils.is_accelerate_available():
        raise ModuleNotFoundError("No module named 'accelerate'", name="accelerate")

SYSTEMS = ("hf-marian", "hf-t5", "hf-marian-grouped", "hf-t5-grouped")


def build_model(spec: Spec, longest: int) -> Any:
    """A model of random weights in the shape of the specification."""
    ids = {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
    if spec.system.startswith("hf-marian"):
        config: Any = transformers.MarianConfig(
            vocab_size=spec.vocabulary_size,
            d_model=spec.hidden_size,
            encoder_layers=spec.encoder_layers,
            decoder_layers=spec.decoder_layers,
            encoder_attention_heads=spec.heads,
            decoder_attention_heads=spec.heads,
            encoder_ffn_dim=spec.feed_forward_size,
            decoder_ffn_dim=spec.feed_forward_size,
            activation_function="relu",
            dropout=spec.dropout,
            max_position_embeddings=max(512, longest),
            scale_embedding=True,
            decoder_start_token_id=PAD,
            forced_eos_token_id=END,
            **ids,
        )
        return transformers.MarianMTModel(config)
    config = transformers.T5Config(
        vocab_size=spec.vocabulary_size,
        d_model=spec.hidden_size,
        d_kv=spec.hidden_size // spec.heads,
        d_ff=spec.feed_forward_size,
        num_layers=spec.encoder_layers,
        num_decoder_layers=spec.decoder_layers,
        num_heads=spec.heads,
        dropout_rate=spec.dropout,
        decoder_start_token_id=PAD,
        **ids,
    )
    return transformers.T5ForConditionalGeneration(config)


def padding_tokenizer() -> Any:
    """All that DataCollatorForSeq2Seq asks of a tokenizer is to pad."""
    vocabulary = {piece: number for number, piece in enumerate(SPECIALS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def arguments(spec: Spec) -> Any:
    """The trainer's arguments: its defaults, without schedule, logging, saving and validation."""
    return transformers.Seq2SeqTrainingArguments(
        output_dir=spec.work,
        max_steps=spec.warmup_steps + spec.steps,
        per_device_train_batch_size=spec.sentences_per_step,
        learning_rate=spec.learning_rate,
        lr_scheduler_type="constant",
        train_sampling_strategy="group_by_length" if spec.system.endswith("-grouped") else "random",
        remove_unused_columns=False,
        bf16=spec.precision == "bf16",
        use_cpu=spec.device == "cpu",
        dataloader_pin_memory=spec.device == "cuda",
        seed=spec.seed,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


class Count(transformers.TrainerCallback):
    """Ends the training when the meter says so; its hook on the model counts every batch that is trained on."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def forward(self, model: Any, args: Any, inputs: dict[str, Any], output: Any) -> None:
        labels = inputs["labels"]
        target_tokens = (labels != -100).sum()
        slots = inputs["input_ids"].numel() + labels.numel()
        self.meter.batch(inputs["attention_mask"].sum(), target_tokens, slots, output.loss.detach() * target_tokens)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= self.meter.update()


def rows(pairs: Pairs) -> list[dict[str, list[int]]]:
    return [
        {"input_ids": [*source, END], "attention_mask": [1] * (len(source) + 1), "labels": [*target, END]}
        for source, target in pairs
    ]


def main() -> None:
    spec = read_spec()
    if spec.system not in SYSTEMS:
        stop(f"system must be one of {', '.join(SYSTEMS)}; got {spec.system}", 2)
    torch.set_num_threads(spec.threads)
    transformers.set_seed(spec.seed)
    transformers.logging.set_verbosity_error()
    pairs = encode(spec)
    model = build_model(spec, 1 + max(max(map(len, pair)) for pair in pairs))
    meter = Meter(spec, torch)
    count = Count(meter)
    model.register_forward_hook(count.forward, with_kwargs=True)
    trainer = transformers.Seq2SeqTrainer(
        model=model,
        args=arguments(spec),
        train_dataset=rows(pairs),
        data_collator=transformers.DataCollatorForSeq2Seq(padding_tokenizer(), model=model),
        callbacks=[count],
    )
    trainer.train()
    result = meter.result(spec.precision, sum(one.numel() for one in model.parameters() if one.requires_grad))
    write_result(spec, ["torch", "transformers", "accelerate", "sentencepiece"], result)


if __name__ == "__main__":
    main()
