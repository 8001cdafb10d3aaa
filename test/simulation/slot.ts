import type { Client } from './client.js'
import type { SimulatedJournal } from './simulated-journal.js'
import type { SimulatedProcess } from './world.js'

/** A place for a process: when it is gone, another comes. */
export interface Slot {
  readonly name: string
  process: SimulatedProcess | null
  journal: SimulatedJournal | null
  clients: Map<string, Client>
  startedAt: number
  endedAt: number
}
