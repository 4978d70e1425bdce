"""The system's clock is set while clients are served: nothing that is waited for or judged depends on it.

Only the proxy sees it: a library that is loaded before the C library adds a file's seconds to CLOCK_REALTIME.
"""

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from asking import counters, key_on, node_of
from servers import ProxyProcess, redis_nodes, shards_of, toml, until

SHIM = r"""
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long *ahead;

__attribute__((constructor)) static void start(void) {
    int fd = open(getenv("CLOCK_AHEAD"), O_RDONLY);
    void *found = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, fd, 0);
    if (found != MAP_FAILED) ahead = found;
    close(fd);
}
int clock_gettime(clockid_t clock, struct timespec *t) {
    int status = syscall(SYS_clock_gettime, clock, t);
    if (clock == CLOCK_REALTIME && ahead) t->tv_sec += *ahead;
    return status;
}
int gettimeofday(struct timeval *t, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec, t->tv_usec = now.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *t) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}
"""
POOL = """kind = "cache"
on_shard_down = "rehash"
on_return = "invalidate"
timeout = "5s"
health = { interval = "100ms", timeout = "5s" }"""


@pytest.mark.parametrize("workers", [1, 2])
def test_nobody_is_put_out_nor_too_late_and_a_node_comes_back(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, library, ahead = tmp_path / "shim.c", tmp_path / "shim.so", tmp_path / "ahead"
    source.write_text(SHIM)
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "a C compiler is needed (Debian: gcc), as for the build"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)

    def jump(seconds: int) -> None:
        with ahead.open("r+b") as file:
            file.write(seconds.to_bytes(8, "little", signed=True))

    ahead.write_bytes(bytes(8))
    with redis_nodes(2) as nodes:
        monkeypatch.setenv("LD_PRELOAD", str(library))
        monkeypatch.setenv("CLOCK_AHEAD", str(ahead))
        config = toml(shards_of(nodes), top=f"workers = {workers}", pool=POOL)
        with ProxyProcess(config) as proxy, proxy.raw() as raw:
            until(lambda: all(node_of(raw, name)["state"] == "up" for name in "ab"))
            mine = key_on(raw, "a")
            for seconds in (86_400, -86_400 * 365, 3, -2, 0):
                jump(seconds)
                now = int(raw.value("TIME")[0])
                assert abs(now - time.time() - seconds) < 60, "the proxy sees it"
                for number in range(20):
                    key = f"key{number}"
                    assert raw.ask("SET", key, number) == b"+OK\r\n"
                    assert raw.value("GET", key) == str(number)
            assert [event["state"] for event in proxy.events("node_state")] == []
            nodes[0].kill()
            until(lambda: node_of(raw, "a")["state"] == "out")
            jump(-86_400)
            assert raw.ask("SET", mine, "elsewhere") == b"+OK\r\n"
            nodes[0].start()
            jump(86_400)
            until(lambda: node_of(raw, "a")["state"] == "up")
            assert raw.ask("GET", mine) == b"$-1\r\n"
            assert raw.ask("SET", mine, "home") == b"+OK\r\n"
            assert counters(raw)["timeouts"] == 0
