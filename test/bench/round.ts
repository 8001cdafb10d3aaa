/** One agent, 20 rounds with one `idempotent` tool call each, over the same loop by hand on the `openai` client. */
import {
  type Contender,
  interleave,
  median,
  medianOver,
  quantile,
  rawContender,
  round3,
  say,
  troupeContender,
} from './measure.js'
import { startProvider } from './provider.js'

const rounds = 20
const passes = 60

export async function benchRound(): Promise<object> {
  const provider = await startProvider()
  const contenders: Contender[] = [
    rawContender('raw', provider.baseURL, false),
    rawContender('raw, own fetch', provider.baseURL, true),
    await troupeContender('memory', provider.baseURL, 'memory'),
    await troupeContender('process', provider.baseURL, 'process'),
    await troupeContender('power', provider.baseURL, 'power'),
  ]
  try {
    const samples = await interleave(contenders, rounds, passes)
    say('contender            µs/round  p99')
    for (const [name, values] of samples)
      say(
        `${name.padEnd(20)} ${median(values).toFixed(0).padStart(8)} ${quantile(values, 0.99).toFixed(0).padStart(8)}`,
      )
    const over = (name: string, floor: string) => medianOver(samples, name, floor)
    return {
      bench: 'round',
      memoryOverRaw: over('memory', 'raw'),
      durableProcessOverRaw: over('process', 'raw'),
      durablePowerOverRaw: over('power', 'raw'),
      memoryOverRawSameFetch: over('memory', 'raw, own fetch'),
      durableProcessOverRawSameFetch: over('process', 'raw, own fetch'),
      rawMicros: round3(median(samples.get('raw')!)),
    }
  } finally {
    for (const contender of contenders) await contender.close()
    provider.stop()
  }
}
