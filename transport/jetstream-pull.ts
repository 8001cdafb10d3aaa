/**
 * A pull consumer that is read: messages are asked for, a portion at a time, and handed over as they come.
 *
 * The library's own reading ends by leaving at once: what the server has sent by then is nobody's until its time to
 * acknowledge has passed. This one leaves in order.
 *
 * Owns: asking for messages, making the consumer, going on after lost links and lost consumers, the answers to a message.
 * Does not own: which answer a message gets.
 *
 * - JP1 While it is paused nothing is asked for; at most one portion still comes.
 * - JP2 What was on its way when it is left still comes, and is handed over.
 * - JP3 It goes on after a lost link, a restarted server and a deleted consumer.
 */
import type { ConsumerConfig } from '@nats-io/jetstream'
import {
  createInbox,
  type Msg,
  type MsgHdrs,
  nanos,
  type NatsConnection,
  type Subscription,
} from '@nats-io/transport-node'
import type { NatsLink } from './nats-connection.js'

/** Messages of one portion. */
export const portion = 64
/** The server ends a request after so long, and is asked again. */
const expiresMs = 4_000
/** A request of which nothing is heard for so long is lost. */
const lostMs = expiresMs + 1_000
/** Before a consumer that is not there is made again. */
const againMs = 250
/** How long what is on its way is waited for. */
const leaveMs = 2_000
/** How long the server may take to say that it has an answer. */
const confirmMs = 5_000

/** One message as it was delivered. It gets one final answer; later ones do nothing. */
export class Delivery {
  readonly #message: Msg
  readonly #connection: NatsConnection
  #isAnswered = false
  /** Its number in the stream. */
  readonly seq: number
  /** How often it has been delivered, to anybody, this time included. */
  readonly count: number
  /** Number and time of its message: in a stream that was made anew the numbers come again. */
  readonly id: string

  constructor(message: Msg, connection: NatsConnection) {
    this.#message = message
    this.#connection = connection
    // $JS.ACK.<stream>.<consumer>.<count>.<seq>.…, or two tokens more before the stream.
    const tokens = (message.reply ?? '').split('.')
    const at = tokens.length === 9 ? 4 : 6
    this.count = Number(tokens[at])
    this.seq = Number(tokens[at + 1])
    this.id = `m${this.seq}-${BigInt(tokens[at + 3] ?? 0).toString(36)}`
  }

  get subject(): string {
    return this.#message.subject
  }

  get data(): Uint8Array {
    return this.#message.data
  }

  get headers(): MsgHdrs | undefined {
    return this.#message.headers
  }

  /** It is done, and may be forgotten. Not waited for: an answer that is lost means another delivery. */
  done(): void {
    this.#answer('+ACK')
  }

  /** The same as `done`, and resolves when the server has it. Rejects when that is not known: it may have it or not. */
  async confirmed(): Promise<void> {
    this.#isAnswered = true
    await this.#connection.request(this.#message.reply ?? '', '+ACK', { timeout: confirmMs })
  }

  /** Is to be delivered again, to whoever asks. @param delayMs not before @default at once */
  giveBack(delayMs = 0): void {
    this.#answer(delayMs <= 0 ? '-NAK' : `-NAK ${JSON.stringify({ delay: nanos(Math.ceil(delayMs)) })}`)
  }

  /** Is never to be delivered again, though nobody could take it. */
  end(): void {
    this.#answer('+TERM')
  }

  /** Is still worked on: its time to be acknowledged begins anew. */
  working(): void {
    if (!this.#isAnswered) this.#respond('+WPI')
  }

  #answer(text: string): void {
    if (this.#isAnswered) return
    this.#isAnswered = true
    this.#respond(text)
  }

  #respond(text: string): void {
    try {
      this.#message.respond(text)
    } catch {
      // The connection is closed for good: the server gives the message to somebody else.
    }
  }
}

/** What whoever reads a consumer is told. */
export interface PullOptions {
  /** Is called for each message, in the order of their delivery. Must not throw. */
  take(delivery: Delivery): void
  /** More was asked for: every few seconds at least, while it reads. Must neither wait nor throw. */
  asked(): void
}

