/** A user's machine as the runtime decides it: no shard around it, told in the same words as `live-machine.ts`. */
import type { AnyStateMachine } from 'xstate'
import { decode, encode } from '../../runtime/codec.js'
import { type Commit, decide } from '../../runtime/commit.js'
import { decideTwice } from '../../runtime/checks.js'
import type { Draft } from '../../runtime/envelope.js'
import { kindOf, type Logic, readLogic } from '../../runtime/logic.js'
import type { LogicSnapshot } from '../../runtime/logic-step.js'
import { type Message, Scope } from '../../runtime/scope.js'
import {
  emptyState,
  fromStoredState,
  type Machines,
  nextDueAt,
  type ShardState,
  type StoredState,
  timerKey,
  toStoredState,
} from '../../runtime/state.js'
import { machineAddress } from '../../runtime/user-actors.js'
import { shippedMachines } from './crew-stage.js'
import type { Told } from './live-machine.js'

/** The logic of a machine, by kind. */
export function logicOf(machine: AnyStateMachine, name = 'user'): ReadonlyMap<string, Logic> {
  return readLogic(machine, { name, version: undefined, migrate: undefined, promises: {} })
}

/** What defines a crew that is one machine. */
export function machineDefined(name = 'user', input?: unknown): Draft {
  const crew = { name, machine: { kind: kindOf(name), version: '' } }
  const body = { type: 'crew.defined', definition: JSON.stringify({ data: crew }), crew }
  return {
    from: 'shard/self',
    to: 'shard/self',
    cause: '',
    body: input === undefined ? body : { ...body, input },
    values: [],
  }
}

/** A machine and what was decided over it. */
export class DecidedMachine {
  readonly commits: Commit[] = []
  readonly scope = new Scope()
  readonly machines: Machines
  state: ShardState = emptyState('s1')
  now = 1_000
  /** Ways down to actors, by address. */
  readonly #ways = new Map([[machineAddress, 'main']])
  readonly emitted = new Map<string, unknown[]>()

  constructor(
    machine: AnyStateMachine,
    input: unknown,
    readonly twice = false,
  ) {
    this.machines = { ...shippedMachines, ...Object.fromEntries(logicOf(machine)) }
    this.take(machineDefined('user', input))
  }

  take(draft: Draft): Commit {
    const context = { scope: this.scope, machines: this.machines, explain: true }
    const commit = (this.twice ? decideTwice : decide)(this.state, { ...draft, at: this.now }, context)
    this.commits.push(commit)
    for (const line of commit.decisions) {
      if (!line.startsWith('start ')) continue
      const [child, parent, id] = JSON.parse(line.slice(6)) as [string, string, string]
      this.#ways.set(child, `${this.wayOf(parent)}/${id}`)
    }
    for (const [from, event] of commit.events)
      if (event.type === 'machine.emitted') this.#note(this.wayOf(from), event['event'])
    return commit
  }

  #note(way: string, event: unknown): void {
    this.emitted.set(way, [...(this.emitted.get(way) ?? []), event])
  }

  wayOf(address: string): string {
    return this.#ways.get(address) ?? address
  }

  send(message: Message): void {
    this.take({ from: 'client/local', to: machineAddress, cause: '', body: message, values: [] })
  }

  /** Lets time pass: every timer is taken at its own time. */
  wait(ms: number): void {
    const until = this.now + ms
    for (let due = nextDueAt(this.state); due !== null && due <= until; due = nextDueAt(this.state)) {
      this.now = Math.max(this.now, due)
      const timer = [...this.state.timers.values()].find((each) => each.dueAt === due)!
      const cause = `${timerKey(timer.actor, timer.id)}|${timer.generation}`
      this.take({ from: 'clock/timer', to: timer.actor, cause, body: { type: 'timer.due' }, values: [] })
    }
    this.now = until
  }

  /** Replaces the state by one that went through bytes. */
  restore(): void {
    const stored = decode(encode(toStoredState(this.state, this.scope, this.machines))) as StoredState
    this.state = fromStoredState('s1', stored, this.scope, this.machines)
  }

  get told(): Told {
    return toldOf(this.state, machineAddress)
  }
}

/** An actor of a shard and its children. */
export function toldOf(state: ShardState, address: string): Told {
  const snapshot = state.actors.get(address)!.snapshot as LogicSnapshot
  const isActive = snapshot.status === 'active'
  return {
    status: snapshot.status,
    value: isActive ? snapshot.value : undefined,
    context: snapshot.logic.form === 'promise' ? null : snapshot.context,
    output: snapshot.output,
    failed: snapshot.error !== undefined,
    children: isActive
      ? Object.fromEntries(
          Object.entries(snapshot.children)
            .filter(([, child]) => state.actors.has(child.address))
            .map(([id, child]) => [id, toldOf(state, child.address)]),
        )
      : {},
  }
}
