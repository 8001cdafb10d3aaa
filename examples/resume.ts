/**
 * Work that survives `kill -9`: run it, kill it in the middle, run it again.
 *
 * Eight invoices are to be posted, each once. `post` is of class `once`: Troupe writes down that it starts a call before
 * it starts it, and never starts one twice. When the process dies in the middle of a call, `verify` finds out whether it
 * happened.
 */
import { appendFile, mkdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as wait } from 'node:timers/promises'
import { createRuntime, defineAgent, defineCrew, defineTool, reply, startScriptedModel } from 'troupe'
import { z } from 'zod'

const folder = process.argv[2] ?? join(tmpdir(), 'troupe-resume')
const ledger = join(folder, 'ledger.txt')
const invoices = 8
await mkdir(folder, { recursive: true })

/** The outside world: one line for each invoice that was posted, with the key of the call that did it. */
const posted = async (): Promise<[key: string, invoice: string][]> => {
  const text = await readFile(ledger, 'utf8').catch(() => '')
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => line.split(' ') as [string, string])
}

const post = defineTool({
  name: 'post',
  description: 'Posts an invoice. Cannot be taken back.',
  input: z.object({ invoice: z.int().min(1) }),
  effect: 'once',
  run: async ({ invoice }, { idempotencyKey, signal }) => {
    await wait(100, undefined, { signal })
    await appendFile(ledger, `${idempotencyKey} ${invoice}\n`)
    return `posted ${invoice}`
  },
  verify: async ({ invoice }, { idempotencyKey }) => {
    const done = (await posted()).some(([key]) => key === idempotencyKey)
    return done ? { done, result: `posted ${invoice}` } : { done }
  },
})

// The model: asks for the first invoice that no result names. It remembers nothing, so a new process can go on.
const model = await startScriptedModel(
  ({ messages }) => {
    const next = messages.filter(({ role }) => role === 'tool').length + 1
    return next > invoices ? 'All invoices are posted.' : reply.call('post', { invoice: next })
  },
  { latencyMs: 100 },
)

const crew = defineCrew({
  name: 'bookkeeping',
  agents: { clerk: defineAgent({ model: 'scripted:any', instructions: 'Post every invoice.', tools: [post] }) },
  lead: 'clerk',
  budget: { toolCalls: 20, wallMs: 60_000 },
})

const runtime = await createRuntime({
  store: join(folder, 'store'),
  providers: { scripted: { baseURL: model.baseURL } },
})
const bookkeeping = await runtime.spawn(crew)
// The key names the run: the same key again is the same run, which goes on, or is over and has its result.
const run = bookkeeping.start(`Post invoices 1 to ${invoices}.`, { key: 'november' })
for await (const event of run.events) {
  if (event.type === 'troupe.tool.finished') console.log(`${event.time} post: ${String(event.data['status'])}`)
}
const { output } = await run.result
await runtime.close()
await model.close()

const lines = await posted()
const twice = lines.length - new Set(lines.map(([, invoice]) => invoice)).size
console.log(output)
console.log(`${lines.length} invoices posted, ${twice} of them twice`)
await rm(folder, { recursive: true })
