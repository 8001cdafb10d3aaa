/**
 * What the README says was measured: made of `test/soak.json`, and checked against it by `readme.test.ts`.
 */

/** What `npm run soak` writes: each area as it was run last. */
export interface Soaks {
  readonly core: SoakReport
  readonly workers?: WorkersReport
  readonly governance?: GovernanceReport
}

/** The soak of what one process does, as far as the table names it. */
export interface SoakReport {
  readonly commit: string
  readonly node: string
  readonly scale: number
  readonly parts: {
    readonly kills: { readonly trials: number; readonly runs: number; readonly violations: readonly string[] }
    readonly budget: {
      readonly trials: readonly unknown[]
      readonly leastUtilisation: number
      readonly violations: readonly string[]
    }
    readonly storage: Tests
    readonly mutants: Tests
    readonly simulation: { readonly seeds: number; readonly violations: number; readonly medianCommits: number }
    readonly bench: { readonly results: readonly Readonly<Record<string, number | string>>[] }
  }
}

/** The soak of workers over NATS, as far as the table names it. */
export interface WorkersReport {
  readonly commit: string
  readonly node: string
  readonly scale: number
  readonly parts: {
    readonly failover: Trials & { readonly faults: number; readonly takeovers: number; readonly takeoverP99Ms: number }
    readonly stops: Trials & { readonly stops: number }
    readonly cluster: Trials & { readonly kills: number; readonly truncations: number }
    readonly links: Trials & { readonly trials: number; readonly noticedMs: Readonly<Record<string, number>> }
    readonly rolling: Trials & { readonly restarts: number }
    readonly moves: Trials & { readonly moves: number; readonly kills: number }
    /** A report from before there was such a part has none. */
    readonly mail?: {
      readonly workers: { readonly kills: number; readonly delegations: number }
      readonly store: { readonly kills: number; readonly delegations: number }
      readonly violations: readonly string[]
    }
    readonly mutants: { readonly caught: number; readonly violations: readonly string[] }
    readonly bench: { readonly results: readonly Readonly<Record<string, number | string>>[] }
  }
}

/** The soak of what keeps a crew honest, as far as the table names it. */
export interface GovernanceReport {
  readonly commit: string
  readonly node: string
  readonly scale: number
  readonly parts: {
    readonly graphs: { readonly ok: boolean; readonly states: number; readonly steps: number }
    readonly differential: Tests
    readonly tree: {
      readonly trials: readonly unknown[]
      readonly requests: number
      readonly violations: readonly string[]
    }
    readonly shared: {
      readonly trials: readonly unknown[]
      readonly leastUsed: number
      readonly mostUsed: number
      readonly violations: readonly string[]
    }
    readonly probes: { readonly trials: number; readonly runs: number; readonly violations: readonly string[] }
    readonly mutants: Tests
    readonly bench: { readonly results: readonly Readonly<Record<string, number | string>>[] }
  }
}

interface Trials {
  readonly runs: number
  readonly violations: readonly string[]
}

interface Tests {
  readonly passed: number
  readonly failed: number
}

/** The lines between which the README has the table. */
export const tableMarks = ['<!-- made of test/soak.json -->', '<!-- end -->'] as const

/** Figures of the benchmarks: bench, field, what it is, at most or at least. */
type Figure = readonly [bench: string, field: string, what: string, bound: string]
const figures: readonly Figure[] = [
  ['round', 'memoryOverRaw', 'a round in memory over a hand-written loop on the `openai` client', '≤ 1.15'],
  ['round', 'durableProcessOverRaw', 'a round that survives a killed process, over the same', '≤ 1.40'],
  ['throughput', 'durableOverRaw', 'rounds a second of 100 crews, durable, over 100 such loops', '≥ 1.0'],
  ['throughput', 'cpuProcessOverRaw', 'their CPU a round, `process`', '≤ 1.30'],
  ['throughput', 'cpuPowerOverRaw', 'their CPU a round, `power`', '≤ 1.40'],
  [
    'growth',
    'overheadRound1000Over100',
    'what round 1,000 costs more than by hand, over round 100 (0: it costs less)',
    '≤ 1.3',
  ],
  ['growth', 'bytesRound1000Over100', 'bytes written in round 1,000 over round 100', '≤ 1.3'],
  ['growth', 'runMicros10000Over1000', 'a run after 10,000 runs of its crew over one after 1,000', '≤ 1.3'],
  ['store', 'storedOverPayload', 'stored bytes over those of the tool results', '≤ 2'],
  ['journal', 'portOverRaw', 'journal port over raw LevelDB batches', '≥ 0.5'],
  ['journal', 'commitsPerSecond', 'commits a second', '≥ 15,000'],
  ['resume', 'takeUpMs', 'ms until 1,100 of 10,000 crews go on after a restart', '≤ 1,500'],
  ['resume', 'longAgentAfterKillMs', 'ms until an agent with 1,000 rounds goes on after a kill', '≤ 200'],
  ['resume', 'idleHeapMB', 'MB of heap for 100,000 idle crews', '≤ 200'],
  ['cold', 'jsMs', 'ms from `troupe run` to the first request', '≤ 450'],
  ['cold', 'firstTsMs', 'the same for a TypeScript file seen first', '≤ 600'],
]

