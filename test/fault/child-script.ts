/**
 * Makes one file of a script and everything of ours that it imports, so that a process that lives for a tenth of a
 * second does not need a whole one to start.
 */
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { build } from 'vite'

const root = join(import.meta.dirname, '../..')

/** A script as one file; vendor libraries are still imported. Disposing removes it. */
export interface ChildScript extends AsyncDisposable {
  readonly path: string
}

/** Bundles `test/fault/<name>.ts`. The file lies inside the checkout, where its imports are found. */
export async function bundleChild(name: string): Promise<ChildScript> {
  const cache = join(root, 'node_modules/.cache')
  await mkdir(cache, { recursive: true })
  const outDir = await mkdtemp(join(cache, 'troupe-fault-'))
  await build({
    configFile: false,
    root,
    logLevel: 'error',
    build: {
      ssr: join(root, 'test/fault', `${name}.ts`),
      outDir,
      minify: false,
      target: 'node20',
      rollupOptions: { output: { entryFileNames: 'child.mjs' } },
    },
  })
  const remove = (): Promise<void> => rm(outDir, { recursive: true, force: true })
  return { path: join(outDir, 'child.mjs'), [Symbol.asyncDispose]: remove }
}
