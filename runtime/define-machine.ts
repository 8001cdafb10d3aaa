/**
 * What users write to run a machine of their own: an XState machine, and what it does not say of itself.
 *
 * Owns: the definition, its checks, its form as data.
 * Does not own: which constructs can run (`logic.ts`), running it.
 *
 * - DM1 A definition is refused when it is made: `MACHINE_UNSUPPORTED` for what cannot run, `CREW_INVALID` for the rest.
 * - DM2 Input and messages are checked at the edge, before anything is journalled: `INPUT_INVALID`, `MESSAGE_REFUSED`.
 */
import { z } from 'zod'
import { canonicalJson, shortHash } from './codec.js'
import type { Crew, MachineIdentity } from './define.js'
import { checkType } from './envelope.js'
import { isTroupeError, reasonOf, TroupeError } from './errors.js'
import {
  agentsCalledBy,
  type AnyStateMachine,
  type EventFrom,
  formOf,
  type InputFrom,
  kindOf,
  type Logic,
  type Migrate,
  type OutputFrom,
  type PromiseEffect,
  readLogic,
} from './logic.js'
import { toPlain } from './plain.js'
import type { Message } from './scope.js'

/** Bytes of JSON of an input or a message. */
export const maxMessageBytes = 256 * 1024

/** A machine, as `defineMachine` takes it. All are optional. */
export interface MachineOptions {
  /** `^[A-Za-z0-9_-]{1,64}$`. @default the machine's `id` */
  readonly name?: string
  /** What it may be started with; what the schema makes of an input is what the machine gets. @default anything that is plain data */
  readonly input?: z.ZodType
  /** What it may be sent. @default any plain data with a `type` */
  readonly messages?: z.ZodType
  /** What may happen to a promise whose outcome is lost, by the name of its source: as a tool's `effect`. @default 'once' each */
  readonly promises?: Readonly<Record<string, PromiseEffect>>
  /** Version of its decisions. Stored actors of another one go on by `migrate` only, or when the upgrade is accepted. @default the machine's own `version` */
  readonly version?: string
  /** Brings stored state and context of another version to this one. Must be pure. */
  readonly migrate?: Migrate
}

/** A checked machine. */
export interface MachineDefinition<Output = unknown, Input = unknown, Event extends Message = Message> {
  readonly kind: 'machine'
  readonly name: string
  readonly machine: AnyStateMachine
  readonly version: string
  readonly options: MachineOptions
  /** Everything in it that may run, by kind. */
  readonly logics: ReadonlyMap<string, Logic>
  /** Never present at run time. */
  readonly _types?: { readonly output: Output; readonly input: Input; readonly event: Event }
}

const effect = z.enum(['pure', 'idempotent', 'once'])
const isFunction = (value: unknown): boolean => typeof value === 'function'
const isSchema = (value: unknown): boolean => typeof value === 'object' && value !== null && '_zod' in value
const optionsShape = z.strictObject({
  name: z
    .string()
    .regex(/^[A-Za-z0-9_-]{1,64}$/)
    .optional(),
  input: z.custom<z.ZodType>(isSchema, 'a zod schema').optional(),
  messages: z.custom<z.ZodType>(isSchema, 'a zod schema').optional(),
  promises: z.record(z.string(), effect).default({}),
  version: z.string().max(256).optional(),
  migrate: z.custom<Migrate>(isFunction, 'a function').optional(),
})

/**
 * Defines a machine of one's own, for `runtime.spawn`.
 * @throws TroupeError `MACHINE_UNSUPPORTED` for what cannot be carried out durably, `CREW_INVALID` for a bad name or option.
 */
export function defineMachine<Machine extends AnyStateMachine>(
  machine: Machine,
  options: MachineOptions = {},
): MachineDefinition<OutputFrom<Machine>, InputFrom<Machine>, EventFrom<Machine>> {
  const read = optionsShape.safeParse({ name: (machine as { id?: string } | null)?.id, ...options })
  if (!read.success) throw invalid(z.prettifyError(read.error))
  const { name, promises, version = machine.version, migrate } = read.data
  if (name === undefined) throw invalid('it has no name')
  const given = { ...options, promises }
  const accepts = (message: unknown): Promise<Message> => machineMessage({ name, options: given }, message)
  const logics = readLogic(machine, { name, version, migrate, promises, accepts })
  return Object.freeze({ kind: 'machine' as const, name, machine, version: version ?? '', options: given, logics })
}

function invalid(why: string): TroupeError {
  return new TroupeError('CREW_INVALID', `machine: ${why}`)
}

/** Whether something was made by `defineMachine`, of this or another copy of the package. */
export function isMachineDefinition(value: unknown): value is MachineDefinition {
  return typeof value === 'object' && value !== null && 'kind' in value && value.kind === 'machine' && 'logics' in value
}

