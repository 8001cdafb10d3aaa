/** How an ask is shown in one line. */
import type { PendingAsk } from '../asks.js'
import { duration, oneLine } from './output.js'

/** An ask in one line. */
export function askLine({ id, kind, agent, tool, arguments: written, expiresAt }: PendingAsk): string {
  const what = kind === 'question' ? questionIn(written) : `${tool} ${oneLine(written, 400)}`
  return `${id}  ${agent} ${kind === 'question' ? 'asks' : 'wants to call'} ${what} (for ${duration(expiresAt - Date.now())} more)`
}

function questionIn(written: string): string {
  try {
    return oneLine(String((JSON.parse(written) as { question?: unknown }).question), 400)
  } catch {
    return oneLine(written, 400)
  }
}
