/**
 * What model calls cost.
 *
 * Owns: the look-up in the price table (`@pydantic/genai-prices`, offline), overrides, integer arithmetic.
 * Does not own: budgets; what an unknown price counts as.
 *
 * - PC1 A price is found only for a provider that is named in the table: a gateway under a name of its own has no list
 *   price, whatever its model is called.
 * - PC2 Costs are whole nano-dollars, rounded up; nonsense usage (negative, not finite) costs as its nearest sense and
 *   never throws.
 * - PC3 The table (30 ms, 480 KB) is loaded on the first look-up that no override answers.
 */
import { createRequire } from 'node:module'
import type * as GenaiPrices from '@pydantic/genai-prices'
import type { Price, Usage } from '../runtime/ports.js'

/** Prices of one's own, by `<provider>:<model>` or by `<provider>` for all its models. */
export type PriceOverrides = Readonly<Record<string, Price>>

/** Answers what deployments cost. */
export interface Prices {
  /**
   * List price of a deployment, for reservations: with tiers the highest one, in micro-dollars a million tokens; null
   * when unknown.
   */
  priceOf(deployment: string): Price | null
  /** Cost of a call in nano-dollars, with its cached input at the cached rate; null when the price is unknown. */
  costOf(deployment: string, usage: Usage): number | null
}

/** Our provider names to the table's. A local server's list price is nothing. */
const tableNames: Readonly<Record<string, string>> = {
  anthropic: 'anthropic',
  azure: 'azure',
  cerebras: 'cerebras',
  cohere: 'cohere',
  deepseek: 'deepseek',
  fireworks: 'fireworks',
  gemini: 'google',
  groq: 'groq',
  mistral: 'mistral',
  openai: 'openai',
  openrouter: 'openrouter',
  perplexity: 'perplexity',
  together: 'together',
  xai: 'x-ai',
}

const free: Price = Object.freeze({ input: 0, output: 0 })
const local: Readonly<Record<string, Price>> = { lmstudio: free, ollama: free, vllm: free }

/** Nano-dollars in a dollar. */
const nano = 1_000_000_000

let table: typeof GenaiPrices | undefined
const loadTable = (): typeof GenaiPrices => {
  table ??= createRequire(import.meta.url)('@pydantic/genai-prices') as typeof GenaiPrices
  return table
}

/** What is known of one deployment. */
interface Entry {
  readonly price: Price
  /** From the table; null when the price is an override. */
  readonly listed: ListedModel | null
  /** When the listed price is one number a kind of token: the library's own sum, without its look-ups on every call. */
  readonly flat: FlatPrice | null
}

/** Dollars a million tokens. */
interface FlatPrice {
  readonly input: number
  readonly cached: number
  readonly output: number
}

interface ListedModel {
  readonly modelId: string
  readonly provider: GenaiPrices.Provider
}

/** Makes a price list. */
export function createPrices(overrides: PriceOverrides = {}): Prices {
  const entries = new Map<string, Entry | null>()
  const entryOf = (deployment: string): Entry | null => {
    let entry = entries.get(deployment)
    if (entry === undefined) {
      entry = find(deployment, overrides)
      if (entries.size < 10_000) entries.set(deployment, entry)
    }
    return entry
  }
  return {
    priceOf: (deployment) => entryOf(deployment)?.price ?? null,
    costOf: (deployment, usage) => {
      const entry = entryOf(deployment)
      if (entry === null) return null
      const input = sensible(usage.inputTokens)
      const output = sensible(usage.outputTokens)
      const cached = Math.min(sensible(usage.cachedInputTokens), input)
      if (entry.flat !== null) return flatCost(entry.flat, input, output, cached)
      return (
        (entry.listed === null ? null : listCost(entry.listed, input, output, cached)) ??
        plain(entry.price, input, output)
      )
    },
  }
}

const defaultPrices = createPrices()

/** List price of a deployment without overrides; see `Prices`. */
export const priceOf: Prices['priceOf'] = (deployment) => defaultPrices.priceOf(deployment)

