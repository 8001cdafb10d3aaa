/**
 * `troupe show`, `rm`, `pause`, `resume`, `cancel`, `steer`, `raise`, `move`: looking at crews and telling them what to do.
 *
 * Owns: how crews are shown.
 * Does not own: reaching them: beside a running process through its control socket, else by opening the store.
 */
import { existsSync } from 'node:fs'
import type { BudgetLimits } from '../budget.js'
import { TroupeError } from '../errors.js'
import type { Runtime } from '../face.js'
import { createRuntime } from '../index.js'
import type { PoolBooks } from '../pool-books.js'
import type { CrewDetails, CrewInfo, RunInfo } from '../runtime.js'
import { whomOf } from '../steering.js'
import { askLine } from './asks.js'
import { BusyStore, passing } from './busy-store.js'
import { type NatsFlags, natsFrom } from './nats.js'
import { count, dollars, duration, exitCodes, oneLine, painter, plural, writeJson, writeLine } from './output.js'

/** Options of every command on a store, or on what workers share over NATS. */
export interface StoreOptions extends NatsFlags {
  readonly store: string
  readonly json?: boolean
}

/**
 * Opens an existing store for one command, or reaches its owner, or the workers.
 * @param again the work may be done once more when the owner goes meanwhile: it only looks, and has told nothing yet
 * @throws TroupeError `CONFIG_INVALID` when there is none.
 */
export async function withStore<T>(
  options: StoreOptions,
  work: (runtime: Runtime) => Promise<T>,
  again = false,
): Promise<T> {
  if (options.nats === undefined) checkStore(options.store)
  const where =
    options.nats === undefined ? { store: options.store } : { nats: { ...natsFrom(options), role: 'client' as const } }
  const busy = new BusyStore()
  for (;;) {
    const runtime = await createRuntime({ ...where, log: 'silent' }, busy.tell)
    passing(runtime)
    try {
      return await work(runtime)
    } catch (error) {
      if (!again || options.nats !== undefined || !(await busy.again(runtime, error))) throw error
    } finally {
      await runtime.close({ graceMs: 0 })
    }
  }
}

/** A store is not made by looking at it. @throws TroupeError `CONFIG_INVALID`. */
export function checkStore(store: string): void {
  if (!existsSync(store))
    throw new TroupeError('CONFIG_INVALID', `there is no store ${store}: --store DIR names another`)
}

/** What a crew does, in a word or two. */
export function stateOf({ openEffects, nextDueAt }: CrewInfo, asks = 0): string {
  if (asks > 0 && openEffects === 0) return `waits for ${plural(asks, 'answer')}`
  if (openEffects > 0) return `at work: ${plural(openEffects, 'open call')}`
  if (nextDueAt === null) return 'idle'
  const ms = nextDueAt - Date.now()
  return ms <= 0 ? 'due' : `waits ${duration(ms)}`
}

/** Shows one crew. */
export async function show(id: string, options: StoreOptions): Promise<number> {
  const details = await withStore(options, (runtime) => runtime.show(id), true)
  if (options.json === true) writeJson(details)
  else writeDetails(details)
  return exitCodes.done
}

function writeDetails(details: CrewDetails): void {
  const paint = painter(process.stdout)
  const name = details.crew === '' || details.crew === details.id ? '' : ` (${details.crew})`
  const head = [
    plural(details.sequence, 'commit'),
    stateOf(details, details.asks.length),
    ...(details.paused ? ['paused'] : []),
    ...(details.machine === undefined || details.machine === 'active' ? [] : [`its machine: ${details.machine}`]),
  ]
  writeLine(`${paint('bold', details.id)}${name} · ${head.join(' · ')}`, process.stdout)
  if (details.stopped !== null) {
    writeLine(paint('red', `stopped: ${details.stopped.code}: ${oneLine(details.stopped.reason)}`), process.stdout)
  }
  if (details.books !== undefined) writeBooks(details.books)
  if (details.runs.length > 0) writeLine(paint('dim', 'runs'), process.stdout)
  for (const run of details.runs) writeLine(`  ${runLine(run)}`, process.stdout)
  if (details.actors.length > 0) writeLine(paint('dim', 'actors'), process.stdout)
  for (const { address, state, waitsFor } of details.actors) {
    writeLine(`  ${address}  ${state}${waitsFor === null ? '' : `, waits for ${oneLine(waitsFor)}`}`, process.stdout)
  }
  writeAsks(details)
  writeOutgoing(details)
}

