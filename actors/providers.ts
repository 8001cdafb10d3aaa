/**
 * Model providers: name to base URL, key variable and quirks.
 *
 * Owns: the table, how `providers` and the environment change it, what makes a deployment's name usable.
 * Does not own: requests, prices.
 *
 * - PR1 A key is only ever in the closure that `resolveProvider` fills; it is not on an object that is shown or logged
 *   by us.
 * - PR2 A provider of the table is reached by https or on loopback. Plain http elsewhere is taken only from `providers`
 *   or a `<PROVIDER>_BASE_URL` variable: somebody wrote it down.
 */
import { TroupeError } from '../runtime/errors.js'

/** A provider as `createRuntime({ providers })` takes it; absent fields come from the table or the environment. */
export interface ProviderOptions {
  /** Up to and including the version, such as `https://api.example.com/v1`. */
  readonly baseURL?: string
  /** `null`: this endpoint wants no key. @default the `<PROVIDER>_API_KEY` variable */
  readonly apiKey?: string | null
  /** Used instead of the built-in one for this provider. */
  readonly fetch?: (input: string | URL | Request, init?: RequestInit) => Promise<Response>
  /** The field that bounds the output. @default 'max_completion_tokens' at api.openai.com, 'max_tokens' elsewhere */
  readonly maxTokensField?: 'max_tokens' | 'max_completion_tokens'
  /** Sent with every request to this provider; `null` removes one. */
  readonly headers?: Readonly<Record<string, string | null>>
}

/** `<provider>:<model>` taken apart. */
export interface Deployment {
  readonly provider: string
  readonly model: string
}

/** Everything that is needed to reach a provider. */
export interface Provider {
  readonly name: string
  readonly baseURL: string
  /** Null: no key is sent. */
  readonly apiKey: string | null
  readonly maxTokensField: 'max_tokens' | 'max_completion_tokens'
  readonly fetch: ProviderOptions['fetch']
  readonly headers: Readonly<Record<string, string | null>>
}

/** A row of the table. `key: false`: works without a key. */
interface ProviderRow {
  readonly baseURL: string
  readonly key?: false
}

const table: Readonly<Record<string, ProviderRow>> = {
  openai: { baseURL: 'https://api.openai.com/v1' },
  anthropic: { baseURL: 'https://api.anthropic.com/v1' },
  cerebras: { baseURL: 'https://api.cerebras.ai/v1' },
  deepseek: { baseURL: 'https://api.deepseek.com/v1' },
  fireworks: { baseURL: 'https://api.fireworks.ai/inference/v1' },
  gemini: { baseURL: 'https://generativelanguage.googleapis.com/v1beta/openai' },
  groq: { baseURL: 'https://api.groq.com/openai/v1' },
  lmstudio: { baseURL: 'http://127.0.0.1:1234/v1', key: false },
  mistral: { baseURL: 'https://api.mistral.ai/v1' },
  ollama: { baseURL: 'http://127.0.0.1:11434/v1', key: false },
  openrouter: { baseURL: 'https://openrouter.ai/api/v1' },
  perplexity: { baseURL: 'https://api.perplexity.ai' },
  together: { baseURL: 'https://api.together.xyz/v1' },
  vllm: { baseURL: 'http://127.0.0.1:8000/v1', key: false },
  xai: { baseURL: 'https://api.x.ai/v1' },
}

/** Names of the providers that are known without configuration, sorted. */
export const knownProviders: readonly string[] = Object.keys(table).sort()

/** Takes `<provider>:<model>` apart. @throws TroupeError `MODEL_UNKNOWN` when it is not of that form. */
export function parseDeployment(deployment: string): Deployment {
  const colon = deployment.indexOf(':')
  if (colon < 1 || colon === deployment.length - 1) {
    throw new TroupeError('MODEL_UNKNOWN', `'${deployment}' is not a model name: write <provider>:<model>`, {
      details: { deployment },
    })
  }
  return { provider: deployment.slice(0, colon), model: deployment.slice(colon + 1) }
}

/** The variable that holds a provider's key, such as `OPENAI_API_KEY`. */
export function keyVariable(provider: string): string {
  return `${variablePrefix(provider)}_API_KEY`
}

/**
 * Finds out how a provider is reached.
 *
 * Base URL: `providers`, else `<PROVIDER>_BASE_URL` for a known provider, else the table. Key: `providers`, else
 * `<PROVIDER>_API_KEY`; a loopback endpoint and a provider marked as keyless work without one.
 *
 * @throws TroupeError `MODEL_UNKNOWN` for a provider that is neither known nor configured, `KEY_MISSING` naming the
 * variable, `CONFIG_INVALID` for a base URL that is none.
 */
export function resolveProvider(
  name: string,
  providers: Readonly<Record<string, ProviderOptions>>,
  env: Readonly<Record<string, string | undefined>>,
): Provider {
  const options = Object.hasOwn(providers, name) ? providers[name] : undefined
  const row = Object.hasOwn(table, name) ? table[name] : undefined
  const written = options?.baseURL ?? (row === undefined ? null : filled(env[`${variablePrefix(name)}_BASE_URL`]))
  const baseURL = written ?? row?.baseURL
  if (baseURL === undefined) {
    const known = [...new Set([...knownProviders, ...Object.keys(providers)])].sort()
    throw new TroupeError('MODEL_UNKNOWN', `unknown model provider '${name}' (known: ${known.join(', ')})`, {
      details: { provider: name, known },
    })
  }
  const url = checkedURL(name, baseURL)
  const apiKey = filled(options?.apiKey === undefined ? env[keyVariable(name)] : options.apiKey)
  const keyless = options?.apiKey === null || isLoopback(url) || (row?.key === false && written === null)
  if (apiKey === null && !keyless) {
    throw new TroupeError('KEY_MISSING', `no key for model provider '${name}': set ${keyVariable(name)}`, {
      details: { provider: name, variable: keyVariable(name) },
    })
  }
  return {
    name,
    baseURL,
    apiKey,
    maxTokensField:
      options?.maxTokensField ?? (url.hostname === 'api.openai.com' ? 'max_completion_tokens' : 'max_tokens'),
    fetch: options?.fetch,
    headers: options?.headers ?? {},
  }
}

function variablePrefix(provider: string): string {
  return provider.toUpperCase().replaceAll('-', '_')
}

function filled(value: string | null | undefined): string | null {
  const text = value?.trim() ?? ''
  return text === '' ? null : text
}

function checkedURL(provider: string, baseURL: string): URL {
  const url = URL.canParse(baseURL) ? new URL(baseURL) : null
  const wrong =
    url === null
      ? 'is not a URL'
      : url.protocol !== 'https:' && url.protocol !== 'http:'
        ? 'is neither http nor https'
        : url.username !== '' || url.password !== ''
          ? 'has credentials in it: give them as apiKey'
          : null
  if (url === null || wrong !== null) {
    // The URL itself is not repeated: it may hold the credentials.
    throw new TroupeError('CONFIG_INVALID', `the base URL of model provider '${provider}' ${wrong ?? ''}`, {
      details: { provider },
    })
  }
  return url
}

function isLoopback({ hostname }: URL): boolean {
  return hostname === 'localhost' || hostname === '[::1]' || /^127\.\d+\.\d+\.\d+$/.test(hostname)
}
