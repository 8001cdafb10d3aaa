/**
 * The ports of a process that faults are made in: each is wrapped, and tells whoever wants to know when a window is passed.
 * The product knows nothing of it.
 */
import { writeSync } from 'node:fs'
import { createFetch } from '../../actors/fetch.js'
import { createOpenAIModelPort, type OpenAIModelPortOptions } from '../../actors/model-openai.js'
import { createToolPort } from '../../actors/tool.js'
import type { Crew } from '../../runtime/define.js'
import type { LiveCrew } from '../../runtime/dispatcher.js'
import type { Journal, JournalRecord } from '../../runtime/journal.js'
import type { Log } from '../../runtime/log.js'
import type { ModelPort, ToolPort } from '../../runtime/ports.js'
import { prepareCrew } from '../../runtime/prepared-crew.js'
import { isForeign } from '../../runtime/mail.js'
import { fromEvents, fromRecord, type RecordedCommit } from '../../runtime/record.js'
import { systemClock } from '../../runtime/system-clock.js'

/** Where a fault may be made by hook. The ports know of those up to `in flight`, the wire of the others. */
export type Window =
  /** A record is made and not sent. */
  | 'before append'
  /** It is durable and known to be, and nothing follows from it yet. */
  | 'append to dispatch'
  /** A `once` call is asked for, durably, and its `dispatched` record is not. */
  | 'append to dispatched'
  /** The `dispatched` record is durable, the last look before the call is not done. */
  | 'dispatched to check'
  | 'outcome to append'
  | 'in flight'
  /** A record is with the server, its acknowledgement is not here. */
  | 'append sent'
  /** An outcome is to follow its shard by mail. */
  | 'before mail'
  | 'mail sent'
  /** A letter was taken, and is not acknowledged. */
  | 'mail taken'
  /** A commit is durable, its events are not in the stream. */
  | 'before event'
  | LetterWindow

/** What one crew says to another, as the windows tell it apart: a task, or the answer to one. */
export type LetterKind = 'task' | 'answer'

/** Where a letter between crews may be when a fault is made. The wire knows of `sent`, the journal of the others. */
export type LetterWindow =
  /** The record that wrote it is durable, and it is not sent. */
  | `${LetterKind} written`
  /** It is with the server, whose acknowledgement is not here. */
  | `${LetterKind} sent`
  /** It was handed over, and the record that says so is made and not sent. */
  | `${LetterKind} handed`
  /** It came, and the record that takes it is made and not sent. */
  | `${LetterKind} delivered`
  /** The record that takes it is durable, and it is not acknowledged. */
  | `${LetterKind} taken`

/** Told whenever a window is passed; may not come back. */
export interface Hooks {
  pass(window: Window, what: string): void
  readonly danger: Danger
}

/** Work that was through crashes: at the third it is given up, as it should be, and the run ends otherwise than its twin. */
export class Danger {
  /** By shard the actors that wait, or timers. */
  readonly #endangered = new Map<string, Set<string>>()
  readonly #crashes: number
  /** Called with a shard that has come to have, or has no more, work in danger. */
  onDanger: (shard: string) => void = () => undefined
  onSafe: (shard: string) => void = () => undefined

  /** @param crashes work is in danger that was through as many */
  constructor(crashes: number) {
    this.#crashes = crashes
  }

