"""A CTranslate2 folder says what the model says, with every option; what CTranslate2 cannot hold is refused."""

import json
import re

import ctranslate2
import pytest
import sentencepiece
from safetensors.torch import load_file, save_file

from bmscale.data.documents import toy_documents
from bmscale.data.tokenizer import BOS, PAD
from bmscale.data.toy import toy_pairs
from bmscale.deployment.ctranslate2_candidate import LanguageModelCandidate
from bmscale.deployment.ctranslate2_format import make
from bmscale.deployment.formats import make_format
from bmscale.deployment.gate import Examples, compare
from bmscale.deployment.trained import open_trained
from bmscale.errors import BadInput
from bmscale.inference.translator import Translator

PAIRS = list(toy_pairs("test", 12))
TEXTS = [("", text[:120]) for text in toy_documents("test", 6)]
SCALARS = {"embedding_scale": 3.0, "attention_scale": 0.5, "residual_scale": 0.7, "logit_scale": 1.5}
MUP = {**SCALARS, "parametrization": "mup", "base_hidden_size": 8, "base_layers": 1, "base_head_dim": 2}

TRANSLATION = {
    "modern": ("modern", {}),
    "gemma": ("gemma", {}),
    "vanilla": ("vanilla", {}),
    "modern, scaled, one key head": ("modern", {**SCALARS, "num_key_value_heads": 1, "num_decoder_layers": 1}),
    "modern, shared keys, wide heads": ("modern", {"num_key_value_heads": 2, "head_dim": 10, "rope_theta": 5e5}),
    "modern, QK-norm, scaled": ("modern", {**SCALARS, "qk_norm": True, "num_encoder_layers": 1}),
    "gemma, scaled, untied": ("gemma", {**SCALARS, "tie_word_embeddings": False}),
    "modern, mup": ("modern", {**MUP, "num_encoder_layers": 3}),
    "vanilla, mup": ("vanilla", MUP),
    "gemma of LayerNorm": ("gemma", {"norm": "layer_norm", "norm_eps": 1e-5}),
    "vanilla, scaled, shared keys": ("vanilla", {**SCALARS, "num_key_value_heads": 2}),
    "GELU with biases, epsilon": ("modern", {"feed_forward": "gelu", "bias": True, "norm_eps": 1e-2}),
}
DECODERS = {
    "llama": ("llama", {}),
    "qwen3, scaled": ("qwen3", SCALARS),
    "llama, mup": ("llama", MUP),
    "llama, sandwich, one key head": ("llama", {"sandwich_norm": True, "num_key_value_heads": 1, "bias": True}),
    "llama of sinusoids": ("llama", {"positions": "sinusoid", "norm": "layer_norm", "feed_forward": "relu"}),
}


def exported(make_model, tmp_path, task, preset, options, compute_type="float32", **more):
    """A model, its format and its folder."""
    model = make_model(task, preset, **options, **more)
    made = make(compute_type=compute_type)
    made.check(model)
    made.write(model, tmp_path / "c")
    return model, made, tmp_path / "c"


@pytest.mark.parametrize("name", TRANSLATION)
def test_translation_is_exact(make_model, tmp_path, name):
    model, made, folder = exported(make_model, tmp_path, "translation", *TRANSLATION[name])
    found = compare(model, made, folder, Examples("toy", "", PAIRS))
    assert found["reasons"] == []
    assert found["log_probabilities"]["max_difference"] < 2e-5
    assert found["log_probabilities"]["tokens"] > 100


def test_byte_pieces_are_exact(make_model, tmp_path):
    model, made, folder = exported(make_model, tmp_path, "translation", "modern", {}, spiece="bpe")
    pairs = [("日本語 🙂 ☂", "Ünïcödé ☃ 東京"), *PAIRS]
    found = compare(model, made, folder, Examples("toy", "", pairs))
    assert found["reasons"] == []


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_are_exact(make_model, tmp_path, name):
    preset, options = DECODERS[name]
    model, made, folder = exported(make_model, tmp_path, "language_model", preset, options)
    found = compare(model, made, folder, Examples("toy", "", TEXTS))
    assert found["reasons"] == []
    assert found["log_probabilities"]["max_difference"] < 2e-5


