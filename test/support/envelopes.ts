/** Envelopes and a state for tests of `decide`, without a shard around it. */
import { type CrewData, nothing } from '../../machines/index.js'
import { decode, encode } from '../../runtime/codec.js'
import { type Commit, crewAddress, decide, type DomainEvent } from '../../runtime/commit.js'
import type { Envelope } from '../../runtime/envelope.js'
import { type Message, Scope } from '../../runtime/scope.js'
import {
  emptyState,
  fromStoredState,
  type Machines,
  type ShardState,
  stateHash,
  type StoredState,
  toStoredState,
} from '../../runtime/state.js'
import { shippedMachines } from './crew-stage.js'

/** A crew of a writer that may delegate to a helper. */
export const crewData: CrewData = {
  name: 'report',
  lead: 'writer',
  agents: Object.fromEntries(
    ['writer', 'helper'].map((name) => [
      name,
      {
        name,
        deployments: [{ name: 'a:one', price: { input: 1_000_000, output: 2_000_000 }, group: 0 }],
        rounds: 5,
        attempts: 3,
        maxOutputTokens: 100,
        minOutputTokens: 10,
        baseTokens: 5,
        limits: null,
        keep: false,
        loops: null,
      },
    ]),
  ),
  limits: {},
  per: 'run',
  wallMs: null,
  delegates: 4,
  answerMs: 60_000,
}

export const usage = { inputTokens: 20, outputTokens: 10, cachedInputTokens: 0, estimated: false }
export const spent = { nanoUsd: 40_000, tokens: 30, modelCalls: 1, toolCalls: 0 }

export const defined = (data: CrewData = crewData): Omit<Envelope, 'at'> => ({
  from: 'shard/self',
  to: 'shard/self',
  cause: '',
  body: { type: 'crew.defined', definition: JSON.stringify({ data }), crew: data },
  values: [],
})
export const task = (key = 'k1', text = 'do it'): Omit<Envelope, 'at'> => ({
  from: 'client/local',
  to: crewAddress,
  cause: '',
  body: { type: 'crew.task', tokens: 10, messages: 1, key, data: false },
  values: [JSON.stringify({ role: 'user', content: text })],
})
export const command = (body: Message): Omit<Envelope, 'at'> => ({
  from: 'client/local',
  to: crewAddress,
  cause: '',
  body,
  values: [],
})
export const outcome = (cause: string, body: Message, values: readonly string[] = [], to = 'agent/writer-r2') => ({
  from: body.type.startsWith('model') ? 'port/model' : 'port/tool',
  to,
  cause,
  body,
  values,
})
export const replied = (more: Record<string, unknown> = {}): Message => ({
  type: 'model.replied',
  ...{ deployment: 'a:one', skipped: [], changes: [] },
  calls: [],
  fits: null,
  reason: '',
  finish: 'stop',
  usage,
  spent,
  ...more,
})
export const answer = (text: string): string => JSON.stringify({ role: 'assistant', content: text })
export const toolVerdict = (index: number, more: Record<string, unknown> = {}) => ({
  verdict: 'tool',
  index,
  callId: `c${index}`,
  tool: 'lookup',
  effect: 'idempotent',
  timeoutMs: 1_000,
  retries: 1,
  onUnknown: 'tell',
  ...more,
})
export const interrupted: Message = { type: 'effect.interrupted', started: false }
export { nothing }

/** A state and what was decided over it. */
export class Desk {
  readonly commits: Commit[] = []
  readonly scope = new Scope()
  state: ShardState = emptyState('s1')
  now = 1_000

  constructor(readonly machines: Machines = shippedMachines) {}

  /** Decides one envelope, at the present time. */
  take(draft: Omit<Envelope, 'at'>): Commit {
    const commit = decide(
      this.state,
      { ...draft, at: this.now },
      { scope: this.scope, machines: this.machines, explain: true },
    )
    this.commits.push(commit)
    return commit
  }

  /** Takes several; gives the last commit. */
  all(...drafts: readonly Omit<Envelope, 'at'>[]): Commit {
    let last: Commit | undefined
    for (const draft of drafts) last = this.take(draft)
    return last!
  }

  /** Replaces the state by one that went through bytes. */
  restore(): this {
    const stored = decode(encode(toStoredState(this.state, this.scope, this.machines))) as StoredState
    this.state = fromStoredState('s1', stored, this.scope, this.machines)
    return this
  }

  get hash(): string {
    return stateHash(this.state, this.scope, this.machines)
  }

  /** The only open effect, or the one of this actor. */
  effect(from?: string): string {
    const open = [...this.state.effects.values()].filter((effect) => from === undefined || effect.from === from)
    if (open.length !== 1) throw new Error(`${open.length} open effects`)
    return open[0]!.id
  }
}

/** Events of a type. */
export function events(commit: Commit, type: string): Message[] {
  return commit.events.filter(([, event]: DomainEvent) => event.type === type).map(([, event]) => event)
}
