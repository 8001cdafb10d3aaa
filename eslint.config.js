import { isBuiltin } from 'node:module'
import { posix, relative, sep } from 'node:path'
import { createTypeScriptImportResolver } from 'eslint-import-resolver-typescript'
import importX from 'eslint-plugin-import-x'
import { defineConfig } from 'eslint/config'
import { builtinRules } from 'eslint/use-at-your-own-risk'
import tseslint from 'typescript-eslint'

const root = import.meta.dirname

/** What each folder may import of ours, besides itself. `test/` may import anything and is not listed. */
const mayImport = {
  machines: [],
  runtime: ['machines'],
  transport: ['runtime', 'machines'],
  sandbox: ['runtime', 'machines'],
  actors: ['runtime', 'machines', 'sandbox'],
}

/** The composition root: it imports from every folder of the product, and is imported by package name only. */
const compositionRoot = /^runtime\/(index\.ts$|distributed\.ts$|cli\/)/
const product = Object.keys(mayImport)

/** The one home of each vendor library: files, or folders ending in `/`. A library that is not listed has none. */
const homes = {
  '@nats-io/*': ['transport/'],
  '@opentelemetry/api': ['runtime/telemetry.ts'],
  '@pydantic/genai-prices': ['actors/prices.ts'],
  'classic-level': ['transport/level-journal.ts'],
  commander: ['runtime/cli/main.ts'],
  dockerode: ['sandbox/docker.ts'],
  jiti: ['runtime/cli/load.ts'],
  level: ['transport/level-journal.ts'],
  msgpackr: ['runtime/codec.ts'],
  openai: ['actors/model-openai.ts'],
  pino: ['runtime/log.ts'],
  undici: ['actors/fetch.ts'],
  xstate: [
    'machines/',
    'runtime/scope.ts',
    'runtime/chart.ts',
    'runtime/logic.ts',
    'runtime/logic-step.ts',
    'examples/',
  ],
  zod: [...product.map((folder) => `${folder}/`), 'examples/'],
}

/** Decisions are pure: nothing here may read a clock, draw a random number, wait, or reach outside. */
const pure = [
  'machines/**/*.ts',
  'runtime/commit.ts',
  'runtime/scope.ts',
  'runtime/chart.ts',
  'runtime/chart-step.ts',
  'runtime/logic-step.ts',
  'runtime/plain.ts',
  'runtime/conversation.ts',
]
/** Builtins that a pure file may still import: they compute and touch nothing. */
const pureBuiltins = ['node:assert', 'node:buffer', 'node:crypto', 'node:util', 'node:zlib']

const isPure = (file) =>
  pure.some((pattern) => file === pattern || (pattern.endsWith('/**/*.ts') && file.startsWith(pattern.slice(0, -7))))

const packageOf = (specifier) =>
  specifier
    .split('/')
    .slice(0, specifier.startsWith('@') ? 2 : 1)
    .join('/')

/** Why `file` may not import `specifier`, or undefined if it may. Paths are relative to the root, with `/`. */
function whyNot(file, specifier) {
  const folder = file.split('/')[0]
  if (folder === 'test' || !file.includes('/')) return undefined
  if (specifier.startsWith('.')) return whyNotRelative(file, folder, posix.join(posix.dirname(file), specifier))
  if (isBuiltin(specifier)) {
    if (!specifier.startsWith('node:')) return `write 'node:${specifier}'`
    if (isPure(file) && !pureBuiltins.includes(specifier)) return `pure files may import of Node only ${pureBuiltins}`
    return undefined
  }
  const name = packageOf(specifier)
  if (name === 'troupe') {
    if (folder === 'examples' || file.startsWith('runtime/cli/')) return undefined
    return 'the product does not import itself by name: that is a cycle through runtime/index.ts'
  }
  const home = homes[name] ?? homes[name.replace(/\/.*/, '/*')]
  if (home === undefined) return `${name} has no home: give it one in eslint.config.js`
  if (home.some((place) => (place.endsWith('/') ? file.startsWith(place) : file === place))) return undefined
  return `${name} has one home: ${home.join(', ')}`
}

function whyNotRelative(file, folder, target) {
  if (folder === 'examples') return "examples import only 'troupe', zod and node builtins"
  const to = target.split('/')[0]
  const source = target.replace(/\.js$/, '.ts')
  if (compositionRoot.test(file)) {
    if (source.startsWith('runtime/cli/') && !file.startsWith('runtime/cli/'))
      return 'only runtime/cli/ imports runtime/cli/'
    return product.includes(to) ? undefined : `nothing imports ${to}/`
  }
  if (compositionRoot.test(source)) return 'the composition root is imported by package name only'
  const allowed = [folder, ...(mayImport[folder] ?? [])]
  return allowed.includes(to) ? undefined : `${folder}/ may import only ${allowed.join(', ')}`
}

/** Checks every form of import against the tables above: static, re-export, dynamic, and `import('…')` types. */
const importsRule = {
  meta: { type: 'problem', schema: [], messages: { refused: "'{{specifier}}' may not be imported here: {{why}}." } },
  create(context) {
    const file = relative(root, context.filename).split(sep).join('/')
    const check = (node, source) => {
      if (source?.type !== 'Literal' || typeof source.value !== 'string') return
      const why = whyNot(file, source.value)
      if (why !== undefined) context.report({ node, messageId: 'refused', data: { specifier: source.value, why } })
    }
    const declaration = (node) => check(node, node.source)
    return {
      ImportDeclaration: declaration,
      ExportNamedDeclaration: declaration,
      ExportAllDeclaration: declaration,
      ImportExpression: declaration,
      TSImportType: (node) => check(node, node.source),
      TSExternalModuleReference: (node) => check(node, node.expression),
    }
  },
}

