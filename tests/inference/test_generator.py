"""A prompt and a seed give one text, alone and in company, drawn as the model's probabilities say."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from bmscale.data.framing import document_ids
from bmscale.data.tokenizer import BOS, EOS, PAD, UNK, TokenizerConfig, train_tokenizer
from bmscale.deployment.formats import make_format
from bmscale.errors import BadInput
from bmscale.inference import ctranslate2_language_model
from bmscale.inference.generator import Generator
from bmscale.inference.sampling import DrawTokens, SamplingOptions
from bmscale.model.folder import open_model_folder, write_model_folder
from bmscale.model.tasks import TASKS

TEXTS = [
    "the old fisherman rowed across the quiet lake before sunrise.",
    "nobody knew where the letters came from, or why.",
    "she counted seventeen boats near the broken bridge.",
    "my neighbour keeps bees, hens and one stubborn goat.",
    "der Bäcker verkauft über Ostern süße Brötchen.",
]
PROMPTS = [
    "the old",
    "",
    "she counted seventeen boats near the broken bridge, and",
    "nobody",
    "東京 🐝",
    "the old",
    "my",
]
POSITIONS = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model that decides clearly, so that rounding cannot choose a token, and writes bytes of characters."""
    place = tmp_path_factory.mktemp("generator")
    spiece = place / "spiece.model"
    spiece.write_bytes(train_tokenizer(TEXTS, TokenizerConfig(type="bpe", vocabulary_size=340), ["<mask>"]))
    task = TASKS["language_model"]
    shape: dict[str, Any] = {"vocab_size": 340, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(24)
    model = task.model(task.configure(**shape, max_position_embeddings=POSITIONS, tie_word_embeddings=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
        model.lm_head.weight[5:261] *= 0.5  # bytes now and then
    write_model_folder(place / "m", model.config, model.named_parameters(), spiece, {})
    return place / "m"


@pytest.fixture(scope="module")
def exported(folder) -> Path:
    target: Path = folder.parent / "exported"
    make_format("ctranslate2", {}).write(open_model_folder(folder, task=None), target)
    return target


@pytest.fixture(scope="module")
def generator(folder) -> Generator:
    return Generator.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def ctranslate2(exported) -> Generator:
    return Generator.from_pretrained(exported, device="cpu")


GREEDY = SamplingOptions(temperature=0, max_new_tokens=30)
CHOICES = [
    GREEDY,
    SamplingOptions(temperature=0, max_new_tokens=30, repetition_penalty=1.5),
    SamplingOptions(max_new_tokens=30, top_p=1),
    SamplingOptions(max_new_tokens=30, temperature=0.8, top_k=20, top_p=0.9, repetition_penalty=1.2, seed=5),
]


@pytest.mark.parametrize("options", CHOICES)
def test_a_text_is_the_same_alone_and_in_company(generator, options):
    together = generator.generate(PROMPTS, options)
    assert together == [generator.generate([prompt], options)[0] for prompt in PROMPTS]
    assert together == generator.generate(PROMPTS[::-1], options, max_batch_tokens=100)[::-1]
    assert together[0] == together[5]
    assert len({texts[0].text for texts in together}) == len(PROMPTS) - 1
    assert len({texts[0].tokens for texts in together}) > 1
    assert {texts[0].ended for texts in together} == {True, False}


@pytest.mark.parametrize("options", CHOICES)
def test_both_backends_write_the_same(generator, ctranslate2, options):
    """Also in company, in parts, and where the model has no more positions."""
    assert (generator.backend.name, ctranslate2.backend.name) == ("torch", "ctranslate2")
    assert ctranslate2.positions == POSITIONS
    prompts = [*PROMPTS, "x" * 110]
    expected = generator.generate(prompts, options)
    assert ctranslate2.generate(prompts, options) == expected
    assert [ctranslate2.generate([prompt], options)[0] for prompt in prompts] == expected
    for prompt, (found,) in zip(prompts, expected, strict=True):
        parts: list[str] = []
        assert ctranslate2.stream(prompt, options, out=parts.append) == found
        assert parts[0] == prompt
        assert "".join(parts[1:]) == found.text


@pytest.mark.parametrize("options", CHOICES)
def test_two_workers_share_the_rows_and_write_the_same(exported, ctranslate2, options, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    two: Any = Generator.from_pretrained(exported, device="cpu")
    engine, calls = two.backend.engine, []
    assert engine.num_generators == 2

    def generate_batch(rows, **given):
        calls.append(sorted(map(len, rows)))
        return engine.generate_batch(rows, **given)

    monkeypatch.setattr(two.backend, "engine", SimpleNamespace(num_generators=2, generate_batch=generate_batch))
    prompts = [*PROMPTS, *(prompt[:4] for prompt in PROMPTS)]
    assert two.generate(prompts, options) == ctranslate2.generate(prompts, options)
    assert 1 < max(map(len, calls)) <= len(prompts) / 2
    assert any(lengths[0] != lengths[-1] for lengths in calls)  # logits begin elsewhere in each


def test_both_backends_draw_the_same_samples(generator, ctranslate2, monkeypatch):
    options = SamplingOptions(max_new_tokens=40, temperature=0.2, seed=3)
    expected = generator.generate(PROMPTS[:3], options, samples=4)
    calls: list[int] = []
    drafts = ctranslate2.backend._drafts

    def counted(batch, most, never):
        calls.append(most)
        return drafts(batch, most, never)

    monkeypatch.setattr(ctranslate2.backend, "_drafts", counted)
    assert ctranslate2.generate(PROMPTS[:3], options, samples=4) == expected
    assert max(calls) > 4  # drafts grow where they are right
    monkeypatch.setattr(ctranslate2_language_model, "_MOST_LOGITS", 1)
    del calls[:]
    assert ctranslate2.generate(PROMPTS[:3], options, samples=4) == expected
    assert set(calls) == {1}


def test_greedy_search_takes_the_most_probable_token(generator):
    for prompt, (found,) in zip(PROMPTS, generator.generate(PROMPTS, GREEDY), strict=True):
        ids = document_ids(generator.tokenizer, prompt)[:-1]
        written: list[int] = []
        while len(written) < 30:
            with torch.no_grad():
                logits = generator.model(torch.tensor([[*ids, *written]])).logits[0, -1]
            logits[[BOS, PAD, UNK, 4]] = -torch.inf
            if (token := int(logits.argmax())) == EOS:
                break
            written.append(token)
        assert (found.tokens, found.ended) == (len(written), len(written) < 30)
        assert generator.tokenizer.decode([*ids, *written]) == generator.tokenizer.decode(ids) + found.text


def test_seed_and_sample_choose_the_text(generator):
    options = SamplingOptions(max_new_tokens=20)
    found = generator.generate(PROMPTS[:2], options, samples=3)
    assert found == generator.generate(PROMPTS[:2], options, samples=3)
    assert [texts[:2] for texts in found] == generator.generate(PROMPTS[:2], options, samples=2)
    assert len({one.text for texts in found for one in texts}) == 6
    other = generator.generate(PROMPTS[:2], SamplingOptions(max_new_tokens=20, seed=1))
    assert other[0][0] != found[0][0]
    shorter = generator.generate(PROMPTS[:2], SamplingOptions(max_new_tokens=7))
    assert all(
        long[0].text.startswith(short[0].text.rstrip("\ufffd")) for long, short in zip(found, shorter, strict=True)
    )


def test_tokens_are_drawn_as_the_probabilities_say():
    scores = torch.tensor([0.1, -1.0, -torch.inf, 2.0, 0.7]).repeat(20_000, 1)
    rows = [[BOS, row] for row in range(20_000)]
    (draw,) = SamplingOptions(top_p=1.0).processors(rows, [0] * 20_000, 3, [2])[-1:]
    ids: Any = torch.tensor(rows)
    shares = []
    for _ in range(3):
        token = draw(ids, scores).argmax(-1)
        shares.append(torch.bincount(token, minlength=5) / 20_000)
        ids = torch.cat([ids, token[:, None]], dim=1)
    for share in shares:  # four standard deviations of a share are at most 0.0142
        torch.testing.assert_close(share, scores[0].softmax(-1), atol=0.0142, rtol=0)
    assert not torch.equal(shares[0], shares[1])


def test_the_ends_of_the_unit_interval_draw_tokens_that_are_possible():
    scores: Any = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]] * 2)
    draw = DrawTokens(torch.tensor([[0.0], [1 - 2**-53]], dtype=torch.float64), 1)
    ids: Any = torch.zeros(2, 1, dtype=torch.long)
    assert draw(ids, scores).argmax(-1).tolist() == [1, 2]


def test_options_narrow_the_choice(generator):
    greedy = generator.generate(PROMPTS, GREEDY)
    narrow: list[dict[str, Any]] = [{"top_k": 1, "top_p": 1}, {"top_p": 0.001}, {"temperature": 0.01, "top_p": 1}]
    for options in narrow:
        assert generator.generate(PROMPTS, SamplingOptions(max_new_tokens=30, **options)) == greedy
    penalised = generator.generate(PROMPTS, SamplingOptions(temperature=0, max_new_tokens=30, repetition_penalty=10))
    assert penalised != greedy


def test_special_tokens_are_never_written(generator, monkeypatch):
    """Even where the model holds nothing else for probable."""
    weight = generator.model.lm_head.weight
    before = weight.detach().clone()
    forward = generator.model.lm_head.forward

    def lifted(*arguments):
        logits = forward(*arguments).clone()
        logits[..., [BOS, PAD, UNK, 4]] += 1000
        return logits

    monkeypatch.setattr(generator.model.lm_head, "forward", lifted)
    found = generator.generate(PROMPTS, GREEDY)
    monkeypatch.undo()
    assert found == generator.generate(PROMPTS, GREEDY)
    assert torch.equal(before, weight)


@pytest.mark.parametrize("options", CHOICES)
def test_parts_of_a_stream_join_to_the_text_without_half_characters(generator, options):
    for prompt, (found,) in zip(PROMPTS, generator.generate(PROMPTS, options), strict=True):
        parts: list[str] = []
        assert generator.stream(prompt, options, out=parts.append) == found
        assert parts[0] == prompt
        assert "".join(parts[1:]) == found.text
        assert len(parts) > found.tokens / 5


def test_a_character_of_several_bytes_comes_in_one_part(generator, monkeypatch):
    """A model that spells 'a🐝é' in bytes, and one that ends in the middle of the bee."""
    pieces = generator.tokenizer.pieces(range(340))
    spelt = [pieces.index(f"<0x{byte:02X}>") for byte in "a🐝é".encode()]
    for ids, expected in ((spelt, ["x", "a", "🐝", "é"]), (spelt[:3], ["x", "a", "\ufffd\ufffd"])):
        chosen = itertools.chain(ids, itertools.repeat(EOS))

        def choose(*arguments, chosen=chosen, **options):
            return torch.full((1, 1, 340), -100.0).index_fill(-1, torch.tensor([next(chosen)]), 100.0)

        monkeypatch.setattr(generator.model.lm_head, "forward", choose)
        parts: list[str] = []
        found = generator.stream("x", GREEDY, out=parts.append)
        assert parts == expected
        assert found.text == "".join(expected[1:])
    monkeypatch.undo()


def test_the_positions_of_the_model_bound_prompt_and_text(generator, monkeypatch):
    """A model that never ends writes up to its last position, whatever is beside the prompt."""
    forward = generator.model.lm_head.forward
    monkeypatch.setattr(
        generator.model.lm_head,
        "forward",
        lambda *given: forward(*given).index_fill(-1, torch.tensor([EOS]), -1e4),
    )
    options = SamplingOptions(temperature=0, max_new_tokens=5000)
    for prompt, (found,) in zip(PROMPTS, generator.generate(PROMPTS, options), strict=True):
        assert found.tokens == POSITIONS - len(document_ids(generator.tokenizer, prompt)) + 1
        assert not found.ended
    fitting = next(
        n for n in range(POSITIONS, 0, -1) if len(document_ids(generator.tokenizer, "x" * n)) - 1 < POSITIONS
    )
    assert generator.generate(["x" * fitting], options)[0][0].tokens == 1
    too_long = len(document_ids(generator.tokenizer, "x" * (fitting + 1))) - 1
    message = rf"prompt 2: must have at most {POSITIONS - 1} tokens, .* got {too_long}"
    with pytest.raises(BadInput, match=message):
        generator.generate(["x", "x" * (fitting + 1)])
    parts: list[str] = []
    with pytest.raises(BadInput, match="prompt 1: must have at most"):
        generator.stream("x" * 1000, out=parts.append)
    assert parts == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: must be a whole number from 1 to 1,000,000; got 0"),
        ({"temperature": -1}, "temperature: must be 0 or a number from 0.01 to 100; got -1"),
        ({"temperature": 0.001}, "temperature: must be 0 or a number from 0.01 to 100; got 0.001"),
        ({"temperature": float("nan")}, "temperature: must be 0 or a number from 0.01 to 100; got nan"),
        ({"top_k": -1}, "top_k: must be a whole number from 0 to 1,000,000; got -1"),
        ({"top_p": 0}, "top_p: must be a number from 0.001 to 1; got 0"),
        ({"top_p": 1.1}, "top_p: must be a number from 0.001 to 1; got 1.1"),
        ({"repetition_penalty": 0}, "repetition_penalty: must be a number from 0.1 to 10; got 0"),
        ({"seed": -1}, "seed: must be a whole number from 0 to"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(BadInput, match=message):
        SamplingOptions(**options)


def test_samples_out_of_range_are_named(generator):
    with pytest.raises(BadInput, match="samples: must be a whole number from 1 to 10,000; got 0"):
        generator.generate(["x"], samples=0)
    with pytest.raises(BadInput, match="samples: must be 1 with temperature 0"):
        generator.generate(["x"], GREEDY, samples=2)
    with pytest.raises(BadInput, match="prompts: must be a list of texts"):
        generator.generate("x")
    assert generator.generate([]) == []


def test_lines_come_in_chunks(generator):
    options = SamplingOptions(max_new_tokens=5)
    read: list[str] = []

    def prompts():
        for prompt in PROMPTS:
            read.append(prompt)
            yield prompt

    stream = generator.stream_lines(prompts(), options, samples=2, chunk_prompts=3)
    first = next(stream)
    assert read == PROMPTS[:3]
    assert [first, *stream] == list(zip(PROMPTS, generator.generate(PROMPTS, options, samples=2), strict=True))


def test_the_tokenizer_of_the_folder_agrees(generator, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert [tokenizer(text).input_ids for text in TEXTS] == [
        document_ids(generator.tokenizer, text)[:-1] for text in TEXTS
    ]


def test_the_command(folder, generator, run):
    options = SamplingOptions(max_new_tokens=12, temperature=0.9, seed=4)
    given = ("--max-new-tokens", 12, "--temperature", 0.9, "--seed", 4, "--device", "cpu")
    expected = [
        {"prompt": prompt, "text": found.text}
        for prompt, texts in zip(PROMPTS, generator.generate(PROMPTS, options, samples=2), strict=True)
        for found in texts
    ]
    lines = "".join(f"{prompt}\n" for prompt in PROMPTS)
    several = run("generate", folder, *given, "--samples", 2, stdin=lines).out
    assert [json.loads(line) for line in several.split("\n")[:-1]] == expected
    plain = "".join(f"{rule}the old{found['text']}\n" for rule, found in zip(("", "---\n"), expected, strict=False))
    assert run("generate", folder, *given, "--samples", 2, "--prompt", "the old").out == plain
    assert run("generate", folder, *given, "--samples", 2, stdin="the old\n").out == plain
    assert json.loads(run("generate", folder, *given, "--json", "--prompt", "the old").out) == expected[0]
    assert run("generate", folder, *given, "--prompt", "").out == expected[2]["text"] + "\n"
    assert run("generate", folder, *given).out == ""


def test_the_command_opens_exported_folders(folder, exported, run):
    given = ("--prompt", "the old", "--max-new-tokens", 12, "--temperature", 0.9, "--top-k", 50, "--seed", 4)
    expected = run("generate", folder, *given, "--device", "cpu").out
    assert len(expected) > len("the old\n")
    assert run("generate", exported, *given).out == expected
    assert run("generate", exported, *given, "--backend", "ctranslate2", "--compute-type", "float32").out == expected
    refused = run("generate", folder, *given, "--backend", "ctranslate2", code=2)
    assert "is no CTranslate2 folder; make one with bmscale export" in refused.err
    assert "which backend torch cannot open" in run("generate", exported, *given, "--backend", "torch", code=2).err
    assert "compute type: must be" in run("generate", folder, *given, "--compute-type", "int8", code=2).err
    assert "`bmscale generate` uses it" in run("translate", exported, code=2).err


def test_mistakes_on_the_command_line_are_named(folder, run):
    refused = run("generate", folder, "--prompt", "the old", "--top-p", 7, code=2)
    assert "top_p: must be a number from 0.001 to 1; got 7.0" in refused.err
    refused = run("generate", folder, "--prompt", "x" * 1000, "--device", "cpu", code=2)
    assert "prompt 1: must have at most" in refused.err
    assert refused.out == ""
    assert "`bmscale generate` uses it" in run("predict", folder, code=2).err
