/**
 * Mail between the crews of a simulation, as it passes a worker: late, twice, with its answer lost; and what is said of
 * it by the shards' own journals.
 */
import type { Draft } from '../../runtime/envelope.js'
import { isTroupeError, TroupeError } from '../../runtime/errors.js'
import { isForeign, partsOf, stampOf } from '../../runtime/mail.js'
import type { Worker } from '../../runtime/worker.js'
import type { Replica } from './replica.js'
import { never, type SimulatedProcess, type World } from './world.js'

/** Puts the faults of mail between a worker and whoever brings it letters. */
export function disturbMail(world: World, process: SimulatedProcess, worker: Worker): void {
  const receive = worker.receive.bind(worker)
  worker.receive = async (id, draft, first) => {
    if (!isForeign(draft.from)) return receive(id, draft, first)
    const { random, timeline, notes, calm } = world
    if (!process.alive) return never()
    if (!calm && random.chance(0.15)) {
      notes.fault('letter late')
      await timeline.wait(random.pick([5, 50, 3_000]), process)
    }
    if (!calm && random.chance(0.05)) void goBack(world, worker, receive, id, draft)
    note(world, id, draft)
    try {
      await receive(id, draft, first)
    } catch (error) {
      if (isTroupeError(error) && error.code === 'CREW_UNKNOWN') world.replica(id).refused(draft)
      if (isTroupeError(error) && error.code === 'MAIL_GAP') notes.reached('letter put back: one before it is missing')
      // Nobody goes back in time here but by a fault.
      const behind = isTroupeError(error) && error.code === 'SENDER_BEHIND'
      notes.check('mail', !behind, () => `${id}: ${draft.from} ${draft.cause}: ${String(error)}`)
      throw error
    }
    if (calm || !random.chance(0.1)) return
    notes.fault('answer to a letter lost')
    throw new TroupeError('STORE_FAILED', 'simulated: no answer', { retryable: true })
  }
}

function note(world: World, id: string, { from, cause }: Draft): void {
  const stamp = stampOf(cause)
  if (stamp === null) return
  if (world.replica(id).state.mail.placeOf(partsOf(from)[0], stamp) === 'taken')
    world.notes.reached('letter dropped: it was taken before')
}

/** A letter as a sender would write it whose journal had lost its end: its number is one that was taken. */
async function goBack(
  world: World,
  worker: Worker,
  receive: Worker['receive'],
  id: string,
  draft: Draft,
): Promise<void> {
  const { notes } = world
  const last = world.replica(id).state.mail.cursor(partsOf(draft.from)[0])
  if (last === undefined || !worker.active.has(id)) return
  notes.fault('sender went back in time')
  const cause = `${last.sequence + 1}-0|${last.life}|${last.number}`
  try {
    await receive(id, { ...draft, cause }, false)
    // Meanwhile the journal may have gone on: then it is one that was taken.
  } catch (error) {
    if (isTroupeError(error) && error.code === 'SENDER_BEHIND') notes.reached('sender behind refused')
  }
}

/** What must hold between two journals when all has ended: nothing is on its way, and what was sent was taken. */
export function checkMail(world: World, replicas: readonly Replica[]): void {
  if (world.notes.violations.length > 0) return
  const known = new Map(replicas.map((replica) => [replica.shard, replica]))
  for (const { shard, state, sentTo } of replicas) {
    const left = [...state.mail.outbox.values()].map(({ number, to }) => `${number} to ${to}`)
    world.notes.check('mail', left.length === 0, () => `${shard}: ${left.join()} were not handed over`)
    for (const [receiver, number] of sentTo) {
      const end = { life: state.mail.life, number: number + 1 }
      const next = known.get(receiver)?.nextOf(shard, end) ?? end.number
      const detail = () => `${receiver}: ${next - 1} of ${number} letters of ${shard} were taken`
      world.notes.check('mail', next === end.number || (known.get(receiver)?.state.sequence ?? 0) === 0, detail)
    }
  }
}
