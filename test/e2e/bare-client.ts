/**
 * A client of `transport/PROTOCOL.md` with a bare TCP socket: none of our code, no NATS library. It gives a crew a task,
 * follows its events, and waits for the result, asking again whenever nobody answers.
 *
 *     bare-client.ts PORT NAMESPACE CREW TEXT
 */
import { randomBytes } from 'node:crypto'
import { connect } from 'node:net'

const [port = '', namespace = '', crew = '', input = ''] = process.argv.slice(2)
const prefix = `troupe.${namespace}`
const silentMs = 3_000

type Take = (headers: string, text: string, reply: string) => void
interface Answer {
  readonly item?: unknown
  readonly result?: unknown
  readonly error?: { readonly code: string; readonly message: string }
  readonly alive?: true
}

const subscriptions = new Map<string, Take>()
const socket = connect(Number(port), '127.0.0.1')
let buffer = Buffer.alloc(0)
let count = 0
socket.on('data', (chunk: Buffer) => {
  buffer = Buffer.concat([buffer, chunk])
  while (takeOne());
})
socket.write(
  'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"lang":"bare","version":"0"}\r\n',
)

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
  subscriptions.get(words[1]!)?.(
    payload.subarray(0, headerBytes).toString(),
    payload.subarray(headerBytes).toString(),
    reply,
  )
  return true
}

/** Subscribes until the returned function is called. */
function subscribe(subject: string, take: Take): () => void {
  const id = String((count += 1))
  subscriptions.set(id, take)
  socket.write(`SUB ${subject} ${id}\r\n`)
  return () => {
    subscriptions.delete(id)
    socket.write(`UNSUB ${id}\r\n`)
  }
}

/** Asks until there is an answer. */
async function ask(request: object): Promise<unknown> {
  for (;;) {
    const answer = await askOnce(request)
    if (answer === null || ['SHARD_ELSEWHERE', 'RUNTIME_CLOSED'].includes(answer.error?.code ?? '')) continue
    if (answer.error !== undefined) throw new Error(`${answer.error.code}: ${answer.error.message}`)
    return answer.result
  }
}

/** The closing answer to one request; null after silence or a loss. */
function askOnce(request: object): Promise<Answer | null> {
  return new Promise((resolve) => {
    const inbox = `_INBOX.${randomBytes(8).toString('hex')}`
    const body = JSON.stringify(request)
    let next = 0
    let silence = setTimeout(end, silentMs, null)
    function end(answer: Answer | null): void {
      clearTimeout(silence)
      unsubscribe()
      resolve(answer)
    }
    const unsubscribe = subscribe(inbox, (headers, text) => {
      // Nobody is there at the moment: the silence will be over.
      if (headers.startsWith('NATS/1.0 503')) return
      if (Number(/Troupe-Answer: (\d+)/.exec(headers)?.[1]) !== next++) return end(null)
      clearTimeout(silence)
      silence = setTimeout(end, silentMs, null)
      const answer = JSON.parse(text) as Answer
      if (answer.alive !== true && answer.item === undefined) end(answer)
    })
    socket.write(`PUB ${prefix}.in.bare.${crew} ${inbox} ${Buffer.byteLength(body)}\r\n${body}\r\n`)
  })
}

subscribe(`${prefix}.event.${crew}`, (_, text) => {
  for (const { type } of JSON.parse(text) as { type: string }[]) console.log(`event ${type}`)
})
const run = await ask({ method: 'start', crew, name: crew, key: randomBytes(8).toString('hex'), input })
console.log(`run ${String(run)}`)
const result = (await ask({ method: 'result', crew, run })) as { output: string }
console.log(`output ${result.output}`)
socket.end()
process.exit(0)
