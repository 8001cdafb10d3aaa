/**
 * The messages of a stream that are there now.
 *
 * Owns: reading them by a consumer that is made for it and deleted.
 * Does not own: what is in them.
 *
 * - MS1 A reading gives the messages that were there when it began, in their order, and then ends.
 */
import { AckPolicy, type DeliverPolicy, type JetStreamClient, ReplayPolicy } from '@nats-io/jetstream'
import type { MsgHdrs } from '@nats-io/transport-node'
import { isTroupeError, TroupeError } from '../runtime/errors.js'
import { storeError } from './jetstream-content.js'
import { type NatsLink, watchLink } from './nats-connection.js'

/** A message of a stream. */
export interface Message {
  readonly seq: number
  readonly header: MsgHdrs | undefined
  readonly data: Uint8Array
}

/** A message as it is listed. */
export interface Listed extends Message {
  readonly subject: string
  /** Epoch milliseconds, by the server's clock. */
  readonly storedAt: number
}

/** Which messages. */
export interface Wanted {
  readonly deliver_policy: DeliverPolicy
  readonly filter_subject: string
  readonly opt_start_seq?: number
  readonly headers_only?: boolean
}

const portion = 500
/** How long the server may take. */
export const waitMs = 5_000

/** Reads them. @throws TroupeError what the server refuses, `STORE_FAILED` when it stops sending. */
export async function* storedMessages(
  link: NatsLink,
  client: JetStreamClient,
  stream: string,
  wanted: Wanted,
): AsyncGenerator<Listed> {
  const { manager } = link
  try {
    const info = await manager.consumers.add(stream, {
      ...wanted,
      ack_policy: AckPolicy.None,
      replay_policy: ReplayPolicy.Instant,
      mem_storage: true,
      num_replicas: 1,
      inactive_threshold: 30_000 * 1_000_000,
    })
    const consumer = client.consumers.getConsumerFromInfo(info)
    try {
      for (let left = info.num_pending; left > 0; ) {
        const messages = await consumer.fetch({ max_messages: Math.min(left, portion), expires: waitMs })
        const before = left
        // What was asked for over a link that is gone does not come.
        const unwatch = watchLink(link, () => messages.stop())
        try {
          for await (const { seq, headers: header, data, subject, time } of messages) {
            left--
            yield { seq, header, data, subject, storedAt: time.getTime() }
          }
        } finally {
          unwatch()
        }
        if (left === before) throw new TroupeError('STORE_FAILED', 'the server stopped sending', { retryable: true })
      }
    } finally {
      await manager.consumers.delete(stream, info.name).catch(() => undefined)
    }
  } catch (error) {
    throw isTroupeError(error) ? error : storeError(error)
  }
}
