/**
 * The model of crews that faults are made in: a server that outlives every fault, and has a few of its own.
 */
import {
  fault,
  type ScriptedAnswer,
  type ScriptedModel,
  type ScriptedRequest,
  startScriptedModel,
} from '../../actors/scripted-model.js'
import { answerTo, conversationHash, draw, latencyOf } from './kill-crews.js'

/** A model, and what was asked of it: requests by process and conversation, and how many of them met a fault. */
export interface KillModel {
  readonly model: ScriptedModel
  readonly requests: ReadonlyMap<string, { readonly count: number; readonly faults: number }>
}

/**
 * Starts it.
 * @param slower times its usual latency for processes that say who they are: a twin is not kept waiting @default 1
 * @param answerOf what it says @default as in the kill test
 */
export async function startKillModel(
  slower = 1,
  answerOf: (request: ScriptedRequest) => ScriptedAnswer = answerTo,
): Promise<KillModel> {
  const requests = new Map<string, { count: number; faults: number }>()
  const failed = new Set<string>()
  const model = await startScriptedModel(
    (request) => {
      const conversation = conversationHash(request.messages)
      const answer = answerOf(request)
      const place = `${String(request.headers['x-process'])} ${conversation}`
      const asked = requests.get(place) ?? { count: 0, faults: 0 }
      requests.set(place, asked)
      asked.count += 1
      // A few conversations meet a fault, once, whoever asks first.
      const faulty = faultOf(conversation, answer)
      if (faulty === null || failed.has(conversation)) {
        const times = request.headers['x-process'] === undefined ? 1 : slower
        return fault.delay(times * latencyOf(conversation), answer)
      }
      failed.add(conversation)
      asked.faults += 1
      return faulty
    },
    { keep: 0 },
  )
  return { model, requests }
}

function faultOf(conversation: string, answer: ScriptedAnswer): ScriptedAnswer | null {
  switch (draw(`${conversation} fault`, 90)) {
    case 0:
      return fault.status(503)
    case 1:
      return fault.cut(60, answer)
    case 2:
      return fault.garbage('<html>')
    default:
      return null
  }
}
