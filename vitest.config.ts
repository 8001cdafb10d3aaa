import { defineConfig } from 'vitest/config'

/** Folders whose tests start processes, kill them, or run for a long time. */
const slow = ['test/fault/**', 'test/simulation/**', 'test/e2e/**', 'test/soak/**', 'test/**/*.slow.test.ts']
const slowTests = slow.map((pattern) => (pattern.endsWith('.ts') ? pattern : `${pattern}/*.test.ts`))
const exampleTests = ['test/examples.test.ts', 'test/examples/**/*.test.ts']
const conditions = ['source', 'module', 'node', 'development|production']

export default defineConfig({
  resolve: { conditions },
  ssr: { resolve: { conditions, externalConditions: ['source', 'node'] } },
  test: {
    pool: 'forks',
    maxWorkers: 2,
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
