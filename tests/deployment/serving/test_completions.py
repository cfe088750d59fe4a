"""Language models as OpenAI's client speaks to them."""

import contextlib
import threading
from typing import Any

import httpx
import openai
import pytest

from bmscale.deployment.serving.batching import BatchLimits
from bmscale.deployment.serving.completions import CompletionRequest, cut_at
from bmscale.deployment.serving.limits import Keys
from bmscale.deployment.serving.streams import _write
from bmscale.inference.generator import Generator
from bmscale.inference.sampling import SamplingOptions
from tests.deployment.serving.conftest import served_folders, wait_for

PROMPTS = ["the old", "she counted seventeen", "", "東京 🐝"]


@pytest.fixture(scope="module")
def running(writer):
    with served_folders(writer) as running:
        yield running


@pytest.fixture(scope="module")
def api(running):
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as api:
        yield api


@pytest.fixture(scope="module")
def generator(writer) -> Generator:
    return Generator.from_pretrained(writer, device="cpu")


def options(**more: Any) -> SamplingOptions:
    return SamplingOptions(**{"max_new_tokens": 12, "top_p": 1.0, **more})


def test_models(api, running):
    assert [model.id for model in api.models.list()] == ["writer"]
    assert httpx.post(f"{running.url}/translate", json={}).status_code == 404  # there is nothing that translates


def test_greedy(api, generator):
    found = api.completions.create(model="writer", prompt=PROMPTS, max_tokens=12, temperature=0)
    expected = [texts[0] for texts in generator.generate(PROMPTS, options(temperature=0))]
    assert [choice.text for choice in found.choices] == [text.text for text in expected]
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    reasons = ["stop" if text.ended else "length" for text in expected]
    assert [choice.finish_reason for choice in found.choices] == reasons
    assert found.usage.completion_tokens == sum(text.tokens for text in expected)
    assert found.usage.prompt_tokens >= 4  # <s> of each


def test_a_seed_gives_one_text(api, generator):
    asked: dict[str, Any] = {"model": "writer", "prompt": "the old", "max_tokens": 12, "n": 3, "seed": 7}
    found = [[choice.text for choice in api.completions.create(**asked).choices] for _ in range(2)]
    (expected,) = generator.generate(["the old"], options(seed=7), samples=3)
    assert found == [[text.text for text in expected]] * 2
    assert len(set(found[0])) == 3


def test_without_a_seed_texts_differ(api):
    asked: dict[str, Any] = {"model": "writer", "prompt": ["the old", "nobody", "the old"], "max_tokens": 12, "n": 2}
    texts = [choice.text for choice in api.completions.create(**asked).choices]
    assert len(texts) == 6
    assert len({texts[0], texts[1], texts[4], texts[5]}) == 4


