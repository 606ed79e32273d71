"""TransformerLens and nnsight as referees: every site and every edit gives the same numbers through all three engines."""

from __future__ import annotations

import copy
import http.server
import importlib.abc
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import Captured, Edit, Model, UserError, capture, editing
from interp.adapters import run
from interp.adapters.names import hook_name, module_name, site_of_hook, site_of_module
from interp.adapters.run import ENGINES
from interp.forward.capture import Forward
from interp.models.checkpoints import Checkpoint
from interp.models.hooks import Work
from interp.models.tokens import pad, token_rows
from tests.chat_models import chat_model
from tests.conftest import EOS, TEXTS, make_hf
from tests.models.families import FAMILIES, UNKNOWN_TO_LENS, Family

pytest.importorskip("transformer_lens", reason="needs the extra `lens`")
pytest.importorskip("nnsight", reason="needs the extra `lens`")
pytestmark = pytest.mark.oracle

OTHERS = [engine for engine in ENGINES if engine != "hooks"]
ALL = list(TEXTS)


def close(got: Captured, expected: Captured) -> None:
    assert list(got) == list(expected)
    assert (got.positions, got.settings) == (expected.positions, expected.settings)
    for site in expected:
        torch.testing.assert_close(got[site], expected[site], atol=1e-5, rtol=1e-5, msg=lambda text, site=site: f"{site}: {text}")


def vector(width: int, seed: int = 1) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def forwards(model: Model) -> dict[str, Forward]:
    from interp.adapters.nnsight import nnsight_forward
    from interp.adapters.transformer_lens import transformer_lens_forward

    return {"transformer_lens": transformer_lens_forward(model), "nnsight": nnsight_forward(model)}


@dataclass(frozen=True)
class Engines:
    """A tiny model of one family, and the forwards of the engines that know it."""

    model: Model
    forwards: dict[str, Forward]


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def engines(request: pytest.FixtureRequest, families: Callable[[str], Family]) -> Engines:
    model = families(request.param).model
    if request.param in UNKNOWN_TO_LENS:
        from interp.adapters.nnsight import nnsight_forward

        return Engines(model, {"nnsight": nnsight_forward(model)})
    return Engines(model, forwards(model))


@pytest.mark.parametrize("positions", ["last", "all"])
def test_every_site_of_ragged_prompts_is_the_same_through_every_engine(engines: Engines, positions: str) -> None:
    expected = capture(engines.model, ALL, engines.model.sites(), positions=positions)
    for forward in engines.forwards.values():
        close(capture(engines.model, ALL, engines.model.sites(), positions=positions, forward=forward), expected)