const workerFigures: readonly Figure[] = [
  ['mail', 'overRequestReply', 'a letter and its answer over raw NATS request and reply', ''],
  ['mail', 'overJetStreamPublish', 'the same over raw JetStream publishes', ''],
  ['stored', 'journalPerRound', 'journal messages of a tool round', '≤ 3'],
  ['stored', 'storedPerRound', 'all stored messages of a tool round', '≤ 5'],
  ['stored', 'storedPerRemoteRound', 'of one with a remote tool', '≤ 7'],
  ['scale', 'twoOverOne', 'rounds a second of two workers over one', ''],
  ['scale', 'fourOverOne', 'of four over one', ''],
  ['fanout', 'streamOverRaw1', 'events to one follower over raw publish', '≥ 0.5'],
  ['fanout', 'streamOverRaw100', 'to a hundred', '≥ 0.5'],
  ['takeover', 'takenP99Ms', 'ms until a killed worker’s crews have another, p99', ''],
  ['history', 'append10000Over100', 'an append after 10,000 rounds over one after 100', '≤ 1.3'],
]

/** What the workers' table names. */
const workerParts = ['failover', 'stops', 'cluster', 'links', 'rolling', 'moves', 'mail', 'mutants', 'bench']

const governanceFigures: readonly Figure[] = [
  ['governance', 'addedMicrosP50', 'µs that governance adds to a model call in memory, p50', '≤ 150'],
  ['governance', 'addedMicrosP99', 'the same, p99', '≤ 1,000'],
  ['loops', 'successShare', 'share of recorded successes that the loop detector stops', '≤ 0.005'],
]

/** What the table of governance names. */
const governanceParts = ['graphs', 'differential', 'tree', 'shared', 'probes', 'mutants', 'bench']

/** The tables of what was run. */
export function soakTable({ core, workers, governance }: Soaks): string {
  // Parts may be run one by one: there is a table when there are all of them.
  const isWhole = (report: { readonly parts: object } | undefined, parts: readonly string[]): boolean =>
    report !== undefined && parts.every((part) => part in report.parts)
  return [
    ...coreTable(core),
    ...(isWhole(workers, workerParts) ? ['', ...workersTable(workers!)] : []),
    ...(isWhole(governance, governanceParts) ? ['', ...governanceTable(governance!)] : []),
  ].join('\n')
}

type Row = readonly [what: string, count: string, broken: number]

function tables(
  heading: string,
  trials: readonly Row[],
  measured: readonly Figure[],
  results: SoakReport['parts']['bench']['results'],
): string[] {
  const figure = ([name, field, what, bound]: Figure): string => {
    const value = results.find((result) => result['bench'] === name)?.[field]
    return `| ${what} | ${typeof value === 'number' ? rounded(value) : 'not measured'} | ${bound} |`
  }
  return [
    heading,
    '',
    '| tried | how often | broken |',
    '|---|---|---|',
    ...trials.map((row) => `| ${row.join(' | ')} |`),
    '',
    '| measured | | target |',
    '|---|---|---|',
    ...measured.map(figure),
  ]
}

/** Parts that were run on another commit than the last ones. */
function elsewhere(parts: object): string {
  const all = Object.entries(parts as Record<string, { readonly commit?: string }>)
  const commits = new Set(all.flatMap(([, { commit }]) => commit ?? []))
  const runOn = (commit: string): string =>
    all.flatMap(([name, part]) => (part.commit === commit ? name : [])).join(', ')
  return [...commits].map((commit) => `; ${runOn(commit)}: \`${commit.slice(0, 12)}\``).join('')
}

