"""LibreTranslate's contract over HTTP, asked by its client and by hand; what a request may cost and who may ask."""

import asyncio
import json
import logging
import socket
import threading
import time
import urllib.error
from typing import Any

import httpx
import pytest
from libretranslatepy import LibreTranslateAPI

from bmscale.deployment.formats import make_format
from bmscale.deployment.serving.batching import BatchLimits
from bmscale.deployment.serving.limits import Keys, Limits
from bmscale.deployment.serving.models import Models, TranslationModel, open_models
from bmscale.deployment.serving.sites import Sites
from bmscale.inference.translator import SearchOptions, Translator
from bmscale.model.folder import open_model_folder
from tests.deployment.serving import conftest
from tests.deployment.serving.conftest import GREEDY, SENTENCES, Instant, Running, served, served_folders, wait_for
from tests.deployment.serving.load import metrics, storm

OPTIONS = vars(GREEDY)


@pytest.fixture(scope="module")
def running(en_de, de_en_fr):
    with served_folders(en_de, de_en_fr) as running:
        yield running


@pytest.fixture(scope="module")
def client(running):
    with httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def translator(en_de) -> Translator:
    return Translator.from_pretrained(en_de, device="cpu")


def ask(client: httpx.Client, q: Any = "she counted boats", **more: Any) -> httpx.Response:
    return client.post("/translate", json={"q": q, "source": "en", "target": "de", **more})


# ---- the contract


