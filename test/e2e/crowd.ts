/**
 * Workers of one namespace as real processes, and the commands of somebody beside them.
 */
import type { ModelScript } from '../../actors/scripted-model.js'
import type { NatsLink } from '../../transport/nats-connection.js'
import { type FollowedEvent, followEvents } from '../../transport/nats-follower.js'
import { Subjects } from '../../transport/subjects.js'
import type { NatsServer } from '../support/nats-server.js'
import { type Command, crewFile, type End, ended, model, scratch, troupe } from './command-line.js'

/** How to gather workers. */
export interface Gathering {
  readonly server: NatsServer
  readonly link: NatsLink
  /** Names of the workers that begin. */
  readonly names: readonly string[]
  readonly script: ModelScript
  /** @default desk.mjs */
  readonly crew?: string
  readonly env?: Readonly<Record<string, string>>
  /** More of it for one worker. */
  readonly envOf?: (name: string) => Readonly<Record<string, string>>
}

/** Workers in a namespace of their own, killed when the test ends. */
export interface Crowd {
  readonly namespace: string
  readonly workers: ReadonlyMap<string, Command>
  readonly scripted: Awaited<ReturnType<typeof model>>
  /** Starts a worker with this name; resolves when it takes crews. */
  start(name: string, ...more: readonly string[]): Promise<Command>
  /** `troupe run` of the crew with the input `go`. */
  run(...words: readonly string[]): Command
  /** Any other command, to its end. */
  ask(...words: readonly string[]): Promise<End>
  /** Events of the namespace so far, until one. */
  events(until: (event: FollowedEvent) => boolean): Promise<FollowedEvent[]>
  /** Name of the worker that took a crew last. */
  ownerOf(events: readonly FollowedEvent[]): string
}

let count = 0

/** Starts workers. */
export async function gather({
  server,
  link,
  names,
  script,
  crew = 'desk.mjs',
  env = {},
  envOf,
}: Gathering): Promise<Crowd> {
  const namespace = `e2e${process.pid}-${(count += 1)}`
  const cwd = await scratch()
  const scripted = await model(script)
  const file = crewFile(crew)
  const flags = ['--nats', server.url, '--namespace', namespace]
  const start = async (name: string, ...more: readonly string[]): Promise<Command> => {
    const words = ['worker', file, ...flags, '--name', name, '--lease', '1000', ...more]
    const command = troupe(words, { cwd, model: scripted, env: { ...env, ...envOf?.(name) } })
    await command.says(`worker ${name} of namespace`)
    workers.set(name, command)
    return command
  }
  const workers = new Map<string, Command>()
  for (const name of names) await start(name)
  return {
    namespace,
    workers,
    scripted,
    start,
    run: (...words) =>
      // Whoever only asks needs no key.
      troupe(['run', file, ...flags, '--input', 'go', ...words], { cwd, env: { ...env, OPENAI_API_KEY: '' } }),
    ask: (...words) => ended([...words, ...flags], { cwd }),
    events: async (until) => {
      const found: FollowedEvent[] = []
      for await (const each of followEvents({ link, subjects: new Subjects(namespace), since: 'all' })) {
        found.push(each)
        if (until(each)) return found
      }
      return found
    },
    ownerOf: (all) => {
      const taken = all.filter(({ event }) => event.type === 'troupe.shard.taken').at(-1)
      return String(taken?.event.data['owner']).split('.')[0]!
    },
  }
}
