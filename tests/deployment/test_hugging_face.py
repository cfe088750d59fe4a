"""An exported folder is the trained model: in plain transformers, in a process that cannot import bmscale."""

import ast
import sys
from pathlib import Path
from typing import Any

import pytest

from bmscale import model
from bmscale.data.documents import toy_documents
from bmscale.data.toy import toy_pairs
from bmscale.deployment.gate import alike
from bmscale.deployment.hugging_face import PlainTransformers, code_files, make, standing_alone
from bmscale.deployment.trained import open_trained
from bmscale.errors import BadInput, BmscaleError

SCALARS = {"embedding_scale": 1.7, "attention_scale": 0.8, "residual_scale": 0.6, "logit_scale": 1.3}
MUP = {**SCALARS, "parametrization": "mup", "base_hidden_size": 8, "base_layers": 1, "base_head_dim": 2}
PAIRS = list(toy_pairs("valid", 12))
TEXTS = [("", text[:200]) for text in toy_documents("valid", 10)]

CASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "gemma": ("translation", "gemma", "T5GemmaForConditionalGeneration", {"rope_theta": 5e5}),
    "gemma-scalars": ("translation", "gemma", "T5GemmaForConditionalGeneration",
                      {**SCALARS, "scale_embeddings": False, "num_key_value_heads": 2, "head_dim": 12,
                       "num_encoder_layers": 1, "spiece": "bpe"}),
    "gemma-untied": ("translation", "gemma", "T5GemmaForConditionalGeneration",
                     {**SCALARS, "tie_word_embeddings": False}),
    "vanilla": ("translation", "vanilla", "M2M100ForConditionalGeneration", {}),
    "vanilla-scalars": ("translation", "vanilla", "M2M100ForConditionalGeneration",
                        {**SCALARS, "scale_embeddings": False, "feed_forward": "gelu", "num_decoder_layers": 1}),
    "modern": ("translation", "modern", "EncoderDecoderForConditionalGeneration",
               {**SCALARS, "qk_norm": True, "num_key_value_heads": 1}),
    "llama": ("language_model", "llama", "LlamaForCausalLM", SCALARS),
    "llama-untied": ("language_model", "llama", "LlamaForCausalLM",
                     {**SCALARS, "tie_word_embeddings": False, "bias": True, "spiece": "lossless-bpe"}),
    "qwen3": ("language_model", "qwen3", "Qwen3ForCausalLM", {**SCALARS, "num_key_value_heads": 2}),
    "language-model": ("language_model", "llama", "DecoderOnlyForCausalLM", {"feed_forward": "geglu"}),
    "eurobert": ("masked_lm", "eurobert", "EuroBertForMaskedLM", SCALARS),
    "classifier": ("classification", "eurobert", "EuroBertForSequenceClassification", SCALARS),
    "classifier-first": ("classification", "eurobert", "EuroBertForSequenceClassification",
                         {**SCALARS, "classifier_pooling": "first"}),
    "classifier-of-layer-norm": ("classification", "eurobert", "EncoderOnlyForSequenceClassification",
                                 {"classifier_pooling": "first", "norm": "layer_norm"}),
    "gemma-mup": ("translation", "gemma", "T5GemmaForConditionalGeneration", {**MUP, "num_encoder_layers": 3}),
    "modern-mup": ("translation", "modern", "EncoderDecoderForConditionalGeneration", {**MUP, "qk_norm": True}),
    "llama-mup": ("language_model", "llama", "LlamaForCausalLM", {**MUP, "tie_word_embeddings": False}),
    "classifier-mup": ("classification", "eurobert", "EuroBertForSequenceClassification", MUP),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """One process for all folders, which are its questions' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        with PlainTransformers(tmp_path_factory.mktemp("none")) as opened:
            yield opened


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_the_same_in_plain_transformers(case, make_model, plain, tmp_path):
    task, preset, architecture, options = CASES[case]
    model = make_model(task, preset, **options)
    target = tmp_path / "exported"
    made = make()
    made.check(model)
    made.write(model, target)
    assert made.describe(target)["architecture"] == architecture
    assert not list(target.glob("*.bin"))

    trained = open_trained(model)
    plain.folder = target
    pairs = PAIRS if task == "translation" else TEXTS
    expected, found = trained.log_probabilities(pairs), plain.log_probabilities(pairs)
    assert [len(row) for row in found] == [len(row) for row in expected]
    largest = max(abs(a - b) for one, two in zip(expected, found, strict=True) for a, b in zip(one, two, strict=True))
    assert largest < 2e-5
    lines = [source if task == "translation" else target for source, target in pairs]
    assert same(plain.greedy(lines), trained.greedy(lines))
    if task == "translation":
        assert same(plain.translate(lines), trained.translate(lines))


def test_tags_of_bpe_take_their_tokenizer_along(make_model):
    """The ids of `<2de>` would be others in a BPE tokenizer of transformers, which has no merges for it."""
    model = make_model("translation", "gemma", spiece="bpe-tags")
    assert make().layout_of(model) is None
    with pytest.raises(BadInput, match=r"no place in layout t5gemma: the tokenizer must have no tags .* such as <2de>"):
        make("t5gemma").check(model)
    assert make("t5gemma").layout_of(make_model("translation", "gemma", spiece="bpe")) is not None


def same(one: list[str], two: list[str]) -> bool:
    return all(map(alike, one, two)) and len(one) == len(two)


def test_code_that_travels_imports_torch_and_transformers_alone(tmp_path):
    found = set()
    for module in ("encoder_decoder", "decoder_only", "encoder_only"):
        names = code_files(("config", "tokenization", module))
        assert {"attention", "layers", "norms", "config"} <= set(names)
        for name in names:
            source = standing_alone((Path(model.__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    found.add(str(node.module).split(".")[0])
                elif isinstance(node, ast.ImportFrom):
                    assert node.module is None or node.module in names
    assert found - set(sys.stdlib_module_names) == {"torch", "transformers", "huggingface_hub"}
    with pytest.raises(ValueError, match=r"bmscale/model/folder\.py cannot stand alone"):
        code_files(("folder",))


def test_a_folder_that_needs_bmscale_is_found_out(make_model, plain):
    plain.folder = make_model("translation", "modern").path
    with pytest.raises(BmscaleError, match="plain transformers cannot use it"):
        plain.greedy(["a"])
