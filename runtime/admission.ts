/**
 * Admission: which of the deployments on an effect's list takes its call.
 *
 * Owns: the order in which breakers are asked, waiting for a probe, what a failure means to a breaker.
 * Does not own: breakers (`breakers.ts`), calling (`dispatcher.ts`), what follows from a refusal (the router).
 *
 * - AD1 Deployments are asked in the order of the list, of a group the one with the fewest calls under way first; the first
 *   that admits the call takes it, and no other has a permit.
 * - AD2 Whom only its own fault keeps back is asked all the same when nobody else is on the list.
 * - AD3 Nobody is refused because of a probe: its end is waited for.
 * - AD4 Every permit is given back, whatever the port does, and also when nobody wants it any more.
 */
import type { BreakerChange, FailureKind, PermitNeed, Skipped } from '../machines/index.js'
import type { Breakers, CallEnd, Refusal } from './breakers.js'
import type { ModelFailure, ModelReply } from './ports.js'

/** How a call found its deployment. */
export interface Admission {
  /** Null: no deployment takes it, or it was given up meanwhile. */
  readonly deployment: string | null
  readonly skipped: readonly Skipped[]
}

/** A call that looks for a deployment. */
export interface Applicant {
  /** Of no other call. */
  readonly call: string
  readonly deployments: readonly string[]
  /** Groups of deployments, each as good as the other; one that is in none is alone. */
  readonly groups: readonly (readonly string[])[]
  /** When one of them aborts no deployment is wanted any more. */
  readonly signals: readonly AbortSignal[]
  /** Whether this process may still make the call: it may have waited for long. @default it may */
  readonly mayCall?: () => boolean
}

/** How long a deployment that is at fault is left alone by those who have another one. */
const faultMs = 60_000
/** Longest time that a deployment is left alone because it asked for it. */
const maxAskedMs = 600_000

/** Looks for a deployment that takes a call. Without breakers that is the first one. Never rejects. */
export async function admit(breakers: Breakers | undefined, applicant: Applicant): Promise<Admission> {
  if (breakers === undefined) return { deployment: applicant.deployments[0]!, skipped: [] }
  const only = applicant.groups.flat().length === 1
  let need: PermitNeed = only ? 'only' : 'choice'
  for (;;) {
    const admission = await askEach(breakers, applicant, need)
    const { deployment, skipped } = admission
    if (deployment !== null || isOver(applicant)) return admission
    if (need === 'choice' && skipped.every(({ reason }) => reason === 'fault')) need = 'last'
    else if (!(await breakers.probed(skipped.map(asTarget), applicant.signals))) return admission
  }
}

function isOver({ signals, mayCall }: Applicant): boolean {
  return signals.some(({ aborted }) => aborted) || mayCall?.() === false
}

function asTarget({ deployment, ...refusal }: Skipped): Refusal {
  return { target: targetOf(deployment), ...refusal }
}

async function askEach(breakers: Breakers, applicant: Applicant, need: PermitNeed): Promise<Admission> {
  const skipped: Skipped[] = []
  for (const deployment of inOrder(breakers, applicant)) {
    const permit = await breakers.ask(targetOf(deployment), applicant.call, need)
    if (permit.granted && !isOver(applicant)) return { deployment, skipped }
    if (permit.granted) {
      breakers.done(targetOf(deployment), applicant.call, unmade)
      break
    }
    skipped.push({ deployment, reason: permit.reason, waitMs: permit.waitMs })
  }
  return { deployment: null, skipped }
}

/** Within a group the one that has least to do comes first. */
function inOrder(breakers: Breakers, { deployments, groups }: Applicant): readonly string[] {
  if (deployments.length === 1) return deployments
  const order = deployments.map((deployment, at) => {
    const group = groups.findIndex((each) => each.includes(deployment))
    const first = deployments.findIndex((each) => groups[group]?.includes(each) ?? each === deployment)
    return { deployment, place: first, busy: breakers.underWay(targetOf(deployment)), at }
  })
  order.sort((one, two) => one.place - two.place || one.busy - two.busy || one.at - two.at)
  return order.map(({ deployment }) => deployment)
}

/** The breaker of a deployment. */
export function targetOf(deployment: string): string {
  return `model/${deployment}`
}

/** What the end of a call tells of its deployment. */
const verdicts: Readonly<Record<FailureKind, CallEnd['verdict']>> = {
  server: 'failed',
  overloaded: 'failed',
  timeout: 'failed',
  network: 'failed',
  invalid_reply: 'failed',
  rate_limited: 'answered',
  context_window: 'answered',
  content_policy: 'answered',
  bad_request: 'answered',
  auth: 'answered',
  quota: 'answered',
  not_found: 'answered',
  config: 'none',
  cancelled: 'none',
}
/** Whoever asks again is told the same. */
const faults: ReadonlySet<FailureKind> = new Set(['auth', 'quota', 'not_found', 'config'])

/** It was not made, or not to its end. */
const unmade: CallEnd = { verdict: 'none', cooling: null }

/** Makes a call that was admitted; tells its breaker what came of it, and the caller what that has changed. */
export async function underPermit(
  breakers: Breakers | undefined,
  deployment: string,
  call: string,
  make: () => Promise<ModelReply | ModelFailure>,
): Promise<{ readonly reply: ModelReply | ModelFailure; readonly changes: readonly BreakerChange[] }> {
  let end = unmade
  let changes: readonly BreakerChange[] = []
  let reply: ModelReply | ModelFailure
  try {
    reply = await make()
    end = reply.ok ? { verdict: 'answered', cooling: null } : endOf(reply)
  } finally {
    changes = breakers?.done(targetOf(deployment), call, end) ?? []
  }
  return { reply, changes }
}

function endOf({ kind, retryAfterMs }: ModelFailure): CallEnd {
  const verdict = verdicts[kind]
  if (faults.has(kind)) return { verdict, cooling: { ms: faultMs, why: 'fault' } }
  const ms = Math.min(maxAskedMs, Math.round(retryAfterMs ?? 0))
  return { verdict, cooling: ms > 0 && kind !== 'cancelled' ? { ms, why: 'asked' } : null }
}
