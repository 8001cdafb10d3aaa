/**
 * Roles: what each kind of user of a namespace may publish and subscribe to, as the permissions of a server.
 *
 * Owns: the table of roles.
 * Does not own: the subjects (`subjects.ts`), users' keys and the text of a configuration (`nats-config.ts`).
 *
 * - ROL1 Each user reads the answers to its own requests only: it has an inbox of its own, `_INBOX_<user>`.
 * - ROL2 A client reaches the doors under its own name and nothing else; it has no right to JetStream.
 * - ROL3 Only shard workers write journals, events, refused letters and pins. A tool worker writes its lease, and outcomes and progress under
 *   its own name; an observer writes nothing.
 * - ROL4 Nobody may delete a stream or a single message, or use a stream of another namespace.
 *
 * JetStream sends what a request of its API is answered with wherever the request says, whoever asked *(measured on
 * 2.9.10)*. So a user with any right to that API (worker, tools, observer) can make the server publish such an answer on
 * subjects of others. It cannot choose what is in it: a crew whose journal gets one stops with `JOURNAL_CORRUPT`.
 */
import type { Subjects } from './subjects.js'

/** What a user is for: shard worker, tool worker, client, or somebody who watches. */
export type Role = 'worker' | 'tools' | 'client' | 'observer'

/** One user of a server. */
export interface RoleUser {
  readonly role: Role
  /** One token: its name in subjects and inboxes. A tool worker's is the worker's own. */
  readonly name: string
}

/** What a user may do; everything else is refused. */
export interface Permissions {
  readonly publish: readonly string[]
  readonly subscribe: readonly string[]
  /** May answer what it is asked, once and within a minute. */
  readonly responds: boolean
}

/** The permissions of a user. @param clients names of all clients: a shard worker answers each of them */
export function permissionsOf({ role, name }: RoleUser, clients: readonly string[], subjects: Subjects): Permissions {
  const api = new Api(subjects)
  const inbox = `${inboxOf(name)}.>`
  switch (role) {
    case 'worker':
      return {
        publish: [...crewWork(subjects, name, clients), ...crewStore(subjects, api)],
        subscribe: [subjects.doors(), subjects.questions(), subjects.workers(), ...subjects.toolCalls().reports, inbox],
        responds: false,
      }
    case 'tools':
      return {
        publish: [...subjects.toolReports(name), subjects.entries('workers', name), ...toolStore(subjects, api)],
        subscribe: [...subjects.toolRequests(name), inbox],
        responds: true,
      }
    case 'observer':
      return {
        publish: [
          ...[api.info, ...api.stream('events', 'INFO'), api.create('events')],
          ...api.consumer('events', 'CREATE', 'INFO', 'DELETE', 'MSG.NEXT'),
        ],
        subscribe: [subjects.events(), subjects.followed('live'), subjects.messages(), inbox],
        responds: false,
      }
    case 'client':
      return { publish: [subjects.doorsOf(name), subjects.questions(name)], subscribe: [inbox], responds: false }
  }
}

function inboxOf(name: string): string {
  return `_INBOX_${name}`
}

function crewWork(subjects: Subjects, name: string, clients: readonly string[]): string[] {
  const own = [
    subjects.journals(),
    subjects.contents(),
    subjects.mails(),
    subjects.events(),
    subjects.followed('live'),
    subjects.messages(),
    subjects.dead(),
    subjects.refusals(),
  ]
  // A worker uses crews as a client does, and asks and answers others of its kind.
  const asked = [subjects.doorsOf(name), subjects.questions(name), subjects.workers()]
  return [...own, ...asked, ...subjects.toolCalls().requests, ...[name, ...clients].map((each) => `${inboxOf(each)}.>`)]
}

