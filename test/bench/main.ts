/**
 * `npm run bench -- NAME… [--json]`: measures against raw floors in the same run; a report, not a test.
 * Measures the built package (`dist/`). Without names: all of them. The table goes to stderr, with `--json` one object a line to stdout.
 */
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
}

const args = process.argv.slice(2)
const names = args.filter((arg) => !arg.startsWith('--'))
const unknown = names.find((name) => benches[name] === undefined)
if (unknown !== undefined) {
  process.stderr.write(`no bench ${unknown}; there are: ${Object.keys(benches).join(', ')}\n`)
  process.exit(2)
}
for (const name of names.length === 0 ? Object.keys(benches) : names) {
  process.stderr.write(`\n${name}\n`)
  const result = await benches[name]!()
  process.stdout.write(args.includes('--json') ? `${JSON.stringify(result)}\n` : `${JSON.stringify(result, null, 2)}\n`)
}
process.exit(0)
