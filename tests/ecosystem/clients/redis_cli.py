"""redis-cli: `redis_cli.py PORT JOB`."""

import subprocess
import sys
import time

PORT, JOB = sys.argv[1:3]


def cli(*args: str, given: bytes | None = None) -> str:
    done = subprocess.run(["redis-cli", "-p", PORT, *args], input=given, capture_output=True, timeout=20)
    assert done.returncode == 0, (args, done)
    return done.stdout.decode()


def everyday() -> None:
    assert cli("set", "cli:a", "1") == "OK\n"
    assert cli("incrby", "cli:a", "41") == "42\n"
    assert cli("-3", "hset", "cli:h", "a", "1") in ("1\n", "0\n")
    assert cli("-3", "--no-raw", "hgetall", "cli:h") == '1# "a" => "1"\n'
    assert cli("-r", "3", "incr", "cli:a") == "43\n44\n45\n"
    assert cli("-x", "set", "cli:file", given=b"\0from a file") == "OK\n"
    assert cli("get", "cli:file") == "\0from a file\n"
    assert cli(given=b"multi\nset {cli}:x 1\nincr {cli}:x\nexec\n").splitlines() == [
        *("OK", "QUEUED", "QUEUED", "OK", "2")
    ]
    assert cli("del", "cli:a", "cli:h", "cli:file", "{cli}:x") == "4\n"


def pipe() -> None:
    lines = "".join(f"SET cli:pipe:{number} {number}\r\n" for number in range(2000))
    assert "errors: 0, replies: 2000" in cli("--pipe", given=lines.encode())
    assert cli("get", "cli:pipe:1999") == "1999\n"
    cli("del", *(f"cli:pipe:{number}" for number in range(2000)))


def eval_() -> None:
    with open(f"/tmp/shardproxy-cli-{PORT}.lua", "w") as file:
        file.write("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    cli("del", "cli:n")
    assert cli("--eval", file.name, "cli:n", ",", "5") == "5\n"
    assert cli("script", "load", "return 1") == "e0e1f9fabfc9d4800c877a703b823ac0578ff8db\n"
    assert cli("evalsha", "e0e1f9fabfc9d4800c877a703b823ac0578ff8db", "1", "k") == "1\n"
    assert cli("eval", "return ARGV[1]", "0", "x") == "x\n"


def scan() -> None:
    cli("mset", *(part for number in range(300) for part in (f"cli:scan:{number}", "x" * number)))
    assert len(cli("--scan", "--pattern", "cli:scan:*").split()) == 300
    assert "Biggest string found" in cli("--bigkeys")
    cli("del", *(f"cli:scan:{number}" for number in range(300)))


def databases() -> None:
    assert cli("-n", "2", "set", "cli:db", "two") == "OK\n"
    assert cli("get", "cli:db") == "\n"
    assert cli("-n", "2", "get", "cli:db") == "two\n"
    assert cli("-n", "2", "move", "cli:db", "4") == "1\n"
    assert cli("-n", "4", "del", "cli:db") == "1\n"


def pubsub() -> None:
    with subprocess.Popen(
        ["redis-cli", "-p", PORT, "subscribe", "cli:news"], stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(3)] == [b"subscribe\n", b"cli:news\n", b"1\n"]
        for _ in range(100):
            if cli("publish", "cli:news", "hello") == "1\n":
                break
            time.sleep(0.1)
        assert [process.stdout.readline() for _ in range(3)] == [b"message\n", b"cli:news\n", b"hello\n"]
        process.terminate()


{"eval": eval_}.get(JOB, globals().get(JOB))()
