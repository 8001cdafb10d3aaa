/**
 * Crew files: from a path to a crew, or to a machine of the user's.
 *
 * Owns: jiti (loaded for TypeScript only), the one copy of `troupe` that a crew file gets, errors of a crew file.
 * Does not own: what a crew is (`define.ts` of the runtime).
 *
 * - CF1 Whatever is wrong with the file is `CREW_INVALID` and names the place, where there is one.
 * - CF2 `troupe` in a TypeScript crew file is the very package that the command runs from; a JavaScript file takes what
 *   Node resolves, and that package where Node finds none. Definitions are known by their `kind`, so either works.
 */
import { stat } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { homedir } from 'node:os'
import { basename, extname, join, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { type Agent, type Crew, toCrew } from '../define.js'
import { isMachineDefinition, type MachineDefinition } from '../define-machine.js'
import { isTroupeError, TroupeError } from '../errors.js'

/** What a crew file holds. */
export interface CrewFile {
  readonly definition: Crew | MachineDefinition
  /** Its `input` export: the task, or what the machine starts with, when none is given. */
  readonly input: unknown
}

const javascript = ['.js', '.mjs']
const typescript = ['.ts', '.mts']

/**
 * Loads a crew file.
 * @throws TroupeError `CREW_INVALID`.
 */
export async function loadCrew(file: string): Promise<CrewFile> {
  const path = resolve(file)
  const found = await stat(path).catch(() => null)
  if (found?.isFile() !== true) throw new TroupeError('CREW_INVALID', `there is no file ${file}`)
  const extension = extname(path)
  if (![...javascript, ...typescript].includes(extension)) {
    throw new TroupeError('CREW_INVALID', `${file} is neither TypeScript (.ts, .mts) nor JavaScript (.js, .mjs)`)
  }
  let module: Record<string, unknown>
  try {
    module = javascript.includes(extension) ? await importPlain(path) : await importWithJiti(path)
  } catch (error) {
    if (isTroupeError(error)) throw error
    throw new TroupeError('CREW_INVALID', `${file} cannot be loaded: ${reasonOf(error, path)}`, { cause: error })
  }
  return { definition: definitionOf(module, file), input: module['input'] }
}

function definitionOf(module: Record<string, unknown>, file: string): CrewFile['definition'] {
  const definition = 'default' in module ? module['default'] : undefined
  const kind = typeof definition === 'object' && definition !== null && 'kind' in definition ? definition.kind : null
  if (kind === 'crew') return definition as Crew
  if (isMachineDefinition(definition)) return definition
  if (kind !== 'agent') {
    const what = definition === undefined ? 'has no default export' : `exports ${describe(definition)} by default`
    throw new TroupeError(
      'CREW_INVALID',
      `${file} ${what}: export a crew, an agent or a machine, made by defineCrew, defineAgent or defineMachine`,
    )
  }
  const agent = definition as Agent
  const name = basename(file, extname(file))
    .replace(/[^A-Za-z0-9_-]/g, '-')
    .slice(0, 64)
  return toCrew(agent, agent.name ?? name)
}

function describe(value: unknown): string {
  if (typeof value === 'object' && value !== null && 'kind' in value && value.kind === 'tool') return 'a tool'
  return value === null ? 'null' : Array.isArray(value) ? 'an array' : `a ${typeof value}`
}

async function importPlain(path: string): Promise<Record<string, unknown>> {
  try {
    return (await import(pathToFileURL(path).href)) as Record<string, unknown>
  } catch (error) {
    // No `troupe` (or zod) beside the file, as with an installation for the whole machine: it gets ours.
    if (!isMissing(error, 'troupe') && !isMissing(error, 'zod')) throw error
    return importWithJiti(path)
  }
}

function isMissing(error: unknown, name: string): boolean {
  return (
    error instanceof Error &&
    'code' in error &&
    error.code === 'ERR_MODULE_NOT_FOUND' &&
    error.message.includes(`'${name}'`)
  )
}

async function importWithJiti(path: string): Promise<Record<string, unknown>> {
  const [{ createJiti }, troupe, zod] = await Promise.all([
    import('jiti'),
    import('../index.js'),
    resolves(path, 'zod') ? null : import('zod'),
  ])
  const jiti = createJiti(pathToFileURL(path).href, {
    tsconfigPaths: false,
    // Not the folder for temporary files: whoever made it first could put code there.
    fsCache: join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'troupe', 'jiti'),
    virtualModules: zod === null ? { troupe } : { troupe, zod },
    // By Node's own loader: fast, and one copy with ours where the version is the same.
    nativeModules: ['zod', 'xstate', 'openai'],
  })
  return jiti.import(path)
}

function resolves(path: string, name: string): boolean {
  try {
    createRequire(path).resolve(name)
    return true
  } catch {
    return false
  }
}

/** What went wrong in a crew file and where, in one line. */
function reasonOf(error: unknown, path: string): string {
  if (!(error instanceof Error)) return `it throws ${String(error)}`
  const message = error.message.split('\n')[0] ?? ''
  const place = new RegExp(`${path.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')}:(\\d+)`).exec(
    `${error.message}\n${error.stack}`,
  )
  const line = place === null || message.includes(place[0]) ? '' : ` (line ${place[1]})`
  return `${error.name === 'Error' ? '' : `${error.name}: `}${message}${line}`
}