const complexity = builtinRules.get('complexity')

function isInActions(node) {
  for (let at = node; at != null; at = at.parent) {
    if (at.type === 'Property' && !at.computed && at.key.type === 'Identifier' && at.key.name === 'actions') return true
  }
  return false
}

/** ESLint's `complexity`, of the functions inside `actions` of a machine only. */
const plainActionsRule = {
  meta: complexity.meta,
  create(context) {
    const report = (problem) => {
      if (isInActions(problem.node)) context.report(problem)
    }
    return complexity.create(Object.create(context, { report: { value: report } }))
  },
}

const impureGlobals = [
  'Date',
  'setTimeout',
  'setInterval',
  'setImmediate',
  'queueMicrotask',
  'process',
  'fetch',
  'performance',
  'crypto',
  'Promise',
  'globalThis',
  'global',
  'console',
]

const pureRules = {
  'no-restricted-globals': [
    'error',
    ...impureGlobals.map((name) => ({ name, message: 'This file decides: it must be pure.' })),
  ],
  'no-restricted-properties': [
    'error',
    { object: 'Math', property: 'random', message: 'This file decides: it must be pure.' },
  ],
  'no-restricted-syntax': [
    'error',
    { selector: ':function[async=true]', message: 'This file decides: nothing in it is async.' },
    { selector: 'AwaitExpression', message: 'This file decides: nothing in it waits.' },
    { selector: 'ForOfStatement[await=true]', message: 'This file decides: nothing in it waits.' },
    { selector: 'ImportExpression', message: 'This file decides: it loads nothing.' },
    {
      selector: 'TSTypeReference[typeName.name=/^Promise(Like)?$/]',
      message: 'This file decides: nothing in it is async.',
    },
    {
      selector: "ImportDeclaration[source.value='node:crypto'] ImportSpecifier[imported.name!=/^(createHash|hash)$/]",
      message: 'Of node:crypto a pure file may import createHash only.',
    },
    {
      selector:
        "ImportDeclaration[source.value='node:crypto'] :matches(ImportDefaultSpecifier, ImportNamespaceSpecifier)",
      message: 'Of node:crypto a pure file may import createHash only.',
    },
    {
      selector:
        "ImportDeclaration[source.value='xstate'] ImportSpecifier[imported.name=/^(createActor|interpret|waitFor|toPromise|fromCallback|fromObservable|fromEventObservable)$/]",
      message: 'Machines never run as live XState actors (DESIGN, section 2).',
    },
    {
      selector: "ImportDeclaration[source.value='xstate'] :matches(ImportDefaultSpecifier, ImportNamespaceSpecifier)",
      message: 'Name what is imported from xstate.',
    },
  ],
}

export default defineConfig(
  { ignores: ['dist/**', 'coverage/**', '.troupe/**', '*.config.*'] },
  { linterOptions: { reportUnusedDisableDirectives: 'error' } },
  {
    files: ['**/*.ts'],
    extends: [tseslint.configs.recommendedTypeChecked],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: root } },
    plugins: { 'import-x': importX, troupe: { rules: { imports: importsRule, 'plain-actions': plainActionsRule } } },
    // Without all three settings `import-x/no-cycle` passes in silence on `.js` specifiers.
    settings: {
      'import-x/extensions': ['.ts'],
      'import-x/parsers': { '@typescript-eslint/parser': ['.ts'] },
      'import-x/resolver-next': [createTypeScriptImportResolver({ project: `${root}/tsconfig.json` })],
    },
    rules: {
      'troupe/imports': 'error',
      'import-x/no-cycle': 'error',
      'import-x/no-self-import': 'error',
      'import-x/no-default-export': 'error',
      'max-lines': ['error', { max: 500, skipBlankLines: true, skipComments: true }],
      'max-lines-per-function': ['error', { max: 80, skipBlankLines: true, skipComments: true }],
      '@typescript-eslint/consistent-type-imports': ['error', { disallowTypeAnnotations: false }],
      '@typescript-eslint/no-explicit-any': 'error',
      '@typescript-eslint/no-floating-promises': 'error',
      '@typescript-eslint/no-unused-vars': [
        'error',
        { argsIgnorePattern: '^_', varsIgnorePattern: '^_', ignoreRestSiblings: true },
      ],
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true, allowBoolean: true }],
      // a port's method is async by its contract, whether or not this implementation waits
      '@typescript-eslint/require-await': 'off',
    },
  },
  { files: pure, rules: pureRules },
  // Guards decide and actions record: neither needs many branches, an action hardly any. (`?.`, `??` and `&&` count, too.)
  { files: ['machines/**/*.ts'], rules: { complexity: ['error', 7], 'troupe/plain-actions': ['error', 3] } },
  // XState's `types: {} as …` is how a machine is typed; the rule takes it for superfluous, and its fix breaks the types.
  {
    files: ['machines/**/*.ts', 'test/**/*.ts'],
    rules: { '@typescript-eslint/no-unnecessary-type-assertion': 'off' },
  },
  { files: ['examples/**/*.ts'], rules: { 'import-x/no-default-export': 'off' } },
  {
    files: ['test/**/*.ts'],
    rules: {
      'import-x/no-default-export': 'off',
      'max-lines-per-function': 'off',
      '@typescript-eslint/no-unsafe-argument': 'off',
      '@typescript-eslint/no-unsafe-assignment': 'off',
      '@typescript-eslint/no-unsafe-call': 'off',
      '@typescript-eslint/no-unsafe-member-access': 'off',
      '@typescript-eslint/no-unsafe-return': 'off',
      '@typescript-eslint/unbound-method': 'off',
    },
  },
)
