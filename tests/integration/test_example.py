"""The example of docker/, without docker: its apps, its proxy, its door's configuration, on free ports.

One browser is logged in while app servers die under it and come back. nginx and HAProxy end TLS, so the
cookie is `__Host-id` all the way.
"""

import contextlib
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from certs import Authority
from servers import ROOT, ProxyProcess, RedisNode, free_ports, program, until

from shardproxy.config import load

DOCKER = ROOT / "docker"
COMMANDS = {
    "fastapi": ["uvicorn", "fastapi_app:app", "--log-level", "warning"],
    "flask": ["flask", "--app", "flask_app", "run"],
    "django": ["uvicorn", "django_app:app", "--log-level", "warning"],
}
NAMES = {"fastapi": "FastAPI", "flask": "Flask", "django": "Django"}
DOORS = ["nginx", "haproxy"]


class Example:
    """All of compose.yml as processes of this machine."""

    def __init__(self, folder: Path, nodes: list[RedisNode]) -> None:
        self.folder = folder
        config = (DOCKER / "shardproxy.toml").read_text().replace("0.0.0.0:6380", "127.0.0.1:0")
        for name, node in zip("abc", nodes, strict=True):
            config = config.replace(f"redis-{name}:6379", node.address)
        self.proxy = ProxyProcess(config)
        self.ports = dict(zip([*COMMANDS, *DOORS], free_ports(5), strict=True))
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.authority = Authority(folder)
        cert, key = self.authority.issue("door")
        self.both = folder / "both.pem"
        self.both.write_bytes(cert.read_bytes() + key.read_bytes())

    def start(self, name: str) -> None:
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SESSION_SECRETS": "only-for-this-test-only-for-this-test",
            "SESSION_REDIS": f"redis://{self.proxy.addresses[0]}",
            "TRUSTED_PROXIES": "127.0.0.0/8",
        }
        command = [
            sys.executable,
            "-m",
            *COMMANDS[name],
            "--host",
            "127.0.0.1",
            "--port",
            str(self.ports[name]),
        ]
        log = (self.folder / f"{name}.log").open("ab")
        with log:
            self.running[name] = subprocess.Popen(
                command, cwd=DOCKER / "apps", env=env, stdout=log, stderr=log
            )

    def answers(self, name: str) -> None:
        """Waits until it does."""
        url = f"http://127.0.0.1:{self.ports[name]}/state"

        def tries() -> bool:
            assert self.running[name].poll() is None, (self.folder / f"{name}.log").read_text()
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(url).status_code == 200
            return False

        until(tries, f"{name} to answer")

    def open_doors(self) -> None:
        text = self.placed("nginx.conf").replace(
            "listen 8080;",
            f"listen 127.0.0.1:{self.ports['nginx']} ssl; ssl_certificate {self.both};"
            f" ssl_certificate_key {self.both};",
        )
        temporary = "".join(
            f"  {kind}_temp_path {self.folder};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        text = f"pid {self.folder}/nginx.pid;\n" + text.replace("http {\n", "http {\n" + temporary)
        config = self.folder / "nginx.conf"
        config.write_text(text)
        errors = f"{self.folder}/nginx-errors.log"
        self.running["nginx"] = subprocess.Popen(
            [program("nginx", "nginx"), "-p", str(self.folder), "-e", errors, "-c", str(config), "-g",
             f"daemon off; error_log {errors};"],
        )  # fmt: skip
        config = self.folder / "haproxy.cfg"
        bind = f"bind 127.0.0.1:{self.ports['haproxy']} ssl crt {self.both}"
        config.write_text(self.placed("haproxy.cfg").replace("bind :8080", bind))
        self.running["haproxy"] = subprocess.Popen(
            [program("haproxy", "haproxy"), "-f", str(config)], stderr=subprocess.DEVNULL
        )
        for door in DOORS:
            with self.browser(door) as client:
                until(lambda client=client: self.open(client), f"{door} to let somebody in")

    @staticmethod
    def open(client: httpx.Client) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return client.get("/state").status_code == 200
        return False

    def placed(self, file: str) -> str:
        """A door's configuration with the servers' addresses of today."""
        text = (DOCKER / file).read_text()
        for name in COMMANDS:
            assert f"{name}:8000" in text
            text = text.replace(f"{name}:8000", f"127.0.0.1:{self.ports[name]}")
        return text

    def browser(self, door: str) -> httpx.Client:
        url = f"https://localhost:{self.ports[door]}"
        return httpx.Client(base_url=url, verify=self.authority.context(), timeout=20)

    def kill(self, name: str) -> None:
        """No goodbye."""
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def stop(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait(20)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory, nodes3: list[RedisNode]) -> Iterator[Example]:
    made = Example(tmp_path_factory.mktemp("example"), nodes3)
    with made.proxy:
        try:
            for name in COMMANDS:
                made.start(name)
            for name in COMMANDS:
                made.answers(name)
            made.open_doors()
            yield made
        finally:
            made.stop()


def seen(client: httpx.Client, count: int) -> list[dict[str, Any]]:
    return [client.get("/state").raise_for_status().json() for _ in range(count)]


@pytest.mark.parametrize("door", DOORS)
def test_one_login_for_three_frameworks(example: Example, door: str) -> None:
    with example.browser(door) as client:
        client.post("/cart", data={"item": "tea"})
        assert client.post("/login", data={"user": "ann"}).status_code == 303
        assert set(client.cookies) == {"__Host-id"}
        for number in range(6):
            client.post("/cart", data={"item": str(number)})
        states = seen(client, 12)
        assert Counter(each["framework"] for each in states) == dict.fromkeys(NAMES.values(), 4)
        assert {each["user"] for each in states} == {"ann"}
        assert states[-1]["cart"] == ["tea", *"012345"]
        assert "ann" in client.get("/").text
        other = httpx.Cookies(client.cookies)
        client.post("/logout")
        assert {each["user"] for each in seen(client, 3)} == {None} and not client.cookies
        client.cookies = other
        assert {each["user"] for each in seen(client, 3)} == {None}, "the old cookie is nobody in all of them"


def test_nobody_is_logged_out_while_app_servers_die(example: Example) -> None:
    """Two of three go, one comes back, the last of the first goes: ann clicks on through all of it."""
    with example.browser("nginx") as client, example.browser("nginx") as impatient:
        client.post("/login", data={"user": "ann"})
        impatient.cookies = httpx.Cookies(client.cookies)
        users: Counter[str | None] = Counter()
        stop = threading.Event()

        def clicks() -> None:
            while not stop.is_set():
                with contextlib.suppress(httpx.TransportError, ValueError):  # it died in the middle of a body
                    response = impatient.get("/state")
                    if response.status_code == 200:
                        users[response.json()["user"]] += 1

        thread = threading.Thread(target=clicks)
        thread.start()
        try:
            for gone in ("flask", "django"):
                example.kill(gone)
                assert {each["user"] for each in seen(client, 6)} == {"ann"}
            assert {each["framework"] for each in seen(client, 3)} == {"FastAPI"}
            client.post("/cart", data={"item": "in the storm"})
            example.start("flask")
            example.answers("flask")
            until(
                lambda: "Flask" in {each["framework"] for each in seen(client, 2)}, "Flask to be asked again"
            )
            example.kill("fastapi")
            (state,) = seen(client, 1)
            assert (state["framework"], state["user"], state["cart"]) == ("Flask", "ann", ["in the storm"])
            before = users.total()
            until(lambda: users.total() > before, "one more click")
        finally:
            stop.set()
            thread.join()
        assert set(users) == {"ann"}, users


def test_the_compose_file_names_what_is_there() -> None:
    """No docker here: what it mounts, builds and starts exists, and is what the other tests have run."""
    text = (DOCKER / "compose.yml").read_text()
    for name in ("nginx.conf", "haproxy.cfg", "shardproxy.toml", "Dockerfile"):
        assert name in text and (DOCKER / name).exists()
    for name, command in COMMANDS.items():
        assert f"  {name}:\n" in text and " ".join(command[:2] if name != "flask" else command) in text
        assert (DOCKER / "apps" / f"{name}_app.py").exists()
    # On the network of compose.yml others than this machine ask, and nobody logs in
    assert not load(DOCKER / "shardproxy.toml").protected_mode and "--protected-mode no" in text
