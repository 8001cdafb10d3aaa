/** Journals of several owners over one stream, a namespace of its own for each test. */
import { DeliverPolicy, jetstream } from '@nats-io/jetstream'
import { afterEach, beforeEach } from 'vitest'
import type { Journal } from '../../runtime/journal.js'
import { createJetStreamJournal } from '../../transport/jetstream-journal.js'
import type { NatsLink } from '../../transport/nats-connection.js'
import { storedMessages } from '../../transport/stored-messages.js'
import { Subjects } from '../../transport/subjects.js'
import { collect } from './values.js'

/** What a test of them uses. */
export interface Owners {
  /** Of the test that runs. */
  readonly subjects: Subjects
  /** Called behind the test, the last one first. */
  readonly closing: (() => Promise<unknown>)[]
  /** A journal that is open until the end of the test. @param epoch of a lease that somebody else keeps */
  owner(worker: string, over?: NatsLink, epoch?: number): Promise<Journal>
  /** Number of the last message of a shard, or of one of those before it. */
  lastOf(shard: string, back?: number): Promise<number>
}

/** Owners for the tests of one `describe`. @param linkOf the link of the file, once there is one */
export function useOwners(namespace: string, linkOf: () => NatsLink): Owners {
  let subjects: Subjects
  let count = 0
  const closing: (() => Promise<unknown>)[] = []
  beforeEach(() => {
    count += 1
    subjects = new Subjects(`${namespace}${count}`)
  })
  afterEach(async () => {
    for (const close of closing.splice(0).reverse()) await close()
  })
  return {
    get subjects() {
      return subjects
    },
    closing,
    async owner(worker, over = linkOf(), epoch) {
      const lease = epoch === undefined ? { leaseMs: 2_000 } : { epoch: () => epoch }
      const journal = createJetStreamJournal({ link: over, subjects, worker, ...lease })
      await journal.open()
      closing.push(() => journal.close())
      return journal
    },
    async lastOf(shard, back = 0) {
      const link = linkOf()
      const wanted = { deliver_policy: DeliverPolicy.All, filter_subject: subjects.journal(shard) }
      const all = await collect(storedMessages(link, jetstream(link.connection), subjects.stream('journal'), wanted))
      return all.at(-1 - back)!.seq
    },
  }
}
