/* A closed-loop load generator that speaks RESP or memcached's text: N connections, each sends DEPTH requests in one
 * write and waits for all their replies. The same work in either language, so that what differs is the proxy.
 *
 *   closedloop resp|memcached PORT CLIENTS DEPTH REQUESTS get|set|seed PREFIX KEYS SIZE EACH  ->  one line of JSON
 *
 * get: EACH random keys a request (MGET, or get with many keys), all of which must be there; set: one random key;
 * seed: one key after the other. Every reply has a length that is known before, and is checked for its beginning.
 * 127.0.0.1 only. Exit 1 with a reason otherwise. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CLIENTS = 4096, EVENTS = 256, DIGITS = 12 };

struct client {
    int fd;
    size_t got;   /* bytes of the reply at the head */
    int waiting;  /* replies of this batch still to come */
    double since; /* when the batch was sent */
};

static uint64_t state = 88172645463325252ull, next_key;

static uint64_t random64(void) { /* xorshift64 (Marsaglia 2003) */
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void die(const char *why) {
    fprintf(stderr, "closedloop: %s\n", why);
    exit(1);
}

static int compare(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static int resp, set, seed, size, each;
static const char *prefix;
static uint64_t keys;
static char *value;

static char *one_request(char *out) {
    size_t name = strlen(prefix) + DIGITS;
    if (resp && !set) out += sprintf(out, each > 1 ? "*%d\r\n$4\r\nMGET\r\n" : "*%d\r\n$3\r\nGET\r\n", each + 1);
    if (!resp && !set) out += sprintf(out, "get");
    for (int i = 0; i < each; i++) {
        unsigned long long key = (seed ? next_key++ : random64()) % keys;
        if (resp && set)
            out += sprintf(out, "*3\r\n$3\r\nSET\r\n$%zu\r\n%s%0*llu\r\n$%d\r\n", name, prefix, DIGITS, key, size);
        else if (resp)
            out += sprintf(out, "$%zu\r\n%s%0*llu\r\n", name, prefix, DIGITS, key);
        else if (set)
            out += sprintf(out, "set %s%0*llu 0 0 %d\r\n", prefix, DIGITS, key, size);
        else
            out += sprintf(out, " %s%0*llu", prefix, DIGITS, key);
    }
    if (set) out = mempcpy(out, value, (size_t)size);
    if (set || !resp) out = mempcpy(out, "\r\n", 2);
    return out;
}

/* How every reply begins, and how long it is. */
static size_t reply_of(char *head) {
    size_t name = strlen(prefix) + DIGITS;
    char one[64];
    if (set) return (size_t)sprintf(head, resp ? "+OK\r\n" : "STORED\r\n");
    if (resp) {
        size_t bulk = (size_t)sprintf(one, "$%d\r\n", size), array = each > 1 ? (size_t)sprintf(head, "*%d\r\n", each) : 0;
        strcpy(head + array, one);
        return array + (bulk + (size_t)size + 2) * (size_t)each;
    }
    sprintf(head, "VALUE %s", prefix);
    size_t line = 6 + name + (size_t)sprintf(one, " 0 %d\r\n", size);
    return (line + (size_t)size + 2) * (size_t)each + 5;
}

int main(int argc, char **argv) {
    if (argc != 11) die("usage: closedloop resp|memcached PORT CLIENTS DEPTH REQUESTS get|set|seed PREFIX KEYS SIZE EACH");
    resp = !strcmp(argv[1], "resp");
    seed = !strcmp(argv[6], "seed");
    set = seed || !strcmp(argv[6], "set");
    int port = atoi(argv[2]), clients = atoi(argv[3]), depth = atoi(argv[4]), at_once = clients * depth;
    long requests = atol(argv[5]) / at_once * at_once, unsent = requests, answered = 0, batches = 0;
    prefix = argv[7];
    keys = strtoull(argv[8], NULL, 10);
    size = atoi(argv[9]);
    each = set ? 1 : atoi(argv[10]);
    if (clients < 1 || clients > MAX_CLIENTS || depth < 1 || !keys || size < 1 || each < 1 || strlen(prefix) > 100)
        die("bounds");
    if (!requests) die("fewer requests than one of each");

    char head[256];
    size_t length = reply_of(head), head_length = strlen(head);
    char *out = malloc((size_t)depth * ((size_t)each * 160 + (size_t)size + 200));
    float *latency = malloc((size_t)(requests / depth) * sizeof *latency);
    struct client *all = calloc((size_t)clients, sizeof *all);
    value = malloc((size_t)size);
    int poll = epoll_create1(0);
    if (!out || !latency || !all || !value || poll < 0) die("no memory");
    memset(value, 'x', (size_t)size);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < clients; i++) {
        int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to)) die(strerror(errno));
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};
        epoll_ctl(poll, EPOLL_CTL_ADD, all[i].fd = fd, &event);
    }

    static char buffer[1 << 18];
    double start = now();
    for (int i = 0; answered < requests;) {
        struct client *c = NULL;
        struct epoll_event events[EVENTS];
        int ready = i < clients ? 1 : epoll_wait(poll, events, EVENTS, 10000);
        if (ready < 0 && errno == EINTR) continue;
        if (ready <= 0) die("no reply for 10 s");
        for (int e = 0; e < ready; e++) {
            if (i < clients) {
                c = &all[i++]; /* its first batch */
            } else {
                c = events[e].data.ptr;
                ssize_t n = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
                if (n < 0 && errno == EAGAIN) continue;
                if (n <= 0) die("the server closed a connection");
                for (ssize_t at = 0; at < n;) {
                    if (!c->waiting) die("a reply that nobody asked for");
                    for (; c->got < head_length && at < n; at++, c->got++)
                        if (buffer[at] != head[c->got]) {
                            buffer[n < at + 100 ? n - 1 : at + 100] = 0;
                            fprintf(stderr, "%s\n", buffer + at);
                            die("a reply is not what it should be");
                        }
                    size_t rest = length - c->got, here = (size_t)(n - at) < rest ? (size_t)(n - at) : rest;
                    c->got += here;
                    at += (ssize_t)here;
                    if (c->got < length) continue;
                    c->got = 0;
                    c->waiting--;
                    answered++;
                }
                if (c->waiting) continue;
                latency[batches++] = (float)((now() - c->since) * 1e6);
            }
            if (!unsent) continue;
            char *end = out;
            for (int k = 0; k < depth; k++) end = one_request(end);
            unsent -= depth;
            c->waiting = depth;
            c->since = now();
            for (char *from = out; from < end;) { /* blocking: what does not fit waits for the proxy */
                ssize_t n = send(c->fd, from, (size_t)(end - from), MSG_NOSIGNAL);
                if (n <= 0) die("send");
                from += n;
            }
        }
    }
    double took = now() - start;
    qsort(latency, (size_t)batches, sizeof *latency, compare);
    printf("{\"requests\": %ld, \"rps\": %.1f, \"p50\": %.1f, \"p99\": %.1f}\n", requests, (double)requests / took,
           latency[batches / 2], latency[batches * 99 / 100]);
    return 0;
}
