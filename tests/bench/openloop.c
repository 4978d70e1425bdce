/* An open-loop load generator: GETs at a fixed mean rate (Poisson arrivals, fixed seed) over N connections,
 * whatever the server does. Latency counts from the moment a request was due, so a server that stalls cannot
 * hide it by slowing the generator down (coordinated omission).
 *
 *   openloop PORT CLIENTS RATE SECONDS WARMUP PREFIX KEYS SIZE   ->   one line of JSON
 *
 * 127.0.0.1 only; every reply must be a bulk string of SIZE bytes. Exit 1 with a reason otherwise. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { RING = 1 << 14, MAX_CLIENTS = 4096, EVENTS = 256 };

struct client {
    int fd;
    uint32_t head, tail; /* requests answered and sent: due[] holds the due times between them */
    size_t got;          /* bytes of the reply at the head */
    int64_t due[RING];
};

static uint64_t state = 88172645463325252ull;

static uint64_t random64(void) { /* xorshift64 (Marsaglia 2003) */
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static void die(const char *why) {
    fprintf(stderr, "openloop: %s\n", why);
    exit(1);
}

static void failed(const char *call) {
    perror(call);
    exit(1);
}

static int compare(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc != 9) die("usage: openloop PORT CLIENTS RATE SECONDS WARMUP PREFIX KEYS SIZE");
    int port = atoi(argv[1]), clients = atoi(argv[2]), size = atoi(argv[8]);
    double rate = atof(argv[3]), seconds = atof(argv[4]), warmup = atof(argv[5]);
    const char *prefix = argv[6];
    uint64_t keys = strtoull(argv[7], NULL, 10);
    if (clients < 1 || clients > MAX_CLIENTS || rate <= 0 || rate > 1e6 || seconds > 60 || !keys) die("bounds");

    char want[32];
    size_t want_len = (size_t)snprintf(want, sizeof want, "$%d\r\n", size), reply_len = want_len + (size_t)size + 2;
    size_t name_len = strlen(prefix) + 12;
    size_t capacity = (size_t)(rate * seconds * 1.2) + 1000, count = 0;
    float *latency = malloc(capacity * sizeof *latency);
    struct client *all = calloc((size_t)clients, sizeof *all);
    int poll = epoll_create1(0);
    if (!latency || !all || poll < 0) failed("start");
    prctl(PR_SET_TIMERSLACK, 1);

    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < clients; i++) {
        int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to)) failed("connect");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};
        epoll_ctl(poll, EPOLL_CTL_ADD, all[i].fd = fd, &event);
    }

    int64_t start = now(), counted = start + (int64_t)(warmup * 1e9), stop = counted + (int64_t)(seconds * 1e9);
    int64_t due = start, t;
    uint64_t sent = 0, answered = 0, turn = 0;
    static char buffer[1 << 18];
    while (due < stop || answered < sent) { /* not the clock: what fell due while we were held up is owed too */
        if ((t = now()) > stop + 10000000000ll) die("replies still missing 10 s after the last request");
        for (; due <= t && due < stop; due += (int64_t)(-log((random64() >> 11) * 0x1p-53 + 1e-18) / rate * 1e9)) {
            struct client *c = &all[turn++ % (uint64_t)clients];
            if (c->tail - c->head == RING) die("the server is too slow for this rate");
            char request[256];
            int n = snprintf(request, sizeof request, "*2\r\n$3\r\nGET\r\n$%zu\r\n%s%012llu\r\n", name_len, prefix,
                             (unsigned long long)(random64() % keys));
            if (send(c->fd, request, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL) != n) failed("send");
            c->due[c->tail++ % RING] = due;
            sent++;
        }
        int64_t wait = due < stop ? due - now() : 100000000;
        struct timespec timeout = {.tv_nsec = wait < 0 ? 0 : wait > 100000000 ? 100000000 : wait};
        struct epoll_event events[EVENTS];
        int ready = epoll_pwait2(poll, events, EVENTS, &timeout, NULL);
        if (ready < 0 && errno != EINTR) failed("epoll");
        for (int i = 0; i < ready; i++) {
            struct client *c = events[i].data.ptr;
            ssize_t n = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
            if (n < 0 && errno == EAGAIN) continue;
            if (n <= 0) die("the server closed a connection");
            t = now();
            for (ssize_t at = 0; at < n;) {
                if (c->head == c->tail) die("a reply that nobody asked for");
                for (; c->got < want_len && at < n; at++)
                    if (buffer[at] != want[c->got++]) die("a reply is not a value of the right length");
                size_t rest = reply_len - c->got, here = (size_t)(n - at) < rest ? (size_t)(n - at) : rest;
                c->got += here;
                at += (ssize_t)here;
                if (c->got < reply_len) continue;
                int64_t was = c->due[c->head++ % RING];
                c->got = 0;
                answered++;
                if (was >= counted && count < capacity) latency[count++] = (float)(t - was) / 1e3f;
            }
        }
    }
    if (!count) die("nothing was measured");
    qsort(latency, count, sizeof *latency, compare);
    printf("{\"sent\": %llu, \"counted\": %zu, \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f}\n",
           (unsigned long long)sent, count, latency[count / 2], latency[(size_t)((double)count * 0.99)],
           latency[(size_t)((double)count * 0.999)]);
    return 0;
}
