// ioredis with its defaults: `node ioredis.cjs PORT JOB`.
const assert = require("node:assert/strict");
const Redis = require("ioredis");

const [port, job] = [Number(process.argv[2]), process.argv[3]];
const connect = (options = {}) => new Redis({ port, retryStrategy: null, ...options });
const soon = (ms) => new Promise((done) => setTimeout(done, ms));

const jobs = {
  async everyday(redis) {
    assert.equal(await redis.set("io:a", "1", "EX", 100), "OK");
    assert.equal(await redis.get("io:a"), "1");
    assert.equal(await redis.incr("io:a"), 2);
    await redis.mset("io:b", "x", "io:c", "y", "io:d", "z");
    assert.deepEqual(await redis.mget("io:b", "io:c", "io:none", "io:d"), ["x", "y", null, "z"]);
    await redis.hset("io:h", { a: 1, b: 2 });
    assert.deepEqual(await redis.hgetall("io:h"), { a: "1", b: "2" });
    await redis.zadd("io:z", 1, "one", 2, "two");
    assert.deepEqual(await redis.zrange("io:z", 0, -1, "WITHSCORES"), ["one", "1", "two", "2"]);
    const replies = await redis.pipeline().set("io:p", "1").incr("io:p").get("io:p").lpush("io:a", "x").exec();
    assert.deepEqual(replies.slice(0, 3), [[null, "OK"], [null, 2], [null, "2"]]);
    assert.match(replies[3][0].message, /^WRONGTYPE/);
    assert.deepEqual(await redis.getBuffer("io:b"), Buffer.from("x"));
    assert.equal(await redis.del("io:a", "io:b", "io:c", "io:d", "io:h", "io:z", "io:p"), 7);
  },

  async transaction(redis) {
    const replies = await redis.multi().set("{io}:t", "1").incr("{io}:t").sadd("{io}:s", "m").exec();
    assert.deepEqual(replies, [[null, "OK"], [null, 2], [null, 1]]);
    await redis.multi({ pipeline: false });
    assert.equal(await redis.get("{io}:t"), "QUEUED");
    assert.deepEqual(await redis.exec(), [[null, "2"]]);
  },

  async watch(redis) {
    const other = connect();
    await redis.set("{io}:w", "1");
    await redis.watch("{io}:w");
    assert.deepEqual(await redis.multi().incr("{io}:w").exec(), [[null, 2]]);
    await redis.watch("{io}:w");
    await other.set("{io}:w", "10");
    assert.equal(await redis.multi().incr("{io}:w").exec(), null);
    assert.equal(await redis.get("{io}:w"), "10");
    other.disconnect();
  },

  async script(redis) {
    redis.defineCommand("addTo", { numberOfKeys: 1, lua: "return redis.call('INCRBY', KEYS[1], ARGV[1])" });
    await redis.del("io:n");
    assert.equal(await redis.addTo("io:n", 5), 5);
    assert.equal(await redis.addTo("io:n", 6), 11);
    const replies = await redis.pipeline().addTo("io:n", 1).get("io:n").exec();
    assert.deepEqual(replies, [[null, 12], [null, "12"]]);
    const sha = await redis.script("LOAD", "return {KEYS[1], ARGV[1]}");
    assert.deepEqual(await redis.evalsha(sha, 1, "k", "v"), ["k", "v"]);
    assert.deepEqual(await redis.script("EXISTS", sha, "0".repeat(40)), [1, 0]);
  },

  async blocking(redis) {
    const pusher = connect();
    await redis.del("io:q");
    const waits = redis.blpop("io:q", 10);
    const after = redis.get("io:nothing"); // sent while the pop waits: answered after it
    await soon(100);
    await pusher.rpush("io:q", "job");
    assert.deepEqual(await waits, ["io:q", "job"]);
    assert.equal(await after, null);
    assert.equal(await redis.blpop("io:q", 0.05), null);
    const read = redis.xread("BLOCK", 10000, "STREAMS", "io:x", "$");
    await soon(100);
    await pusher.xadd("io:x", "*", "f", "v");
    assert.deepEqual((await read)[0][1][0][1], ["f", "v"]);
    pusher.disconnect();
  },

  async pubsub(redis) {
    const subscriber = connect();
    const got = [];
    subscriber.on("message", (channel, message) => got.push([channel, message]));
    subscriber.on("pmessage", (pattern, channel, message) => got.push([pattern, channel, message]));
    assert.equal(await subscriber.subscribe("io:news", "io:more"), 2);
    assert.equal(await subscriber.psubscribe("io:n*"), 3);
    assert.equal(await redis.publish("io:news", "hello"), 2);
    assert.equal(await redis.publish("io:more", "again"), 1);
    while (got.length < 3) await soon(10);
    const wanted = [["io:more", "again"], ["io:n*", "io:news", "hello"], ["io:news", "hello"]];
    assert.deepEqual(got.sort(), wanted);
    assert.equal(await subscriber.unsubscribe("io:news", "io:more"), 1);
    assert.equal(await subscriber.punsubscribe("io:n*"), 0);
    assert.equal(await subscriber.get("io:nothing"), null);
    subscriber.disconnect();
  },

  async scan(redis) {
    await Promise.all(Array.from({ length: 500 }, (_, n) => redis.set(`io:scan:${n}`, n)));
    const found = new Set();
    for await (const keys of redis.scanStream({ match: "io:scan:*", count: 50 })) keys.forEach((k) => found.add(k));
    assert.equal(found.size, 500);
    assert.equal((await redis.keys("io:scan:*")).length, 500);
    await redis.unlink(...found);
  },

  async databases(redis) {
    const other = connect({ db: 3 });
    await other.set("io:db", "three");
    assert.equal(await redis.get("io:db"), null);
    await redis.select(3);
    assert.equal(await redis.get("io:db"), "three");
    await redis.del("io:db");
    other.disconnect();
  },
};

const redis = connect();
jobs[job](redis).then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
