/**
 * Subjects: the one place where the name of anything becomes part of a NATS subject.
 *
 * Owns: the subjects of DESIGN 5, what may stand in a token, which partition a shard is in.
 * Does not own: who may use a subject (the server's permissions), what is sent on it.
 *
 * - SU1 Whatever is put in, each part of a subject is one token: no dot, no wildcard, no space, nothing of the protocol.
 * - SU3 Names that come from models and files are encoded so that no two of them meet.
 * - SU2 A shard is in the same partition for everybody, and in one only.
 */
import { createHash } from 'node:crypto'
import { TroupeError } from '../runtime/errors.js'

/** Partitions of a namespace. Part of the subjects of shards: it cannot be changed later. */
export const partitionCount = 64

const tokenPattern = /^[A-Za-z0-9_-]{1,64}$/
/** Encoded names are longer than what they were made of. */
const filterToken = /^[A-Za-z0-9_-]{1,128}$/
/** Words of an event's type that are tokens of their own. */
const maxWords = 8

/** The subjects of one namespace. */
export class Subjects {
  readonly #prefix: string
  /** Names of streams and buckets have no dots. */
  readonly #name: string

  /** @throws TroupeError `ID_INVALID` for a namespace that is no token. */
  constructor(namespace: string) {
    token(namespace)
    this.#prefix = `troupe.${namespace}`
    this.#name = `troupe_${namespace}`
  }

  /** The name of a stream or bucket of this namespace. */
  stream(of: 'journal' | 'content' | 'workers' | 'pins' | 'mail' | 'events' | 'dead' | 'breakers'): string {
    return `${this.#name}_${of}`
  }

  /** The journal of a shard. */
  journal(shard: string): string {
    return `${this.#prefix}.journal.${partitionOf(shard)}.${token(shard)}`
  }

  /** The journals of all shards, or of those of a partition. */
  journals(partition?: number): string {
    return partition === undefined ? `${this.#prefix}.journal.>` : `${this.#prefix}.journal.${partition}.*`
  }

  /** The shard of a journal's subject. */
  shardOf(subject: string): string {
    return subject.slice(subject.lastIndexOf('.') + 1)
  }

  /** Mail for an actor, or for the shard itself. @param address `<kind>/<name>` */
  mail(shard: string, address: string): string {
    return `${this.#prefix}.mail.${partitionOf(shard)}.${token(shard)}.${addressTokens(address)}`
  }

  /** All mail, or that of a partition. */
  mails(partition?: number): string {
    return partition === undefined ? `${this.#prefix}.mail.>` : `${this.#prefix}.mail.${partition}.>`
  }

  /** All mail of a shard. */
  mailsOf(shard: string): string {
    return `${this.#prefix}.mail.${partitionOf(shard)}.${token(shard)}.>`
  }

  /** Where a tool worker sends outcomes, whatever their shard. */
  outcomes(worker: string): string {
    return `${this.#prefix}.mail.*.*.${addressTokens(`outcome/${worker}`)}`
  }

  /** The shard of a mail's subject. */
  shardOfMail(subject: string): string {
    return subject.split('.')[4] ?? ''
  }

  /** The door of a shard, for one client. */
  door(client: string, shard: string): string {
    return `${this.#prefix}.in.${token(client)}.${token(shard)}`
  }

  /** All doors. */
  doors(): string {
    return `${this.#prefix}.in.*.*`
  }

  /** The doors of all shards, for one client. */
  doorsOf(client: string): string {
    return `${this.#prefix}.in.${token(client)}.*`
  }

  /** Client and shard of a door's subject. */
  partsOfDoor(subject: string): readonly [client: string, shard: string] {
    const [client = '', shard = ''] = subject.split('.').slice(3)
    return [client, shard]
  }

  /** Questions about the whole namespace, of one client or of all. */
  questions(client?: string): string {
    return `${this.#prefix}.ask.${client === undefined ? '*' : token(client)}`
  }

  /**
   * The name of an event of an actor, which followers' filters are matched with. Messages hold several events, and are on
   * `events`. @param type `run.finished` and the like: each word is a token
   */
  event(shard: string, address: string, type: string): string {
    return `${this.#prefix}.event.${token(shard)}.${addressTokens(address)}.${typeTokens(type)}`
  }