def test_decoders_do_not_write_what_is_no_text(make_model, tmp_path):
    """One of two barred pieces is always the most probable one; both sides then take another."""
    model = make_model("language_model", "llama", tie_word_embeddings=False)
    (file,) = model.weights
    state = load_file(file)
    head = state["lm_head.weight"]
    row = head[head.norm(dim=1).argmax()].clone()
    head[BOS], head[PAD] = 20 * row, -20 * row
    save_file(state, file, metadata={"format": "pt"})
    made = make()
    made.write(model, tmp_path / "c")
    candidate = made.open(tmp_path / "c")
    assert isinstance(candidate, LanguageModelCandidate)
    lines = [text for _, text in TEXTS]
    assert not {BOS, PAD} & {token for ids in candidate.greedy_ids(lines) for token in ids}
    assert compare(model, made, tmp_path / "c", Examples("toy", "", TEXTS))["reasons"] == []
    assert 'never = [["<s>"], ["<pad>"], ["<unk>"], ["<mask>"]]' in made.usage(model)


def test_an_empty_line_leaves_the_others_alone(make_model, tmp_path):
    """Beside a row of <s> alone CTranslate2 4.8 would give the prompts of the others back as text."""
    _, made, folder = exported(make_model, tmp_path, "language_model", "llama", {})
    candidate = made.open(folder)
    lines = ["", *(text[:end] for end, (_, text) in enumerate(TEXTS, start=1)), TEXTS[0][1]]
    assert candidate.greedy(lines) == [candidate.greedy([line])[0] for line in lines]


def test_the_gate_tries_the_engine_that_is_used(make_model, tmp_path, monkeypatch):
    """Workers of one thread, each with its share."""
    model, made, folder = exported(make_model, tmp_path, "language_model", "llama", {})
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    candidate = made.open(folder)
    assert isinstance(candidate, LanguageModelCandidate)
    assert candidate._model.engine.num_generators == 2
    assert compare(model, made, folder, Examples("toy", "", TEXTS))["reasons"] == []


def test_a_search_for_several_hypotheses_is_the_trained_models(make_model, tmp_path):
    """The two searches differ in their rules of ending, so that a few may differ; greedy search may not. References
    are the trained model's own translations: a search of another kind would score far below 100."""
    model, made, folder = exported(make_model, tmp_path, "translation", "modern", {})
    sources = [source for source, _ in PAIRS]
    references = open_trained(model).translate(sources)
    found = compare(model, made, folder, Examples("toy", "", PAIRS, list(zip(sources, references, strict=True))))
    assert found["reasons"] == []
    trained, exported_too = found["test"]["metrics"]["bleu"]["systems"]
    assert trained["score"] == pytest.approx(100)
    assert exported_too["score"] > 80
    assert found["test"]["search"]["beam_size"] == 3


@pytest.mark.parametrize("compute_type", ["int8", "int8_float32", "float16", "bfloat16"])
def test_other_numbers_are_smaller_and_near(make_model, tmp_path, compute_type):
    model, made, folder = exported(make_model, tmp_path, "translation", "modern", {}, compute_type)
    assert made.tolerance is None
    # Of its own translations a model is sure, and one of other weights is not.
    sources = [source for source, _ in PAIRS]
    pairs = list(zip(sources, open_trained(model).greedy(sources), strict=True))
    found = compare(model, made, folder, Examples("toy", "", pairs))
    assert found["passed"]
    assert 1e-4 < found["log_probabilities"]["max_difference"] < 1.0
    assert abs(found["log_probabilities"]["mean_trained"] - found["log_probabilities"]["mean_exported"]) < 0.05
    made.write(make_model("translation", "modern", num_decoder_layers=1), tmp_path / "other")
    other = compare(model, made, tmp_path / "other", Examples("toy", "", pairs))
    assert re.match(r"the mean log-probability of a token is .* nats lower", other["reasons"][0])
    whole = sum(file.stat().st_size for file in model.weights)
    assert (folder / "model.bin").stat().st_size < 0.7 * whole


