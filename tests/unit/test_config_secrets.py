"""Who logs in with what, as a configuration says it, at nodes and here; no secret is in what is shown."""

import os
import pickle
import tomllib
from pathlib import Path

import pytest
from configs import SHARD, mistakes

from shardproxy import config
from shardproxy.config import Config, ConfigError, Credentials, PoolConfig, ShardConfig, load, pages, tables


def with_password(tmp_path: Path, mode: int) -> Path:
    file = tmp_path / "my.toml"
    file.write_text('[pool.main.shards]\na = "redis://app:hunter%202@h:1"\nb = "redis://h:2"\n')
    file.chmod(mode)
    return file


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_password_in_a_file_that_others_can_read(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError) as caught:
        load(with_password(tmp_path, mode))
    (mistake,) = caught.value.mistakes
    assert "a password in a file that others can read" in mistake.found
    assert "chmod 600" in mistake.allowed


def test_credentials(tmp_path: Path) -> None:
    made = load(with_password(tmp_path, 0o600))
    assert made.pool["main"].shards["a"].primary == "redis://h:1"
    credentials = Credentials.read(made)
    assert credentials.of("main", "a") == ("app", "hunter 2")
    assert credentials.of("main", "b") is None


def test_a_shard_goes_before_its_pool(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from a file\n")
    made = load(
        f"""
        [pool.main]
        username = "everyone"
        password_env = "HOME"
        [pool.main.shards]
        a = "redis://h:1"
        b = {{ primary = "redis://h:2", username = "me", password_file = "{tmp_path}/secret" }}
        """.encode()
    )
    credentials = Credentials.read(made, {"HOME": "from the environment"})
    assert credentials.of("main", "a") == ("everyone", "from the environment")
    assert credentials.of("main", "b") == ("me", "from a file")


def test_looking_needs_no_secrets() -> None:
    text = '[pool.main.shards]\na = { primary = "redis://h:1", password_env = "NO_SUCH" }'
    assert load(text.encode(), secrets=False).pool
    assert len(mistakes(text)) == 1


def test_no_repr_or_output_shows_a_secret(tmp_path: Path) -> None:
    made = load(with_password(tmp_path, 0o600))
    for shown in (
        repr(made),
        str(made),
        repr(Credentials.read(made)),
        pages.effective_text(made),
        f"{made.pool['main'].shards['a'].password}",
    ):
        assert "hunter" not in shown


@pytest.mark.parametrize(
    "text",
    [
        'pasword = "hunter2"',
        "password = 77777",
        '[pool.main.shards]\na = "redis://:hunter2@h:1/7"',
        '[pool.main.shards]\na = "redis://u:hunter2@h"x',
        '[pool.main.shards]\na = "memcache://:hun@ter2/hunter2@h:1"',
        '[pool.main.shards]\na = { primary = "http://u:hunter2@h:1" }',
        '[pool.main.shards]\na = ["redis://u:hunter2@h:1"]',
        '[pool.main.shards]\na = { primary = "redis://h:1/?password=hunter2" }',
        'listen = ["redis://u:hunter2@h:1"]',
        '[pool.main.shards.a]\nprimary = "redis://h:1"\npassword = ["hunter2"]',
        'admin = { password = "hunter2" }',
    ],
)
def test_no_mistake_shows_a_secret(text: str) -> None:
    found = "\n".join(mistakes(text))
    assert "hunter" not in found


def test_a_configuration_goes_to_a_worker(tmp_path: Path) -> None:
    made = load(with_password(tmp_path, 0o600))
    assert pickle.loads(pickle.dumps(made)) == made


def test_the_environment_is_read_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Config(
        pool={"m": PoolConfig(password_env="P_W", shards={"a": ShardConfig(primary="redis://h:1")})}
    )
    monkeypatch.setitem(os.environ, "P_W", "now")
    assert Credentials.read(made).of("m", "a") == ("", "now")


# --- users: what their rules mean is in test_acl.py


def with_users(text: str, top: str = "") -> str:
    return f"{top}\n{SHARD}[users]\n{text}\n"


def test_users_as_text_and_as_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_PASSWORD", "from the environment")
    text = with_users(
        'default = "off"\napp = { acl = "on ~a +@all", password_env = "APP_PASSWORD", clients = 3 }'
    )
    users = config.read_users(load(text.encode()))
    app = users.login("app", b"from the environment")
    assert app is not None and not users.default.open and users.limits == {"app": 3}
    assert app.root.key_text == "~a" and "environment" not in repr(load(text.encode()))


def test_every_mistake_in_users_is_named() -> None:
    found = mistakes(
        with_users(
            'a = "on +gett hunter2"\nb = { password = "x" }\n"c d" = "on"\ne = 5\n'
            'f = { acl = "on", clients = -1 }\n'
            'g = { acl = "~* ~x (on)", password = "a", password_env = "NOT_SET" }',
            top='acl_file = "/nonexistent/users.acl"',
        )
    )
    for words in ("did you mean get?", "users.a.acl: found a word that is not shown", "users.b.acl: found",
                  'users."c d"', "users.e", "users.f.clients", "users.g.acl", "one of them"):  # fmt: skip
        assert any(words in each for each in found), (words, found)
    assert "hunter2" not in str(found)


def test_a_password_in_rules_is_refused_where_others_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "shardproxy.toml"
    path.write_text(with_users('app = "on >secret ~* +@all"\nb = { acl = "on", password = "secret" }\n'
                               f'c = "on #{"ab" * 32}"'))  # fmt: skip
    path.chmod(0o644)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert len(caught.value.mistakes) == 2 and "secret" not in str(caught.value)
    path.chmod(0o600)
    load(path)


def test_rules_are_shown_without_passwords() -> None:
    text = with_users(f'app = "on >secret #{"ab" * 32} ~* +@all"')
    made = load(text.encode())
    for shown in (repr(made), pages.effective_text(made)):
        assert ">" not in shown and "abab" not in shown
    assert tomllib.loads(pages.effective_text(made))["users"] == {"app": "on ~* +@all"}
    other = load(text.replace("secret", "other").encode())
    assert list(map(str, tables.differences(made, other))) == ["users.app.acl changed"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("app on", "line 1: found a line without a user"),
        ("user", "line 1: found a line without a user"),
        ("user a on\nuser a on", "line 2: found user a again"),
        ("user a on\n\n# comment\nuser b on +nope", 'line 4, user b: found "+nope"'),
        ("user a on >secret", "a password in a file that others can read"),
        ("user a\xe9 on", "line 1"),
    ],
)
def test_mistakes_in_an_acl_file(lines: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "users.acl"
    path.write_bytes(lines.encode("latin-1"))
    path.chmod(0o644)
    found = mistakes(f'acl_file = "{path}"\n{SHARD}')
    assert len(found) == 1 and words in found[0]


def test_an_acl_file(tmp_path: Path) -> None:
    path = tmp_path / "users.acl"
    path.write_text("user default off\n\nuser app on >secret ~a (~b +get)\r\n")
    path.chmod(0o600)
    made = load(f'acl_file = "{path}"\nuser_scripts = "trust"\n{SHARD}'.encode())
    users = config.read_users(made)
    assert users.login("app", b"secret") and users.trust_scripts and not users.default.open
    assert config.read_users(made, secrets=False).by_name.keys() == {"default"}


def test_protected_mode_is_no_matter_where_clients_must_log_in() -> None:
    for text, warned in (
        ('default = "off"', False),
        ('default = "on nopass +@all"', True),
        ('app = "on"', True),
    ):
        made = load(with_users(text, top='listen = ["0.0.0.0:1"]').encode())
        assert any("protected_mode" in each for each in made.warnings) == warned
