/** From the start of `troupe run` to its first model request, for a .js crew, a .ts crew seen before, and a first .ts one. */
import { spawn } from 'node:child_process'
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { median, round3, say, scratch } from './measure.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const passes = 7

const source = (salt: string) => `import { defineAgent, defineTool } from 'troupe'
import { z } from 'zod'
// ${salt}
const look = defineTool({ name: 'look', description: 'Looks.', input: z.object({ at: z.number() }), effect: 'pure', run: () => 'quiet' })
export default defineAgent({ name: 'cold', model: 'openai:gpt-5-mini', instructions: 'Look.', tools: [look] })
`

/** Milliseconds from spawn to the first request. */
async function first(file: string, store: string): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  const start = performance.now()
  const env = {
    ...process.env,
    OPENAI_BASE_URL: `http://127.0.0.1:${port}/v1`,
    OPENAI_API_KEY: 'none',
    NODE_ENV: 'production',
  }
  const child = spawn(
    process.execPath,
    [join(root, 'dist/runtime/cli/main.js'), 'run', file, '--input', 'go', '--store', store],
    { env, stdio: ['ignore', 'ignore', 'pipe'] },
  )
  let stderr = ''
  child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()))
  try {
    return await new Promise<number>((resolve, reject) => {
      server.once('request', () => resolve(performance.now() - start))
      child.once('exit', (code) => reject(new Error(`troupe ended with ${code} before its first request: ${stderr}`)))
    })
  } finally {
    child.kill('SIGKILL')
    server.closeAllConnections()
    server.close()
  }
}

export async function benchCold(): Promise<object> {
  // Inside the package, so that the crew file finds it by its name.
  const folder = join(root, 'test/bench')
  const js = join(folder, 'cold-crew.scratch.mjs')
  const ts = join(folder, 'cold-crew.scratch.ts')
  const times = { js: [] as number[], ts: [] as number[], tsFirst: [] as number[] }
  try {
    for (let pass = -1; pass < passes; pass += 1) {
      const store = scratch('cold')
      writeFileSync(js, source('js'))
      writeFileSync(ts, source(`${pass} ${performance.now()}`))
      const sample = {
        js: await first(js, join(store.path, 'a')),
        tsFirst: await first(ts, join(store.path, 'b')),
        ts: await first(ts, join(store.path, 'c')),
      }
      store.drop()
      if (pass < 0) continue
      times.js.push(sample.js)
      times.ts.push(sample.ts)
      times.tsFirst.push(sample.tsFirst)
    }
  } finally {
    rmSync(js, { force: true })
    rmSync(ts, { force: true })
  }
  const packages = corePackages()
  say(
    `first request: .js ${median(times.js).toFixed(0)} ms, .ts ${median(times.ts).toFixed(0)} ms, first .ts ${median(times.tsFirst).toFixed(0)} ms; ${packages} packages`,
  )
  return {
    bench: 'cold',
    jsMs: round3(median(times.js)),
    tsMs: round3(median(times.ts)),
    firstTsMs: round3(median(times.tsFirst)),
    corePackages: packages,
  }
}

/** Packages that an install without development dependencies brings on this platform. */
function corePackages(): number {
  const lock = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, { dev?: boolean; optional?: boolean }>
  }
  const installed = new Set(
    readdirSync(join(root, 'node_modules'), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.name === 'package.json')
      .map((entry) => join(entry.parentPath).slice(root.length)),
  )
  return Object.entries(lock.packages).filter(([path, info]) => path !== '' && info.dev !== true && installed.has(path))
    .length
}
