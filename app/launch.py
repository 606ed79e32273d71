"""Starting the app as its own process.

Streamlit's server dies at its start where nnsight was imported before it in the same process, so the command line never
becomes the server: it starts one, passes signals on, and waits. Settings are passed as flags rather than read from a
`.streamlit` folder, so that they hold wherever the command is called from.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import webbrowser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from app.settings import DEMO, PAIR
from interp.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
# Seconds; a container engine kills after ten.
GRACE = 7.0
# Seconds to wait for the server; long, because a busy machine is slow.
PATIENCE = 120.0
# A full collection after every run of a page would look at all that torch and transformers hold: 0.25 s, in which nothing else runs.
SETTINGS = {
    "runner.postScriptGC": "false",
    "server.headless": "true", "server.fileWatcherType": "none", "server.runOnSave": "false", "server.maxUploadSize": "5",
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "minimal", "logger.hideWelcomeMessage": "true", "global.disableWidgetStateDuplicationWarning": "true",
    "client.showErrorDetails": "none", "client.showErrorLinks": "false",
    "theme.light.primaryColor": "#59626f", "theme.dark.primaryColor": "#a3adbb", "theme.paddingTop": "3rem", "theme.baseRadius": "0.45rem",
    "theme.font": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
}  # fmt: skip


def launch(port: int = 8501, host: str = "localhost", browser: bool = True, demo: bool = False, pair: tuple[str, str] | None = None) -> int:
    """Serve the app until it is stopped (Ctrl-C, or a request to terminate); return the exit code of the server.

    Args:
        host: the address that it listens on; anything but `localhost` lets other machines in.
        browser: open a window.
        demo: for visitors: limits on the length of prompts and continuations.
        pair: the two sides, or a pair's name twice, that the app opens on.

    Raises:
        UserError: Streamlit is not installed, the port is taken, or the host is no address of this machine.
    """
    if find_spec("streamlit") is None:
        raise UserError("the browser app needs streamlit, which is not installed", "run `pip install bypass-workbench[app]`, or `make app`")
    check_port(host, port)
    process = subprocess.Popen(command(port, host), env=environment(demo, pair))
    # In place of Streamlit's own greeting, which requests this machine's address from an outside server.
    sys.stdout.write(f"Bypass listens on http://{host}:{port} (stop it with Ctrl-C)\n")
    sys.stdout.flush()
    if browser:
        threading.Thread(target=show, args=(port, host, process), daemon=True).start()
    if threading.current_thread() is not threading.main_thread():
        return process.wait()
    stopped: list[float] = []

    def hand_on(number: int, frame: Any) -> None:
        # A terminal's Ctrl-C reaches the server as well; a second SIGINT would make it drop its sessions, SIGTERM does not.
        stopped.append(time.monotonic())
        if process.poll() is None:
            process.terminate()

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while True:
            try:
                code = process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                if stopped and time.monotonic() - stopped[0] > GRACE:
                    process.kill()
                continue
            return 0 if stopped else code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def command(port: int, host: str) -> list[str]:
    """The command line of the server, with every setting as a flag."""
    settings = SETTINGS | {"server.port": str(port), "server.address": host}
    return [sys.executable, "-m", "app.server", *(f"--{name}={value}" for name, value in settings.items())]


def show(port: int, host: str, process: subprocess.Popen) -> None:
    """Open a browser window once the server answers; nothing on a machine without a desktop."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
    if healthy(url, process):
        webbrowser.open(url)


def healthy(url: str, process: subprocess.Popen) -> bool:
    """Whether the server answers before it ends and before `PATIENCE` is over."""
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=2) as reply:
                return bool(reply.status == 200 and reply.read() == b"ok")
        except OSError:
            time.sleep(0.1)
    return False


def environment(demo: bool, pair: tuple[str, str] | None = None) -> dict[str, str]:
    """The environment of the server: the pair that it opens on, and where this package is imported from, installed or not."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    chosen = {PAIR: "::".join(pair)} if pair is not None else {}
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return quiet | os.environ | {"PYTHONPATH": os.pathsep.join(paths), DEMO: "1" if demo else "0"} | chosen


def check_port(host: str, port: int) -> None:
    """Raise `UserError` where nothing could listen at this address, before anything is started."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, OverflowError) as error:
        raise UserError(f"{host}:{port} is no address ({error})", "use --host localhost, or an address of this machine") from error
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(address)
            except PermissionError as error:
                raise UserError(f"port {port} may not be used by this user", "choose one above 1023 with --port") from error
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise UserError(f"port {port} is taken", f"stop what uses it, or choose another: --port {port + 1}") from error
                if family == socket.AF_INET:
                    raise UserError(
                        f"cannot listen on {host}: {error.strerror}", "use --host localhost, or an address of this machine"
                    ) from error