def edits_of(model: Model) -> dict[str, list[Edit]]:
    """Every op, every kind of positions, every kind of site; last, all of them at once."""
    d, heads, mlp, vocabulary = model.d_model, model.d_attention, model.d_mlp, model.d_vocab
    rows = torch.randn(len(ALL), 2, d, generator=torch.Generator().manual_seed(4))
    found = {
        "add": [Edit.add("resid_post.0", vector(d), 2.0)],
        "add to what is shared with the skip connection": [Edit.add("resid_mid.1", vector(d))],
        "subtract": [Edit.subtract("resid_pre.2", vector(d), 1.5, "from_last")],
        "scale": [Edit.scale("attn_out.1", 3.0, [0, 5], "prompt")],
        "scale a neuron": [Edit.scale("mlp_post.1", -2.0, [3, 9])],
        "scale keys": [Edit.scale_keys([(0, 3), (2, 40), (0, 7)], 8.0)],
        "set": [Edit.set("mlp_pre.2", 0.5, [1, 2], [0, 2])],
        "set heads": [Edit.set("z.1", 0.0, list(range(heads // 4)))],
        "a head's queries": [Edit.scale("q.1", 3.0, [0, 2, 5])],
        "keys": [Edit.add("k.2", vector(model.width("k")), 2.0), Edit.project_out("k.0", vector(model.width("k"), 2))],
        "values": [Edit.set("v.1", 0.5, [0, 3], [0, 1])],
        "project out": [Edit.project_out("mlp_out.0", vector(d))],
        "project out of heads": [Edit.project_out("z.0", vector(heads))],
        "patch": [Edit.patch("resid_post.1", rows, [0, 1])],
        "patch one vector": [Edit.patch("mlp_post.0", vector(mlp), "from_last")],
        "patch positions": [Edit.patch("resid_mid.0", rows[0])],
        "after the final norm": [Edit.add("ln_final", vector(d), 0.5)],
        "logits": [Edit.set("logits", -3.0, [1, vocabulary - 1])],
    }
    if model.family == "glu":
        found["open a gate"] = [Edit.set("mlp_gate.1", 1.0), Edit.add("mlp_up.1", vector(mlp), 0.3)]
    found["everything at once"] = [edit for edits in found.values() for edit in edits]
    return found


@pytest.mark.parametrize("engine", OTHERS)
def test_every_edit_does_the_same_through_every_engine(model: Model, engine: str) -> None:
    bare = capture(model, ALL, ["logits"])["logits"]
    sites = ["resid_mid.1", "mlp_post.2", "resid_post.2", "logits"]
    forward = forwards(model)[engine]
    for name, edits in edits_of(model).items():
        expected = capture(model, ALL, sites, edits=edits)
        assert float((expected["logits"] - bare).abs().max()) > 1e-3, f"{name} changes nothing, so it tests nothing"
        close(capture(model, ALL, sites, edits=edits, forward=forward), expected)


@pytest.mark.parametrize("engine", OTHERS)
def test_positions_units_and_batches_mean_the_same_through_every_engine(gpt2: Model, engine: str) -> None:
    edits = edits_of(gpt2)["everything at once"]
    for positions in ("mean", [1, 0], [[0], [1], [2], [0], [1]]):
        settings: dict[str, Any] = {"positions": positions, "units": {"mlp_post.2": [7, 0]}, "edits": edits, "batch_size": 2}
        close(
            run(gpt2, ALL, sites=["mlp_post.2", "z.2"], engine=engine, **settings),
            capture(gpt2, ALL, ["mlp_post.2", "z.2"], **settings),
        )


@pytest.mark.parametrize("engine", OTHERS)
def test_positions_by_role_mean_the_same_through_every_engine(engine: str) -> None:
    model = chat_model()
    edits = [Edit.add("resid_mid.1", vector(model.d_model), 3.0, "user"), Edit.scale("mlp_post.0", 2.0, positions="template")]
    settings: dict[str, Any] = {"positions": "user", "edits": edits, "chat": True}
    expected = capture(model, ALL, ["resid_post.2"], **settings)
    assert not torch.allclose(expected["resid_post.2"], capture(model, ALL, ["resid_post.2"], positions="user", chat=True)["resid_post.2"])
    close(run(model, ALL, sites=["resid_post.2"], engine=engine, **settings), expected)


def test_every_position_of_left_padded_rows_is_the_same_under_edits(engines: Engines) -> None:
    """`run` pads on the left for `last` only; the engines themselves are right at every real position."""
    from interp.edits.transforms import transforms_of
    from interp.forward.capture import _forward

    model, tokens = engines.model, pad(token_rows(engines.model, ALL), 0, "left")
    edits = [
        Edit.add("resid_mid.1", vector(model.d_model), positions=[1]), Edit.scale("mlp_post.0", 2.0, positions="from_last"),
        Edit.add("attn_out.0", vector(model.d_model, 2)), Edit.add("mlp_out.1", vector(model.d_model, 3)), Edit.scale("logits", 2.0),
    ]  # fmt: skip
    work = Work(transforms_of(edits, model), rows=tuple(range(len(ALL))))
    expected = _forward(model, tokens, model.sites(), work, last_only=False)
    for engine, forward in engines.forwards.items():
        got = forward(model, tokens, model.sites(), work, last_only=False)
        assert set(got) == set(expected)
        for site, value in expected.items():
            torch.testing.assert_close(
                got[site].flatten(2)[tokens.mask],
                value.flatten(2)[tokens.mask],
                atol=1e-5,
                rtol=1e-5,
                msg=lambda text, site=site, engine=engine: f"{engine} {site}: {text}",
            )


def test_a_block_of_edits_around_the_call_applies_through_every_engine(gpt2: Model) -> None:
    plain = run(gpt2, ALL, sites=["logits"])
    with editing(gpt2, [Edit.add("resid_mid.0", vector(gpt2.d_model))]):
        expected = run(gpt2, ALL, sites=["logits"])
        for engine in OTHERS:
            close(run(gpt2, ALL, sites=["logits"], engine=engine), expected)
    assert not torch.allclose(plain["logits"], expected["logits"])


@pytest.mark.parametrize("name", sorted(UNKNOWN_TO_LENS))
def test_an_architecture_that_transformer_lens_does_not_know_is_named(families: Callable[[str], Family], name: str) -> None:
    with pytest.raises(UserError, match=f"TransformerLens cannot wrap {name}"):
        run(families(name).model, ALL, sites=["logits"], engine="transformer_lens")


def test_a_model_built_in_memory_is_known_to_transformer_lens_as_well(tokenizer: Any) -> None:
    model = Model(make_hf(FAMILIES["gemma3_text"](), tokenizer), tokenizer, "gemma3")
    assert model.hf.config.architectures is None
    close(run(model, ALL, sites=["attn_out.1", "logits"], engine="transformer_lens"), capture(model, ALL, ["attn_out.1", "logits"]))


def test_the_model_is_untouched_by_the_adapters(fresh_gpt2: Model) -> None:
    from interp.models.offloading import weights_digest

    before, settings = fresh_gpt2.digest, fresh_gpt2.hf.config.to_dict()
    modules = {name: type(module) for name, module in fresh_gpt2.hf.named_modules()}
    forward_of = {name: module.forward for name, module in fresh_gpt2.hf.named_modules()}
    ids = torch.tensor(token_rows(fresh_gpt2, [TEXTS[2]]))
    edits = edits_of(fresh_gpt2)["scale keys"]
    plain, edited = (capture(fresh_gpt2, [TEXTS[2]], ["logits"], positions="all", edits=e)["logits"] for e in ([], edits))
    bridge, lens = fresh_gpt2.to_transformer_lens(), fresh_gpt2.to_nnsight()
    for engine in OTHERS:
        run(fresh_gpt2, ALL, sites=["logits"], edits=edits, engine=engine)
    with torch.no_grad():
        bridge.blocks[0].mlp.W_out.mul_(0)
        lens.transformer.h[0].mlp.c_proj._module.weight.mul_(0)
        assert torch.equal(fresh_gpt2.hf(ids).logits, plain)
    assert weights_digest(fresh_gpt2.hf) == before
    assert fresh_gpt2.hf.config.to_dict() == settings
    assert fresh_gpt2.hf.config._attn_implementation == "sdpa"
    assert {name: type(module) for name, module in fresh_gpt2.hf.named_modules()} == modules
    assert all(module.forward == forward_of[name] for name, module in fresh_gpt2.hf.named_modules())
    assert torch.equal(capture(fresh_gpt2, [TEXTS[2]], ["logits"], positions="all", edits=edits)["logits"], edited)


def test_adapters_in_two_threads_leave_plain_forwards_and_one_another_alone(gpt2: Model) -> None:
    ids = torch.tensor(token_rows(gpt2, [TEXTS[2]]))
    edits = [Edit.add("resid_mid.1", 5 * vector(gpt2.d_model))]
    with torch.no_grad():
        plain = gpt2.hf(ids).logits
    expected = capture(gpt2, ALL, ["logits"], edits=edits)
    found: dict[str, list[Any]] = {engine: [] for engine in OTHERS}
    enough = threading.Event()  # the adapters go on until there were plain forwards beside them, however the threads are scheduled

    def work(engine: str) -> None:
        try:
            while len(found[engine]) < 2 or not enough.is_set():
                found[engine].append(run(gpt2, ALL, sites=["logits"], edits=edits, engine=engine))
        except BaseException as error:  # shown by the assertion below
            found[engine].append(error)

    threads = [threading.Thread(target=work, args=(engine,)) for engine in OTHERS]
    for thread in threads:
        thread.start()
    count = 0
    try:
        with torch.no_grad():
            while any(thread.is_alive() for thread in threads):
                assert torch.equal(gpt2.hf(ids).logits, plain)
                count += 1
                if count > 10:
                    enough.set()
    finally:
        enough.set()
    for results in found.values():
        assert len(results) >= 2
        for result in results:
            assert isinstance(result, Captured), result
            close(result, expected)
    assert count > 10
    # Copies are built with torch's initialisers switched off; two at once could leave them off for the rest of the process.
    blank = torch.full((3,), torch.nan)
    assert torch.equal(torch.nn.init.ones_(blank), torch.ones(3))


def test_names_of_sites_go_both_ways(any_model: Model) -> None:
    for site in any_model.sites():
        assert site_of_module(any_model, module_name(any_model, site)) == site
        if not site.startswith("mlp_gate"):
            assert site_of_hook(hook_name(site)) == site
    assert hook_name("resid_mid.3") == "blocks.3.hook_resid_mid"
    assert site_of_hook("blocks.3.ln2.hook_in") == "resid_mid.3"
    for wrong in ("blocks.1.attn.hook_attn_scores", "hook_embed", "blocks.1.ln_final.hook_out", "mlp.hook_post", "blocks.x.hook_resid_mid"):
        with pytest.raises(UserError, match="not one of our sites"):
            site_of_hook(wrong)
    with pytest.raises(UserError, match="no hook for mlp_gate"):
        hook_name("mlp_gate.0")
    with pytest.raises(UserError, match="none of the sites"):
        site_of_module(any_model, "transformer.wte.output")


def test_names_of_sites_are_those_that_the_libraries_know(model: Model) -> None:
    """A user who takes the names and works in the library alone reads what we capture."""
    import nnsight

    sites = [site for site in model.sites() if not site.startswith("mlp_gate")]
    expected = capture(model, [TEXTS[2]], sites, positions="all")
    ids = torch.tensor(token_rows(model, [TEXTS[2]]))
    with torch.no_grad():
        _, cache = model.to_transformer_lens().run_with_cache(ids)
        lens = model.to_nnsight()
        with lens.trace(ids):
            mid = nnsight.save(lens.get(module_name(model, "resid_mid.1").removesuffix(".input")).input.clone())
    for site in sites:
        torch.testing.assert_close(cache[hook_name(site)].flatten(2), expected[site].flatten(2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mid, expected["resid_mid.1"], atol=1e-5, rtol=1e-5)


def test_a_bridge_has_the_raw_weights(model: Model) -> None:
    bridge = model.to_transformer_lens()
    for layer in range(model.n_layers):
        assert torch.equal(model.value_vectors(layer), bridge.blocks[layer].mlp.W_out)


@pytest.mark.parametrize("bos", [None, True, False])
def test_a_bridge_reads_a_text_as_our_model_does(gpt2: Model, bos: bool | None) -> None:
    tokenizer = copy.deepcopy(gpt2.tokenizer)
    tokenizer.bos_token = EOS
    model = Model(gpt2.hf, tokenizer, "a model", bos=bos)
    bridge = model.to_transformer_lens()
    assert bridge.to_tokens(TEXTS[2]).tolist() == token_rows(model, [TEXTS[2]])
    with torch.no_grad():
        torch.testing.assert_close(bridge(TEXTS[2]), capture(model, TEXTS[2], ["logits"], positions="all")["logits"], atol=1e-5, rtol=1e-5)


@pytest.fixture
def hub_gpt2(gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """The tiny GPT-2 as if it came from the hub, where nothing is asked of the hub itself."""
    import nnsight
    from nnsight.modeling.huggingface import _ID_CACHE
    from nnsight.schema.config import CONFIG

    real = nnsight.TransformersModel

    def skeleton(source: Any, **settings: Any) -> Any:
        assert gpt2.checkpoint is not None
        if not isinstance(source, str):
            return real(source, **settings)
        assert source == "lab/tiny"
        lens = real(gpt2.checkpoint.source, **settings)
        monkeypatch.setitem(_ID_CACHE, gpt2.checkpoint.source, source)
        return lens

    monkeypatch.setattr(nnsight, "TransformersModel", skeleton)
    monkeypatch.setattr(CONFIG.API, "APIKEY", "a key")
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    monkeypatch.setattr("interp.adapters.nnsight.POLL_SECONDS", 0.01)
    return Model(gpt2.hf, gpt2.tokenizer, "lab/tiny", Checkpoint("lab/tiny", Path("lab/tiny"), on_hub=True))


class Server:
    """A stand-in for NDIF on this machine: it runs what it is sent, or answers as `mood` says."""

    def __init__(self, model: Model, mood: str) -> None:
        self.lens, self.mood, self.answer = model.to_nnsight(), mood, b""
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                if self.path == "/status":
                    entry = {"repo_id": "other/model" if server.mood == "elsewhere" else "lab/Tiny", "application_state": "RUNNING"}
                    self.send(json.dumps({"deployments": {"1": entry}}).encode())
                elif self.path == "/env":
                    self.send(b'{"packages": {}}')
                elif self.path == "/result":
                    self.send(server.answer)
                else:
                    done = {"id": "1", "status": "COMPLETED", "data": f"{server.url}/result"}
                    waiting = {"id": "1", "status": "QUEUED"}
                    broken = {"id": "1", "status": "ERROR", "description": "out of memory"}
                    self.send(json.dumps({"busy": waiting, "broken": broken}.get(server.mood, done)).encode())

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if server.mood == "stranger":
                    self.send(b'{"detail": "this key is unknown"}', 401)
                    return
                if server.mood == "":
                    server.run(body)
                self.send(b'{"id": "1", "status": "RECEIVED"}')

            def send(self, content: bytes, code: int = 200) -> None:
                self.send_response(code)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def run(self, body: bytes) -> None:
        import zstandard
        from nnsight.schema.request import RequestModel
        from nnsight.tracing.tracer import dec, inc

        blob = body.split(b"application/octet-stream\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0]
        tracer = RequestModel.deserialize(blob, self.lens._remoteable_persistent_objects(), compress=True)
        inc()
        try:
            with torch.no_grad():
                tracer.execute(tracer.info.code)
        finally:
            dec()
        saved = tracer.info.frame.f_locals
        stream = io.BytesIO()
        torch.save({"activations": dict(saved["activations"])}, stream)
        self.answer = zstandard.ZstdCompressor().compress(stream.getvalue())


@pytest.fixture
def serve(gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Server]]:
    from nnsight.schema.config import CONFIG

    started: list[Server] = []

    def start(mood: str = "") -> Server:
        server = Server(gpt2, mood)
        threading.Thread(target=server.http.serve_forever, daemon=True).start()
        monkeypatch.setattr(CONFIG.API, "HOST", server.url)
        started.append(server)
        return server

    yield start
    for server in started:
        server.http.shutdown()
        server.http.server_close()


def test_a_hub_model_runs_on_a_server_and_gives_the_same(hub_gpt2: Model, serve: Callable[[str], Server]) -> None:
    serve("")
    edits = edits_of(hub_gpt2)["everything at once"]
    settings: dict[str, Any] = {"sites": ["resid_mid.1", "z.2", "logits"], "edits": edits}
    close(run(hub_gpt2, ALL, engine="nnsight", remote=True, seconds=60, **settings), run(hub_gpt2, ALL, **settings))


@pytest.mark.parametrize(
    ("mood", "problem"),
    [
        ("busy", "did not answer within 0.2 seconds"),
        ("broken", "out of memory"),
        ("stranger", "this key is unknown"),
        ("elsewhere", "NDIF does not run lab/tiny now.*other/model"),
    ],
)
def test_a_server_that_cannot_serve_is_named_and_never_waited_for(
    hub_gpt2: Model, serve: Callable[[str], Server], mood: str, problem: str
) -> None:
    serve(mood)
    with pytest.raises(UserError, match=problem):
        run(hub_gpt2, ALL, sites=["logits"], engine="nnsight", remote=True, seconds=0.2)


def test_what_no_server_can_run_is_refused_before_it_is_asked(gpt2: Model, hub_gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnsight.schema.config import CONFIG

    monkeypatch.setattr(CONFIG.API, "HOST", "http://127.0.0.1:9")
    ask: dict[str, Any] = {"sites": ["logits"], "engine": "nnsight", "remote": True}
    for model in (gpt2, Model(gpt2.hf, gpt2.tokenizer, "made here")):
        with pytest.raises(UserError, match="is a private checkpoint"):
            run(model, ALL, **ask)
    with pytest.raises(UserError, match="cannot be reached"):
        run(hub_gpt2, ALL, **ask)
    monkeypatch.setattr(CONFIG.API, "APIKEY", None)
    monkeypatch.delenv("NDIF_API_KEY", raising=False)
    with pytest.raises(UserError, match="no API key"):
        run(hub_gpt2, ALL, **ask)
    with pytest.raises(UserError, match="cannot run on NDIF"):
        run(hub_gpt2, ALL, **{**ask, "engine": "hooks"})
    with pytest.raises(UserError, match="there is no engine 'magic'"):
        run(gpt2, ALL, sites=["logits"], engine="magic")
    with pytest.raises(UserError, match="remote is 'soon'"):
        run(gpt2, ALL, sites=["logits"], engine="nnsight", remote="soon")


def test_a_library_that_is_missing_is_named(gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for engine in OTHERS:
        monkeypatch.setitem(sys.modules, engine, None)
        with pytest.raises(UserError, match=rf"{engine} cannot be imported.*pip install"):
            run(gpt2, ALL, sites=["logits"], engine=engine)


class NotOnTheServer(importlib.abc.MetaPathFinder):
    """While nnsight hides this project, it cannot be imported again, wherever it is installed."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if "interp" not in sys.modules and name.partition(".")[0] in ("interp", "jaxtyping"):
            raise ModuleNotFoundError(f"{name} is not on the server")


def test_a_request_packed_as_for_a_server_holds_all_that_it_needs(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnsight reads the request back with this project hidden, and runs that."""
    monkeypatch.setattr(sys, "meta_path", [NotOnTheServer(), *sys.meta_path])
    edits = [edit for edits in edits_of(model).values() for edit in edits]
    for positions in ("last", "all"):
        settings: dict[str, Any] = {"sites": ["resid_mid.2", "z.2", "logits"], "edits": edits, "positions": positions}
        close(run(model, ALL, engine="nnsight", remote="dry", **settings), run(model, ALL, **settings))
