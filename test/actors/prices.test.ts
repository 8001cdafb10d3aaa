import fc from 'fast-check'
import { expect, test } from 'vitest'
import { costOf, createPrices, priceOf } from '../../actors/prices.js'
import type { Usage } from '../../runtime/ports.js'

const usage = (inputTokens: number, outputTokens: number, cachedInputTokens = 0): Usage => ({
  inputTokens,
  outputTokens,
  cachedInputTokens,
  estimated: false,
})

test('prices: a known model has its list price in micro-dollars a million tokens', () => {
  expect(priceOf('openai:gpt-4o-mini')).toEqual({ input: 150_000, output: 600_000 })
  expect(costOf('openai:gpt-4o-mini', usage(1_000, 500))).toBe(1_000 * 150 + 500 * 600)
})

test('prices: cached input costs its own rate', () => {
  expect(costOf('openai:gpt-4o-mini', usage(1_000, 0, 1_000))).toBe(75_000)
  expect(costOf('openai:gpt-4o-mini', usage(1_000, 0, 5_000))).toBe(75_000)
})

test('prices: a price with tiers is the highest one, so that a reservation is never below the bill', () => {
  const price = priceOf('gemini:gemini-2.5-pro')
  const cost = costOf('gemini:gemini-2.5-pro', usage(300_000, 1_000))
  expect(price).not.toBeNull()
  expect(cost).toBeLessThanOrEqual((300_000 * (price?.input ?? 0) + 1_000 * (price?.output ?? 0)) / 1_000)
})

test('prices: an unknown model, an unknown provider and a gateway of any name have none', () => {
  for (const deployment of ['openai:no-such-model', 'corp:gpt-4o-mini', 'openai', 'nonsense', '', ':', 'toString:x']) {
    expect(priceOf(deployment)).toBeNull()
    expect(costOf(deployment, usage(10, 10))).toBeNull()
  }
})

test('prices: a local server costs nothing', () => {
  expect(priceOf('ollama:llama3.2')).toEqual({ input: 0, output: 0 })
  expect(costOf('ollama:llama3.2', usage(1_000, 1_000))).toBe(0)
})

test('prices: an override of a deployment wins over one of its provider, and both over the table', () => {
  const prices = createPrices({
    'openai:gpt-4o-mini': { input: 1, output: 2 },
    openai: { input: 3_000_000, output: 4_000_000 },
    corp: { input: 5_000_000, output: 6_000_000 },
  })
  expect(prices.priceOf('openai:gpt-4o-mini')).toEqual({ input: 1, output: 2 })
  expect(prices.priceOf('openai:gpt-4o')).toEqual({ input: 3_000_000, output: 4_000_000 })
  expect(prices.costOf('corp:anything', usage(1_000, 1_000))).toBe(11_000_000)
})

test('prices: a cost is rounded up to whole nano-dollars', () => {
  const prices = createPrices({ x: { input: 1, output: 0 } })
  expect(prices.costOf('x:m', usage(1, 0))).toBe(1)
  expect(prices.costOf('x:m', usage(1_000, 0))).toBe(1)
  expect(prices.costOf('x:m', usage(1_001, 0))).toBe(2)
})

test('prices: nonsense usage costs as its nearest sense and never throws', () => {
  for (const count of [-5, Number.NaN, Number.NEGATIVE_INFINITY]) {
    expect(costOf('openai:gpt-4o-mini', usage(count, count, count))).toBe(0)
  }
  const values = fc.oneof(fc.double(), fc.integer(), fc.constantFrom(Infinity, -0, 1e308, Number.MAX_SAFE_INTEGER))
  const deployments = fc.constantFrom('openai:gpt-4o-mini', 'anthropic:claude-haiku-4-5', 'ollama:x', 'corp:x')
  fc.assert(
    fc.property(deployments, values, values, values, (deployment, input, output, cached) => {
      const cost = costOf(deployment, usage(input, output, cached))
      expect(cost === null || (Number.isInteger(cost) && cost >= 0)).toBe(true)
    }),
  )
})
