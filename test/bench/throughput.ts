/** 100 crews at once, 20 rounds each, over 100 hand-written loops on the `openai` client. Wall time and CPU. */
import { type Contender, median, rawContender, round3, say, troupeContender } from './measure.js'
import { startProvider } from './provider.js'

const crews = 100
const rounds = 20
const passes = 5

interface Sample {
  readonly roundsPerSecond: number
  readonly cpuMicros: number
}

async function pass(contender: Contender): Promise<Sample> {
  const cpu = process.cpuUsage()
  const start = performance.now()
  await Promise.all(Array.from({ length: crews }, () => contender.converse(rounds)))
  const seconds = (performance.now() - start) / 1_000
  const { user, system } = process.cpuUsage(cpu)
  const all = crews * (rounds + 1)
  return { roundsPerSecond: all / seconds, cpuMicros: (user + system) / all }
}

export async function benchThroughput(): Promise<object> {
  const provider = await startProvider()
  const contenders: Contender[] = [
    rawContender('raw', provider.baseURL, false),
    rawContender('raw, own fetch', provider.baseURL, true),
    await troupeContender('memory', provider.baseURL, 'memory', true),
    await troupeContender('process', provider.baseURL, 'process', true),
    await troupeContender('power', provider.baseURL, 'power', true),
  ]
  try {
    const samples = new Map<string, Sample[]>(contenders.map(({ name }) => [name, []]))
    for (let index = -1; index < passes; index += 1) {
      for (const contender of contenders) {
        const sample = await pass(contender)
        if (index >= 0) samples.get(contender.name)!.push(sample)
      }
    }
    const rate = (name: string) => median(samples.get(name)!.map((sample) => sample.roundsPerSecond))
    const cpu = (name: string) => median(samples.get(name)!.map((sample) => sample.cpuMicros))
    say('contender            rounds/s  CPU µs/round')
    for (const name of samples.keys())
      say(`${name.padEnd(20)} ${rate(name).toFixed(0).padStart(8)} ${cpu(name).toFixed(0).padStart(8)}`)
    return {
      bench: 'throughput',
      durableOverRaw: round3(rate('process') / rate('raw')),
      memoryOverRaw: round3(rate('memory') / rate('raw')),
      powerOverRaw: round3(rate('power') / rate('raw')),
      durableOverRawSameFetch: round3(rate('process') / rate('raw, own fetch')),
      cpuProcessOverRaw: round3(cpu('process') / cpu('raw')),
      cpuPowerOverRaw: round3(cpu('power') / cpu('raw')),
    }
  } finally {
    for (const contender of contenders) await contender.close()
    provider.stop()
  }
}
