"""Requests that a page of another site has a browser send, and names that were made to point here."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from starlette.datastructures import Headers

from bmscale.deployment.serving.limits import Limits
from bmscale.deployment.serving.models import Models
from bmscale.deployment.serving.sites import Sites
from bmscale.errors import BadInput
from tests.deployment.serving.conftest import instant_model, served, translator_of, wait_for

LOOPBACK = Sites.of([], [], loopback=True)
FIELDS = {"q": "a", "source": "en", "target": "de"}


def says(sites: Sites, **headers: str) -> str:
    return sites.refusal(Headers(headers)) or ""


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:5000", "LocalHost:80", "a.localhost:5000", "127.0.0.1:5000", "127.8.9.1", "[::1]:5000"],
)
def test_names_of_this_machine(host):
    assert not says(LOOPBACK, host=host)
    assert not says(LOOPBACK, host=host, origin=f"http://{host}")


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:5000", "localhost.evil.example", "127.0.0.1.evil.example", "evil@localhost",
     "0.0.0.0:5000", "10.0.0.1", "[::2]", "notlocalhost", "localhost:5000:1", "", "localhost/", "localhost evil"],
)  # fmt: skip
def test_other_names_are_refused_on_this_machine(host):
    assert "--allow-host" in says(LOOPBACK, host=host)
    # A page of that name is of the same origin as what it asks.
    assert "--allow-host" in says(LOOPBACK, host=host, origin=f"http://{host}")


def test_names_that_are_given():
    open_to_all = Sites.of([], [], loopback=False)
    assert not says(open_to_all, host="anything.example")
    for loopback in (True, False):
        given = Sites.of([], ["Translate.example"], loopback=loopback)
        assert not says(given, host="translate.example:8080")
        assert not says(given, host="localhost:5000")
        assert says(given, host="a.translate.example")


@pytest.mark.parametrize(
    ("origin", "host", "fine"),
    [
        ("http://localhost:5000", "localhost:5000", True),
        ("http://[::1]:5000", "[::1]:5000", True),
        ("https://here.example", "here.example", True),  # behind a proxy
        ("http://here.example", "here.example:80", True),
        ("http://localhost:5001", "localhost:5000", False),
        ("http://127.0.0.1:5000", "localhost:5000", False),
        ("https://evil.example", "localhost:5000", False),
        ("http://localhost:5000.evil.example", "localhost:5000", False),
        ("http://localhost:5000@evil.example", "localhost:5000", False),
        ("https://here.example", "here.example:80", False),
        ("chrome-extension://here.example", "here.example", False),
        ("null", "localhost:5000", False),
        ("", "localhost:5000", False),
    ],
)
def test_origins(origin, host, fine):
    assert (
        says(Sites(), host=host, origin=origin) == ""
        if fine
        else "--allow-origin" in says(Sites(), host=host, origin=origin)
    )
    assert not says(Sites.of(["*"], [], loopback=False), host=host, origin=origin)


def test_origins_that_are_given():
    sites = Sites.of(["https://A.example:443/", "moz-extension://abc"], [], loopback=True)
    assert sites.origins == ("https://a.example", "moz-extension://abc")
    assert not says(sites, host="localhost:1", origin="https://a.example")
    assert says(sites, host="localhost:1", origin="https://a.example:8443")
    assert says(sites, host="localhost:1", origin="http://a.example")


@pytest.mark.parametrize("origin", ["evil", "evil.example", "https://", "https://a/b", "https://*.example", "", "**"])
def test_what_is_no_origin(origin):
    with pytest.raises(BadInput, match="--allow-origin: must be"):
        Sites.of([origin], [], loopback=True)


@pytest.mark.parametrize("host", ["a:80", "http://a", "a/b", "", "a b"])
def test_what_is_no_host(host):
    with pytest.raises(BadInput, match="--allow-host: must be"):
        Sites.of([], [host], loopback=True)


def test_a_form_of_another_site(tokenizer):
    model = instant_model(tokenizer)
    with served(Models.of([model]), sites=LOOPBACK) as running, httpx.Client(base_url=running.url) as client:
        evil = {"origin": "https://evil.example"}
        for refused in (
            client.post("/translate", data=FIELDS, headers=evil),
            client.post("/translate", data=FIELDS, headers={"host": "evil.example"}),
            client.options("/translate", headers={**evil, "access-control-request-method": "POST"}),
            client.get("/metrics", headers=evil),
        ):
            assert refused.status_code == 403
            assert set(refused.json()) == {"error"}
            assert "access-control-allow-origin" not in refused.headers
        assert not model.batcher.waiting_units
        assert client.post("/translate", data=FIELDS).json() == {"translatedText": "A"}
        own = client.post("/translate", data=FIELDS, headers={"origin": running.url})
        assert own.json() == {"translatedText": "A"}


def test_an_allowed_site_is_told_so(tokenizer):
    sites = Sites.of(["https://a.example"], [], loopback=True)
    with served(Models.of([instant_model(tokenizer)]), sites=sites) as running:
        headers = {"origin": "https://a.example", "access-control-request-method": "POST"}
        asked = httpx.options(f"{running.url}/translate", headers=headers)
        assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, "https://a.example")
        answer = httpx.post(f"{running.url}/translate", json=FIELDS, headers=headers)
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        assert answer.json() == {"translatedText": "A"}


def test_an_allowed_site_can_read_what_went_wrong(tokenizer):
    """Also when to come again, and that is told to no other site."""
    model = instant_model(tokenizer)
    translator = translator_of(model)
    translator.may_run.clear()
    translator.fails = True
    sites = Sites.of(["https://a.example"], [], loopback=True)
    with (
        served(Models.of([model]), sites=sites, limits=Limits(max_requests=1)) as running,
        ThreadPoolExecutor() as threads,
    ):

        def ask(origin: str) -> httpx.Response:
            return httpx.post(f"{running.url}/translate", json=FIELDS, headers={"origin": origin}, timeout=20)

        first = threads.submit(ask, "https://a.example")
        wait_for(lambda: translator.texts)
        refused, other = ask("https://a.example"), ask("https://b.example")
        translator.may_run.set()
        failed = first.result(20)
        counts = httpx.get(f"{running.url}/metrics").text
    assert [answer.status_code for answer in (refused, other, failed)] == [429, 403, 500]
    for answer in (refused, failed):
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        assert answer.headers["access-control-expose-headers"] == "Retry-After"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert refused.headers["retry-after"] == "1"
    assert "access-control-allow-origin" not in other.headers
    for code in (403, 429, 500):
        assert f'bmscale_requests_total{{code="{code}",route="/translate"}} 1.0' in counts
