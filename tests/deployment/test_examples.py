"""Which texts an export is compared on."""

import pytest

from bmscale.data.corpus import CorpusConfig
from bmscale.data.documents import DocumentCorpusConfig, LabelledCorpusConfig
from bmscale.deployment.examples import PROBED, read_examples
from bmscale.errors import BadInput


def test_pairs_are_normalised_and_short_enough(make_model, tmp_path):
    model = make_model("translation", "modern")
    rows = [
        "We  sing.\tWir singen.",
        "\tleer",
        f"{'long ' * 80}\tlang",
        "Who sings?\tWer singt?",
        "She sings.\tSie singt.",
    ]
    (tmp_path / "t.tsv").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    found = read_examples(model, CorpusConfig(path=str(tmp_path / "t.tsv")), None, 2)
    assert found.pairs == found.test == [("We sing.", "Wir singen."), ("Who sings?", "Wer singt?")]
    assert (found.name, found.left_out, found.target_language) == ("t", 2, "de")
    model.provenance["language_tags"] = ["de", "fr"]
    assert read_examples(model, CorpusConfig(path=str(tmp_path / "t.tsv")), None, 1).pairs[0][0] == "<2de> We sing."


def test_of_many_pairs_all_are_scored_and_some_probed(make_model):
    found = read_examples(make_model("translation", "modern"), CorpusConfig(toy="valid", pairs=150), None, 120)
    assert (len(found.pairs), len(found.test)) == (PROBED, 120)


def test_texts_are_cut_to_what_the_model_has_positions_for(make_model):
    model = make_model("language_model", "llama", max_position_embeddings=200)
    found = read_examples(model, DocumentCorpusConfig(toy="valid", documents=30), None, 10)
    assert len(found.pairs) == 10
    assert {source for source, _ in found.pairs} == {""}
    assert max(len(text) for _, text in found.pairs) == 50
    assert found.test == []
    classifier = make_model("classification", "eurobert")
    assert len(read_examples(classifier, LabelledCorpusConfig(toy="valid", documents=9), None, 100).pairs) == 9


def test_without_a_run_a_file_is_needed(make_model, tmp_path):
    with pytest.raises(BadInput, match="give --test FILE"):
        read_examples(make_model("translation", "modern"), None, None, 5)
    (tmp_path / "t.tsv").write_text(f"{'long ' * 80}\tlang\n", encoding="utf-8")
    with pytest.raises(BadInput, match="has no text that the model reads in one piece"):
        read_examples(make_model("translation", "modern"), CorpusConfig(path=str(tmp_path / "t.tsv")), None, 5)
