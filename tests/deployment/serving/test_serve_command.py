"""`bmscale serve` as a process: what it refuses, where it listens, how it ends."""

import asyncio
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from bmscale import cli
from bmscale.deployment.serving.limits import Limits
from bmscale.deployment.serving.models import open_models, refuse_pickles
from bmscale.deployment.serving.running import bind, is_loopback, make_server
from bmscale.errors import BadInput
from bmscale.inference import ctranslate2_folder
from bmscale.inference.translator import SearchOptions
from bmscale.model.folder import open_model_folder
from tests.deployment.serving.conftest import SENTENCES
from tests.deployment.serving.load import measure, report


def test_it_serves_and_ends_after_what_it_accepted(en_de, writer):
    """SIGTERM comes while requests wait: all of them are answered, and the exit code is 0."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bmscale", "serve", str(en_de), str(writer), "--port", "0", "--beam-size", "2"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = [next(process.stderr) for _ in range(3)]
    assert "en-de translates en to de" in said[0]
    assert "writer writes on from prompts" in said[1]
    url = said[2].split("serving on ")[1].split()[0]
    assert url.startswith("http://127.0.0.1:")
    fields = {"q": [f"{sentence} {n}" for n in range(40) for sentence in SENTENCES], "source": "en", "target": "de"}
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(httpx.post(f"{url}/translate", json=fields, timeout=120)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    while 'bmscale_queue_units{model="en-de"} 0.0' in (text := httpx.get(f"{url}/metrics").text):
        assert "bmscale_batch_units" in text
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 0, rest
    assert "everything that was accepted is answered" in rest
    assert [len(answer.json()["translatedText"]) for answer in answers] == [240] * 3


_SERVES_FOR_EVER = """
import asyncio, logging
from bmscale.deployment.serving.limits import Limits
from bmscale.deployment.serving.running import bind, run

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
    print(scope["type"], flush=True)
    await asyncio.sleep(60)

logging.basicConfig(level=logging.INFO, format="%(message)s")
with bind("127.0.0.1", 0) as bound:
    print(run(app, bound, Limits()))
