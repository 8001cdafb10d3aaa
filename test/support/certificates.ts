/**
 * Certificates of a test's own: an authority, and what it signed. Made by openssl from PATH.
 */
import { execFile } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { onTestFinished } from 'vitest'

const run = promisify(execFile)

/** Paths of PEM files. */
export interface Certificate {
  readonly certFile: string
  readonly keyFile: string
}

/** An authority and a certificate each for a server on this machine and for a client. Gone when the test ends. */
export interface Certificates {
  readonly caFile: string
  readonly server: Certificate
  readonly client: Certificate
}

/** Makes them. Fails with one clear line when there is no openssl on this machine. */
export async function makeCertificates(): Promise<Certificates> {
  const folder = await mkdtemp(join(tmpdir(), 'troupe-tls-'))
  onTestFinished(() => rm(folder, { recursive: true, force: true }))
  const path = (name: string): string => join(folder, name)
  const openssl = async (...words: readonly string[]): Promise<void> => {
    await run('openssl', words, { cwd: folder }).catch((error: NodeJS.ErrnoException) => {
      throw new Error(
        error.code === 'ENOENT' ? 'there is no openssl in PATH: install the package openssl' : error.message,
      )
    })
  }
  const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes']
  await openssl('req', '-x509', ...newKey, '-days', '2', '-subj', '/CN=test-ca', '-keyout', 'ca.key', '-out', 'ca.pem')
  const sign = async (name: string, extensions: string): Promise<Certificate> => {
    await writeFile(path(`${name}.ext`), extensions)
    await openssl('req', ...newKey, '-subj', `/CN=${name}`, '-keyout', `${name}.key`, '-out', `${name}.csr`)
    const by = ['-CA', 'ca.pem', '-CAkey', 'ca.key', '-CAcreateserial', '-days', '2', '-extfile', `${name}.ext`]
    await openssl('x509', '-req', '-in', `${name}.csr`, ...by, '-out', `${name}.pem`)
    return { certFile: path(`${name}.pem`), keyFile: path(`${name}.key`) }
  }
  return {
    caFile: path('ca.pem'),
    server: await sign('server', 'subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n'),
    client: await sign('client', 'extendedKeyUsage=clientAuth\n'),
  }
}