/** Cost of a call without overrides, in nano-dollars; see `Prices`. */
export const costOf: Prices['costOf'] = (deployment, usage) => defaultPrices.costOf(deployment, usage)

function find(deployment: string, overrides: PriceOverrides): Entry | null {
  const colon = deployment.indexOf(':')
  const provider = colon < 0 ? deployment : deployment.slice(0, colon)
  const own = pick(overrides, deployment) ?? pick(overrides, provider) ?? pick(local, provider)
  if (own !== undefined)
    return { price: { input: sensible(own.input), output: sensible(own.output) }, listed: null, flat: null }
  const providerId = pick(tableNames, provider)
  if (providerId === undefined || colon < 0) return null
  try {
    const found = loadTable().calcPrice({ input_tokens: 1, output_tokens: 1 }, deployment.slice(colon + 1), {
      providerId,
    })
    if (found === null) return null
    const { input_mtok, output_mtok } = found.model_price
    if (input_mtok === undefined || output_mtok === undefined) return null
    return {
      price: { input: microDollars(input_mtok), output: microDollars(output_mtok) },
      // with the one model that matched, the next look-up does not search the whole table
      listed: { modelId: deployment.slice(colon + 1), provider: { ...found.provider, models: [found.model] } },
      flat: Array.isArray(found.model.prices) ? null : flatPrice(found.model_price),
    }
  } catch {
    return null
  }
}

function pick<Value>(values: Readonly<Record<string, Value>>, name: string): Value | undefined {
  return Object.hasOwn(values, name) ? values[name] : undefined
}

/** The highest tier, so that a reservation is never below the bill. */
function microDollars(price: number | GenaiPrices.TieredPrices): number {
  const dollars = typeof price === 'number' ? price : Math.max(price.base, ...price.tiers.map((tier) => tier.price))
  return Math.ceil(Number((dollars * 1_000_000).toFixed(3)))
}

/** Null for tiers and fees. Prices of what is not counted here (audio, searches) do not matter. */
function flatPrice(price: GenaiPrices.ModelPrice): FlatPrice | null {
  const { input_mtok: input, output_mtok: output, cache_read_mtok: cached = input, ...rest } = price
  const fee = rest['requests_kcount'] !== undefined
  if (typeof input !== 'number' || typeof output !== 'number' || typeof cached !== 'number' || fee) return null
  return { input, cached, output }
}

function flatCost(
  { input, cached, output }: FlatPrice,
  inputTokens: number,
  outputTokens: number,
  cachedTokens: number,
): number {
  const micro = (inputTokens - cachedTokens) * input + cachedTokens * cached + outputTokens * output
  return roundedUp(micro * 1_000)
}

function listCost({ modelId, provider }: ListedModel, input: number, output: number, cached: number): number | null {
  const usage = { input_tokens: input, output_tokens: output, cache_read_tokens: cached }
  for (const counts of [usage, { input_tokens: input, output_tokens: output }]) {
    try {
      const dollars = loadTable().calcPrice(counts, modelId, { provider })?.total_price
      if (dollars !== undefined && Number.isFinite(dollars) && dollars >= 0) return roundedUp(dollars * nano)
    } catch {
      // a model without a cached rate refuses the count of cached tokens: try without it
    }
  }
  return null
}

function plain({ input, output }: Price, inputTokens: number, outputTokens: number): number {
  // micro-dollars a million tokens = pico-dollars a token; a thousandth of that is nano-dollars
  const pico = BigInt(input) * BigInt(inputTokens) + BigInt(output) * BigInt(outputTokens)
  return Number((pico + 999n) / 1_000n)
}

/** Up to the next whole number, but not for the noise of binary fractions. */
function roundedUp(value: number): number {
  return Math.min(Math.ceil(Number(value.toPrecision(12))), Number.MAX_SAFE_INTEGER)
}

function sensible(count: number): number {
  if (Number.isNaN(count) || count <= 0) return 0
  return Math.min(Math.ceil(count), Number.MAX_SAFE_INTEGER)
}
