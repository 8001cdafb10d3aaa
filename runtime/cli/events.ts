/**
 * `troupe events`: the event stream of a namespace, followed from a terminal or a pipe.
 *
 * Owns: how an event of the stream reads on a line, the end that the shell sees.
 * Does not own: following (`transport/nats-follower.ts`), the connection (`nats.ts`).
 *
 * - CE1 Each event is one line: what happened when, to whom, and its place in the stream, from which `--since` goes on.
 * - CE2 A signal ends it with 130, a reader that leaves ends it quietly; a slow reader makes it wait.
 */
import { once } from 'node:events'
import { type FollowedEvent, followEvents } from '../../transport/nats-follower.js'
import { connectFrom, type NatsFlags } from './nats.js'
import { exitCodes, oneLine, type Paint, painter, writeJson, writeLine } from './output.js'

/** Options of `troupe events`. */
export interface EventsOptions extends NatsFlags {
  readonly since?: string
  readonly live?: boolean
  readonly messages?: boolean
  readonly json?: boolean
}

/** Follows the stream until it is interrupted. Returns the exit code. */
export async function events(subject: string | undefined, options: EventsOptions): Promise<number> {
  const leaving = new AbortController()
  let code: number = exitCodes.done
  const onSignal = (): void => {
    if (leaving.signal.aborted) process.exit(exitCodes.interrupted)
    code = exitCodes.interrupted
    leaving.abort()
  }
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, onSignal)
  process.stdout.on('error', () => leaving.abort())
  const { link, subjects } = await connectFrom(options)
  const { signal } = leaving
  const { since, live, messages } = options
  const paint = painter(process.stdout)
  try {
    const followed = followEvents({ link, subjects, filter: subject, since: placeOf(since), live, messages, signal })
    for await (const each of followed) {
      if (options.json === true) writeJson(each.sequence === null ? each.event : withSequence(each))
      else writeLine(lineOf(each, paint), process.stdout)
      if (process.stdout.writableNeedDrain) await once(process.stdout, 'drain', { signal }).catch(() => undefined)
    }
  } finally {
    await link.connection.close()
  }
  return code
}

function placeOf(since: string | undefined): string | number | undefined {
  return since !== undefined && /^\d+$/.test(since) ? Number(since) : since
}

/** Its number in the stream, as the attribute that CloudEvents has for it. */
function withSequence({ event, sequence }: FollowedEvent): object {
  return { ...event, sequence: String(sequence) }
}

/** One event on a line: number, time, shard, actor, type, what its data says. */
function lineOf({ event, sequence }: FollowedEvent, paint: Paint): string {
  const [shard = '', ...actor] = event.source.split('/').slice(2)
  const facts = Object.entries(event.data).map(([name, value]) => `${name}=${plain(value)}`)
  return [
    paint('dim', `${String(sequence ?? '·').padStart(6)} ${oneLine(event.time, 30)}`),
    paint('bold', oneLine(shard, 64)),
    oneLine(actor.join('/'), 64).padEnd(20),
    paint('cyan', oneLine(event.type.replace(/^troupe\./, ''), 64).padEnd(16)),
    oneLine(facts.join(' '), 160),
  ].join('  ')
}

function plain(value: unknown): string {
  return typeof value === 'string' ? value : JSON.stringify(value)
}
