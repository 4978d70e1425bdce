// node-redis with its defaults: `node node_redis.cjs PORT JOB`.
const assert = require("node:assert/strict");
const { createClient, defineScript, WatchError } = require("redis");

const [port, job] = [Number(process.argv[2]), process.argv[3]];
const soon = (ms) => new Promise((done) => setTimeout(done, ms));
const plain = (value) => JSON.parse(JSON.stringify(value));

async function connect(options = {}) {
  const client = createClient({ socket: { port, reconnectStrategy: false }, ...options });
  client.on("error", () => {});
  return client.connect();
}

const jobs = {
  async everyday(redis) {
    assert.equal(await redis.set("nr:a", "1", { EX: 100 }), "OK");
    assert.equal(await redis.get("nr:a"), "1");
    assert.equal(await redis.incr("nr:a"), 2);
    await redis.mSet({ "nr:b": "x", "nr:c": "y", "nr:d": "z" });
    assert.deepEqual(await redis.mGet(["nr:b", "nr:c", "nr:none", "nr:d"]), ["x", "y", null, "z"]);
    await redis.hSet("nr:h", { a: 1, b: 2 });
    assert.deepEqual(plain(await redis.hGetAll("nr:h")), { a: "1", b: "2" });
    await redis.zAdd("nr:z", [{ score: 1, value: "one" }, { score: 2.5, value: "two" }]);
    assert.deepEqual(plain(await redis.zRangeWithScores("nr:z", 0, -1)), [
      { value: "one", score: 1 },
      { value: "two", score: 2.5 },
    ]);
    await assert.rejects(redis.lPush("nr:a", "x"), /WRONGTYPE/);
    const replies = await Promise.all(Array.from({ length: 200 }, () => redis.incr("nr:p")));
    assert.deepEqual(replies.slice(-2), [199, 200]); // one connection: in order
    assert.equal(await redis.del(["nr:a", "nr:b", "nr:c", "nr:d", "nr:h", "nr:z", "nr:p"]), 7);
  },

  async transaction(redis) {
    const replies = await redis.multi().set("{nr}:t", "1").incr("{nr}:t").sAdd("{nr}:s", "m").exec();
    assert.deepEqual(replies, ["OK", 2, 1]);
    await redis.del(["{nr}:t", "{nr}:s"]);
  },

  async watch(redis) {
    const other = await connect();
    await redis.set("{nr}:w", "1");
    await redis.watch("{nr}:w");
    assert.deepEqual(await redis.multi().incr("{nr}:w").exec(), [2]);
    await redis.watch("{nr}:w");
    await other.set("{nr}:w", "10");
    await assert.rejects(redis.multi().incr("{nr}:w").exec(), WatchError);
    assert.equal(await redis.get("{nr}:w"), "10");
    await other.close();
  },

  async script() {
    const add = defineScript({
      NUMBER_OF_KEYS: 1,
      SCRIPT: "return redis.call('INCRBY', KEYS[1], ARGV[1])",
      parseCommand(parser, key, by) {
        parser.pushKey(key);
        parser.push(by.toString());
      },
      transformReply: (reply) => reply,
    });
    const client = await connect({ scripts: { add } });
    await client.del("nr:n");
    assert.equal(await client.add("nr:n", 5), 5);
    assert.equal(await client.add("nr:n", 6), 11);
    const sha = await client.scriptLoad("return {KEYS[1], ARGV[1]}");
    assert.deepEqual(await client.evalSha(sha, { keys: ["k"], arguments: ["v"] }), ["k", "v"]);
    assert.deepEqual(await client.scriptExists([sha, "0".repeat(40)]), [1, 0]);
    await client.close();
  },

  async blocking(redis) {
    const waiter = await connect();
    await redis.del("nr:q");
    const waits = waiter.blPop("nr:q", 10);
    const after = waiter.get("nr:nothing");
    await soon(100);
    await redis.rPush("nr:q", "job");
    assert.deepEqual(plain(await waits), { key: "nr:q", element: "job" });
    assert.equal(await after, null);
    assert.equal(await waiter.blPop("nr:q", 0.05), null);
    const read = waiter.xRead([{ key: "nr:x", id: "$" }], { BLOCK: 10000 });
    await soon(100);
    await redis.xAdd("nr:x", "*", { f: "v" });
    assert.deepEqual(plain(await read)[0].messages[0].message, { f: "v" });
    await waiter.close();
  },

  async pubsub(redis) {
    const subscriber = await connect();
    const got = [];
    await subscriber.subscribe(["nr:news", "nr:more"], (message, channel) => got.push([channel, message]));
    await subscriber.pSubscribe("nr:n*", (message, channel) => got.push(["nr:n*", channel, message]));
    await subscriber.sSubscribe("nr:shard", (message, channel) => got.push([channel, message]));
    assert.equal(await subscriber.get("nr:nothing"), null); // RESP3: other commands are allowed
    assert.equal(await redis.publish("nr:news", "hello"), 2);
    assert.equal(await redis.publish("nr:more", "again"), 1);
    assert.equal(await redis.sPublish("nr:shard", "sharded"), 1);
    while (got.length < 4) await soon(10);
    assert.deepEqual(got.sort(), [
      ["nr:more", "again"],
      ["nr:n*", "nr:news", "hello"],
      ["nr:news", "hello"],
      ["nr:shard", "sharded"],
    ]);
    await subscriber.unsubscribe();
    await subscriber.pUnsubscribe();
    await subscriber.sUnsubscribe();
    await subscriber.close();
  },

  async scan(redis) {
    await Promise.all(Array.from({ length: 500 }, (_, n) => redis.set(`nr:scan:${n}`, `${n}`)));
    const found = new Set();
    for await (const keys of redis.scanIterator({ MATCH: "nr:scan:*", COUNT: 50 })) keys.forEach((k) => found.add(k));
    assert.equal(found.size, 500);
    assert.equal((await redis.keys("nr:scan:*")).length, 500);
    await redis.unlink([...found]);
  },

  async databases(redis) {
    const other = await connect({ database: 3 });
    await other.set("nr:db", "three");
    assert.equal(await redis.get("nr:db"), null);
    await redis.select(3);
    assert.equal(await redis.get("nr:db"), "three");
    await redis.del("nr:db");
    await other.close();
  },
};

connect()
  .then((redis) => jobs[job](redis))
  .then(
    () => process.exit(0),
    (error) => {
      console.error(error);
      process.exit(1);
    },
  );
