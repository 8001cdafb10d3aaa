/**
 * A machine as XState itself runs it: `createActor` with a simulated clock, and what its actors said, actor by actor.
 *
 * What `runtime/logic-step.ts` and `runtime/user-actors.ts` make of a machine has to be what this says.
 */
import { type AnyActorRef, type AnyMachineSnapshot, type AnyStateMachine, createActor } from 'xstate'
import type { Message } from '../../runtime/scope.js'
import { createManualClock } from './manual-clock.js'

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
  /** XState's own simulated clock fires what is due at once in no order. */
  readonly #clock = createManualClock(0)
  /** What each actor emitted, by its way down from the machine. */
  readonly emitted = new Map<string, unknown[]>()
  /** Ends of children that XState would have given to the next one of the same name. */
  late = 0
  readonly #senders = new WeakMap<object, AnyActorRef>()
  readonly #actor: AnyActorRef & { start(): unknown }

  constructor(machine: AnyStateMachine, input: unknown, quiet = true) {
    const before = console.warn
    if (quiet) console.warn = () => undefined
    this.#actor = createActor(machine, {
      input: input as never,
      clock: {
        setTimeout: (callback: () => void, delayMs: number) => this.#clock.after(delayMs, callback),
        clearTimeout: (cancel: unknown) => (cancel as () => void)(),
      },
      id: 'main',
      logger: () => undefined,
      inspect: (event) => {
        if (event.type === '@xstate.actor') this.#listen(event.actorRef as AnyActorRef)
        if (event.type === '@xstate.event' && event.sourceRef !== undefined)
          this.#senders.set(event.event, event.sourceRef as AnyActorRef)
      },
    }) as never
    this.#actor.subscribe({ error: () => undefined })
    this.#actor.start()
    if (quiet) console.warn = before
  }

  #listen(ref: AnyActorRef): void {
    ref.on('*', (event) => this.#note(this.emitted, wayOf(ref), event))
    // The one thing that is to be otherwise: a child's end is not taken for that of another one.
    const open = ref as unknown as { logic: { transition(...all: [AnyMachineSnapshot, Message, unknown]): unknown } }
    const { logic } = open
    open.logic = Object.assign(Object.create(logic) as typeof logic, {
      transition: (snapshot: AnyMachineSnapshot, event: Message, scope: unknown) => {
        if (!this.#isLate(snapshot, event)) return logic.transition(snapshot, event, scope)
        this.late += 1
        return snapshot
      },
    })
  }

  #isLate({ children = {} }: AnyMachineSnapshot, event: Message): boolean {
    if (!/^xstate\.(done|error)\.actor\./.test(event.type)) return false
    return (children as Record<string, unknown>)[event['actorId'] as string] !== this.#senders.get(event)
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
    this.#clock.advance(ms)
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
