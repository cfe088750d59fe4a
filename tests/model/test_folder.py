"""A model folder comes back as it was written, is never seen half written, and says which of its files is damaged."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig, pipeline

from bmscale.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from bmscale.errors import BadInput
from bmscale.model.config import EncoderDecoderConfig
from bmscale.model.folder import load_model, open_model_folder, write_model_folder
from bmscale.model.tasks import TASKS

TEXT = """the old fisherman rowed across the quiet lake before sunrise. nobody knew where the letters came from.
she counted seventeen boats near the broken bridge. my neighbour keeps bees, hens and one stubborn goat.
bring warm clothes, since the mountain huts are cold at night. we missed the train, so we walked home singing.
a narrow path leads through the forest to the mill. the baker sold his last loaf to a travelling doctor.
children were painting yellow fish on the garden wall. please answer every question in your own words.
the museum shows clocks, maps and forgotten machines. her brother repairs violins in a small workshop.
after the storm they found glass, rope and driftwood. der Bäcker verkauft über Ostern süße Brötchen.
the judge listened, made notes and said nothing at all. jeden Morgen hört man Vögel zwischen den Häusern."""
SENTENCES = [f"{sentence}." for sentence in TEXT.replace("\n", " ").rstrip(".").split(". ")]
PROVENANCE = {
    "source_language": "en",
    "target_language": "de",
    "data_hash": "0123abcd",
    "optimizer_step": 1200,
    "scores": {"bleu": {"name": "BLEU", "score": 21.5, "signature": "nrefs:1|case:mixed"}, "loss": 2.25},
}
ODD_TEXTS = [
    "the red dog said",
    "  two  spaces   and a tab\tand an end ",
    "",
    "Äpfel über naïve",
    "emoji 🙂👩‍👩‍👧 flag 🇩🇪",
    "literal </s> <pad> <unk> <s> in the middle</s>",
    "▁ underline ▁▁ of SentencePiece",
    "日本語 and Ελληνικά",
    bytes(range(1, 256)).decode("latin-1"),
    b"\xff\xfe broken \x80 bytes".decode("utf-8", "replace"),
    "½ ™ ﬁ combining e\u0301 nbsp\u00a0zero\u200bwidth",
]

SHAPE = {
    "hidden_size": 32,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def small_config(vocabulary_size: int, **options) -> EncoderDecoderConfig:
    return EncoderDecoderConfig(vocab_size=vocabulary_size, **{**SHAPE, **options})


def random_model(config):
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


def tokenizer_file(kind: Literal["unigram", "bpe"], folder: Path) -> Path:
    size = 120 if kind == "unigram" else 350
    path = folder / "tokenizer.model"
    path.write_bytes(train_tokenizer(SENTENCES, TokenizerConfig(type=kind, vocabulary_size=size)))
    return path


@pytest.fixture(scope="module")
def spiece(tmp_path_factory) -> Path:
    return tokenizer_file("unigram", tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def of_each_kind(request, tmp_path_factory) -> Path:
    """A model folder with a tokenizer of each kind; bpe spells unknown characters in bytes."""
    folder = tmp_path_factory.mktemp(request.param)
    spiece = tokenizer_file(request.param, folder)
    model = random_model(small_config(Tokenizer.load(spiece).vocabulary_size))
    write_model_folder(folder / "m", model.config, model.named_parameters(), spiece, {})
    return folder / "m"


@pytest.fixture(scope="module")
def model(spiece):
    return random_model(small_config(Tokenizer.load(spiece).vocabulary_size))


@pytest.fixture(scope="module")
def written(spiece, model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "best"
    write_model_folder(path, model.config, model.named_parameters(), spiece, PROVENANCE)
    return path


@pytest.fixture
def folder(written, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(written, tmp_path / "best"))


def same_weights(left, right) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_round_trip_gives_the_same_weights_and_logits(written, model):
    folder = open_model_folder(written)
    assert folder.provenance["data_hash"] == "0123abcd"
    assert folder.provenance["parameters"] == sum(p.numel() for p in model.parameters())
    loaded = load_model(folder)
    assert same_weights(loaded, model)
    assert not loaded.training
    batch = {"input_ids": torch.tensor([[5, 6, 7, 2]]), "decoder_input_ids": torch.tensor([[2, 8, 9]])}
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, rtol=0, atol=0)


def test_the_layout_is_the_contract(written):
    assert sorted(path.name for path in written.iterdir()) == [
        "README.md", "config.json", "generation_config.json", "model.safetensors", "provenance.json", "spiece.model",
        "tokenizer_config.json",
    ]  # fmt: skip
    with safe_open(written / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    generation = GenerationConfig.from_pretrained(written)
    assert (generation.num_beams, generation.length_penalty, generation.decoder_start_token_id) == (5, 1.0, 2)
    assert (generation.bos_token_id, generation.pad_token_id, generation.eos_token_id) == (0, 1, 2)
    assert json.loads((written / "config.json").read_text())["architectures"] == [
        "EncoderDecoderForConditionalGeneration"
    ]


def test_the_card_says_what_the_model_is_and_how_to_use_it(written):
    card = (written / "README.md").read_text()
    for text in ("en → de", "`0123abcd`", "1,200", "BLEU: 21.50 (`nrefs:1|case:mixed`)", "loss: 2.25",
                 "bmscale translate", "AutoModelForSeq2SeqLM.from_pretrained", 'language: ["en", "de"]'):  # fmt: skip
        assert text in card


@pytest.mark.parametrize("tied", [True, False])
def test_several_shards_and_tied_weights(spiece, tied, tmp_path):
    model = random_model(small_config(Tokenizer.load(spiece).vocabulary_size, tie_word_embeddings=tied))
    # As a state dictionary gives them: every tied weight under each of its names.
    names = list(model.state_dict())
    write_model_folder(tmp_path / "m", model.config, iter(model.state_dict().items()), spiece, {}, max_shard_bytes=9000)
    shards = sorted(tmp_path.glob("m/model-*-of-*.safetensors"))
    assert len(shards) > 2
    assert shards[-1].name == f"model-{len(shards):05}-of-{len(shards):05}.safetensors"
    stored = [name for shard in shards for name in load_file(shard)]
    assert len(stored) == len(set(stored))
    assert len(stored) == len(list(model.parameters()))
    assert (len(stored) < len(names)) == tied
    assert same_weights(load_model(tmp_path / "m"), model)
    assert same_weights(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "m"), model)


def test_any_name_of_a_tied_weight_will_do(spiece, model, tmp_path):
    state = dict(reversed(model.state_dict().items()))
    write_model_folder(tmp_path / "m", model.config, iter(state.items()), spiece, {})
    assert same_weights(load_model(tmp_path / "m"), model)


def test_a_tensor_is_copied_before_the_next_is_asked_for(spiece, model, tmp_path):
    def gathered():
        for name, parameter in model.named_parameters():
            buffer = parameter.detach().clone()
            yield name, buffer
            buffer.fill_(torch.nan)  # a gathered tensor is gone once its block is left

    write_model_folder(tmp_path / "m", model.config, gathered(), spiece, {})
    assert same_weights(load_model(tmp_path / "m"), model)


def test_weights_can_be_stored_and_loaded_in_another_dtype(spiece, model, tmp_path):
    write_model_folder(tmp_path / "m", model.config, model.named_parameters(), spiece, {}, dtype=torch.bfloat16)
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert {p.dtype for p in load_model(tmp_path / "m").parameters()} == {torch.float32}
    assert {p.dtype for p in load_model(tmp_path / "m", dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_wrong_tensors_leave_the_old_folder_alone(folder, spiece, model):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    tensors = list(model.named_parameters())
    name, tensor = tensors[-1]
    for wrong, message in (
        (tensors[:-1], "1 tensors of the model were not given"),
        ([*tensors, ("extra.weight", tensor)], "no such tensor"),
        ([*tensors[:-1], (name, torch.zeros(3, 3, 3))], f"tensor {name}"),
    ):
        with pytest.raises(ValueError, match=message):
            write_model_folder(folder, model.config, iter(wrong), spiece, {})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert os.listdir(folder.parent) == [folder.name]


def test_replacing_keeps_the_old_folder_whole_to_the_end(folder, spiece, model):
    left = folder / "model-00001-of-00002.safetensors"  # of a model that came in more files
    left.write_bytes(b"")
    (folder.parent / ".best.writing").mkdir()  # a write that was killed
    seen = []

    def tensors():
        for name, parameter in model.named_parameters():
            seen.append(open_model_folder(folder).provenance["data_hash"])
            yield name, parameter

    write_model_folder(folder, model.config, tensors(), spiece, {"data_hash": "new"})
    assert set(seen) == {"0123abcd"}
    assert open_model_folder(folder).provenance["data_hash"] == "new"
    assert not left.exists()
    assert os.listdir(folder.parent) == [folder.name]


def test_nothing_but_a_model_is_replaced(folder, spiece, model, tmp_path, monkeypatch):
    def write(path: str | Path) -> None:
        write_model_folder(path, model.config, model.named_parameters(), spiece, {})

    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.txt").write_text("x")
    (tmp_path / "gone").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path / "thesis")
    before = sorted(tmp_path.rglob("*"))
    for path in (".", "..", "/", tmp_path / "thesis", tmp_path / "thesis" / "a.txt", tmp_path / "gone"):
        with pytest.raises(BadInput, match="exists and is no model folder"):
            write(path)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "link").symlink_to(folder)  # a link to a model makes way; the model stays
    write(tmp_path / "link")
    write(tmp_path / "link")
    assert open_model_folder(folder).provenance["data_hash"] == "0123abcd"
    assert not (tmp_path / "link").is_symlink()
    assert not list(tmp_path.glob(".link*"))
    monkeypatch.chdir(folder)
    write(".")
    assert "data_hash" not in open_model_folder(folder).provenance


def test_a_full_disk_is_told_of_the_folder_that_is_written(spiece, model, tmp_path, monkeypatch):
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(source), None, str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_model_folder(tmp_path / "m", model.config, model.named_parameters(), spiece, {})
    assert (caught.value.errno, caught.value.filename) == (28, str(tmp_path / "m"))
    assert not list(tmp_path.glob("*m*"))


FILES = ["config.json", "generation_config.json", "tokenizer_config.json", "spiece.model", "provenance.json"]


@pytest.mark.parametrize("name", [*FILES, "model.safetensors"])
@pytest.mark.parametrize("damage", ["removed", "emptied", "cut", "garbled"])
def test_a_damaged_file_is_named(folder, name, damage):
    path = folder / name
    data = path.read_bytes()
    changed = {"emptied": b"", "cut": data[: len(data) * 2 // 3], "garbled": b"\xf7" * 64 + data[64:]}
    path.unlink() if damage == "removed" else path.write_bytes(changed[damage])
    with pytest.raises(BadInput, match=name.replace(".", r"\.")) as error:
        load_model(folder)
    assert "copy" in str(error.value) or "give" in str(error.value)


@pytest.mark.parametrize("change", ["removed", "cut", "index"])
def test_a_damaged_shard_is_named(spiece, model, tmp_path, change):
    folder = tmp_path / "m"
    write_model_folder(folder, model.config, model.named_parameters(), spiece, {}, max_shard_bytes=9000)
    shard = sorted(folder.glob("model-*"))[1]
    if change == "removed":
        shard.unlink()
    elif change == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    else:
        shard = folder / "model.safetensors.index.json"
        shard.write_text('{"weight_map": {}}')
    with pytest.raises(BadInput, match=shard.name):
        open_model_folder(folder)


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_files_of_two_models_are_told_apart(folder, model):
    vocabulary = model.config.vocab_size
    edit(folder / "config.json", vocab_size=vocabulary + 8)
    with pytest.raises(BadInput, match=rf"spiece\.model: has {vocabulary} pieces .* vocab_size {vocabulary + 8}"):
        open_model_folder(folder)
    edit(folder / "config.json", vocab_size=vocabulary, num_encoder_layers=2)
    with pytest.raises(BadInput, match=r"model\.safetensors: has no tensor .*encoder.*1"):
        open_model_folder(folder)
    edit(folder / "config.json", num_encoder_layers=1, intermediate_size=128)
    with pytest.raises(BadInput, match=r"model\.safetensors: tensor .* must be \(\d*128"):
        open_model_folder(folder)
    edit(folder / "config.json", intermediate_size=64)
    open_model_folder(folder)
    edit(folder / "config.json", model_type="bert")
    with pytest.raises(
        BadInput, match=r"must be that of an encoder-decoder; got a language model .*'bert'.*bmscale generate"
    ):
        open_model_folder(folder)
    edit(folder / "config.json", model_type="nonsense")
    with pytest.raises(BadInput, match=r"config\.json: cannot be used \(model_type 'nonsense'\)"):
        open_model_folder(folder)


ABSURD = [
    ("num_encoder_layers", 10**30),
    ("num_decoder_layers", 1_000_000_000),
    ("num_encoder_layers", 1e30),
    ("num_labels", 10**9),
    ("hidden_size", 10**30),
    ("hidden_size", 1e30),
    ("intermediate_size", 10**18),
    ("head_dim", 10**12),
    ("vocab_size", 10**10),
    ("num_attention_heads", 10**9),
    ("hidden_size", True),
    ("hidden_size", [32]),
    ("rope_theta", "x"),
]


@pytest.mark.parametrize(("key", "value"), ABSURD)
def test_absurd_numbers_are_refused_at_once(folder, key, value):
    edit(folder / "config.json", **{key: value})
    with pytest.raises(BadInput, match=r"config\.json"):
        open_model_folder(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_source_tokens", "x"),
        ("max_source_tokens", 1),
        ("max_source_tokens", True),
        ("target_language", 5),
        ("source_language", ["en"]),
        ("tokenizer_sha256", 7),
        ("step", "many"),
    ],
)
def test_odd_provenance_is_refused(folder, key, value):
    edit(folder / "provenance.json", **{key: value})
    with pytest.raises(BadInput, match=rf"provenance\.json: {key} must be"):
        open_model_folder(folder)
    edit(folder / "provenance.json", **{key: None})
    open_model_folder(folder)


def test_figures_that_json_does_not_have_are_null(spiece, model, tmp_path):
    provenance = {"validation": {"loss": float("nan"), "best": [1.5, float("inf")]}, "scores": {"bleu": float("nan")}}
    write_model_folder(tmp_path / "m", model.config, model.named_parameters(), spiece, provenance)
    read = open_model_folder(tmp_path / "m").provenance
    assert read["validation"] == {"loss": None, "best": [1.5, None]}
    assert read["scores"] == {"bleu": None}
    assert "bleu" not in (tmp_path / "m" / "README.md").read_text()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_files_have_the_permissions_of_the_umask(spiece, model, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_model_folder(tmp_path / "m", model.config, model.named_parameters(), spiece, {}, max_shard_bytes=9000)
    finally:
        os.umask(before)
    assert {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "m").iterdir()} == {
        file.name: mode for file in (tmp_path / "m").iterdir()
    }


@pytest.mark.parametrize("name", ["config.json", "provenance.json", "spiece.model", "model.safetensors"])
def test_a_file_that_cannot_be_read_is_named(folder, name, monkeypatch):
    def refusing(method):
        def call(path, *arguments, **options):
            if path.name == name:
                raise PermissionError(13, "Permission denied", str(path))
            return method(path, *arguments, **options)

        return call

    for method in ("read_bytes", "open"):
        monkeypatch.setattr(Path, method, refusing(getattr(Path, method)))
    with pytest.raises(BadInput, match=rf"{name}: cannot be read: Permission denied"):
        open_model_folder(folder)


def test_an_exchanged_tokenizer_of_the_same_size_is_found(folder, spiece):
    config = TokenizerConfig(vocabulary_size=Tokenizer.load(spiece).vocabulary_size)
    other = train_tokenizer([text[::-1] for text in SENTENCES], config)
    (folder / "spiece.model").write_bytes(other)
    with pytest.raises(BadInput, match=r"spiece\.model: is not the tokenizer that the model was trained with"):
        open_model_folder(folder)


def test_a_pickle_is_not_loaded(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"pytorch_model\.bin is a pickle, which is never loaded"):
        open_model_folder(folder)


def test_a_missing_folder_names_the_nearest(folder):
    with pytest.raises(BadInput, match=r"no such model folder; did you mean .*best\?"):
        open_model_folder(folder.parent / "bset")
    with pytest.raises(BadInput, match=r"exists, but has no 'runs'"):
        open_model_folder(folder.parent / "runs" / "x" / "model" / "best")
    with pytest.raises(BadInput, match=r"got a file; give its folder"):
        open_model_folder(folder / "model.safetensors")
    with pytest.raises(BadInput, match="no such home folder"):
        open_model_folder("~nobody-of-this-name/best")
    folder.rename(folder.parent / ".best.replaced")
    with pytest.raises(BadInput, match=r"its writer was killed: the model is whole in .*\.best\.replaced"):
        open_model_folder(folder)


def test_a_run_folder_leads_to_its_model(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.yaml").write_text("name: x\n")
    with pytest.raises(BadInput, match="has not written a model yet"):
        open_model_folder(run)
    shutil.copytree(folder, run / "model" / "best")
    for given in (run, run / "model"):
        with pytest.raises(BadInput, match=r"is a run folder, not a model folder; give .*run/model/best"):
            open_model_folder(given)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_auto_tokenizer_gives_the_ids_of_sentencepiece(of_each_kind, text):
    ours, theirs = Tokenizer.load(of_each_kind / "spiece.model"), AutoTokenizer.from_pretrained(of_each_kind)
    assert theirs(text).input_ids == ours.encode(text)
    assert theirs(text_target=text).input_ids == ours.encode(text)
    ids = [i for i in ours.encode(text) if i != 3]  # transformers counts <unk> among the special tokens
    assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)


def test_auto_tokenizer_pads_and_keeps_the_special_ids(of_each_kind):
    tokenizer = AutoTokenizer.from_pretrained(of_each_kind)
    ids = (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert ids == (0, 1, 2, 3)
    assert len(tokenizer) == json.loads((of_each_kind / "config.json").read_text())["vocab_size"]
    batch = tokenizer(["the dog", "the red dog said words"], padding=True, return_tensors="pt")
    assert batch.input_ids[0, -1] == 1
    assert batch.attention_mask[0].sum() == len(Tokenizer.load(of_each_kind / "spiece.model").encode("the dog"))
    assert tokenizer.decode([5, 2]).endswith("</s>")


def test_a_tokenizer_saved_by_transformers_opens_again(of_each_kind, tmp_path):
    AutoTokenizer.from_pretrained(of_each_kind).save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, config=AutoModelForSeq2SeqLM.from_pretrained(of_each_kind).config)
    assert again("über </s>").input_ids == Tokenizer.load(of_each_kind / "spiece.model").encode("über </s>")


def test_the_card_s_python_works_in_a_fresh_process_without_network(written):
    card = (written / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace('"A sentence."', '"the red dog"')
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=written, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['")
    assert "max_length" not in done.stderr  # with which transformers warns of a max_new_tokens beside it


OTHERS = {
    "language_model": ["<s>", "the", "left"],
    "masked_lm": ["<s>", "</s>", "right"],
    "classification": ["<s>", "</s>", "right"],
}
"""The first and last piece of a text that its tokenizer gives ("the" ends in itself), and the side of padding."""


@pytest.fixture(scope="module")
def masking_spiece(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train_tokenizer(SENTENCES, TokenizerConfig(vocabulary_size=120), ["<mask>"]))
    return path


@pytest.fixture(params=OTHERS)
def other(request, masking_spiece, tmp_path):
    """A model of another task, and its folder."""
    task = TASKS[request.param]
    shape = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    options: dict[str, Any] = {} if task.name == "language_model" else {"mask_token_id": 4}
    if task.name == "classification":
        options |= {"id2label": {0: "net", 1: "libs", 2: "doc"}, "label2id": {"net": 0, "libs": 1, "doc": 2}}
    torch.manual_seed(0)
    model: Any = task.model(task.configure(**shape, **options)).eval()
    write_model_folder(tmp_path / "m", model.config, model.named_parameters(), masking_spiece, PROVENANCE)
    return task, model, tmp_path / "m"


def test_a_model_of_another_task_comes_back(other):
    task, model, path = other
    folder = open_model_folder(path, task.name)
    assert folder.task is task
    assert open_model_folder(path, None).task is task
    assert (path / "generation_config.json").exists() == task.writes
    loaded = load_model(folder)
    assert type(loaded) is type(model)
    assert same_weights(loaded, model)
    again = getattr(transformers, task.auto_class).from_pretrained(path)
    assert type(again) is type(model)
    assert same_weights(again, model)
    if task.name == "classification":
        assert folder.config.id2label == {0: "net", 1: "libs", 2: "doc"}
    with pytest.raises(BadInput, match=rf"must be that of an encoder-decoder; got {task.noun}"):
        open_model_folder(path)


def test_several_shards_of_another_task_and_any_name_of_a_tied_weight(other, masking_spiece, tmp_path):
    task, model, _ = other
    state = iter(model.state_dict().items())
    write_model_folder(tmp_path / "s", model.config, state, masking_spiece, {}, max_shard_bytes=9000)
    assert len(open_model_folder(tmp_path / "s", task.name).weights) > 2
    assert same_weights(load_model(tmp_path / "s"), model)


def test_the_tokenizer_frames_a_text_as_its_task_needs(other):
    task, _, path = other
    first, last, side = OTHERS[task.name]
    tokenizer = AutoTokenizer.from_pretrained(path)
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("the").input_ids)
    assert (pieces[0], pieces[-1].lstrip("▁"), tokenizer.padding_side) == (first, last, side)
    assert (tokenizer.mask_token_id == 4) == (task.name == "masked_lm")
    processor = Tokenizer.load(path / "spiece.model")
    for text in ODD_TEXTS:
        ids = tokenizer(text).input_ids
        assert ids[1 : len(ids) - (last == "</s>")] == processor.encode(text)[:-1]


def test_the_pipeline_of_its_task_opens_the_folder(other):
    task, model, path = other
    use = pipeline(task.pipeline, model=str(path), device="cpu")
    if task.name == "masked_lm":
        found = use("the <mask> dog", top_k=3)
        ids = use.tokenizer("the<mask> dog", return_tensors="pt").input_ids
        best = model(input_ids=ids).logits[ids == 4].softmax(-1).topk(3)
        assert [one["token"] for one in found] == best.indices[0].tolist()
        assert [one["score"] for one in found] == pytest.approx(best.values[0].tolist(), abs=1e-6)
        assert [one["sequence"].startswith("the") for one in found] == [True] * 3
    elif task.name == "classification":
        ids = torch.tensor([[0, *Tokenizer.load(path / "spiece.model").encode("the red dog")]])
        figures = model(input_ids=ids).logits[0].softmax(-1).detach()
        (found,) = use("the red dog")
        assert found["label"] == ("net", "libs", "doc")[int(figures.argmax())]
        assert found["score"] == pytest.approx(float(figures.max()), abs=1e-6)
    else:
        ids = torch.tensor([[0, *Tokenizer.load(path / "spiece.model").encode("the red")[:-1]]])
        written = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False, eos_token_id=2, pad_token_id=1)
        expected = use.tokenizer.decode(written[0], skip_special_tokens=True)
        (found,) = use("the red", max_new_tokens=5, do_sample=False)
        assert found["generated_text"] == expected


def test_damage_of_a_model_of_another_task_is_named(other):
    task, _, path = other
    if task.writes:
        (path / "generation_config.json").unlink()
        with pytest.raises(BadInput, match=r"generation_config\.json: missing"):
            open_model_folder(path, task.name)
        return
    classes = {"masked_lm": "EncoderOnlyForSequenceClassification", "classification": "EncoderOnlyForMaskedLM"}
    edit(path / "config.json", architectures=[classes[task.name]])
    with pytest.raises(BadInput, match=r"model\.safetensors: (has no tensor|tensor .* has no place)"):
        open_model_folder(path, None)
    edit(path / "config.json", num_hidden_layers=10**9)
    with pytest.raises(BadInput, match=r"config\.json: num_hidden_layers 1000000000 does not fit"):
        open_model_folder(path, None)


def test_more_labels_than_tensors_are_no_damage(masking_spiece, tmp_path):
    shape = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = TASKS["classification"].configure(**shape, num_labels=100)
    model: Any = TASKS["classification"].model(config)
    write_model_folder(tmp_path / "m", config, model.named_parameters(), masking_spiece, {})
    edit(tmp_path / "m" / "config.json", num_labels=100)
    assert open_model_folder(tmp_path / "m", "classification").config.num_labels == 100


def test_a_masked_model_needs_a_mask(masking_spiece, tmp_path):
    config = TASKS["masked_lm"].configure(vocab_size=120, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    model: Any = TASKS["masked_lm"].model(config)
    with pytest.raises(ValueError, match="mask_token_id of a masked language model must be"):
        write_model_folder(tmp_path / "m", config, model.named_parameters(), masking_spiece, {})
    assert not (tmp_path / "m").exists()


def test_the_card_of_another_task_works_in_a_fresh_process_without_network(other):
    task, _, path = other
    card = (path / "README.md").read_text()
    assert f"pipeline_tag: {task.pipeline}" in card
    assert (f"bmscale {task.command} ." in card) == (task.command is not None)
    assert "translat" not in card
    code = card.split("```python\n")[1].split("```")[0].replace('"A sentence."', '"the red dog"')
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['")
    assert "max_length" not in done.stderr  # with which transformers warns of a max_new_tokens beside it