def test_libretranslates_client(running, translator):
    api = LibreTranslateAPI(running.url)
    assert api.translate(SENTENCES[0], "en", "de") == translator.translate([SENTENCES[0]], **OPTIONS)[0]
    assert api.languages() == [
        {"code": "en", "name": "English", "targets": ["de"]},
        {"code": "de", "name": "German", "targets": ["en", "fr"]},
        {"code": "fr", "name": "French", "targets": []},
    ]
    (first, second) = api.detect("der Bäcker verkauft über Ostern süße Brötchen und das ist gut so")
    assert first["language"] == "de"
    assert first["confidence"] > 90 > second["confidence"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        api.translate("x", "en", "xx")
    with refused.value as answer:
        assert answer.code == 400
        assert json.loads(answer.read()) == {"error": "xx is not supported; there are: de, en, fr"}


def test_a_list_comes_back_as_one(client, translator):
    texts = [*SENTENCES, "", "  "]
    answer = ask(client, texts)
    assert answer.status_code == 200
    assert answer.json() == {"translatedText": [*translator.translate(SENTENCES, **OPTIONS), "", "  "]}


def test_forms_and_queries(client, translator):
    fields = {"q": SENTENCES[1], "source": "en", "target": "de"}
    expected = {"translatedText": translator.translate([SENTENCES[1]], **OPTIONS)[0]}
    assert client.post("/translate", data=fields).json() == expected
    assert client.post("/translate", params=fields).json() == expected
    unescaped = f"q={SENTENCES[4]}&source=en&target=de".encode()  # as `curl -d` sends it
    kind = {"content-type": "application/x-www-form-urlencoded"}
    umlauts = {"translatedText": translator.translate([SENTENCES[4]], **OPTIONS)[0]}
    assert client.post("/translate", content=unescaped, headers=kind).json() == umlauts
    parts = {name: (None, value) for name, value in fields.items()}
    assert client.post("/translate", files=parts).json() == expected
    twice = client.post("/translate", data={**fields, "q": SENTENCES[:2]}).json()
    assert twice == {"translatedText": translator.translate(SENTENCES[:2], **OPTIONS)}


def test_lines_and_white_space_stay(client, translator):
    first, second = translator.translate(SENTENCES[:2], **OPTIONS)
    answer = ask(client, f"{SENTENCES[0]}\r\n\n  {SENTENCES[1]} \n").json()
    assert answer == {"translatedText": f"{first}\r\n\n  {second} \n"}


def test_a_long_text_is_translated_in_parts(client, translator):
    text = " ".join(SENTENCES * 3)
    assert ask(client, text).json()["translatedText"] == translator.translate([text], **OPTIONS)[0]


def test_alternatives(client, translator):
    answer = ask(client, SENTENCES[2], alternatives=3).json()
    found = translator.translate_n_best([SENTENCES[2]], 4, **{**OPTIONS, "beam_size": 4})[0]
    texts = list(dict.fromkeys(hypothesis.text for hypothesis in found))
    assert answer == {"translatedText": texts[0], "alternatives": texts[1:]}
    assert len(texts) > 1
    answer = ask(client, SENTENCES[2:4], alternatives="1").json()
    assert [len(others) for others in answer["alternatives"]] == [1, 1]


def test_the_language_is_found(client):
    german, english = "das ist ein Haus und der Bäcker ist darin", "this is a house and the baker is in it"
    one = client.post("/translate", json={"q": german, "source": "auto", "target": "fr"}).json()
    assert one["detectedLanguage"]["language"] == "de"
    fixed = client.post("/translate", json={"q": german, "source": "de", "target": "fr"}).json()
    assert one["translatedText"] == fixed["translatedText"]
    both = client.post("/translate", json={"q": [german, german], "source": "auto", "target": "en"}).json()
    assert [found["language"] for found in both["detectedLanguage"]] == ["de", "de"]
    refused = client.post("/translate", json={"q": [german, english], "source": "auto", "target": "fr"})
    assert (refused.status_code, "target language from en" in refused.json()["error"]) == (400, True)


def test_html_keeps_its_tags(client, translator):
    first, second = translator.translate(["nobody knew & why", "my goat"], **OPTIONS)
    answer = ask(client, '<p class="a">nobody knew &amp; why</p><!-- x --><b>my goat</b>', format="html").json()
    escaped = first.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert answer == {"translatedText": f'<p class="a">{escaped}</p><!-- x --><b>{second}</b>'}


def test_the_schema_has_the_languages(client):
    body = client.get("/openapi.json").json()["paths"]["/translate"]["post"]["requestBody"]["content"]
    for kind in body.values():
        properties = kind["schema"]["properties"]
        assert properties["source"]["enum"] == ["en", "de", "auto"]
        assert properties["target"]["enum"] == ["de", "en", "fr"]


def test_settings_health_and_page(client):
    settings = client.get("/frontend/settings").json()
    assert settings["language"]["source"] == {"code": "en", "name": "English"}
    assert (settings["charLimit"], settings["keyRequired"], settings["filesTranslation"]) == (50_000, False, False)
    assert client.get("/health").json() == {"status": "ok"}
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "http" not in page.text.replace("http-equiv", "")  # nothing comes from elsewhere
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert [client.get(path).status_code for path in ("/page.css", "/page.js", "/docs")] == [200, 200, 404]


# ---- what is wrong is said


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"q": ""}, 400, "missing q"),
        ({"q": []}, 400, "missing q"),
        ({"q": None}, 400, "missing q"),
        ({"q": 5}, 400, "string or a list"),
        ({"source": None}, 400, "missing source"),
        ({"target": ""}, 400, "missing target"),
        ({"target": "\ud800"}, 400, "is not supported"),
        ({"source": "de", "target": "de"}, 400, "de is not available as a target language from de"),
        ({"format": "pdf"}, 400, "pdf format is not supported"),
        ({"alternatives": 10}, 400, "0 to 9"),
        ({"alternatives": -1}, 400, "0 to 9"),
        ({"q": "x" * 50_001}, 400, "exceeds text limit (50000)"),
        ({"q": ["x"] * 1001}, 400, "exceeds text limit (1000)"),
    ],
)
def test_mistakes(client, changes, status, says):
    content = json.dumps({"q": "x", "source": "en", "target": "de", **changes})
    answer = client.post("/translate", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert says in answer.json()["error"]


def test_any_text_is_fine(client):
    for text in ("\ud83d", "\x00\x01", "🐝" * 30, "a" * 500, "。" * 70, "\u2028", " . " * 90):
        content = json.dumps({"q": text, "source": "en", "target": "de", "alternatives": 1})
        answer = client.post("/translate", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 200, text[:10]
        assert isinstance(answer.json()["translatedText"], str)


def test_the_largest_request_fits(client):
    """As many characters as are allowed, each in the most bytes that JSON has for one: the body is not too large."""
    with served_settings(client, max_characters=2_000) as running:
        content = b'{"q": "' + b"\\ud83d\\udc1d" * 2_000 + b'", "source": "en", "target": "de"}'
        answer = httpx.post(
            f"{running.url}/translate", content=content, headers={"content-type": "application/json"}, timeout=60
        )
        assert answer.status_code == 200
        assert httpx.post(f"{running.url}/translate", content=b"x" * 60_000).status_code == 413


def served_settings(_: Any, **limits: Any) -> Any:
    """A server over a model that answers at once, with such limits."""
    return served(Models.of([instant_model()]), limits=Limits(**limits))


def instant_model(limits: BatchLimits | None = None) -> TranslationModel:
    return conftest.instant_model(_TOKENIZER[0], limits)


_TOKENIZER: list[Any] = []


@pytest.fixture(autouse=True)
def _tokenizer(translator) -> None:
    _TOKENIZER[:] = [translator.tokenizer]


def raw(running: Running, request: bytes, *, wait_seconds: float = 20) -> bytes:
    """What comes back for bytes, until the server closes or says no more."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=wait_seconds) as connection:
        connection.sendall(request)
        return connection.recv(65_536)


def test_a_body_is_bounded_while_it_comes(client):
    with served_settings(client, max_characters=100) as running:
        head = b"POST /translate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        # Said beforehand: refused before a byte of it is there.
        assert b" 413 " in raw(running, head + b"Content-Length: 100000000000\r\n\r\n")
        # Not said: refused once it is too large, though it never ends.
        chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
        assert b" 413 " in raw(running, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 2)
        assert b" 400 " in raw(running, head + b"Content-Length: -5\r\n\r\n")


def test_a_body_that_does_not_come(client):
    with served_settings(client, timeout_seconds=0.3) as running:
        began = time.monotonic()
        answer = raw(running, b"POST /translate HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        assert b" 408 " in answer
        assert b"connection: close" in answer.lower()
        assert time.monotonic() - began < 5


def test_a_request_has_its_time(client):
    model = instant_model()
    translator = model._translators["de"]
    assert isinstance(translator, Instant)
    translator.may_run.clear()
    with served(Models.of([model]), limits=Limits(timeout_seconds=0.5)) as running:
        answer = httpx.post(f"{running.url}/translate", json={"q": ["a", "b"], "source": "en", "target": "de"})
        assert answer.status_code == 503
        assert "retry-after" in answer.headers
        assert (model.batcher.waiting_units, model.batcher.waiting_slots) == (0, 0)
        translator.may_run.set()


def test_what_would_take_too_long_is_said_at_once(client):
    """A model of 2 ms a batch, so 500 of them a second, and a text of more lines than it can do in its time."""
    model = instant_model(BatchLimits(max_batch_slots=1))
    instant = model._translators["de"].translate
    model._translators["de"].translate = lambda texts, **_: time.sleep(0.002) or instant(texts)  # type: ignore
    fields = {"q": "a\n" * 1_500, "source": "en", "target": "de"}
    with served(Models.of([model]), limits=Limits(timeout_seconds=1)) as running:
        begun = time.monotonic()
        answers = [httpx.post(f"{running.url}/translate", json=fields) for _ in range(2)]
        assert time.monotonic() - begun < 1
        short = httpx.post(f"{running.url}/translate", json={**fields, "q": "a"})
    assert [answer.status_code for answer in answers] == [413, 413]
    assert "send less of it at a time" in answers[0].json()["error"]
    assert short.json() == {"translatedText": "A"}


def test_a_batch_of_those_who_left_ends_at_the_next_token(en_de):
    """A search for very long translations, each token of which takes 10 ms."""
    search = SearchOptions(beam_size=1, max_length_ratio=1.0, max_length_extra=100)
    models = open_models([str(en_de)], device="cpu", search=search)
    (model,) = models.pairs.values()
    steps, seconds = [0], [0.01]

    def step(*_: Any) -> None:
        steps[0] += 1
        time.sleep(seconds[0])

    module: Any = model._translators["de"].model
    module.register_forward_pre_hook(step)
    parts = ["x", SENTENCES[0]]
    future = model.batcher.submit(model.units(parts, "de", 1))
    wait_for(lambda: steps[0] > 5)
    future.cancel()
    wait_for(lambda: not model.batcher.running_slots)
    left, seconds[0] = steps[0], 0.0
    model._translators["de"].translate(parts, **vars(search))
    models.close()
    assert left < 60 < steps[0] - left


def test_too_much_is_refused_and_health_is_not(client):
    model = instant_model(BatchLimits(max_batch_slots=1, max_queue_slots=40))
    translator = model._translators["de"]
    assert isinstance(translator, Instant)
    translator.may_run.clear()
    fields = {"q": "a b c d e f g h", "source": "en", "target": "de"}
    with served(Models.of([model]), limits=Limits(max_requests=8)) as running:

        async def many() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=running.url, timeout=20) as http:
                asked = [asyncio.ensure_future(http.post("/translate", json=fields)) for _ in range(30)]
                await asyncio.wait(asked, timeout=2)
                assert (await http.get("/health")).status_code == 200
                translator.may_run.set()
                return list(await asyncio.gather(*asked))

        answers = asyncio.run(many())
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {200, 429}
    assert 1 <= codes.count(200) <= 8
    refused = [answer for answer in answers if answer.status_code == 429]
    assert all(int(answer.headers["retry-after"]) >= 1 and "Slowdown" in answer.json()["error"] for answer in refused)
    assert {answer.json()["translatedText"] for answer in answers if answer.status_code == 200} == {"A B C D E F G H"}


def test_who_goes_away_is_not_worked_for(client):
    model = instant_model(BatchLimits(max_batch_slots=1))
    translator = model._translators["de"]
    assert isinstance(translator, Instant)
    translator.may_run.clear()
    body = json.dumps({"q": [f"text {n}" for n in range(50)], "source": "en", "target": "de"}).encode()
    head = (
        f"POST /translate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with served(Models.of([model])) as running:
        with socket.create_connection(("127.0.0.1", running.port)) as connection:
            connection.sendall(head.encode() + body)
            wait_for(lambda: model.batcher.waiting_units == 49)
        wait_for(lambda: model.batcher.waiting_units == 0)
        translator.may_run.set()
    assert len(translator.texts) == 1


def test_what_was_accepted_is_answered_before_the_end(client):
    model = instant_model(BatchLimits(max_batch_slots=1))
    translator = model._translators["de"]
    assert isinstance(translator, Instant)
    translator.may_run.clear()
    answers: list[httpx.Response] = []
    with served(Models.of([model])) as running:
        fields = {"q": ["a", "b", "c"], "source": "en", "target": "de"}
        asker = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{running.url}/translate", json=fields, timeout=20))
        )
        asker.start()
        wait_for(lambda: translator.texts)
        ending = threading.Thread(target=running.stop)
        ending.start()
        time.sleep(0.3)
        translator.may_run.set()
        ending.join()
        asker.join()
    assert answers[0].json() == {"translatedText": ["A", "B", "C"]}
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", running.port))


def test_no_log_has_a_text(client, caplog):
    model = instant_model()
    translator = model._translators["de"]
    assert isinstance(translator, Instant)
    translator.fails = True
    log = logging.getLogger("bmscale")
    propagate, log.propagate = log.propagate, True
    try:
        with served(Models.of([model])) as running, caplog.at_level(logging.DEBUG):
            fields = {"q": "a secret", "source": "en", "target": "de"}
            failed = httpx.post(f"{running.url}/translate", json=fields)
            httpx.post(f"{running.url}/translate", params={"q": "a secret"})
        assert failed.status_code == 500
        assert "secret" not in failed.text
        ours = [record for record in caplog.records if record.name.startswith(("bmscale", "uvicorn"))]
        assert any("ValueError" in record.getMessage() for record in ours)
        assert not any("secret" in record.getMessage() + str(record.exc_info) for record in ours)
    finally:
        log.propagate = propagate


# ---- keys, rates, other sites


def test_keys(client, tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\nfirst key\n\n  second-🐝\n", encoding="utf-8")
    with served(Models.of([instant_model()]), keys=Keys.read(file)) as running:

        def code(**more: Any) -> int:
            headers = more.pop("headers", {})
            fields = {"q": "a", "source": "en", "target": "de", **more}
            return httpx.post(f"{running.url}/translate", json=fields, headers=headers).status_code

        assert [code(api_key="first key"), code(api_key="second-🐝")] == [200, 200]
        assert code(headers={"authorization": "Bearer first key"}) == 200
        assert [code(), code(api_key="")] == [400, 400]
        assert [code(api_key="first"), code(api_key="# ours"), code(api_key=["first key"])] == [403, 403, 403]
        assert httpx.get(f"{running.url}/frontend/settings").json()["keyRequired"]
        assert LibreTranslateAPI(running.url, "first key").translate("a", "en", "de") == "A"


def test_a_key_in_the_header_is_looked_at_before_the_body_comes(client):
    with served(Models.of([instant_model()]), keys=Keys(["right"])) as running:
        head = b"POST /translate HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\nAuthorization: Bearer "
        assert b" 403 " in raw(running, head + b"wrong\r\n\r\n")
        with pytest.raises(TimeoutError):  # the body is waited for
            raw(running, head + b"right\r\n\r\n", wait_seconds=0.5)


def test_rates(client):
    with served_settings(client, requests_per_minute=3) as running:
        fields = {"q": "a", "source": "en", "target": "de"}
        answers = [httpx.post(f"{running.url}/translate", json=fields) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 21
        head = b"POST /translate HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n"
        assert b" 429 " in raw(running, head)  # before its body came


def test_other_sites(client):
    asked = {"origin": "https://a.example"}
    assert "access-control-allow-origin" not in client.get("/languages", headers=asked).headers
    with served(Models.of([instant_model()]), sites=Sites(("https://a.example",))) as running:
        allowed = httpx.get(f"{running.url}/languages", headers=asked)
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        other = httpx.get(f"{running.url}/languages", headers={"origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers


# ---- many at once


def test_many_clients_good_and_bad(en_de, translator, pytestconfig):
    """10,000 requests of 64 clients with --full."""
    full = pytestconfig.getoption("--full")
    requests, clients = (10_000, 64) if full else (400, 16)
    texts = [" ".join(sentence.split()[: 2 + n % 5]) + f" {n}" for n in range(60) for sentence in SENTENCES[:4]]
    known = dict(zip(texts, translator.translate(texts, **OPTIONS), strict=True))
    with served_folders(en_de) as running:
        most = running.service.limits.max_body_bytes

        def run(count: int, seed: int) -> Any:
            return asyncio.run(
                storm(running.port, known, requests=count, clients=clients, max_body_bytes=most, seed=seed)
            )

        run(200, 7)  # what is allocated once is there
        before = asyncio.run(metrics(running.port))
        began = time.monotonic()
        outcome = run(requests, 1)
        seconds = time.monotonic() - began
        after = asyncio.run(metrics(running.port))
    assert not outcome.wrong, outcome.wrong[:5]
    codes = outcome.codes
    assert codes.total() - codes[429] == requests
    assert {0, 200, 400, 404, 405, 413, 415} <= set(codes) <= {0, 200, 400, 404, 405, 413, 415, 429}
    assert 0.6 < codes[200] / requests < 0.73
    assert not any('code="5' in name or 'code="0"' in name for name in after)
    assert after["bmscale_requests_in_flight"] == 1  # that of /metrics
    assert after['bmscale_queue_units{model="en-de"}'] == after['bmscale_queue_slots{model="en-de"}'] == 0
    grown = (after["process_resident_memory_bytes"] - before["process_resident_memory_bytes"]) / 2**20
    batches = after['bmscale_batch_units_count{model="en-de"}'] - before['bmscale_batch_units_count{model="en-de"}']
    print(f"{requests} requests, {clients} clients, {seconds:.0f} s: {dict(codes)}; {batches:.0f} batches")
    print(f"resident memory grew by {grown:.1f} MiB")
    assert batches < codes[200]
    assert grown < 100


def test_a_ctranslate2_folder_is_served_as_its_model_is(en_de, translator, tmp_path):
    made = make_format("ctranslate2")
    model = open_model_folder(en_de)
    made.check(model)
    made.write(model, tmp_path / "en-de")
    with served_folders(tmp_path / "en-de") as running, httpx.Client(base_url=running.url, timeout=60) as client:
        answers = ask(client, SENTENCES[:5]).json()
        more = ask(client, SENTENCES[0], alternatives=1).json()
    assert answers["translatedText"] == translator.translate(SENTENCES[:5], **OPTIONS)
    assert len(more["alternatives"]) == 1


@pytest.mark.parametrize(
    "disposition", ['form-data; name="q' + '"; a="' * 20_000, 'form-data; name="q"' + "\r\nX-More: 1" * 20_000]
)
def test_the_parser_of_forms_is_given_no_long_headers(client, disposition):
    """It would hold up the server for seconds."""
    body = f"--b\r\nContent-Disposition: {disposition}\r\n\r\nx\r\n--b--\r\n".encode()
    begun = time.monotonic()
    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert client.post("/translate", content=body, headers=headers).status_code == 400
    assert client.post("/translate", content=b"--b\r\n\r\n" * 20_000, headers=headers).status_code == 400
    long = {"content-type": "multipart/form-data; boundary=b" + "; a=b" * 5_000}
    assert client.post("/translate", content=b"--b", headers=long).status_code in (400, 431)
    assert time.monotonic() - begun < 2


def test_head_and_paths_that_end_in_a_slash(client, running, translator):
    for path in ("/health", "/languages", "/", "/metrics", "/frontend/settings"):
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
    assert client.head("/translate").status_code == 405
    assert client.head("/nothing").status_code == 404
    fields = {"q": SENTENCES[0], "source": "en", "target": "de"}
    answer = client.post("/translate/", json=fields)
    assert (answer.status_code, answer.json()) == (200, ask(client, SENTENCES[0]).json())
    assert client.get("/health//").json() == {"status": "ok"}