  get shards(): readonly string[] {
    return [...this.#endangered.keys()]
  }

  /** The runtime counted crashes for work that it is about to try again. */
  counted(shard: string, attempts: Readonly<Record<string, number>>): void {
    // A row for each piece of work and each process that died over it: `effect <actor> <length> by <process>`.
    const sums = new Map<string, number>()
    for (const [row, count] of Object.entries(attempts)) {
      const work = row.slice(0, row.lastIndexOf(' by '))
      sums.set(work, (sums.get(work) ?? 0) + count)
    }
    const works = [...sums].filter(([, count]) => count >= this.#crashes)
    const names = works.map(([work]) => work.split(' ')[1]!)
    if (names.length === 0) return
    this.#endangered.set(shard, new Set(names))
    this.onDanger(shard)
  }

  appended(record: JournalRecord): void {
    const names = this.#endangered.get(record.shard)
    if (names === undefined) return
    for (const { envelope } of fromRecord(record.shard, record)) {
      if (envelope.from === 'clock/timer') names.delete(envelope.cause.split('|').slice(0, 2).join('|'))
      if (envelope.from.startsWith('port/') && envelope.body.type !== 'effect.interrupted') names.delete(envelope.to)
      // In order: the next owner counts nothing.
      if (envelope.body.type === 'shard.left') names.clear()
    }
    if (names.size === 0) this.ended(record.shard)
  }

  /** The shard has nothing that could come to harm any more. */
  ended(shard: string): void {
    this.#endangered.delete(shard)
    this.onSafe(shard)
  }
}

/** What a message says, if it is one between crews. */
const letterKinds: Readonly<Record<string, LetterKind>> = { 'delegate.task': 'task', 'delegate.answered': 'answer' }

/** The letters of a process, as its records tell of them. */
class Letters {
  /** By shard and commit that wrote them, until they are handed over. */
  readonly #written = new Map<string, LetterKind>()

  /** What is about to be written down. */
  before(shard: string, commits: readonly RecordedCommit[]): LetterWindow[] {
    const handed = commits
      .filter(({ envelope }) => envelope.body.type === 'mail.handed')
      .flatMap(({ envelope }) => envelope.body['rows'] as string[])
      .map((row) => this.#written.get(`${shard} ${row.split('-')[0]}`))
    return [...windowsOf('handed', handed), ...windowsOf('delivered', commits.map(kindOfTaken))]
  }

  /** What was written down. */
  after(record: JournalRecord, commits: readonly RecordedCommit[]): LetterWindow[] {
    const events = record.events === null ? [] : fromEvents(record.events)
    const written = events
      .filter(({ event }) => event.type === 'mail.sent')
      .map(({ sequence, event }) => ({ sequence, kind: letterKinds[String(event['message'])] }))
    for (const { sequence, kind } of written)
      if (kind !== undefined) this.#written.set(`${record.shard} ${sequence}`, kind)
    return [
      ...windowsOf(
        'written',
        written.map(({ kind }) => kind),
      ),
      ...windowsOf('taken', commits.map(kindOfTaken)),
    ]
  }
}

function kindOfTaken({ envelope: { from, body } }: RecordedCommit): LetterKind | undefined {
  return isForeign(from) ? letterKinds[body.type] : undefined
}

function windowsOf<What extends string>(what: What, kinds: readonly (LetterKind | undefined)[]) {
  return kinds.filter((kind) => kind !== undefined).map((kind): `${LetterKind} ${What}` => `${kind} ${what}`)
}

/** A journal that tells of its appends. */
export function hookJournal(inner: Journal, hooks: Hooks): Journal {
  const letters = new Letters()
  const hooked: Partial<Journal> = {
    append: async (record) => {
      const { shard } = record
      const commits = fromRecord(shard, record)
      hooks.pass('before append', shard)
      for (const window of letters.before(shard, commits)) hooks.pass(window, shard)
      await inner.append(record)
      for (const { envelope } of commits)
        if (envelope.body.type === 'effect.dispatched') hooks.pass('dispatched to check', shard)
      for (const window of letters.after(record, commits)) hooks.pass(window, shard)
      hooks.pass('append to dispatch', shard)
      hooks.danger.appended(record)
    },
    putAttempts: async (shard, attempts) => {
      hooks.danger.counted(shard, attempts)
      await inner.putAttempts(shard, attempts)
    },
  }
  return new Proxy(inner, {
    get: (_target, name: keyof Journal) => {
      const own = hooked[name]
      if (own !== undefined) return own
      const value: unknown = inner[name]
      return typeof value === 'function' ? (value.bind(inner) as unknown) : value
    },
  })
}

function hookModel(inner: ModelPort, hooks: Hooks): ModelPort {
  const call: ModelPort['call'] = async (request) => {
    const outcome = await inner.call(request)
    hooks.pass('outcome to append', 'model')
    return outcome
  }
  return { call, price: inner.price, check: inner.check, close: inner.close }
}

function hookTools(inner: ToolPort, hooks: Hooks, once: ReadonlySet<string>): ToolPort {
  return {
    run: async (request) => {
      const mayStart = (): Promise<boolean> => {
        if (once.has(request.tool)) hooks.pass('append to dispatched', request.shard)
        return request.mayStart()
      }
      const outcome = await inner.run({ ...request, mayStart })
      hooks.pass('outcome to append', request.tool)
      return outcome
    },
    verify: async (request) => {
      const outcome = await inner.verify(request)
      hooks.pass('outcome to append', `verify ${request.tool}`)
      return outcome
    },
  }
}

/** What a process of crews is made of. */
export interface HookedPorts {
  bind(crew: Crew): LiveCrew
  close(): Promise<void>
}

/** What hooked ports are made for. */
export interface HookedPortsOptions {
  readonly baseURL: string
  readonly log: Log
  /** Names of `once` tools. */
  readonly once: ReadonlySet<string>
  /** @default none are known */
  readonly prices?: OpenAIModelPortOptions['prices']
}

/** Model and tools as `runtime/index.ts` wires them, with hooks. */
export function createHookedPorts(hooks: Hooks, { baseURL, log, once, prices }: HookedPortsOptions): HookedPorts {
  const fetch = createFetch()
  const model = createOpenAIModelPort({
    ...(prices === undefined ? {} : { prices }),
    providers: {
      scripted: {
        baseURL,
        apiKey: null,
        headers: { 'x-process': `${process.pid}` },
        fetch: async (url, init) => {
          // by then the request is on the wire; a reply takes longer
          const timer = setTimeout(() => hooks.pass('in flight', 'model'), 2)
          try {
            return await fetch(url, init)
          } finally {
            clearTimeout(timer)
          }
        },
      },
    },
  })
  const hookedModel = hookModel(model, hooks)
  const bind = (crew: Crew): LiveCrew => {
    const prepared = prepareCrew(crew, hookedModel)
    const tools = createToolPort({
      tools: (_shard, agent) => prepared.agents.get(agent)?.tools ?? new Map(),
      deps: undefined,
      log: (bindings) => log.with(bindings),
      clock: systemClock,
      concurrency: () => prepared.crew.limits.toolConcurrency,
    })
    return { prepared, model: hookedModel, tools: hookTools(tools, hooks, once) }
  }
  return {
    bind,
    close: async () => {
      await model.close()
      await fetch.close()
    },
  }
}

/** Writes a line for the parent, whole, before it comes back. */
export function sayLine(line: object): void {
  const bytes = Buffer.from(`${JSON.stringify(line)}\n`)
  for (let at = 0; at < bytes.length; ) {
    try {
      at += writeSync(1, bytes, at)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error
    }
  }
}

/** Ends this process. */
export function die(): never {
  for (;;) process.kill(process.pid, 'SIGKILL')
}
