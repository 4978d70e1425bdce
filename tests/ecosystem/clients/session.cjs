// node session.cjs PORT COOKIE: a Node program in the session that a Python program has begun; prints what it saw
const assert = require('node:assert')
const { createClient } = require('redis')

async function main (port, cookie) {
  const client = createClient({ url: `redis://127.0.0.1:${port}`, RESP: 3 })
  await client.connect()
  const seen = await client.sendCommand(['SESSION.LOAD', cookie])
  assert.equal(seen.user, 'anna')
  const cart = JSON.parse(seen.data.cart)
  const saved = await client.sendCommand(
    ['SESSION.SAVE', cookie, 'SET', 'from_node', JSON.stringify({ cart }), 'INCR', 'visits', '1'])
  assert.equal(JSON.parse(saved.data.visits), 2)
  await client.close()
  console.log(JSON.stringify(cart))
}

main(...process.argv.slice(2)).catch(error => { console.error(error); process.exit(1) })