function workersTable({ commit, node, parts }: WorkersReport): string[] {
  const { failover, stops, cluster, links, rolling, moves, mail, mutants, bench } = parts
  const noticed = Math.max(...Object.values(links.noticedMs))
  const row = (what: string, count: string, { violations }: Pick<Trials, 'violations'>): Row => [
    what,
    count,
    violations.length,
  ]
  return tables(
    `Workers over NATS, commit \`${commit.slice(0, 12)}\`${elsewhere(parts)}, Node ${node}:`,
    [
      row(
        '`kill -9` of workers and of the server under load',
        `${failover.faults} faults, ${failover.runs} runs`,
        failover,
      ),
      row(
        'takeovers after a kill, p99 within lease + 2,000 ms',
        `${failover.takeovers}, p99 ${rounded(failover.takeoverP99Ms)} ms`,
        { violations: [] },
      ),
      row('an owner sleeps beyond its lease and wakes up', `${stops.stops} stops`, stops),
      row('mutants of what keeps it out', `${mutants.caught + mutants.violations.length}`, mutants),
      row(
        'a node of three is killed, or comes back with a truncated file',
        `${cluster.kills} and ${cluster.truncations}, ${cluster.runs} runs`,
        cluster,
      ),
      row(
        'five kinds of link faults, noticed within 5,000 ms',
        `${links.trials} each, ${rounded(noticed)} ms at most`,
        links,
      ),
      row('rolling restarts of three workers', `${rolling.restarts}, ${rolling.runs} runs`, rolling),
      row('the server is killed while crews move', `${moves.kills} kills, ${moves.moves} moves`, moves),
      ...(mail === undefined ? [] : [mailRow(mail)]),
    ],
    workerFigures,
    bench.results,
  )
}

function governanceTable({ commit, node, parts }: GovernanceReport): string[] {
  const { graphs, differential, tree, shared, probes, mutants, bench } = parts
  const count = (value: number): string => value.toLocaleString('en')
  return tables(
    `Governance, commit \`${commit.slice(0, 12)}\`${elsewhere(parts)}, Node ${node}:`,
    [
      [
        'every step of every machine from every state within a bound, as XState takes it',
        `${count(graphs.states)} states, ${count(graphs.steps)} steps`,
        graphs.ok ? 0 : 1,
      ],
      ['generated machines against XState', `${differential.passed + differential.failed} tests`, differential.failed],
      [
        '60 agents on three levels of budgets, killed and cancelled, against the provider’s bill',
        `${tree.trials.length} trials, ${count(tree.requests)} requests`,
        tree.violations.length,
      ],
      [
        'a budget of 1,000 calls that 60 crews on three workers share, workers killed and links cut, by the provider’s count',
        `${shared.trials.length} trials, ${count(shared.leastUsed)} to ${count(shared.mostUsed)} calls`,
        shared.violations.length,
      ],
      [
        'one probe a cooldown among three workers, also when the prober dies',
        `${probes.trials} trials, ${count(probes.runs)} runs`,
        probes.violations.length,
      ],
      ['mutants of governance', `${mutants.passed + mutants.failed}`, mutants.failed],
    ],
    // Recorded calls are not part of the repository.
    governanceFigures.filter(([name]) => name !== 'loops' || bench.results.some(({ bench: of }) => of === 'loops')),
    bench.results,
  )
}

function mailRow({ workers, store, violations }: NonNullable<WorkersReport['parts']['mail']>): Row {
  const count = `${workers.kills + store.kills} kills, ${(workers.delegations + store.delegations).toLocaleString('en')} delegations`
  return ['crews delegate to each other while `kill -9` takes either', count, violations.length]
}

function coreTable({ commit, node, parts }: SoakReport): string[] {
  const { kills, budget, storage, mutants, simulation, bench } = parts
  const trials: readonly Row[] = [
    [
      '`kill -9` of a real process, judged by a ledger outside',
      `${kills.trials} kills, ${kills.runs} runs`,
      kills.violations.length,
    ],
    [
      `simulated crews under faults, ${simulation.medianCommits} commits on the median`,
      `${simulation.seeds.toLocaleString('en')} seeds`,
      simulation.violations,
    ],
    ['mutants that the simulation must notice', `${mutants.passed + mutants.failed}`, mutants.failed],
    [
      `200 agents on one budget, at least ${Math.floor(budget.leastUtilisation * 100)} % of it used`,
      `${budget.trials.length} trials`,
      budget.violations.length,
    ],
    ['flipped bits, power cuts, full disks', `${storage.passed + storage.failed} tests`, storage.failed],
  ]
  return tables(`Commit \`${commit.slice(0, 12)}\`, Node ${node}:`, trials, figures, bench.results)
}

function rounded(value: number): string {
  if (value < 0) return 'nothing'
  const digits = value < 0.1 ? 1_000 : 100
  return value >= 100 ? Math.round(value).toLocaleString('en') : String(Math.round(value * digits) / digits)
}

/** The README with another table in its place. @throws Error when it has no place for it. */
export function withTable(readme: string, table: string): string {
  const [begin, end] = tableMarks
  const from = readme.indexOf(begin)
  const to = readme.indexOf(end, from)
  if (from === -1 || to === -1) throw new Error('the README has no place for the table')
  return `${readme.slice(0, from + begin.length)}\n${table}\n${readme.slice(to)}`
}