function writeBooks({ limits, booked, until, shares, waiting }: PoolBooks): void {
  const paint = painter(process.stdout)
  const end = until === null ? '' : ` until ${new Date(until).toISOString()}`
  writeLine(`${amountsOf(booked)} of ${amountsOf(limits)} spent or given away${end}`, process.stdout)
  if (shares.length > 0) writeLine(paint('dim', 'shares'), process.stdout)
  for (const { keeper, booked: share } of shares) writeLine(`  ${keeper}  ${amountsOf(share)}`, process.stdout)
  if (waiting.length > 0) writeLine(`${paint('dim', 'waiting')} ${waiting.join(', ')}`, process.stdout)
}

function amountsOf({ usd, tokens, modelCalls }: BudgetLimits): string {
  const told = [
    ...(usd === undefined ? [] : [dollars(usd)]),
    ...(tokens === undefined ? [] : [`${count(tokens)} tokens`]),
    ...(modelCalls === undefined ? [] : [plural(modelCalls, 'model call')]),
  ]
  return told.join(' · ')
}

function writeAsks({ id, asks }: CrewDetails): void {
  if (asks.length === 0) return
  writeLine(painter(process.stdout)('dim', `waits for a person: troupe approve ${id} ASK`), process.stdout)
  for (const ask of asks) writeLine(`  ${askLine(ask)}`, process.stdout)
}

function writeOutgoing({ outgoing }: CrewDetails): void {
  if (outgoing.length > 0) writeLine(painter(process.stdout)('dim', 'letters to hand over'), process.stdout)
  for (const { to, message, number } of outgoing) writeLine(`  ${message} ${number} to ${to}`, process.stdout)
}

/** A run in one line; what one that goes on has cost is so far. */
export function runLine(run: RunInfo): string {
  const cost = `${count(run.tokens)} tokens · ${dollars(run.costUsd)}`
  if (run.status === 'queued') return `${run.runId}  queued`
  if (run.status === 'running') return `${run.runId}  running · ${cost} so far`
  const end = run.code === null ? 'done' : `${run.code}: ${oneLine(run.reason)}`
  return `${run.runId}  ${end} · ${plural(run.rounds, 'round')} · ${cost}`
}

/** Deletes a crew. */
export async function rm(id: string, options: StoreOptions): Promise<number> {
  return told(id, options, 'removed', (runtime) => runtime.remove(id))
}

/** Says something to the agents of a crew at work. */
export async function steer(
  id: string,
  text: string,
  options: StoreOptions & { readonly run?: string; readonly agent?: string },
): Promise<number> {
  return told(id, options, 'steered', (runtime) => runtime.steer(id, text, whomOf(options)))
}

/** Sets limits of a budget that is at work. */
export async function raise(
  id: string,
  { agent, usd, tokens, modelCalls, toolCalls, ...options }: StoreOptions & BudgetLimits & { readonly agent?: string },
): Promise<number> {
  const named = Object.entries({ usd, tokens, modelCalls, toolCalls }).filter(([, limit]) => limit !== undefined)
  const whose = agent === undefined ? {} : { agent }
  return told(id, options, 'raised', (runtime) => runtime.raise(id, Object.fromEntries(named), whose))
}

/** Gives a crew to another worker, or to whomever it falls. */
export async function move(id: string, options: StoreOptions & { readonly to?: string }): Promise<number> {
  const to = options.to === 'auto' ? undefined : options.to
  const worker = await withStore(options, (runtime) => runtime.move(id, to))
  if (options.json === true) writeJson({ type: 'moved', crew: id, worker })
  else writeLine(`${id} is with ${worker}`)
  return exitCodes.done
}

/** Holds, lets go or ends a crew's current run. */
export async function command(
  what: 'pause' | 'resume' | 'cancel',
  id: string,
  options: StoreOptions & { readonly run?: string },
): Promise<number> {
  const done = { pause: 'paused', resume: 'resumed', cancel: 'cancelled' }[what]
  return told(id, options, done, (runtime) =>
    what === 'cancel' ? runtime.cancel(id, options.run) : what === 'pause' ? runtime.pause(id) : runtime.resume(id),
  )
}

async function told(
  id: string,
  options: StoreOptions,
  done: string,
  work: (runtime: Runtime) => Promise<void>,
): Promise<number> {
  await withStore(options, work)
  if (options.json === true) writeJson({ type: done, crew: id })
  else writeLine(`${id} ${done}`)
  return exitCodes.done
}
