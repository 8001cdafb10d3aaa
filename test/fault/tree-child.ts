/**
 * The process of a trial of the tree: one crew on an embedded store, wired as `runtime/index.ts` wires it, with each port
 * wrapped. Where it is told to, it kills itself. Run by `tree-trials.ts`.
 */
import { machines } from '../../machines/index.js'
import { isTroupeError } from '../../runtime/errors.js'
import { createLog } from '../../runtime/log.js'
import { Runtime } from '../../runtime/runtime.js'
import { Scope } from '../../runtime/scope.js'
import { systemClock } from '../../runtime/system-clock.js'
import { Worker } from '../../runtime/worker.js'
import { createLevelJournal } from '../../transport/level-journal.js'
import { createHookedPorts, Danger, die, hookJournal, type Hooks, sayLine, type Window } from './hooked-ports.js'
import { type TreePlan, treeCrew, treePrice } from './tree-crew.js'

/** What the parent tells a child. */
export interface TreeChildConfig extends TreePlan {
  readonly store: string
  readonly baseURL: string
  /** Kills itself at the n-th passing of a window; null: not by hook. */
  readonly hook: { readonly window: Window; readonly nth: number } | null
  readonly boundMs: number
}

/** A line of the child's stdout. */
export type TreeChildSays =
  | { readonly type: 'ready' }
  | { readonly type: 'dying' }
  | { readonly type: 'done'; readonly code: string | null; readonly reason: string; readonly costNanoUsd: number }
  | { readonly type: 'hung'; readonly state: unknown }
  | { readonly type: 'failed'; readonly reason: string }

const config = JSON.parse(process.argv[2] ?? '{}') as TreeChildConfig
const say = (line: TreeChildSays): void => sayLine(line)

class Gate implements Hooks {
  readonly danger = new Danger(Number.POSITIVE_INFINITY)
  #passed = 0

  pass(window: Window): void {
    if (config.hook?.window !== window || (this.#passed += 1) < config.hook.nth) return
    say({ type: 'dying' })
    die()
  }
}

async function main(): Promise<void> {
  const log = createLog('error')
  const gate = new Gate()
  const { baseURL } = config
  const ports = createHookedPorts(gate, { baseURL, log, once: new Set(), prices: { scripted: treePrice } })
  const worker = new Worker({
    journal: hookJournal(createLevelJournal({ path: config.store, durability: 'process' }), gate),
    ...{ log, executor: `${process.pid}`, ports: { clock: systemClock, random: Math.random } },
    context: { scope: new Scope(), machines },
  })
  const runtime: Runtime = new Runtime({
    worker,
    bind: ports.bind,
    release: async () => {
      await worker.close(runtime.graceMs)
      await ports.close()
    },
  })
  const bound = setTimeout(() => {
    void runtime.show('tree').then(({ actors, ...state }) => {
      say({ type: 'hung', state: { ...state, actors: actors.slice(0, 10), actorCount: actors.length } })
      process.exit(3)
    })
  }, config.boundMs)
  await worker.open()
  const crew = await runtime.spawn(treeCrew(config))
  say({ type: 'ready' })
  const end = await crew.start('grow', { key: 'the-run' }).result.then(
    ({ cost }) => ({ code: null, reason: '', costNanoUsd: cost.nanoUsd }),
    (error: unknown) => {
      if (!isTroupeError(error)) throw error
      const { code, message, details } = error
      return { code, reason: message, costNanoUsd: Number(details['costNanoUsd']) }
    },
  )
  await runtime.close({ graceMs: 0 })
  clearTimeout(bound)
  say({ type: 'done', ...end })
  process.exit(0)
}

main().catch((error: unknown) => {
  say({ type: 'failed', reason: error instanceof Error ? (error.stack ?? error.message) : String(error) })
  process.exit(4)
})
