import { expect, test } from 'vitest'
import { keyVariable, knownProviders, parseDeployment, resolveProvider } from '../../actors/providers.js'
import type { TroupeError } from '../../runtime/errors.js'

function codeOf(run: () => unknown): string {
  try {
    run()
  } catch (error) {
    return (error as TroupeError).code
  }
  return 'none'
}

test('providers: a deployment is taken apart at its first colon', () => {
  expect(parseDeployment('ollama:llama3.2:3b')).toEqual({ provider: 'ollama', model: 'llama3.2:3b' })
  expect(parseDeployment('openrouter:openai/gpt-5')).toEqual({ provider: 'openrouter', model: 'openai/gpt-5' })
  for (const wrong of ['', 'gpt-5', ':gpt-5', 'openai:']) {
    expect(codeOf(() => parseDeployment(wrong))).toBe('MODEL_UNKNOWN')
  }
})

test('providers: the table is https, or loopback without a key', () => {
  for (const name of knownProviders) {
    const local = ['ollama', 'vllm', 'lmstudio'].includes(name)
    const env = local ? {} : { [keyVariable(name)]: 'k' }
    const { baseURL, apiKey } = resolveProvider(name, {}, env)
    expect(baseURL).toMatch(local ? /^http:\/\/127\.0\.0\.1:/ : /^https:/)
    expect(apiKey).toBe(local ? null : 'k')
    if (!local) expect(codeOf(() => resolveProvider(name, {}, {}))).toBe('KEY_MISSING')
  }
})

test('providers: OPENAI_BASE_URL and OPENAI_API_KEY are honoured, blank ones are not', () => {
  const env = { OPENAI_BASE_URL: ' https://proxy.example/v1 ', OPENAI_API_KEY: ' k ' }
  expect(resolveProvider('openai', {}, env)).toMatchObject({ baseURL: 'https://proxy.example/v1', apiKey: 'k' })
  expect(resolveProvider('openai', {}, { OPENAI_BASE_URL: ' ', OPENAI_API_KEY: 'k' }).baseURL).toBe(
    'https://api.openai.com/v1',
  )
  expect(codeOf(() => resolveProvider('openai', {}, { OPENAI_API_KEY: '  ' }))).toBe('KEY_MISSING')
})

test('providers: a loopback base URL needs no key, any other one does', () => {
  for (const host of ['127.0.0.1', '127.1.2.3', 'localhost', '[::1]']) {
    expect(resolveProvider('openai', {}, { OPENAI_BASE_URL: `http://${host}:1/v1` }).apiKey).toBeNull()
  }
  for (const url of ['http://10.0.0.1/v1', 'https://127.0.0.1.example.com/v1', 'https://localhost.example/v1']) {
    expect(codeOf(() => resolveProvider('openai', {}, { OPENAI_BASE_URL: url }))).toBe('KEY_MISSING')
    expect(codeOf(() => resolveProvider('corp', { corp: { baseURL: url } }, {}))).toBe('KEY_MISSING')
    expect(resolveProvider('corp', { corp: { baseURL: url, apiKey: null } }, {}).apiKey).toBeNull()
    expect(resolveProvider('corp', { corp: { baseURL: url } }, { CORP_API_KEY: 'k' }).apiKey).toBe('k')
  }
})

test('providers: a local provider that was moved off loopback needs a key', () => {
  expect(codeOf(() => resolveProvider('ollama', {}, { OLLAMA_BASE_URL: 'https://ollama.example/v1' }))).toBe(
    'KEY_MISSING',
  )
})

test('providers: the missing variable is named', () => {
  expect(() => resolveProvider('openrouter', {}, {})).toThrow(/OPENROUTER_API_KEY/)
  expect(() => resolveProvider('my-corp', { 'my-corp': { baseURL: 'https://x.example' } }, {})).toThrow(
    /MY_CORP_API_KEY/,
  )
})

test('providers: an unknown one is refused with the known ones', () => {
  expect(() => resolveProvider('nope', { corp: { baseURL: 'https://x.example' } }, {})).toThrow(/corp.*ollama.*openai/)
  for (const name of ['nope', 'toString', '__proto__', 'constructor']) {
    expect(codeOf(() => resolveProvider(name, {}, {}))).toBe('MODEL_UNKNOWN')
  }
})

test('providers: a base URL that is none is refused without being repeated', () => {
  for (const baseURL of ['nonsense', 'ftp://x.example', 'https://user:s3cret-pass@x.example/v1', 'file:///etc']) {
    expect(codeOf(() => resolveProvider('corp', { corp: { baseURL, apiKey: 'k' } }, {}))).toBe('CONFIG_INVALID')
    expect(() => resolveProvider('corp', { corp: { baseURL, apiKey: 'k' } }, {})).not.toThrow(/s3cret/)
  }
})

test('providers: only OpenAI itself is sent max_completion_tokens, unless told otherwise', () => {
  const env = { OPENAI_API_KEY: 'k', OPENAI_BASE_URL: undefined }
  expect(resolveProvider('openai', {}, env).maxTokensField).toBe('max_completion_tokens')
  expect(resolveProvider('openai', {}, { ...env, OPENAI_BASE_URL: 'http://localhost:1/v1' }).maxTokensField).toBe(
    'max_tokens',
  )
  const corp = { baseURL: 'https://x.example/v1', apiKey: 'k', maxTokensField: 'max_completion_tokens' } as const
  expect(resolveProvider('corp', { corp }, {}).maxTokensField).toBe('max_completion_tokens')
})
