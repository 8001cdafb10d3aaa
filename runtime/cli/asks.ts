/** How an ask is shown in one line. */
import type { PendingAsk } from '../asks.js'
import { duration, oneLine } from './output.js'

/** An ask in one line. */
export function askLine({ id, kind, agent, tool, arguments: written, expiresAt }: PendingAsk): string {
  const what = {
    approval: () => `wants to call ${tool} ${oneLine(written, 400)}`,
    question: () => `asks ${questionIn(written)}`,
    budget: () => `cannot pay: ${budgetIn(written)}`,
  }[kind]()
  return `${id}  ${agent} ${what} (for ${duration(expiresAt - Date.now())} more)`
}

function budgetIn(written: string): string {
  const { account, dimension, limit } = JSON.parse(written) as { account: string; dimension: string; limit: number }
  return `${account === 'run' ? 'the run' : account.slice(4)} has spent its ${limit} ${dimension}`
}

function questionIn(written: string): string {
  try {
    return oneLine(String((JSON.parse(written) as { question?: unknown }).question), 400)
  } catch {
    return oneLine(written, 400)
  }
}