def test_many_at_once_and_each_gets_its_own(api, generator):
    expected = {prompt: generator.generate([prompt], options(temperature=0))[0][0].text for prompt in PROMPTS}
    wrong: list[str] = []

    def ask(prompt: str) -> None:
        found = api.completions.create(model="writer", prompt=prompt, max_tokens=12, temperature=0)
        if found.choices[0].text != expected[prompt]:
            wrong.append(prompt)

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in PROMPTS * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_streamed_is_the_same_text(api, generator):
    asked: dict[str, Any] = {"model": "writer", "prompt": "nobody", "max_tokens": 30, "seed": 3}
    events = list(api.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    expected = generator.generate(["nobody"], options(max_new_tokens=30, seed=3))[0][0]
    texts = [event.choices[0].text for event in events if event.choices]
    assert "".join(texts) == expected.text
    assert len(texts) > 3
    assert [event.choices[0].finish_reason for event in events[:-2]] == [None] * (len(events) - 2)
    assert events[-2].choices[0].finish_reason == ("stop" if expected.ended else "length")
    assert events[-1].usage.completion_tokens == expected.tokens


def test_stops_and_echo(api, generator):
    whole = generator.generate(["nobody"], options(max_new_tokens=30, seed=3))[0][0].text
    stop = whole[8:11]
    asked: dict[str, Any] = {"model": "writer", "prompt": "nobody", "max_tokens": 30, "seed": 3, "stop": [stop, "∞∞"]}
    found = api.completions.create(**asked, echo=True).choices[0]
    assert (found.text, found.finish_reason) == ("nobody" + whole[: whole.index(stop)], "stop")
    events = list(api.completions.create(**asked, echo=True, stream=True))
    assert "".join(event.choices[0].text for event in events) == found.text
    assert events[-1].choices[0].finish_reason == "stop"


def test_who_goes_away_ends_the_text(running, api):
    for _ in range(10):  # more than may be written at once
        stream = api.completions.create(model="writer", prompt="the", max_tokens=100, seed=1, stream=True)
        next(iter(stream))
        stream.close()


def test_streams_count_in_the_queue(writer):
    """What they can still write takes room in the queue; beyond it, and beyond four at once, 429 says when to ask."""
    with served_folders(writer, batches=BatchLimits(max_queue_slots=370)) as running:
        may_write = threading.Event()
        (model,) = running.service.models.language_models.values()
        model.generator.model.register_forward_pre_hook(lambda *_: may_write.wait(20) and None)
        with httpx.Client(base_url=f"{running.url}/v1", timeout=20) as client, contextlib.ExitStack() as stack:

            def begin(max_tokens: int, stream: bool = True) -> httpx.Response:
                fields = {"model": "writer", "prompt": "the", "max_tokens": max_tokens, "stream": stream}
                return stack.enter_context(client.stream("POST", "/completions", json=fields))

            streams = [begin(4_000), begin(4_000), begin(4_000)]  # the model has 120 positions
            for refused in (begin(100), begin(100, stream=False)):
                assert (refused.status_code, int(refused.headers["retry-after"]) >= 1) == (429, True)
            streams.append(begin(1))
            assert begin(1).status_code == 429
            assert [stream.status_code for stream in streams] == [200] * 4
            for stream in streams[:2]:
                stream.close()  # also before a first event: the room is given back
            wait_for(lambda: model.batcher.beside_slots < 150)
            assert begin(100).status_code == 200
            may_write.set()
            assert streams[3].read().endswith(b"data: [DONE]\n\n")


def test_nothing_takes_more_slots_than_the_model_has_positions(running):
    (model,) = running.service.models.language_models.values()
    for new_tokens, slots in ((4_000, 120), (12, 17)):
        of_prompt = model.units("the old", 5, options(max_new_tokens=new_tokens), 2, seeded=False)
        seeded = model.units("the old", 5, options(max_new_tokens=new_tokens), 2, seeded=True)
        assert [[unit.slots for unit in units] for units in (of_prompt, seeded)] == [[slots] * 2, [2 * slots]]


def test_a_stream_that_shows_nothing_ends_too(running, generator, monkeypatch):
    """Its client leaves while tokens come that add no whole character."""
    (model,) = running.service.models.language_models.values()
    fields = {"model": "writer", "prompt": "the", "max_tokens": 100, "temperature": 0, "stream": True}
    request = CompletionRequest.of(fields, running.service.models, running.service.limits)
    monkeypatch.setattr(model.generator, "_text", lambda *_: "")
    unwanted, steps = threading.Event(), [0]
    parts: list[Any] = []

    def step(*_: Any) -> None:
        steps[0] += 1
        if steps[0] == 3:
            unwanted.set()

    hook = model.generator.model.register_forward_pre_hook(step)
    _write(request, parts.append, unwanted)
    hook.remove()
    assert steps == [3]
    assert len(parts) == 1


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"model": "other"}, 404, "there are: writer"),
        ({"model": None}, 400, "model: must be given"),
        ({"prompt": [1, 2]}, 400, "ids of tokens"),
        ({"prompt": "a " * 500}, 400, "at most 119 tokens"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": "5"}, 400, "max_tokens"),
        ({"temperature": -1}, 400, "temperature"),
        ({"top_p": 2}, 400, "top_p"),
        ({"n": 17}, 400, "1 to 16"),
        ({"stream": True, "n": 2}, 400, "of one prompt"),
        ({"stream": "yes"}, 400, "true or false"),
        ({"logprobs": 3}, 400, "logprobs is not supported"),
        ({"stop": ["a"] * 5}, 400, "1 to 4"),
        ({"seed": -1}, 400, "seed"),
    ],
)
def test_mistakes(running, changes, status, says):
    answer = httpx.post(f"{running.url}/v1/completions", json={"model": "writer", "prompt": "a", **changes})
    assert answer.status_code == status
    assert says in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_keys(writer):
    with served_folders(writer, keys=Keys(["right"])) as running:

        def ask(key: str) -> Any:
            with openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0) as api:
                return api.completions.create(model="writer", prompt="a", max_tokens=1)

        assert ask("right").choices
        with pytest.raises(openai.AuthenticationError):
            ask("wrong")


def test_the_first_stop_counts():
    assert cut_at("one two three", ["three", "two"]) == ("one ", True)
    assert cut_at("one", ["two"]) == ("one", False)