function crewStore(subjects: Subjects, api: Api): string[] {
  return [
    api.info,
    ...api.stream('journal', 'INFO', 'CREATE', 'MSG.GET', 'PURGE'),
    ...[...api.directs('journal'), api.create('journal'), ...api.consumer('journal', 'DELETE', 'MSG.NEXT')],
    ...[...api.stream('content', 'INFO', 'CREATE', 'MSG.GET', 'PURGE'), ...api.directs('content')],
    ...api.stream('mail', 'INFO', 'CREATE', 'MSG.GET', 'MSG.DELETE'),
    ...[...api.consumer('mail', 'CREATE', 'INFO', 'DELETE', 'MSG.NEXT'), ...api.answers('mail')],
    ...api.stream('events', 'INFO', 'CREATE', 'MSG.GET'),
    ...[api.create('events'), ...api.consumer('events', 'DELETE', 'MSG.NEXT')],
    ...api.stream('dead', 'INFO', 'CREATE', 'MSG.GET', 'PURGE'),
    ...[api.create('dead'), ...api.consumer('dead', 'DELETE', 'MSG.NEXT')],
    ...(['workers', 'pins', 'breakers'] as const).flatMap((of) => [
      ...api.stream(`KV_${of}`, 'CREATE'),
      ...api.bucket(of),
      of === 'breakers' ? subjects.breakers() : subjects.entries(of),
    ]),
  ]
}

/** It stores outcomes, the large ones beside the mail, renews its lease, and tells of the servers that its tools speak to. */
function toolStore(subjects: Subjects, api: Api): string[] {
  const seen = [...api.stream('mail', 'INFO'), ...api.stream('content', 'INFO')]
  const buckets = (['workers', 'pins', 'breakers'] as const).flatMap((of) => api.bucket(of))
  return [api.info, ...seen, ...buckets, subjects.breakers('tool')]
}

type StreamName = Parameters<Subjects['stream']>[0]
type Bucket = 'workers' | 'pins' | 'breakers'

/** Subjects of JetStream's API for the streams of a namespace. */
class Api {
  readonly #subjects: Subjects
  /** What an account has: asked for with each connection. */
  readonly info = '$JS.API.INFO'

  constructor(subjects: Subjects) {
    this.#subjects = subjects
  }

  #name(of: StreamName | `KV_${Bucket}`): string {
    return of.startsWith('KV_')
      ? `KV_${this.#subjects.stream(of.slice(3) as Bucket)}`
      : this.#subjects.stream(of as StreamName)
  }

  stream(of: StreamName | `KV_${Bucket}`, ...verbs: readonly string[]): string[] {
    return verbs.map((verb) => `$JS.API.STREAM.${verb}.${this.#name(of)}`)
  }

  /** Making a consumer that has no name of its own. */
  create(of: StreamName): string {
    return `$JS.API.CONSUMER.CREATE.${this.#name(of)}`
  }

  consumer(of: StreamName | `KV_${Bucket}`, ...verbs: readonly string[]): string[] {
    return verbs.map((verb) => `$JS.API.CONSUMER.${verb}.${this.#name(of)}.>`)
  }

  /** Single messages, by number and by subject. */
  directs(of: StreamName): string[] {
    return [this.direct(of), `${this.direct(of)}.>`]
  }

  direct(of: StreamName | `KV_${Bucket}`): string {
    return `$JS.API.DIRECT.GET.${this.#name(of)}`
  }

  /** What is told of messages that were delivered. Later servers put domain and account before the stream. */
  answers(of: StreamName): string[] {
    return [`$JS.ACK.${this.#name(of)}.>`, `$JS.ACK.*.*.${this.#name(of)}.>`]
  }

  /** Reading a bucket, and being told of its changes. */
  bucket(of: Bucket): string[] {
    const stream = `KV_${of}` as const
    const watching = [...this.consumer(stream, 'CREATE', 'INFO', 'DELETE'), `$JS.FC.${this.#name(stream)}.>`]
    return [...this.stream(stream, 'INFO'), `${this.direct(stream)}.>`, ...watching]
  }
}
