"""Peer: JoeyNMT, its own TrainManager over token batches.

Run: INTERPRETER joeynmt.py SPEC.json RESULT.json

Equal: widths, layers, heads, one V x D matrix for both embeddings and the head (tied_embeddings, tied_softmax),
pre-norm, AdamW, gradients clipped to norm 1, cross-entropy without smoothing, no validation, saving or logging in the
timed part. Text is tokenized beforehand; JoeyNMT splits it at blanks. Its batch_size counts padded slots of the longer
side: it is chosen so that an update has `tokens_per_step` real target tokens on average.
Not equal: JoeyNMT sorts nothing by length ("no bucketing implemented" in its TokenBatchSampler), so batches hold more
padding; sinusoids, LayerNorm, ReLU and biases; its one dropout rate holds for attention weights and inside the
feed-forward as well; it asks for the loss and the accuracy of every batch; its AdamW is not fused. It has no bf16: on
CPU it runs fp32, on a GPU its own fp16 where bf16 is asked for, and the result says so.
"""

import os
import random
from pathlib import Path
from typing import Any

from protocol import (
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

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # with more GPUs in sight JoeyNMT would use them all

with packages():
    import joeynmt  # noqa: F401 - says which package is lacking, where the next line would name one of its modules
    import sentencepiece  # noqa: F401 - protocol.encode needs it
    import torch
    from joeynmt.config import parse_global_args
    from joeynmt.prediction import prepare
    from joeynmt.training import TrainManager

NEVER = 10**9


def write_data(spec: Spec, pairs: Pairs) -> None:
    """train.src, train.trg, a development set of one pair, which JoeyNMT asks for and never reads, and vocab.txt."""
    work = Path(spec.work)
    for side, name in enumerate(("src", "trg")):
        lines = [as_words(pair[side]) + "\n" for pair in pairs]
        (work / f"train.{name}").write_text("".join(lines), encoding="utf-8")
        (work / f"dev.{name}").write_text(lines[0], encoding="utf-8")
    (work / "vocab.txt").write_text("\n".join(words(spec)) + "\n", encoding="utf-8")


def mean_tokens(pairs: Pairs, batch_size: int, seed: int) -> float:
    """Target tokens with </s> that a batch has on average, cut as JoeyNMT's TokenBatchSampler cuts them."""
    order = random.Random(seed).sample(pairs, len(pairs))
    batches, sentences, longest = 0, 0, 0
    for source, target in order:
        sentences += 1
        longest = max(longest, len(source) + 1, len(target) + 1)
        if longest * sentences >= batch_size:
            batches, sentences, longest = batches + 1, 0, 0
    return sum(len(target) + 1 for _, target in order) / (batches + bool(sentences))


def configuration(spec: Spec, batch_size: int) -> dict[str, Any]:
    """What a configs/*.yaml of JoeyNMT would say."""
    side = {"voc_file": f"{spec.work}/vocab.txt", "level": "word", "tokenizer_type": "none"}
    layers = {
        "type": "transformer",
        "num_heads": spec.heads,
        "embeddings": {"embedding_dim": spec.hidden_size, "scale": True, "dropout": spec.dropout},
        "hidden_size": spec.hidden_size,
        "ff_size": spec.feed_forward_size,
        "dropout": spec.dropout,
        "layer_norm": "pre",
    }
    ids = {"unk": 0, "pad": 1, "bos": 2, "eos": 3}  # JoeyNMT wants them in this order
    tokens = dict(zip(("bos", "pad", "eos", "unk"), SPECIALS, strict=True))
    return {
        "name": "peer",
        "model_dir": f"{spec.work}/model",
        "use_cuda": spec.device == "cuda",
        "fp16": spec.device == "cuda" and spec.precision == "bf16",
        "random_seed": spec.seed,
        "data": {
            "train": f"{spec.work}/train",
            "dev": f"{spec.work}/dev",
            "dataset_type": "plain",
            "src": {"lang": "src", **side},
            "trg": {"lang": "trg", **side},
            "special_symbols": {f"{name}_id": number for name, number in ids.items()}
            | {f"{name}_token": token for name, token in tokens.items()},
        },
        "testing": {},
        "training": {
            "optimizer": "adamw",
            "learning_rate": spec.learning_rate,
            "learning_rate_min": 0.0,
            "scheduling": "exponential",  # it needs one of its schedules: with a factor of 1 the rate stays
            "decrease_factor": 1.0,
            "clip_grad_norm": 1.0,
            "normalization": "tokens",
            "batch_type": "token",
            "batch_size": batch_size,
            "epochs": NEVER,
            "updates": NEVER,
            "logging_freq": NEVER,
            "validation_freq": NEVER,
            "keep_best_ckpts": 0,
        },
        "model": {
            "initializer": "xavier_uniform",
            "embed_initializer": "xavier_uniform",
            "tied_embeddings": True,
            "tied_softmax": True,
            "encoder": {**layers, "num_layers": spec.encoder_layers},
            "decoder": {**layers, "num_layers": spec.decoder_layers},
        },
    }


class Manager(TrainManager):
    """JoeyNMT's loop, with the meter beside each of its steps."""

    meter: Meter

    def _train_step(self, batch: Any) -> tuple[float, int]:
        loss, correct = super()._train_step(batch)
        slots = batch.src.numel() + batch.trg.numel()
        self.meter.batch(int(batch.src_length.sum()), batch.ntokens, slots, loss * batch.ntokens)
        return loss, correct

    def stepped(self, *_: Any) -> None:
        self.stats.is_max_update = self.meter.update()


def main() -> None:
    spec = read_spec()
    torch.set_num_threads(spec.threads)
    torch.manual_seed(spec.seed)
    pairs = encode(spec)
    write_data(spec, pairs)
    batch_size = batch_size_for(spec.tokens_per_step, lambda size: mean_tokens(pairs, size, spec.seed))
    config = configuration(spec, batch_size)
    Path(config["model_dir"]).mkdir(exist_ok=True)
    args = parse_global_args(config, rank=0, mode="train")
    model, train_data, dev_data, _ = prepare(args, rank=0, mode="train")
    manager = Manager(
        rank=0,
        model=model,
        model_dir=args.model_dir,
        device=args.device,
        n_gpu=args.n_gpu,
        num_workers=args.num_workers,
        autocast=args.autocast,
        seed=args.seed,
        train_args=args.train,
        dev_args=args.test,
    )
    manager.meter = Meter(spec, torch)
    manager.optimizer.register_step_post_hook(manager.stepped)
    manager.train_and_validate(train_data=train_data, valid_data=dev_data)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    precision = "fp16" if args.autocast["enabled"] else "fp32"
    result = {**manager.meter.result(precision, parameters), "batch_size": batch_size}
    write_result(spec, ["torch", "joeynmt", "sentencepiece"], result)


if __name__ == "__main__":
    main()
