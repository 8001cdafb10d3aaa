/**
 * A tool server of `transport/PROTOCOL.md` with a bare TCP socket: none of our code, no NATS library. It holds a lease,
 * gives a place, takes a start, shows progress, and brings the outcome until it is stored.
 *
 *     bare-tool.ts PORT NAMESPACE NAME TOOL
 */
import { randomBytes } from 'node:crypto'
import { connect } from 'node:net'

const [port = '', namespace = '', name = '', tool = ''] = process.argv.slice(2)
const prefix = `troupe.${namespace}`
const renewMs = 300
const placeMs = 10_000

type Take = (text: string, reply: string, headers: string) => void
interface Start {
  readonly place: string
  readonly shard: string
  readonly effect: string
  readonly arguments: string
  readonly owner: string
  readonly outcome: string
}

const subscriptions = new Map<string, Take>()
const socket = connect(Number(port), '127.0.0.1')
let buffer = Buffer.alloc(0)
let count = 0
socket.on('data', (chunk: Buffer) => {
  buffer = Buffer.concat([buffer, chunk])
  while (takeOne());
})
socket.write('CONNECT {"verbose":false,"pedantic":false,"headers":true,"lang":"bare","version":"0"}\r\n')

/** Takes one line of the server, with its payload. False when it is not whole yet. */
function takeOne(): boolean {
  const end = buffer.indexOf('\r\n')
  if (end < 0) return false
  const [verb, ...words] = buffer.subarray(0, end).toString().split(' ')
  if (verb !== 'MSG' && verb !== 'HMSG') {
    buffer = buffer.subarray(end + 2)
    if (verb === 'PING') socket.write('PONG\r\n')
    if (verb === '-ERR') throw new Error(words.join(' '))
    return true
  }
  const bytes = Number(words.at(-1))
  if (buffer.length < end + bytes + 4) return false
  const payload = buffer.subarray(end + 2, end + 2 + bytes)
  buffer = buffer.subarray(end + bytes + 4)
  const headerBytes = verb === 'HMSG' ? Number(words.at(-2)) : 0
  const reply = words.length === (verb === 'HMSG' ? 5 : 4) ? words[2]! : ''
  const [headers, text] = [payload.subarray(0, headerBytes).toString(), payload.subarray(headerBytes).toString()]
  subscriptions.get(words[1]!)?.(text, reply, headers)
  return true
}

function subscribe(subject: string, take: Take): void {
  const id = String((count += 1))
  subscriptions.set(id, take)
  // Of several servers of one tool each question goes to one.
  socket.write(`SUB ${subject}${subject.includes('.tool.') ? ' tools' : ''} ${id}\r\n`)
}

function publish(subject: string, body: unknown, reply = '', headers: Readonly<Record<string, string>> = {}): void {
  const text = JSON.stringify(body)
  const head = `NATS/1.0\r\n${Object.entries(headers)
    .map(([key, value]) => `${key}: ${value}\r\n`)
    .join('')}\r\n`
  const size = `${head.length} ${head.length + Buffer.byteLength(text)}`
  socket.write(`HPUB ${subject} ${reply === '' ? '' : `${reply} `}${size}\r\n${head}${text}\r\n`)
}

/** Stores a message: resolves with its number when the server has it, and tries until it has. */
function store(subject: string, body: unknown, headers: Readonly<Record<string, string>>): Promise<number> {
  return new Promise((resolve, reject) => {
    const inbox = `_INBOX.${randomBytes(8).toString('hex')}`
    const again = setInterval(() => publish(subject, body, inbox, headers), 2_000)
    subscribe(inbox, (text) => {
      clearInterval(again)
      const { seq, error } = JSON.parse(text) as { seq?: number; error?: { description: string } }
      if (seq === undefined) reject(new Error(error?.description))
      else resolve(seq)
    })
    publish(subject, body, inbox, headers)
  })
}

// The lease: its first number is the epoch. It is renewed while this process lives.
const lease = `$KV.troupe_${namespace}_workers.${name}`
let revision = await store(lease, { crews: {}, tools: [tool] }, { 'Nats-Expected-Last-Subject-Sequence': '0' })
const executor = `${name}.${revision}`
const epoch = revision
setInterval(() => {
  const headers = { 'Nats-Expected-Last-Subject-Sequence': String(revision) }
  void store(lease, { crews: {}, tools: [tool], epoch }, headers).then((seq) => (revision = seq))
}, renewMs)

const places = new Map<string, { readonly place: string; readonly until: number }>()
const begun = new Map<string, string>()
const parts = new Map<string, string[]>()

subscribe(`${prefix}.tool.${tool}`, (text, reply) => {
  const { shard, effect } = JSON.parse(text) as { shard: string; effect: string }
  const place = randomBytes(8).toString('hex')
  places.set(`${shard} ${effect}`, { place, until: performance.now() + placeMs })
  publish(reply, { executor, place, withinMs: placeMs })
})

subscribe(`${prefix}.start.${name}`, (text, reply, headers) => {
  const [, place = '', part = '', total = ''] = /Troupe-Place: (\S+)\r\nTroupe-Part: (\d+)\/(\d+)/.exec(headers) ?? []
  const chunks = part === '1' ? [] : (parts.get(place) ?? [])
  chunks.push(text)
  parts.set(place, chunks)
  if (part !== total) return
  parts.delete(place)
  const start = JSON.parse(chunks.join('')) as Start
  const key = `${start.shard} ${start.effect}`
  const given = places.get(key)
  if (begun.get(key) === start.place) return publish(reply, { started: true })
  if (given?.place !== start.place || given.until < performance.now())
    return publish(reply, { error: { code: 'MESSAGE_REFUSED', message: 'no place here' } })
  places.delete(key)
  begun.set(key, start.place)
  publish(reply, { started: true })
  work(start)
})

/** What this worker is asked by the owners of shards. What it denies it must not start. */
subscribe(`${prefix}.worker.${name}`, (text, reply) => {
  const asked = JSON.parse(text) as { method: string; epoch: number; shard: string; effects?: string[] }
  if (asked.epoch !== epoch) return publish(reply, { error: { code: 'SHARD_ELSEWHERE', message: 'another lease' } })
  const effects = (asked.effects ?? []).filter((effect) => {
    places.delete(`${asked.shard} ${effect}`)
    return begun.has(`${asked.shard} ${effect}`)
  })
  publish(reply, { effects: asked.method === 'working' ? effects : [] })
})

/** The tool. */
function work({ shard, effect, owner, outcome, ...call }: Start): void {
  const { word } = JSON.parse(call.arguments) as { word: string }
  publish(`${prefix}.progress.${owner}.${name}`, { shard, effect, executor, value: `bare begins ${word}` })
  const letter = {
    ...{ from: 'port/tool', to: `outcome/${name}`, cause: effect, values: [`bare says ${word}`] },
    body: { type: 'tool.ended', executor, status: 'ok', truncated: false },
  }
  void store(outcome, letter, { 'Nats-Msg-Id': randomBytes(16).toString('hex') })
}