"""


def test_a_second_ctrl_c_ends_it_at_once():
    """While a request is under way; nothing is said of answers that did not come."""
    command = [sys.executable, "-c", _SERVES_FOR_EVER]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        ThreadPoolExecutor() as threads,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        url = next(process.stderr).split("serving on ")[1].split()[0]
        answer = threads.submit(httpx.get, url, timeout=60)
        assert [next(process.stdout) for _ in range(2)] == ["lifespan\n", "http\n"]
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert (process.stdout.read(), process.stderr.read()) == ("", "ended at once\n")
        with pytest.raises(httpx.HTTPError):
            answer.result(20)


@pytest.mark.parametrize("is_slow", [False, True])
def test_it_tells_whether_it_answered_all_in_its_time(is_slow):
    began = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                await send({"type": f"{(await receive())['type']}.complete"})
            return
        began.set()
        await asyncio.sleep(20 if is_slow else 0.2)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    server = make_server(app, Limits())
    server.config.timeout_graceful_shutdown = 0.5  # type: ignore[assignment]
    with bind("127.0.0.1", 0) as bound, ThreadPoolExecutor() as threads:
        port = bound.getsockname()[1]
        running = threads.submit(server.run, sockets=[bound])
        asked = threads.submit(httpx.get, f"http://127.0.0.1:{port}", timeout=20)
        assert began.wait(20)
        server.should_exit = True
        running.result(20)
        assert server.has_answered_all is not is_slow
        assert asked.result(20).status_code == (500 if is_slow else 204)


@pytest.mark.parametrize("is_exported", [False, True])
def test_a_folder_is_read_once_and_has_its_positions(en_de, exported_en_de, monkeypatch, is_exported):
    """What a unit takes of a batch ends with the positions, however much a search may write."""
    checked: list[Path] = []
    check = ctranslate2_folder.check_files

    def count(path: Path, record: Any) -> None:
        checked.append(path)
        check(path, record)

    monkeypatch.setattr(ctranslate2_folder, "check_files", count)
    search = SearchOptions(beam_size=3, max_length_extra=100_000)
    models = open_models([str(exported_en_de if is_exported else en_de)], device="cpu", search=search)
    assert checked == ([exported_en_de] if is_exported else [])
    (model,) = models.pairs.values()
    (unit,) = model.units(["my goat"], "de", 1)
    length = len(model._tokenizer.encode_batch(["my goat"])[0]) + 1
    assert unit.slots == 3 * (length + open_model_folder(en_de).config.max_position_embeddings)
    models.close()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("weights.pt", b"anything"),
        ("pytorch_model.bin", b"anything"),
        ("model.bin", b"\x80\x04\x95"),
        ("notes.txt", pickle.dumps({"a": 1})),
        ("sub/more.dat", None),
    ],
)
def test_a_folder_with_a_pickle_is_refused(en_de, tmp_path, name, content):
    folder = shutil.copytree(en_de, tmp_path / "m")
    refuse_pickles(folder)
    place = folder / name
    place.parent.mkdir(exist_ok=True)
    if content is None:  # what torch.save writes is a zip
        with zipfile.ZipFile(place, "w") as archive:
            archive.writestr("archive/data.pkl", b"")
    else:
        place.write_bytes(content)
    with pytest.raises(BadInput, match=f"{name}: is a pickle"):
        open_models([str(folder)], device="cpu")


def test_ctranslate2s_weights_are_no_pickle(tmp_path):
    (tmp_path / "model.bin").write_bytes((6).to_bytes(4, "little") + b"\x12\x00TransformerSpec")
    refuse_pickles(tmp_path)


def test_two_of_one_pair(en_de, tmp_path):
    other = shutil.copytree(en_de, tmp_path / "other")
    with pytest.raises(BadInput, match="two from en to de, en-de and other"):
        open_models([str(en_de), str(other)], device="cpu")
    with pytest.raises(BadInput, match="given twice"):
        open_models([str(en_de), str(en_de)], device="cpu")


def test_a_run_gives_its_name(en_de, tmp_path):
    folder = shutil.copytree(en_de, tmp_path / "runs" / "mine" / "model" / "best")
    models = open_models([str(folder)], device="cpu")
    assert list(models.batchers) == ["mine"]
    models.close()


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "bmscale", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_port_that_is_taken(en_de):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run(str(en_de), "--port", str(taken.getsockname()[1]))
    assert result.returncode == 2
    assert "cannot be served on: Address already in use; give another" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--port", "70000"], "0 (any that is free) to 65535"),
        (["--timeout", "0"], "--timeout: must be above 0; got 0"),
        (["--timeout", "1e9"], "--timeout: must be at most 86,400"),
        (["--max-characters", "-1"], "--max-characters: must be above 0"),
        (["--requests-per-minute", "nan"], "--requests-per-minute: must be above 0"),
        (["--max-connections", "0"], "--max-connections: must be above 0"),
        (["--max-batch-tokens", "0"], "--max-batch-tokens: must be at least 1"),
        (["--max-queue-tokens", "0"], "--max-queue-tokens: must be at least 1"),
        (["--max-wait-ms", "20000"], "--max-wait-ms: must be 0 to 10 s (10,000 ms); got 20 s"),
        (["--beam-size", "0"], "--beam-size: must be a whole number of at least 1; got 0"),
        (["--beam-size", "999", "--port", "0"], "--beam-size: must be at most 340, the pieces of the vocabulary"),
        (["--allow-origin", "evil", "--port", "0"], "--allow-origin: must be * or the scheme and host"),
        (["--allow-host", "a:80", "--port", "0"], "--allow-host: must be the name of a host"),
        (["--compute-type", "int8", "--port", "0"], "--compute-type: must be one of auto, float32"),
        (["--backend", "ctranslate2", "--port", "0"], "is no CTranslate2 folder; make one with bmscale export"),
        (["--api-keys", "/nowhere/keys"], "No such file"),
    ],
)
def test_options_that_cannot_be_used(en_de, capsys, arguments, says):
    assert cli.main(["serve", str(en_de), *arguments]) == 2
    assert says in capsys.readouterr().err


def test_backend_and_compute_type_are_passed_on(en_de, writer):
    models = open_models([str(en_de), str(writer)], backend="torch", device="cpu", compute_type="bfloat16")
    (translation,), (language,) = models.pairs.values(), models.language_models.values()
    kinds = {translation._translators["de"].model.dtype, language.generator.model.dtype}
    assert kinds == {torch.bfloat16}
    models.close()
    with pytest.raises(BadInput, match="is no CTranslate2 folder"):
        open_models([str(writer)], backend="ctranslate2")
    with pytest.raises(BadInput, match="compute type: must be one of"):
        open_models([str(writer)], compute_type="int8")


def test_only_this_machine_unless_told():
    with bind("127.0.0.1", 0) as own, bind("0.0.0.0", 0) as all_of_them:
        assert is_loopback(own)
        assert not is_loopback(all_of_them)


def test_what_is_not_installed_is_said(en_de):
    program = (
        "import sys; sys.modules['uvicorn'] = None\n"
        f"from bmscale.cli import main; sys.exit(main(['serve', {str(en_de)!r}]))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "pip install 'bmscale[serve]'" in result.stderr


def test_batching_is_worth_it(en_de, pytestconfig):
    """Only with --full, and on an idle machine; prints throughput and latencies with and without batching."""
    if not pytestconfig.getoption("--full"):
        pytest.skip("a measurement: --full")
    texts = [f"{sentence} {n}" for n in range(40) for sentence in SENTENCES]
    found = measure(str(en_de), texts, languages=("en", "de"), requests=600, clients=32, rounds=1)
    assert report(found, "batching", "one by one") > 2
