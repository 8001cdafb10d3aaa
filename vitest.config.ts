import { defineConfig } from 'vitest/config'
import { BaseSequencer, type TestSpecification } from 'vitest/node'

/** Folders whose tests start processes, kill them, or run for a long time. */
const slow = ['test/fault/**', 'test/simulation/**', 'test/e2e/**', 'test/soak/**', 'test/**/*.slow.test.ts']
const slowTests = slow.map((pattern) => (pattern.endsWith('.ts') ? pattern : `${pattern}/*.test.ts`))
const exampleTests = ['test/examples.test.ts', 'test/examples/**/*.test.ts']
const conditions = ['source', 'module', 'node', 'development|production']

/** What takes longest comes first, and what computes beside what waits: one of two workers has the simulation, mostly. */
const first = [
  ...[
    'simulation/mutants',
    'fault/workers',
    'fault/mail',
    'simulation/simulation',
    'fault/kill',
    'fault/shared-budget',
  ],
  ...['e2e/operations', 'e2e/nats-repair', 'simulation/workers'],
]

class Sequencer extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const rank = ({ moduleId }: TestSpecification): number => {
      const at = first.findIndex((name) => moduleId.includes(`/test/${name}.`))
      return at < 0 ? first.length : at
    }
    return (await super.sort(files)).sort((one, other) => rank(one) - rank(other))
  }
}

export default defineConfig({
  resolve: { conditions },
  ssr: { resolve: { conditions, externalConditions: ['source', 'node'] } },
  test: {
    pool: 'forks',
    maxWorkers: 2,
    sequence: { sequencer: Sequencer },
    teardownTimeout: 30_000,
    passWithNoTests: true,
    projects: [
      {
        extends: true,
        test: {
          name: 'unit',
          include: ['test/**/*.test.ts'],
          exclude: [...slowTests, ...exampleTests],
          testTimeout: 10_000,
          hookTimeout: 20_000,
          typecheck: {
            enabled: true,
            include: ['test/**/*.test-d.ts'],
            tsconfig: './tsconfig.json',
            ignoreSourceErrors: true, // `npm run check:types` reports those
          },
        },
      },
      {
        extends: true,
        test: { name: 'examples', include: exampleTests, testTimeout: 60_000, hookTimeout: 60_000 },
      },
      {
        extends: true,
        test: {
          name: 'real',
          include: slowTests,
          exclude: exampleTests,
          testTimeout: 300_000,
          hookTimeout: 60_000,
        },
      },
    ],
  },
})
