/**
 * Tools that speak to a server: their calls are kept back while its breaker is open.
 *
 * Owns: asking the breaker right before a call, what a failed call means to it.
 * Does not own: breakers (`breakers.ts`), running tools (`actors/tool.ts`), whether a call that was kept back is made later
 * (`machines/tool-executor.ts`).
 *
 * - GT1 A call is kept back before its `dispatched` record: it was certainly not made.
 * - GT2 Every permit is given back, whatever the port does.
 */
import type { Breakers, CallEnd, Refusal } from './breakers.js'
import type { ToolOutcome, ToolPort, ToolRequest } from './ports.js'

/** What a failed tool call tells of its server. `told`: in its own words. */
const verdicts: Readonly<Record<Extract<ToolOutcome, { status: 'failed' }>['kind'], CallEnd['verdict']>> = {
  threw: 'failed',
  timeout: 'failed',
  told: 'answered',
  unserialisable: 'answered',
  unserved: 'none',
  unavailable: 'none',
}

/**
 * Runs a call, unless its tool's server is kept back: then it fails with `unavailable`. What another process is to work on is
 * that process's to guard.
 * @param server that the tool speaks to; none has no breaker
 */
export async function runGuarded(
  port: Pick<ToolPort, 'run'>,
  breakers: Breakers | undefined,
  server: string | undefined,
  request: ToolRequest,
): Promise<ToolOutcome> {
  if (breakers === undefined || server === undefined) return port.run(request)
  const target = `tool/${server}`
  const call = callOf(request)
  let refusal: Refusal | null = null
  let isPermitted = false
  const mayStart: ToolRequest['mayStart'] = async (remote) => {
    if (remote !== undefined) return request.mayStart(remote)
    refusal = await refusalOf(breakers, target, request)
    isPermitted = refusal === null
    return isPermitted && request.mayStart()
  }
  let verdict: CallEnd['verdict'] = 'none'
  try {
    const outcome = await port.run({ ...request, mayStart })
    verdict = verdictOf(outcome)
    const wasKept = refusal !== null && outcome.status === 'dropped' && !isOver(request)
    return wasKept ? unavailable(server, refusal!) : outcome
  } finally {
    if (isPermitted) breakers.done(target, call, { verdict, cooling: null })
  }
}

/** Why a tool's server takes no call; null when it does. */
async function refusalOf(breakers: Breakers, target: string, request: ToolRequest): Promise<Refusal | null> {
  for (;;) {
    const permit = await breakers.ask(target, callOf(request), 'only')
    if (permit.granted) return null
    const refusal = { target, reason: permit.reason, waitMs: permit.waitMs }
    if (!(await breakers.probed([refusal], [request.signal, request.leaving]))) return refusal
  }
}

function callOf({ shard, effect }: ToolRequest): string {
  return `${shard}.${effect}`
}

function isOver({ signal, leaving }: ToolRequest): boolean {
  return signal.aborted || leaving.aborted
}

function verdictOf(outcome: ToolOutcome): CallEnd['verdict'] {
  if (outcome.status === 'failed') return verdicts[outcome.kind]
  return outcome.status === 'ok' ? 'answered' : 'none'
}

function unavailable(server: string, { waitMs }: Refusal): ToolOutcome {
  const seconds = Math.ceil(waitMs / 1_000)
  const message = `Not done: ${server} does not answer. It is asked again in ${seconds} s.`
  return { status: 'failed', kind: 'unavailable', message, waitMs }
}
