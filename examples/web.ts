/**
 * A web server that streams a run as server-sent events, and a client that loses its connection and reconnects.
 *
 *     POST /runs               starts a run, answers its id
 *     GET  /runs/ID/events     its events from the beginning, or behind the one in `Last-Event-ID`
 *
 * A browser's `EventSource` sends `Last-Event-ID` by itself. The run goes on whether anybody watches or not.
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { text } from 'node:stream/consumers'
import { createRuntime, defineAgent, defineTool, isTroupeError, reply, startScriptedModel } from 'troupe'
import { z } from 'zod'

const rolls = 6
const model = await startScriptedModel(
  ({ messages }) => {
    const results = messages.filter(({ role }) => role === 'tool').map(({ content }) => Number(content))
    const sum = results.reduce((total, result) => total + result, 0)
    return results.length < rolls ? reply.call('roll', { sides: 6 }) : `The sum of ${rolls} rolls is ${sum}.`
  },
  { latencyMs: 20, chunkMs: 2 },
)
const roll = defineTool({
  name: 'roll',
  description: 'Rolls a die.',
  input: z.object({ sides: z.int().min(2).max(100) }),
  effect: 'pure', // nobody saw a roll whose outcome was lost: another one does no harm
  run: ({ sides }) => 1 + Math.floor(Math.random() * sides),
})
const player = defineAgent({ model: 'scripted:any', instructions: `Roll ${rolls} times.`, tools: [roll] })

const runtime = await createRuntime({ providers: { scripted: { baseURL: model.baseURL } } })
const crew = await runtime.spawn(player, { id: 'dice' })

async function handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const match = /^\/runs(?:\/(\w+)\/events)?$/.exec(request.url ?? '')
  if (match === null) {
    response.writeHead(404).end()
  } else if (match[1] === undefined) {
    const run = crew.start(await text(request))
    response.writeHead(201, { 'content-type': 'application/json' }).end(JSON.stringify({ id: await run.id }))
  } else {
    const left = new AbortController()
    response.on('close', () => left.abort())
    const since = request.headers['last-event-id']?.toString()
    const stream = crew.run(match[1]).toResponse({ since, signal: left.signal })
    response.writeHead(stream.status, Object.fromEntries(stream.headers))
    if (stream.body !== null) await pipeline(Readable.fromWeb(stream.body), response)
  }
}

const server = createServer((request, response) => {
  handle(request, response).catch((error: unknown) => {
    if (!response.headersSent) response.writeHead(isTroupeError(error) ? 400 : 500).end()
    else response.destroy()
  })
})
await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`

/** Reads events until there are `most` with an id, then hangs up. Deltas have no id: they are not stored. */
async function read(path: string, since: string | null, most: number): Promise<string[]> {
  const connection = new AbortController()
  const headers: Record<string, string> = since === null ? {} : { 'last-event-id': since }
  const response = await fetch(`${url}${path}`, { headers, signal: connection.signal })
  const ids: string[] = []
  let rest = ''
  const decoder = new TextDecoder()
  for await (const chunk of response.body ?? []) {
    const events = (rest + decoder.decode(chunk as Uint8Array, { stream: true })).split('\n\n')
    rest = events.pop() ?? ''
    ids.push(...events.flatMap((event) => /^id: (.+)$/m.exec(event)?.[1] ?? []))
    if (ids.length >= most) break
  }
  connection.abort()
  return ids.slice(0, most)
}

const started = await fetch(`${url}/runs`, { method: 'POST', body: 'Roll the dice.' })
const { id } = (await started.json()) as { id: string }
const first = await read(`/runs/${id}/events`, null, 7)
const second = await read(`/runs/${id}/events`, first.at(-1) ?? null, Infinity)
const whole = await read(`/runs/${id}/events`, null, Infinity)

console.log((await crew.run(id).result).output)
const same = JSON.stringify([...first, ...second]) === JSON.stringify(whole)
server.close()
server.closeAllConnections()
await runtime.close()
await model.close()
console.log(`${first.length} events, a lost connection, ${second.length} more: ${same ? 'none lost' : 'NOT the whole'}`)
