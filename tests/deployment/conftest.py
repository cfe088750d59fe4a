"""Small models whose every weight is away from where it begins, so that nothing is an identity by chance."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bmscale.data.documents import toy_documents
from bmscale.data.tokenizer import EOS, LosslessTokenizerConfig, Tokenizer, TokenizerConfig, train_tokenizer
from bmscale.data.toy import toy_pairs
from bmscale.model.folder import ModelFolder, open_model_folder, write_model_folder
from bmscale.model.init import initialise
from bmscale.model.tasks import TASKS

PAIRS = list(toy_pairs("train", 400))
DOCUMENTS = list(toy_documents("train", 60))

Make = Callable[..., ModelFolder]


@pytest.fixture(scope="session")
def spieces(tmp_path_factory) -> dict[str, Path]:
    """SentencePiece models: joint of translation (unigram, BPE), and lossless ones of documents."""
    folder = tmp_path_factory.mktemp("spieces")
    sentences = [side for pair in PAIRS for side in pair]
    made = {
        "unigram": train_tokenizer(sentences, TokenizerConfig(vocabulary_size=200), ["<2de>"]),
        "bpe": train_tokenizer(sentences, TokenizerConfig(type="bpe", vocabulary_size=520)),
        "bpe-tags": train_tokenizer(sentences, TokenizerConfig(type="bpe", vocabulary_size=520), ["<2de>"]),
        "lossless": train_tokenizer(DOCUMENTS, LosslessTokenizerConfig(vocabulary_size=420), lossless=True),
        "lossless-bpe": train_tokenizer(
            DOCUMENTS, LosslessTokenizerConfig(type="bpe", vocabulary_size=420), lossless=True
        ),
    }
    for name, model in made.items():
        (folder / f"{name}.model").write_bytes(model)
    return {name: folder / f"{name}.model" for name in made}


@pytest.fixture(scope="session")
def make_model(spieces, tmp_path_factory) -> Make:
    """`make_model("translation", "gemma", spiece="unigram", num_key_value_heads=1)`: a checked folder."""

    def make(task_name: str, preset: str, *, spiece: str | None = None, **options: Any) -> ModelFolder:
        task = TASKS[task_name]
        spiece = spiece or ("unigram" if task_name == "translation" else "lossless")
        tokenizer = Tokenizer.load(spieces[spiece])
        depth = ("num_encoder_layers", "num_decoder_layers") if task_name == "translation" else ("num_hidden_layers",)
        shape: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
        shape["vocab_size"] = tokenizer.vocabulary_size
        if task_name == "classification":
            shape.update(id2label={0: "en", 1: "de", 2: "fr"}, label2id={"en": 0, "de": 1, "fr": 2})
        if task_name in ("masked_lm", "classification"):
            shape["mask_token_id"] = 4
        config = task.configure(**{**task.presets[preset], **shape, **dict.fromkeys(depth, 2), **options})
        model: Any = task.model(config)
        initialise(model, 0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                spread = 0.3 if "norm" in name else 0.15
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=spread)
                if name.endswith(("embed.tokens.weight", "lm_head.weight")):  # it writes no bytes and no <unk>
                    pieces = tokenizer.pieces(range(tokenizer.vocabulary_size))
                    parameter[[i for i, piece in enumerate(pieces) if piece[0] == "<" and i != EOS]] = 0
        folder = tmp_path_factory.mktemp("models") / f"{task_name}-{preset}"
        provenance = {"source_language": "en", "target_language": "de", "data_hash": "abc", "max_source_tokens": 64}
        write_model_folder(folder, config, model.named_parameters(), spieces[spiece], provenance, beam_size=3)
        return open_model_folder(folder, None)

    return make
