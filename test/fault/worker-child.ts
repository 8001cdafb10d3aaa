/**
 * A worker process that faults are made in: one of several over NATS, wired as `runtime/index.ts` wires it, with ports and
 * wire wrapped. Where it is told to, it kills itself, kills the server, or stops. Run by `worker-stage.ts`.
 */
import { appendFileSync, existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { Breakers } from '../../runtime/breakers.js'
import { joinNamespace } from '../../runtime/distributed.js'
import { createLog } from '../../runtime/log.js'
import { Scope } from '../../runtime/scope.js'
import { Worker } from '../../runtime/worker.js'
import { connectNats } from '../../transport/nats-connection.js'
import { createHookedPorts, Danger, die, hookJournal, type Hooks, sayLine, type Window } from './hooked-ports.js'
import { machines } from '../../machines/index.js'
import { mailCrews, type MailGroup } from './mail-crews.js'
import { crewOfSlot, type LedgerLine, onceTools, sharedCrews, type Workshop } from './kill-crews.js'

/** What becomes of whom at a hook. */
export type Fault = 'kill' | 'server' | 'stop'

/** What the parent tells a worker at its start. */
export interface WorkerConfig {
  readonly servers: readonly string[]
  readonly namespace: string
  readonly worker: string
  readonly leaseMs: number
  readonly replicas: number
  readonly baseURL: string
  /** A file for each crew, and one for faults. */
  readonly ledger: string
  /** Its content is the process id of the server. */
  readonly serverPid: string
  /** The worker's local copies. */
  readonly store: string
  /** What a `bulk` crew's tool brings. */
  readonly haulBytes: number
  /** Crews that ask each other. */
  readonly groups: readonly MailGroup[]
}

/** A line of the worker's stdin. `arm` replaces what was armed before; a window of null disarms. */
export interface WorkerHears {
  readonly window: Window | null
  /** At the n-th passing. */
  readonly nth: number
  readonly fault: Fault
}

/** A line of the worker's stdout. */
export type WorkerSays =
  | { readonly type: 'ready' }
  | { readonly type: 'danger' | 'safe'; readonly shard: string }
  | { readonly type: 'link'; readonly what: 'disconnect' | 'reconnect' }
  | { readonly type: 'failed'; readonly reason: string }

const config = JSON.parse(process.argv[2] ?? '{}') as WorkerConfig
const say = (line: WorkerSays): void => sayLine(line)

function write(file: string, line: Omit<LedgerLine, 'pid' | 'at'>): void {
  appendFileSync(join(config.ledger, file), `${JSON.stringify({ pid: process.pid, at: Date.now(), ...line })}\n`)
}

// ---------------------------------------------------------------------------------------------- the hook

class ArmedHooks implements Hooks {
  readonly danger = new Danger(2)
  #armed: WorkerHears = { window: null, nth: 0, fault: 'kill' }
  #passed = 0

  constructor() {
    this.danger.onDanger = (shard) => say({ type: 'danger', shard })
    this.danger.onSafe = (shard) => say({ type: 'safe', shard })
  }

  arm(armed: WorkerHears): void {
    this.#armed = armed
    this.#passed = 0
  }

  isArmed(window: Window): boolean {
    return this.#armed.window === window
  }

  pass(window: Window, what: string): void {
    const { fault, nth } = this.#armed
    if (!this.isArmed(window) || (this.#passed += 1) < nth) return
    this.arm({ window: null, nth: 0, fault })
    write('faults', { what: fault, tool: window, slot: what, key: config.worker })
    if (fault === 'kill') die()
    if (fault === 'stop') return void process.kill(process.pid, 'SIGSTOP')
    killServer()
  }
}

/** Kills the server and comes back when it is gone. */
function killServer(): void {
  const pid = Number(readFileSync(config.serverPid, 'utf8'))
  const cell = new Int32Array(new SharedArrayBuffer(4))
  try {
    for (process.kill(pid, 'SIGKILL'); ; process.kill(pid, 0)) Atomics.wait(cell, 0, 0, 1)
  } catch {
    // It is gone.
  }
}

const hooks = new ArmedHooks()

/** What everything that a connection sends goes through. */
interface Wire {
  publish(this: Wire, subject: string, data?: unknown, options?: unknown): void
  flush(): Promise<void>
  readonly listeners: { push(status: { readonly type: string }): void; stop(): void }[]
}

/** Tells of what is sent, on every connection of this process from now on. */
async function hookWire(): Promise<void> {
  const probe = await connectNats({ servers: config.servers })
  const probed = (probe.connection as unknown as { readonly protocol: Wire }).protocol
  const wire = Object.getPrototypeOf(probed) as Wire
  const publish = wire.publish
  const [journal, mail, event] = ['journal', 'mail', 'event'].map((of) => `troupe.${config.namespace}.${of}.`)
  const taken = `$JS.ACK.troupe_${config.namespace}_mail.`
  const watched = new WeakSet<Wire>([probed])
  wire.publish = function (subject, data, options) {
    if (!watched.has(this)) {
      watched.add(this)
      this.listeners.push({ push: ({ type }) => tellLink(type), stop: () => undefined })
    }
    if (subject.startsWith(mail!)) hooks.pass('before mail', subject)
    if (subject.startsWith(event!)) hooks.pass('before event', subject)
    if (subject.startsWith(taken) && data === '+ACK') hooks.pass('mail taken', subject)
    publish.call(this, subject, data, options)
    const sent = windowsSent(subject, journal!, mail!).find((window) => hooks.isArmed(window))
    // The server answers in order: it has read what was sent before.
    if (sent !== undefined)
      void this.flush().then(
        () => hooks.pass(sent, subject),
        () => undefined,
      )
  }
  await probe.connection.close()
}

/** Which windows lie behind the sending of something. Tasks are for crews, answers for envoys. */
function windowsSent(subject: string, journal: string, mail: string): Window[] {
  if (subject.startsWith(journal)) return ['append sent']
  if (!subject.startsWith(mail)) return []
  const kind = subject.split('.')[5]
  return ['mail sent', ...(kind === 'crew' ? ['task sent' as const] : kind === 'envoy' ? ['answer sent' as const] : [])]
}

function tellLink(type: string): void {
  if (type === 'disconnect' || type === 'reconnect') say({ type: 'link', what: type })
}

// ---------------------------------------------------------------------------------------------- the worker

const shop: Workshop = {
  write: (line) => write(crewOfSlot(line.slot), line),
  read: (slot) => {
    const file = join(config.ledger, crewOfSlot(slot))
    const lines = existsSync(file) ? readFileSync(file, 'utf8').split('\n').filter(Boolean) : []
    return lines.map((line) => JSON.parse(line) as LedgerLine)
  },
  working: (tool) => hooks.pass('in flight', tool),
  die: async () => die(),
  poisonous: false,
  haulBytes: config.haulBytes,
}

async function main(): Promise<void> {
  await hookWire()
  const log = createLog('error')
  const ports = createHookedPorts(hooks, { baseURL: config.baseURL, log, once: onceTools })
  const { servers, namespace, worker, leaseMs, replicas } = config
  const runtime = await joinNamespace({
    nats: { servers, namespace, worker, leaseMs, replicas },
    store: config.store,
    log,
    bind: ports.bind,
    hashOf: (crew) => ports.bind(crew).prepared.hash,
    newWorker: (journal, more) =>
      new Worker({
        journal: hookJournal(journal, hooks),
        log,
        executor: worker,
        ports: more.ports!,
        context: { scope: new Scope(), machines },
        ...more,
      }),
    newTools: () => {
      throw new Error('this one runs crews')
    },
    newBreakers: (store, clock) => new Breakers({ store, clock, log }),
    closePorts: () => ports.close(),
  })
  await runtime.offer(...sharedCrews(shop).values(), ...mailCrews(config.groups, shop).values())
  createInterface({ input: process.stdin })
    .on('line', (line) => hooks.arm(JSON.parse(line) as WorkerHears))
    // Nobody is to be left behind by a parent that was killed.
    .on('close', () => process.exit(0))
  process.once('SIGTERM', () => {
    void runtime.close({ graceMs: 10_000 }).then(() => process.exit(0))
  })
  say({ type: 'ready' })
}

main().catch((error: unknown) => {
  say({ type: 'failed', reason: error instanceof Error ? (error.stack ?? error.message) : String(error) })
  process.exit(4)
})