/** A machine of a user's that may lead a crew, as it is or as `defineMachine` made it. */
export type FlowMachine = MachineDefinition<unknown, unknown, Message> | AnyStateMachine
/** What such a machine answers. */
export type FlowMachineOutput<Machine> =
  Machine extends MachineDefinition<infer Output, infer _Input, infer _Event>
    ? Output
    : Machine extends AnyStateMachine
      ? OutputFrom<Machine>
      : never

/** Whether something is such a machine. */
export function isFlowMachine(value: unknown): value is FlowMachine {
  return isMachineDefinition(value) || formOf(value) === 'machine'
}

/** The crew that a machine is: it has no agents. */
export function machineCrew(definition: MachineDefinition): Crew {
  const known = crews.get(definition)
  if (known !== undefined) return known
  const [agent] = agentsCalledBy(definition.logics)
  if (agent !== undefined) throw invalid(`it calls the agent ${agent}, and is not the flow of a crew`)
  const crew = Object.freeze({ ...defineEmpty(definition.name), machine: identityOf(definition) })
  crews.set(definition, crew)
  return crew
}

/** What tells a machine from another one, as data. */
export function identityOf({ name, version, machine, options }: MachineDefinition): MachineIdentity {
  return { kind: kindOf(name), version, shape: shapeOf(machine), promises: options.promises ?? {} }
}

/** A user's machine that is given as it is, or as `defineMachine` made it. @throws TroupeError as `defineMachine`. */
export function toMachine(given: FlowMachine): MachineDefinition {
  return isMachineDefinition(given) ? given : (defineMachine(given) as MachineDefinition)
}

/** Crews by their machines: the same machine is the same crew, so that it is prepared once. */
const crews = new WeakMap<MachineDefinition, Crew>()

function defineEmpty(name: string): Crew {
  return { ...emptyCrew, name }
}

/** Defaults of a crew that nobody works in. */
export const emptyCrew: Crew = {
  kind: 'crew',
  name: '',
  agents: {},
  lead: '',
  flow: undefined,
  supervision: undefined,
  budget: {},
  limits: { delegates: 16, depth: 8, answerMs: 3_600_000, toolConcurrency: 64 },
  minOutputTokens: 256,
  unknownPrice: { input: 15_000_000, output: 75_000_000 },
  version: undefined,
}

/** What tells two machines of a version apart, as far as they are data. */
function shapeOf({ config }: AnyStateMachine): string {
  try {
    return shortHash(canonicalJson(JSON.parse(JSON.stringify(config)) as unknown))
  } catch {
    return ''
  }
}

/** The input of a machine as it is journalled. @throws TroupeError `INPUT_INVALID`. */
export async function machineInput({ name, options }: MachineDefinition, given: unknown): Promise<unknown> {
  const input = await checked(options.input, given, `the input of ${name}`)
  return plainInput(input, `the input of ${name}`)
}

/** A message for a machine as it is journalled. @throws TroupeError `INPUT_INVALID`, `MESSAGE_REFUSED`. */
export async function machineMessage(
  { name, options }: Pick<MachineDefinition, 'name' | 'options'>,
  given: unknown,
): Promise<Message> {
  const message = plainInput(await checked(options.messages, given, `a message to ${name}`), 'a message')
  const type = (message as { type?: unknown } | null)?.type
  if (typeof type !== 'string') throw new TroupeError('INPUT_INVALID', `a message to ${name} without a type`)
  checkType(type)
  // XState takes it for every message there is, and throws.
  if (type === '*' || type === '') throw new TroupeError('MESSAGE_REFUSED', `a message of the type '${type}'`)
  return message as Message
}

async function checked(schema: z.ZodType | undefined, value: unknown, what: string): Promise<unknown> {
  if (schema === undefined) return value
  const read = await schema.safeParseAsync(value).catch((error: unknown) => {
    throw new TroupeError('INPUT_INVALID', `${what}: its schema throws: ${reasonOf(error)}`, { cause: error })
  })
  if (read.success) return read.data
  throw new TroupeError('INPUT_INVALID', `${what}: ${z.prettifyError(read.error).slice(0, 1_000)}`)
}

/** What may be journalled, as plain data. @throws TroupeError `INPUT_INVALID`. */
export function plainInput(value: unknown, what: string): unknown {
  try {
    const data = toPlain(value, what)
    const bytes = data === undefined ? 0 : Buffer.byteLength(JSON.stringify(data))
    if (bytes > maxMessageBytes)
      throw new TroupeError('INPUT_INVALID', `${what} has ${bytes} bytes, at most ${maxMessageBytes} may be journalled`)
    return data
  } catch (error) {
    throw isTroupeError(error) ? new TroupeError('INPUT_INVALID', error.message, { cause: error }) : error
  }
}
