/**
 * A machine as XState itself runs it: `createActor` with a simulated clock, and what its actors said, actor by actor.
 *
 * What `runtime/logic-step.ts` and `runtime/user-actors.ts` make of a machine has to be what this says.
 */
import { type AnyActorRef, type AnyMachineSnapshot, type AnyStateMachine, createActor, SimulatedClock } from 'xstate'
import type { Message } from '../../runtime/scope.js'

/** An actor and what it is. */
export interface Told {
  readonly status: string
  readonly value: unknown
  readonly context: unknown
  readonly output: unknown
  /** Only whether there is one: errors are told as data, which XState does not do. */
  readonly failed: boolean
  /** By the names that it has for them; those that ended are left out. */
  readonly children: Readonly<Record<string, Told>>
}

/** A live machine. */
export class LiveMachine {
  readonly clock = new SimulatedClock()
  /** What each actor emitted, by its way down from the machine. */
  readonly emitted = new Map<string, unknown[]>()
  /** What each actor was sent by others, in order, by its way down. */
  readonly received = new Map<string, Message[]>()
  readonly #actor: AnyActorRef & { start(): unknown }

  constructor(machine: AnyStateMachine, input: unknown, quiet = true) {
    const before = console.warn
    if (quiet) console.warn = () => undefined
    this.#actor = createActor(machine, {
      input: input as never,
      clock: this.clock,
      id: 'main',
      logger: () => undefined,
      inspect: (event) => {
        if (event.type === '@xstate.actor') this.#listen(event.actorRef as AnyActorRef)
        if (event.type === '@xstate.event' && event.sourceRef !== undefined)
          this.#note(this.received, wayOf(event.actorRef as AnyActorRef), event.event as Message)
      },
    }) as never
    this.#actor.subscribe({ error: () => undefined })
    this.#actor.start()
    if (quiet) console.warn = before
  }

  #listen(ref: AnyActorRef): void {
    ref.on('*', (event) => this.#note(this.emitted, wayOf(ref), event))
  }

  #note<T>(table: Map<string, T[]>, way: string, what: T): void {
    table.set(way, [...(table.get(way) ?? []), what])
  }

  send(message: Message): void {
    const before = console.warn
    console.warn = () => undefined
    this.#actor.send(message as never)
    console.warn = before
  }

  wait(ms: number): void {
    const before = console.warn
    console.warn = () => undefined
    this.clock.increment(ms)
    console.warn = before
  }

  get told(): Told {
    return toldOf(this.#actor.getSnapshot() as AnyMachineSnapshot)
  }
}

function wayOf(ref: AnyActorRef): string {
  const parent = (ref as unknown as { _parent?: AnyActorRef })._parent
  return parent === undefined ? ref.id : `${wayOf(parent)}/${ref.id}`
}

function toldOf(snapshot: AnyMachineSnapshot): Told {
  const children = (snapshot.children ?? {}) as Readonly<Record<string, AnyActorRef | undefined>>
  const isActive = snapshot.status === 'active'
  return {
    status: snapshot.status,
    value: isActive ? (snapshot.value ?? {}) : undefined,
    context: (snapshot.context as unknown) ?? null,
    output: snapshot.output as unknown,
    failed: snapshot.error !== undefined,
    children: isActive
      ? Object.fromEntries(
          Object.entries(children)
            .filter(([, ref]) => (ref?.getSnapshot() as AnyMachineSnapshot | undefined)?.status === 'active')
            .map(([id, ref]) => [id, toldOf(ref!.getSnapshot() as AnyMachineSnapshot)]),
        )
      : {},
  }
}
