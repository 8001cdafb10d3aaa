/**
 * `npm run bench -- NAME… [--json] [--file PATH]`: measures against raw floors in the same run; a report, not a test.
 * Measures the built package (`dist/`). Without names: all of them that need no file. The table goes to stderr, with `--json`
 * one object a line to stdout.
 */
import { parseArgs } from 'node:util'

const { values, positionals: names } = parseArgs({
  allowPositionals: true,
  options: { json: { type: 'boolean', default: false }, file: { type: 'string' } },
})
const benches: Readonly<Record<string, () => Promise<object>>> = {
  round: async () => (await import('./round.js')).benchRound(),
  growth: async () => (await import('./growth.js')).benchGrowth(),
  store: async () => (await import('./store.js')).benchStore(),
  journal: async () => (await import('./journal.js')).benchJournal(),
  resume: async () => (await import('./resume.js')).benchResume(),
  cold: async () => (await import('./cold.js')).benchCold(),
  throughput: async () => (await import('./throughput.js')).benchThroughput(),
  mail: async () => (await import('./mail.js')).benchMail(),
  stored: async () => (await import('./stored.js')).benchStored(),
  scale: async () => (await import('./scale.js')).benchScale(),
  fanout: async () => (await import('./fanout.js')).benchFanout(),
  takeover: async () => (await import('./takeover.js')).benchTakeover(),
  restart: async () => (await import('./restart.js')).benchRestart(),
  history: async () => (await import('./history.js')).benchHistory(),
  governance: async () => (await import('./governance.js')).benchGovernance(),
  loops: async () => (await import('./loops.js')).benchLoops(fileOf('loops')),
}

/** Benches of recorded data. */
const ofFiles: readonly string[] = ['loops']

function fileOf(name: string): string {
  if (values.file !== undefined) return values.file
  process.stderr.write(`the bench ${name} needs --file PATH\n`)
  process.exit(2)
}

const unknown = names.find((name) => benches[name] === undefined)
if (unknown !== undefined) {
  process.stderr.write(`no bench ${unknown}; there are: ${Object.keys(benches).join(', ')}\n`)
  process.exit(2)
}
for (const name of names.length === 0 ? Object.keys(benches).filter((each) => !ofFiles.includes(each)) : names) {
  process.stderr.write(`\n${name}\n`)
  const result = await benches[name]!()
  process.stdout.write(values.json ? `${JSON.stringify(result)}\n` : `${JSON.stringify(result, null, 2)}\n`)
}
process.exit(0)
