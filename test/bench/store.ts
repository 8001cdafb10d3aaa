/** 100 rounds with 1 KB results: stored bytes over the payload, after `close`. */
import { readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { createRuntime } from 'troupe'
import { benchAgent, round3, say, scratch } from './measure.js'
import { stubFetch } from './stub.js'

const rounds = 100
const bytes = 1_024

/** Text that does not compress: what is stored is what was said. */
function noise(at: number): string {
  let state = at + 1
  let text = ''
  while (text.length < bytes) {
    state = (state * 1_103_515_245 + 12_345) % 2_147_483_648
    text += state.toString(36)
  }
  return text.slice(0, bytes)
}

function sizeOf(folder: string): number {
  return readdirSync(folder, { withFileTypes: true }).reduce((sum, entry) => {
    const path = join(folder, entry.name)
    if (entry.isDirectory()) return sum + sizeOf(path)
    // The reserve that lets a full disk be opened again is constant, whatever is stored.
    return entry.isFile() && entry.name !== 'reserve' ? sum + statSync(path).size : sum
  }, 0)
}

export async function benchStore(): Promise<object> {
  const folder = scratch('store')
  const runtime = await createRuntime({
    store: folder.path,
    providers: { openai: { baseURL: 'http://127.0.0.1:9/v1', apiKey: 'none', fetch: stubFetch(() => rounds) } },
  })
  const crew = await runtime.spawn(benchAgent(rounds, noise), { id: 'bench' })
  await crew.ask('go')
  await runtime.close()
  const stored = sizeOf(folder.path)
  for (const name of readdirSync(folder.path)) say(`${name.padEnd(20)} ${statSync(join(folder.path, name)).size}`)
  folder.drop()
  const payload = rounds * bytes
  say(`${stored} bytes stored for ${payload} bytes of tool results`)
  return { bench: 'store', storedOverPayload: round3(stored / payload), storedBytes: stored, payloadBytes: payload }
}
