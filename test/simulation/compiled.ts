/**
 * Copies of the tree as JavaScript, for campaigns: a loader would find and translate the files anew in each process, and what
 * it makes of them is slower by a tenth.
 */
import { execFileSync } from 'node:child_process'
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import ts from 'typescript'

const root = resolve(import.meta.dirname, '../..')
const copied = ['machines', 'runtime', 'transport', 'test/simulation', 'package.json', 'tsconfig.json']

/** A copy that is ready to run. Disposing removes it. */
export interface CompiledCopy extends Disposable {
  /** What runs seeds. */
  readonly main: string
}

/** Makes a copy. Throws when the patch does not apply. @param patch a file: what is changed in the copy */
export function compileCopy(patch?: string): CompiledCopy {
  const copy = mkdtempSync(join(tmpdir(), 'troupe-simulation-'))
  const remove = (): void => rmSync(copy, { recursive: true, force: true })
  try {
    for (const path of copied) cpSync(join(root, path), join(copy, path), { recursive: true })
    if (patch !== undefined) execFileSync('git', ['apply', '-C1', '--recount', patch], { cwd: copy, stdio: 'pipe' })
    compile(copy)
    symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'))
    return { main: join(copy, 'test/simulation/main.js'), [Symbol.dispose]: remove }
  } catch (error) {
    remove()
    throw error
  }
}

/** JavaScript by source: copies differ in a file or two. */
const compiled = new Map<string, string>()

/** Makes JavaScript of a copy, without looking at types. */
function compile(copy: string): void {
  const { config } = ts.readConfigFile(join(copy, 'tsconfig.json'), ts.sys.readFile) as { config: object }
  const { options } = ts.parseJsonConfigFileContent(config, ts.sys, copy)
  const compilerOptions = { ...options, module: ts.ModuleKind.ESNext, noEmit: false }
  for (const file of readdirSync(copy, { recursive: true, encoding: 'utf8' })) {
    if (!file.endsWith('.ts')) continue
    const source = readFileSync(join(copy, file), 'utf8')
    const code = compiled.get(source) ?? ts.transpileModule(source, { compilerOptions }).outputText
    compiled.set(source, code)
    writeFileSync(join(copy, `${file.slice(0, -2)}js`), code)
  }
}