  /** What passes by and is stored nowhere, one a message. */
  live(shard: string, address: string, type: string): string {
    return `${this.#prefix}.live.${token(shard)}.${addressTokens(address)}.${typeTokens(type)}`
  }

  /** What an actor is told, when messages are traced. */
  message(shard: string, address: string): string {
    return `${this.#prefix}.msg.${token(shard)}.${addressTokens(address)}`
  }

  /** Traced messages of the actors that a person's filter names, whatever it says of types. @throws as `followed` */
  messages(filter = '>'): string {
    const tokens = this.followed('event', filter).split('.').slice(3)
    const actor = tokens.length > 3 ? tokens.slice(0, 3) : tokens
    return [this.#prefix, 'msg', ...actor].join('.')
  }

  /** Events of all shards, or of one: several a message. */
  events(shard?: string): string {
    return shard === undefined ? `${this.#prefix}.event.>` : `${this.#prefix}.event.${token(shard)}`
  }

  /** The messages that may hold an event of which the name fits a filter. @param filter what `followed` gives for events */
  eventsOf(filter: string): string {
    return filter.split('.').slice(0, 4).join('.')
  }

  /**
   * What a person's filter means below `event.` or `live.`: tokens, `*` for any one, `>` at the end for the rest. One of
   * fewer than four tokens, such as a shard's id, means everything below it.
   * @throws TroupeError `ID_INVALID` for a filter that is none.
   */
  followed(of: 'event' | 'live', filter = '>'): string {
    const tokens = filter.split('.')
    const isFilter = tokens.every((each, index) => {
      if (each === '>') return index === tokens.length - 1
      return each === '*' || filterToken.test(each)
    })
    if (!isFilter) throw new TroupeError('ID_INVALID', `not a filter of subjects: ${JSON.stringify(filter)}`)
    if (tokens.at(-1) !== '>' && tokens.length < 4) tokens.push('>')
    return [this.#prefix, of, ...tokens].join('.')
  }

  /** Where it is asked whether anybody hears the live events of a shard; `*` for those of any. */
  watch(shard: string): string {
    return `${this.#prefix}.live.${shard === '*' ? shard : token(shard)}.watch`
  }

  /** Where a worker takes requests of other workers. */
  worker(worker: string): string {
    return `${this.#prefix}.worker.${token(worker)}`
  }

  /** Where the leases of workers are stored: subjects of a bucket of NATS. */
  leases(): string {
    return `$KV.${this.stream('workers')}.>`
  }

  /** Where any worker takes requests of other workers. */
  workers(): string {
    return `${this.#prefix}.worker.*`
  }

  /** The entries of a bucket, or one of them. */
  entries(of: 'workers' | 'pins', key?: string): string {
    return `$KV.${this.stream(of)}.${key === undefined ? '*' : token(key)}`
  }

  /** The key of a circuit breaker in its bucket. @param target `<kind>/<name>` */
  breaker(target: string): string {
    return addressTokens(target)
  }

  /** The entries of all circuit breakers, or of those of one kind of target. */
  breakers(kind?: string): string {
    return `$KV.${this.stream('breakers')}.${kind === undefined ? '*' : token(kind)}.*`
  }

  /** Where shard workers ask for port work, and where they hear of its progress. */
  toolCalls(): { readonly requests: string[]; readonly reports: string[] } {
    return { requests: [this.tool(), `${this.#prefix}.start.*`], reports: [`${this.#prefix}.progress.*.*`] }
  }

  /** Where a tool worker of this name is asked for port work. */
  toolRequests(worker: string): string[] {
    return [this.tool(), this.start(worker), this.worker(worker)]
  }

  /** Where it sends what comes of it: outcomes, bodies of those that are large, progress. */
  toolReports(worker: string): string[] {
    return [this.outcomes(worker), `${this.#prefix}.content.*.letter.>`, `${this.#prefix}.progress.*.${token(worker)}`]
  }

  /** Where a tool worker offers to work on calls of a tool: a queue group. @param tool all tools, when none is named */
  tool(tool?: string): string {
    return `${this.#prefix}.tool.${tool === undefined ? '*' : token(tool)}`
  }

  /** Where a tool worker takes the calls that it has a place for. */
  start(worker: string): string {
    return `${this.#prefix}.start.${token(worker)}`
  }

  /** Progress of a tool worker's calls, for the worker that owns their shard; of all of them, when none is named. */
  progress(owner: string, worker?: string): string {
    return `${this.#prefix}.progress.${token(owner)}.${worker === undefined ? '*' : token(worker)}`
  }

  /** The tool worker of a progress subject. */
  workerOfProgress(subject: string): string {
    return subject.split('.')[4] ?? ''
  }

  /** Where it is told of letters that nobody could take. */
  dead(): string {
    return `${this.#prefix}.dead`
  }

  /** Where a letter that nobody could take is kept. @param shard whatever it was for: it may be no name of a shard */
  refusal(shard: string, letter: string): string {
    return `${this.#prefix}.dead.${encoded(shard)}.${token(letter)}`
  }

  /** Where all of them are, or those for a shard. */
  refusals(shard?: string): string {
    return shard === undefined ? `${this.#prefix}.dead.>` : `${this.#prefix}.dead.${encoded(shard)}.*`
  }

  /** The letter of such a subject. */
  letterOf(subject: string): string {
    return subject.slice(subject.lastIndexOf('.') + 1)
  }

  /** A part of one piece of what a shard keeps beside its journal: its kind, and a key of that kind. */
  content(shard: string, kind: string, key: string, part = 0): string {
    return `${this.#prefix}.content.${token(shard)}.${token(kind)}.${token(key)}.${part}`
  }

  /** All parts of all pieces of a shard, of those of one kind, or of one. */
  contents(shard?: string, kind?: string, key?: string): string {
    const tokens = [shard, kind, key].filter((each) => each !== undefined).map(token)
    return [`${this.#prefix}.content`, ...tokens, '>'].join('.')
  }

  /** The first parts of all pieces of a kind. */
  pieces(shard: string, kind: string): string {
    return `${this.#prefix}.content.${token(shard)}.${token(kind)}.*.0`
  }
}

/** Whether a subject fits a filter: `*` is any one token, `>` at the end one or more. */
export function isMatch(filter: string, subject: string): boolean {
  const [wanted, tokens] = [filter.split('.'), subject.split('.')]
  if (wanted.at(-1) === '>' ? tokens.length < wanted.length : tokens.length !== wanted.length) return false
  return wanted.every((each, index) => each === '>' || each === '*' || each === tokens[index])
}

/** Where a shard belongs: a number below `partitionCount`. */
export function partitionOf(shard: string): number {
  return createHash('sha256').update(shard).digest().readUInt32BE(0) % partitionCount
}

function addressTokens(address: string): string {
  const [kind = '', ...name] = address.split('/')
  return `${token(kind)}.${encoded(name.join('/'))}`
}

/** Each word of a type is a token; a type of very many words is one, so that no subject grows without bounds. */
function typeTokens(type: string): string {
  const words = type.split('.')
  return words.length > maxWords ? encoded(type) : words.map(encoded).join('.')
}

/** A foreign name as one token: what is not a letter, a digit or `-` is `_` and two hex digits a byte. */
function encoded(name: string): string {
  const bytes = [...Buffer.from(name, 'utf8')]
  const text = bytes.map((byte) => {
    const character = String.fromCharCode(byte)
    return /[A-Za-z0-9-]/.test(character) ? character : `_${byte.toString(16).padStart(2, '0')}`
  })
  // A long name keeps its beginning, for people, and is told apart by a hash.
  if (text.length === 0) return '_'
  if (text.join('').length <= 128) return text.join('')
  return `${text.join('').slice(0, 64)}_${createHash('sha256').update(name).digest('hex').slice(0, 32)}`
}

/** Whether a name can be one token: an id. */
export function isToken(name: string): boolean {
  return tokenPattern.test(name)
}

function token(name: string): string {
  if (!isToken(name)) throw new TroupeError('ID_INVALID', `not one token of a subject: ${JSON.stringify(name)}`)
  return name
}
