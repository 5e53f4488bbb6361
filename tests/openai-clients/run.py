#!/usr/bin/env python3
"""Drives a running network with the official `openai` clients for Python and JavaScript.

Starts `assay up` (the default model and an encoder, fetched by `assay model pull`) in a folder of its own, a second gateway that wants
an API key and limits rates, and then both clients. Run it with a Python that has requirements.txt installed, after
`npm ci` in this folder.
"""

import hashlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KEY = "sk-only-for-this-test"
MODELS = ("smollm2-135m-instruct", "all-minilm-l6-v2")
RATE = 4  # requests before the second gateway refuses


def binary() -> str:
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    found = [target / profile / "assay" for profile in ("debug", "release")]
    found = [path for path in found if path.is_file()]
    if not found:
        sys.exit("there is no assay binary; run `cargo build` first")
    return str(max(found, key=lambda path: path.stat().st_mtime))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ready(url: str, process: subprocess.Popen, log: pathlib.Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(1200):
        try:
            with opener.open(url + "/health", timeout=5) as answer:
                if json.load(answer)["status"] == "ok":
                    return
        except OSError:
            pass
        if process.poll() is not None:
            break
        time.sleep(0.1)
    sys.exit(f"no gateway at {url}:\n{log.read_text()}")


def start(arguments: list[str], environment: dict, log: pathlib.Path) -> subprocess.Popen:
    with log.open("wb") as file:
        return subprocess.Popen(arguments, env=environment, stdout=file, stderr=subprocess.STDOUT)


def main() -> None:
    assay = binary()
    with tempfile.TemporaryDirectory(prefix="assay-clients-") as name:
        folder = pathlib.Path(name)
        environment = {**os.environ, "ASSAY_HOME": str(folder / "home"), "NO_PROXY": "127.0.0.1"}
        for model in MODELS:
            subprocess.run([assay, "model", "pull", model], env=environment, check=True)
        processes = []
        try:
            port = free_port()
            url = f"http://127.0.0.1:{port}"
            up = [assay, "--json", "up", "--workers", "2", "--validators", "0", "--port", str(port)]
            up += [word for model in MODELS for word in ("--model", model)]
            processes.append(start(up, environment, folder / "up.log"))
            ready(url, processes[-1], folder / "up.log")
            network = folder / "home" / "up"
            members = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url + "/assay/members")
            limited_port = free_port()
            digest = hashlib.sha256(KEY.encode()).hexdigest()
            config = folder / "limited.toml"
            config.write_text(
                f"""[gateway]
listen = "127.0.0.1:{limited_port}"
members_file = "{network}/members.json"
members_signer = "{json.load(members)["signer"]}"
state_dir = "{folder}/limited"
requests_per_minute = 1
requests_burst = {RATE}
api_keys = [{{ name = "tester", sha256 = "{digest}" }}]
"""
            )
            limited = f"http://127.0.0.1:{limited_port}"
            command = [assay, "gateway", "--config", str(config)]
            processes.append(start(command, environment, folder / "limited.log"))
            ready(limited, processes[-1], folder / "limited.log")
            clients = {
                **environment,
                "ASSAY": assay,
                "ASSAY_URL": url,
                "ASSAY_LIMITED_URL": limited,
                "ASSAY_LIMITED_KEY": KEY,
            }
            clients = {name: value for name, value in clients.items() if not name.startswith("OPENAI_")}
            for command in ([sys.executable, "client.py"], ["node", "client.mjs"]):
                began = time.monotonic()
                done = subprocess.run(command, cwd=HERE, env=clients, timeout=900)
                if done.returncode != 0:
                    for log in sorted(network.glob("*/log")):
                        print(f"-- {log.parent.name}\n{log.read_text()[-4000:]}", file=sys.stderr)
                    sys.exit(f"{command[1]} failed")
                print(f"{command[1]}: passed in {time.monotonic() - began:.0f} s")
        finally:
            for process in reversed(processes):
                process.send_signal(signal.SIGINT)
            for process in processes:
                process.wait(timeout=60)


if __name__ == "__main__":
    main()
