/**
 * Progress of a run, for people: a line for what matters, on stderr.
 *
 * Owns: which events get a line and how it reads.
 * Does not own: the events (`events.ts` of the runtime), the answer (`output.ts`).
 *
 * - PG1 A line tells who did what; content is never shown, for events have none.
 * - PG2 A reply and the calls it asked for are one line.
 */
import type { TroupeEvent } from '../events.js'
import { count, dollars, duration, oneLine, type Paint, painter, plural, size, writeLine } from './output.js'

/** How long a reply's line waits for the calls of its commit. */
const gatherMs = 20

interface ReplyLine {
  /** Commit, as the ids of its events begin. */
  readonly commit: string
  readonly agent: string
  readonly text: string
  readonly calls: Map<string, number>
}

/** Writes a line for each event that people want to know of. */
export class Progress {
  readonly #paint: Paint = painter(process.stderr)
  /** Who asked for a call, by its id. */
  readonly #askedBy = new Map<string, string>()
  /** Name of each agent actor: its address has the run behind it. */
  readonly #names = new Map<string, string>()
  #reply: ReplyLine | null = null
  #timer: NodeJS.Timeout | null = null

  /** Takes an event that gets no line: only who is who. */
  learn({ type, data }: TroupeEvent): void {
    if (type === 'troupe.agent.started' || type === 'troupe.agent.restarted')
      this.#names.set(text(data['address']), text(data['agent']))
    if (type === 'troupe.tool.called') this.#askedBy.set(text(data['callId']), text(data['agent']))
  }

  /** Takes an event. */
  show(event: TroupeEvent): void {
    const commit = event.id.slice(0, event.id.lastIndexOf('-'))
    if (this.#reply !== null && this.#reply.commit !== commit) this.flush()
    const line = this.#lineOf(event, commit)
    if (line !== null) this.#write(line.who, line.text)
  }

  /** Writes what waits. */
  flush(): void {
    if (this.#timer !== null) clearTimeout(this.#timer)
    this.#timer = null
    const reply = this.#reply
    if (reply === null) return
    this.#reply = null
    const calls = [...reply.calls].map(([name, times]) => (times > 1 ? `${name} ×${times}` : name)).join(', ')
    this.#write(reply.agent, calls === '' ? reply.text : `${reply.text} ${this.#paint('cyan', `→ ${calls}`)}`)
  }

  #write(who: string, text: string): void {
    writeLine(`  ${this.#paint('bold', oneLine(who, 40).padEnd(12))} ${text}`)
  }

  #lineOf(event: TroupeEvent, commit: string): { who: string; text: string } | null {
    const { data } = event
    const who = this.#who(event)
    const paint = this.#paint
    switch (event.type) {
      case 'troupe.agent.started':
        this.learn(event)
        return null
      case 'troupe.agent.finished':
        return data['code'] === null ? null : { who: text(data['agent']), text: paint('yellow', text(data['code'])) }
      case 'troupe.model.replied':
        this.#reply = { commit, agent: who, text: this.#replyText(data), calls: new Map() }
        this.#timer = setTimeout(() => this.flush(), gatherMs)
        return null
      case 'troupe.tool.called':
      case 'troupe.delegate.called':
        this.#called(text(data['callId']), who, text(data['tool'] ?? data['agent']))
        return null
      case 'troupe.agent.handed':
        return { who, text: `hands over to ${text(data['agent'])}` }
      case 'troupe.tool.refused':
        return { who, text: paint('yellow', `${text(data['tool'])} refused: ${text(data['reason'])}`) }
      case 'troupe.tool.finished':
        return this.#finished(data)
      case 'troupe.tool.retried':
        return {
          who: this.#asker(data),
          text: paint('yellow', `${text(data['tool'])} ${text(data['kind'])}, again in ${wait(data['delayMs'])}`),
        }
      case 'troupe.model.failed':
        return {
          who,
          text: paint('yellow', `${text(data['deployment'])} ${text(data['kind'])}: ${text(data['reason'])}`),
        }
      default:
        return this.#rare(event, who)
    }
  }

