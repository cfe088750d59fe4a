"""Peer: Eole (the successor of OpenNMT-py), its own training command over token batches.

Run: INTERPRETER eole.py SPEC.json RESULT.json

Equal: widths, layers, heads, one V x D matrix for both embeddings and the head (share_embeddings,
share_decoder_embeddings), pre-norm, dropout on embeddings and residual branches only (attention_dropout 0), Adam,
gradients clipped to norm 1, cross-entropy without smoothing, </s> behind the source, no validation, saving or logging
in the timed part. Text is tokenized beforehand; Eole splits it at blanks. It sorts a bucket by length, here the whole
corpus, and its batch_size counts padded slots of the longer side: it is chosen so that an update has `tokens_per_step`
real target tokens on average.
Not equal: sinusoids, LayerNorm and ReLU, no biases but the head's, as its `transformer` has them by default; dropout
inside the feed-forward as well; two pairs with the same source never share a batch, the later is dropped; its Adam is
not fused; the accuracy of every batch is asked for. A bucket is made in the training process (num_workers 0) on CPU,
where workers would take the cores from the training. bf16 on CPU is autocast with Eole's gradient scaler; on a GPU its
autocast is fp16, and the result says so.
"""

import contextlib
import random
from pathlib import Path
from typing import Any

from protocol import (
    END,
    SPECIALS,
    Meter,
    Pairs,
    Spec,
    as_words,
    batch_size_for,
    encode,
    packages,
    read_spec,
    words,
    write_result,
)

with packages():
    import eole  # noqa: F401 - says which package is lacking, where the next line would name one of its modules
    import sentencepiece  # noqa: F401 - protocol.encode needs it
    import torch
    from eole import train_single
    from eole.config.run import TrainConfig

NEVER = 10**9


class Finished(Exception):
    """The last timed update is done; Eole's loop has no other way out than its number of steps."""


def write_data(spec: Spec, pairs: Pairs) -> None:
    work = Path(spec.work)
    source = "".join(as_words([*ids, END]) + "\n" for ids, _ in pairs)
    target = "".join(as_words(ids) + "\n" for _, ids in pairs)
    (work / "train.src").write_text(source, encoding="utf-8")
    (work / "train.tgt").write_text(target, encoding="utf-8")
    (work / "vocab.txt").write_text("\n".join((*SPECIALS, *words(spec))) + "\n", encoding="utf-8")


def mean_tokens(pairs: Pairs, batch_size: int) -> float:
    """Target tokens with </s> that a batch has on average, cut as Eole's batch_iter cuts a sorted bucket."""
    batches, kept, sentences, longest, seen = 0, 0, 0, 0, set()
    for source, target in sorted(pairs, key=lambda pair: (len(pair[0]), len(pair[1]))):
        if (key := tuple(source)) in seen:
            continue
        seen.add(key)
        kept += len(target) + 1
        longest = max(longest, len(source) + 1, len(target) + 2)
        sentences += 1
        if longest * sentences >= batch_size:
            over = longest * sentences > batch_size and sentences > 1
            batches, sentences, seen = batches + 1, int(over), set()
            longest = max(len(source) + 1, len(target) + 2) if over else 0
    return kept / (batches + bool(sentences))


def configuration(spec: Spec, batch_size: int, pairs: int) -> Any:
    """What a YAML file for `eole train` would say."""
    bos, pad, end, unknown = SPECIALS
    gpu = spec.device == "cuda"
    workers = 2 if gpu else 0
    return TrainConfig(
        seed=spec.seed,
        report_every=NEVER,
        src_vocab=f"{spec.work}/vocab.txt",
        share_vocab=True,
        src_vocab_size=spec.vocabulary_size,
        tgt_vocab_size=spec.vocabulary_size,
        bos_token=bos,
        pad_token=pad,
        eos_token=end,
        unk_token=unknown,
        decoder_start_token=bos,
        data={"train": {"path_src": f"{spec.work}/train.src", "path_tgt": f"{spec.work}/train.tgt", "transforms": []}},
        training={
            "model_path": f"{spec.work}/model",
            "world_size": 1,
            "gpu_ranks": [0] if gpu else [],
            "compute_dtype": spec.precision,
            "bucket_size": max(1, pairs // max(1, workers)),
            "num_workers": workers,
            "batch_type": "tokens",
            "batch_size": batch_size,
            "normalization": "tokens",
            "optim": "adam",
            "learning_rate": spec.learning_rate,
            "start_decay_steps": NEVER,
            "max_grad_norm": 1.0,
            "dropout": [spec.dropout],
            "attention_dropout": [0.0],
            "param_init_method": "xavier_uniform",
            "train_steps": NEVER,
            "valid_steps": NEVER,
            "save_checkpoint_steps": NEVER,
            "log_attention_entropy": False,
        },
        model={
            "architecture": "transformer",
            "hidden_size": spec.hidden_size,
            "heads": spec.heads,
            "transformer_ff": spec.feed_forward_size,
            "encoder": {"layers": spec.encoder_layers},
            "decoder": {"layers": spec.decoder_layers},
            "embeddings": {"word_vec_size": spec.hidden_size, "position_encoding": True},
            "share_embeddings": True,
            "share_decoder_embeddings": True,
        },
    )


def attach(meter: Meter) -> list[int]:
    """Let the trainer that Eole will build report to the meter; the list then holds its number of parameters."""
    build, parameters = train_single.build_trainer, []

    def count(loss: Any, args: tuple[Any, ...], output: Any) -> None:
        batch = args[0]
        labels = batch["tgt"][:, 1:]
        target_tokens = labels.ne(loss.padding_idx).sum()
        slots = batch["src"].numel() + labels.numel()
        meter.batch(batch["srclen"].sum(), target_tokens, slots, output[0].detach().sum())

    def step(*_: Any) -> None:
        if meter.update():
            raise Finished

    def build_trainer(config: Any, device_id: int, model: Any, *args: Any, **kwargs: Any) -> Any:
        trainer = build(config, device_id, model, *args, **kwargs)
        trainer.train_loss.register_forward_hook(count)
        trainer.optim._optimizer.register_step_post_hook(step)
        parameters.append(sum(parameter.numel() for parameter in model.parameters()))
        return trainer

    train_single.build_trainer = build_trainer
    return parameters


def precision(spec: Spec) -> str:
    """What Eole's autocast computes in: it names no type, so torch's default of the device holds."""
    half = torch.get_autocast_dtype(spec.device) == torch.float16
    return "fp32" if spec.precision == "fp32" else "fp16" if half else "bf16"


def main() -> None:
    spec = read_spec()
    torch.set_num_threads(spec.threads)
    random.seed(spec.seed)
    pairs = encode(spec)
    write_data(spec, pairs)
    batch_size = batch_size_for(spec.tokens_per_step, lambda size: mean_tokens(pairs, size))
    meter = Meter(spec, torch)
    parameters = attach(meter)
    with contextlib.suppress(Finished):
        train_single.main(configuration(spec, batch_size, len(pairs)), device_id=0 if spec.device == "cuda" else -1)
    result = {**meter.result(precision(spec), parameters[0]), "batch_size": batch_size}
    write_result(spec, ["torch", "eole", "sentencepiece"], result)


if __name__ == "__main__":
    main()