def test_the_folder_serves_without_bmscale(make_model, tmp_path):
    """As the model card says: raw pieces in, nothing added."""
    model, made, folder = exported(make_model, tmp_path, "translation", "gemma", {})
    lines = [source for source, _ in PAIRS]
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    plain = ctranslate2.Translator(str(folder), device="cpu")
    options = {"beam_size": 1, "min_decoding_length": 0, "max_decoding_length": 40}
    results = plain.translate_batch([pieces.encode(line, out_type=str) for line in lines], **options)
    expected = Translator.from_pretrained(model.path, device="cpu").translate(lines, beam_size=1)
    texts = [pieces.decode(result.hypotheses[0]) for result in results]
    agreeing = [text.startswith(other[:40]) for text, other in zip(texts, expected, strict=True)]
    assert all(agreeing)
    assert "spiece.model" in made.usage(model)
    assert made.describe(folder)["compute_type"] == "float32"


def test_a_folder_of_the_home_is_found(make_model, tmp_path, monkeypatch):
    exported(make_model, tmp_path, "translation", "modern", {})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Translator.from_pretrained("~/c").backend.name == "ctranslate2"


def test_what_ctranslate2_does_not_hold_is_refused(make_model, tmp_path):
    for task, preset in (("masked_lm", "eurobert"), ("classification", "eurobert")):
        with pytest.raises(BadInput, match=r"ctranslate2 is for models that write text.*export it to hf"):
            make().check(make_model(task, preset))
    with pytest.raises(BadInput, match=r"compute type: must be one of float32, int8.*got int4"):
        make_format("ctranslate2", {"compute_type": "int4"})
    with pytest.raises(BadInput, match="exists already"):
        make().write(make_model("translation", "modern"), tmp_path)


DAMAGES = {
    "model.bin": (b"\x80\x04\x95not a model", "its first bytes are not those"),
    "config.json": (b"{", "must be JSON"),
    "provenance.json": (b"{}", "the key ctranslate2 must say"),
    "spiece.model": (b"", "not a SentencePiece model"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused(make_model, tmp_path, name):
    _, _, folder = exported(make_model, tmp_path, "translation", "modern", {})
    content, message = DAMAGES[name]
    (folder / name).write_bytes(content)
    with pytest.raises(BadInput, match=message):
        Translator.from_pretrained(folder)
    (folder / name).unlink()
    if name != "model.bin":
        with pytest.raises(BadInput, match=f"{name}: missing"):
            Translator.from_pretrained(folder)


@pytest.mark.parametrize("name", ["model.bin", "shared_vocabulary.json"])
def test_changed_bytes_are_found_when_a_folder_is_opened(make_model, tmp_path, name):
    _, _, folder = exported(make_model, tmp_path, "translation", "modern", {})
    data = bytearray((folder / name).read_bytes())
    data[-40] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BadInput, match=f"{name}: damaged or changed: its SHA-256"):
        Translator.from_pretrained(folder)
    (folder / name).write_bytes(data[:-1])
    with pytest.raises(BadInput, match=f"{name}: damaged: must have {len(data):,} bytes; has {len(data) - 1:,}"):
        Translator.from_pretrained(folder)


def test_another_tokenizer_and_another_kind_of_model_are_refused(make_model, spieces, tmp_path):
    _, _, folder = exported(make_model, tmp_path, "translation", "modern", {})
    (folder / "spiece.model").write_bytes(spieces["bpe"].read_bytes())
    with pytest.raises(BadInput, match="is not the tokenizer that the model was trained with"):
        Translator.from_pretrained(folder)
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**record, "add_source_eos": False}))
    with pytest.raises(BadInput, match="add_source_eos must be true"):
        Translator.from_pretrained(folder)
    make().write(make_model("language_model", "llama"), tmp_path / "lm")
    with pytest.raises(BadInput, match="must be a TransformerSpec; got a TransformerDecoderSpec"):
        Translator.from_pretrained(tmp_path / "lm")
