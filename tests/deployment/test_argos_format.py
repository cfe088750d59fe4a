"""An .argosmodel holds what Argos Translate installs, and translates with nothing but ctranslate2 and sentencepiece."""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import ctranslate2
import pytest
import sentencepiece

from bmscale.data.toy import toy_pairs
from bmscale.deployment.argos_format import make
from bmscale.deployment.gate import Examples, compare
from bmscale.errors import BadInput
from bmscale.inference.translator import Translator
from bmscale.model.folder import load_model, open_model_folder, write_model_folder

PAIRS = list(toy_pairs("test", 8))
LINES = [source for source, _ in PAIRS]


@pytest.fixture(scope="module")
def package(make_model, tmp_path_factory):
    """A model and its archive."""
    model = make_model("translation", "modern")
    archive = tmp_path_factory.mktemp("argos") / "translate-en_de.argosmodel"
    made = make()
    made.check(model)
    made.write(model, archive)
    return model, made, archive


def test_the_archive_is_one_folder_with_what_argos_reads(package, tmp_path):
    _, made, archive = package
    with zipfile.ZipFile(archive) as opened:
        names = set(opened.namelist())
        metadata = json.loads(opened.read("en_de/metadata.json"))
    assert names == {
        "en_de/metadata.json",
        "en_de/README.md",
        "en_de/sentencepiece.model",
        "en_de/model/model.bin",
        "en_de/model/config.json",
        "en_de/model/shared_vocabulary.json",
        "en_de/model/provenance.json",
    }
    languages = {key: metadata[key] for key in ("from_code", "from_name", "to_code", "to_name")}
    assert languages == {"from_code": "en", "from_name": "English", "to_code": "de", "to_name": "German"}
    assert metadata["argos_version"] == made.describe(archive)["argos_version"]
    assert [file.name for file in archive.parent.iterdir()] == [archive.name]


def test_the_packaged_model_translates_by_itself_as_argos_calls_it(package, tmp_path):
    model, _, archive = package
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "en_de/sentencepiece.model"))
    engine = ctranslate2.Translator(str(tmp_path / "en_de/model"), device="cpu")
    results = engine.translate_batch(
        [pieces.encode(line, out_type=str) for line in LINES], beam_size=1, min_decoding_length=0, replace_unknowns=True
    )
    translator = Translator.from_pretrained(model.path, device="cpu")
    expected = translator.translate(LINES, beam_size=1)
    for result, text in zip(results, expected, strict=True):
        found = pieces.decode(result.hypotheses[0])
        assert len(text) > 5
        assert found.startswith(text[:60])


def test_the_gate_passes(package):
    model, made, archive = package
    found = compare(model, made, archive, Examples("toy", "", PAIRS))
    assert found["reasons"] == []
    assert "install_from_path" in made.usage(model)
    assert made.library == "argostranslate"


def test_what_argos_has_no_place_for_is_refused(make_model, spieces, package, tmp_path):
    model, made, archive = package
    with pytest.raises(BadInput, match="exists already"):
        made.write(model, archive)
    with pytest.raises(BadInput, match="argos is for translation; got a model of"):
        made.check(make_model("language_model", "llama"))
    for name, provenance, message in (
        (
            "many",
            {"source_language": "en", "target_language": "de", "language_tags": ["de"]},
            "finds its language in a",
        ),
        (
            "regions",
            {"source_language": "en_GB", "target_language": "en-US"},
            "two languages .* got en for both",
        ),
        ("paths", {"source_language": "en", "target_language": "../../x"}, "codes of two or three letters"),
        ("none", {"source_language": "en"}, "target_language must say a language code"),
    ):
        weights = load_model(model)
        write_model_folder(tmp_path / name, weights.config, weights.named_parameters(), spieces["unigram"], provenance)
        with pytest.raises(BadInput, match=message):
            made.check(open_model_folder(tmp_path / name))


# The sentence splitter of Argos downloads a model: it is replaced by one that takes a line for a sentence.
ARGOS = """
import json, sys
import argostranslate.package, argostranslate.sbd, argostranslate.translate
class Lines:
    def __init__(self, package): pass
    def split_sentences(self, text): return [text]
argostranslate.translate.MiniSBDSentencizer = Lines
argostranslate.package.install_from_path(sys.argv[1])
lines = json.loads(sys.argv[2])
print(json.dumps([argostranslate.translate.translate(line, "en", "de") for line in lines]))
"""


def argos_interpreter() -> str | None:
    """A Python that has argostranslate: that of BMSCALE_ARGOS_PYTHON, or this one."""
    if given := os.environ.get("BMSCALE_ARGOS_PYTHON"):
        return given
    return sys.executable if importlib.util.find_spec("argostranslate") else None


@pytest.mark.skipif(
    argos_interpreter() is None,
    reason="argostranslate is not installed; name a Python that has it in BMSCALE_ARGOS_PYTHON",
)
def test_argos_translate_installs_the_package_and_translates(package, tmp_path: Path):
    _, _, archive = package
    home = {**os.environ, "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data"), "ARGOS_DEVICE_TYPE": "cpu"}
    home |= {"XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [str(argos_interpreter()), "-c", ARGOS, str(archive), json.dumps(LINES)]
    result = subprocess.run(command, env=home, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "en_de/sentencepiece.model"))
    # As its settings.py and translate.py call the engine: in the fastest type that the machine has, line by line.
    engine = ctranslate2.Translator(str(tmp_path / "en_de/model"), device="cpu", compute_type="auto")
    options = {"beam_size": 4, "length_penalty": 0.2, "replace_unknowns": True, "return_scores": True}
    expected = []
    for line in LINES:
        (result,) = engine.translate_batch([pieces.encode(line, out_type=str)], **options)
        expected.append(pieces.decode(result.hypotheses[0]).replace("_", " "))
    assert found == expected
    assert len(set(found)) > 4
