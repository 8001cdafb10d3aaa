/** A runtime as users make it, against a scripted model over real HTTP; with a store of its own on disk when asked. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createRuntime, type Runtime, type ScriptedModel, startScriptedModel } from 'troupe'
import type { ModelScript } from '../../actors/scripted-chat.js'

/** Name of the scripted model's deployment. */
export const model = 'scripted:m'

/** Options of `createRuntime`. */
export type Options = NonNullable<Parameters<typeof createRuntime>[0]>

/** The provider entry that reaches a scripted model. */
export const providers = (baseURL: string) => ({ scripted: { baseURL, apiKey: null } })

/** A runtime with its model. Disposing closes both. */
export interface Live extends AsyncDisposable {
  readonly runtime: Runtime
  readonly provider: ScriptedModel
}

/** Starts a scripted model and a runtime that reaches it. */
export async function startLive(script: ModelScript, options: Options = {}): Promise<Live> {
  const provider = await startScriptedModel(script)
  const runtime = await createRuntime({ providers: providers(provider.baseURL), log: 'silent', ...options })
  return {
    runtime,
    provider,
    async [Symbol.asyncDispose]() {
      await runtime.close({ graceMs: 0 })
      await provider.close()
    },
  }
}

/** A folder that is removed at the end. */
export function temporaryFolder(): { readonly path: string } & Disposable {
  const path = mkdtempSync(join(tmpdir(), 'troupe-test-'))
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) }
}