/** One consumer that is read, from its making until `leave` or `stop`. */
export class JetStreamPull {
  readonly #link: NatsLink
  readonly #stream: string
  readonly #config: Partial<ConsumerConfig> & { readonly durable_name: string }
  readonly #options: PullOptions
  readonly #inbox: string
  readonly #subscription: Subscription
  /** Number of the last request. What earlier ones end with says nothing. */
  #request = 0
  /** Messages that it may still bring. */
  #missing = 0
  #timer: NodeJS.Timeout | null = null
  #isPaused = false
  #isLeft = false

  /** Begins to read. */
  constructor(
    link: NatsLink,
    stream: string,
    config: Partial<ConsumerConfig> & { readonly durable_name: string },
    options: PullOptions,
  ) {
    this.#link = link
    this.#stream = stream
    this.#config = config
    this.#options = options
    this.#inbox = createInbox(link.inboxPrefix)
    const callback = (_error: Error | null, message: Msg): void => this.#came(message)
    this.#subscription = link.connection.subscribe(`${this.#inbox}.*`, { callback })
    void this.#make()
  }

  /** Asks for no more until `resume`. */
  pause(): void {
    this.#isPaused = true
  }

  /** Goes on after `pause`. */
  resume(): void {
    if (!this.#isPaused) return
    this.#isPaused = false
    if (this.#missing === 0) this.#ask()
  }

  /** What was asked for is lost, for instance with the link: asks anew, and makes the consumer when it is gone. */
  renew(): void {
    if (!this.#isLeft) void this.#make()
  }

  /** Leaves: asks for no more, and resolves when what was on its way is handed over. */
  async leave(): Promise<void> {
    if (!this.#end()) return
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<void>((resolve) => (timer = setTimeout(resolve, leaveMs)))
    await Promise.race([this.#subscription.drain().catch(() => undefined), late])
    clearTimeout(timer)
    this.stop()
  }

  /** Stops at once. What was on its way is delivered to somebody else when its time to be acknowledged is over. */
  stop(): void {
    this.#end()
    if (!this.#subscription.isClosed()) this.#subscription.unsubscribe()
  }

  #end(): boolean {
    if (this.#isLeft) return false
    this.#isLeft = true
    if (this.#timer !== null) clearTimeout(this.#timer)
    return true
  }

  #plan(what: () => void, ms: number): void {
    if (this.#timer !== null) clearTimeout(this.#timer)
    if (!this.#isLeft) this.#timer = setTimeout(what, ms).unref()
  }

  async #make(): Promise<void> {
    this.#missing = 0
    try {
      await this.#link.manager.consumers.add(this.#stream, this.#config)
      this.#ask()
    } catch {
      this.#plan(() => void this.#make(), againMs)
    }
  }

  #ask(): void {
    if (this.#isLeft || this.#isPaused || this.#link.connection.isClosed()) return
    this.#missing = portion
    const reply = `${this.#inbox}.${++this.#request}`
    const asked = JSON.stringify({ batch: portion, expires: nanos(expiresMs) })
    const subject = `$JS.API.CONSUMER.MSG.NEXT.${this.#stream}.${this.#config.durable_name}`
    this.#link.connection.publish(subject, asked, { reply })
    this.#plan(() => void this.#make(), lostMs)
    this.#options.asked()
  }

  #came(message: Msg): void {
    if (message.reply?.startsWith('$JS.ACK.') === true) {
      this.#options.take(new Delivery(message, this.#link.connection))
      if (this.#missing > 0 && --this.#missing === 0) this.#ask()
      return
    }
    if (message.subject !== `${this.#inbox}.${this.#request}`) return
    this.#missing = 0
    // 404 and 408 are the ends of a request that found nothing more; anything else is a consumer that is not there.
    if ([404, 408].includes(message.headers?.code ?? 0)) this.#ask()
    else this.#plan(() => void this.#make(), againMs)
  }
}
