"""The document that a browser gets first: the app's look comes with it, its parts are asked for once, and nothing outside may be."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest

pytest.importorskip("streamlit", reason="the app needs the extra `app`")

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.testclient import TestClient
from streamlit import config, file_util

from app.document import document, policy
from app.launch import SETTINGS, command
from app.server import Document, settings

STATIC = Path(file_util.get_static_dir())


def test_the_look_stands_in_the_head_and_weighs_more_than_what_comes_later() -> None:
    head = document().split("</head>")[0]
    sheet = head.split("<style>")[1].split("</style>")[0]
    assert "<title>Bypass</title>" in head
    assert '[data-testid="stCaptionContainer"] {opacity: .8}' in sheet
    assert sheet.startswith(":root {")
    assert sheet.count("{") == sheet.count("}")


def test_every_part_is_asked_for_once_with_all_that_it_imports() -> None:
    names = re.findall(r'href="\./static/js/([^"]+)"', document())
    assert len(names) == len(set(names))
    assert all((STATIC / "static/js" / name).is_file() for name in names)
    assert any(name.startswith("PlotlyChart.") for name in names)
    text = (STATIC / "static/js" / next(name for name in names if name.startswith("TextInput."))).read_text(encoding="utf-8")
    # The entry of the frontend is a script, which is why no hint names it.
    entry = re.findall(r'src="\./static/js/([^"]+)"', document())
    imported = re.findall(r'from"\./([^"]+\.js)"', text) or re.findall(r"from`\./([^`]+\.js)`", text)
    assert imported
    assert set(imported) <= {*names, *entry}


def test_scripts_run_only_if_they_are_those_of_the_document() -> None:
    inline = re.findall(r"<script>(.*?)</script>", document(), flags=re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in inline]
    rules = dict(rule.strip().split(" ", 1) for rule in policy("lab.example:8501").split(";"))
    assert rules["default-src"] == "'self'"
    assert rules["script-src"].split() == ["'self'", *(f"'sha256-{digest}'" for digest in digests)]
    assert rules["connect-src"] == "'self' ws://lab.example:8501 wss://lab.example:8501"


@pytest.mark.parametrize("host", ["", "a b", "x; script-src *", "x'unsafe-eval'", "x\r\ny"])
def test_a_host_that_is_none_adds_nothing_to_the_policy(host: str) -> None:
    assert "connect-src 'self';" in policy(host)
    assert "*" not in policy(host)
    assert "unsafe-eval" not in policy(host)


@pytest.fixture(scope="module")
def client() -> TestClient:
    """What stands before Streamlit, before something that answers every request alike."""

    async def behind(scope: dict, receive: object, send: object) -> None:
        await PlainTextResponse("behind")(scope, receive, send)

    return TestClient(Starlette(routes=[Mount("/", app=behind)], middleware=[Middleware(Document)]))


@pytest.mark.parametrize("path", ["/", "/vectors", "/nowhere", "/vectors?neuron=5.1"])
def test_a_page_gets_the_document(client: TestClient, path: str) -> None:
    reply = client.get(path)
    assert reply.text == document()
    assert reply.headers["content-security-policy"] == policy("testserver")
    assert reply.headers["cache-control"] == "no-cache"
    assert client.post(path).text == "behind"


@pytest.mark.parametrize("path", ["/_stcore/health", "/static/js/index.js", "/favicon.png", "/vectors/", "/media/x", "/a/b"])
def test_what_is_streamlits_is_left_to_it(client: TestClient, path: str) -> None:
    assert client.get(path).text == "behind"


def test_settings_arrive_as_streamlit_wants_them() -> None:
    found = settings(command(8600, "127.0.0.1")[3:])
    assert found.keys() == SETTINGS.keys() | {"server.port", "server.address"}
    assert (found["server.port"], found["server.address"], found["runner.postScriptGC"]) == (8600, "127.0.0.1", False)
    for name, value in found.items():
        default = config._config_options_template[name].default_val
        # This one is a text only where it is left alone.
        assert default is None or isinstance(value, type(default)) or name == "client.showErrorLinks", name
