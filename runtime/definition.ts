/**
 * What a process offers to run, or is asked to, whatever it defines.
 *
 * Owns: the crew that each definition is.
 * Does not own: the definitions (`define.ts`, `define-machine.ts`).
 */
import { type Agent, type Crew, toCrew } from './define.js'
import { isMachineDefinition, machineCrew, type MachineDefinition } from './define-machine.js'

export type Definition = Crew | Agent | MachineDefinition

/** The crew that a definition is. @throws TroupeError `CREW_INVALID`. */
export function crewOf(definition: Definition): Crew {
  return isMachineDefinition(definition) ? machineCrew(definition) : toCrew(definition)
}