  #rare(event: TroupeEvent, who: string): { who: string; text: string } | null {
    const { data } = event
    const paint = this.#paint
    switch (event.type) {
      case 'troupe.model.rerouted': {
        const wanted = `${text(data['to'])} is tried ${data['waitMs'] === 0 ? 'next' : `in ${wait(data['waitMs'])}`}`
        return { who: this.#names.get(text(data['address'])) ?? 'router', text: paint('yellow', wanted) }
      }
      case 'troupe.human.asked': {
        const asks = asked(text(data['kind']), text(data['tool']))
        return {
          who,
          text: paint(
            'yellow',
            `${asks}: \`troupe show\` says what, \`troupe approve … ${text(data['ask'])}\` answers`,
          ),
        }
      }
      case 'troupe.agent.restarted': {
        this.learn(event)
        const how = data['restart'] === 'fresh' ? 'begins its task anew' : 'goes on'
        return { who, text: paint('yellow', `${how} behind ${text(data['code'])}`) }
      }
      case 'troupe.human.answered':
        return {
          who: this.#asker(data),
          text: `${text(data['tool']) || 'more to spend'} ${text(data['decision'])} by ${text(data['by'])}`,
        }
      case 'troupe.human.expired': {
        const what = text(data['tool']) || 'more to spend'
        return { who: this.#asker(data), text: paint('yellow', `${what}: nobody answered in time`) }
      }
      case 'troupe.flow.stage':
        return { who: 'flow', text: stageText(data) }
      case 'troupe.budget.raised':
        return { who, text: `budget of ${text(data['account'])} raised` }
      case 'troupe.model.held':
        return {
          who: this.#names.get(text(data['address'])) ?? 'router',
          text: paint('yellow', `waits ${wait(data['waitMs'])} for a model`),
        }
      case 'troupe.breaker.changed':
        return { who: 'breaker', text: paint('yellow', breakerText(data)) }
      case 'troupe.budget.exhausted':
        return {
          who,
          text: paint('yellow', `budget exhausted: ${text(data['dimension'])} of ${text(data['account'])}`),
        }
      case 'troupe.loop.found':
        return { who: text(data['agent']), text: paint('yellow', loopText(data)) }
      case 'troupe.run.queued':
        return null
      case 'troupe.run.paused':
        return { who: 'crew', text: paint('yellow', 'paused') }
      case 'troupe.run.resumed':
        return { who: 'crew', text: 'goes on' }
      case 'troupe.crew.redefined':
        return { who: 'crew', text: 'has a new definition' }
      case 'troupe.shard.resumed':
        return { who: 'crew', text: paint('dim', `was down for ${wait(data['downMs'])}`) }
      case 'troupe.shard.upgraded':
        return { who: 'crew', text: paint('yellow', 'goes on under changed code') }
      case 'troupe.actor.failed':
        return { who, text: paint('red', `${text(data['code'])}: ${text(data['reason'])}`) }
      case 'troupe.message.dead':
        return {
          who: 'dead letter',
          text: paint('red', `${text(data['message'])} to ${text(data['to'])}: ${text(data['code'])}`),
        }
      default:
        return null
    }
  }

  #replyText(data: TroupeEvent['data']): string {
    const tokens = `${count(Number(data['inputTokens']))} in, ${count(Number(data['outputTokens']))} out`
    const cost = dollars(Number(data['nanoUsd']) / 1e9)
    return `round ${text(data['round'])} ${this.#paint('dim', `· ${tokens} · ${cost}`)}`
  }

  #called(callId: string, agent: string, name: string): void {
    this.#askedBy.set(callId, agent)
    const reply = this.#reply
    if (reply !== null) reply.calls.set(name, (reply.calls.get(name) ?? 0) + 1)
    else this.#write(agent, this.#paint('cyan', `→ ${name}`))
  }

  #finished(data: TroupeEvent['data']): { who: string; text: string } {
    const { status } = data
    const paint = this.#paint
    const mark = status === 'ok' ? paint('green', '✓') : status === 'failed' ? paint('red', '✗') : paint('yellow', '?')
    const attempts = Number(data['attempts'])
    const more = [
      ...(status === 'ok' ? [size(Number(data['bytes']))] : [text(status)]),
      ...(attempts > 1 ? [plural(attempts, 'attempt')] : []),
    ]
    const who = this.#asker(data)
    this.#askedBy.delete(text(data['callId']))
    return { who, text: `${mark} ${text(data['tool'])} ${paint('dim', `· ${more.join(' · ')}`)}` }
  }

  #asker(data: TroupeEvent['data']): string {
    return this.#askedBy.get(text(data['callId'])) ?? 'tool'
  }

  /** The agent that an event tells of. */
  #who(event: TroupeEvent): string {
    if (!aboutAnother.has(event.type) && typeof event.data['agent'] === 'string') return event.data['agent']
    const address = event.source.split('/').slice(3).join('/')
    return this.#names.get(address) ?? address.replace(/^agent\//, '').replace(/(-r\d+|-\d+-\d+)(-i\d+)?$/, '')
  }
}

/** Events whose `agent` is not the one that did it. */
const aboutAnother = new Set(['troupe.delegate.called', 'troupe.agent.handed'])

function text(value: unknown): string {
  return oneLine(typeof value === 'string' ? value : JSON.stringify(value ?? ''), 160)
}

function stageText({ stage, agents, join }: TroupeEvent['data']): string {
  const who = (agents as string[]).join(', ')
  return `stage ${text(stage)}: ${oneLine(who, 120)}${join === 'first' ? ', the first answer counts' : ''}`
}

function loopText({ rung, rounds, ring }: TroupeEvent['data']): string {
  if (Array.isArray(ring) && ring.length > 0) return `not asked again in a ring: ${ring.join(' asks ')}`
  const done = { warn: 'told', block: 'its calls are refused', stop: 'stopped' }[text(rung)] ?? ''
  return `${text(rounds)} rounds brought nothing new: ${done}`
}

function breakerText({ deployment, to, ms }: TroupeEvent['data']): string {
  const name = text(deployment)
  if (to === 'closed') return `${name} answers again`
  return to === 'opened' ? `${name} fails: nobody asks it for ${wait(ms)}` : `${name} cools down for ${wait(ms)}`
}

function wait(ms: unknown): string {
  return duration(Number(ms))
}

function asked(kind: string, tool: string): string {
  if (kind === 'question') return 'asks a question'
  return kind === 'budget' ? 'cannot pay and asks for more' : `wants to call ${tool}`
}
